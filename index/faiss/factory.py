"""Choice of a gallery's FAISS index, its memory, and its training."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import faiss as typed_faiss
import numpy as np
import numpy.typing as npt

from ...errors import InputError, TooFewVectorsError
from ...metrics.distances import SearchSpec, Vectors
from ...remarks import counted
from ..search import EXACT_UP_TO, Mask
from ..storage.manifest import Tuning
from .runtime import reconstructed

faiss: Any = typed_faiss  # its type stubs do not know the keyword arguments of its Python layer

FLAT_UP_TO = 200_000
_TRAINING_PER_LIST = 64  # or code; FAISS warns below 39
_TRAINING_LEAST = 65_536  # what FAISS's product quantisers take at most
_TABLES_MAX = 2**31  # FAISS computes tables for products of residuals up to this size
# With other numbers FAISS ends the process, or takes hours and all memory; a gallery from a stranger may name any.
_NUMBERS = {
    r"IVF(\d+)": (1, 2**22, "lists"),
    r"HNSW(\d+)": (2, 512, "links of a node"),
    r"NSG(\d+)": (2, 512, "links of a node"),
    r"(?<=\d)x(\d+)(?![\dx])": (1, 16, "bits of a code"),
    r"(?:PCA[WR]*|RR|ITQ|Pad|OPQ\d+_)(\d+)": (1, 2**14, "dimensions"),
    r"[A-Za-z](0+)(?!\d)": (1, 2**14, "parts"),
}


@dataclass(frozen=True)
class SearchSettings:
    """Effort and over-fetch of an approximate index, and the recall of so many queries that was measured with them."""

    effort: int | None  # nprobe or efSearch; None where there is no such knob
    recall_at_10: float
    queries: int
    overfetch: int = 1  # times the usual number of candidates are re-scored; coarse codes need many

    @classmethod
    def of(cls, tuning: Tuning) -> SearchSettings:
        """Those of an index that was tuned."""
        return cls(tuning.effort, tuning.recall_at_10, tuning.queries, tuning.overfetch)


def choose_factory(spec: SearchSpec, count: int) -> str:
    """The FAISS factory string that "auto" means for `count` vectors.

    >>> [choose_factory(SearchSpec(512, "cosine"), n) for n in (1_000, 500_000, 4_000_000)]
    ['Flat', 'SQfp16', 'IVF8192,SQfp16']
    """
    if count <= (EXACT_UP_TO if spec.metric == "l1" else FLAT_UP_TO):  # FAISS has no L1 on half-precision vectors
        return "Flat"
    if count <= EXACT_UP_TO:
        return "SQfp16"
    return f"IVF{list_count(count)},SQfp16"


def list_count(count: int) -> int:
    """Lists of an inverted file over `count` vectors: a power of two near 4√n, as FAISS's authors advise.

    >>> list_count(2_000_000)
    4096
    """
    return int(2 ** round(np.log2(4 * np.sqrt(max(count, 1)))))


def faiss_metric(spec: SearchSpec, factory: str) -> int:
    """FAISS's name for how candidates are found; L2 stands in for L1 where FAISS lacks it (or would abort)."""
    if spec.metric in ("cosine", "dot"):
        return int(faiss.METRIC_INNER_PRODUCT)
    if spec.metric == "l1" and re.fullmatch(r"Flat|HNSW\d*(,Flat)?", factory):
        return int(faiss.METRIC_L1)
    return int(faiss.METRIC_L2)


def new_index(spec: SearchSpec, factory: str) -> Any:
    """An empty index."""
    if re.search(r"IDMap|Refine|RFlat", factory):
        raise InputError(
            f"FAISS factory {factory!r}: leave out IDMap and Refine, ids and exact re-scoring are built in"
        )
    for pattern, (least, most, what) in _NUMBERS.items():
        for found in re.finditer(pattern, factory):
            if len(found[1]) > 9 or not least <= int(found[1]) <= most:
                raise InputError(
                    f"FAISS factory {factory!r}: expected {least} to {most} {what}, got {found[1]} in {found[0]}"
                )
    dim = spec.dim  # products of quantisers need so many equal parts of it; FAISS says so late, or dies
    for part in factory.split(","):
        rotation = re.fullmatch(r"(OPQ)(\d+)(?:_(\d+))?|(?:PCA[WR]*|RR)(\d+)", part)
        if rotation:
            dim = int(rotation[3] or rotation[4] or dim)
        cut = re.match(r"O?PQ(\d+)", part)
        if cut is not None and (not 1 <= (parts := int(cut[1])) <= dim or dim % parts):
            divisors = [m for m in range(1, dim + 1) if dim % m == 0]
            near = [*[m for m in divisors if m < parts][-1:], *[m for m in divisors if m > parts][:1]]
            raise InputError(
                f"FAISS factory {factory!r}: {part} cuts vectors into {parts} equal parts, which does not divide {dim} "
                f"dimensions; use {' or '.join(map(str, near))}"
            )
    try:
        index = faiss.index_factory(spec.dim, factory, faiss_metric(spec, factory))
    except RuntimeError as error:
        reason = str(error).split("Error: ")[-1]
        raise InputError(
            f"FAISS cannot make index {factory!r} for {spec.dim} dimensions ({reason}); "
            "expected auto, flat, or a factory string such as HNSW32 or IVF1024,SQ8"
        ) from error
    inner = inner_index(index)
    for part in (inner, faiss.downcast_index(inner.storage) if isinstance(inner, faiss.IndexHNSW) else inner):
        if hasattr(part, "do_polysemous_training"):
            part.do_polysemous_training = False  # minutes spent on ordering codes for a kind of search not used here
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
            raise TooFewVectorsError(
                f"an inverted file of {counted(inner.nlist, 'list')} needs at least as many vectors, "
                f"got {len(vectors)}; use flat",
                inner.nlist,
            )
        inner.cp.min_points_per_centroid = 1  # FAISS would only print a warning
    if hasattr(inner, "pq"):
        if len(vectors) < inner.pq.ksub:
            raise TooFewVectorsError(
                f"a product quantiser of {inner.pq.nbits} bits learns {inner.pq.ksub} codes from at least as many "
                f"vectors, got {len(vectors)}; use flat, or fewer bits such as PQ{inner.pq.M}x4",
                inner.pq.ksub,
            )
        inner.pq.cp.min_points_per_centroid = 1
        inner.pq.cp.max_points_per_centroid = _TRAINING_PER_LIST  # FAISS's 256 take ten times as long
        inner.pq.cp.niter = 12
    quantisers = []  # have to live until the index is trained
    for number in range(index.chain.size()) if isinstance(index, faiss.IndexPreTransform) else ():
        rotation = faiss.downcast_VectorTransform(index.chain.at(number))
        if isinstance(rotation, faiss.OPQMatrix):  # a fifth of FAISS's rounds on a quarter of its points
            rotation.niter, rotation.max_train_points = 10, _TRAINING_PER_LIST * 256
            rotation.pq = quantiser = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)
            quantiser.cp.min_points_per_centroid = 1
            quantisers.append(quantiser)
    try:
        index.train(vectors)
    except RuntimeError as error:
        raise TooFewVectorsError(
            f"FAISS cannot train this index on {counted(len(vectors), 'vector')} "
            f"({str(error).split('Error: ')[-1]}); use flat",
            2 * len(vectors) + 1,
        ) from error
    del quantisers


class Coarse(NamedTuple):
    """The lists of an inverted file, which indexes share: their centroids (l, d), and the list of each row (n,)."""

    centroids: Vectors
    assignment: npt.NDArray[np.int64]


def coarse_of(index: Any) -> Coarse | None:
    """The lists of an index; None when it has none, or rotates vectors before it sorts them into lists."""
    if not isinstance(index, faiss.IndexIVF) or not isinstance(index.quantizer, faiss.IndexFlat):
        return None
    assignment = np.empty(index.ntotal, np.int64)
    for number in range(index.nlist):
        if size := index.invlists.list_size(number):
            assignment[faiss.rev_swig_ptr(index.invlists.get_ids(number), size)] = number
    return Coarse(reconstructed(index.quantizer, 0, index.nlist), assignment)


def training_size(index: Any, count: int) -> int:
    """Number of vectors to train on, out of `count`: enough for every list, and for every code."""
    lists = int(getattr(inner_index(index), "nlist", 0))
    return min(count, max(_TRAINING_PER_LIST * lists, _TRAINING_LEAST))


def index_bytes(index: Any, count: int) -> int:
    """Memory of an index, trained or not, over `count` vectors: codes, row numbers, centroids, links and tables."""
    inner = inner_index(index)
    if isinstance(inner, faiss.IndexHNSW):
        links = 4 * int(inner.hnsw.nb_neighbors(0)) + 20  # above the ground floor there are few
        return count * (int(faiss.downcast_index(inner.storage).code_size) + links)
    total = count * int(getattr(inner, "code_size", None) or inner.sa_code_size())
    if hasattr(inner, "pq"):
        total += 4 * int(inner.pq.ksub) * int(inner.d)
    if isinstance(inner, faiss.IndexIVF):
        total += count * 8 + 4 * int(inner.nlist) * int(inner.d)
        if isinstance(inner, faiss.IndexIVFPQ) and inner.by_residual and inner.metric_type == faiss.METRIC_L2:
            tables = 4 * int(inner.nlist) * int(inner.pq.M) * int(inner.pq.ksub)
            total += tables if tables <= _TABLES_MAX else 0
    return total


def is_coarse(index: Any) -> bool:
    """Codes of less than a byte for each dimension: their order is rough, and many have to be re-scored."""
    inner = inner_index(index)
    if isinstance(inner, faiss.IndexHNSW):
        inner = faiss.downcast_index(inner.storage)
    size = int(getattr(inner, "code_size", None) or inner.sa_code_size())
    return bool(size < index.d or inner.d < index.d)


def efforts_of(index: Any) -> list[int | None]:
    """The settings of its knob, nprobe or efSearch, rising; [None] where it has none."""
    inner = inner_index(index)
    if isinstance(inner, faiss.IndexIVF):
        return [2**power for power in range(int(np.log2(inner.nlist)))] + [int(inner.nlist)]
    if isinstance(inner, faiss.IndexHNSW):
        return [64, 128, 256, 512]
    return [None]


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


def row_selector(mask: Mask) -> tuple[Any, Any]:
    """FAISS's selector of the rows where the mask holds, and the bits it points to, which have to outlive it."""
    bits = np.packbits(mask, bitorder="little")
    return faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits)), bits


@contextmanager
def refusals_of(factory: str) -> Iterator[None]:
    """FAISS's refusal of an index of this kind as an InputError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("Error: ")[-1]
        raise InputError(
            f"FAISS index {factory!r} cannot be filled or filtered ({reason}); use auto, flat, HNSW or IVF"
        ) from error
