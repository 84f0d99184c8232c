"""A FAISS index with the ids of its rows: what is stored, how finely, and how to search it.

Rows are only ever appended. Deleting masks a row and replacing masks the older one, because FAISS's own removal
renumbers rows, is slow, and under an IVF index wrapped for foreign ids returns wrong ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss as typed_faiss
import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..search import Ids, SearchSpec, Vectors, VectorSource, check_vectors, comparable, lengths_of
from .factory import Coarse, inner_index, is_exact, search_parameters, train, training_size
from .runtime import reconstructed, searched

faiss: Any = typed_faiss

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

STAND_IN = 4  # candidates by L2 for each by L1: the true ten were always among the first fifty
_BLOCK_BYTES = 32 << 20
_NO_ROW = -1
_HALF_MAX = 65504.0
_MOST_EFFORT = 4096  # efSearch, where a filter leaves few of the vertices that are visited


class IdMap:
    """Ids by row, and back; a row is live until its id is deleted or replaced."""

    def __init__(self, ids: Ids | None = None, live: Mask | None = None) -> None:
        self._ids = np.empty(0, np.uint64) if ids is None else ids.copy()
        self._live = np.empty(0, np.bool_) if live is None else live.copy()
        self._size = len(self._ids)
        self._largest = int(self._ids.max(initial=0)) if self._size else -1
        self._lookup: tuple[Ids, Rows] | None = None
        self._live_rows: Rows | None = None
        self.live_count = int(self._live.sum())

    def __len__(self) -> int:
        """Number of rows, live or not."""
        return self._size

    @property
    def ids(self) -> Ids:
        """Id of each row."""
        return self._ids[: self._size]

    @property
    def live(self) -> Mask:
        """True for each row that is live."""
        return self._live[: self._size]

    def append(self, ids: Ids) -> None:
        """Add one row for each id; an older row of the same id is masked."""
        self.drop(ids)
        end = self._size + len(ids)
        if end > len(self._ids):
            spare = max(end, 2 * self._size) - self._size
            self._ids = np.concatenate([self.ids, np.zeros(spare, np.uint64)])
            self._live = np.concatenate([self.live, np.zeros(spare, np.bool_)])
        self._ids[self._size : end] = ids
        self._live[self._size : end] = True
        self._size = end
        self._largest = max(self._largest, int(ids.max(initial=0)))
        self.live_count += len(ids)
        self._lookup = self._live_rows = None

    def drop(self, ids: Ids) -> None:
        """Mask the live rows of `ids`; unknown ids are no error."""
        if not len(ids) or int(ids.min()) > self._largest:
            return  # the usual batch: ids ascend, so none can be known
        rows = self.rows_of(ids)
        self._live[rows] = False
        self._live_rows = None
        self.live_count -= len(rows)

    def rows_of(self, ids: Ids) -> Rows:
        """The live rows of those `ids` that have one, in the order of `ids`; each row once."""
        rows = self.find(ids)
        if rows.min(initial=0) < 0:
            rows = rows[rows != _NO_ROW]
        if len(rows) > 1 and not (rows[1:] > rows[:-1]).all():
            rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
        return rows

    def find(self, ids: Ids) -> Rows:
        """The live row of each id, −1 where there is none."""
        keys, rows = self._lookup = self._lookup or self._make_lookup()
        found: Rows
        if not len(rows) or not len(ids):
            return np.full(len(ids), _NO_ROW, np.int64)
        if len(keys) == 1:  # a table over the range of ids, starting at the one key
            offsets = ids - keys[0]  # ids below the first wrap round to huge numbers
            if offsets.max() < len(rows):
                found = rows[offsets.view(np.int64)]
            else:
                known = offsets < np.uint64(len(rows))
                found = np.where(known, rows[np.where(known, offsets, 0).astype(np.int64)], _NO_ROW)
        else:
            places = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
            found = np.where(keys[places] == ids, rows[places], _NO_ROW)
        if self.live_count < self._size:
            found = np.where(self.live[found], found, _NO_ROW)  # −1 looks at the last row, and stays −1
        return found

    def all_live(self) -> Rows | None:
        """The live rows, None where that is every row."""
        if self.live_count == self._size:
            return None
        rows = self._live_rows = np.flatnonzero(self.live) if self._live_rows is None else self._live_rows
        return rows

    def ascending(self) -> Rows:
        """The live rows, ascending by id."""
        rows: Rows = np.flatnonzero(self.live).astype(np.int64, copy=False)
        return rows[np.argsort(self.ids[rows], kind="stable")]

    def _make_lookup(self) -> tuple[Ids, Rows]:
        """(first id, row of each id of the range), or (sorted ids, their rows) where ids are far apart.

        The table is ten times faster on the long sorted lists that filters are.
        """
        rows = self.ascending()
        keys = self.ids[rows]
        if not len(keys) or (len(keys) > 1 and keys[-1] - keys[0] >= 8 * len(keys)):
            return keys, rows
        table = np.full(int(keys[-1] - keys[0]) + 1, _NO_ROW, np.int64)
        table[(keys - keys[0]).astype(np.int64)] = rows
        return keys[:1], table


@dataclass(frozen=True)
class Precision:
    """Over everything stored: `distortion` = largest ‖stored − true‖₂, `radius` = largest ‖true‖₂."""

    distortion: float = 0.0
    radius: float = 0.0

    def including(self, vectors: Vectors, stored: Vectors) -> Precision:
        """The same with these vectors and what the index made of them."""
        radius = float(lengths_of(vectors).max())
        distortion = 0.0 if stored is vectors else float(lengths_of(stored - vectors).max()) * (1 + 1e-6)
        return Precision(max(self.distortion, distortion), max(self.radius, radius))

    def halved(self, dim: int) -> Precision:
        """The same once stored vectors are rounded to half precision, none of whose numbers overflows."""
        rounding = 2.0**-11 * self.radius + math.sqrt(dim) * 2.0**-25  # of normal numbers, and of the smallest
        return Precision(self.distortion + rounding * (1 + 1e-6), self.radius)


@dataclass(frozen=True)
class SearchSettings:
    """Effort and over-fetch of an approximate index, and the recall that was measured with them.

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


class IndexStore:
    """An index, the ids of its rows, and how to search it.

    `buffer` is the memory that an index read without copying looks into; `own_copy` then reads one that can grow.
    """

    def __init__(
        self,
        spec: SearchSpec,
        index: Any,
        *,
        id_map: IdMap | None = None,
        precision: Precision | None = None,
        settings: SearchSettings | None = None,
        buffer: Any = None,
        own_copy: Callable[[], Any] | None = None,
    ) -> None:
        self.spec = spec
        self.index = index
        self.id_map = id_map or IdMap()
        self.precision = precision or Precision()
        self.settings = settings
        self.is_flat = isinstance(index, faiss.IndexFlat)
        self.is_native = spec.metric != "l1" or bool(index.metric_type == faiss.METRIC_L1)
        self.is_exact = is_exact(index) and self.is_native
        self.is_product = spec.metric in ("cosine", "dot")  # FAISS's numbers fall
        self._view: Vectors | None = None
        self._buffer = buffer
        self._own_copy = own_copy

    @property
    def is_mapped(self) -> bool:
        """True while the index looks into the bytes it was read from."""
        return self._buffer is not None

    def fill(self, ids: Ids, source: VectorSource, *, factory: str, seed: int, coarse: Coarse | None = None) -> None:
        """Train the empty index on a sample of what `source` reads, and store everything, block by block.

        Args:
            ids: what to store, each once.
            source: reads raw vectors.
            factory: what the index was made from, for messages.
            seed: of the sample.
            coarse: lists of an inverted file with as many, over the same ids; others are passed over.
        """
        index = self.index
        if not (isinstance(index, faiss.IndexIVF) and coarse is not None and len(coarse.centroids) == index.nlist):
            coarse = None
        if not index.is_trained:
            if coarse is not None:
                index.quantizer.add(coarse.centroids)  # FAISS then learns only the codes
            train(index, self._sample(ids, source, seed=seed))
        try:
            start = 0
            for some, vectors in stored_blocks(self.spec, ids, source):
                check_range(factory, vectors)
                lists = None if coarse is None else coarse.assignment[start : start + len(some)]
                self.add(some, vectors, lists=lists)
                start += len(some)
            if not self.is_exact:
                selector, _bits = row_selector(np.ones(len(ids), np.bool_))
                searched(index, np.zeros((1, self.spec.dim), np.float32), 1, params=self.parameters(selector))
        except RuntimeError as error:
            raise InputError(
                f"FAISS index {factory!r} cannot be filled or filtered ({str(error).split('Error: ')[-1]}); "
                "use auto, flat, HNSW or IVF"
            ) from error

    def _sample(self, ids: Ids, source: VectorSource, *, seed: int) -> Vectors:
        """Comparable vectors to train on."""
        size = training_size(self.index, len(ids))
        rows = np.sort(np.random.default_rng(seed).permutation(len(ids))[:size])
        sample = np.empty((len(rows), self.spec.dim), np.float32)
        start = 0
        for some, vectors in stored_blocks(self.spec, ids[rows], source):
            sample[start : start + len(some)] = vectors
            start += len(some)
        return sample

    def add(self, ids: Ids, vectors: Vectors, *, lists: Rows | None = None) -> None:
        """Store comparable vectors in new rows; of an inverted file into these lists, where they are known."""
        if self._own_copy is not None:  # FAISS ends the process when it is told to add to memory that is not its own
            self.index, self._own_copy = self._own_copy(), None
            self._buffer = None
        start = len(self.id_map)
        self._view = None  # FAISS moves its memory as it grows
        if lists is None:
            self.index.add(vectors)
        else:
            rows = np.arange(start, start + len(ids))
            self.index.add_core(len(ids), *(faiss.swig_ptr(array) for array in (vectors, rows, lists)))
        self.id_map.append(ids)
        if self.is_exact:
            stored = vectors if self.is_flat else reconstructed(self.index, start, len(ids))
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
        """FAISS's parameters for one search on the CPU; None for its defaults.

        `growth` multiplies the effort, which is the measured one unless another is given.
        """
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
    if "fp16" in factory and len(vectors) and (largest := float(np.abs(vectors).max())) > _HALF_MAX:
        raise InputError(
            f"half precision holds numbers up to {_HALF_MAX:.0f}, got {largest:.4g}; build with --index flat"
        )


def row_selector(mask: Mask) -> tuple[Any, Any]:
    """FAISS's selector of the rows where the mask holds, and the bits it points to, which have to outlive it."""
    bits = np.packbits(mask, bitorder="little")
    return faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits)), bits
