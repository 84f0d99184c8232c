"""FAISS's settings for the length of one call: they belong to the thread or to the whole process, and are put back."""

from __future__ import annotations

from typing import Any

import faiss as typed_faiss

from ...forking import ForkSafeLock

faiss: Any = typed_faiss

__all__ = ["Tuned"]

_blas_lock = ForkSafeLock()


class Tuned:
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
            _blas_lock.__enter__()
            self.threshold = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = 1

    def __exit__(self, *_: object) -> None:
        if self.is_single:
            faiss.omp_set_num_threads(self.threads)
        elif self.is_batch:
            faiss.cvar.distance_compute_blas_threshold = self.threshold
            _blas_lock.__exit__(None, None, None)
