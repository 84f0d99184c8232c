"""Boxes and the images they were drawn on: exchanged sizes, turned photographs, boxes that lie outside.

Nothing here is taken on trust and nothing is decided in silence. What a box means follows from the size that its
annotation gives and from the image's own header: an annotation of 72 × 96 for an image of 96 × 72 is not one of another
resolution, and a box that fits an image only as the camera stored it was drawn before the image was turned upright.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...errors import ImageError
from ...remarks import remark
from ..geometry import Box
from ..loading import image_size, orientation_of
from .tables import SHARES, Annotation, LabelledBox

_SLACK = 1.0  # pixels by which a box may exceed its image: tables differ in whether the last pixel counts
_MANY, _LARGE, _CORNER = 5, 200, 0.4  # boxes, pixels of a side, share of it: that no box goes further is no chance
_ALIKE = 0.01  # by which proportions may differ, for sizes are rounded
Size = tuple[int, int]


class Drawn(NamedTuple):
    """An annotation and the image it was made for."""

    path: str
    file: Path
    annotation: Annotation


def turned(box: Box, orientation: int, size: Size) -> Box:
    """A box of stored pixels in those of the upright image.

    Args:
        box: in an image of `size`.
        orientation: EXIF's, from 1 to 8.
        size: (width, height) as stored.

    >>> turned(Box(0, 0, 3, 1), 6, (4, 2))  # the camera was held upright: what was left is now the top
    Box(left=1, top=0, right=2, bottom=3)
    """
    width, height = size
    left, top, right, bottom = box
    across, down = Box(width - right, top, width - left, bottom), Box(left, height - bottom, right, height - top)
    both = Box(across.left, down.top, across.right, down.bottom)
    flipped = {1: box, 2: across, 3: both, 4: down, 5: box, 6: down, 7: both, 8: across}[orientation]
    return flipped if orientation < 5 else Box(flipped.top, flipped.left, flipped.bottom, flipped.right)


def fitted(drawn: Sequence[Drawn], source: object, *, strict: bool = False) -> list[Annotation]:
    """The annotations in pixels of the upright images they belong to, without the boxes that no image can have.

    - A box outside of its image, or smaller than a pixel, is left out; one that reaches beyond is cut at the edge.
    - A size whose proportions are the image's, width and height exchanged, is a mistake in the annotation: its boxes
      are taken as they are, not stretched. A size of other proportions stretches them, as if the image were squashed.
    - Boxes of an image that EXIF turns are those of the stored pixels if their size says so, or if any box of the
      source fits only these; else those of the upright image.

    Each kind is remarked on with its count and an example. What cannot be opened stays as it is.

    Args:
        drawn: annotations with their images.
        source: where the boxes come from, for messages.
        strict: refuse what would be remarked on.
    """
    frames = [_Frame.of(each) for each in drawn]
    said = _Said(source, strict)
    is_stored = _are_stored(frames)
    results = [
        each.annotation if frame is None else _fit(frame, said, is_stored)
        for each, frame in zip(drawn, frames, strict=True)
    ]
    said.tell()
    _remark_on_corner([frame for frame in frames if frame is not None], source, strict=strict)
    return results


def _remark_on_corner(frames: Sequence[_Frame], source: object, *, strict: bool) -> None:
    """Say that all boxes lie in one corner of large images, as those of a smaller copy do, and percentages."""
    drawn = [(box, frame) for frame in frames if frame.given in (None, frame.size) for box, _ in frame.boxes]
    if len(drawn) < _MANY or min(min(frame.size) for _, frame in drawn) < _LARGE:
        return
    across = max(box.right / frame.size[0] for box, frame in drawn)
    down = max(box.bottom / frame.size[1] for box, frame in drawn)
    if max(across, down) <= _CORNER:
        edge, example = max(max(box) for box, _ in drawn), drawn[0][1]
        percent = ", or in percent," if edge <= 100 else ""
        remark(
            f"all {len(drawn):,} boxes of {source} lie in the first {across:.0%} of their image's width and "
            f"{down:.0%} of its height, as boxes drawn on a smaller copy{percent} would; {example.path} has "
            f"{example.size[0]}x{example.size[1]} pixels",
            strict=strict,
            stacklevel=5,
        )


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
            size, orientation = image_size(drawn.file), orientation_of(drawn.file)
        except ImageError:
            return None
        return cls(drawn.path, drawn.annotation.boxes, drawn.annotation.size, size, orientation)

    @property
    def stored(self) -> Size:
        return self.size if self.orientation < 5 else (self.size[1], self.size[0])

    def holds(self, size: Size) -> bool:
        """True if all boxes lie in an image of this size, or nearly so."""
        return all(not _exceeds(box, size) for box, _ in self.boxes)


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


def _fit(frame: _Frame, said: _Said, is_stored: bool | None) -> Annotation:
    """The annotation as `fitted` describes it."""
    boxes, given = frame.boxes, frame.given or frame.size
    if frame.orientation != 1 and boxes:
        if is_stored and given != SHARES:
            canvas = frame.stored if frame.given is None else given
            boxes = tuple(LabelledBox(turned(box, frame.orientation, canvas), label) for box, label in boxes)
            given = canvas if frame.orientation < 5 else (canvas[1], canvas[0])
            said.add("turned", frame, boxes[0].box)
        elif is_stored is None:
            said.add("assumed", frame, boxes[0].box)
    if given != SHARES and given != frame.size and boxes and not _is_alike(given, frame.size):
        swapped = (given[1], given[0])
        kind = "exchanged" if _is_alike(swapped, frame.size) else "stretched"
        said.add(kind, frame, boxes[0].box)
        given = swapped if kind == "exchanged" else given
    kept = [own for own in boxes if (box := _inside(own, given, frame, said)) is not None for own in (box,)]
    return Annotation(tuple(kept), None if given == frame.size else given)


def _inside(own: LabelledBox, given: Size, frame: _Frame, said: _Said) -> LabelledBox | None:
    """The part of a box in the image; None if there is none, or none that can be seen."""
    box = own.box
    seen = box.clipped(*given)
    if seen.area <= 0:
        said.add("outside", frame, box)
        return None
    if seen.scaled(frame.size[0] / given[0], frame.size[1] / given[1]).area < 1:
        said.add("tiny", frame, box)
        return None
    if given != SHARES and _exceeds(box, given):
        said.add("beyond", frame, box)
        return LabelledBox(seen, own.label)
    return own


@dataclass
class _Said:
    """Remarks by kind, each with its count and first example."""

    source: object
    strict: bool
    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, frame: _Frame, box: Box) -> None:
        count, example = self.found.get(kind, (0, ""))
        if not count:
            edges = ", ".join(f"{edge:g}" for edge in box)
            given = None if frame.given in (None, SHARES, frame.size) else frame.given
            drawn_on = "" if given is None else f", annotated as {given[0]}x{given[1]}"
            example = f"({edges}) of {frame.path} ({frame.size[0]}x{frame.size[1]} pixels{drawn_on})"
        self.found[kind] = count + 1, example

    def tell(self) -> None:
        for kind, (count, example) in self.found.items():
            remark(
                _SENTENCES[kind].format(n=f"{count:,}", source=self.source, example=example),
                strict=self.strict,
                stacklevel=5,
            )


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
