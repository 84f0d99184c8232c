"""Folders of drawn images: complete under their name or not there, with tables beside the images."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from ..errors import InputError
from ..images.geometry import Box


@contextmanager
def new_folder(folder: Path, *, otherwise: str) -> Iterator[Path]:
    """A hidden folder beside `folder`, which takes that name when the block ends.

    A run that was killed leaves `.NAME.partial`, which the next one replaces.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is taken; choose another folder{otherwise}")
    partial = folder.absolute().with_name(f".{folder.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if folder.exists():
        folder.rmdir()  # empty, as checked above; not every system replaces a folder by another
    partial.replace(folder)


def write_rows(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file with a header."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a file that `write_rows` wrote."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def save_numbers(numbers: UInt8[np.ndarray, "h w"], file: Path, palette: bytes, *, compress_level: int = 6) -> None:
    """A mask whose pixels are numbers, as a PNG in these colours; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers).convert("P")
    image.putpalette(palette)
    image.save(file, compress_level=compress_level)


def box_around(mask: Bool[np.ndarray, "h w"]) -> Box:
    """The tight box of the pixels that are marked; there is one at least."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
