"""Neighbour search with FAISS: exact while that is quick, measured when approximate, on a GPU when there is one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from ..errors import InputError
from . import faiss_bytes
from .faiss_candidates import Candidates, Stock, row_selector
from .faiss_factory import calibrate, choose_factory, inner_index, new_index, to_gpu, train, training_size
from .faiss_numpy import reconstructed, searched
from .search import (
    METRICS,
    Capabilities,
    Hits,
    Ids,
    MemoryVectors,
    SearchSpec,
    Vectors,
    VectorSource,
    check_ids,
    check_vectors,
    comparable,
    lengths_of,
    search_exactly,
)

__all__ = ["Device", "FaissSearch"]

Device: TypeAlias = Literal["auto", "cpu", "cuda"]

_HALF_MAX = 65504.0
_GPU_FROM = 10_000  # vectors; fewer are answered before a GPU starts
_BLOCK = 8192


class FaissSearch:
    """A FAISS index with ids, deletions and filters, answering through the exact layer.

    Searches may run in several threads at once; `upsert`, `delete` and `close` may not run beside them.
    """

    def __init__(
        self, stock: Stock, *, factory: str, device: Device = "auto", source: VectorSource | None = None
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise InputError(f"expected device auto, cpu or cuda, got {device!r}")
        if device == "cuda" and not faiss.get_num_gpus():
            raise InputError("device cuda was asked for, but FAISS sees no GPU; use auto or cpu")
        self.spec = stock.spec
        self.factory = factory
        self._stock = stock
        self._memory = MemoryVectors()  # stays empty where a source reads the vectors
        self._source: VectorSource = source or self._memory
        self._device: Device = device if device != "cpu" and faiss.get_num_gpus() else "cpu"
        self._gpu: tuple[Any, Any] | None = None
        self._gpu_lock = threading.Lock()

    @classmethod
    def build(
        cls,
        spec: SearchSpec,
        batches: Iterable[tuple[Ids, Vectors]],
        *,
        count: int,
        factory: str = "auto",
        device: Device = "auto",
        source: VectorSource | None = None,
        seed: int = 0,
    ) -> FaissSearch:
        """An index over all `batches` of (ids, raw vectors), read once.

        Args:
            spec: dimension and metric.
            batches: what to store; only the index itself is held in memory (twice while an approximate one is trained).
            count: how many vectors to expect; chooses the kind for "auto".
            factory: "auto", "flat", or a FAISS factory string such as "HNSW32".
            device: "auto" takes a GPU when FAISS sees one and the index is large enough.
            source: reads raw stored vectors back; without one they are kept in memory.
            seed: of the training and calibration samples.

        Raises:
            InputError: an unusable factory string, too few vectors to train it, or `device="cuda"` without a GPU.
        """
        wanted = {"auto": choose_factory(spec, count), "flat": "Flat"}.get(factory, factory)
        stock = Stock(spec, new_index(spec, wanted))
        search = cls(stock, factory=wanted, device=device, source=source)
        if stock.is_exact:
            for ids, vectors in batches:
                search.upsert(ids, vectors)
            return search
        staged_spec = spec if stock.is_native else SearchSpec(spec.dim, "l2")
        staging = choose_factory(staged_spec, min(count, 1_000_000))
        staged = cls(Stock(staged_spec, new_index(staged_spec, staging)), factory=staging, device="cpu", source=source)
        for ids, vectors in batches:
            staged.upsert(ids, vectors)
        search._adopt(staged, seed=seed)
        return search

    def _adopt(self, staged: FaissSearch, *, seed: int) -> None:
        """Trains on a sample of the staged vectors, takes them over row by row, and measures the recall."""
        index, exact, rows = self._stock.index, staged._stock.index, len(staged._stock.book)
        sample = np.random.default_rng(seed).permutation(rows)[: training_size(index, rows)]
        train(index, exact.reconstruct_batch(np.sort(sample)))
        try:
            for start in range(0, rows, _BLOCK):
                index.add(reconstructed(exact, start, min(_BLOCK, rows - start)))
            selector, _bits = row_selector(np.ones(rows, np.bool_))
            searched(index, np.zeros((1, self.spec.dim), np.float32), 1, params=self._stock.parameters(selector))
        except RuntimeError as error:
            raise InputError(
                f"FAISS index {self.factory!r} cannot be filled or filtered ({str(error).split('Error: ')[-1]}); "
                "use auto, flat, HNSW or IVF"
            ) from error
        self._stock.book, self._memory, self._source = staged._stock.book, staged._memory, staged._source
        self._stock.calibration = calibration = calibrate(index, exact, seed=seed)
        if isinstance(inner := inner_index(index), faiss.IndexIVF):
            inner.nprobe = calibration.effort or inner.nprobe  # a copy on the GPU takes it from here

    @property
    def capabilities(self) -> Capabilities:
        """What this index can do; `exact` depends on its kind."""
        return Capabilities(
            metrics=frozenset(METRICS),
            exact=self._stock.is_exact,
            filtered=True,
            max_k=2**31 - 1,
            max_dim=2**31 - 1,
            persistent=False,
        )

    @property
    def description(self) -> dict[str, Any]:
        """Kind and measured recall, for people and manifests; JSON-able."""
        described: dict[str, Any] = {"factory": self.factory, "exact": self._stock.is_exact}
        calibration = self._stock.calibration
        if calibration is not None:
            described["recall_at_10"] = round(calibration.recall_at_10, 4)
            described["recall_queries"] = calibration.queries
            if calibration.effort is not None:
                is_ivf = isinstance(inner_index(self._stock.index), faiss.IndexIVF)
                described["nprobe" if is_ivf else "ef_search"] = calibration.effort
        return described

    @property
    def is_worth_saving(self) -> bool:
        """Reading the index back saves training; exact kinds are rebuilt from the vectors as quickly."""
        return not self._stock.is_exact

    def upsert(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """Adds raw vectors, or replaces them by id.

        Raises:
            ShapeError, InputError: what `check_vectors` and `check_ids` refuse, an id twice in one call, or numbers
                too large for half precision.
        """
        raw, lengths = check_vectors(self.spec, vectors)
        keys = check_ids(ids, count=len(raw))
        if len(np.unique(keys)) != len(keys):
            raise InputError(f"expected each id once in one upsert, but {len(keys) - len(np.unique(keys))} came again")
        if not len(keys):
            return
        stored = comparable(self.spec, raw, lengths)
        if "fp16" in self.factory and (largest := float(np.abs(stored).max())) > _HALF_MAX:
            raise InputError(
                f"half precision holds numbers up to {_HALF_MAX:.0f}, got {largest:.4g}; build with --index flat"
            )
        self._stock.add(keys, stored)
        self._gpu = None
        if self._source is self._memory:
            self._memory.put(keys, raw)

    def delete(self, ids: npt.ArrayLike) -> None:
        """Masks ids; unknown ones are no error. Their memory comes back with a rebuild."""
        keys = check_ids(ids)
        self._stock.book.drop(keys)
        self._memory.drop(keys)

    def get(self, ids: npt.ArrayLike) -> Vectors:
        """Raw stored vectors in the order asked for.

        Raises:
            InputError: an id that is not stored.
        """
        keys = check_ids(ids)
        missing = keys[self._stock.book.find(keys) < 0]
        if len(missing):
            raise InputError(f"expected stored ids, but {len(missing)} of {len(keys)} are not, such as {missing[0]}")
        return self._source(keys) if len(keys) else np.empty((0, self.spec.dim), np.float32)

    def search(self, queries: npt.ArrayLike, k: int, *, allowed: npt.ArrayLike | None = None) -> list[Hits]:
        """The k nearest of each query (q, d), out of the ids in `allowed` when given.

        Raises:
            ShapeError, InputError: queries that `check_vectors` refuses, or k below 1.
        """
        book = self._stock.book
        rows = book.all_live() if allowed is None else book.rows_of(check_ids(allowed))
        engine = Candidates(self._stock, self._source, rows, self._on_gpu())
        if engine.gpu is None:
            return search_exactly(self.spec, queries, k, engine=engine)
        with self._gpu_lock:  # FAISS's GPU resources serve one thread at a time
            return search_exactly(self.spec, queries, k, engine=engine)

    def scan(self, batch_size: int = 1024) -> Iterator[tuple[Ids, Vectors]]:
        """Every (ids, raw vectors), ascending by id."""
        ids = self._stock.book.ids[self._stock.book.ascending()]
        for start in range(0, len(ids), batch_size):
            batch = ids[start : start + batch_size]
            yield batch, self._source(batch)

    def count(self) -> int:
        """Number of ids stored."""
        return self._stock.book.live_count

    def verify(self) -> list[str]:
        """What does not hold: row numbers, and for exact kinds that every vector is the source's."""
        stock = self._stock
        problems = faiss_bytes.structure_problems(stock.index, rows=len(stock.book))
        if problems or not stock.is_exact:
            return problems
        rows = stock.book.ascending()
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            ids = stock.book.ids[block]
            difference = stock.index.reconstruct_batch(block) - comparable(self.spec, self._source(ids))
            wrong = ~(lengths_of(difference) <= stock.errors.distortion)
            if wrong.any():
                problems.append(
                    f"{wrong.sum()} indexed vectors differ from the stored ones, the first with id {ids[wrong][0]}; "
                    "rebuild the index"
                )
        return problems

    def close(self) -> None:
        """Frees the index; what is left is empty."""
        self._stock, self.factory, self._gpu = Stock(self.spec, new_index(self.spec, "Flat")), "Flat", None
        self._memory = MemoryVectors()

    def serialise(self) -> bytes:
        """The index as bytes; the raw vectors stay where `source` reads them."""
        return faiss_bytes.pack(self._stock, factory=self.factory)

    @classmethod
    def deserialise(
        cls, data: bytes, *, spec: SearchSpec, source: VectorSource, device: Device = "auto"
    ) -> FaissSearch:
        """The index that `serialise` wrote; the caller has made sure that the bytes are its own.

        Raises:
            CorruptGalleryError: bytes that are damaged, were made for another spec, or claim more than they hold.
        """
        stock, factory = faiss_bytes.unpack(data, spec)
        return cls(stock, factory=factory, device=device, source=source)

    def _on_gpu(self) -> Any:
        """The copy on the GPU, made on first use after a change; None where the CPU answers."""
        if self._device == "cpu" or (self._device == "auto" and len(self._stock.book) < _GPU_FROM):
            return None
        with self._gpu_lock:
            if self._gpu is None:
                self._gpu = to_gpu(self._stock.index)
            if self._gpu is None and self._device == "cuda":
                raise InputError(f"FAISS cannot hold {self.factory!r} on this GPU; use device auto, or index flat")
            if self._gpu is None:
                self._device = "cpu"
                return None
            return self._gpu[1]
