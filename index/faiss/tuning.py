"""Choosing a search index by measuring: recall, latency and memory of candidates on the gallery's own vectors.

In memory are the best so far, the candidate at hand, its training sample (a tenth more for millions), and blocks.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import faiss
import numpy as np

from ...errors import InputError
from ...metrics.distances import SearchSpec
from ...progress import Progress
from ...remarks import counted
from ..search import Ids, Search, VectorSource
from ..storage.manifest import Tuning
from .candidates import GroundTruth, enough, ground_truth, has_levelled_off, measured_settings
from .factory import Coarse, SearchSettings, coarse_of, index_bytes, list_count, new_index
from .runtime import machine
from .search import FaissSearch

_ID_BYTES = 17  # per vector, beside the index
_POINTS_PER_LIST = 39  # fewer, and FAISS warns that lists are poorly placed
_FLAT_UP_TO = 1_000_000
_PRODUCTS_FROM = 10_000
_ALIKE = 1.1  # times the latency of the quickest
_TIMED_MS = 3000.0


@dataclass(frozen=True)
class Budget:
    """Limits for an index, as `Gallery.tune` explains them."""

    recall: float
    memory: int
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise InputError(f"expected a recall above 0 and up to 1, got {self.recall}")
        if self.memory < 1 or (self.latency_ms is not None and not self.latency_ms > 0):
            raise InputError(f"expected budgets above 0, got {self}")

    @classmethod
    def of(cls, *, recall: float, memory: int | None, latency_ms: float | None) -> Self:
        """The budgets, with half of this machine's memory where none is given."""
        if memory is None:
            try:
                memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
            except (AttributeError, ValueError, OSError):  # Windows
                memory = 8 << 30
        return cls(recall, memory, latency_ms)

    def missed(self, trial: Trial) -> tuple[str, ...]:
        """Budgets that a candidate overruns: "memory", "recall", "latency"."""
        found = trial.tuning
        missed: tuple[str, ...] = ("memory",) if trial.total_bytes > self.memory else ()
        if found is not None and found.recall_at_10 < self.recall:
            missed += ("recall",)
        if found is not None and self.latency_ms is not None and found.latency_ms > self.latency_ms:
            missed += ("latency",)
        return missed

    def __str__(self) -> str:
        latency = "" if self.latency_ms is None else f" and {self.latency_ms:g} ms"
        return f"recall@10 of {self.recall:g} and {readable(self.memory)}{latency}"


@dataclass(frozen=True)
class Trial:
    """A candidate with what was measured, or the note why it was not; a note also says which budgets it overruns."""

    factory: str
    total_bytes: int  # of index and ids; 0 where FAISS cannot make the index
    tuning: Tuning | None = None
    note: str = ""


@dataclass(frozen=True)
class TuningReport:
    """All candidates as they were tried, the chosen one's measurements, and the budgets that kept a better one out."""

    trials: tuple[Trial, ...]
    tuning: Tuning
    budget: Budget
    binding: tuple[str, ...]

    @property
    def index(self) -> str:
        """The chosen index as the manifest names it."""
        return "flat" if self.tuning.factory == "Flat" else self.tuning.factory

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        best = self.tuning
        binding = f"; it is {' and '.join(self.binding)} that binds" if self.binding else ""
        return (
            f"{best.factory}: recall@10 {best.recall_at_10:.4f}, {best.latency_ms:.2f} ms a query, "
            f"{best.bytes_per_vector:.0f} bytes a vector, within {self.budget}{binding}"
        )


def default_candidates(spec: SearchSpec, count: int, memory: int) -> tuple[str, ...]:
    """Factory strings worth a try for so many vectors, from the largest codes to the smallest.

    Graphs are left out: nothing can be removed from them, and they differ from build to build.

    >>> default_candidates(SearchSpec(512, "cosine"), 2_000_000, 4 << 30)
    ('SQfp16', 'IVF4096,SQfp16', 'IVF4096,SQ8', 'IVF4096,PQ64')
    """
    whole = [factory for factory in ("Flat", "SQfp16") if factory == "Flat" or spec.metric != "l1"]
    if count > _FLAT_UP_TO and spec.metric != "l1":
        whole.remove("Flat")
    if count < _PRODUCTS_FROM:
        return tuple(whole)
    lists = min(list_count(count), int(2 ** np.floor(np.log2(count / _POINTS_PER_LIST))))
    parts = max((m for m in range(1, spec.dim // 8 + 1) if spec.dim % m == 0), default=spec.dim)
    products = [f"IVF{lists},PQ{parts}"]
    if (spec.dim + 8 + _ID_BYTES) * count > memory:  # nothing larger fits: take the trouble of a rotation
        products.append(f"OPQ{parts},IVF{lists},PQ{parts}")
    return (*whole, f"IVF{lists},SQfp16", f"IVF{lists},SQ8", *products)


def tune(
    spec: SearchSpec,
    ids: Ids,
    source: VectorSource,
    *,
    budget: Budget,
    candidates: Sequence[str] | None = None,
    queries: int = 500,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[TuningReport, FaissSearch]:
    """The report, and the chosen index, built and set; arguments are those of `Gallery.tune`."""
    if len(ids) < 2 or queries < 1:
        raise InputError(f"tuning needs at least 2 images and 1 query, got {len(ids)} and {queries}")
    factories = tuple(candidates or default_candidates(spec, len(ids), budget.memory))
    for factory in candidates or ():
        new_index(spec, "Flat" if factory == "flat" else factory)  # refuses what FAISS does not know, before hours pass
    bench = _Bench(spec, ids, source, budget=budget, seed=seed, device=device)
    trials: list[Trial] = []
    best: FaissSearch | None = None
    truth: GroundTruth | None = None
    for number, factory in enumerate(factories):
        if progress is not None:
            progress(number, len(factories))
        trial, search = bench.sized("Flat" if factory == "flat" else factory), None
        if not trial.note:
            truth = truth or ground_truth(spec, ids, source, queries=queries, k=100, seed=seed)
            trial, search = bench.try_out(trial, truth)
        trials.append(trial)
        if search is not None and choose(trials, budget) is trial:
            best = search
    if progress is not None:
        progress(len(factories), len(factories))
    chosen = choose(trials, budget)
    if chosen is None or chosen.tuning is None or best is None:
        raise InputError(_nothing_fits(trials, budget))
    unlimited = {"recall": replace(budget, recall=1e-9)}
    if budget.latency_ms is not None:
        unlimited["latency"] = replace(budget, latency_ms=None)
    binding = [name for name, other in unlimited.items() if choose(trials, other) is not chosen]
    if any(trial.tuning is None and "memory" in budget.missed(trial) for trial in trials):
        binding.append("memory")
    return TuningReport(tuple(trials), chosen.tuning, budget, tuple(binding)), best


@dataclass(frozen=True)
class _Bench:
    """Builds and measures candidates, one after the other; they share their lists."""

    spec: SearchSpec
    ids: Ids
    source: VectorSource
    budget: Budget
    seed: int
    device: str
    coarse: dict[int, Coarse] = field(default_factory=dict)

    def sized(self, factory: str) -> Trial:
        """The candidate before it is built, with a note if it is too large."""
        size = index_bytes(new_index(self.spec, factory), len(self.ids)) + _ID_BYTES * len(self.ids)
        trial = Trial(factory, size)
        return replace(trial, note=", ".join(self.budget.missed(trial)))

    def try_out(self, trial: Trial, truth: GroundTruth) -> tuple[Trial, FaissSearch | None]:
        """The candidate with what was measured, and its index; without if FAISS cannot build it from these vectors."""
        start = time.perf_counter()
        lists = int(getattr(new_index(self.spec, trial.factory), "nlist", 0))
        try:
            search = FaissSearch.from_source(
                self.spec,
                self.ids,
                self.source,
                factory=trial.factory,
                device=self.device,
                seed=self.seed,
                settings=SearchSettings(None, 0.0, 0),
                coarse=self.coarse.get(lists),
            )
        except InputError as error:
            return replace(trial, note=str(error)), None
        seconds = time.perf_counter() - start
        if lists and (coarse := coarse_of(search.store.index)) is not None:
            self.coarse[lists] = coarse
        settings = SearchSettings(None, 1.0, len(truth))
        if not search.is_exact:
            search.use(settings := self._best_settings(search, truth))
        measured = self._measure(search, settings, truth, build_seconds=seconds)
        if not search.is_exact:
            search.use(replace(settings, recall_at_10=measured.recall_at_10))
        found = Trial(trial.factory, search.nbytes, measured)
        return replace(found, note=", ".join(self.budget.missed(found))), search

    def _best_settings(self, search: FaissSearch, truth: GroundTruth) -> SearchSettings:
        """The quickest settings that reach the recall: more lists, or more candidates from fewer lists."""
        seen: list[SearchSettings] = []
        good: list[SearchSettings] = []
        for settings in measured_settings(search.store, self.source, truth, target=self.budget.recall):
            seen.append(settings)
            if settings.recall_at_10 >= self.budget.recall:
                good.append(settings)
            if len(good) == 3 or (good and good[-1].overfetch == 1) or has_levelled_off(seen):
                break
        if len(good) < 2:
            return enough(good or seen, target=self.budget.recall)
        timed = []
        for settings in good:
            search.use(settings)
            timed.append(np.median(single_latencies(search, truth, most=30)))
        return good[int(np.argmin(timed))]

    def _measure(
        self, search: FaissSearch, settings: SearchSettings, truth: GroundTruth, *, build_seconds: float
    ) -> Tuning:
        latencies = single_latencies(search, truth)
        start = time.perf_counter()
        ten = search.search(truth.queries, 11)  # the query itself is one of them
        batch_ms = 1e3 * (time.perf_counter() - start) / len(truth)
        hundred = search.search(truth.queries, 101)
        return Tuning(
            factory=search.factory,
            effort=settings.effort,
            overfetch=settings.overfetch,
            images=len(self.ids),
            recall_at_1=truth.recall(ten, 1),
            recall_at_10=truth.recall(ten, 10),
            recall_at_100=truth.recall(hundred, 100),
            latency_ms=float(np.median(latencies)),
            latency_p95_ms=float(np.percentile(latencies, 95)),
            batch_ms=batch_ms,
            bytes_per_vector=search.nbytes / len(self.ids),
            build_seconds=build_seconds,
            queries=len(truth),
            seed=self.seed,
            threads=int(faiss.omp_get_max_threads()),
            device=search.device,
            machine=machine(),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def single_latencies(search: Search, truth: GroundTruth, *, most: int = 100) -> list[float]:
    """Milliseconds of single queries, k = 10; fewer of them where they are slow."""
    for query in truth.queries[:3]:
        search.search(query[None], 10)
    latencies: list[float] = []
    for query in truth.queries[:most]:
        start = time.perf_counter()
        search.search(query[None], 10)
        latencies.append(1e3 * (time.perf_counter() - start))
        if sum(latencies) > _TIMED_MS and len(latencies) >= 5:
            break
    return latencies


def choose(trials: Sequence[Trial], budget: Budget) -> Trial | None:
    """The candidate of least memory within the budgets; without one for latency, among those about as quick."""
    fitting = [(trial, trial.tuning) for trial in trials if trial.tuning is not None and not budget.missed(trial)]
    if not fitting:
        return None
    if budget.latency_ms is None:
        limit = _ALIKE * min(tuning.latency_ms for _, tuning in fitting)
        fitting = [(trial, tuning) for trial, tuning in fitting if tuning.latency_ms <= limit]
    return min(fitting, key=lambda pair: (pair[0].total_bytes, pair[1].latency_ms))[0]


def _nothing_fits(trials: Sequence[Trial], budget: Budget) -> str:
    measured = [(trial, trial.tuning) for trial in trials if trial.tuning is not None]
    if not measured:
        sized = [trial for trial in trials if trial.total_bytes]
        least = min(sized, key=lambda trial: trial.total_bytes)
        reasons = "; ".join(f"{trial.factory}: {trial.note}" for trial in trials)
        return (
            f"no index keeps within {budget} ({reasons}); the smallest, {least.factory}, takes "
            f"{readable(least.total_bytes)}: allow more, or name --candidates with smaller codes"
        )
    best, tuning = min(measured, key=lambda pair: (len(budget.missed(pair[0])), -pair[1].recall_at_10))
    return (
        f"no index keeps within {budget}; the best found is {best.factory} with recall@10 {tuning.recall_at_10:.4f}, "
        f"{tuning.latency_ms:.2f} ms and {readable(best.total_bytes)}: allow more {' and '.join(budget.missed(best))}, "
        "or name other --candidates"
    )


def readable(size: int) -> str:
    """Bytes for people.

    >>> readable(4 << 30)
    '4 GiB'
    """
    power = min((max(size, 1).bit_length() - 1) // 10, 4)
    return f"{size / 1024**power:.3g} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}" if power else counted(size, "byte")
