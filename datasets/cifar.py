"""CIFAR-10 and CIFAR-100 as their Python archives unpack (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ..errors import InputError
from .archives.restricted_pickle import array_of, read_pickle


class CifarPart(NamedTuple):
    """Training or test images with the numbers of their classes."""

    images: UInt8[np.ndarray, "n 32 32 3"]
    labels: tuple[int, ...]


class _Files(NamedTuple):
    folder: str
    parts: dict[str, tuple[str, ...]]
    names: str  # the file with the names of the classes
    prefix: str  # of the keys of labels and names


CIFAR = {
    "cifar10": _Files(
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        "batches.meta",
        "",
    ),
    "cifar100": _Files("cifar-100-python", {"train": ("train",), "test": ("test",)}, "meta", "fine_"),
}


def read_cifar(root: Path, name: str) -> tuple[dict[str, CifarPart], tuple[str, ...]]:
    """Training and test images of "cifar10" or "cifar100", and the classes' names; InputError where files are missing.

    `root` is the unpacked folder or the one around it. Of CIFAR-100 the hundred fine classes count.
    """
    files = CIFAR[name]
    folder = root / files.folder if (root / files.folder).is_dir() else root
    wanted = [files.names, *(file for part in files.parts.values() for file in part)]
    if missing := [file for file in wanted if not (folder / file).is_file()]:
        raise InputError(f"{folder}: expected {', '.join(wanted)}, as {files.folder} unpacks; {missing[0]} is missing")
    names = tuple(map(_text, *_content(folder / files.names, f"{files.prefix}label_names")))
    parts = {}
    for part, own in files.parts.items():
        read = [_read(folder / file, f"{files.prefix}labels", len(names)) for file in own]
        images = np.concatenate([rows for rows, _ in read]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        parts[part] = CifarPart(images, tuple(number for _, numbers in read for number in numbers))
    return parts, names


def _read(file: Path, labels: str, n_classes: int) -> tuple[UInt8[np.ndarray, "n 3072"], list[int]]:
    """Rows of pixels and the numbers of their classes."""
    data, own = _content(file, "data", labels)
    rows = array_of(data, f"{file}: data")
    numbers: list[int] = array_of(own, f"{file}: {labels}").tolist()
    if rows.dtype != np.uint8 or rows.shape != (len(numbers), 3072) or not set(numbers) <= set(range(n_classes)):
        raise InputError(
            f"{file}: expected uint8 rows of 3,072 and a label below {n_classes} for each; got {rows.dtype} "
            f"{rows.shape} and {len(numbers)} labels up to {max(numbers, default=0)}"
        )
    return rows, numbers


def _content(file: Path, *keys: str) -> list[Any]:
    content = read_pickle(file)
    named = {_text(name): value for name, value in content.items()} if isinstance(content, dict) else {}
    for key in keys:
        if key not in named:
            raise InputError(f"{file}: expected a dictionary with {key!r}; it has {', '.join(named) or 'none'}")
    return [named[key] for key in keys]


def _text(name: object) -> str:
    if not isinstance(name, str | bytes):
        raise InputError(f"expected the name of a class or column, got {type(name).__name__}")
    return name.decode("latin1") if isinstance(name, bytes) else name
