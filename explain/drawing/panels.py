"""Panels of a query beside its matches and maps, and sheets of many maps, on a scale and in a style."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from ...errors import InputError, ShapeError
from ...images.geometry import Box
from ...images.inline import Tile
from ...metrics.maps import is_constant, normalise, upsample
from ..places import box_from_map
from .rendering import WHITE, Colour, Colours, colour_table, contour, draw_box, overlay, text_font

INK: Colour = (28, 32, 40)
FAINT: Colour = (118, 124, 136)
GAP = 14
MISSING = Image.new("RGB", (96, 96), (214, 217, 222))  # stands for an image that does not exist


def grid(rows: Sequence[Sequence[Tile | None]], *, tile_size: int = 196, gap_after_first: int = GAP) -> Image.Image:
    """Rows of images on white, each fitted into a square of `tile_size` pixels in its own proportions; None is a gap.

    One row makes a side-by-side. Text that is too long for its tile ends in an ellipsis.
    """
    if not rows or not any(tile for row in rows for tile in row):
        raise InputError("a grid needs at least one image")
    n_columns = max(len(row) for row in rows)
    line = text_height(tile_size)
    step = round(1.6 * line)
    heights = []
    for row in rows:  # a line for the titles, if any, and the tallest tile with its caption
        tiles = [tile for tile in row if tile is not None]
        tallest = max((_fitted(tile.shown, tile_size)[1] + step * bool(tile.caption) for tile in tiles), default=0)
        heights.append(tallest + step * any(tile.title for tile in tiles))
    width = 2 * GAP + n_columns * tile_size + (n_columns - 1) * GAP + (gap_after_first - GAP) * (n_columns > 1)
    sheet = Image.new("RGB", (width, 2 * GAP + sum(heights) + GAP * (len(rows) - 1)), WHITE)
    y = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            x = GAP + column * (tile_size + GAP) + (gap_after_first - GAP) * (column > 0)
            if tile is not None:
                _place(sheet, tile, x, y, tile_size, has_titles=any(t and t.title for t in row))
        y += height + GAP
    return sheet


def below(*images: Image.Image) -> Image.Image:
    """Images below one another on white."""
    canvas = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), WHITE)
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height
    return canvas


def legend(width: int = 196, *, colours: Colours = "inferno", low: str = "low", high: str = "high") -> Image.Image:
    """A bar that runs through the colours from `low` to `high`, with the two words below its ends, on white."""
    size = text_height(width)
    bar = max(10, size)
    canvas = Image.new("RGB", (width, bar + 2 * size), WHITE)
    places = np.rint(np.linspace(0, 255, width)).astype(np.intp)
    strip = np.broadcast_to(colour_table(colours)[places], (bar, width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(strip)), (0, 0))
    draw = ImageDraw.Draw(canvas)
    font = text_font(size)
    draw.text((0, bar + size // 3), low, fill=FAINT, font=font)
    draw.text((width, bar + size // 3), high, fill=FAINT, font=font, anchor="ra")
    return canvas


def text_height(tile_size: int) -> int:
    """Size of the letters under a tile, in pixels; of large tiles no larger than of middling ones."""
    return max(11, round(min(tile_size, 240) / 14))


def _fitted(image: Image.Image, tile_size: int) -> tuple[int, int]:
    """Width and height of the image inside a square tile."""
    scale = tile_size / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _place(sheet: Image.Image, tile: Tile, x: int, y: int, tile_size: int, *, has_titles: bool) -> None:
    """Title, image, frame and caption of one tile, from its corner down, centred."""
    draw = ImageDraw.Draw(sheet)
    line = text_height(tile_size)
    font = text_font(line)
    middle = x + tile_size // 2
    if tile.title:
        draw.text((middle, y), _shortened(draw, tile.title, tile_size, line), fill=INK, font=font, anchor="ma")
    y += round(1.6 * line) * has_titles
    image = tile.shown
    width, height = _fitted(image, tile_size)
    left = x + (tile_size - width) // 2
    sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (left, y))
    if tile.frame is not None:
        edge = max(3, tile_size // 48)
        draw.rectangle((left, y, left + width - 1, y + height - 1), outline=tile.frame, width=edge)
    if tile.caption:
        text = _shortened(draw, tile.caption, tile_size, line)
        draw.text((middle, y + height + round(0.4 * line)), text, fill=FAINT, font=font, anchor="ma")


def _shortened(draw: ImageDraw.ImageDraw, text: str, width: int, size: int) -> str:
    """The text as far as it fits into `width` pixels."""
    font = text_font(size)
    if draw.textlength(text, font=font) <= width:
        return text
    cut = bisect_left(range(1, len(text)), True, key=lambda n: draw.textlength(text[:n] + "…", font=font) > width)
    return text[:cut] + "…"


Seen = TypeVar("Seen", Box, Box | None)
Style = Literal["overlay", "contour", "box"]
Scale = Literal["each", "shared"]

_SIDE = 196  # of a map in a panel, in pixels
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
    """A row for each image, a column for each set of maps, and legends below: what `grid` and `write_page` take."""
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


def map_rows(
    query: Tile,
    references: Sequence[Tile],
    query_maps: Float[Tensor, "n h w"] | None,
    reference_maps: Float[Tensor, "n u v"] | None,
    *,
    view: Box,
    views: Sequence[Box | None],
    look: DrawStyle,
    ends: tuple[str, str],
    beside: Float[Tensor, "n h w"] | None = None,
) -> list[list[Tile | None]]:
    """A query with its n references, below each of them the query under its map, and then itself under its own.

    A query that has no maps is a text. `beside` are Dist-CAM's maps on the query, in a last row.
    """
    n, size = len(references), _SIDE
    first = reference_maps if query_maps is None else query_maps
    if first is not None and (look.scale == "shared" or n == 1):
        low, high = scaled(first, look)[1][0]
        ends = (f"{low:.3g}", f"{high:.3g}")
    bar = blank = Image.new("RGB", (size, 1), WHITE)
    if look.style == "overlay":
        query, view = _reduced(query, view, size)
        reduced = [_reduced(*each, size) for each in zip(references, views, strict=True)]
        references, views = [tile for tile, _ in reduced], [seen for _, seen in reduced]
        bar = legend(size, colours=look.colours, low=ends[0], high=ends[1])
    rows: list[list[Tile | None]] = [[query, *references]]
    if query_maps is not None:
        on_query = map_tiles([query.image] * n, query_maps, views=[view] * n, look=look)
        rows.append([Tile(bar, caption="on the query"), *on_query])
        bar = blank
    if reference_maps is not None:
        there = [index for index, seen in enumerate(views) if seen is not None]
        images, seen = [references[index].image for index in there], [each for each in views if each is not None]
        drawn = dict(zip(there, map_tiles(images, reference_maps[there], views=seen, look=look), strict=True))
        on_references = [
            replace(drawn.get(index, Tile(MISSING)), within=references[index].within) for index in range(n)
        ]
        rows.append([Tile(bar if query_maps is None else blank, caption="on the match"), *on_references])
    if beside is not None:
        plain = DrawStyle(style=look.style, scale=look.scale, opacity=look.opacity, level=look.level)
        drawn_beside = map_tiles([query.image] * n, beside, views=[view] * n, look=plain)
        rows.append([Tile(blank, caption="beside it: Dist-CAM"), *drawn_beside])
    return rows


def map_panel(rows: Sequence[Sequence[Tile | None]], words: Sequence[str] = ()) -> Image.Image:
    """The rows of `map_rows` as one image; `words` stand below, each as a paragraph."""
    return _with_words(grid(rows, tile_size=_SIDE, gap_after_first=2 * GAP), words)


def _reduced(tile: Tile, view: Seen, tile_size: int) -> tuple[Tile, Seen]:
    """A tile with its image as small as it is shown, and the view in the new pixels; smooth colours look alike."""
    width, height = _fitted(tile.image, tile_size)
    if width >= tile.image.width:
        return tile, view
    scale = width / tile.image.width, height / tile.image.height
    small = tile.image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    return replace(tile, image=small), view and view.scaled(*scale)


def _with_words(image: Image.Image, words: Sequence[str]) -> Image.Image:
    """The image with lines of text below, broken where it ends."""
    size = 13
    draw, font = ImageDraw.Draw(image), text_font(size)
    lines: list[str] = []
    for paragraph in words:
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".lstrip()
            if line and draw.textlength(longer, font=font) > image.width - 2 * GAP:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    canvas = Image.new("RGB", (image.width, image.height + round(1.5 * size) * len(lines) + GAP * bool(lines)), WHITE)
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((GAP, image.height + number * round(1.5 * size)), line, fill=INK, font=font)
    return canvas
