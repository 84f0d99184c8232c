"""Label maps: class numbers of a data set in this package's numbering, in a network's pixels, and as regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from ..errors import InputError
from ..images import Transform
from ..images.masks import VOID, Mask
from ..metrics.maps import components
from ..training.data.outlines import RegionTable


@dataclass(frozen=True)
class MaskIds:
    """Numbers of the classes in the mask files of a data set.

    Attributes:
        first: the number of the first class; the others follow. What lies below it is background.
        void: the number that stands for no decision.
    """

    first: int = 1
    void: int = VOID

    def renumbered(self, values: Mask, n_classes: int, file: Path) -> Mask:
        """The mask in this package's numbers; InputError for one that is neither background nor a class nor void."""
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


def label_map(mask: Mask, transform: Transform, *, outside: int = VOID) -> Mask:
    """The mask in the pixels of the network's input: each takes the number of the pixel that its centre falls on.

    What the input shows beyond the image (fit="pad") is `outside`.
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


def as_regions(found: Sequence[tuple[int, int, Mask]], transform: Transform, *, are_boxes: bool = False) -> RegionTable:
    """Regions from (image, label, pixels of the network's input that belong to it)."""
    rasters = [torch.from_numpy(raster) for *_, raster in found]
    blank = torch.zeros(0, transform.height, transform.width, dtype=torch.uint8)
    return RegionTable(
        torch.tensor([image for image, *_ in found], dtype=torch.long),
        torch.tensor([label for _, label, _ in found], dtype=torch.long),
        torch.full((len(found),), are_boxes),
        torch.stack(rasters) if rasters else blank,
    )
