"""An index as bytes and back: a header, ids, live bits, and FAISS's own format.

FAISS's reader is not made for hostile bytes. The gallery authenticates them first; here the sizes they claim are
bounded by their length, and what was read is checked against the header. Whatever is wrong ends in CorruptGalleryError,
after which the index is rebuilt from the stored vectors.

Nothing is copied: writing goes to a file block by block, and an index that is read looks into the bytes it is given,
which may be a file mapped into memory. Only codes and lists, the bulk, stay there; centroids and headers are copied.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, BinaryIO, TypeAlias

import faiss as typed_faiss
import numpy as np

from ...errors import CorruptGalleryError
from ...forking import ForkSafeLock
from ...remarks import counted
from ..search import SearchSpec
from .factory import faiss_metric, inner_index
from .index_store import IdMap, IndexStore, Precision, SearchSettings

faiss: Any = typed_faiss

Buffer: TypeAlias = bytes | mmap.mmap

_MAGIC = b"distcam faiss 1\n"
_LENGTH = struct.Struct("<Q")
_HEADER_MAX = 65_536
_PQ_TABLES_MAX = 2**31  # FAISS computes such tables on reading, up to this size
_limits_lock = ForkSafeLock()


def write(store: IndexStore, file: BinaryIO, *, factory: str) -> None:
    """All of a store, without the raw vectors, into a file."""
    header = {
        "dim": store.spec.dim,
        "metric": store.spec.metric,
        "factory": factory,
        "rows": len(store.id_map),
        "errors": asdict(store.precision),
        "calibration": asdict(store.settings) if store.settings else None,
    }
    text = json.dumps(header).encode()
    file.write(_MAGIC + _LENGTH.pack(len(text)) + text)
    file.write(store.id_map.ids.astype("<u8").tobytes())
    file.write(np.packbits(store.id_map.live).tobytes())
    faiss.write_index(store.index, faiss.PyCallbackIOWriter(file.write))


def unpack(data: Buffer, spec: SearchSpec) -> tuple[IndexStore, str]:
    """The store, which goes on looking into `data`, and its factory string."""
    try:
        return _unpack(data, spec)
    except CorruptGalleryError:
        raise
    except Exception as error:  # FAISS raises RuntimeError and MemoryError, damaged headers nearly anything
        raise _corrupt(f"cannot be read ({type(error).__name__})") from error


def _unpack(data: Buffer, spec: SearchSpec) -> tuple[IndexStore, str]:
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
        precision=Precision(**{name: float(value) for name, value in header["errors"].items()}),
        settings=SearchSettings(**header["calibration"]) if header["calibration"] else None,
        buffer=part,
        own_copy=lambda: _read_index(part, tables=tables, copy=True),
    )
    return store, factory


def _read_index(part: Any, *, tables: int, copy: bool = False) -> Any:
    """FAISS's part; nothing in it may claim to be longer than the bytes there are, save the tables FAISS adds."""
    with _limits(len(part), tables=tables):
        if not copy:
            return faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(part), len(part)))
        return faiss.read_index(faiss.PyCallbackIOReader(_Stream(part).read))


class _Stream:
    """Bytes read one piece after the other, out of memory that is not copied as a whole."""

    def __init__(self, part: Any) -> None:
        self.part, self.place = part, 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        piece: bytes = self.part[self.place : self.place + size].tobytes()
        self.place += len(piece)
        return piece


@contextmanager
def _limits(size: int, *, tables: int) -> Iterator[None]:
    """FAISS's limits for reading, which belong to the process, are tightened and put back."""
    with _limits_lock:
        vector, loop = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(max(size + 1024, tables))
        faiss.set_deserialization_loop_limit(size + 1)
        try:
            yield
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
