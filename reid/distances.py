"""Distances between queries and gallery, a few rows at a time: memory is bounded by a block, not by the product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, ShapeError
from ..metrics.distances import METRICS, Metric

__all__ = ["BLOCK_BYTES", "DistanceSource", "FeatureDistances", "MatrixDistances", "Metric", "blocks"]

BLOCK_BYTES = 16 << 20
"""Size of a block of distances; one row is the least."""


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


def blocks(source: DistanceSource, *, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, NDArray[Any]]]:
    """First query and distances of one block after the other."""
    n_queries, n_gallery = source.shape
    size = max(1, block_bytes // (source.dtype.itemsize * max(1, n_gallery)))
    for start in range(0, n_queries, size):
        yield start, source.rows(start, min(start + size, n_queries))


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
        return _finite(self._matrix[start:stop].astype(self.dtype, copy=False), start)


class FeatureDistances:
    """Distances between two sets of feature vectors: cosine 1 − cos, l2 not squared, l1 the sum, dot the negative.

    Features stay as they are (no normalised copy is made); float64 features are compared in float64, all others in
    float32. Equal vectors may differ by rounding from a matrix product's other columns, far below 1e-6 for cosine.

    Raises:
        InputError: a feature that is not finite, or a zero vector, which has no cosine.
    """

    def __init__(self, query: ArrayLike, gallery: ArrayLike, *, metric: Metric = "cosine") -> None:
        if metric not in METRICS:
            raise InputError(f"metric must be one of {METRICS}, got {metric!r}")
        self._query, self._gallery = np.asarray(query), np.asarray(gallery)
        _check_features(self._query, self._gallery)
        self.dtype: np.dtype[Any] = np.result_type(_float_type(self._query), _float_type(self._gallery))
        self._query, self._gallery = (side.astype(self.dtype, copy=False) for side in (self._query, self._gallery))
        self._norms = [
            _norms(side, name, metric) for side, name in ((self._query, "query"), (self._gallery, "gallery"))
        ]
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
        query = self._query[start:stop]
        if self.metric == "l1":
            return _finite(_city_block(query, self._gallery), start)
        distances = query @ self._gallery.T
        norms, gallery_norms = self._norms[0][start:stop, None], self._norms[1]
        if self.metric == "cosine":  # 1 − q·g / (|q||g|), in place
            distances *= (1 / norms).astype(self.dtype)
            distances *= (-1 / gallery_norms).astype(self.dtype)
            distances += 1
        elif self.metric == "l2":  # |q|² + |g|² − 2 q·g, in place
            distances *= -2
            distances += (norms**2).astype(self.dtype)
            distances += (gallery_norms**2).astype(self.dtype)
            np.sqrt(np.maximum(distances, 0, out=distances), out=distances)
        else:
            np.negative(distances, out=distances)
        return _finite(distances, start)


def _float_type(array: NDArray[Any]) -> np.dtype[Any]:
    """float32 for float32 and half precision, float64 for everything that float32 would round."""
    return np.dtype(np.float32 if array.dtype in (np.float16, np.float32) else np.float64)


def _check_features(query: NDArray[Any], gallery: NDArray[Any]) -> None:
    for name, side in (("query", query), ("gallery", gallery)):
        if side.ndim != 2:
            raise ShapeError(f"{name} features: expected (images, dimensions), got shape {side.shape}")
        if side.dtype.kind not in "iuf":
            raise InputError(f"{name} features: expected numbers, got {side.dtype}")
    if query.shape[1] != gallery.shape[1]:
        raise ShapeError(
            f"query features have {query.shape[1]} dimensions, gallery features {gallery.shape[1]}: "
            "both must come from one encoder"
        )


def _norms(features: NDArray[Any], name: str, metric: Metric) -> NDArray[np.float64]:
    """Euclidean lengths in float64; a row that is not finite shows up here without a pass of its own."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float64))
    if (bad := np.flatnonzero(~np.isfinite(norms))).size:
        raise InputError(
            f"{name} features: row {bad[0]} is not finite ({bad.size} such rows); a ranking of NaN looks perfect, "
            "so it is refused: find out which image or layer produced it"
        )
    if metric == "cosine" and (bad := np.flatnonzero(norms == 0)).size:
        raise InputError(f"{name} features: row {bad[0]} is zero ({bad.size} such rows) and has no cosine distance")
    return norms


def _city_block(query: NDArray[Any], gallery: NDArray[Any]) -> NDArray[Any]:
    step = max(1, BLOCK_BYTES // (gallery.itemsize * max(1, gallery.shape[1])))
    distances = np.empty((len(query), len(gallery)), gallery.dtype)
    for start in range(0, len(gallery), step):
        part = gallery[start : start + step]
        for row, vector in enumerate(query):
            distances[row, start : start + step] = np.abs(part - vector).sum(axis=1)
    return distances


def _finite(distances: NDArray[Any], start: int) -> NDArray[Any]:
    if not np.isfinite(distances).all():
        row, column = np.argwhere(~np.isfinite(distances))[0]
        raise InputError(
            f"the distance of query {start + row} to gallery image {column} is {distances[row, column]}; "
            "a ranking with NaN or infinity means nothing"
        )
    return distances
