"""k-reciprocal re-ranking, exact and sparse: two images are near when their neighbourhoods are.

The usual implementation fills several tables of (all images)² and runs out of memory at a few ten thousand images. But
a neighbourhood holds a few dozen images, so nearly all of those tables is zero. Here the distances pass by once in
blocks and leave the `k1` neighbours of each image; everything after works on neighbour lists.

Notation: N images (queries, then gallery), d the squared distance, dn(i, j) = d(i, j) / max_j d(i, j) our
`relative distance`, R(i, k) the k-reciprocal neighbours, V_i the encoding of a neighbourhood, λ our `original_share`.

Source: Zhong et al. 2017, arXiv:1701.08398; rounding of k1 / 2 as in their Python code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InputError
from ..distances import FeatureDistances
from .neighbours import PASS_BYTES, Images, Neighbours, nearest_neighbours

__all__ = ["Reranking", "SharedNeighbours", "rerank_features"]

Indices = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
RerankMetric = Literal["cosine", "l2"]
_CHUNK = 1 << 20
"""How many neighbours of neighbours are looked at together."""


def rerank_features(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    *,
    k1: int = 20,
    k2: int = 6,
    original_share: float = 0.3,
    metric: RerankMetric = "cosine",
    block_bytes: int = PASS_BYTES,
    device: str | None = None,
) -> Reranking:
    """The re-ranked distances of all queries to all gallery images, in [0, 1], as a source of rows computed on demand.

    Equal distances rank by index (queries before gallery) and an image is always its own nearest neighbour, so
    duplicates are harmless. Scaling all features changes nothing. Memory: one copy of the features, one block, and some
    dozen numbers per image.

    Args:
        query_features: (queries, dimensions).
        gallery_features: (gallery images, dimensions); without junk, which would take part as neighbours.
        k1: neighbours that define a neighbourhood; clipped to the number of other images.
        k2: neighbourhoods averaged (query expansion); 1 averages none.
        original_share: λ, what remains of the original distance: 1 keeps its order, 0 is the Jaccard distance alone.
        metric: `"cosine"` or `"l2"`; the original distance is its square (for unit vectors the two are the same).
        block_bytes: size of a block of distances.
        device: where the neighbours are looked for, which is nearly all of the time: None is NumPy, otherwise a device
            of torch such as "cuda". Its distances are rounded otherwise, so images that are equally far but for
            rounding may change places.

    Raises:
        InputError: features that are not finite, or options out of range.
    """
    if metric not in get_args(RerankMetric):
        raise InputError(f"re-ranking knows the metrics {get_args(RerankMetric)}, got {metric!r}")
    if k1 < 1 or k2 < 1 or not 0 <= original_share <= 1:
        raise InputError(
            f"expected k1 and k2 of at least 1 and original_share in [0, 1], got {k1}, {k2}, {original_share}"
        )
    images = Images.of(FeatureDistances(query_features, gallery_features, metric=metric))
    neighbours = nearest_neighbours(images, min(k1, len(images) - 1) + 1, block_bytes=block_bytes, device=device)
    encoding = _expanded(_encoded(images, neighbours), neighbours.index[:, :k2])
    return Reranking(images, encoding, farthest=neighbours.farthest, original_share=original_share)


@dataclass(frozen=True, eq=False)
class SharedNeighbours:
    """Why a query and a gallery image are near after re-ranking: the neighbours they share.

    Attributes:
        index: images that both neighbourhoods hold, most important first; queries count from 0, the gallery follows.
        share: each one's part of the overlap, summing to 1 (empty without overlap).
        jaccard_distance: 1 − overlap of the neighbourhoods, in [0, 1].
        relative_distance: original squared distance over the query's largest, in [0, 1].
    """

    index: Indices
    share: Floats
    jaccard_distance: float
    relative_distance: float


class Reranking:
    """Re-ranked distances of q queries to g gallery images; a row exists only while it is looked at.

    It can be handed to `evaluate_distances` in place of a table.
    """

    bounds = (0.0, 1.0)

    def __init__(self, images: Images, encoding: _Rows, *, farthest: Floats, original_share: float) -> None:
        self._images, self._encoding, self._farthest = images, encoding, farthest
        self.original_share = original_share
        self.shape: tuple[int, int] = (images.n_queries, len(images) - images.n_queries)
        self.dtype: np.dtype[Any] = images.vectors.dtype
        self._by_neighbour = _transposed(encoding, first_row=images.n_queries, n_columns=len(images))

    def rows(self, start: int, stop: int) -> Floats:
        """Distances of queries `start` to `stop` (exclusive): (1 − λ) Jaccard + λ relative distance."""
        gallery = slice(self.shape[0], len(self._images))
        distances = self._images.squared(slice(start, stop), gallery)
        distances *= (self.original_share / self._farthest[start:stop, None]).astype(self.dtype)
        distances += 1 - self.original_share
        row, column, overlap = self._overlaps(start, stop)
        distances[row, column] -= (
            (1 - self.original_share) * overlap / (2 - overlap)
        )  # rows of V sum to 1: ∑max = 2 − ∑min
        return np.maximum(distances, 0, out=distances)

    def top(self, k: int) -> tuple[Indices, Floats]:
        """The k nearest gallery images of each query, (q, k), nearest first and ties by index, and their distances."""
        n_queries, n_gallery = self.shape
        if not 1 <= k <= n_gallery:
            raise InputError(f"k must be from 1 to {n_gallery}, the gallery's size, got {k}")
        index, distance = np.empty((n_queries, k), np.int64), np.empty((n_queries, k), self.dtype)
        step = max(1, PASS_BYTES // (self.dtype.itemsize * n_gallery))
        for start in range(0, n_queries, step):
            for query, row in enumerate(self.rows(start, min(start + step, n_queries)), start):
                nearest = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1])
                index[query] = nearest[np.argsort(row[nearest], kind="stable")][:k]
                distance[query] = row[index[query]]
        return index, distance

    def shared_neighbours(self, query: int, gallery: int) -> SharedNeighbours:
        """Which images brought this pair together."""
        other = self.shape[0] + gallery
        first, second = self._encoding.row(query), self._encoding.row(other)
        index, at_first, at_second = np.intersect1d(first[0], second[0], assume_unique=True, return_indices=True)
        shared = np.minimum(first[1][at_first], second[1][at_second])
        order = np.argsort(-shared, kind="stable")
        overlap = float(shared.sum())
        squared = self._images.squared(slice(query, query + 1), slice(other, other + 1))
        return SharedNeighbours(
            index=index[order],
            share=shared[order] / overlap if overlap else shared,
            jaccard_distance=max(0.0, 1 - overlap / (2 - overlap)),
            relative_distance=float(squared[0, 0] / self._farthest[query]),
        )

    def _overlaps(self, start: int, stop: int) -> tuple[Indices, Indices, Floats]:
        """Pairs of queries and gallery images with a common neighbour, and ∑_j min(V_q[j], V_g[j])."""
        rows, columns, overlaps = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, self.dtype)]
        for query in range(start, stop):
            neighbour, weight = self._encoding.row(query)
            at, owner = self._by_neighbour.gather(neighbour)
            gallery = self._by_neighbour.column[at]
            smaller = np.minimum(self._by_neighbour.value[at], weight[owner])
            overlap = np.bincount(gallery, weights=smaller, minlength=0)
            found = np.flatnonzero(overlap)
            rows.append(np.full(found.size, query - start))
            columns.append(found)
            overlaps.append(overlap[found].astype(self.dtype))
        return np.concatenate(rows), np.concatenate(columns), np.concatenate(overlaps)


@dataclass(frozen=True, eq=False)
class _Rows:
    """A sparse table: row i holds `column[start[i]:start[i + 1]]` (ascending) and the values there."""

    start: Indices
    column: Indices
    value: Floats

    def row(self, i: int) -> tuple[Indices, Floats]:
        at = slice(self.start[i], self.start[i + 1])
        return self.column[at], self.value[at]

    def gather(self, rows: Indices) -> tuple[Indices, Indices]:
        """Positions of all entries of these rows one after the other, and which of `rows` each comes from."""
        begin, length = self.start[rows], self.start[rows + 1] - self.start[rows]
        owner = np.repeat(np.arange(rows.size), length)
        return np.arange(owner.size) + (begin - (np.cumsum(length) - length))[owner], owner


def _rows_of(code: Indices, value: Floats, *, n: int, n_columns: int) -> _Rows:
    """The table whose sorted entries have the codes row · columns + column."""
    row, column = np.divmod(code, n_columns)
    return _Rows(np.searchsorted(row, np.arange(n + 1)), column, value)


def _transposed(table: _Rows, *, first_row: int, n_columns: int) -> _Rows:
    """The rows from `first_row` on, by column; rows are numbered from 0 again."""
    at = slice(table.start[first_row], None)
    row = np.repeat(np.arange(len(table.start) - 1 - first_row), np.diff(table.start[first_row:]))
    order = np.argsort(table.column[at], kind="stable")
    start = np.searchsorted(table.column[at][order], np.arange(n_columns + 1))
    return _Rows(start, row[order], table.value[at][order])


def _reciprocal(index: Indices) -> Indices:
    """R(i, k) for all i as sorted codes i · N + j: j is a neighbour of i, and i of j."""
    n = len(index)
    row, column = np.repeat(np.arange(n), index.shape[1]), index.ravel()
    code = np.sort(row * n + column)
    back = np.sort(column * n + row)
    return code[_contains(back, code)]


def _contains(ordered: Indices, wanted: Indices) -> NDArray[np.bool_]:
    if not ordered.size:
        return np.zeros(wanted.shape, np.bool_)
    found: NDArray[np.bool_] = ordered[np.minimum(np.searchsorted(ordered, wanted), ordered.size - 1)] == wanted
    return found


def _neighbourhoods(index: Indices) -> Indices:
    """R*(i): R(i, k1), and R(c, k1/2) of those members c whose own two thirds lie in R(i, k1); as sorted codes."""
    n, k1 = len(index), index.shape[1] - 1
    reciprocal, half = _reciprocal(index), _reciprocal(index[:, : int(np.around(k1 / 2)) + 1])
    halves = _rows_of(half, np.empty(0), n=n, n_columns=n)
    size = np.diff(halves.start)
    parts = [reciprocal]
    step = max(1, _CHUNK // max(1, k1))
    for begin in range(0, reciprocal.size, step):
        row, member = np.divmod(reciprocal[begin : begin + step], n)
        at, owner = halves.gather(member)
        code = row[owner] * n + halves.column[at]
        common = np.bincount(owner, weights=_contains(reciprocal, code), minlength=row.size)
        parts.append(_distinct(code[(3 * common > 2 * size[member])[owner]]))
    return _distinct(np.concatenate(parts))


def _distinct(codes: Indices) -> Indices:
    """Sorted, without repetition."""
    codes = np.sort(codes)
    return codes[np.diff(codes, prepend=-1) > 0]


def _encoded(images: Images, neighbours: Neighbours) -> _Rows:
    """V: row i weighs the members of R*(i) by exp(−dn(i, j)), summing to 1."""
    n = len(images)
    members = _rows_of(_neighbourhoods(neighbours.index), np.empty(0), n=n, n_columns=n)
    weight = np.empty(members.column.size, images.vectors.dtype)
    for i in range(n):
        at = slice(members.start[i], members.start[i + 1])
        column = members.column[at]
        squared = images.vectors[column] @ images.vectors[i]
        squared *= -2
        squared += images.squared_norm[i] + images.squared_norm[column]
        squared[column == i] = 0
        near = np.exp(-np.maximum(squared, 0) / neighbours.farthest[i])
        weight[at] = near / near.sum()
    return _Rows(members.start, members.column, weight)


def _expanded(encoding: _Rows, nearest: Indices) -> _Rows:
    """Each row the mean of the rows of its nearest images (itself first)."""
    n, k2 = nearest.shape
    if k2 == 1:
        return encoding
    codes, values = [], []
    step = max(1, _CHUNK * n // max(1, k2 * encoding.column.size))
    for begin in range(0, n, step):
        at, owner = encoding.gather(nearest[begin : begin + step].ravel())
        code = (begin + owner // k2) * n + encoding.column[at]
        found, place = np.unique(code, return_inverse=True)
        codes.append(found)
        values.append((np.bincount(place, weights=encoding.value[at]) / k2).astype(encoding.value.dtype))
    return _rows_of(np.concatenate(codes), np.concatenate(values), n=n, n_columns=n)
