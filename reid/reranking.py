"""k-reciprocal re-ranking, exact and sparse: two images are near when their neighbourhoods are.

One pass over the distances leaves the neighbours of each image; everything after works on neighbour lists. No order of
images changes a result: copies (equal vectors) are neighbours together or not at all, so a neighbourhood may hold more
than k1 images, and different vectors at one distance are ordered by their numbers.

Notation: d the squared distance, dn(i, j) = d(i, j) / max_j d(i, j) our `relative distance`, R(i, k) the k-reciprocal
neighbours, V_i the encoding of a neighbourhood, λ our `original_share`.

Source: Zhong et al. 2017, arXiv:1701.08398; rounding of k1 / 2 as in their Python code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .distances import DistinctVectors, FeatureDistances, Floats, Indices

if TYPE_CHECKING:
    from scipy.sparse import csr_array

RerankMetric = Literal["cosine", "l2"]
PASS_BYTES = 16 << 20  # size of a block of distances: most passes over it find it in the cache


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

    Scaling all features, or ordering the images otherwise, changes nothing. Memory: one copy of the features, one
    block, and some hundred numbers per image.

    Args:
        query_features: (queries, dimensions).
        gallery_features: (gallery images, dimensions); without junk, which would take part as neighbours.
        k1: neighbours that define a neighbourhood, and all copies of the last; clipped to the number of other images.
        k2: neighbourhoods averaged (query expansion), likewise; 1 averages none.
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
    images = DistinctVectors(FeatureDistances(query_features, gallery_features, metric=metric))
    k1 = min(k1, len(images.number) - 1)
    nearest, farthest = nearest_neighbours(images, min(k1 + 1, len(images)), block_bytes=block_bytes, device=device)
    encoding = _encoded(images, nearest, farthest, k1=k1)
    if k2 > 1:  # each row becomes the mean of the rows of the k2 nearest images, itself first
        share = _nearest_images(images, nearest[:, :k2], k2)
        share.data = share.data / np.repeat(share.sum(axis=1), np.diff(share.indptr))
        encoding = (share @ encoding).astype(images.vectors.dtype)
        encoding.eliminate_zeros()
        encoding.sort_indices()
    return Reranking(images, encoding, farthest=farthest, original_share=original_share)


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

    def __init__(
        self, images: DistinctVectors, encoding: csr_array, *, farthest: Floats, original_share: float
    ) -> None:
        self._images, self._encoding, self._farthest = images, encoding, farthest
        self.original_share = original_share
        self.shape: tuple[int, int] = (images.n_queries, len(images.number) - images.n_queries)
        self.dtype: np.dtype[Any] = images.vectors.dtype
        self._query, self._gallery = np.split(images.number, [images.n_queries])
        columns = encoding.tocsc()
        self._by_neighbour = columns.indptr, columns.indices, columns.data

    def rows(self, start: int, stop: int) -> Floats:
        """Distances of queries `start` to `stop` (exclusive): (1 − λ) Jaccard + λ relative distance."""
        return self._distances(self._query[start:stop])

    def top(self, k: int) -> tuple[Indices, Floats]:
        """The k nearest gallery images of each query, (q, k), nearest first, ties by index; and their distances."""
        n_queries, n_gallery = self.shape
        if not 1 <= k <= n_gallery:
            raise InputError(f"k must be from 1 to {n_gallery}, the gallery's size, got {k}")
        index, distance = np.empty((n_queries, k), np.int64), np.empty((n_queries, k), self.dtype)
        for queries, rows in self.blocks(max(1, PASS_BYTES // (self.dtype.itemsize * n_gallery))):
            for query, row in zip(queries, rows, strict=True):
                nearest = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1])
                index[query] = nearest[np.argsort(row[nearest], kind="stable")][:k]
                distance[query] = row[index[query]]
        return index, distance

    def blocks(self, size: int) -> Iterator[tuple[NDArray[np.intp], Floats]]:
        """Every query's number and distances, at most `size` at a time, in an order that hangs on the vectors alone."""
        order = np.argsort(self._query, kind="stable")
        for start in range(0, len(order), size):
            queries = order[start : start + size]
            yield queries, self._distances(self._query[queries])

    def _distances(self, asked: Indices) -> Floats:
        """Distances of some vectors to the gallery's images."""
        vectors, place = np.unique(asked, return_inverse=True)
        distances = self._images.squared(vectors, slice(None))
        distances[np.arange(len(vectors)), vectors] = 0
        distances *= (self.original_share / self._farthest[vectors, None]).astype(self.dtype)
        distances += 1 - self.original_share
        pointers, holder, their_weight = self._by_neighbour
        for row, vector in zip(distances, vectors.tolist(), strict=True):
            neighbour, weight = _row(self._encoding, vector)
            first, last = pointers[neighbour], pointers[neighbour + 1]
            theirs = np.repeat(last - np.cumsum(last - first), last - first)  # all their columns, one after the other
            theirs += np.arange(len(theirs), dtype=theirs.dtype)
            smaller = np.minimum(their_weight[theirs], np.repeat(weight, last - first))
            overlap = np.bincount(holder[theirs], weights=smaller)
            found = np.flatnonzero(overlap)
            shared = overlap[found].astype(self.dtype)
            row[found] -= (1 - self.original_share) * shared / (2 - shared)  # rows of V sum to 1: ∑max = 2 − ∑min
        np.maximum(distances, 0, out=distances)
        return distances.take(self._gallery, axis=1)[place]

    def shared_neighbours(self, query: int, gallery: int) -> SharedNeighbours:
        """The images that brought this pair together; copies share what their vector contributes."""
        pair = int(self._query[query]), int(self._gallery[gallery])
        first, second = (_row(self._encoding, vector) for vector in pair)
        vectors, at_first, at_second = np.intersect1d(first[0], second[0], assume_unique=True, return_indices=True)
        shared = np.minimum(first[1][at_first], second[1][at_second])
        overlap = float(shared.sum())
        each = shared / self._images.copies[vectors]
        members = [np.flatnonzero(self._images.number == vectors[i]) for i in np.argsort(-each, kind="stable")]
        squared = 0.0 if pair[0] == pair[1] else float(self._images.squared([pair[0]], [pair[1]])[0, 0])
        return SharedNeighbours(
            index=np.concatenate([np.empty(0, np.int64), *members]),
            share=np.repeat(np.sort(each)[::-1], list(map(len, members))) / (overlap or 1),
            jaccard_distance=max(0.0, 1 - overlap / (2 - overlap)),
            relative_distance=squared / float(self._farthest[pair[0]]),
        )


def _row(table: csr_array, i: int) -> tuple[Indices, Floats]:
    """Columns, ascending, and values of a row of a sparse table."""
    at = slice(table.indptr[i], table.indptr[i + 1])
    return table.indices[at], table.data[at]


def _nearest_images(images: DistinctVectors, nearest: Indices, k: int) -> csr_array:
    """Row i: the vectors of the k nearest images with their numbers of copies; all copies of the last are let in."""
    from scipy.sparse import csr_array

    copies = images.copies[nearest]
    row, place = np.nonzero(np.cumsum(copies, axis=1) - copies < k)
    return csr_array((copies[row, place], (row, nearest[row, place])), shape=(len(nearest), len(nearest)))


def _encoded(images: DistinctVectors, nearest: Indices, farthest: Floats, *, k1: int) -> csr_array:
    """V: row i weighs the members of R*(i) by exp(−dn(i, j)), summing to 1; copies of a vector stand together.

    R*(i) are R(i, k1), and R(c, k1/2) of those members c whose own two thirds lie in R(i, k1).
    """
    from scipy.sparse import csr_array

    near = [_nearest_images(images, nearest, k + 1) for k in (k1, int(np.around(k1 / 2)))]
    reciprocal, half = (table * (table.T > 0) for table in near)  # j is a neighbour of i, and i of j
    common = (reciprocal @ (half > 0).T).multiply(reciprocal > 0).tocsr()
    common.data = 3 * common.data > 2 * half.sum(axis=1)[common.indices]
    members = (reciprocal + common @ half).tocsr()
    members.eliminate_zeros()
    members.sort_indices()
    product = np.empty(members.nnz, images.vectors.dtype)
    for i, (start, stop) in enumerate(pairwise(members.indptr.tolist())):
        product[start:stop] = images.vectors[members.indices[start:stop]] @ images.vectors[i]
    own, column = np.repeat(np.arange(len(images)), np.diff(members.indptr)), members.indices
    squared = np.maximum(images.squared_norm[own] + images.squared_norm[column] - 2 * product, 0)
    squared[own == column] = 0
    weight = images.copies[column] * np.exp(-squared / farthest[own])
    weight /= np.add.reduceat(weight, members.indptr[:-1])[own]
    return csr_array((weight.astype(images.vectors.dtype), members.indices, members.indptr), shape=members.shape)


def nearest_neighbours(
    images: DistinctVectors, k: int, *, block_bytes: int = PASS_BYTES, device: str | None = None
) -> tuple[Indices, Floats]:
    """The k nearest of every vector among all, exact, (n, k), itself first; and its largest squared distance, (n,).

    Equal distances are ordered by number. `device` None is NumPy, otherwise a device of torch.
    """
    if device is not None:
        return _by_torch(images, k, block_bytes, device)
    n = len(images)  # each distance is computed once: d(i, j) serves row i and row j
    index, squared = np.zeros((n, k), np.int64), np.full((n, k), np.inf, images.vectors.dtype)
    farthest = np.zeros(n, images.vectors.dtype)
    step = max(1, block_bytes // (images.vectors.itemsize * n))
    for start in range(0, n, step):
        stop = min(start + step, n)
        block = images.squared(slice(start, stop), slice(start, n))
        np.maximum(farthest[start:stop], block.max(axis=1), out=farthest[start:stop])
        np.maximum(farthest[start:], block.max(axis=0), out=farthest[start:])
        np.fill_diagonal(block, -1)  # a vector is its own nearest
        _offer(index[start:stop], squared[start:stop], block, axis=1, first=start)
        _offer(index[stop:], squared[stop:], block[:, stop - start :], axis=0, first=start)
    return index, np.where(farthest > 0, farthest, 1)


def _by_torch(images: DistinctVectors, k: int, block_bytes: int, device: str) -> tuple[Indices, Floats]:
    """Whole rows at a time: a GPU multiplies faster than it would merge."""
    import torch

    n = len(images)
    try:
        vectors, norms = (torch.from_numpy(part).to(device) for part in (images.vectors, images.squared_norm))
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {device!r} to look for neighbours on: {str(error).splitlines()[0]}") from None
    index, farthest = np.empty((n, k), np.int64), np.empty(n, images.vectors.dtype)
    step = max(1, block_bytes // (images.vectors.itemsize * n))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        block = (vectors[rows] @ vectors.T).mul_(-2).add_(norms[rows, None]).add_(norms).clamp_(min=0)
        farthest[rows] = block.amax(1).cpu().numpy()
        block.diagonal(start).fill_(-1)
        limit = block.topk(k, largest=False, sorted=False).values.amax(1, keepdim=True)
        row, column = (block <= limit).nonzero(as_tuple=True)  # k and the ties of the last, by row and column
        near = block[row, column]
        order = near.argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        starts = torch.searchsorted(row, torch.arange(len(block), device=row.device))
        index[rows] = column[order[starts[:, None] + torch.arange(k, device=row.device)]].cpu().numpy()
    return index, np.where(farthest > 0, farthest, 1)


def _offer(index: Indices, squared: Floats, block: Floats, *, axis: int, first: int) -> None:
    """Merge candidates, numbered along `axis` from `first`, into the best so far; every row sees them in that order."""
    k, n_candidates = squared.shape[1], block.shape[axis]
    limit = squared[:, -1]
    if limit.size and np.isinf(limit).any() and n_candidates > k:
        kth = np.partition(block, k - 1, axis=axis).take(k - 1, axis=axis)
        limit = np.minimum(limit, np.nextafter(kth, np.inf, dtype=limit.dtype))
    better = np.divmod(np.flatnonzero(block < (limit[:, None] if axis == 1 else limit)), max(1, block.shape[1]))
    row, candidate = better if axis == 1 else better[::-1]
    if not row.size:
        return
    touched = np.flatnonzero(np.bincount(row))
    rows = np.concatenate([np.repeat(touched, k), row])
    values = np.concatenate([squared[touched].ravel(), block[better]])
    names = np.concatenate([index[touched].ravel(), candidate + first])
    order = np.lexsort((values, rows))
    starts = np.searchsorted(rows[order], touched)
    kept = order[starts[:, None] + np.arange(k)]
    index[touched], squared[touched] = names[kept], values[kept]
