"""Boxes by image: what a file of boxes comes to, whatever its format."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ...errors import InputError
from ..geometry import Box
from ..joining import Names

Size = tuple[int, int]

SHARES = (1, 1)
"""The size of the image that boxes between 0 and 1 were drawn on."""


class LabelledBox(NamedTuple):
    """A box and the class it was drawn around; None where the file does not say."""

    box: Box
    label: str | None = None


class Annotation(NamedTuple):
    """The boxes of one image.

    Attributes:
        boxes: in pixels of an image of that size.
        size: (width, height) of the image they were drawn on; None where the file does not say, `SHARES` where boxes
            are shares of width and height.
    """

    boxes: tuple[LabelledBox, ...]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class BoxTable:
    """Boxes by image.

    Attributes:
        source: the file or folder they come from.
        by_file: absolute path of the image → its boxes.
        by_stem: name of the image without folder and suffix → its boxes, for layouts that name no more.
        problems: boxes and annotations that cannot be used and are left out, with the place and the reason.
    """

    source: Path
    by_file: Mapping[str, Annotation] = field(default_factory=dict, repr=False)
    by_stem: Mapping[str, Annotation] = field(default_factory=dict, repr=False)
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images with boxes."""
        return len(self.by_file) + len(self.by_stem)

    def of(self, file: Path, *, relative: str = "") -> Annotation | None:
        """The boxes of an image: by its absolute path, its stem, or the listing's own path for it.

        Args:
            file: where the image lies.
            relative: what its listing calls it; fits a table whose paths were written relative to the listing's root.
        """
        key = self.key(file, relative=relative)
        return None if key is None else self.annotation(key)

    def key(self, file: Path, *, relative: str = "") -> str | None:
        """The name under which an image is found, see `of` and `names`; None if it is not."""
        own = self._files.key(absolute(file)) or self._stems.key(file.stem)
        return own or (self._files.key(absolute(self.source.parent / relative)) if relative else None)

    def annotation(self, key: str) -> Annotation:
        """The boxes under one of the `names`."""
        return self.by_file[key] if key in self.by_file else self.by_stem[key]

    @property
    def names(self) -> tuple[str, ...]:
        """The absolute paths and stems that there are boxes for."""
        return (*self.by_file, *self.by_stem)

    def shown(self, name: str) -> str:
        """A name as the source writes it, more or less."""
        folder = self.source if self.source.is_dir() else self.source.parent
        return name if name in self.by_stem else os.path.relpath(name, folder)

    @cached_property
    def _files(self) -> Names[Annotation]:
        return Names(self.by_file)

    @cached_property
    def _stems(self) -> Names[Annotation]:
        return Names(self.by_stem)


def box_of(corners: Sequence[str | None], where: str) -> Box:
    """Four numbers, left, top, right, bottom, as a box that is not empty; a comma may stand for the point."""
    try:
        numbers = [as_float(corner or "") for corner in corners]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: expected four numbers as a box, got {', '.join(map(str, corners))}")
    box = Box(*numbers)
    if box.area <= 0:
        raise InputError(f"{where}: the box {tuple(numbers)} is empty; expected left < right and top < bottom")
    return box


def as_float(text: str) -> float:
    """A number; a comma may stand for the point."""
    return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)


def absolute(path: Path) -> str:
    """The path from the root of the disk, as galleries and tables compare them."""
    return os.path.abspath(path)  # noqa: PTH100  (no resolve(): names of links stay as they are)


def size_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns with the size of the image that boxes were drawn on; empty if there are none."""
    known = {name.lower(): name for name in reversed(names)}
    pairs = ([f"{of}{side}" for side in ("width", "height")] for of in ("", "image_", "img_", "image", "img"))
    return next((tuple(known[side] for side in pair) for pair in pairs if all(side in known for side in pair)), ())


def whole_size(cells: Sequence[str]) -> Size | None:
    """Two cells as (width, height); None if they are no size."""
    try:
        width, height = (int(as_float(cell)) for cell in cells)
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def are_of_boxes(boxes: Mapping[str, Sequence[LabelledBox]], sizes: Mapping[str, Size | None]) -> bool:
    """True if the columns `width` and `height` beside corners are those of the boxes, not of their images."""
    return all(
        size is None or any(abs(box.width - size[0]) <= 1 and abs(box.height - size[1]) <= 1 for box, _ in boxes[file])
        for file, size in sizes.items()
    )


def side_hint(cells: Sequence[str]) -> str:
    """A hint for corners that could be a corner with width and height."""
    try:
        x, y, width, height = map(as_float, cells)
    except ValueError:
        return ""
    is_size = min(x, y) >= 0 and min(width, height) > 0 and all(map(math.isfinite, (x, y, width, height)))
    return "; if the last two are width and height, call the columns x, y, w, h" if is_size else ""
