"""Standard errors of measures by resampling, and the agreement of clusterings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics.distances import Distinct

__all__ = ["bootstrap_errors", "cluster", "normalised_mutual_information"]

Values = NDArray[np.float64]


def bootstrap_errors(values: Values, groups: NDArray[Any], *, resamples: int, seed: int) -> Values:
    """Standard errors of the means of the columns of (n, m) values when whole groups are drawn again.

    A group is a query, or all queries of a class: queries of one class succeed and fail together, and another set of
    test classes would give another number. NaN with a single group. Neither the order of rows nor the names of groups
    change the draws.
    """
    _, group = np.unique(groups, return_inverse=True)
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < 2:
        return np.full(values.shape[1], np.nan)
    sums = np.column_stack(
        [np.bincount(group), *(np.bincount(group, weights=column, minlength=n_groups) for column in values.T)]
    ).astype(np.float64)
    sums = sums[np.lexsort(np.round(sums, 9).T)]  # sums of the same values in another order differ in their last bits
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for row in range(resamples):
        times = np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups)
        totals = times @ sums
        means[row] = totals[1:] / totals[0]
    errors: Values = means.std(axis=0, ddof=1)
    return errors


def cluster(vectors: NDArray[np.float32], n_clusters: int, *, seed: int) -> NDArray[np.int64]:
    """The cluster of each vector: k-means by FAISS, 20 iterations, repeatable whatever the order of the vectors."""
    import faiss

    n, dim = vectors.shape
    distinct = Distinct.of(vectors)
    vectors = vectors[np.argsort(distinct.number, kind="stable")]
    kmeans = faiss.Kmeans(dim, n_clusters, niter=20, seed=seed, min_points_per_centroid=1, max_points_per_centroid=n)
    kmeans.train(vectors)
    assigned: NDArray[np.int64] = kmeans.index.search(vectors[np.cumsum(distinct.counts) - 1], 1)[1][:, 0]
    return assigned[distinct.number]


def normalised_mutual_information(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Agreement of two partitions, in [0, 1]: mutual information over the mean of their entropies.

    The mean is arithmetic, as in scikit-learn; 1 when each partition has a single part.

    >>> normalised_mutual_information(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3]))
    1.0
    """
    parts = [np.unique(side, return_inverse=True)[1] for side in (first, second)]
    pairs = parts[0] * (int(parts[1].max(initial=0)) + 1) + parts[1]
    entropies = [_entropy(partition) for partition in (*parts, pairs)]
    total = entropies[0] + entropies[1]
    return 1.0 if total == 0 else float(np.clip(2 * (total - entropies[2]) / total, 0.0, 1.0))


def _entropy(partition: NDArray[Any]) -> float:
    shares = np.unique(partition, return_counts=True)[1] / len(partition)
    return float(-(shares * np.log(shares)).sum())
