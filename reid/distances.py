"""Distances between queries and gallery, a few rows at a time: memory is bounded by a block, not by the product."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, ShapeError
from ..metrics import METRICS, Metric
from ..metrics.distances import Distinct, lengths_of

Indices = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Block = tuple[NDArray[np.intp], NDArray[Any]]
BLOCK_BYTES = 16 << 20  # size of a block of distances; one row is the least
_TILE_BYTES = 4 << 20  # gallery rows that are gathered at a time


@runtime_checkable
class DistanceSource(Protocol):
    """Rows of a (queries × gallery) table of distances, smaller is nearer, computed or looked up on demand."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and gallery images."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Least and greatest distance possible, where known without looking."""

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Distances of queries `start` to `stop` (exclusive), all finite."""


def blocks(source: DistanceSource, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Numbers of the queries and their distances, one block after the other, in the order that suits the source."""
    n_queries, n_gallery = source.shape
    size = max(1, block_bytes // (source.dtype.itemsize * max(1, n_gallery)))
    if hasattr(source, "blocks"):  # features, re-ranked or not: no result depends on the order of images
        yield from source.blocks(size)
        return
    for start in range(0, n_queries, size):
        stop = min(start + size, n_queries)
        yield np.arange(start, stop), source.rows(start, stop)


class MatrixDistances:
    """A table of distances that exists already; integers and half precision are widened block by block."""

    bounds = None

    def __init__(self, matrix: ArrayLike) -> None:
        self._matrix = np.asarray(matrix)
        if self._matrix.ndim != 2:
            raise ShapeError(f"distances: expected (queries, gallery), got shape {self._matrix.shape}")
        if self._matrix.dtype.kind not in "iuf":
            raise InputError(f"distances: expected numbers, got {self._matrix.dtype}")
        self.shape: tuple[int, int] = self._matrix.shape
        self.dtype: np.dtype[Any] = _float_type(self._matrix)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `DistanceSource.rows`."""
        return _finite(self._matrix[start:stop].astype(self.dtype, copy=False), np.arange(start, stop))


class FeatureDistances:
    """Distances between two sets of feature vectors: cosine 1 − cos, l2 not squared, l1 the sum, dot the negative.

    Features stay as they are (no normalised copy is made); float64 features are compared in float64, all others in
    float32. The rounding of a matrix product hangs on where a row stands in it, so equal vectors share one row of the
    product, and `blocks` multiplies in an order that hangs on the vectors alone: equal vectors have equal distances,
    and no distance depends on the order of either side.

    Raises:
        InputError: a feature that is not finite, or a zero vector, which has no cosine.
    """

    def __init__(self, query: ArrayLike, gallery: ArrayLike, *, metric: Metric = "cosine") -> None:
        if metric not in METRICS:
            raise InputError(f"metric must be one of {METRICS}, got {metric!r}")
        self._query, self._gallery = np.asarray(query), np.asarray(gallery)
        for name, side in (("query", self._query), ("gallery", self._gallery)):
            if side.ndim != 2 or not side.size:
                raise ShapeError(f"{name} features: expected (images, dimensions), got shape {side.shape}")
            if side.dtype.kind not in "iuf":
                raise InputError(f"{name} features: expected numbers, got {side.dtype}")
        if self._query.shape[1] != self._gallery.shape[1]:
            raise ShapeError(
                f"query features have {self._query.shape[1]} dimensions, gallery features {self._gallery.shape[1]}: "
                "both must come from one encoder"
            )
        self.dtype: np.dtype[Any] = np.result_type(_float_type(self._query), _float_type(self._gallery))
        self._query, self._gallery = (side.astype(self.dtype, copy=False) for side in (self._query, self._gallery))
        self._norms = [_norms(self._query, "query", metric), _norms(self._gallery, "gallery", metric)]
        self.metric = metric
        self.shape: tuple[int, int] = (len(self._query), len(self._gallery))

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest distance that these norms allow."""
        query, gallery = (float(norms.max(initial=0.0)) for norms in self._norms)
        return {
            "cosine": (0.0, 2.0),
            "l2": (0.0, query + gallery),
            "l1": (0.0, (query + gallery) * self._query.shape[1] ** 0.5),
            "dot": (-query * gallery, query * gallery),
        }[self.metric]

    def stacked(self) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Query and gallery features one below the other (a copy), and their Euclidean lengths."""
        return np.concatenate([self._query, self._gallery]), np.concatenate(self._norms)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `DistanceSource.rows`."""
        return _finite(self._distances(np.arange(start, stop)), np.arange(start, stop))

    def blocks(self, size: int) -> Iterator[Block]:
        """Every query's number and distances, at most `size` at a time, equal vectors side by side."""
        asked = Distinct.of(self._query)
        for start in range(0, len(asked), size):
            part = slice(start, start + size)
            distances = self._distances(asked.first[part])
            if len(asked) == self.shape[0]:
                yield asked.first[part], _finite(distances, asked.first[part])
                continue
            queries = np.flatnonzero((asked.number >= start) & (asked.number < start + size))
            for first in range(0, len(queries), size):
                some = queries[first : first + size]
                yield some, _finite(distances[asked.number[some] - start], some)

    @cached_property
    def _distinct(self) -> Distinct:
        return Distinct.of(self._gallery)

    def _distances(self, queries: NDArray[np.intp]) -> NDArray[Any]:
        """Distances of some queries to the whole gallery, from products in the gallery's own order."""
        gallery, query = self._distinct, self._query[queries]
        distances = np.empty((len(queries), len(gallery)), self.dtype)
        step = max(1, _TILE_BYTES // (self.dtype.itemsize * max(1, query.shape[1])))
        for start in range(0, len(gallery), step):
            rows = gallery.first[start : start + step]
            vectors, part = self._gallery[rows], distances[:, start : start + step]
            if self.metric == "l1":
                part[:] = np.stack([np.abs(vectors - vector).sum(axis=1) for vector in query])
                continue
            np.matmul(query, vectors.T, out=part)
            norms, gallery_norms = self._norms[0][queries, None], self._norms[1][rows]
            if self.metric == "cosine":  # 1 − q·g / (|q||g|), in place
                part *= (1 / norms).astype(self.dtype)
                part *= (-1 / gallery_norms).astype(self.dtype)
                part += 1
            elif self.metric == "l2":  # |q|² + |g|² − 2 q·g, in place
                part *= -2
                part += (norms**2).astype(self.dtype)
                part += (gallery_norms**2).astype(self.dtype)
                np.sqrt(np.maximum(part, 0, out=part), out=part)
            else:
                np.negative(part, out=part)
        return distances.take(gallery.number, axis=1)


class DistinctVectors:
    """The different vectors of queries and gallery, whose squared distances are compared.

    Features to be compared by "cosine" are scaled to length 1, those by "l2" are as they are. Their order hangs on
    their numbers alone. `copies` counts the images of each vector; `number` is the vector of each image, queries first.
    """

    def __init__(self, source: FeatureDistances) -> None:
        vectors, norms = source.stacked()
        if source.metric == "cosine":
            vectors /= norms[:, None].astype(vectors.dtype)
            norms = np.ones_like(norms)
        distinct = Distinct.of(vectors)
        self.squared_norm: Floats = (norms[distinct.first] ** 2).astype(vectors.dtype)
        added = np.ones_like(self.squared_norm), self.squared_norm
        self._extended: Floats = np.column_stack([vectors[distinct.first], *added])
        self.vectors: Floats = self._extended[:, :-2]
        self.copies, self.number, self.n_queries = distinct.counts, distinct.number, source.shape[0]

    def __len__(self) -> int:
        return len(self.vectors)

    def squared(self, rows: slice | Indices | list[int], columns: slice | Indices | list[int]) -> Floats:
        """|x|² + |y|² − 2 x·y of some vectors and others, at least 0."""
        asked, ones = self.squared_norm[rows, None], np.ones_like(self.squared_norm[rows, None])
        left = np.concatenate([-2 * self.vectors[rows], asked, ones], axis=1)
        distances: Floats = left @ self._extended[columns].T  # both norms within the product: no pass over it each
        return np.maximum(distances, 0, out=distances)


def _float_type(array: NDArray[Any]) -> np.dtype[Any]:
    """float32 for float32 and half precision, float64 for everything that float32 would round."""
    return np.dtype(np.float32 if array.dtype in (np.float16, np.float32) else np.float64)


def _norms(features: NDArray[Any], name: str, metric: Metric) -> NDArray[np.float64]:
    """Euclidean lengths in float64; a row that is not finite shows up here without a pass of its own."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = lengths_of(features)
    if (bad := np.flatnonzero(~np.isfinite(norms))).size:
        raise InputError(
            f"{name} features: row {bad[0]} is not finite ({bad.size} such rows); a ranking of NaN looks perfect, "
            "so it is refused: find out which image or layer produced it"
        )
    if metric == "cosine" and (bad := np.flatnonzero(norms == 0)).size:
        raise InputError(f"{name} features: row {bad[0]} is zero ({bad.size} such rows) and has no cosine distance")
    return norms


def _finite(distances: NDArray[Any], queries: NDArray[np.intp]) -> NDArray[Any]:
    if not np.isfinite(distances).all():
        row, column = np.argwhere(~np.isfinite(distances))[0]
        raise InputError(
            f"the distance of query {queries[row]} to gallery image {column} is {distances[row, column]}; "
            "a ranking with NaN or infinity means nothing"
        )
    return distances
