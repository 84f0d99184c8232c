"""A copy of a FAISS index on one GPU or several, asked for candidates only: order and distances come from elsewhere.

FAISS takes 1.5 GB of scratch memory unless told otherwise, `k` and `nprobe` up to 2048, one thread at a time for each
set of resources; it does not shard half-precision flat vectors, nor filter there. Products in TF32 are found by trial.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...forking import ForkSafeLock
from .factory import index_bytes, inner_index
from .index_store import HALF_MAX, IndexStore
from .runtime import reconstructed, searched, why_no_gpu

faiss: Any = typed_faiss

GPU_MAX_K = 2048
SCRATCH_BYTES = 256 * 2**20
_GPU_FROM = 10_000  # vectors; fewer are answered before a GPU starts
_SPARE = 1.1  # FAISS rounds allocations up, and queries need room
_ADD_BLOCK = 65_536


class Placement(NamedTuple):
    """The devices of a copy, in parts or whole on each; flat vectors in half precision or as they are."""

    devices: tuple[int, ...]
    is_sharded: bool
    is_half: bool


class GpuIndex:
    """An index on GPUs; any thread may search it, one after the other. `is_half`: its products have ten bits."""

    def __init__(self, index: Any, *, resources: Sequence[Any] = (), is_half: bool = False) -> None:
        self.is_half = is_half
        self._index = index
        self._resources = resources  # have to outlive the index
        self._lock = threading.Lock()

    def search(self, queries: NDArray[np.float32], n: int) -> tuple[Any, Any]:
        """FAISS's numbers and rows, (q, n) each; n is at most `GPU_MAX_K`."""
        with self._lock:
            return searched(self._index, queries, n)


class GpuCopy:
    """The copy of an index on the GPUs that were asked for: made on first use, and again after a change."""

    def __init__(self, device: str) -> None:
        self._device = check_device(device) if device != "auto" or faiss.get_num_gpus() else "cpu"
        self._index: GpuIndex | None = None
        self._lock = ForkSafeLock()
        self._process = os.getpid()

    @property
    def used(self) -> str:
        """`"cpu"`, or the GPU that was asked for and used."""
        return "cpu" if self._index is None else "cuda" if self._device == "auto" else self._device

    def drop(self) -> None:
        """Forget the copy: the index has changed."""
        self._index = None

    def of(self, store: IndexStore, *, factory: str) -> GpuIndex | None:
        """The copy; None where the CPU answers."""
        if self._device == "cpu" or (self._device == "auto" and len(store.id_map) < _GPU_FROM):
            return None
        if os.getpid() != self._process:  # what a GPU holds does not come along into a forked process
            if self._device != "auto":
                raise InputError(
                    f"this process was forked after its parent had searched on {self._device}, which it cannot use; "
                    'start it with multiprocessing.get_context("spawn"), or search on the CPU'
                )
            return None
        with self._lock:
            if self._index is None:
                self._index = copy_to_gpus(store.index, device=self._device, radius=store.precision.radius)
            if self._index is None and self._device != "auto":
                raise InputError(
                    f"FAISS cannot hold {factory!r} on {self._device}: too little memory, or no such index "
                    "on GPUs; use device auto, or another index"
                )
            if self._index is None:
                self._device = "cpu"
            return self._index


def check_device(device: str) -> str:
    """The name of a device as it was given."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+|:all)?", device):
        raise InputError(f"expected device auto, cpu, cuda, cuda:N or cuda:all, got {device!r}")
    if device.startswith("cuda"):
        count = faiss.get_num_gpus()
        if not count:
            raise InputError(f"device {device} was asked for, but FAISS sees no GPU; use auto or cpu ({why_no_gpu()})")
        number = device.partition(":")[2]
        if number.isdigit() and int(number) >= count:
            raise InputError(f"device {device} was asked for, but FAISS sees {count}, cuda:0 to cuda:{count - 1}")
    return device


def gpus_of(device: str) -> tuple[int, ...]:
    """The GPUs that may be used: all of them for "auto", of which one is enough when the index fits."""
    count = faiss.get_num_gpus()
    if device == "cpu" or not count:
        return ()
    number = device.partition(":")[2]
    if number.isdigit():
        return (int(number),)
    return (0,) if device == "cuda" else tuple(range(count))


def plan_copy(index: Any, *, device: str, free: Callable[[int], int], radius: float) -> Placement | None:
    """The placement of an index, by free memory; None where there is not enough, or FAISS has no such kind.

    "auto" takes the first GPU that holds all of it, "cuda:all" every one; where none does, all share out the vectors.
    Flat vectors are halved only where they do not fit, and no number overflows (`radius` is the largest length).
    """
    inner, devices = inner_index(index), gpus_of(device)
    is_flat = isinstance(inner, faiss.IndexFlat)
    is_half_flat = isinstance(inner, faiss.IndexScalarQuantizer) and inner.sq.qtype == faiss.ScalarQuantizer.QT_fp16
    lists = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)
    if not devices or not (is_flat or is_half_flat or (isinstance(inner, lists) and inner.nprobe <= GPU_MAX_K)):
        return None
    room = {number: (free(number) - SCRATCH_BYTES) / _SPARE for number in devices}
    count = int(index.ntotal)  # row numbers take 4 bytes there, and flat vectors bring their squared lengths along
    if isinstance(inner, faiss.IndexIVF):
        size = count * (int(inner.code_size) + 4) + 8 * int(inner.nlist) * int(inner.d)
    else:
        size = index_bytes(index, count) + 4 * count
    for is_half in (False, True) if is_flat and radius <= HALF_MAX else (False,):
        need = size // (2 if is_half else 1)
        fitting = [number for number in devices if room[number] >= need]
        if fitting and (device != "cuda:all" or fitting == list(devices)):
            return Placement(tuple(fitting) if device == "cuda:all" else (fitting[0],), False, is_half)
        if len(devices) > 1 and inner is index and min(room.values()) * len(devices) >= need:
            return Placement(devices, True, is_half)
    return None


def copy_to_gpus(index: Any, *, device: str, radius: float) -> GpuIndex | None:
    """The copy that `plan_copy` plans, or None where the CPU has to answer."""
    import torch

    # FAISS's Python layer does not tell how much memory is free, torch does
    plan = plan_copy(index, device=device, free=lambda number: int(torch.cuda.mem_get_info(number)[0]), radius=radius)
    if plan is None:
        return None
    resources = [faiss.StandardGpuResources() for _ in plan.devices]
    for one in resources:
        one.setTempMemory(SCRATCH_BYTES)
    devices = plan.devices
    options = faiss.GpuClonerOptions() if len(devices) == 1 else faiss.GpuMultipleClonerOptions()
    options.useFloat16 = plan.is_half
    options.indicesOptions = faiss.INDICES_32_BIT
    try:
        if len(devices) == 1:
            copy = faiss.index_cpu_to_gpu(resources[0], devices[0], index, options)
        elif plan.is_sharded and isinstance(index, faiss.IndexScalarQuantizer):
            one = faiss.GpuClonerOptions()
            copy = shards_of(
                index, len(devices), lambda part, i: faiss.index_cpu_to_gpu(resources[i], devices[i], part, one)
            )
        else:
            options.shard = plan.is_sharded
            copy = faiss.index_cpu_to_gpu_multiple_py(resources, index, options, list(devices))
    except RuntimeError:  # another process took the memory, or FAISS lacks these numbers of parts or bits
        return None
    is_half = plan.is_half or (isinstance(inner_index(index), faiss.IndexFlat) and rounds_products(copy, index))
    return GpuIndex(copy, resources=resources, is_half=is_half)


def rounds_products(copy: Any, index: Any) -> bool:
    """True if a copy multiplies with ten bits, as TF32 does: a vector of one number, 1 + 2⁻¹², then loses the 2⁻¹²."""
    stored = reconstructed(index, 0, min(64, int(index.ntotal))).astype(np.float64)
    lengths = np.linalg.norm(stored, axis=1)
    lengths = 2.0 ** np.round(np.log2(lengths, where=lengths > 0, out=np.zeros_like(lengths)))
    queries = np.zeros_like(stored)
    np.put_along_axis(queries, np.abs(stored).argmax(1)[:, None], (lengths * (1 + 2.0**-12))[:, None], axis=1)
    found, rows = searched(copy, queries.astype(np.float32), 1)
    nearest = np.stack([reconstructed(index, int(row), 1)[0] for row in rows[:, 0]]).astype(np.float64)
    exact = products = (queries * nearest).sum(1)
    slack = 2.0**-15 * np.abs(products)
    if index.metric_type == faiss.METRIC_L2:
        exact = ((queries - nearest) ** 2).sum(1)
        slack = slack + 2.0**-20 * (lengths + np.linalg.norm(nearest, axis=1)) ** 2
    elif index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return False
    return bool((np.abs(found[:, 0] - exact) > slack).any())


def shards_of(index: Any, count: int, place: Callable[[Any, int], Any]) -> Any:
    """A half-precision index in `count` parts, each put somewhere by `place(part, number)`; rows keep their numbers."""
    shards = faiss.IndexShards(index.d, True, True)  # threaded; rows of a part follow those of the one before
    cuts = np.linspace(0, index.ntotal, count + 1).astype(int).tolist()
    for number, (start, stop) in enumerate(pairwise(cuts)):
        part = faiss.IndexScalarQuantizer(index.d, index.sq.qtype, index.metric_type)
        for at in range(start, stop, _ADD_BLOCK):
            part.add(reconstructed(index, at, min(_ADD_BLOCK, stop - at)))  # halves stay what they are
        shards.add_shard(place(part, number))  # which holds on to the part
    return shards
