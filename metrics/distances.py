"""Distances between vectors: one definition of each metric, exact, and each row by itself.

Smaller is nearer: cosine = 1 − cos, l2 unsquared, l1 the sum of |differences|, dot = −(x · y).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError, ShapeError
from . import METRICS as METRICS
from . import Metric as Metric

_BLOCK = 1024  # rows whose float64 copy stays in the processor's cache
_NUMBERS = 1 << 15  # likewise, of vectors that are compared

Vectors: TypeAlias = npt.NDArray[np.float32]
Distances: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SearchSpec:
    """The kind of a search: vectors of `dim` numbers, compared by `metric`."""

    dim: int
    metric: Metric

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise InputError(f"a vector needs at least 1 dimension, got dim={self.dim}")
        if self.metric not in METRICS:
            raise InputError(f"expected a metric out of {', '.join(METRICS)}, got {self.metric!r}")


def check_vectors(spec: SearchSpec, vectors: npt.ArrayLike, *, what: str = "vectors") -> tuple[Vectors, Distances]:
    """The same numbers as a C-ordered float32 (n, d) array that may be searched or stored, and their lengths (n,)."""
    if isinstance(vectors, np.ndarray) and vectors.dtype == np.float32:
        array = np.ascontiguousarray(vectors)
    else:
        try:
            with np.errstate(over="ignore"):
                array = np.ascontiguousarray(vectors, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ShapeError(f"expected {what} of shape (n, {spec.dim}), got something else than numbers") from error
    if array.ndim != 2 or array.shape[1] != spec.dim:
        raise ShapeError(f"expected {what} of shape (n, {spec.dim}), got {array.shape}")
    lengths = lengths_of(array)  # one pass for both checks: a length is finite, or 0, only if all of its numbers are
    values = lengths.tolist()
    if not sum(values) < np.inf:
        row = int(np.flatnonzero(~np.isfinite(lengths))[0])
        got = f"NaN or infinity in row {row}"
        raise InputError(f"expected finite {what}, got {got}; encode that image again or leave it out")
    if spec.metric == "cosine" and 0.0 in values:
        row = int(np.flatnonzero(lengths == 0)[0])
        raise InputError(f"cosine distance needs a direction, but row {row} of the {what} is all zeros; leave it out")
    return array, lengths


def lengths_of(vectors: Vectors) -> Distances:
    """Euclidean lengths (n,) in float64, each row by itself; no float32 overflows."""
    lengths = np.empty(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK].astype(np.float64)
        np.vecdot(block, block, out=lengths[start : start + _BLOCK])
    return np.sqrt(lengths, out=lengths)


def comparable(spec: SearchSpec, vectors: Vectors, lengths: Distances | None = None) -> Vectors:
    """The form in which vectors are stored in engines and compared: of unit length for cosine, else as they are."""
    if spec.metric != "cosine":
        return vectors
    unit = np.empty_like(vectors)
    divisors = (lengths_of(vectors) if lengths is None else lengths)[:, None]
    return np.divide(vectors, divisors, out=unit, dtype=np.float64, casting="same_kind")


def distances_to(
    spec: SearchSpec, query: Vectors, vectors: Vectors, *, which: npt.NDArray[np.intp] | None = None
) -> Distances:
    """Distance in float64 of one query (d,) from each vector (n, d), all in `comparable` form.

    With `which` (n,), each vector's own out of queries (q, d).

    A row's distance does not depend on the rows around it, so copies of a vector tie exactly; not so in a matrix
    product. Cosine is taken as ½‖x̂ − ŷ‖², which is 0 for equal directions and loses no digits near 0.

    >>> spec = SearchSpec(2, "l1")
    >>> distances_to(spec, np.float32([1, 1]), np.float32([[1, 1], [3, 0]]))
    array([0., 3.])
    """
    distances = np.empty(len(vectors))
    step = min(len(vectors), max(1, _NUMBERS // spec.dim)) or 1
    room = np.empty((step, spec.dim))
    for start in range(0, len(vectors), step):
        part = slice(start, start + step)
        other, out = query if which is None else query[which[part]], distances[part]
        block = room[: len(out)]
        block[:] = vectors[part]
        if spec.metric == "dot":
            np.vecdot(block, other.astype(np.float64), out=out)
            continue
        block -= other
        if spec.metric == "l1":
            np.abs(block, out=block).sum(axis=1, out=out)
        else:
            np.vecdot(block, block, out=out)
    match spec.metric:
        case "dot":
            return np.negative(distances, out=distances)
        case "l1":
            return distances
        case "l2":
            return np.sqrt(distances, out=distances)
        case _:
            return np.minimum(distances / 2, 2.0)


def rough_distances(spec: SearchSpec, queries: Vectors, vectors: Vectors) -> Distances:
    """Distances (q, n) of all pairs, in `comparable` form, within the rounding of one matrix product in float64."""
    if spec.metric == "l1":
        from scipy.spatial.distance import cdist  # its import takes a tenth of a second

        return np.asarray(cdist(queries, vectors, "cityblock"))
    product: Distances = queries.astype(np.float64) @ vectors.astype(np.float64).T
    if spec.metric == "dot":
        return -product
    first, second = (np.vecdot(each, each, dtype=np.float64) for each in (queries, vectors))
    squared: Distances = np.maximum(first[:, None] + second - 2 * product, 0)
    return np.sqrt(squared) if spec.metric == "l2" else squared / 2


def together(counts: npt.NDArray[np.intp], most: int = 256) -> Iterator[tuple[slice, slice]]:
    """Neighbouring queries, and their candidates, so many for each: at most so many at a time, or those of one query.

    >>> list(together(np.array([2, 1, 4]), most=3))
    [(slice(0, 2, None), slice(0, 3, None)), (slice(2, 3, None), slice(3, 7, None))]
    """
    stops = np.cumsum(counts)
    first = start = 0
    while first < len(counts):
        last = max(first + 1, int(np.searchsorted(stops, start + most, "right")))
        stop = int(stops[last - 1])
        yield slice(first, last), slice(start, stop)
        first, start = last, stop


class Distinct(NamedTuple):
    """The different vectors of a set, in an order that hangs on their numbers alone."""

    first: npt.NDArray[np.intp]  # a row of the set for each of them
    number: npt.NDArray[np.intp]  # for each row of the set, which of them it is

    @classmethod
    def of(cls, vectors: npt.NDArray[Any]) -> Distinct:
        """Those of (n, d) vectors, d at least 1.

        >>> Distinct.of(np.array([[2.0], [0.0], [2.0], [-0.0]])).number.tolist()
        [1, 0, 1, 0]
        """
        vectors = np.ascontiguousarray(vectors)
        negative_zero = np.iinfo(f"i{vectors.itemsize}").min
        bits = vectors.view(f"i{vectors.itemsize}")
        if any((bits[start : start + _BLOCK] == negative_zero).any() for start in range(0, len(bits), _BLOCK)):
            vectors = vectors + 0  # −0 is 0
        order = np.argsort(vectors.view(np.dtype((np.void, vectors.itemsize * vectors.shape[1])))[:, 0], kind="stable")
        is_new = [True, *((vectors[a] != vectors[b]).any() for a, b in pairwise(order.tolist()))]
        number = np.empty(len(vectors), np.intp)
        number[order] = np.cumsum(is_new) - 1
        return cls(order[is_new], number)

    def __len__(self) -> int:
        return len(self.first)

    @property
    def counts(self) -> npt.NDArray[np.intp]:
        """Number of copies of each."""
        return np.bincount(self.number, minlength=len(self.first))


def cluster(vectors: npt.NDArray[np.float32], n_clusters: int, *, seed: int) -> npt.NDArray[np.int64]:
    """The cluster of each vector: k-means by FAISS, 20 iterations, repeatable whatever the order of the vectors.

    Copies of a vector weigh as many, are in one cluster, and start at most one; there are no more clusters than
    different vectors.
    """
    import faiss

    distinct = Distinct.of(vectors)
    points, dim = vectors[distinct.first], vectors.shape[1]
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
    kmeans = faiss.Kmeans(dim, min(n_clusters, len(points)), niter=20, seed=seed, **limits)
    kmeans.train(points, weights=distinct.counts.astype(np.float32))
    assigned: npt.NDArray[np.int64] = kmeans.index.search(points, 1)[1][:, 0]
    return assigned[distinct.number]


def normalised_mutual_information(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Agreement of two partitions, in [0, 1]: mutual information over the arithmetic mean of their entropies.

    >>> normalised_mutual_information(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3]))
    1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    parts = [np.unique(side, return_inverse=True)[1] for side in (first, second)]
    return float(normalized_mutual_info_score(*parts))
