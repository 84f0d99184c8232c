"""Boxes by image, and the images they were drawn on: exchanged sizes, turned photographs, boxes that lie outside."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from ...errors import ImageError, InputError
from ...remarks import remark
from ..geometry import Box, turned
from ..joining import FactsByName
from ..loading import size_and_orientation

Size = tuple[int, int]

SHARES = (1, 1)
"""The size of the image that boxes between 0 and 1 were drawn on."""


class LabelledBox(NamedTuple):
    """A box and the class it was drawn around; None where the file does not say."""

    box: Box
    label: str | None = None
    confidence: float | None = None  # of a detector


class Annotation(NamedTuple):
    """The boxes of one image."""

    boxes: tuple[LabelledBox, ...]
    size: Size | None = None  # (width, height) of the image they were drawn on; None where the file does not say


@dataclass(frozen=True)
class BoxTable:
    """Boxes by image: by its absolute path, or by its name without folder and suffix where a layout names no more."""

    source: Path
    annotations: Mapping[str, Annotation] = field(repr=False)
    is_by_stem: bool = False
    problems: tuple[str, ...] = ()  # boxes and annotations that cannot be used and are left out: place and reason
    label_column: str = "label"  # what the boxes' labels are: classes, or of a detector its kinds of object

    def __len__(self) -> int:
        return len(self.annotations)

    def key(self, file: Path, *, relative: str) -> str | None:
        """The name of an image's annotation, by its path or the listing's own path for it (`relative`); or None."""
        if self.is_by_stem:
            return self._names.key(file.stem)
        return self._names.key(absolute(file)) or self._names.key(absolute(self.source.parent / relative))

    @property
    def boxes(self) -> Iterator[LabelledBox]:
        """All boxes."""
        return (box for each in self.annotations.values() for box in each.boxes)

    def shown(self, name: str) -> str:
        """A name as the source writes it, more or less."""
        folder = self.source if self.source.is_dir() else self.source.parent
        return name if self.is_by_stem else os.path.relpath(name, folder)

    @cached_property
    def _names(self) -> FactsByName[Annotation]:
        return FactsByName(self.annotations)


Order = Literal["xyxy", "xywh", "cxcywh"]
"""Edges, or the left upper corner and the size, or the middle and the size."""


def box_of(corners: Sequence[str | None], where: str, *, order: Order = "xyxy") -> Box:
    """Four numbers in some order as a box that is not empty."""
    try:
        numbers = [as_float(corner or "") for corner in corners]
    except ValueError:
        numbers = []
    if order != "xyxy" and len(numbers) == 4:
        back = 0.5 if order == "cxcywh" else 0.0
        left, top = numbers[0] - back * numbers[2], numbers[1] - back * numbers[3]
        numbers = [left, top, left + numbers[2], top + numbers[3]]
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


_SLACK = 1.0  # pixels by which a box may exceed its image: tables differ in whether the last pixel counts
_MANY, _LARGE, _CORNER = 5, 200, 0.4  # boxes, pixels of a side, share of it: that no box goes further is no chance
_ALIKE = 0.01  # by which proportions may differ, for sizes are rounded


class Drawn(NamedTuple):
    """An annotation and the image it was made for."""

    path: str
    file: Path
    annotation: Annotation


def fitted(
    drawn: Sequence[Drawn], source: object, *, strict: bool = False, left_out: list[str] | None = None
) -> list[Drawn]:
    """The annotations in pixels of the upright images they belong to, without the boxes that no image can have.

    - A box outside of its image, or smaller than a pixel, is left out; one that reaches beyond is cut at the edge.
    - A size whose proportions are the image's, width and height exchanged, is a mistake in the annotation: its boxes
      are taken as they are, not stretched. A size of other proportions stretches them, as if the image were squashed.
    - Boxes of an image that EXIF turns are those of the stored pixels if their size says so, or if any box of the
      source fits only these; else those of the upright image.

    Each kind is remarked on with its count and an example. What cannot be opened stays as it is. `left_out` takes a
    line `path: reason` for each box that is.
    """
    frames = [_Frame.of(each) for each in drawn]
    events: list[_Event] = []
    is_stored = _are_stored(frames)
    pairs = list(zip(drawn, frames, strict=True))
    results = [each if own is None else each._replace(annotation=_fit(own, events, is_stored)) for each, own in pairs]
    for kind, frame, box in events:
        if left_out is not None and kind in ("outside", "tiny"):
            what = "lies outside of its image" if kind == "outside" else "covers less than a pixel of its image"
            edges = ", ".join(f"{edge:g}" for edge in box)
            left_out.append(f"{frame.path}: the box ({edges}) {what}, which is {frame.size[0]}x{frame.size[1]}")
    first = {kind: (frame, box) for kind, frame, box in reversed(events)}
    for kind, count in Counter(kind for kind, _, _ in events).items():
        frame, box = first[kind]
        given = "" if frame.given in (None, SHARES, frame.size) else ", annotated as {}x{}".format(*frame.given or ())
        edges = ", ".join(f"{edge:g}" for edge in box)
        shown = f"({edges}) of {frame.path} ({frame.size[0]}x{frame.size[1]} pixels{given})"
        remark(_SENTENCES[kind].format(n=f"{count:,}", source=source, example=shown), strict=strict)
    plain = [frame for frame in frames if frame is not None and frame.given in (None, frame.size)]
    shares = [(box.right / f.size[0], box.bottom / f.size[1], max(box)) for f in plain for box, *_ in f.boxes]
    if len(shares) < _MANY or min(min(frame.size) for frame in plain if frame.boxes) < _LARGE:
        return results
    across, down, edge = map(max, zip(*shares, strict=True))
    if max(across, down) <= _CORNER:
        example = next(frame for frame in plain if frame.boxes)
        percent = ", or in percent," if edge <= 100 else ""
        remark(
            f"all {len(shares):,} boxes of {source} lie in the first {across:.0%} of their image's width and "
            f"{down:.0%} of its height, as boxes drawn on a smaller copy{percent} would; {example.path} has "
            f"{example.size[0]}x{example.size[1]} pixels",
            strict=strict,
        )
    return results


@dataclass(frozen=True)
class _Frame:
    """An annotation beside the header of its image."""

    path: str
    boxes: tuple[LabelledBox, ...]
    given: Size | None
    size: Size  # upright
    orientation: int

    @classmethod
    def of(cls, drawn: Drawn) -> _Frame | None:
        try:
            size, orientation = size_and_orientation(drawn.file)
        except ImageError:
            return None
        return cls(drawn.path, drawn.annotation.boxes, drawn.annotation.size, size, orientation)

    @property
    def stored(self) -> Size:
        return self.size if self.orientation < 5 else (self.size[1], self.size[0])

    def holds(self, size: Size) -> bool:
        return all(not _exceeds(each.box, size) for each in self.boxes)


_Event = tuple[str, _Frame, Box]  # a kind out of `_SENTENCES`, with an example


def _are_stored(frames: Iterable[_Frame | None]) -> bool | None:
    """True if boxes of turned images are those of the stored pixels; None if nothing tells."""
    stored = upright = False
    for frame in frames:
        if frame is None or frame.orientation < 5 or frame.given == SHARES or not frame.boxes:
            continue
        if frame.given is not None and frame.size[0] != frame.size[1]:
            stored |= _is_alike(frame.given, frame.stored)
            upright |= _is_alike(frame.given, frame.size)
        else:
            fits = frame.holds(frame.size), frame.holds(frame.stored)
            stored |= fits == (False, True)
            upright |= fits == (True, False)
    return None if stored == upright else stored


def _is_alike(first: Size, second: Size) -> bool:
    """True if two sizes have the same proportions, give or take the rounding."""
    products = first[0] * second[1], first[1] * second[0]
    return abs(products[0] - products[1]) <= max(_ALIKE * max(products), (max(first) + max(second)) / 2)


def _exceeds(box: Box, size: Size) -> bool:
    width, height = size
    return min(box.left, box.top) < -_SLACK or box.right > width + _SLACK or box.bottom > height + _SLACK


def _fit(frame: _Frame, events: list[_Event], is_stored: bool | None) -> Annotation:
    boxes, given = frame.boxes, frame.given or frame.size
    if frame.orientation != 1 and boxes:
        if is_stored and given != SHARES:
            canvas = frame.stored if frame.given is None else given
            boxes = tuple(each._replace(box=turned(each.box, frame.orientation, canvas)) for each in boxes)
            given = canvas if frame.orientation < 5 else (canvas[1], canvas[0])
            events.append(("turned", frame, boxes[0].box))
        elif is_stored is None:
            events.append(("assumed", frame, boxes[0].box))
    if given != SHARES and given != frame.size and boxes and not _is_alike(given, frame.size):
        swapped = (given[1], given[0])
        kind = "exchanged" if _is_alike(swapped, frame.size) else "stretched"
        events.append((kind, frame, boxes[0].box))
        given = swapped if kind == "exchanged" else given
    kept = []
    for each in boxes:
        box, seen = each.box, each.box.clipped(*given)
        if seen.area <= 0:
            events.append(("outside", frame, box))
        elif seen.scaled(frame.size[0] / given[0], frame.size[1] / given[1]).area < 1:
            events.append(("tiny", frame, box))
        elif given != SHARES and _exceeds(box, given):
            events.append(("beyond", frame, box))
            kept.append(each._replace(box=seen))
        else:
            kept.append(each)
    return Annotation(tuple(kept), None if given == frame.size else given)


_SENTENCES = {
    "outside": "{n} boxes of {source} lie outside of their image and are left out, such as {example}",
    "tiny": "{n} boxes of {source} cover less than a pixel of their image and are left out, such as {example}",
    "beyond": "{n} boxes of {source} reach beyond their image and are cut at its edge, such as {example}",
    "exchanged": "{n} annotations of {source} have width and height exchanged; their boxes are taken as they are, not "
    "stretched, such as {example}",
    "stretched": "{n} annotations of {source} are of images of other proportions; their boxes are stretched, which is "
    "right for images that were squashed and wrong for others, such as {example}",
    "turned": "{n} images are turned by their EXIF orientation, and the boxes of {source} were drawn before: they are "
    "turned too, such as {example}",
    "assumed": "{n} images are turned by their EXIF orientation, and nothing tells whether the boxes of {source} were "
    "drawn before or after; they are taken as after, such as {example}",
}
