"""Rectangles in pixel units: the one type that transforms, overlays and localisation exchange."""

from __future__ import annotations

from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle given by its pixel edges: x grows to the right, y downwards, right and bottom are exclusive.

    The first pixel of an image covers `Box(0, 0, 1, 1)`, so widths and areas need no `+ 1`. A box whose right edge is
    not beyond its left one (or bottom not beyond top) is empty: its area is 0.

    >>> Box(10, 20, 40, 60).area
    1200
    >>> Box(0, 0, 4, 4).iou(Box(2, 0, 6, 4))
    0.3333333333333333
    """

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Distance from the left to the right edge in pixels, never negative."""
        return max(self.right - self.left, 0)

    @property
    def height(self) -> float:
        """Distance from the top to the bottom edge in pixels, never negative."""
        return max(self.bottom - self.top, 0)

    @property
    def area(self) -> float:
        """Area in square pixels, never negative."""
        return self.width * self.height

    @property
    def center(self) -> tuple[float, float]:
        """The middle as (x, y)."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def intersection(self, other: Box) -> Box:
        """The rectangle both boxes cover; empty (area 0) when they only touch or lie apart."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Box(left, top, max(left, right), max(top, bottom))

    def iou(self, other: Box) -> float:
        """Intersection over union in [0, 1]; 0.0 when both boxes are empty, also if they are the same."""
        shared = self.intersection(other).area
        union = self.area + other.area - shared
        return shared / union if union > 0 else 0.0

    def contains(self, x: float, y: float) -> bool:
        """True if the point lies inside; the left and top edges belong to the box, the right and bottom ones do not."""
        return self.left <= x < self.right and self.top <= y < self.bottom

    def scaled(self, x: float, y: float | None = None) -> Box:
        """The box in an image resized by the factor `x` across and `y` down (the same factor when `y` is left out)."""
        down = x if y is None else y
        return Box(self.left * x, self.top * down, self.right * x, self.bottom * down)

    def shifted(self, x: float, y: float) -> Box:
        """The box moved `x` pixels to the right and `y` pixels down."""
        return Box(self.left + x, self.top + y, self.right + x, self.bottom + y)

    def clipped(self, width: float, height: float) -> Box:
        """The part of the box inside an image of this size; empty, on the nearest edge, when it lies outside."""
        return Box(
            min(max(self.left, 0), width),
            min(max(self.top, 0), height),
            min(max(self.right, 0), width),
            min(max(self.bottom, 0), height),
        )
