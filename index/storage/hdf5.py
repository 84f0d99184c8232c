"""Flat HDF5 files: contiguous, uncompressed, little-endian datasets at the top level and nothing else.

HDF5 can name other files and unfold to any size: reading checks the headers, and reads bytes at the offsets found.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptGalleryError, TooManyFilesError
from .descriptors import OpenFile

MAX_DATASETS = 4096
_ENDS = 24  # bytes by which strings are told apart before they are decoded
_ONE_READ = 8192  # bytes that are copied in the time that one more read takes
_SPAN_MOST = 64 << 20  # bytes that are read for rows that lie scattered among them
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DTYPES = {np.dtype(code) for code in ("<f2", "<f4", "<f8", "<i4", "<i8", "<u8", "|u1")}

Array = NDArray[Any]


class ArrayLayout(NamedTuple):
    """The type of a dataset, as numpy spells it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@contextmanager
def create(path: Path, layouts: Mapping[str, ArrayLayout]) -> Iterator[dict[str, Any]]:
    """A new flat file with datasets of known size, to be filled inside the `with` block, in any order and in pieces."""
    with path.open("w+b", buffering=0) as raw:
        disk = _Disk(raw)
        try:
            with h5py.File(disk, "w", alignment_threshold=512, alignment_interval=64) as file:
                yield {
                    name: file.create_dataset(name, shape=layout.shape, dtype=layout.dtype, fill_time="never")
                    for name, layout in layouts.items()
                }
        finally:
            if disk.error is not None:
                raise disk.error


class _Disk(io.RawIOBase):
    """A file that remembers a refused write: HDF5 would try again when the process ends, and take it down."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.error: OSError | None = None
        self.seek, self.tell, self.readinto = raw.seek, raw.tell, raw.readinto  # type: ignore[method-assign]

    def write(self, data: Any) -> int:
        """Writes all of `data`, or nothing any more after the first refusal."""
        view = memoryview(data).cast("B")
        left = view if self.error is None else view[:0]
        try:
            while left:
                left = left[self._raw.write(left) :]
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Sets the length of the file."""
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write whole arrays as a flat file."""
    layouts = {name: ArrayLayout(array.dtype.newbyteorder("<").str, array.shape) for name, array in arrays.items()}
    with create(path, layouts) as datasets:
        for name, array in arrays.items():
            if array.size:
                datasets[name][...] = array


class FlatFile:
    """The arrays of a flat file, read-only; opening looks at headers only, and a deleted file stays readable."""

    def __init__(self, path: Path, *, remedy: str, sha256: str | None = None) -> None:
        self.path = path
        self.file = OpenFile(path, remedy=remedy, sha256=sha256)
        self.corrupt = self.file.corrupt
        self.bytes = self.file.bytes
        if not self.bytes:
            raise self.corrupt("is empty")
        try:
            with h5py.File(_Source(self.file), "r") as hdf5:
                if len(hdf5) > MAX_DATASETS:
                    raise self.corrupt(f"holds {len(hdf5)} datasets, more than {MAX_DATASETS}")
                self._datasets = {name: self._inspect_dataset(hdf5, name) for name in hdf5}
                self.names = frozenset(self._datasets)
        except (CorruptGalleryError, TooManyFilesError):
            raise
        except Exception as error:  # h5py raises nearly every kind for a damaged file
            raise self.corrupt(f"cannot be read as HDF5 ({type(error).__name__})") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, without looking at its contents."""
        return self._require(name).shape

    def array(self, name: str, dtype: str, shape: Sequence[int | None]) -> StoredArray:
        """An array that must have this type and shape; None stands for any length."""
        found = self._require(name)
        fits = len(found.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if found.dtype != np.dtype(dtype) or not fits:
            expected = "×".join("any" if length is None else str(length) for length in shape)
            actual = "×".join(map(str, found.shape))
            raise self.corrupt(f"{name} should be {np.dtype(dtype)} of {expected}, is {found.dtype} of {actual}")
        return found

    def strings(self, prefix: str, count: int | None) -> Strings:
        """Strings stored as `<prefix>_blob` and `<prefix>_offsets`; offsets are checked now, contents when read."""
        blob = self.array(f"{prefix}_blob", "|u1", (None,))
        stored = self.array(f"{prefix}_offsets", "<u8", (None if count is None else count + 1,))
        offsets = stored.read()
        ends_meet = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == len(blob)
        if not ends_meet or bool(np.any(offsets[1:] < offsets[:-1])):
            raise self.corrupt(f"{prefix}_offsets do not cut {prefix}_blob into strings")
        return Strings(self, prefix, blob, stored)

    def _require(self, name: str) -> StoredArray:
        if name not in self._datasets:
            raise self.corrupt(f"holds no {name}")
        return self._datasets[name]

    def _inspect_dataset(self, file: Any, name: str) -> StoredArray:
        if not _NAME.fullmatch(name):
            raise self.corrupt(f"holds an unknown object {name[:80]!r}")
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise self.corrupt(f"{name} is a link to somewhere else, which is never followed")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise self.corrupt(f"{name} is not a dataset")
        plist = dataset.id.get_create_plist()
        if dataset.external or dataset.is_virtual:
            raise self.corrupt(f"{name} takes its data from another file, which is never followed")
        if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
            raise self.corrupt(f"{name} is chunked or compressed")
        if dataset.dtype not in _DTYPES:
            raise self.corrupt(f"{name} has the type {dataset.dtype}")
        shape = tuple(int(length) for length in dataset.shape or ())
        size = dataset.dtype.itemsize * math.prod(shape)  # Python integers: a lying shape cannot overflow
        offset = dataset.id.get_offset()
        if size and (offset is None or offset + size > self.bytes):
            raise self.corrupt(f"{name} says it has {size} bytes, more than the file holds")
        return StoredArray(self.file, dataset.dtype, shape, int(offset or 0))


class _Source(io.RawIOBase):
    """An open file as HDF5 reads it: beyond its end there are zeros."""

    def __init__(self, file: OpenFile) -> None:
        self._file, self._place = file, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place; HDF5 asks for the end to know the length."""
        self._place = offset + (0, self._place, self._file.bytes)[whence]
        return self._place

    def tell(self) -> int:
        """The place."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill all of the buffer."""
        view = memoryview(buffer).cast("B")
        there = max(0, min(len(view), self._file.bytes - self._place))
        if there:
            self._file.read([(self._place, view[:there], there)])
        view[there:] = bytes(len(view) - there)
        self._place += len(view)
        return len(view)


class StoredArray:
    """An array in a file: what is asked for is read into memory of its own. NumPy functions take it as an array.

    >>> from pathlib import Path; from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "numbers.h5"; write_arrays(path, {"x": np.arange(6).reshape(3, 2)})
    >>> FlatFile(path, remedy="-").array("x", "<i8", (None, 2))[np.array([2, 0])]
    array([[4, 5],
           [0, 1]])
    """

    def __init__(self, file: OpenFile, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> None:
        self._file = file
        self._offset = offset
        self.dtype = dtype
        self.shape = shape
        self.row_bytes = dtype.itemsize * math.prod(shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.read() if dtype is None else self.read().astype(dtype, copy=False)

    def __getitem__(self, rows: int | slice | Array) -> Array:
        """Some rows, copied: one, a run, or any in any order."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            assert step == 1, "runs have no gaps"
            return self.read(start, max(start, stop))
        if not isinstance(rows, np.ndarray):
            row = range(len(self))[rows]
            return np.asarray(self.read(row, row + 1)[0])
        return self.gather(rows)

    def read(self, start: int = 0, stop: int | None = None, *, out: Array | None = None) -> Array:
        """The rows from `start` to before `stop`, or to the end; into contiguous `out` where that is given."""
        stop = len(self) if stop is None else stop
        if out is None:
            out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if out.size:
            self._file.read([(self._offset + self.row_bytes * start, out, out.nbytes)])
        return out

    def fill(self, out: Array, places: Sequence[int], rows: Sequence[int]) -> None:
        """Read some rows into the places of another array; the quickest way to few rows."""
        first, size = self._offset, self.row_bytes
        if size:
            self._file.read([(first + size * row, out[place], size) for place, row in zip(places, rows, strict=True)])

    def gather(self, rows: Array, out: Array | None = None) -> Array:
        """Rows in any order; into contiguous `out` where that is given."""
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if not out.size:
            return out
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self):
            raise IndexError(f"rows {low} … {high} of {len(self)}")
        if high - low + 1 == len(rows) and bool((rows[1:] > rows[:-1]).all()):
            return self.read(low, high + 1, out=out)
        span = self.row_bytes * (high + 1 - low)
        if span <= min(_SPAN_MOST, len(rows) * (self.row_bytes + _ONE_READ)):
            np.take(self.read(low, high + 1), rows - low, axis=0, out=out)
        elif self.row_bytes:
            offsets = (self._offset + self.row_bytes * rows.astype(np.int64)).tolist()
            self._file.read(zip(offsets, out if out.ndim > 1 else out[:, None], repeat(self.row_bytes)))
        return out


@dataclass(frozen=True)
class Strings:
    """Strings stored end to end in one run of UTF-8; each is read and decoded when asked for."""

    file: FlatFile
    name: str
    blob: StoredArray
    offsets: StoredArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        start, stop = self.offsets.read(index, index + 2).tolist()
        return self._decode(self.blob.read(start, stop).tobytes())

    def __iter__(self) -> Iterator[str]:
        blob = self.blob.read().tobytes()
        cuts = self.offsets.read().tolist()
        if blob.isascii():  # then decoding keeps every place
            text = blob.decode()
            yield from (text[start:stop] for start, stop in pairwise(cuts))
        else:
            yield from (self._decode(blob[start:stop]) for start, stop in pairwise(cuts))

    def take(self, rows: Array) -> list[str]:
        """The strings in some rows."""
        if len(rows) * 32 < len(self):
            return [self[row] for row in rows.tolist()]
        strings = list(self)
        return [strings[row] for row in rows.tolist()]

    def find(self, wanted: Set[str]) -> list[tuple[int, str]]:
        """The rows that hold one of these, with it; the others are told by length and last bytes, and not decoded."""
        ends = [string.encode("utf-8", "surrogatepass") for string in wanted]
        blob, stops = self.blob.read(), self.offsets.read().astype(np.int64)[1:]
        sizes = np.diff(stops, prepend=0)
        rows = np.flatnonzero(np.isin(sizes, [len(end) for end in ends]))
        for back in range(1, min(_ENDS, len(blob)) + 1):
            if len(rows) <= len(ends):
                break
            allowed = np.zeros(256, np.bool_)
            allowed[[end[-back] for end in ends if len(end) >= back]] = True
            rows = rows[(sizes[rows] < back) | allowed[blob[stops[rows] - back]]]
        strings = zip(rows.tolist(), self.take(rows), strict=True)
        return [(row, string) for row, string in strings if string in wanted]

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.file.corrupt(f"{self.name} holds text that is not UTF-8") from error


def pack_strings(prefix: str, strings: Sequence[str]) -> dict[str, Array]:
    """Strings as the two arrays of a flat file that `FlatFile.strings` reads."""
    encoded = [string.encode("utf-8") for string in strings]
    offsets = np.zeros(len(encoded) + 1, "<u8")
    np.cumsum([len(data) for data in encoded], out=offsets[1:])
    return {f"{prefix}_blob": np.frombuffer(b"".join(encoded), np.uint8), f"{prefix}_offsets": offsets}
