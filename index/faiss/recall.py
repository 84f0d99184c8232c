"""Recall and latency of an index, measured on the gallery's own vectors.

Stored vectors are the queries, each without itself. The truth is found by reading everything once, a block at a time;
a vector counts as found when it is as near as the true k-th neighbour, so that copies do for one another.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np

from ...remarks import counted
from ..search import (
    Distances,
    Hits,
    Ids,
    Search,
    SearchSpec,
    Vectors,
    VectorSource,
    check_vectors,
    comparable,
    distances_to,
    first_fetch,
)
from .candidates import Candidates
from .factory import efforts_of, faiss_metric, inner_index, is_coarse
from .index_store import STAND_IN, IndexStore, SearchSettings, stored_blocks
from .runtime import searched, threads_for

faiss: Any = typed_faiss

RECALL_TARGET = 0.99
_FINE, _COARSE = (1, 2, 4), (1, 2, 4, 8, 16, 32, 64)  # settings of over-fetch
_TIMED_QUERIES, _TIMED_SECONDS = 100, 3.0


@dataclass(frozen=True)
class GroundTruth:
    """Stored vectors as queries, and how far their true neighbours are.

    Attributes:
        ids: (q,) of the queries themselves.
        queries: (q, d) raw.
        distances: (q, K) of the K nearest others, exact and rising.
    """

    ids: Ids
    queries: Vectors
    distances: Distances

    def __len__(self) -> int:
        return len(self.ids)

    def recall(self, hits: Sequence[Hits], k: int) -> float:
        """Share of the k nearest others among the first k of each answer, the query itself left out, in [0, 1]."""
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
    rows = np.sort(np.random.default_rng(seed).permutation(len(ids))[:queries])
    k = min(k, len(ids) - 1)
    raw = source(ids[rows]) if len(rows) else np.empty((0, spec.dim), np.float32)
    if k < 1 or not len(rows):
        return GroundTruth(ids[rows], raw, np.empty((len(rows), 0)))
    asked = comparable(spec, *check_vectors(spec, raw))
    sign = -1.0 if spec.metric in ("cosine", "dot") else 1.0
    fetch = min(first_fetch(k + 1), len(ids))
    best = np.full((len(rows), fetch), np.inf, np.float32)  # within float32's rounding
    places = np.zeros((len(rows), fetch), np.int64)
    start = 0
    for some, vectors in stored_blocks(spec, ids, source):
        with threads_for(len(asked)):
            numbers, near = faiss.knn(asked, vectors, min(fetch, len(some)), metric=faiss_metric(spec, "Flat"))
        both = np.concatenate([best, sign * numbers], axis=1)
        where = np.concatenate([places, near + start], axis=1)
        order = np.argpartition(both, fetch - 1, axis=1)[:, :fetch]
        best, places = np.take_along_axis(both, order, axis=1), np.take_along_axis(where, order, axis=1)
        start += len(some)
    distances = np.empty((len(rows), k))
    for number, (row, found) in enumerate(zip(rows, places, strict=True)):
        exact = distances_to(spec, asked[number], comparable(spec, source(ids[found[found != row]])))
        distances[number] = np.sort(exact)[:k]
    return GroundTruth(ids[rows], raw, distances)


def measured_settings(
    store: IndexStore, source: VectorSource, truth: GroundTruth, *, target: float = RECALL_TARGET
) -> Iterator[SearchSettings]:
    """Recall of each effort, from the least to the most, with the least over-fetch that it takes.

    Stops after a setting that finds everything.
    """
    k = min(10, truth.distances.shape[1])
    if k < 1:
        yield SearchSettings(None, 1.0, 0)
        return
    index, spec = store.index, store.spec
    is_graph = isinstance(inner_index(index), faiss.IndexHNSW)  # it looks at no more than it is asked for
    factors = (1,) if is_graph else _COARSE if is_coarse(index) else _FINE
    asked, base = comparable(spec, truth.queries), first_fetch(k) * (1 if store.is_native else STAND_IN)
    engine = Candidates(store, source)
    for effort in efforts_of(index):
        with threads_for(len(asked)):
            _, rows = searched(
                index, asked, min(base * factors[-1], len(store.id_map)), params=store.parameters(effort=effort)
            )
        candidates = engine.read_all([found[found >= 0] for found in rows])
        found = np.zeros(len(factors))
        for query, own, radius, (ids, vectors) in zip(
            asked, truth.ids, truth.distances[:, k - 1], candidates, strict=True
        ):
            near = (distances_to(spec, query, vectors) <= radius) & (ids != own)
            found += [min(int(near[: base * factor].sum()), k) for factor in factors]
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


def single_latencies(search: Search, truth: GroundTruth, *, most: int = _TIMED_QUERIES) -> list[float]:
    """Milliseconds of single queries, k = 10; fewer of them where they are slow."""
    for query in truth.queries[:3]:
        search.search(query[None], 10)
    latencies: list[float] = []
    begun = time.perf_counter()
    for query in truth.queries[:most]:
        start = time.perf_counter()
        search.search(query[None], 10)
        latencies.append(1e3 * (time.perf_counter() - start))
        if time.perf_counter() - begun > _TIMED_SECONDS and len(latencies) >= 5:
            break
    return latencies


def machine() -> str:
    """Processor and cores."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists() and (
        found := re.search(r"^model name\s*:(.*)", information.read_text("utf-8", "replace"), re.M)
    ):
        name = found[1].strip()
    return f"{name}, {counted(os.cpu_count() or 1, 'core')}"
