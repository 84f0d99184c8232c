"""A FAISS index with the ids of its rows: what is stored, how finely, how to search it, and all of it as bytes.

Rows are only appended, deleting masks one: FAISS's own removal renumbers rows, is slow, and under foreign ids is wrong.
FAISS's reader trusts its bytes: the gallery authenticates them, and what they claim is bounded by their length.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, TypeAlias

import faiss as typed_faiss
import numpy as np

from ...errors import CorruptGalleryError, InputError
from ...forking import ForkSafeLock
from ...metrics.distances import SearchSpec, Vectors, check_vectors, comparable, lengths_of
from ...remarks import counted
from ..search import IdMap, Ids, Rows, VectorSource, small_change
from .factory import (
    Coarse,
    SearchSettings,
    faiss_metric,
    inner_index,
    is_exact,
    refusals_of,
    row_selector,
    search_parameters,
    train,
    training_size,
)
from .runtime import reconstructed, searched

faiss: Any = typed_faiss

Buffer: TypeAlias = bytes | mmap.mmap

STAND_IN = 4  # candidates by L2 for each by L1: the true ten were always among the first fifty
_BLOCK_BYTES = 32 << 20
HALF_MAX = 65504.0
_MOST_EFFORT = 4096  # efSearch, where a filter leaves few of the vertices that are visited
_MAGIC = b"distcam faiss 1\n"
_LENGTH = struct.Struct("<Q")
_HEADER_MAX = 65_536
_PQ_TABLES_MAX = 2**31  # FAISS computes such tables on reading, up to this size
_limits_lock = ForkSafeLock()


@dataclass(frozen=True)
class Distortion:
    """Over everything stored: `distortion` = largest ‖stored − true‖₂, `radius` = largest ‖true‖₂."""

    distortion: float = 0.0
    radius: float = 0.0

    def including(self, vectors: Vectors, stored: Vectors) -> Distortion:
        """The same with these vectors and what the index made of them."""
        radius = float(lengths_of(vectors).max())
        distortion = 0.0 if stored is vectors else float(lengths_of(stored - vectors).max()) * (1 + 1e-6)
        return Distortion(max(self.distortion, distortion), max(self.radius, radius))

    def halved(self, dim: int) -> Distortion:
        """The same once stored vectors are rounded to half precision, none of whose numbers overflows."""
        rounding = 2.0**-11 * self.radius + math.sqrt(dim) * 2.0**-25  # of normal numbers, and of the smallest
        return Distortion(self.distortion + rounding * (1 + 1e-6), self.radius)


class IndexStore:
    """An index with the ids of its rows; the last may lie in `tail`, searched exactly. `trained`: for so many vectors.

    `buffer` is the memory that an index read without copying looks into; `own_copy` then reads one that can grow.
    """

    def __init__(
        self,
        spec: SearchSpec,
        index: Any,
        *,
        id_map: IdMap | None = None,
        precision: Distortion | None = None,
        settings: SearchSettings | None = None,
        trained: int = 0,
        buffer: Any = None,
        own_copy: Callable[[], Any] | None = None,
    ) -> None:
        self.spec = spec
        self.index = index
        self.id_map = id_map or IdMap()
        self.precision = precision or Distortion()
        self.settings = settings
        self.trained = trained
        self.tail: Any = faiss.IndexFlat(spec.dim, faiss_metric(spec, "Flat"))
        self.is_flat = isinstance(index, faiss.IndexFlat)
        self.is_native = spec.metric != "l1" or bool(index.metric_type == faiss.METRIC_L1)
        self.is_exact = is_exact(index) and self.is_native
        self.is_product = spec.metric in ("cosine", "dot")  # FAISS's numbers fall
        self._view: Vectors | None = None
        self.buffer = buffer
        self._own_copy = own_copy

    def fill(self, ids: Ids, source: VectorSource, *, factory: str, seed: int, coarse: Coarse | None = None) -> None:
        """Train the empty index on a sample of what `source` reads, and store everything, block by block."""
        index = self.index
        if not (isinstance(index, faiss.IndexIVF) and coarse is not None and len(coarse.centroids) == index.nlist):
            coarse = None
        if not index.is_trained:
            if coarse is not None:
                index.quantizer.add(coarse.centroids)  # FAISS then learns only the codes
            rows = np.sort(np.random.default_rng(seed).permutation(len(ids))[: training_size(index, len(ids))])
            sample = np.empty((len(rows), self.spec.dim), np.float32)
            start = 0
            for some, vectors in stored_blocks(self.spec, ids[rows], source):
                sample[start : start + len(some)] = vectors
                start += len(some)
            train(index, sample)
        if self.is_exact:  # room for all at once: growing copies what is there again and again
            index.codes.resize(len(ids) * index.code_size)
            index.codes.resize(0)
        with refusals_of(factory):
            for some, vectors in stored_blocks(self.spec, ids, source):
                check_range(factory, vectors)
                start = index.ntotal
                self._insert(vectors, lists=None if coarse is None else coarse.assignment[start : start + len(some)])
                self.id_map.append(some)
        self.trained = len(ids)

    def require_filters(self, factory: str) -> None:
        """InputError for a filled index that FAISS cannot search by filters."""
        if not self.is_exact:
            selector, _bits = row_selector(np.ones(len(self.id_map), np.bool_))
            with refusals_of(factory):
                searched(self.index, np.zeros((1, self.spec.dim), np.float32), 1, params=self.parameters(selector))

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Store comparable vectors in new rows: of an approximate index in the tail, as long as it stays small."""
        held = self.index.ntotal
        if held and not self.is_exact and self.tail.ntotal + len(ids) <= small_change(held):
            self.tail.add(vectors)
        else:
            self.settle()
            self._insert(vectors)
        self.id_map.append(ids)

    def settle(self) -> None:
        """Bring the tail into the index."""
        if self.tail.ntotal:
            flat = faiss.rev_swig_ptr(self.tail.get_xb(), self.tail.ntotal * self.spec.dim)
            self._insert(flat.reshape(-1, self.spec.dim))
            self.tail.reset()

    def _insert(self, vectors: Vectors, *, lists: Rows | None = None) -> None:
        """Put the next rows into the index; of an inverted file into these lists, where they are known."""
        if self._own_copy is not None:  # FAISS ends the process when it is told to add to memory that is not its own
            self.index, self._own_copy = self._own_copy(), None
            self.buffer = None
        start, count = self.index.ntotal, len(vectors)
        self._view = None  # FAISS moves its memory as it grows
        if lists is None:
            self.index.add(vectors)
        else:
            rows = np.arange(start, start + count)
            self.index.add_core(count, *(faiss.swig_ptr(array) for array in (vectors, rows, lists)))
        if self.is_exact:
            stored = vectors if self.is_flat else reconstructed(self.index, start, count)
            self.precision = self.precision.including(vectors, stored)

    def vectors(self, rows: Rows, source: VectorSource) -> Vectors:
        """Comparable vectors of rows: out of FAISS's own memory where it holds them bit for bit."""
        if self.is_flat:
            if self._view is None:
                flat = faiss.rev_swig_ptr(self.index.get_xb(), self.index.ntotal * self.spec.dim)
                self._view = flat.reshape(-1, self.spec.dim)
            return self._view.take(rows, axis=0)
        if not len(rows):
            return np.empty((0, self.spec.dim), np.float32)
        return comparable(self.spec, source(self.id_map.ids[rows]))

    def indexed(self, rows: Rows, source: VectorSource) -> Vectors:
        """The same as the index holds them, so within its errors; without reading the source where it is exact."""
        if self.is_flat or not self.is_exact:
            return self.vectors(rows, source)
        codes = faiss.rev_swig_ptr(self.index.codes.data(), self.index.codes.size())
        decoded: Vectors = self.index.sa_decode(codes.reshape(-1, self.index.code_size).take(rows, axis=0))
        return decoded

    def parameters(self, selector: Any = None, *, effort: int | None = None, growth: float = 1.0) -> Any:
        """FAISS's parameters on the CPU, None for its defaults; `growth` multiplies the effort, by default measured."""
        effort = effort or (self.settings.effort if self.settings else None)
        if effort is not None and growth > 1:
            inner = inner_index(self.index)
            effort = min(round(effort * growth), int(getattr(inner, "nlist", max(_MOST_EFFORT, effort))))
        if selector is None and effort is None:
            return None
        return search_parameters(self.index, effort=effort, selector=selector)


def stored_blocks(spec: SearchSpec, ids: Ids, source: VectorSource) -> Iterator[tuple[Ids, Vectors]]:
    """Everything that `ids` name as (ids, comparable vectors), checked, a bounded number of bytes at a time."""
    step = max(_BLOCK_BYTES // (4 * spec.dim), 1)
    for start in range(0, len(ids), step):
        some = ids[start : start + step]
        yield some, comparable(spec, *check_vectors(spec, source(some)))


def check_range(factory: str, vectors: Vectors) -> None:
    """Refuse numbers that half precision turns into infinity, where that is how an index stores them."""
    if "fp16" in factory and len(vectors) and (largest := float(np.abs(vectors).max())) > HALF_MAX:
        raise InputError(
            f"half precision holds numbers up to {HALF_MAX:.0f}, got {largest:.4g}; build with --index flat"
        )


def write(store: IndexStore, file: BinaryIO, *, factory: str) -> None:
    """All of a store, without the raw vectors, into a file."""
    store.settle()
    header = {
        "dim": store.spec.dim,
        "metric": store.spec.metric,
        "factory": factory,
        "rows": len(store.id_map),
        "trained": store.trained,
        "errors": asdict(store.precision),
        "calibration": asdict(store.settings) if store.settings else None,
    }
    text = json.dumps(header).encode()
    file.write(_MAGIC + _LENGTH.pack(len(text)) + text)
    file.write(store.id_map.ids.astype("<u8").tobytes())
    file.write(np.packbits(store.id_map.live).tobytes())
    faiss.write_index(store.index, faiss.PyCallbackIOWriter(file.write))


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except CorruptGalleryError:
        raise
    except Exception as error:  # FAISS raises RuntimeError and MemoryError, damaged headers nearly anything
        raise _corrupt(f"cannot be read ({type(error).__name__})") from error


@_damage_named()
def unpack(data: Buffer, spec: SearchSpec) -> tuple[IndexStore, str]:
    """The store, which goes on looking into `data`, and its factory string."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise _corrupt("is none of distcam's")
    (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
    if length > _HEADER_MAX:
        raise _corrupt(f"has a header of {length} bytes")
    start = len(_MAGIC) + _LENGTH.size
    header = json.loads(data[start : start + length])
    if (header["dim"], header["metric"]) != (spec.dim, spec.metric):
        raise _corrupt(
            f"is for {header['dim']} dimensions and {header['metric']}, expected {spec.dim} and {spec.metric}"
        )
    rows, start = int(header["rows"]), start + length
    ids = np.frombuffer(data, "<u8", rows, start).astype(np.uint64)
    packed = np.frombuffer(data, np.uint8, -(-rows // 8), start + 8 * rows)
    live = np.unpackbits(packed, count=rows).astype(np.bool_)
    if len(np.unique(ids[live])) != live.sum():
        raise _corrupt("holds an id twice")
    factory = str(header["factory"])
    tables = _PQ_TABLES_MAX if "PQ" in factory else 0
    part = np.frombuffer(data, np.uint8, offset=start + 8 * rows + len(packed))
    index = _read_index(part, tables=tables)
    problems = structure_problems(index, rows=rows)
    if index.d != spec.dim or index.metric_type != faiss_metric(spec, factory) or not index.is_trained:
        problems.append("the index is of another dimension or metric than its header says")
    if problems:
        raise _corrupt("is inconsistent: " + "; ".join(problems))
    store = IndexStore(
        spec,
        index,
        id_map=IdMap(ids, live),
        precision=Distortion(**{name: float(value) for name, value in header["errors"].items()}),
        settings=SearchSettings(**header["calibration"]) if header["calibration"] else None,
        trained=int(header.get("trained", rows)),
        buffer=part,
        own_copy=lambda: _read_index(part, tables=tables, copy=True),
    )
    return store, factory


def _read_index(part: Any, *, tables: int, copy: bool = False) -> Any:
    """FAISS's part, bounded by the bytes there are and the tables FAISS adds; these limits belong to the process."""
    if copy:
        place = 0

        def read(size: int) -> bytes:  # one piece after the other: memory is not copied as a whole
            nonlocal place
            place += size
            piece: bytes = part[place - size : place].tobytes()
            return piece

        reader = faiss.PyCallbackIOReader(read)
    else:
        reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(part), len(part))
    with _limits_lock:
        vector, loop = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(max(len(part) + 1024, tables))
        faiss.set_deserialization_loop_limit(len(part) + 1)
        try:
            return faiss.read_index(reader)
        finally:
            faiss.set_deserialization_vector_byte_limit(vector)
            faiss.set_deserialization_loop_limit(loop)


def structure_problems(index: Any, *, rows: int) -> list[str]:
    """Contradictions to `rows` rows numbered from 0, one sentence each."""
    if index.ntotal != rows:
        return [f"the index holds {counted(index.ntotal, 'vector')}, expected {rows}"]
    inner = inner_index(index)
    if inner.ntotal != rows:
        return [f"the index holds {counted(inner.ntotal, 'vector')} under its transform, expected {rows}"]
    if not isinstance(inner, faiss.IndexIVF):
        return []
    seen = np.zeros(rows, np.int64)
    lists: Any = inner.invlists
    for number in range(inner.nlist):
        size = lists.list_size(number)
        numbers = faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, np.int64)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= rows):
            return [f"list {number} of the index names rows that do not exist"]
        np.add.at(seen, numbers, 1)
    return [] if (seen == 1).all() else ["the lists of the index do not hold every row once"]


def _corrupt(reason: str) -> CorruptGalleryError:
    return CorruptGalleryError(f"the saved search index {reason}; it is rebuilt from the stored vectors")
