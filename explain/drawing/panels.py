"""Images of a query beside its matches and maps: for a paper, a README, an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ...errors import InputError
from .colours import Colours, colour_table
from .rendering import WHITE, Colour, text_font

INK: Colour = (28, 32, 40)
FAINT: Colour = (118, 124, 136)
GAP = 14
MISSING = Image.new("RGB", (96, 96), (214, 217, 222))  # stands for an image that does not exist


@dataclass(frozen=True)
class Tile:
    """One image of a grid: `title` stands above it, `caption` below; `frame` colours its edge.

    Of the colours that colour-blind readers keep apart, (0, 114, 178) and (213, 94, 0) serve for right and wrong.
    """

    image: Image.Image
    title: str = ""
    caption: str = ""
    frame: Colour | None = None


def panel(
    query: Tile,
    matches: Sequence[Tile],
    query_maps: Sequence[Tile],
    match_maps: Sequence[Tile] = (),
    *,
    tile_size: int = 196,
    colours: Colours | None = "inferno",
    ends: tuple[str, str] = ("low", "high"),
) -> Image.Image:
    """A query with its matches side by side, and below each match what it has to do with the query.

    The first row is the query and its matches; the second the query once more under the map for each match; the third,
    where given, the matches under their own maps. The second row starts with the legend of `colours`, if any, `ends` at
    its two sides.
    """
    rows = [list(matches), list(query_maps), *([list(match_maps)] if match_maps else [])]
    if not matches or any(len(row) != len(matches) for row in rows):
        raise InputError(f"a panel has one image a match in every row; got rows of {[len(row) for row in rows]}")
    bar = (
        Image.new("RGB", (tile_size, 1), WHITE)
        if colours is None
        else legend(tile_size, colours=colours, low=ends[0], high=ends[1])
    )
    words = Image.new("RGB", (tile_size, 1), WHITE)
    first_column = [query, Tile(bar, caption="on the query"), Tile(words, caption="on the match")]
    return grid(
        [[first, *row] for first, row in zip(first_column, rows, strict=False)],
        tile_size=tile_size,
        gap_after_first=2 * GAP,
    )


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
        tallest = max((_fitted(tile.image, tile_size)[1] + step * bool(tile.caption) for tile in tiles), default=0)
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


def legend(width: int = 196, *, colours: Colours = "inferno", low: str = "low", high: str = "high") -> Image.Image:
    """A bar that runs through the colours from `low` to `high`, with the two words below its ends, on white."""
    size = text_height(width)
    bar = max(10, size)
    picture = Image.new("RGB", (width, bar + 2 * size), WHITE)
    places = np.rint(np.linspace(0, 255, width)).astype(np.intp)
    strip = np.broadcast_to(colour_table(colours)[places], (bar, width, 3))
    picture.paste(Image.fromarray(np.ascontiguousarray(strip)), (0, 0))
    draw = ImageDraw.Draw(picture)
    font = text_font(size)
    draw.text((0, bar + size // 3), low, fill=FAINT, font=font)
    draw.text((width, bar + size // 3), high, fill=FAINT, font=font, anchor="ra")
    return picture


def text_height(tile_size: int) -> int:
    """Size of the letters under a tile, in pixels."""
    return max(11, round(tile_size / 14))


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
    width, height = _fitted(tile.image, tile_size)
    left = x + (tile_size - width) // 2
    sheet.paste(tile.image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (left, y))
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
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
