"""Candidates out of a FAISS index, and how near a vector that is not among them may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import faiss
import numpy as np

from ..search import UNKNOWN_FLOOR, Ids, Proposal, SearchSpec, Vectors, VectorSource, comparable, first_fetch
from .error_bounds import Errors, Ruler
from .factory import faiss_metric, inner_index, is_exact, search_parameters
from .gpu import GPU_MAX_K, GpuIndex
from .id_map import Mask, RowBook, Rows
from .numpy import reconstructed, searched
from .recall import STAND_IN, Calibration
from .threads import Tuned

__all__ = ["Candidates", "Stock", "row_selector"]

_BLOCK = 2048  # gathered rows that are compared at once: they stay in the processor's cache
_READ_TOGETHER = 1024  # rows: their float64 copies stay in the processor's cache
_MOST_EFFORT = 4096  # efSearch, where a filter leaves few of the vertices that are visited
_FEW = 4096  # allowed rows for which an approximate index is not asked

Way: TypeAlias = Literal["all", "gather", "mask"]


class Stock:
    """An index with its row book, and how to search it.

    `buffer` is the memory that an index read without copying looks into; `own_copy` then reads one that can grow.
    """

    def __init__(
        self,
        spec: SearchSpec,
        index: Any,
        *,
        book: RowBook | None = None,
        errors: Errors | None = None,
        calibration: Calibration | None = None,
        buffer: Any = None,
        own_copy: Callable[[], Any] | None = None,
    ) -> None:
        self.spec = spec
        self.index = index
        self.book = book or RowBook()
        self.errors = errors or Errors()
        self.calibration = calibration
        self.is_flat = isinstance(index, faiss.IndexFlat)
        self.is_native = spec.metric != "l1" or bool(index.metric_type == faiss.METRIC_L1)
        self.is_exact = is_exact(index) and self.is_native
        self.is_product = spec.metric in ("cosine", "dot")  # FAISS's numbers fall
        self._view: Vectors | None = None
        self._buffer = buffer
        self._own_copy = own_copy

    @property
    def is_mapped(self) -> bool:
        """Whether the index looks into the bytes it was read from."""
        return self._buffer is not None

    def add(self, ids: Ids, vectors: Vectors, *, lists: Rows | None = None) -> None:
        """Stores comparable vectors in new rows; of an inverted file into these lists, where they are known."""
        if self._own_copy is not None:  # FAISS ends the process when it is told to add to memory that is not its own
            self.index, self._own_copy = self._own_copy(), None
            self._buffer = None
        start = len(self.book)
        self._view = None  # FAISS moves its memory as it grows
        if lists is None:
            self.index.add(vectors)
        else:
            rows = np.arange(start, start + len(ids))
            self.index.add_core(len(ids), *(faiss.swig_ptr(array) for array in (vectors, rows, lists)))
        self.book.append(ids)
        if self.is_exact:
            stored = vectors if self.is_flat else reconstructed(self.index, start, len(ids))
            self.errors = self.errors.including(vectors, stored)

    def vectors(self, rows: Rows, source: VectorSource) -> Vectors:
        """Comparable vectors of rows: out of FAISS's own memory where it holds them bit for bit."""
        if self.is_flat:
            if self._view is None:
                flat = faiss.rev_swig_ptr(self.index.get_xb(), self.index.ntotal * self.spec.dim)
                self._view = flat.reshape(-1, self.spec.dim)
            return self._view.take(rows, axis=0)
        if not len(rows):
            return np.empty((0, self.spec.dim), np.float32)
        return comparable(self.spec, source(self.book.ids[rows]))

    def indexed(self, rows: Rows, source: VectorSource) -> Vectors:
        """The same as the index holds them, so within its errors; without reading the source where it is exact."""
        if self.is_flat or not self.is_exact:
            return self.vectors(rows, source)
        codes = faiss.rev_swig_ptr(self.index.codes.data(), self.index.codes.size())
        decoded: Vectors = self.index.sa_decode(codes.reshape(-1, self.index.code_size).take(rows, axis=0))
        return decoded

    @property
    def overfetch(self) -> int:
        """How many times the usual number of candidates to re-score."""
        return self.calibration.overfetch if self.calibration else 1

    def parameters(self, selector: Any = None, *, effort: int | None = None, growth: float = 1.0) -> Any:
        """FAISS's parameters for one search on the CPU; None for its defaults.

        `growth` multiplies the effort, which is the calibrated one unless another is given.
        """
        effort = effort or (self.calibration.effort if self.calibration else None)
        if effort is not None and growth > 1:
            inner = inner_index(self.index)
            effort = min(round(effort * growth), int(getattr(inner, "nlist", max(_MOST_EFFORT, effort))))
        if selector is None and effort is None:
            return None
        return search_parameters(self.index, effort=effort, selector=selector)


@dataclass(frozen=True)
class Candidates:
    """The `Engine` of one search.

    Attributes:
        stock: the index.
        source: reads the true vectors.
        rows: those that may be returned; None: all.
        gpu: the index's copy on GPUs, or None.
        mask: the rows once more, as a mask, if it is there already.
    """

    stock: Stock
    source: VectorSource
    rows: Rows | None = None
    gpu: GpuIndex | None = None
    mask: Mask | None = None

    @property
    def size(self) -> int:
        """Number of vectors that may be returned."""
        return len(self.stock.book) if self.rows is None else len(self.rows)

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
        """Of the first n candidates for each query, those that may be among its k nearest as far as FAISS can tell.

        An approximate index gives more of them where it was measured to need that.
        """
        stock = self.stock
        growth = n / first_fetch(k)  # above 1, what was asked for at first has not been enough
        if not stock.is_native:
            n *= STAND_IN
        n = max(n, min(n * stock.overfetch, self.reach))
        if n >= self.size:
            everything = Proposal(*self._read(np.arange(self.size) if self.rows is None else self.rows), np.inf)
            yield from (everything for _ in range(len(queries)))
            return
        way = self._way(len(queries))
        if way == "gather":
            found, distances = self._gather(queries, n)
        else:
            found, distances = self._ask_index(queries, n, way=way, growth=growth)
        keep = self._mask() if way == "all" and self.rows is not None else None
        ruler = self._ruler(queries)
        floors, kept = [], []
        for rows, numbers in zip(found, distances, strict=True):
            floors.append(ruler.floor(float(numbers[-1])) if ruler else UNKNOWN_FLOOR)
            if keep is not None or rows[-1] < 0:
                wanted = rows >= 0 if keep is None else (rows >= 0) & keep[rows]
                rows, numbers = rows[wanted], numbers[wanted]
            if ruler and len(rows) > k:
                cut = ruler.cut(float(numbers[k - 1]))
                rows = rows[: np.count_nonzero(numbers >= cut if stock.is_product else numbers <= cut)]
            kept.append(rows)
        for (ids, vectors), floor in zip(self.read_all(kept), floors, strict=True):
            yield Proposal(ids, vectors, floor)

    def read_all(self, lists: Sequence[Rows]) -> Iterator[tuple[Ids, Vectors]]:
        """Ids and comparable vectors of each list of rows; short lists are read from the source together."""
        first = 0
        while first < len(lists):
            last, total = first + 1, len(lists[first])
            while last < len(lists) and total + len(lists[last]) <= _READ_TOGETHER:
                total += len(lists[last])
                last += 1
            ids, vectors = self._read(lists[first] if last == first + 1 else np.concatenate(lists[first:last]))
            start = 0
            for rows in lists[first:last]:
                stop = start + len(rows)
                yield ids[start:stop], vectors[start:stop]
                start = stop
            first = last

    def _ruler(self, queries: Vectors) -> Ruler | None:
        """None for an approximate index, of which nothing is known."""
        stock, errors = self.stock, self.stock.errors
        if not stock.is_exact:
            return None
        if self.gpu is None or (stock.is_flat and not self.gpu.is_half):
            return Ruler(stock.spec, errors, queries)
        if stock.is_flat:
            errors = errors.in_half_precision(stock.spec.dim)
        return Ruler(stock.spec, errors, queries, rounding=2.0**-10)  # a GPU rounds queries as it stores vectors

    def _read(self, rows: Rows) -> tuple[Ids, Vectors]:
        return self.stock.book.ids[rows], self.stock.vectors(rows, self.source)

    def _mask(self) -> Mask:
        if self.mask is not None:
            return self.mask
        mask = np.zeros(len(self.stock.book), np.bool_)
        mask[self.rows] = True
        return mask

    def _way(self, n_queries: int) -> Way:
        """Search all rows and drop the forbidden ones, gather the allowed rows, or mask inside FAISS.

        The shares are about where the measured times cross (`benchmarks/search.py --ways`). FAISS's mask costs it the
        prefetching, and the matrix products that are everything for batches; on half precision it has none.
        """
        share = self.size / len(self.stock.book)
        if not self.stock.is_exact:
            return "all" if share > 0.9 else "gather" if self.size <= _FEW else "mask"
        if self.gpu is not None and share > 0.1:
            return "all"
        if n_queries >= (8 if self.stock.is_flat else 24):
            return "gather" if share < 0.6 or not self.stock.is_flat else "all"
        return "all" if share > (0.35 if self.stock.is_flat else 0.2) else "mask"

    def _ask_index(self, queries: Vectors, n: int, *, way: Way, growth: float = 1.0) -> tuple[Rows, Any]:
        """Rows from near to far (q, n), −1 where there is none, and FAISS's numbers for them.

        Where a filter forbids most rows, or not enough were found before, an approximate index looks into more lists,
        so that about as many allowed rows are compared.
        """
        stock = self.stock
        total = len(stock.book)
        if way == "all" and self.rows is not None:
            n = min(total, round(n * total / self.size) + 8)
        if way == "all" and self.gpu is not None and n <= GPU_MAX_K and (growth <= 1 or stock.is_exact):
            distances, rows = self.gpu.search(queries, n)
            return rows, distances
        selector, _bits = row_selector(self._mask()) if way == "mask" else (None, None)
        growth *= total / self.size
        with Tuned(len(queries)):
            distances, rows = searched(
                stock.index, queries, n, params=stock.parameters(selector, growth=1.0 if stock.is_exact else growth)
            )
        return rows, distances

    def _gather(self, queries: Vectors, n: int) -> tuple[Rows, Any]:
        """The same out of the allowed rows alone, compared block by block."""
        stock = self.stock
        metric = faiss_metric(stock.spec, "Flat")
        parts = []
        with Tuned(len(queries)):
            for start in range(0, self.size, _BLOCK):
                stop = min(start + _BLOCK, self.size)
                block = np.arange(start, stop) if self.rows is None else self.rows[start:stop]
                vectors = stock.indexed(block, self.source)
                distances, places = faiss.knn(queries, vectors, min(n, len(block)), metric=metric)
                parts.append((distances, np.where(places < 0, -1, block[places])))
        distances, rows = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        order = np.argsort(-distances if stock.is_product else distances, axis=1)[:, :n]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)


def row_selector(mask: Any) -> tuple[Any, Any]:
    """FAISS's selector of the rows where the mask holds, and the bits it points to, which have to outlive it."""
    bits = np.packbits(mask, bitorder="little")
    return faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits)), bits
