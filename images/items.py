"""Items of a gallery: an image, or a box of one, named as a W3C media fragment: `photo.jpg#xywh=10,20,30,40`."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Final

from PIL import Image

from ..errors import ImageError
from .geometry import Box

MIN_SIDE: Final = 8  # spacers and tracking pixels of web crawls are smaller, the thumbnails of CIFAR and MNIST are not
KEPT_NAME = "images"  # of the folder in a gallery with its images that were no files when they were handed over
_KEPT = re.compile(r"[0-9a-f]{32}(-\d+)?\.[a-z0-9]{3,4}")
BOX_MARK: Final = "#xywh="  # in the name of every item that is a box
_FRAGMENT = re.compile(r"(.+)#xywh=(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9})", re.DOTALL)


def split_item(path: str | os.PathLike[str]) -> tuple[str, Box | None]:
    """The file of an item and its box, in whole pixels of the upright image; None for the image as a whole.

    >>> split_item("cats/two.jpg#xywh=10,20,30,40")
    ('cats/two.jpg', Box(left=10, top=20, right=40, bottom=60))
    >>> split_item("cats/two.jpg")
    ('cats/two.jpg', None)
    """
    text = os.fspath(path)
    found = _FRAGMENT.fullmatch(text) if BOX_MARK in text else None
    if found is None:
        return text, None
    left, top, width, height = map(int, found.groups()[1:])
    return found[1], Box(left, top, left + width, top + height)


def item_of(file: str | os.PathLike[str], box: Box | None) -> str:
    """The item that is a box of a file, rounded to whole pixels; the file itself where there is no box.

    >>> item_of("cats/two.jpg", Box(9.8, 20, 40.2, 60))
    'cats/two.jpg#xywh=10,20,30,40'
    """
    if box is None:
        return os.fspath(file)
    left, top, right, bottom = whole_pixels(box)
    return f"{os.fspath(file)}#xywh={left},{top},{right - left},{bottom - top}"


def whole_pixels(box: Box) -> Box:
    """A box with its edges between the pixels that they are nearest to, at least one pixel large."""
    left, top = max(round(box.left), 0), max(round(box.top), 0)
    return Box(left, top, max(round(box.right), left + 1), max(round(box.bottom), top + 1))


def with_margin(box: Box, margin: float) -> Box:
    """A box wider by a share of its width and height on every side, as far as whole pixels of the image go there.

    >>> with_margin(Box(10, 2, 40, 42), 0.1)
    Box(left=7, top=0, right=43, bottom=46)
    """
    across, down = margin * box.width, margin * box.height
    left, top = max(math.floor(box.left - across), 0), max(math.floor(box.top - down), 0)
    return Box(left, top, math.ceil(box.right + across), math.ceil(box.bottom + down))


def widened(item: str | os.PathLike[str], margin: float) -> Path:
    """An item whose box is wider by a margin, see `with_margin`; an image as a whole stays as it is."""
    file, box = split_item(item)
    return Path(item if box is None else item_of(file, with_margin(box, margin)))


def crop(image: Image.Image, box: Box, *, name: str = "<image>") -> Image.Image:
    """The part of an upright image inside a box; ImageError where that has a side under `MIN_SIDE` pixels."""
    edges = whole_pixels(box.clipped(*image.size))
    if min(edges.width, edges.height) < MIN_SIDE:
        width, height = image.size
        raise ImageError(
            name,
            f"the box ({', '.join(f'{edge:g}' for edge in box)}) has less than {MIN_SIDE}x{MIN_SIDE} pixels of the "
            f"image, which is {width}x{height}",
        )
    return image.crop(edges)


def holds_kept_images(folder: Path) -> bool:
    """True if nothing lies in a folder but images that were no files, under the names that `given_source` gives."""
    return folder.is_dir() and all(_KEPT.fullmatch(file.name) or file.name[0] == "." for file in folder.iterdir())
