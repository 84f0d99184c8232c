"""FAISS's methods on NumPy arrays, whatever else in the process has done to FAISS.

Importing `faiss.contrib.torch_utils`, as pytorch-metric-learning does, replaces methods of every index by others that
take torch tensors too, but no search parameters, and that return tensors where no array says otherwise. The methods as
they were stay under names of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["reconstructed", "searched"]


def searched(
    index: Any, queries: NDArray[np.float32], k: int, *, params: Any = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`index.search`: FAISS's numbers and rows, (q, k) each."""
    distances, rows = getattr(index, "search_numpy", index.search)(queries, k, params=params)
    return distances, rows


def reconstructed(index: Any, start: int, count: int) -> NDArray[np.float32]:
    """`index.reconstruct_n`: what the index made of `count` vectors from row `start` on, (count, d)."""
    vectors: NDArray[np.float32] = getattr(index, "reconstruct_n_numpy", index.reconstruct_n)(start, count)
    return vectors
