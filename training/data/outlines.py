"""Outlines of objects: boxes from tables, masks from image files, and both as rasters of the network's input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from ...errors import ImageError, InputError
from ...images import Box, Listing, Transform
from ...images.boxes.fitting import Annotation as DrawnBoxes
from ...images.boxes.fitting import BoxTable, LabelledBox, absolute, box_of
from ...images.boxes.formats import read_boxes, usable
from ...images.boxes.joined import drawn_on
from ...images.joining import spelled
from ...images.loading import image_size
from ...remarks import counted, remark
from ..engine.step import Regions
from ..recipes.tables import Count, Table, limited

_CORNERS = ("x1", "y1", "x2", "y2")
_SLACK = 1.0  # pixels by which a box may exceed its image: tables differ in whether the last pixel counts

OutlineLabels = Int[Tensor, " n"] | Float[Tensor, "n c"]


@dataclass(frozen=True, eq=False)
class RegionTable:
    """The outlined objects of a data set, ordered by image."""

    image: Int[Tensor, " r"]  # the position of the image in the data set
    label: Int[Tensor, " r"]  # the class index of the object
    is_box: Bool[Tensor, " r"]  # True for boxes, False for masks
    raster: UInt8[Tensor, "r h w"]  # 1 on the object, in the pixels of the network's input
    has_saliency: bool = False  # the raster is 1 to 255 on the object, by how much a place stands out

    def of(self, index: Int[Tensor, " b"]) -> Regions:
        """The regions of a batch of images."""
        first = torch.searchsorted(self.image, index)
        count = torch.searchsorted(self.image, index, right=True) - first
        row = torch.repeat_interleave(torch.arange(len(index)), count)
        before = torch.cumsum(count, 0) - count
        own = torch.arange(len(row)) - before[row] + first[row]
        raster = self.rasters(own).float()
        if self.has_saliency:
            raster = (raster > 0) * (1 + (raster - 1) / 254)
        return Regions(row, self.label[own], self.is_box[own], raster)

    def rasters(self, which: Int[Tensor, " n"]) -> UInt8[Tensor, "n h w"]:
        """The rasters of some regions."""
        return self.raster[which]


@dataclass(frozen=True)
class Outline:
    """One object of one image: a box, a mask, or both."""

    label: str | None = None  # its class; None for the image's own
    box: Box | None = None  # in pixels of the image
    mask: Path | None = None  # an image file of the same size
    # the grey level or palette index that marks the object in the mask; None for all that are not 0
    value: int | None = None
    # (width, height) of the image that the box was drawn on; None for the file's own
    size: tuple[int, int] | None = None


Outlines = Mapping[Path, Sequence[Outline]]  # by image file


class RegionSettings(Table):
    """The choice of the images that come with an outline of their object."""

    kind: Literal["none", "mask", "box"] = "none"  # "mask", "box", or "none"
    # of the images, classes taking turns; a larger share contains the smaller one
    share: Annotated[float, limited(lambda value: 0 < value <= 1, "a share of the images in (0, 1]")] = 0.05
    count: Count | None = None  # that many images instead
    seed: int = 0  # of the choice


def outlines_of(listing: Listing) -> dict[Path, list[Outline]]:
    """Outlines in the columns `mask` and `x1`, `y1`, `x2`, `y2` of a listing; unusable boxes are remarked on."""
    has_mask = "mask" in listing.column_names
    corners = [name for name in _CORNERS if name in listing.column_names]
    if corners and len(corners) < 4:
        raise InputError(f"a box has the columns {', '.join(_CORNERS)}; the table has {', '.join(corners)}")
    boxes: dict[str, DrawnBoxes] = {}
    problems: list[str] = []
    for record in listing if corners else ():
        cells = [record.columns[name] for name in _CORNERS]
        if any(cells):
            try:
                boxes[absolute(listing.file(record))] = DrawnBoxes((LabelledBox(box_of(cells, record.path)),))
            except InputError as error:
                problems.append(str(error))
    drawn_in: dict[Path, DrawnBoxes] = {}
    if boxes or problems:
        table = usable(BoxTable(listing.root, boxes, problems=tuple(problems)))
        drawn_in = {file: annotation for _, file, annotation in drawn_on(listing, table)}
    found: dict[Path, list[Outline]] = {}
    for record in listing if has_mask or corners else ():
        drawn = drawn_in.get(listing.file(record))
        cell = record.columns["mask"] if has_mask else ""
        mask = listing.root / spelled(listing.root, cell) if cell else None
        if drawn is not None:
            found[listing.file(record)] = [Outline(None, drawn.boxes[0].box, mask, size=drawn.size)]
        elif mask is not None:
            found[listing.file(record)] = [Outline(mask=mask)]
    return found


def boxes_from(source: str | Path, listing: Listing) -> dict[Path, list[Outline]]:
    """The boxes that a file or folder has for the images of a listing; for the layouts see `read_boxes`."""
    return {
        file: [Outline(each.label, each.box, size=annotation.size) for each in annotation.boxes]
        for _, file, annotation in drawn_on(listing, read_boxes(source))
    }


def region_table(
    outlines: Outlines | None,
    settings: RegionSettings | None,
    files: Sequence[Path],
    *,
    labels: OutlineLabels,
    class_names: Sequence[str],
    transform: Transform,
    strict: bool,
) -> RegionTable | None:
    """The regions of the images that the settings choose, one for each class; unusable outlines are remarked on."""
    if settings is None or settings.kind == "none":
        return None
    by_image = _by_image(outlines or {}, settings.kind, files, labels, class_names)
    if not by_image:
        plural = "masks" if settings.kind == "mask" else "boxes"
        raise InputError(f"{plural} are asked for, but none of the {len(files)} images has one")
    rasters: dict[tuple[int, int], Tensor] = {}
    problems: list[str] = []
    first = labels.argmax(1) if labels.ndim == 2 else labels
    dealt = by_turns({i: int(first[i]) for i in sorted(by_image)}, np.random.default_rng([0x2E6, settings.seed]))
    for i in sorted(dealt[: settings.count or max(round(settings.share * len(files)), 1)]):
        for number, outline in by_image[i]:
            try:
                raster = raster_of(outline, files[i], transform, kind=settings.kind)
            except (ImageError, InputError) as error:
                problems.append(str(error))
                continue
            if raster is not None:
                rasters[i, number] = torch.maximum(raster, rasters.get((i, number), raster))
    if problems and not rasters:
        raise InputError(f"none of {counted(len(problems), 'outline')} can be used: {problems[0]}")
    if problems:
        are = "outline cannot be used and is" if len(problems) == 1 else "outlines cannot be used and are"
        remark(f"{len(problems)} {are} left out: {'; '.join(problems[:5])}", strict=strict)
    keys = torch.tensor(list(rasters), dtype=torch.long).view(-1, 2)
    blank = torch.zeros(0, transform.height, transform.width, dtype=torch.uint8)
    stacked = torch.stack(list(rasters.values())) if rasters else blank
    is_box = torch.full((len(keys),), settings.kind == "box")
    return RegionTable(keys[:, 0].contiguous(), keys[:, 1].contiguous(), is_box, stacked)


def _by_image(
    outlines: Outlines, kind: str, files: Sequence[Path], labels: OutlineLabels, class_names: Sequence[str]
) -> dict[int, list[tuple[int, Outline]]]:
    """Class index and outline by image, without those that the image's labels do not speak of."""
    found: dict[int, list[tuple[int, Outline]]] = {}
    for i, file in enumerate(files):
        shown = labels[i].nonzero()[:, 0].tolist() if labels.ndim == 2 else [int(labels[i])]
        for outline in outlines.get(file, ()):
            if outline.label is None and len(shown) != 1:
                raise InputError(f"{file}: an outline without a label, in an image that shows {len(shown)} classes")
            known = outline.label is None or outline.label in class_names
            number = shown[0] if outline.label is None else class_names.index(outline.label) if known else -1
            if number in shown and getattr(outline, kind) is not None:
                found.setdefault(i, []).append((number, outline))
    return found


def by_turns(class_of: Mapping[int, int], generator: np.random.Generator) -> list[int]:
    """Images by chance, classes taking turns, so that each has its part of any first few; `class_of` is by image."""
    members: dict[int, list[int]] = {}
    for i in generator.permutation(list(class_of)).tolist():
        members.setdefault(class_of[i], []).append(i)
    order = generator.permutation(sorted(members)).tolist()
    rounds = max(map(len, members.values()), default=0)
    return [members[c][turn] for turn in range(rounds) for c in order if turn < len(members[c])]


def raster_of(
    outline: Outline, file: Path, transform: Transform, *, kind: Literal["mask", "box"]
) -> UInt8[Tensor, "h w"] | None:
    """1 on the object, 0 elsewhere, in the pixels of the network's input; None if the transform cuts the object off."""
    width, height = image_size(file)
    if kind == "box":
        assert outline.box is not None
        drawn_size = outline.size or (width, height)
        box = outline.box.scaled(width / drawn_size[0], height / drawn_size[1])
        shown = f"({', '.join(f'{edge:g}' for edge in box)})"
        if not all(map(math.isfinite, box)) or box.area <= 0:
            raise InputError(f"{file}: expected a box as left < right and top < bottom, got {shown}")
        if min(box.left, box.top) < -_SLACK or box.right > width + _SLACK or box.bottom > height + _SLACK:
            raise InputError(f"{file}: the box {shown} leaves the image, which is {width} x {height} pixels")
        view, box = transform.view(width, height), box.clipped(width, height)
        seen = box.shifted(-view.left, -view.top).scaled(transform.width / view.width, transform.height / view.height)
        seen = seen.clipped(transform.width, transform.height)
        raster = torch.zeros(transform.height, transform.width, dtype=torch.uint8)
        if seen.area > 0:
            (left, right), (top, bottom) = _span(seen.left, seen.right), _span(seen.top, seen.bottom)
            raster[top:bottom, left:right] = 1
    else:
        raster = _seen(outline, file, transform, (width, height))
    return raster if raster.any() else None


def _span(start: float, stop: float) -> tuple[int, int]:
    """The pixels whose centre lies between two edges; if there is none, the one that holds their middle."""
    first, end = math.ceil(start - 0.5), math.ceil(stop - 0.5)
    return (first, end) if end > first else (int((start + stop) / 2), int((start + stop) / 2) + 1)


def _seen(outline: Outline, file: Path, transform: Transform, size: tuple[int, int]) -> UInt8[Tensor, "h w"]:
    """The mask after the transform; a pixel belongs to the object if at least half of it does."""
    assert outline.mask is not None
    try:
        with Image.open(outline.mask) as image:
            if image.size != size:
                raise InputError(
                    f"{outline.mask}: expected the mask in its image's size, {size[0]} x {size[1]}, "
                    f"got {image.size[0]} x {image.size[1]}"
                )
            flat = image if image.mode in ("1", "L", "P", "I", "I;16") else image.convert("L")
            values = np.asarray(flat)
    except OSError as error:
        raise ImageError(outline.mask, f"not a readable mask ({error})") from error
    marked = values > 0 if outline.value is None else values == outline.value
    if not marked.any():
        what = "all 0" if outline.value is None else f"nowhere {outline.value}"
        raise InputError(f"{outline.mask}: the mask is {what}, so it marks no object of {file.name}")
    stamp = Image.fromarray((marked * 255).astype(np.uint8)).convert("RGB")
    return (replace(transform, fill=(0, 0, 0))(stamp)[0] >= 128).to(torch.uint8)
