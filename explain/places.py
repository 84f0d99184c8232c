"""Places on an image, in its own pixels: as pixels of a network's output, and as boxes around what a map points out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ..encoders.regions import region_mask
from ..errors import InputError, ShapeError
from ..images.geometry import Box
from ..images.transform import Transform
from ..metrics.maps import components, finite_array
from ..remarks import remark


def image_in_view(transform: Transform, size: tuple[int, int] | None) -> Box | None:
    """The image's place on what the network sees of it, in fractions of that; None where the size is not known.

    >>> image_in_view(Transform(8, fit="pad"), (80, 40))
    Box(left=0.0, top=0.25, right=1.0, bottom=0.75)
    """
    if size is None:
        return None
    view = transform.view(*size)
    return Box(0, 0, *size).shifted(-view.left, -view.top).scaled(1 / view.width, 1 / view.height)


def share_of_view(transform: Transform, size: tuple[int, int] | None) -> float:
    """How much of what the network sees an image takes, the rest being margin; 1 where the size is not known."""
    place = image_in_view(transform, size)
    return 1.0 if place is None else min(1.0, place.area)


def point_in_input(point: tuple[float, float], transform: Transform, size: tuple[int, int]) -> tuple[int, int]:
    """The (row, column) of the network's input in which a point (x, y) of an image of `size` (width, height) lies.

    >>> point_in_input((10.0, 30.0), Transform(8, fit="squash"), (80, 40))
    (6, 1)
    """
    view = transform.view(*size)
    if not view.clipped(*size).contains(*point):
        raise InputError(f"the point {point} lies outside {_seen(view, size)}")
    return position_of(point, view, (transform.height, transform.width))


def _seen(view: Box, size: tuple[int, int]) -> str:
    edges = tuple(round(edge, 1) for edge in view.clipped(*size))
    return f"what the network sees of an image of {size[0]}×{size[1]} pixels, (left, top, right, bottom) = {edges}"


def position_of(point: tuple[float | int, float | int], view: Box, shape: tuple[int, ...]) -> tuple[int, int]:
    """The position (row, column) of a map over `view` that a point (x, y) of the image lies in."""
    x, y = point
    if not view.contains(x, y):
        seen = tuple(round(edge, 1) for edge in view)
        raise InputError(f"the point {(x, y)} lies outside what the encoder sees, (left, top, right, bottom) = {seen}")
    row = int((y - view.top) / view.height * shape[0])
    column = int((x - view.left) / view.width * shape[1])
    return min(row, shape[0] - 1), min(column, shape[1] - 1)


def middle_of(position: Sequence[int], view: Box, shape: Sequence[int]) -> tuple[float, float]:
    """The point (x, y) in the middle of a position (row, column) of a map over `view`."""
    row, column = ((index + 0.5) / n for index, n in zip(position, shape, strict=True))
    return view.left + column * view.width, view.top + row * view.height


def visible_box(box: Box, size: tuple[int, int], *, is_said: bool = True) -> Box:
    """The part of a box that lies on an image of `size` (width, height), in its pixels; says if it is not all."""
    width, height = size
    if min(box) >= 0 and max(box) <= 1 < min(size):
        raise InputError(
            f"the box {tuple(box)} lies within the first pixel; boxes are in pixels of the image, here of "
            f"{width}×{height}, not in shares of its sides"
        )
    inside = box.clipped(width, height)
    if not inside.area > 0:  # NaN fails too
        raise InputError(f"the region {tuple(box)} is empty or lies outside the image of {width}×{height} pixels")
    if is_said and inside.area < 0.99 * box.area:
        remark(
            f"the box {tuple(box)} reaches beyond the image of {width}×{height} pixels; the part on it is used, "
            f"{tuple(inside)}"
        )
    return inside


def project(box: Box, transform: Transform, size: tuple[int, int]) -> Box:
    """A box of an image of this (width, height) in pixels of the network's input, not clipped: `locate` undone.

    >>> project(Box(16, 144, 240, 368), Transform(224, fit="crop"), (256, 512))
    Box(left=0.0, top=0.0, right=224.0, bottom=224.0)
    """
    view = transform.view(*size)
    return box.shifted(-view.left, -view.top).scaled(transform.width / view.width, transform.height / view.height)


def sample_mask(mask: NDArray[Any], transform: Transform) -> tuple[NDArray[Any], Bool[NDArray[Any], "h w"]]:
    """A mask of an image as the network's input shows it (nearest pixel), 0 beyond the image, and where that is not."""
    height, width = mask.shape
    view = transform.view(width, height)
    y = np.floor(view.top + (np.arange(transform.height) + 0.5) * view.height / transform.height).astype(int)
    x = np.floor(view.left + (np.arange(transform.width) + 0.5) * view.width / transform.width).astype(int)
    inside = ((y >= 0) & (y < height))[:, None] & (x >= 0) & (x < width)
    return mask[y.clip(0, height - 1)][:, x.clip(0, width - 1)] * inside, inside


def box_in_input(box: Box, transform: Transform, size: tuple[int, int]) -> Box:
    """A box of the image in pixels of the network's input, clipped to it."""
    inside = project(visible_box(box, size), transform, size).clipped(transform.width, transform.height)
    if not inside.area > 0:  # NaN fails too
        raise InputError(f"the box {tuple(box)} lies outside {_seen(transform.view(*size), size)}")
    return inside


def mask_in_input(
    mask: Bool[NDArray[Any], "height width"], transform: Transform, size: tuple[int, int]
) -> Bool[Tensor, "h w"]:
    """A mask of the image as one of the network's input: every pixel takes the value at its centre."""
    seen, _ = sample_mask(region_mask(mask, size), transform)
    if not seen.any():
        raise InputError("the network sees nothing of this mask: it lies outside its view, or is finer than its input")
    return torch.from_numpy(seen)


def box_from_map(heat_map: Float[Tensor, "h w"], *, threshold: float = 0.2) -> Box:
    """The tight box around a map's largest hot region, in pixels of the map.

    The map is scaled to [0, 1] by its minimum and maximum; the region is the largest 8-connected component of positions
    at `threshold`, which is in [0, 1], or above. Resize the map to the image first (`upsample`) for a box in image
    pixels; the box of the small map, `scaled`, is coarser. A constant map gives the box of the whole map.

    0.2 is what CAM uses; it is too low for maps whose floor is high. Choose it on held-out images with boxes.

    Source: [Dist-CAM] Table 1 (no threshold is stated there); Zhou et al. 2016, §3.2 (0.2).

    >>> box_from_map(torch.tensor([[0.0, 0.0, 9.0], [5.0, 0.0, 6.0], [0.0, 0.0, 6.0]]), threshold=0.5)
    Box(left=2.0, top=0.0, right=3.0, bottom=3.0)
    """
    return boxes_from_maps(heat_map[None], threshold=threshold)[0]


def boxes_from_maps(maps: Float[Tensor, "n h w"], *, threshold: float = 0.2) -> list[Box]:
    """`box_from_map` of every map; half a millisecond each at 224×224."""
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold={threshold} should be a fraction of the map's maximum, from 0 to 1")
    values = finite_array(maps)
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ShapeError(f"maps have shape (n, rows, columns); got {values.shape}")
    low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    found = components(values - low >= threshold * (high - low)).largest()  # no mask is empty: its maximum is in it
    return [Box(*box) for box in found.box.tolist()]
