"""The FAISS that is installed: its distribution, its methods on NumPy arrays, its settings for one call, its machine.

`faiss-cpu` and `faiss-gpu` write the same files, and pip lets both in without a word: so it is said here.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...forking import ForkSafeLock
from ...remarks import counted, remark

if TYPE_CHECKING:  # `distcam env` and errors ask about FAISS where it cannot be imported
    import numpy as np
    from numpy.typing import NDArray

_NAME = re.compile(r"faiss(-(cpu|gpu)[\w.-]*)?")
_FOR_GPU = "pip install faiss-gpu (Linux on x86-64)"
_blas_lock = ForkSafeLock()


def installed() -> dict[str, str]:
    """The distributions of FAISS by name, each with its version; more than one is a fault."""
    found = ((one.metadata["Name"] or "", one.version) for one in distributions())
    return {name: version for name, version in sorted(found) if _NAME.fullmatch(name)}


def describe() -> str:
    """The distributions with their versions, as in "faiss-cpu 1.15.1"."""
    return " and ".join(f"{name} {version}" for name, version in installed().items()) or "a FAISS not from pip"


def fault() -> str | None:
    """The fault of the installed FAISS and its remedy: two in one place, none, or one without files; else None."""
    names = installed()
    if len(names) > 1:
        remove = f"pip uninstall -y {' '.join(names)}"
        return (
            f"{describe()} are both installed and overwrite each other's files; keep one: {remove}, "
            f"then pip install faiss-cpu, or for a GPU {_FOR_GPU}"
        )
    spec = find_spec("faiss")
    if spec is not None and spec.origin is not None:
        return None
    if not names:
        return f"FAISS is not installed: pip install faiss-cpu, or for a GPU {_FOR_GPU}"
    return (
        f"the files of {describe()} are gone, as after removing another FAISS beside it: "
        f"pip install --force-reinstall --no-deps {next(iter(names))}"
    )


def fault_behind(error: ImportError | AttributeError) -> str | None:
    """The fault of the installed FAISS behind an error that misses it or something in it; None for any other error."""
    about = error.name if isinstance(error, ImportError) else getattr(error.obj, "__name__", None)
    return fault() if str(about).partition(".")[0] == "faiss" else None


def why_no_gpu() -> str:
    """Why FAISS sees no GPU, and what would help."""
    if (wrong := fault()) is not None:
        return wrong
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        remove = f"pip uninstall -y {' '.join(installed())}".rstrip()
        return f"{describe()} is made for the CPU alone; for a GPU: {remove}, then {_FOR_GPU}"
    return f"{describe()} could use one, and CUDA shows it none"


def note_search_on_cpu(device: str) -> None:
    """Remark that searches run on the CPU though `device` asks for a GPU, or "auto" lost one to a second FAISS."""
    import torch

    is_asked = device.startswith("cuda")
    if not (is_asked or (device == "auto" and torch.cuda.is_available())):
        return
    import faiss

    if not faiss.get_num_gpus() and (is_asked or len(installed()) > 1):
        remark(f"searches run on the CPU, FAISS sees no GPU: {why_no_gpu()}", stacklevel=4)


def searched(
    index: Any, queries: NDArray[np.float32], k: int, *, params: Any = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`index.search` of FAISS itself, also where `faiss.contrib.torch_utils` replaced it: numbers and rows, (q, k)."""
    distances, rows = getattr(index, "search_numpy", index.search)(queries, k, params=params)
    return distances, rows


def reconstructed(index: Any, start: int, count: int) -> NDArray[np.float32]:
    """`index.reconstruct_n`: what the index made of `count` vectors from row `start` on, (count, d)."""
    vectors: NDArray[np.float32] = getattr(index, "reconstruct_n_numpy", index.reconstruct_n)(start, count)
    return vectors


@contextmanager
def threads_for(n_queries: int) -> Iterator[None]:
    """FAISS's threads and matrix products as they are best for so many queries: one thread for one, products for many.

    Threads are the calling thread's own setting; the other is the process's, held under a lock and put back.
    """
    import faiss

    threads = faiss.omp_get_max_threads()
    if n_queries == 1 and threads > 1:
        faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(threads)
    elif n_queries >= 4 * threads:
        with _blas_lock:
            threshold = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = 1
            try:
                yield
            finally:
                faiss.cvar.distance_compute_blas_threshold = threshold
    else:
        yield


def machine() -> str:
    """Processor and cores."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists() and (
        found := re.search(r"^model name\s*:(.*)", information.read_text("utf-8", "replace"), re.M)
    ):
        name = found[1].strip()
    return f"{name}, {counted(os.cpu_count() or 1, 'core')}"
