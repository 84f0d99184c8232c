"""Images that come as arrays in one file per part: the pickles and npz archives of the benchmarks; and zips.

The size that a member of an archive unfolds to is known, and bounded, before it is unfolded.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ...errors import InputError
from ...images import read_image
from ..few_shot import ArrayImages, FewShotData, Split
from .restricted_pickle import array_of, read_pickle

_MAX_RATIO, _FREE_BYTES = 200, 64 << 20  # so many times its packed size, where it is larger than this
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_BROKEN = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def open_zip(file: Path, expected: str) -> zipfile.ZipFile:
    """A zip, read into memory."""
    try:
        return zipfile.ZipFile(io.BytesIO(file.read_bytes()))
    except (*_BROKEN, MemoryError) as error:
        raise InputError(f"{file}: cannot be read as a zip ({error}); expected {expected}") from error


def read_member(archive: zipfile.ZipFile, name: str, *, file: Path, most: int | None = None) -> bytes:
    """Contents of a member of a zip, bounded by `most` bytes; by 64 MiB or 200 times its packed size if left out."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise InputError(f"{file}: holds no {name}") from None
    limit = max(_FREE_BYTES, _MAX_RATIO * info.compress_size) if most is None else most
    if info.file_size > limit:
        raise InputError(f"{file}: {name} unfolds to {info.file_size:,} bytes, expected at most {limit:,}")
    try:
        with archive.open(info) as stream:
            data = stream.read(info.file_size)
            is_whole = len(data) == info.file_size and not stream.read(1)
    except _BROKEN as error:
        raise InputError(f"{file}: {name} cannot be read ({error})") from error
    if not is_whole:
        raise InputError(f"{file}: {name} has another length than the zip says")
    return data


class Npz(AbstractContextManager["Npz"]):
    """The plain arrays of an npz by name; nothing pickled is read, and no header is believed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._archive = zipfile.ZipFile(file)
        except _BROKEN as error:
            raise InputError(f"{file}: is no npz of plain arrays ({error})") from error
        self.files = [name.removesuffix(".npy") for name in self._archive.namelist()]

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One array."""
        names = [each for each in (f"{name}.npy", name) if each in self._archive.namelist()]
        if not names:
            raise InputError(f"{self._file}: holds no array {name!r}; it has {', '.join(self.files) or 'none'}")
        data = read_member(self._archive, names[0], file=self._file)
        try:
            head = io.BytesIO(data)
            if (version := npy.read_magic(head)) not in _HEADERS:
                raise ValueError(f"version {version} of the format")
            shape, is_fortran, dtype = _HEADERS[version](head)
            claimed, size = math.prod(shape) * dtype.itemsize, len(data) - head.tell()
            if dtype.hasobject or min(shape, default=0) < 0 or claimed != size:
                what = "objects" if dtype.hasobject else f"{claimed:,} bytes in {size:,}"
                raise ValueError(f"it claims {what}; expected plain numbers or texts")
            return np.frombuffer(data, dtype, offset=head.tell()).reshape(shape, order="F" if is_fortran else "C")
        except Exception as error:  # NumPy reads headers as Python, which can fail in any way
            raise InputError(f"{self._file}: holds no array {name!r} that can be read: {error}") from error


Archive = tuple[Callable[[int], NDArray[np.uint8]], Sequence[str]]  # pixels of one image, labels of all


def data_of_arrays(name: str, files: Mapping[str, Path], read: Callable[[Path], Archive]) -> FewShotData:
    """A data set from one archive per part, whose items are named `<label>/<number within the class>`."""
    parts = {}
    for part, file in files.items():
        load, labels = read(file)
        seen: dict[str, int] = {}
        names = []
        for label in labels:
            seen[label] = number = seen.get(label, -1) + 1
            names.append(f"{label}/{number:05d}")
        parts[part] = Split(f"{name}/{part}", np.array(names), np.array(labels), ArrayImages(file, load))
    return FewShotData(name, parts)


def read_pickled_images(file: Path) -> Archive:
    """Arrays (n, rows, columns, 3) with classes, in the forms in use.

    `{"image_data": array, "class_dict": {label: rows}}`, or `{"data": array, "labels": numbers}`, the latter perhaps
    with `catname2label`.
    """
    content = read_pickle(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a dictionary, got {type(content).__name__}")
    if isinstance(rows_of := content.get("class_dict"), dict) and "image_data" in content:
        images = _images(array_of(content["image_data"], f"{file}: image_data"), file)
        labels = [""] * len(images)
        for label, rows in rows_of.items():
            for row in array_of(rows, f"{file}: class_dict").tolist():
                if not isinstance(row, int) or not 0 <= row < len(labels) or labels[row]:
                    raise InputError(f"{file}: class {label!r} names image {row!r}, outside the file or named twice")
                labels[row] = str(label)
        if "" in labels:
            raise InputError(f"{file}: image {labels.index('')} has no class")
        return images.__getitem__, labels
    if "data" in content and "labels" in content:
        images = _images(array_of(content["data"], f"{file}: data"), file)
        names = content.get("catname2label")
        known = names.items() if isinstance(names, dict) else ()
        name_of = {number: str(name) for name, number in known if isinstance(number, int)}
        numbers = array_of(content["labels"], f"{file}: labels").tolist()
        return images.__getitem__, _checked([name_of.get(number, f"{number}") for number in numbers], images, file)
    got = ", ".join(map(str, content))
    raise InputError(f"{file}: expected image_data and class_dict, or data and labels; got {got}")


def read_npz(file: Path, labels: Sequence[str] | None = None) -> Archive:
    """An npz with `images` (n, rows, columns, 3) and, unless given, `labels`; nothing pickled in it is read."""
    with Npz(file) as arrays:
        images = _images(arrays["images"], file)
        if labels is None:
            labels = [str(label) for label in arrays["labels"].reshape(-1).tolist()]
    return images.__getitem__, _checked(labels, images, file)


def encoded_pngs(file: Path, labels: Sequence[str]) -> Archive:
    """A pickled list of PNG files. OpenCV wrote and reads them as BGR, so red and blue are exchanged after Pillow."""
    content = read_pickle(file)
    if not isinstance(content, list):
        raise InputError(f"{file}: expected a list of PNG files, got {type(content).__name__}")

    def load(index: int) -> NDArray[np.uint8]:
        value = content[index]
        data = value if isinstance(value, bytes) else array_of(value, f"{file}: image {index}").tobytes()
        return np.asarray(read_image(data))[:, :, ::-1].copy()

    return load, _checked(labels, content, file)


def first_that_exists(folder: Path, patterns: Sequence[str], stems: Mapping[str, str]) -> dict[str, Path]:
    """One file per part: `stems` says how the parts are called, `{}` in a pattern stands for that."""
    for pattern in patterns:
        files = {part: folder / pattern.format(stem) for part, stem in stems.items()}
        found = {part: file for part, file in files.items() if file.exists()}
        if {"base", "novel"} <= set(found):
            return found
    return {}


def _images(array: NDArray[Any], file: Path) -> NDArray[np.uint8]:
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype.kind not in "uif":
        raise InputError(f"{file}: expected images (n, rows, columns, 3), got {array.dtype} of shape {array.shape}")
    if array.dtype == np.uint8:
        return array
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and 1 < high <= 255):
        raise InputError(f"{file}: expected values from 0 to 255, got {low} … {high} as {array.dtype}")
    return array.astype(np.uint8)


def _checked(labels: Sequence[str], images: Sequence[Any] | NDArray[Any], file: Path) -> Sequence[str]:
    if len(labels) != len(images):
        raise InputError(f"{file}: {len(images)} images and {len(labels)} labels")
    return labels
