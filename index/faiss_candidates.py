"""Candidates out of a FAISS index, and how near a vector that is not among them may be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import faiss
import numpy as np

from .faiss_errors import Errors, Ruler
from .faiss_factory import Calibration, faiss_metric, is_exact, search_parameters
from .faiss_numpy import reconstructed, searched
from .faiss_rows import RowBook, Rows
from .search import UNKNOWN_FLOOR, Ids, Proposal, SearchSpec, Vectors, VectorSource, comparable

__all__ = ["GPU_MAX_K", "Candidates", "Stock", "row_selector"]

GPU_MAX_K = 2048
_BLOCK = 2048  # gathered rows that are compared at once: they stay in the processor's cache
_FEW = 4096  # allowed rows for which an approximate index is not asked

Way: TypeAlias = Literal["all", "gather", "mask"]


class Stock:
    """An index with its row book, and where the true vectors are read."""

    def __init__(
        self,
        spec: SearchSpec,
        index: Any,
        *,
        book: RowBook | None = None,
        errors: Errors | None = None,
        calibration: Calibration | None = None,
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

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Stores comparable vectors in new rows."""
        start = len(self.book)
        self._view = None  # FAISS moves its memory as it grows
        self.index.add(vectors)
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

    def parameters(self, selector: Any = None) -> Any:
        """FAISS's parameters for one search on the CPU; None for its defaults."""
        if selector is None and self.calibration is None:
            return None
        effort = self.calibration.effort if self.calibration else None
        return search_parameters(self.index, effort=effort, selector=selector)


@dataclass(frozen=True)
class Candidates:
    """The `Engine` of one search: a stock, and the rows that may be returned (None: all).

    `gpu` is the index's copy on a GPU, or None.
    """

    stock: Stock
    source: VectorSource
    rows: Rows | None = None
    gpu: Any = None

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
        """Of the first n candidates for each query, those that may be among its k nearest as far as FAISS can tell."""
        stock = self.stock
        if not stock.is_native:
            n *= 4  # neighbours by a stand-in metric; the true ten were always among the first fifty
        if n >= self.size:
            everything = Proposal(*self._read(np.arange(self.size) if self.rows is None else self.rows), np.inf)
            yield from (everything for _ in range(len(queries)))
            return
        way = self._way(len(queries))
        found, distances = self._gather(queries, n) if way == "gather" else self._ask_index(queries, n, way=way)
        keep = self._mask() if way == "all" and self.rows is not None else None
        ruler = self._ruler(queries)
        for rows, numbers in zip(found, distances, strict=True):
            floor = ruler.floor(float(numbers[-1])) if ruler else UNKNOWN_FLOOR
            if keep is not None or rows[-1] < 0:
                wanted = rows >= 0 if keep is None else (rows >= 0) & keep[rows]
                rows, numbers = rows[wanted], numbers[wanted]
            if ruler and len(rows) > k:
                cut = ruler.cut(float(numbers[k - 1]))
                rows = rows[: np.count_nonzero(numbers >= cut if stock.is_product else numbers <= cut)]
            yield Proposal(*self._read(rows), floor)

    def _ruler(self, queries: Vectors) -> Ruler | None:
        """None for an approximate index, of which nothing is known."""
        stock = self.stock
        if not stock.is_exact:
            return None
        is_rounded = self.gpu is not None and not stock.is_flat  # a GPU rounds queries as it stores vectors
        return Ruler(stock.spec, stock.errors, queries, rounding=2.0**-10 if is_rounded else 0.0)

    def _read(self, rows: Rows) -> tuple[Ids, Vectors]:
        return self.stock.book.ids[rows], self.stock.vectors(rows, self.source)

    def _mask(self) -> Any:
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
            return "all" if self.rows is None else "gather" if self.size <= _FEW else "mask"
        if self.gpu is not None and share > 0.1:
            return "all"
        if n_queries >= (8 if self.stock.is_flat else 24):
            return "gather" if share < 0.6 or not self.stock.is_flat else "all"
        return "all" if share > (0.35 if self.stock.is_flat else 0.2) else "mask"

    def _ask_index(self, queries: Vectors, n: int, *, way: Way) -> tuple[Rows, Any]:
        """Rows from near to far (q, n), −1 where there is none, and FAISS's numbers for them."""
        stock = self.stock
        total = len(stock.book)
        if way == "all" and self.rows is not None:
            n = min(total, round(n * total / self.size) + 8)
        if way == "all" and self.gpu is not None and n <= GPU_MAX_K:
            distances, rows = self.gpu.search(queries, n)
            return rows, distances
        selector, _bits = row_selector(self._mask()) if way == "mask" else (None, None)
        with _Tuned(len(queries)):
            distances, rows = searched(stock.index, queries, n, params=stock.parameters(selector))
        return rows, distances

    def _gather(self, queries: Vectors, n: int) -> tuple[Rows, Any]:
        """The same out of the allowed rows alone, compared block by block."""
        stock = self.stock
        metric = faiss_metric(stock.spec, "Flat")
        parts = []
        with _Tuned(len(queries)):
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


_blas_lock = threading.Lock()


class _Tuned:
    """FAISS's thread count and its switch to matrix products, as they are best for so many queries, for a while.

    One query: one thread, since FAISS splits work by query and idle threads only get in the way; this setting is the
    calling thread's own. A batch: matrix products from 4 queries per thread, long before FAISS's default of
    128,000 / d; that setting is the process's, so it is held under a lock and put back.
    """

    def __init__(self, n_queries: int) -> None:
        self.threads = faiss.omp_get_max_threads()
        self.is_single = n_queries == 1 and self.threads > 1
        self.is_batch = n_queries >= 4 * self.threads

    def __enter__(self) -> None:
        if self.is_single:
            faiss.omp_set_num_threads(1)
        elif self.is_batch:
            _blas_lock.acquire()
            self.threshold = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = 1

    def __exit__(self, *_: object) -> None:
        if self.is_single:
            faiss.omp_set_num_threads(self.threads)
        elif self.is_batch:
            faiss.cvar.distance_compute_blas_threshold = self.threshold
            _blas_lock.release()
