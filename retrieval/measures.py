"""Retrieval measures from the ranks of the right answers, their bootstrap errors, and the agreement of clusterings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["QueryMeasures", "bootstrap_errors", "cluster", "measures", "normalised_mutual_information"]

Values = NDArray[np.float64]


class QueryMeasures(NamedTuple):
    """One value per query; NaN (and 0 for counts and ranks) where nothing is relevant.

    Attributes:
        n_relevant: R, the number of relevant gallery images.
        first_rank: rank of the first of them, from 1.
        r_precision: share of relevant images among the first R, in [0, 1].
        map_at_r: sum of the precisions at the relevant ones among the first R, over R, in [0, 1].
        average_precision: mean of the precisions at all relevant ones, in (0, 1].
    """

    n_relevant: NDArray[np.int64]
    first_rank: NDArray[np.int64]
    r_precision: Values
    map_at_r: Values
    average_precision: Values


def measures(ranks: Iterable[NDArray[np.int64]]) -> QueryMeasures:
    """Every measure of every query, from the ascending ranks (from 1) of its relevant images.

    Source: Musgrave et al. 2020, arXiv:2003.08505, §3.2.

    >>> found = measures([np.array([1, 4, 5])])  # R = 3: right, wrong, wrong, right, right
    >>> [round(float(values[0]), 4) for values in found]
    [3.0, 1.0, 0.3333, 0.3333, 0.7]
    """
    rows = [_measures(own) for own in ranks]
    columns = np.array(rows, np.float64).reshape(len(rows), 5).T
    return QueryMeasures(columns[0].astype(np.int64), columns[1].astype(np.int64), *columns[2:])


def _measures(ranks: NDArray[np.int64]) -> tuple[float, ...]:
    n_relevant = len(ranks)
    if not n_relevant:
        return 0, 0, np.nan, np.nan, np.nan
    precision = np.arange(1, n_relevant + 1) / ranks
    n_within = np.count_nonzero(ranks <= n_relevant)
    return (
        n_relevant,
        float(ranks[0]),
        n_within / n_relevant,
        float(precision[:n_within].sum()) / n_relevant,
        float(precision.mean()),
    )


def bootstrap_errors(values: Values, groups: NDArray[Any], *, resamples: int, seed: int) -> Values:
    """Standard errors of the means of the columns of (n, m) values when whole groups are drawn again.

    A group is a query, or all queries of a class: queries of one class succeed and fail together, and another set of
    test classes would give another number. NaN with a single group.
    """
    _, group = np.unique(groups, return_inverse=True)
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < 2:
        return np.full(values.shape[1], np.nan)
    sums = np.column_stack(
        [np.bincount(group), *(np.bincount(group, weights=column, minlength=n_groups) for column in values.T)]
    ).astype(np.float64)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for row in range(resamples):
        times = np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups)
        totals = times @ sums
        means[row] = totals[1:] / totals[0]
    errors: Values = means.std(axis=0, ddof=1)
    return errors


def cluster(vectors: NDArray[np.float32], n_clusters: int, *, seed: int) -> NDArray[np.int64]:
    """The cluster of each vector: k-means by FAISS, 20 iterations over all vectors, repeatable."""
    import faiss

    n, dim = vectors.shape
    kmeans = faiss.Kmeans(dim, n_clusters, niter=20, seed=seed, min_points_per_centroid=1, max_points_per_centroid=n)
    kmeans.train(vectors)
    assigned: NDArray[np.int64] = kmeans.index.search(vectors, 1)[1][:, 0]
    return assigned


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
