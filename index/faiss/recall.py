"""How many of the true neighbours an index finds, measured on the gallery's own vectors.

Stored vectors are the queries, each without itself. The truth is found by reading everything once, a block at a time;
a vector counts as found when it is as near as the true k-th neighbour, so that copies do for one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faiss as typed_faiss
import numpy as np
import numpy.typing as npt

from ..search import (
    Distances,
    Hits,
    Ids,
    SearchSpec,
    Vectors,
    VectorSource,
    check_vectors,
    comparable,
    distances_to,
    first_fetch,
)
from .factory import efforts_of, faiss_metric, inner_index, is_coarse
from .threads import Tuned

faiss: Any = typed_faiss

__all__ = [
    "RECALL_TARGET",
    "STAND_IN",
    "Calibration",
    "Propose",
    "Truth",
    "calibrations",
    "enough",
    "ground_truth",
    "has_levelled_off",
    "stored_blocks",
]

RECALL_TARGET = 0.99
STAND_IN = 4  # candidates by L2 for each by L1: the true ten were always among the first fifty
_BLOCK_BYTES = 32 << 20
_FINE, _COARSE = (1, 2, 4), (1, 2, 4, 8, 16, 32, 64)  # settings of over-fetch

Propose = Callable[[Vectors, int, int | None], Iterable[tuple[Ids, Vectors]]]


@dataclass(frozen=True)
class Calibration:
    """How to search an approximate index, and how well it then finds what the exact one finds.

    Attributes:
        effort: nprobe (inverted file) or efSearch (HNSW) to search with; None where there is no such knob.
        recall_at_10: share of the true ten neighbours that are left after exact re-scoring, in [0, 1].
        queries: number of stored vectors it was measured on, each without itself.
        overfetch: how many times the usual number of candidates to re-score; coarse codes need many.
    """

    effort: int | None
    recall_at_10: float
    queries: int
    overfetch: int = 1


@dataclass(frozen=True)
class Truth:
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


def stored_blocks(spec: SearchSpec, ids: Ids, source: VectorSource) -> Iterator[tuple[Ids, Vectors]]:
    """Everything that `ids` name as (ids, comparable vectors), checked, a bounded number of bytes at a time."""
    step = max(_BLOCK_BYTES // (4 * spec.dim), 1)
    for start in range(0, len(ids), step):
        some = ids[start : start + step]
        yield some, comparable(spec, *check_vectors(spec, source(some)))


def ground_truth(spec: SearchSpec, ids: Ids, source: VectorSource, *, queries: int, k: int, seed: int = 0) -> Truth:
    """The distances of the k nearest others of some stored vectors, drawn by `seed`, by reading all of them once."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(ids))[:queries])
    k = min(k, len(ids) - 1)
    raw = source(ids[rows]) if len(rows) else np.empty((0, spec.dim), np.float32)
    if k < 1 or not len(rows):
        return Truth(ids[rows], raw, np.empty((len(rows), 0)))
    asked = comparable(spec, *check_vectors(spec, raw))
    near = _nearest_places(spec, asked, stored_blocks(spec, ids, source), fetch=min(first_fetch(k + 1), len(ids)))
    distances = np.empty((len(rows), k))
    for number, (row, places) in enumerate(zip(rows, near, strict=True)):
        others = ids[places[places != row]]
        exact = distances_to(spec, asked[number], comparable(spec, source(others)))
        distances[number] = np.sort(exact)[:k]
    return Truth(ids[rows], raw, distances)


def _nearest_places(
    spec: SearchSpec, queries: Vectors, blocks: Iterable[tuple[Ids, Vectors]], *, fetch: int
) -> npt.NDArray[np.int64]:
    """Where the nearest vectors of each query stand, within float32's rounding, (q, fetch)."""
    sign = -1.0 if spec.metric in ("cosine", "dot") else 1.0
    best = np.full((len(queries), fetch), np.inf, np.float32)
    places = np.zeros((len(queries), fetch), np.int64)
    start = 0
    for some, vectors in blocks:
        with Tuned(len(queries)):
            numbers, rows = faiss.knn(queries, vectors, min(fetch, len(some)), metric=faiss_metric(spec, "Flat"))
        both = np.concatenate([best, sign * numbers], axis=1)
        where = np.concatenate([places, rows + start], axis=1)
        order = np.argpartition(both, fetch - 1, axis=1)[:, :fetch]
        best, places = np.take_along_axis(both, order, axis=1), np.take_along_axis(where, order, axis=1)
        start += len(some)
    return places


def calibrations(
    index: Any, spec: SearchSpec, truth: Truth, propose: Propose, *, target: float = RECALL_TARGET
) -> Iterator[Calibration]:
    """What each setting of the knob finds, from the least to the most effort, with the least over-fetch that it takes.

    Stops after a setting that finds everything. `propose` gives, for queries, a number of candidates, and an effort,
    each query's candidates from near to far.
    """
    k = min(10, truth.distances.shape[1])
    if k < 1:
        yield Calibration(None, 1.0, 0)
        return
    is_graph = isinstance(inner_index(index), faiss.IndexHNSW)  # it looks at no more than it is asked for
    factors = (1,) if is_graph else _COARSE if is_coarse(index) else _FINE
    is_native = spec.metric != "l1" or index.metric_type == faiss.METRIC_L1
    asked, base = comparable(spec, truth.queries), first_fetch(k) * (1 if is_native else STAND_IN)
    for effort in efforts_of(index):
        found = np.zeros(len(factors))
        candidates = propose(asked, base * factors[-1], effort)
        for query, own, radius, (ids, vectors) in zip(
            asked, truth.ids, truth.distances[:, k - 1], candidates, strict=True
        ):
            near = (distances_to(spec, query, vectors) <= radius) & (ids != own)
            found += [min(int(near[: base * factor].sum()), k) for factor in factors]
        recalls = found / (k * len(truth))
        choice = int(np.argmax(recalls >= min(target, recalls[-1])))
        yield Calibration(effort, float(recalls[choice]), len(truth), factors[choice])
        if recalls[-1] > 0.9999:
            return


def has_levelled_off(seen: Sequence[Calibration]) -> bool:
    """Whether three further settings brought next to nothing."""
    if len(seen) < 4:
        return False
    before, now = seen[-4].recall_at_10, seen[-1].recall_at_10
    return 0 < now < before + 0.002


def enough(measured: Iterable[Calibration], *, target: float = RECALL_TARGET) -> Calibration:
    """The first that reaches the target; where none does, the first that is half a per cent short of the best."""
    seen: list[Calibration] = []
    for calibration in measured:
        seen.append(calibration)
        if calibration.recall_at_10 >= target:
            return calibration
        if has_levelled_off(seen):
            break
    best = max(calibration.recall_at_10 for calibration in seen)
    return next(calibration for calibration in seen if calibration.recall_at_10 >= best - 0.005)
