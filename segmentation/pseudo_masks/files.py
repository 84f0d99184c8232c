"""Mask files: the numbers in them, what they stand for, and the same mask in a network's pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from ...errors import InputError
from ...images import Transform
from ...metrics.components import components

__all__ = ["VOID", "Mask", "MaskIds", "boxes_around", "label_map", "read_names"]

VOID = 255
Mask = UInt8[np.ndarray, "h w"]


@dataclass(frozen=True)
class MaskIds:
    """How the mask files of a data set number the classes.

    Attributes:
        first: the number of the first class; the others follow. What lies below it is background.
        void: the number that stands for no decision.
    """

    first: int = 1
    void: int = VOID

    def renumbered(self, values: Mask, n_classes: int, file: Path) -> Mask:
        """The mask in this package's numbers.

        Raises:
            InputError: a number that is neither background nor one of the classes nor void.
        """
        table = np.full(256, -1, dtype=np.int16)
        table[: self.first] = 0
        table[self.first : self.first + n_classes] = np.arange(1, n_classes + 1)
        table[self.void] = VOID
        found = table[values]
        if found.min(initial=0) < 0:
            unknown = int(values[found < 0][0])
            background = f"0 to {self.first - 1} for the background, " if self.first else ""
            raise InputError(
                f"{file}: the mask holds the class number {unknown}, which stands for nothing; expected {background}"
                f"{self.first} to {self.first + n_classes - 1} for the {n_classes} classes, and {self.void} for void"
            )
        mask: Mask = found.astype(np.uint8)
        return mask


def read_names(file: str | Path) -> tuple[str, ...]:
    """The names of the classes, one per line, in the order of their numbers; a first line `background` is left out.

    Raises:
        InputError: the file cannot be read or is empty.
    """
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected the classes' names, one per line; cannot be read ({error})") from None
    names = tuple(line for line in lines if line)
    names = names[1:] if names[:1] == ("background",) else names
    if not names:
        raise InputError(f"{file}: expected the classes' names, one per line; it is empty")
    return names


def label_map(mask: Mask, transform: Transform, *, outside: int = VOID) -> Mask:
    """The mask in the pixels of the network's input: each takes the number of the pixel that its centre falls on.

    What the input shows beyond the picture (fit="pad") is `outside`.
    """
    height, width = mask.shape
    view = transform.view(width, height)
    rows = np.floor(view.top + (np.arange(transform.height) + 0.5) * view.height / transform.height).astype(int)
    columns = np.floor(view.left + (np.arange(transform.width) + 0.5) * view.width / transform.width).astype(int)
    seen = mask[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)[None]]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
    return np.where(inside, seen, np.uint8(outside))


def boxes_around(marked: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask with each of its connected parts (corners touch) filled up to its box."""
    filled = np.zeros_like(marked, dtype=bool)
    for left, top, right, bottom in components(marked[None]).box.astype(int):
        filled[top:bottom, left:right] = True
    return filled
