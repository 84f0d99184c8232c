"""Neighbour search with FAISS: exact while that is quick, measured when approximate, on a GPU when there is one."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...forking import make_forks_safe
from ...metrics.distances import SearchSpec, Vectors, check_vectors, comparable, lengths_of
from ..search import Hits, Ids, MemoryVectors, VectorSource, check_ids, search_exactly
from ..storage.manifest import has_outgrown
from .candidates import Candidates, enough, ground_truth, measured_settings
from .factory import Coarse, SearchSettings, choose_factory, index_bytes, inner_index, new_index
from .gpu import GpuCopy
from .index_store import Buffer, IndexStore, check_range, structure_problems, unpack, write

_BLOCK = 8192
_MEASURED_QUERIES = 200


class FaissSearch:
    """A FAISS index with ids, deletions and filters, for several threads at once; what changes it runs alone."""

    def __init__(
        self, store: IndexStore, *, factory: str, device: str = "auto", source: VectorSource | None = None
    ) -> None:
        self.spec = store.spec
        self.factory = factory
        self.store = store
        self._source: VectorSource = MemoryVectors() if source is None else source
        self._gpu = GpuCopy(device)
        make_forks_safe()

    @classmethod
    def build(
        cls,
        spec: SearchSpec,
        batches: Iterable[tuple[Ids, Vectors]],
        *,
        count: int,
        factory: str = "auto",
        device: str = "auto",
        source: VectorSource | None = None,
        seed: int = 0,
    ) -> FaissSearch:
        """An index over all `batches` of (ids, raw vectors), read once; `from_source` spares reading them.

        `count` is how many to expect; `device` "auto" takes a GPU for a large index, "cuda:1" the second, "cuda:all"
        all. Without a `source` that reads raw vectors back they are kept in memory.

        Raises:
            InputError: an unusable factory string, too few vectors to train it, or a GPU that is not there.
        """
        search = cls._empty(spec, count, factory=factory, device=device, source=source)
        if search.is_exact:
            for ids, vectors in batches:
                search.upsert(ids, vectors)
            return search
        keys = [np.empty(0, np.uint64)]
        for ids, vectors in batches:
            raw, _ = check_vectors(spec, vectors)
            keys.append(check_ids(ids, count=len(raw)))
            search._remember(keys[-1], raw)
        stored = np.unique(np.concatenate(keys))
        return cls.from_source(spec, stored, search._source, factory=search.factory, device=device, seed=seed)

    @classmethod
    def from_source(
        cls,
        spec: SearchSpec,
        ids: Ids,
        source: VectorSource,
        *,
        factory: str = "auto",
        device: str = "auto",
        seed: int = 0,
        settings: SearchSettings | None = None,
        coarse: Coarse | None = None,
    ) -> FaissSearch:
        """An index over stored vectors: in memory are the index, a training sample, and a block of vectors, no more.

        Arguments are those of `build`, which raises the same. `settings` are those measured before (None: measure now),
        `coarse` the lists of an inverted file with as many that was built before, over the same ids.
        """
        search = cls._empty(spec, len(ids), factory=factory, device=device, source=source)
        store = search.store
        store.fill(ids, source, factory=search.factory, seed=seed, coarse=coarse)
        store.require_filters(search.factory)
        if search.is_exact:
            return search
        if settings is None:
            stored = store.id_map.ids[store.id_map.ascending()]
            truth = ground_truth(spec, stored, source, queries=_MEASURED_QUERIES, k=10, seed=seed)
            settings = enough(measured_settings(store, source, truth))
        search.use(settings)
        return search

    @classmethod
    def _empty(cls, spec: SearchSpec, count: int, *, factory: str, device: str, source: VectorSource | None) -> Self:
        wanted = {"auto": choose_factory(spec, count), "flat": "Flat"}.get(factory, factory)
        return cls(IndexStore(spec, new_index(spec, wanted)), factory=wanted, device=device, source=source)

    def read_from(self, source: VectorSource) -> None:
        """Read raw vectors there from now on."""
        self._source = source

    def use(self, settings: SearchSettings) -> None:
        """Search an approximate index this way from now on."""
        self.store.settings = settings
        self._gpu.drop()
        if isinstance(inner := inner_index(self.store.index), faiss.IndexIVF):
            inner.nprobe = settings.effort or inner.nprobe  # a copy on a GPU takes it from here

    @property
    def is_exact(self) -> bool:
        """No neighbour is missed, ties included; depends on the kind of index."""
        return self.store.is_exact

    @property
    def description(self) -> dict[str, Any]:
        """Kind and measured recall, for people and manifests; JSON-able."""
        described: dict[str, Any] = {"factory": self.factory, "exact": self.is_exact}
        if (settings := self.store.settings) is not None:
            described["recall_at_10"] = round(settings.recall_at_10, 4)
            described["recall_queries"] = settings.queries
            if settings.overfetch > 1:
                described["overfetch"] = settings.overfetch
            if settings.effort is not None:
                is_ivf = isinstance(inner_index(self.store.index), faiss.IndexIVF)
                described["nprobe" if is_ivf else "ef_search"] = settings.effort
        return described

    @property
    def is_worth_saving(self) -> bool:
        """Reading the index back saves training; exact kinds are rebuilt from the vectors as quickly."""
        return not self.store.is_exact

    @property
    def is_outgrown(self) -> bool:
        """An approximate index was made for fewer than half or more than twice as many, or mostly for what has left."""
        book = self.store.id_map
        return not self.is_exact and (
            has_outgrown(self.store.trained, book.live_count) or has_outgrown(len(book), book.live_count)
        )

    @property
    def ids(self) -> Ids:
        """The ids stored, in no order."""
        return self.store.id_map.ids[self.store.id_map.live]

    def upsert(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """Add raw vectors, or replace them by id; InputError for an id twice, or numbers too large for halves."""
        raw, lengths = check_vectors(self.spec, vectors)
        keys = check_ids(ids, count=len(raw))
        if len(np.unique(keys)) != len(keys):
            raise InputError(f"expected each id once in one upsert, but {len(keys) - len(np.unique(keys))} came again")
        if not len(keys):
            return
        stored = comparable(self.spec, raw, lengths)
        check_range(self.factory, stored)
        self.store.add(keys, stored)
        if not self.store.tail.ntotal:
            self._gpu.drop()
        self._remember(keys, raw)

    def _remember(self, keys: Ids, raw: Vectors) -> None:
        """Keep raw vectors where nobody else does."""
        if isinstance(self._source, MemoryVectors):
            self._source.update(zip(keys.tolist(), raw.copy(), strict=True))

    def delete(self, ids: npt.ArrayLike) -> None:
        """Mask ids; unknown ones are no error. Their memory comes back with a rebuild."""
        keys = check_ids(ids)
        self.store.id_map.drop(keys)
        if isinstance(self._source, MemoryVectors):
            for key in keys.tolist():
                self._source.pop(key, None)

    def get(self, ids: npt.ArrayLike) -> Vectors:
        """Raw stored vectors in the order asked for; InputError for an id that is not stored."""
        keys = check_ids(ids)
        missing = keys[self.store.id_map.find(keys) < 0]
        if len(missing):
            raise InputError(f"expected stored ids, but {len(missing)} of {len(keys)} are not, such as {missing[0]}")
        return self._source(keys) if len(keys) else np.empty((0, self.spec.dim), np.float32)

    def search(self, queries: npt.ArrayLike, k: int, *, allowed: npt.ArrayLike | None = None) -> list[Hits]:
        """The k nearest of each query (q, d), out of the ids in `allowed` when given."""
        book = self.store.id_map
        rows = book.all_live() if allowed is None else book.rows_of(check_ids(allowed))
        mask = book.live if allowed is None and rows is not None else None
        gpu = self._gpu.of(self.store, factory=self.factory)
        engine = Candidates(self.store, self._source, rows, gpu, mask)
        return search_exactly(self.spec, queries, k, engine=engine)

    def scan(self, batch_size: int = 1024) -> Iterator[tuple[Ids, Vectors]]:
        """Every (ids, raw vectors), ascending by id."""
        ids = self.store.id_map.ids[self.store.id_map.ascending()]
        for start in range(0, len(ids), batch_size):
            batch = ids[start : start + batch_size]
            yield batch, self._source(batch)

    def count(self) -> int:
        """Number of ids stored."""
        return self.store.id_map.live_count

    def verify(self) -> list[str]:
        """Problems found: in row numbers, and for exact kinds any vector that is not the source's."""
        store = self.store
        problems = structure_problems(store.index, rows=len(store.id_map) - store.tail.ntotal)
        if problems or not store.is_exact:
            return problems
        rows = store.id_map.ascending()
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            ids = store.id_map.ids[block]
            difference = store.index.reconstruct_batch(block) - comparable(self.spec, self._source(ids))
            wrong = ~(lengths_of(difference) <= store.precision.distortion)
            if wrong.any():
                problems.append(
                    f"{wrong.sum()} indexed vectors differ from the stored ones, the first with id {ids[wrong][0]}; "
                    "rebuild the index"
                )
        return problems

    def close(self) -> None:
        """Free the index; what is left is empty."""
        self.store, self.factory = IndexStore(self.spec, new_index(self.spec, "Flat")), "Flat"
        self._gpu.drop()
        if isinstance(self._source, MemoryVectors):
            self._source = MemoryVectors()

    @property
    def device(self) -> str:
        """The place of search: `"cpu"`, or the GPU that was asked for and used."""
        return self._gpu.used

    @property
    def nbytes(self) -> int:
        """Memory of the index and of its ids, in bytes; mapped from a file or not."""
        rows = len(self.store.id_map)
        tail = 4 * self.spec.dim * int(self.store.tail.ntotal)
        return index_bytes(self.store.index, rows) + tail + 17 * rows  # id, live or not, and the row of each id

    @property
    def is_mapped(self) -> bool:
        """True while the index looks into the bytes it was read from, without a copy of its own."""
        return self.store.buffer is not None

    def serialise(self) -> bytes:
        """The index as bytes; the raw vectors stay where `source` reads them."""
        file = io.BytesIO()
        write(self.store, file, factory=self.factory)
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Write the same to a file, without a second copy in memory."""
        with path.open("wb") as file:
            write(self.store, file, factory=self.factory)

    @classmethod
    def deserialise(cls, data: Buffer, *, spec: SearchSpec, source: VectorSource, device: str = "auto") -> FaissSearch:
        """The index that `serialise` or `save` wrote; the caller has made sure that the bytes are its own.

        The index goes on looking into `data`: a mapped file must not change. CorruptGalleryError for what is damaged,
        was made for another spec, or claims more than it holds.
        """
        store, factory = unpack(data, spec)
        return cls(store, factory=factory, device=device, source=source)

    def __reduce__(self) -> tuple[Any, ...]:
        raise InputError(
            "a search index stays in its process: send the Gallery, which opens its folder again, or the bytes of "
            "`serialise()`"
        )
