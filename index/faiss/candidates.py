"""Candidates out of a FAISS index, and how near a vector that is not among them may be: bounded, not guessed.

Rounding follows the bound for inner products, |computed − exact| ≤ (d + 16)·2⁻²⁴·‖x‖‖y‖, half precision the largest
error while storing: `Flat` and `SQfp16` are known to have named every neighbour, ties included. Others have a recall.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import faiss as typed_faiss
import numpy as np

from ...metrics.distances import Distances, SearchSpec, Vectors, comparable, distances_to, lengths_of, together
from ..scan import Scan
from ..search import UNKNOWN_FLOOR, Hits, Ids, Mask, Proposal, Rows, VectorSource, first_fetch, search_exactly
from .factory import SearchSettings, efforts_of, faiss_metric, inner_index, is_coarse, row_selector, search_parameters
from .gpu import GPU_MAX_K, GpuIndex
from .index_store import STAND_IN, Distortion, IndexStore
from .runtime import searched, threads_for

faiss: Any = typed_faiss

RECALL_TARGET = 0.99
_FINE, _COARSE = (1, 2, 4), (1, 2, 4, 8, 16, 32, 64)  # settings of over-fetch
_BLOCK = 2048  # gathered rows that are compared at once: they stay in the processor's cache
_FEW = 4096  # allowed rows for which an approximate index is not asked

_UNIT_ROUNDOFF = 2.0**-24  # of float32
_TINY = 1e-30  # products below float32's normal range may vanish
_OVERFLOW = 1e37  # squares up to here leave float32 room for its sums

Way: TypeAlias = Literal["all", "gather", "mask"]


class ErrorBound:
    """Bounds on FAISS's numbers of one search: products for cosine and dot, squares for l2, sums for l1.

    >>> bound = ErrorBound(SearchSpec(8, "l2"), Precision(radius=1.0), np.ones((1, 8), np.float32))
    >>> 1.999 < bound.floor(4.0) < 2.0, 4.0 < bound.cut(4.0) < 4.001
    (True, True)
    """

    def __init__(self, spec: SearchSpec, precision: Distortion, queries: Vectors, *, rounding: float = 0.0) -> None:
        self.metric = spec.metric
        self.rounding = max(rounding, (spec.dim + 16) * _UNIT_ROUNDOFF)
        self.distortion = precision.distortion
        self.error = 0.0  # of l1 it is relative: there are only subtractions, and sums of positive terms
        self.is_blind = False
        if spec.metric != "l1":
            length = 1 + 1e-6 if spec.metric == "cosine" else float(lengths_of(queries).max())
            reach = (length + precision.radius) ** 2
            self.is_blind = reach > _OVERFLOW
            if spec.metric == "l2":  # squares come, in batches, as ‖x‖² + ‖y‖² − 2x·y
                self.error = self.rounding * reach + _TINY
            else:
                self.error = length * (self.rounding * precision.radius + precision.distortion) + _TINY

    def floor(self, last: Distances) -> Distances:
        """Least true distance of a vector that FAISS put behind one it computed as `last`; −inf: unknown."""
        if self.is_blind:
            return np.full_like(last, -np.inf)
        match self.metric:
            case "cosine":
                return 1 - last - self.error
            case "dot":
                return -last - self.error
            case "l2":
                return np.sqrt(np.maximum(last - self.error, 0)) - self.distortion
            case _:
                return last * (1 - self.rounding)

    def cut(self, kth: Distances) -> Distances:
        """FAISS's number behind which nothing can be nearer than the vector that it computed as `kth`."""
        match self.metric:
            case "cosine" | "dot":
                return kth - 2 * self.error
            case "l2":
                return (np.sqrt(np.maximum(kth, 0) + self.error) + 2 * self.distortion) ** 2 + self.error
            case _:
                return kth * (1 + 4 * self.rounding)


@dataclass(frozen=True)
class Candidates:
    """The `Engine` of one search: `rows` may be returned (None: all); `mask` is the same, if it is there already."""

    store: IndexStore
    source: VectorSource
    rows: Rows | None = None
    gpu: GpuIndex | None = None
    mask: Mask | None = None

    @property
    def size(self) -> int:
        """Number of vectors that may be returned."""
        return len(self.store.id_map) if self.rows is None else len(self.rows)

    @property
    def reach(self) -> int:
        """Beyond an eighth of everything, sorting candidates costs more than reading on."""
        return max(self.size // 8, 1024)

    def everything(self) -> Iterator[tuple[Ids, Vectors]]:
        """All that may be returned, in batches that fit the processor's cache."""
        rows = np.arange(self.size) if self.rows is None else self.rows
        for start in range(0, len(rows), 512):
            yield self._read(rows[start : start + 512])

    def propose(self, queries: Vectors, k: int, n: int, /) -> Iterator[Proposal]:
        """Of the first n candidates for each query, those that may be among its k nearest as far as FAISS can tell."""
        store = self.store
        growth = n / first_fetch(k)  # above 1, what was asked for at first has not been enough
        if not store.is_native:
            n *= STAND_IN
        n = max(n, min(n * (store.settings.overfetch if store.settings else 1), self.reach))
        if n >= self.size:
            everything = Proposal(*self._read(np.arange(self.size) if self.rows is None else self.rows), np.inf)
            yield from (everything for _ in range(len(queries)))
            return
        way = self._way(len(queries))
        if way == "gather":
            found, distances = self._gather(queries, n)
        else:
            found, distances = self._ask_index(queries, n, way=way, growth=growth)
            if store.tail.ntotal:
                nearest, numbers = self._ask_tail(queries, n)
                found, distances = np.hstack([nearest, found]), np.hstack([numbers, distances])
        bound = self._bound(queries)
        wanted = found >= 0
        if way == "all" and self.rows is not None:
            wanted &= self._mask()[found]
        numbers = distances.astype(np.float64)
        floors = np.full(len(queries), UNKNOWN_FLOOR) if bound is None else bound.floor(numbers[:, -1])
        if bound is not None:
            place = np.cumsum(wanted, axis=1)
            kth = numbers[np.arange(len(numbers)), np.argmax(place == k, axis=1)]
            last = np.where(place[:, -1] > k, bound.cut(kth), -np.inf if store.is_product else np.inf)[:, None]
            wanted &= numbers >= last if store.is_product else numbers <= last
        counts = np.count_nonzero(wanted, axis=1)
        rows = found[wanted]
        for part, some in together(counts):
            yield Proposal(*self._read(rows[some]), floors[part], counts[part])

    def _bound(self, queries: Vectors) -> ErrorBound | None:
        """None for an approximate index, of which nothing is known."""
        store = self.store
        if not store.is_exact:
            return None
        if self.gpu is None or (store.is_flat and not self.gpu.is_half):
            return ErrorBound(store.spec, store.precision, queries)
        precision = store.precision.halved(store.spec.dim) if store.is_flat else store.precision
        # a GPU rounds queries as it stores vectors
        return ErrorBound(store.spec, precision, queries, rounding=2.0**-10)

    def _read(self, rows: Rows) -> tuple[Ids, Vectors]:
        return self.store.id_map.ids[rows], self.store.vectors(rows, self.source)

    def _mask(self) -> Mask:
        if self.mask is not None:
            return self.mask
        mask = np.zeros(len(self.store.id_map), np.bool_)
        mask[self.rows] = True
        return mask

    def _way(self, n_queries: int) -> Way:
        """Search all rows and drop the forbidden ones, gather the allowed rows, or mask inside FAISS.

        The shares are about where measured times cross (`benchmarks/speed/search.py --ways`). FAISS's mask costs it the
        prefetching, and the matrix products that are everything for batches; on half precision it has none.
        """
        share = self.size / len(self.store.id_map)
        if not self.store.is_exact:
            return "all" if share > 0.9 else "gather" if self.size <= _FEW else "mask"
        if self.gpu is not None and share > 0.1:
            return "all"
        if n_queries >= (8 if self.store.is_flat else 24):
            return "gather" if share < 0.6 or not self.store.is_flat else "all"
        return "all" if share > (0.35 if self.store.is_flat else 0.2) else "mask"

    def _ask_index(self, queries: Vectors, n: int, *, way: Way, growth: float = 1.0) -> tuple[Rows, Any]:
        """Rows from near to far (q, n), −1 where there is none, and FAISS's numbers for them."""
        store = self.store
        total = len(store.id_map)
        if way == "all" and self.rows is not None:
            n = min(total, round(n * total / self.size) + 8)
        if way == "all" and self.gpu is not None and n <= GPU_MAX_K and (growth <= 1 or store.is_exact):
            distances, rows = self.gpu.search(queries, n)
            return rows, distances
        selector, _bits = row_selector(self._mask()) if way == "mask" else (None, None)
        growth *= total / self.size
        with threads_for(len(queries)):
            distances, rows = searched(
                store.index, queries, n, params=store.parameters(selector, growth=1.0 if store.is_exact else growth)
            )
        return rows, distances

    def _ask_tail(self, queries: Vectors, n: int) -> tuple[Rows, Any]:
        """The same out of the rows that the index does not hold yet."""
        store, start = self.store, self.store.index.ntotal
        selector, _bits = (None, None) if self.rows is None else row_selector(self._mask()[start:])
        params = None if selector is None else search_parameters(store.tail, effort=None, selector=selector)
        with threads_for(len(queries)):
            distances, places = searched(store.tail, queries, min(n, store.tail.ntotal), params=params)
        return np.where(places < 0, -1, places + start), distances

    def _gather(self, queries: Vectors, n: int) -> tuple[Rows, Any]:
        """The same out of the allowed rows alone, compared block by block."""
        store = self.store
        metric = faiss_metric(store.spec, "Flat")
        parts = []
        with threads_for(len(queries)):
            for start in range(0, self.size, _BLOCK):
                stop = min(start + _BLOCK, self.size)
                block = np.arange(start, stop) if self.rows is None else self.rows[start:stop]
                vectors = store.indexed(block, self.source)
                distances, places = faiss.knn(queries, vectors, min(n, len(block)), metric=metric)
                parts.append((distances, np.where(places < 0, -1, block[places])))
        distances, rows = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        order = np.argsort(-distances if store.is_product else distances, axis=1)[:, :n]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)


@dataclass(frozen=True)
class GroundTruth:
    """Stored vectors as queries: ids (q,), raw queries (q, d), rising distances (q, K) of the K nearest others."""

    ids: Ids
    queries: Vectors
    distances: Distances

    def __len__(self) -> int:
        return len(self.ids)

    def recall(self, hits: Sequence[Hits], k: int) -> float:
        """Share of the k nearest others among the first k of each answer without the query itself; copies are alike."""
        k = min(k, self.distances.shape[1])
        if not k or not len(self):
            return 1.0
        found = 0
        for own, radius, answer in zip(self.ids, self.distances[:, k - 1], hits, strict=True):
            found += int(np.count_nonzero(answer.distances[answer.ids != own][:k] <= radius))
        return found / (k * len(self))


def ground_truth(
    spec: SearchSpec, ids: Ids, source: VectorSource, *, queries: int, k: int, seed: int = 0
) -> GroundTruth:
    """The distances of the k nearest others of some stored vectors, drawn by `seed`, by reading all of them once."""
    asked = ids[np.sort(np.random.default_rng(seed).permutation(len(ids))[:queries])]
    k = max(0, min(k, len(ids) - 1))
    raw = source(asked) if len(asked) else np.empty((0, spec.dim), np.float32)
    distances = np.empty((len(asked), k))
    if distances.size:
        found = search_exactly(spec, raw, k + 1, engine=Scan(spec, ids, source))
        distances[:] = [hits.distances[hits.ids != own][:k] for own, hits in zip(asked, found, strict=True)]
    return GroundTruth(asked, raw, distances)


def measured_settings(
    store: IndexStore, source: VectorSource, truth: GroundTruth, *, target: float = RECALL_TARGET
) -> Iterator[SearchSettings]:
    """Recall of each effort up to one that finds everything, with the least over-fetch that it takes."""
    k = min(10, truth.distances.shape[1])
    if k < 1:
        yield SearchSettings(None, 1.0, 0)
        return
    index, spec = store.index, store.spec
    is_graph = isinstance(inner_index(index), faiss.IndexHNSW)  # it looks at no more than it is asked for
    factors = (1,) if is_graph else _COARSE if is_coarse(index) else _FINE
    asked, base = comparable(spec, truth.queries), first_fetch(k) * (1 if store.is_native else STAND_IN)
    for effort in efforts_of(index):
        with threads_for(len(asked)):
            _, rows = searched(
                index, asked, min(base * factors[-1], len(store.id_map)), params=store.parameters(effort=effort)
            )
        found = np.zeros(len(factors))
        counts = np.count_nonzero(rows >= 0, axis=1)
        candidates = rows[rows >= 0]
        for part, some in together(counts):
            ids = store.id_map.ids[candidates[some]]
            vectors = store.vectors(candidates[some], source)
            own, radius = (np.repeat(side[part], counts[part]) for side in (truth.ids, truth.distances[:, k - 1]))
            which = np.repeat(np.arange(part.start, part.stop), counts[part])
            near = (distances_to(spec, asked, vectors, which=which) <= radius) & (ids != own)
            for mine in np.split(near, np.cumsum(counts[part])[:-1]):
                found += [min(int(mine[: base * factor].sum()), k) for factor in factors]
        recalls = found / (k * len(truth))
        choice = int(np.argmax(recalls >= min(target, recalls[-1])))
        yield SearchSettings(effort, float(recalls[choice]), len(truth), factors[choice])
        if recalls[-1] > 0.9999:
            return


def has_levelled_off(seen: Sequence[SearchSettings]) -> bool:
    """True when three further settings brought next to nothing."""
    if len(seen) < 4:
        return False
    before, now = seen[-4].recall_at_10, seen[-1].recall_at_10
    return 0 < now < before + 0.002


def enough(measured: Iterable[SearchSettings], *, target: float = RECALL_TARGET) -> SearchSettings:
    """The first that reaches the target; where none does, the first that is half a per cent short of the best."""
    seen: list[SearchSettings] = []
    for settings in measured:
        seen.append(settings)
        if settings.recall_at_10 >= target:
            return settings
        if has_levelled_off(seen):
            break
    best = max(settings.recall_at_10 for settings in seen)
    return next(settings for settings in seen if settings.recall_at_10 >= best - 0.005)
