"""Outlines of objects: boxes from tables, masks from image files, and both as the network's pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ...errors import ImageError, InputError
from ...images import Box, Listing, Transform, read_image
from ...images.boxes.joined import drawn_on, read_boxes, usable
from ...images.boxes.tables import Annotation as DrawnBoxes
from ...images.boxes.tables import BoxTable, LabelledBox, absolute, box_of
from ...images.joining import spelled
from ..recipes.tables import Table, limited

__all__ = ["Annotation", "Annotations", "RegionSettings", "annotations_of", "boxes_from", "raster_of"]

_CORNERS = ("x1", "y1", "x2", "y2")
_SLACK = 1.0  # pixels by which a box may exceed its image: tables differ in whether the last pixel counts


@dataclass(frozen=True)
class Annotation:
    """One object of one image: a box, a mask, or both.

    Attributes:
        label: its class; None for the image's own.
        box: in pixels of the image.
        mask: an image file of the same size.
        value: the grey level or palette index that marks the object in the mask; None for all that are not 0.
        size: (width, height) of the image that the box was drawn on; None for the file's own.
    """

    label: str | None = None
    box: Box | None = None
    mask: Path | None = None
    value: int | None = None
    size: tuple[int, int] | None = None


Annotations = Mapping[Path, Sequence[Annotation]]  # by image file


class RegionSettings(Table):
    """Which images of a data set come with an outline of their object.

    Attributes:
        kind: "mask", "box", or "none".
        share: of the images; every class gets the same number as far as it has outlined images. A larger share
            contains the smaller one.
        seed: of the choice.
    """

    kind: Literal["none", "mask", "box"] = "none"
    share: Annotated[float, limited(lambda value: 0 < value <= 1, "a share of the images in (0, 1]")] = 0.05
    seed: int = 0


def annotations_of(listing: Listing) -> dict[Path, list[Annotation]]:
    """What the columns `mask` and `x1`, `y1`, `x2`, `y2` of a listing say; masks lie relative to its root.

    Boxes that cannot be used are left out and remarked on, as those of a file of boxes are.

    Raises:
        InputError: only some of the four columns exist, or no box can be used.
    """
    has_mask = "mask" in listing.column_names
    corners = [name for name in _CORNERS if name in listing.column_names]
    if corners and len(corners) < 4:
        raise InputError(f"a box has the columns {', '.join(_CORNERS)}; the table has {', '.join(corners)}")
    boxes = _boxes_in_columns(listing) if corners else {}
    found: dict[Path, list[Annotation]] = {}
    for record in listing if has_mask or corners else ():
        drawn = boxes.get(listing.file(record))
        mask = (
            listing.root / spelled(listing.root, record.columns["mask"])
            if has_mask and record.columns["mask"]
            else None
        )
        if drawn is not None:
            found[listing.file(record)] = [Annotation(None, drawn.boxes[0].box, mask, size=drawn.size)]
        elif mask is not None:
            found[listing.file(record)] = [Annotation(mask=mask)]
    return found


def boxes_from(source: str | Path, listing: Listing) -> dict[Path, list[Annotation]]:
    """The boxes that a file or folder has for the images of a listing; for the layouts see `read_boxes`.

    Raises:
        InputError: the file cannot be read, or speaks of none of the images.
    """
    drawn, _ = drawn_on(listing, read_boxes(source))
    return {
        file: [Annotation(label, box, size=annotation.size) for box, label in annotation.boxes]
        for _, file, annotation in drawn
    }


def _boxes_in_columns(listing: Listing) -> dict[Path, DrawnBoxes]:
    """The usable boxes of a table's own columns, by image."""
    boxes: dict[str, DrawnBoxes] = {}
    problems: list[str] = []
    for record in listing:
        cells = [record.columns[name] for name in _CORNERS]
        if any(cells):
            try:
                boxes[absolute(listing.file(record))] = DrawnBoxes((LabelledBox(box_of(cells, record.path)),))
            except InputError as error:
                problems.append(str(error))
    if not boxes and not problems:
        return {}
    table = usable(BoxTable(listing.root, boxes, problems=tuple(problems)))
    return {file: annotation for _, file, annotation in drawn_on(listing, table)[0]}


def raster_of(
    annotation: Annotation, file: Path, transform: Transform, *, kind: Literal["mask", "box"]
) -> UInt8[Tensor, "h w"] | None:
    """1 on the object, 0 elsewhere, in the pixels of the network's input; None if the transform cuts the object off.

    Raises:
        ImageError: the image or the mask cannot be read.
        InputError: the box leaves the image or is empty, the mask has another size, or nothing in it is the object.
    """
    width, height = read_image(file, whole=True).size
    if kind == "box":
        assert annotation.box is not None
        drawn_on = annotation.size or (width, height)
        box = annotation.box.scaled(width / drawn_on[0], height / drawn_on[1])
        raster = _filled(_checked(box, file, width, height), transform, width, height)
    else:
        raster = _seen(annotation, file, transform, (width, height))
    return raster if raster.any() else None


def _checked(box: Box, file: Path, width: int, height: int) -> Box:
    shown = f"({', '.join(f'{edge:g}' for edge in box)})"
    if not all(map(math.isfinite, box)) or box.area <= 0:
        raise InputError(f"{file}: expected a box as left < right and top < bottom, got {shown}")
    if min(box.left, box.top) < -_SLACK or box.right > width + _SLACK or box.bottom > height + _SLACK:
        raise InputError(f"{file}: the box {shown} leaves the image, which is {width} x {height} pixels")
    return box.clipped(width, height)


def _filled(box: Box, transform: Transform, width: int, height: int) -> UInt8[Tensor, "h w"]:
    """The pixels whose centre the box covers; of a box between centres the one pixel that holds its middle."""
    view = transform.view(width, height)
    seen = box.shifted(-view.left, -view.top).scaled(transform.width / view.width, transform.height / view.height)
    seen = seen.clipped(transform.width, transform.height)
    raster = torch.zeros(transform.height, transform.width, dtype=torch.uint8)
    if seen.area > 0:
        (left, right), (top, bottom) = _span(seen.left, seen.right), _span(seen.top, seen.bottom)
        raster[top:bottom, left:right] = 1
    return raster


def _span(start: float, stop: float) -> tuple[int, int]:
    first, end = math.ceil(start - 0.5), math.ceil(stop - 0.5)
    return (first, end) if end > first else (int((start + stop) / 2), int((start + stop) / 2) + 1)


def _seen(annotation: Annotation, file: Path, transform: Transform, size: tuple[int, int]) -> UInt8[Tensor, "h w"]:
    """The mask after the transform; a pixel belongs to the object if at least half of it does."""
    assert annotation.mask is not None
    try:
        with Image.open(annotation.mask) as image:
            if image.size != size:
                raise InputError(
                    f"{annotation.mask}: expected the mask in its picture's size, {size[0]} x {size[1]}, "
                    f"got {image.size[0]} x {image.size[1]}"
                )
            flat = image if image.mode in ("1", "L", "P", "I", "I;16") else image.convert("L")
            values = np.asarray(flat)
    except OSError as error:
        raise ImageError(annotation.mask, f"not a readable mask ({error})") from error
    marked = values > 0 if annotation.value is None else values == annotation.value
    if not marked.any():
        what = "all 0" if annotation.value is None else f"nowhere {annotation.value}"
        raise InputError(f"{annotation.mask}: the mask is {what}, so it marks no object of {file.name}")
    stamp = Image.fromarray((marked * 255).astype(np.uint8)).convert("RGB")
    return (replace(transform, fill=(0, 0, 0))(stamp)[0] >= 128).to(torch.uint8)
