"""The nearest neighbours of every vector, exact: one blocked pass over the distances, by NumPy or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...metrics.distances import Distinct
from ..distances import FeatureDistances

Indices = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
PASS_BYTES = 64 << 20
"""Size of a block of distances."""


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
        self.vectors: Floats = vectors[distinct.first]
        self.squared_norm: Floats = (norms[distinct.first] ** 2).astype(vectors.dtype)
        self.copies, self.number, self.n_queries = distinct.counts, distinct.number, source.shape[0]

    def __len__(self) -> int:
        return len(self.vectors)

    def squared(self, rows: slice | Indices | list[int], columns: slice | Indices | list[int]) -> Floats:
        """|x|² + |y|² − 2 x·y of some vectors and others, at least 0."""
        distances: Floats = self.vectors[rows] @ self.vectors[columns].T
        distances *= -2
        distances += self.squared_norm[rows][:, None]
        distances += self.squared_norm[columns]
        return np.maximum(distances, 0, out=distances)


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
