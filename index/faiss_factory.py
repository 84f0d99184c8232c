"""Which FAISS index a gallery gets, how it is trained, and how many candidates it is measured to find.

Exact indexes as long as they are quick enough: `Flat` (float32), then `SQfp16` (half the memory, over twice the speed).
Beyond a million vectors an inverted file whose `nprobe` is not guessed but measured on the gallery's own vectors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import faiss as typed_faiss
import numpy as np

from ..errors import InputError
from .faiss_numpy import searched
from .reports import counted
from .search import SearchSpec, Vectors, first_fetch

faiss: Any = typed_faiss  # its type stubs do not know the keyword arguments of its Python layer

__all__ = [
    "Calibration",
    "calibrate",
    "choose_factory",
    "faiss_metric",
    "inner_index",
    "is_exact",
    "new_index",
    "search_parameters",
    "to_gpu",
    "train",
    "training_size",
]

FLAT_UP_TO = 200_000
HALF_UP_TO = 1_000_000
RECALL_TARGET = 0.99
GPU_SCRATCH_BYTES = 256 * 2**20
_TRAINING_PER_LIST = 64
_CALIBRATION_QUERIES = 200


def choose_factory(spec: SearchSpec, count: int) -> str:
    """The FAISS factory string that "auto" means for `count` vectors.

    >>> [choose_factory(SearchSpec(512, "cosine"), n) for n in (1_000, 500_000, 4_000_000)]
    ['Flat', 'SQfp16', 'IVF8192,SQfp16']
    """
    if count <= (HALF_UP_TO if spec.metric == "l1" else FLAT_UP_TO):  # FAISS has no L1 on half-precision vectors
        return "Flat"
    if count <= HALF_UP_TO:
        return "SQfp16"
    return f"IVF{2 ** round(np.log2(4 * np.sqrt(count)))},SQfp16"


def faiss_metric(spec: SearchSpec, factory: str) -> int:
    """FAISS's name for how candidates are found; L2 stands in for L1 where FAISS lacks it (or would abort)."""
    if spec.metric in ("cosine", "dot"):
        return int(faiss.METRIC_INNER_PRODUCT)
    if spec.metric == "l1" and re.fullmatch(r"Flat|HNSW\d*(,Flat)?", factory):
        return int(faiss.METRIC_L1)
    return int(faiss.METRIC_L2)


def new_index(spec: SearchSpec, factory: str) -> Any:
    """An empty index.

    Raises:
        InputError: FAISS does not know the factory string, or it wraps ids or re-ranking, which distcam does itself.
    """
    if re.search(r"IDMap|Refine|RFlat", factory):
        raise InputError(
            f"FAISS factory {factory!r}: leave out IDMap and Refine, ids and exact re-scoring are built in"
        )
    try:
        index = faiss.index_factory(spec.dim, factory, faiss_metric(spec, factory))
    except RuntimeError as error:
        reason = str(error).split("Error: ")[-1]
        raise InputError(
            f"FAISS cannot make index {factory!r} for {spec.dim} dimensions ({reason}); "
            "expected auto, flat, or a factory string such as HNSW32 or IVF1024,SQ8"
        ) from error
    return index


def inner_index(index: Any) -> Any:
    """The index under its vector transforms (PCA, OPQ)."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def is_exact(index: Any) -> bool:
    """Every vector is compared, and stored so finely that a bound on its error is of use."""
    if isinstance(index, faiss.IndexScalarQuantizer):
        return bool(index.sq.qtype == faiss.ScalarQuantizer.QT_fp16)
    return isinstance(index, faiss.IndexFlat)


def train(index: Any, vectors: Vectors) -> None:
    """Learns centroids and codes from a sample; the same sample gives the same index."""
    if index.is_trained:
        return
    inner = inner_index(index)
    if isinstance(inner, faiss.IndexIVF):
        if len(vectors) < inner.nlist:
            raise InputError(
                f"an inverted file of {counted(inner.nlist, 'list')} needs at least as many vectors, "
                f"got {len(vectors)}; use flat"
            )
        inner.cp.min_points_per_centroid = 1  # FAISS would only print a warning
    if hasattr(inner, "pq"):
        inner.pq.cp.min_points_per_centroid = 1
    try:
        index.train(vectors)
    except RuntimeError as error:
        raise InputError(
            f"FAISS cannot train this index on {counted(len(vectors), 'vector')} "
            f"({str(error).split('Error: ')[-1]}); use flat"
        ) from error


def training_size(index: Any, count: int) -> int:
    """How many of `count` vectors to train on."""
    lists = int(getattr(inner_index(index), "nlist", 0))
    return min(count, max(_TRAINING_PER_LIST * lists, 65_536))


def search_parameters(index: Any, *, effort: int | None = None, selector: Any = None) -> Any:
    """FAISS's parameters for one call: `effort` is nprobe or efSearch, the selector says which rows may be returned."""
    inner = inner_index(index)
    parameters: Any
    if isinstance(inner, faiss.IndexIVF):
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=effort or inner.nprobe)
    elif isinstance(inner, faiss.IndexHNSW):
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=effort or inner.hnsw.efSearch)
    elif selector is None:
        return None
    else:
        parameters = faiss.SearchParameters(sel=selector)
    return parameters if inner is index else faiss.SearchParametersPreTransform(index_params=parameters)


@dataclass(frozen=True)
class Calibration:
    """How well an approximate index finds what the exact one finds.

    Attributes:
        effort: nprobe (inverted file) or efSearch (HNSW) to search with; None where there is no such knob.
        recall_at_10: share of the true ten neighbours that are left after exact re-scoring, in [0, 1].
        queries: number of stored vectors it was measured on, each without itself.
    """

    effort: int | None
    recall_at_10: float
    queries: int


def calibrate(index: Any, exact: Any, *, seed: int = 0) -> Calibration:
    """The least effort that finds 99 % of the true neighbours, with what was measured.

    Where no effort reaches that, it is the least that is half a per cent short of the best. Both indexes hold the same
    vectors in the same rows.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(exact.ntotal)[:_CALIBRATION_QUERIES])
    k = min(10, exact.ntotal - 1)
    if k < 1:
        return Calibration(None, 1.0, 0)
    queries = exact.reconstruct_batch(rows)
    _, found = exact.search(queries, k + 1)
    truth = np.sort(_distances(queries, exact, _without(found, rows)), axis=1)[:, k - 1 : k]
    radius = truth + 1e-5 * np.abs(truth) + 1e-12  # of the k-th neighbour: copies of it count as found
    measured = []
    for effort in _efforts(inner_index(index)):
        parameters = search_parameters(index, effort=effort)
        _, found = searched(index, queries, min(first_fetch(k), exact.ntotal), params=parameters)
        near = (_distances(queries, exact, _without(found, rows)) <= radius).sum(axis=1)
        measured.append(Calibration(effort, float(np.minimum(near, k).mean() / k), len(rows)))
        if measured[-1].recall_at_10 >= RECALL_TARGET:
            return measured[-1]
    enough = max(calibration.recall_at_10 for calibration in measured) - 0.005
    return next(calibration for calibration in measured if calibration.recall_at_10 >= enough)


def _without(found: Any, rows: Any) -> Any:
    """Found rows, −1 where a vector found itself."""
    return np.where(found == rows[:, None], -1, found)


def _efforts(inner: Any) -> list[int | None]:
    """The knob's settings, rising."""
    if isinstance(inner, faiss.IndexIVF):
        return [2**power for power in range(int(np.log2(inner.nlist)))] + [int(inner.nlist)]
    if isinstance(inner, faiss.IndexHNSW):
        return [64, 128, 256, 512]
    return [None]


def _distances(queries: Vectors, exact: Any, rows: Any) -> Any:
    """FAISS's own kind of distance of each query from its rows, smaller is nearer, inf for row −1."""
    distances = np.full(rows.shape, np.inf)
    for query, found, row in zip(queries, rows, distances, strict=True):
        vectors = exact.reconstruct_batch(found[found >= 0])
        if exact.metric_type == faiss.METRIC_INNER_PRODUCT:
            row[found >= 0] = -(vectors * query).sum(axis=1)
        elif exact.metric_type == faiss.METRIC_L1:
            row[found >= 0] = np.abs(vectors - query).sum(axis=1)
        else:
            row[found >= 0] = np.square(vectors - query).sum(axis=1)
    return distances


def to_gpu(index: Any) -> tuple[Any, Any] | None:
    """(resources, copy on the first GPU), or None where FAISS has no GPU kind of this index or the memory is short.

    Scratch memory is bounded: FAISS alone would take 1.5 GB before the first vector. The resources have to outlive the
    copy.
    """
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(GPU_SCRATCH_BYTES)
    try:
        return resources, faiss.index_cpu_to_gpu(resources, 0, index)
    except RuntimeError:
        return None
