"""Maps drawn on images, on a scale, in colours, as an overlay, a line or a box; and sheets of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...errors import InputError, ShapeError
from ...explain.places import box_from_map
from ...images.geometry import Box
from ...metrics.maps import is_constant, normalise, upsample
from .colours import Colours
from .panels import MISSING, Tile, legend, panel
from .rendering import contour, draw_box, overlay

Style = Literal["overlay", "contour", "box"]
Scale = Literal["each", "shared"]

FINE = 16  # steps per position at which a map is enlarged before a box is put around its peak


@dataclass(frozen=True)
class DrawStyle:
    """The way a set of maps is drawn.

    Attributes:
        style: the map's colours over the image, the line at `level`, or the box around the largest region above it.
        scale: "each" map runs from its own minimum to its own maximum; "shared" is one scale for the set, so that two
            maps can be compared by eye.
        colours: a scale that colour-blind readers can tell apart. "blue-orange" is for signed maps: its middle is 0.
        opacity: of the colours, 0 to 1.
        level: of line and box, as a fraction of the scale.
    """

    style: Style = "overlay"
    scale: Scale = "each"
    colours: Colours = "inferno"
    opacity: float = 0.5
    level: float = 0.5

    def __post_init__(self) -> None:
        for name, value, choices in (("style", self.style, get_args(Style)), ("scale", self.scale, get_args(Scale))):
            if value not in choices:
                raise InputError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}")
        if not 0 <= self.level <= 1:
            raise InputError(f"level={self.level} should be a fraction from 0 to 1")


def scaled(maps: Float[Tensor, "n h w"], look: DrawStyle) -> tuple[Float[Tensor, "n h w"], list[tuple[float, float]]]:
    """The maps in [0, 1], and for each the raw values that 0 and 1 stand for.

    >>> scaled(torch.tensor([[[1.0, 3.0]], [[2.0, 5.0]]]), DrawStyle(scale="shared"))[1]
    [(1.0, 5.0), (1.0, 5.0)]
    """
    shared, centred = look.scale == "shared", look.colours == "blue-orange"
    low, high = (pick(maps.flatten(1), 1) for pick in (torch.amin, torch.amax))
    if shared and len(maps):
        low, high = low.min().expand_as(low), high.max().expand_as(high)
    if centred:
        high = torch.maximum(low.abs(), high.abs())
        low = -high
    unit = normalise(maps, shared=shared, centred=centred) if len(maps) else maps
    return unit, list(zip(low.tolist(), high.tolist(), strict=True))


def paint(
    image: Image.Image, heat_map: Float[Tensor, "h w"], *, view: Box | None = None, look: DrawStyle | None = None
) -> Image.Image:
    """One map, scaled to [0, 1], on its image, in the style of the look."""
    look = look or DrawStyle()
    is_flat = bool(is_constant(heat_map))
    if look.style == "overlay":  # a constant map of its own scale explains nothing and is not coloured
        opacity = 0.0 if is_flat and look.scale == "each" else look.opacity
        return overlay(image, heat_map, view=view, opacity=opacity, colours=look.colours)
    if look.style == "contour":
        return contour(image, heat_map, look.level, view=view)
    if is_flat:
        return image.convert("RGB")
    return draw_box(image, place_box(heat_map, view or Box(0, 0, *image.size), level=look.level))


def place_box(heat_map: Float[Tensor, "h w"], view: Box, *, level: float = 0.5) -> Box:
    """The box around the largest region above the level, in pixels of the image that the map lies on."""
    rows, columns = (FINE * side for side in heat_map.shape)
    box = box_from_map(upsample(heat_map.float(), (rows, columns)), threshold=level)
    return box.scaled(view.width / columns, view.height / rows).shifted(view.left, view.top)


def map_tiles(
    images: Sequence[Image.Image],
    maps: Float[Tensor, "n h w"],
    *,
    views: Sequence[Box],
    look: DrawStyle | None = None,
    title: str = "",
) -> list[Tile]:
    """Each map on its image, captioned with the raw values at the two ends of its colours; constant ones say so."""
    look = look or DrawStyle()
    if not len(images) == len(maps) == len(views):
        raise ShapeError(f"expected a map and a view for each of {len(images)} images; got {len(maps)}, {len(views)}")
    unit, ranges = scaled(maps, look)
    flat = is_constant(maps).tolist() if len(maps) else []
    captions = [
        f"constant, {low:.3g}" if is_flat else f"{low:.3g} … {high:.3g}"
        for (low, high), is_flat in zip(ranges, flat, strict=True)
    ]
    return [
        Tile(paint(image, heat, view=view, look=look), title=title, caption=caption)
        for image, heat, view, caption in zip(images, unit, views, captions, strict=True)
    ]


def sheet(
    images: Sequence[Image.Image],
    maps: Mapping[str, Float[Tensor, "n h w"]],
    *,
    views: Sequence[Box],
    look: DrawStyle | None = None,
    captions: Sequence[str] = (),
) -> list[list[Tile | None]]:
    """A row for each image, a column for each set of maps, and legends below: what `grid` and `write_page` take.

    A shared scale is that of one column, the maps of one method, which have one unit; its legend holds the numbers.
    Otherwise they stand under each map.
    """
    look = look or DrawStyle()
    words = list(captions) or [""] * len(images)
    columns = [map_tiles(images, each, views=views, look=look, title=name) for name, each in maps.items()]
    rows: list[list[Tile | None]] = [
        [Tile(image, title="image", caption=caption), *tiles]
        for image, caption, *tiles in zip(images, words, *columns, strict=True)
    ]
    if look.style == "overlay":
        legends = []
        for each in maps.values():
            low, high = ("-", "+") if look.colours == "blue-orange" else ("low", "high")
            if look.scale == "shared" or len(each) == 1:  # one scale holds for all of them
                low, high = (f"{end:.3g}" for end in scaled(each, look)[1][0])
            legends.append(Tile(legend(colours=look.colours, low=low, high=high)))
        rows.append([None, *legends])
    return rows


def map_panel(
    query: Tile,
    references: Sequence[Tile],
    query_maps: Float[Tensor, "n h w"],
    reference_maps: Float[Tensor, "n u v"] | None,
    *,
    view: Box,
    views: Sequence[Box | None],
    look: DrawStyle,
    ends: tuple[str, str],
) -> Image.Image:
    """A `panel` of a query, its n references, and the maps on both."""
    n = len(references)
    on_references: list[Tile] = []
    if reference_maps is not None:
        there = [index for index, seen in enumerate(views) if seen is not None]
        images, seen = [references[index].image for index in there], [each for each in views if each is not None]
        drawn = dict(zip(there, map_tiles(images, reference_maps[there], views=seen, look=look), strict=True))
        on_references = [drawn.get(index, Tile(MISSING)) for index in range(n)]
    if look.scale == "shared" or n == 1:
        low, high = scaled(query_maps, look)[1][0]
        ends = (f"{low:.3g}", f"{high:.3g}")
    return panel(
        query,
        references,
        map_tiles([query.image] * n, query_maps, views=[view] * n, look=look),
        on_references,
        colours=look.colours if look.style == "overlay" else None,
        ends=ends,
    )
