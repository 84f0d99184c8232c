"""One-level HDF5 files of plain arrays, written once and read without trusting them.

HDF5 can name other files (external links, virtual datasets, external raw storage) and can unfold to any size. A flat
file uses none of that: contiguous, uncompressed, little-endian datasets at the top level and nothing else. Reading
checks that, closes HDF5, and maps the bytes from the offsets it found, so no array ever comes from outside the file.
"""

from __future__ import annotations

import io
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptGalleryError

__all__ = ["FlatFile", "Layout", "Strings", "create", "pack_strings", "write_arrays"]

MAX_DATASETS = 4096
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DTYPES = {np.dtype(code) for code in ("<f2", "<f4", "<f8", "<i4", "<i8", "<u8", "|u1")}

Array = NDArray[Any]


class Layout(NamedTuple):
    """What a dataset looks like: its type, as numpy spells it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@contextmanager
def create(path: Path, layouts: Mapping[str, Layout]) -> Iterator[dict[str, Any]]:
    """A new flat file with datasets of known size, to be filled inside the `with` block, in any order and in pieces.

    Raises:
        OSError: the file system refuses, such as a full disk; what is there then is no flat file.
    """
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
    """A file that remembers a refused write instead of raising it.

    HDF5 does not get over a failed write: it keeps the file open, tries again when the process ends, and takes the
    process down with it.
    """

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
    layouts = {name: Layout(array.dtype.newbyteorder("<").str, array.shape) for name, array in arrays.items()}
    with create(path, layouts) as datasets:
        for name, array in arrays.items():
            if array.size:
                datasets[name][...] = array


class FlatFile:
    """The arrays of a flat file, read-only and mapped into memory: opening costs no more than looking at the headers.

    Arrays stay valid after the file is deleted or replaced; the memory is let go with the last of them.

    Args:
        path: the file.
        remedy: what the user can do about a damaged file; ends every message.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptGalleryError: it is not a flat file, or holds what no flat file may hold.
    """

    def __init__(self, path: Path, *, remedy: str) -> None:
        self.path = path
        self._remedy = remedy
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise self.corrupt("is not a plain file")
        with path.open("rb") as file:
            self.bytes = file.seek(0, 2)
            if not self.bytes:
                raise self.corrupt("is empty")
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            with h5py.File(path, "r", locking=False) as hdf5:
                self._datasets = self._inspect(hdf5)
        except CorruptGalleryError:
            raise
        except Exception as error:  # h5py raises nearly every kind for a damaged file
            raise self.corrupt(f"cannot be read as HDF5 ({type(error).__name__})") from error

    def corrupt(self, problem: str) -> CorruptGalleryError:
        """The error for a problem with this file; to be raised by the caller."""
        return CorruptGalleryError(f"{self.path}: {problem}; {self._remedy}")

    @property
    def names(self) -> frozenset[str]:
        """The names of the arrays."""
        return frozenset(self._datasets)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, without looking at its contents."""
        return self._require(name).shape

    def array(self, name: str, dtype: str, shape: Sequence[int | None]) -> Array:
        """A read-only view of an array that must have this type and shape; None stands for any length."""
        found = self._require(name)
        fits = len(found.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if found.dtype != np.dtype(dtype) or not fits:
            expected = "×".join("any" if length is None else str(length) for length in shape)
            actual = "×".join(map(str, found.shape))
            raise self.corrupt(f"{name} should be {np.dtype(dtype)} of {expected}, is {found.dtype} of {actual}")
        count = int(np.prod(found.shape, dtype=np.int64))
        if not count:
            return np.empty(found.shape, found.dtype)
        return np.frombuffer(self._memory, found.dtype, count, found.offset).reshape(found.shape)

    def strings(self, prefix: str, count: int | None) -> Strings:
        """Strings stored as `<prefix>_blob` and `<prefix>_offsets`; offsets are checked now, contents when read."""
        blob = self.array(f"{prefix}_blob", "|u1", (None,))
        offsets = self.array(f"{prefix}_offsets", "<u8", (None if count is None else count + 1,))
        ends_meet = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == len(blob)
        if not ends_meet or bool(np.any(offsets[1:] < offsets[:-1])):
            raise self.corrupt(f"{prefix}_offsets do not cut {prefix}_blob into strings")
        return Strings(self, prefix, blob, offsets)

    def _require(self, name: str) -> _Dataset:
        if name not in self._datasets:
            raise self.corrupt(f"holds no {name}")
        return self._datasets[name]

    def _inspect(self, file: Any) -> dict[str, _Dataset]:
        if len(file) > MAX_DATASETS:
            raise self.corrupt(f"holds {len(file)} datasets, more than {MAX_DATASETS}")
        return {name: self._inspect_dataset(file, name) for name in file}

    def _inspect_dataset(self, file: Any, name: str) -> _Dataset:
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
        return self._locate(name, dataset)

    def _locate(self, name: str, dataset: Any) -> _Dataset:
        shape = tuple(int(length) for length in dataset.shape or ())
        size = dataset.dtype.itemsize
        for length in shape:  # Python integers: a lying shape cannot overflow
            size *= length
        offset = dataset.id.get_offset()
        if size and (offset is None or offset + size > self.bytes):
            raise self.corrupt(f"{name} says it has {size} bytes, more than the file holds")
        return _Dataset(dataset.dtype, shape, int(offset or 0))


class _Dataset(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Strings:
    """Strings stored end to end in one run of UTF-8; each is decoded when asked for."""

    file: FlatFile
    name: str
    blob: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        return self._decode(self.blob[start:stop].tobytes())

    def __iter__(self) -> Iterator[str]:
        blob = self.blob.tobytes()
        cuts = self.offsets.tolist()
        for start, stop in pairwise(cuts):
            yield self._decode(blob[start:stop])

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
