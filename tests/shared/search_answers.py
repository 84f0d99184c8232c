"""What tests of neighbour search share: vectors in clusters, the true answer, and an index over vectors 0, 1, 2, …"""

from __future__ import annotations

import numpy as np

from distcam.index.faiss.search import FaissSearch
from distcam.index.search import Hits
from distcam.metrics.distances import Metric, SearchSpec, comparable, distances_to

EXACT = ("flat", "SQfp16")


def ids_of(*keys: int) -> np.ndarray:
    return np.array(keys, np.uint64)


def build(vectors: np.ndarray, metric: Metric = "l2", factory: str = "flat", **options: object) -> FaissSearch:
    """An index of these vectors with ids 0, 1, 2, …"""
    batches = [(np.arange(len(vectors), dtype=np.uint64), vectors)] if len(vectors) else []
    spec = SearchSpec(vectors.shape[1], metric)
    options.setdefault("device", "cpu")
    return FaissSearch.build(spec, batches, count=len(vectors), factory=factory, **options)  # type: ignore[arg-type]


def blobs(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(n // 20, 1), d))
    return (centres[rng.integers(0, len(centres), n)] + 0.3 * rng.standard_normal((n, d))).astype(np.float32)


def true_hits(
    metric: Metric, query: np.ndarray, vectors: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> Hits:
    """All distances in float64, sorted by (distance, id): the answer every exact index has to give, bit for bit."""
    spec = SearchSpec(vectors.shape[1], metric)
    keys = np.arange(len(vectors)) if allowed is None else allowed.astype(np.int64)
    distances = distances_to(spec, comparable(spec, query[None])[0], comparable(spec, vectors)[keys])
    order = np.lexsort((keys, distances))[:k]
    return Hits(keys[order].astype(np.uint64), distances[order])


def assert_same(found: list[Hits], expected: list[Hits]) -> None:
    assert len(found) == len(expected)
    for hits, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(hits.ids, wanted.ids)
        np.testing.assert_array_equal(hits.distances, wanted.distances)
