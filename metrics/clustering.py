"""Clusters of vectors, and their agreement with classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .distances import Distinct


def cluster(vectors: NDArray[np.float32], n_clusters: int, *, seed: int) -> NDArray[np.int64]:
    """The cluster of each vector: k-means by FAISS, 20 iterations, repeatable whatever the order of the vectors.

    Copies of a vector weigh as many, are in one cluster, and start at most one; there are no more clusters than
    different vectors.
    """
    import faiss

    distinct = Distinct.of(vectors)
    points, dim = vectors[distinct.first], vectors.shape[1]
    kmeans = faiss.Kmeans(
        dim,
        min(n_clusters, len(points)),
        niter=20,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    kmeans.train(points, weights=distinct.counts.astype(np.float32))
    assigned: NDArray[np.int64] = kmeans.index.search(points, 1)[1][:, 0]
    return assigned[distinct.number]


def normalised_mutual_information(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Agreement of two partitions, in [0, 1]: mutual information over the arithmetic mean of their entropies.

    >>> normalised_mutual_information(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3]))
    1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    parts = [np.unique(side, return_inverse=True)[1] for side in (first, second)]
    return float(normalized_mutual_info_score(*parts))
