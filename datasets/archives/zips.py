"""Archives from strangers: what a member unfolds to is known, and bounded, before it is unfolded."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ...errors import InputError

_MAX_RATIO, _FREE_BYTES = 200, 64 << 20  # so many times its packed size, where it is larger than this
_HEADER_BYTES: Final = 10_000  # as NumPy itself allows
_BROKEN = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def open_zip(file: Path, expected: str) -> zipfile.ZipFile:
    """A zip, read into memory."""
    try:
        return zipfile.ZipFile(io.BytesIO(file.read_bytes()))
    except (*_BROKEN, MemoryError) as error:
        raise InputError(f"{file}: cannot be read as a zip ({error}); expected {expected}") from error


def read_member(archive: zipfile.ZipFile, name: str, *, file: Path, most: int | None = None) -> bytes:
    """Contents of a member of a zip.

    Args:
        archive: the zip.
        name: of the member.
        file: what messages call the zip.
        most: bytes that it may have; if left out, 64 MiB, or 200 times what it is packed in.
    """
    info = _member(archive, name, file)
    limit = max(_FREE_BYTES, _MAX_RATIO * info.compress_size) if most is None else most
    if info.file_size > limit:
        raise InputError(f"{file}: {name} unfolds to {info.file_size:,} bytes, expected at most {limit:,}")
    try:
        with archive.open(info) as stream:
            data = stream.read(info.file_size)
            if len(data) < info.file_size or stream.read(1):
                raise InputError(f"{file}: {name} has another length than the zip says")
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(f"{file}: {name} cannot be read ({error})") from error
    return data


def _member(archive: zipfile.ZipFile, name: str, file: Path) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(name)
    except KeyError:
        raise InputError(f"{file}: holds no {name}") from None


class Npz:
    """The plain arrays of an npz by name; nothing pickled is read, and no header is believed.

    Args:
        file: the npz.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._archive = zipfile.ZipFile(file)
        except _BROKEN as error:
            raise InputError(f"{file}: is no npz of plain arrays ({error})") from error
        self.files = [name.removesuffix(".npy") for name in self._archive.namelist()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One array."""
        names = [each for each in (f"{name}.npy", name) if each in self._archive.namelist()]
        if not names:
            raise InputError(f"{self._file}: holds no array {name!r}; it has {', '.join(self.files) or 'none'}")
        try:
            shape, is_fortran, dtype, start = self._header(names[0])
            claimed, size = math.prod(shape) * dtype.itemsize, self._archive.getinfo(names[0]).file_size - start
            if dtype.hasobject or min(shape, default=0) < 0 or claimed != size:
                what = "objects" if dtype.hasobject else f"{claimed:,} bytes in {size:,}"
                raise ValueError(f"it claims {what}; expected plain numbers or texts")
            data = read_member(self._archive, names[0], file=self._file)
            return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if is_fortran else "C")
        except InputError:
            raise
        except Exception as error:  # NumPy reads headers as Python, which can fail in any way
            raise InputError(f"{self._file}: holds no array {name!r} that can be read: {error}") from error

    def _header(self, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
        """Shape, order, type, and the byte at which the numbers start."""
        with self._archive.open(name) as stream:
            head = io.BytesIO(stream.read(_HEADER_BYTES + 12))
        version = npy.read_magic(head)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"version {version} of the format")
        shape, is_fortran, dtype = read(head)
        return shape, is_fortran, dtype, head.tell()
