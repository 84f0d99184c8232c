"""Maps on images as overlay, contour and boxes, in colours that keep their order for colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from textwrap import wrap
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...errors import InputError, ShapeError
from ...images.geometry import Box

Colours = Literal["inferno", "viridis", "gray", "blue-orange"]
COLOUR_SCALES: tuple[Colours, ...] = get_args(Colours)

# Eleven colours at 0, 0.1, …, 1 of each scale; in between they are mixed. viridis and inferno are those of matplotlib,
# by N. Smith and S. van der Walt (CC0); blue-orange is for signed maps, with its lightest colour in the middle.
_ANCHORS: dict[Colours, str] = {
    "inferno": "000004 160b39 420a68 6a176e 932667 bc3754 dd513a f37819 fca50a f6d746 fcffa4",
    "viridis": "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725",
    "gray": "000000 1a1a1a 333333 4d4d4d 666666 808080 999999 b3b3b3 cccccc e6e6e6 ffffff",
    "blue-orange": "0b2a5b 16478c 2b69b5 5a93d0 a3c4e6 f2f2ee f4cf9a eaa24a d3761a a64d0b 6b2b06",
}


def colourise(
    heat_map: Float[Tensor, "h w"] | Float[NDArray[Any], "h w"], *, colours: Colours = "inferno"
) -> UInt8[NDArray[Any], "h w 3"]:
    """The map as RGB bytes, at its own resolution; values in [0, 1] run through the scale from dark to light.

    With "blue-orange" 0.5 is the neutral middle; `normalise(…, centred=True)` puts a signed map's zero there.

    >>> colourise(np.array([[0.0, 0.5, 1.0]]), colours="gray")[0].tolist()
    [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    """
    steps = np.rint(unit_array(heat_map) * 255).astype(np.intp)
    pixels: NDArray[np.uint8] = colour_table(colours)[steps]
    return pixels


@cache
def colour_table(colours: Colours) -> NDArray[np.uint8]:
    """256 colours from one end of the scale to the other, (256, 3)."""
    if colours not in _ANCHORS:
        raise InputError(f"colours={colours!r} is not known; choose one of {', '.join(COLOUR_SCALES)}")
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _ANCHORS[colours].split()], dtype=float)
    places = np.linspace(0, 1, 256)
    channels = [np.interp(places, np.linspace(0, 1, len(anchors)), anchors[:, channel]) for channel in range(3)]
    table: NDArray[np.uint8] = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    table.flags.writeable = False
    return table


def unit_array(heat_map: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """The map as a float64 array of shape (rows, columns), after a look that its values lie in [0, 1]."""
    raw = heat_map.detach().cpu().double().numpy() if isinstance(heat_map, Tensor) else heat_map
    values = np.asarray(raw, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ShapeError(f"one map of shape (rows, columns) is drawn at a time; got {values.shape}")
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN fails too
        raise InputError(
            f"a map to be drawn has values in [0, 1]; this one runs from {low:.4g} to {high:.4g}. "
            "Scale it first: distcam.explain.normalise(maps), with shared=True for one scale over all matches"
        )
    return values.clip(0, 1)


Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
SHADE: Colour = (16, 18, 24)
CYAN: Colour = (86, 208, 240)
LINK_COLOURS: tuple[Colour, ...] = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167))
"""Of Okabe and Ito: colours that colour-blind readers can tell apart."""
UNSEEN = 0.4  # how bright the part of the image stays that the network did not see


def overlay(
    image: Image.Image,
    heat_map: Float[Tensor, "h w"] | Float[NDArray[Any], "h w"],
    *,
    view: Box | None = None,
    opacity: float = 0.5,
    alpha: Literal["constant", "heat"] = "constant",
    colours: Colours = "inferno",
) -> Image.Image:
    """The image under the map's colours, RGB, of the image's size.

    Args:
        image: the original image.
        heat_map: values in [0, 1] (see `normalise`); enlarged bilinearly, as `upsample` does.
        view: the rectangle of the image that the map covers, in its pixels, by default all of it. It may reach beyond
            the image (`fit="pad"`).
        opacity: of the colours, from 0 (image only) to 1.
        alpha: "constant": the same opacity everywhere; "heat": opacity times the map's value, so that cold parts show
            the image as it is.
        colours: a name from `COLOUR_SCALES`.

    Raises:
        InputError: the map is not in [0, 1], `opacity` is not, or `view` does not touch the image.
    """
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity={opacity} should be from 0 to 1")
    if alpha not in ("constant", "heat"):
        raise InputError(f"alpha={alpha!r} is not known; choose 'constant' or 'heat'")
    heat, seen = on_image(heat_map, image.size, view)
    pixels, steps = np.asarray(image.convert("RGB")), np.rint(heat * 255).astype(np.uint8)
    if alpha == "constant":  # in 256ths: half a grey level off at most, and a third of the time of floats
        share = round(256 * opacity)
        blended = (colour_table(colours) * np.uint16(share) + np.uint16(128)).take(steps, axis=0)
        blended += pixels * np.uint16(256 - share)
        blended >>= 8
    else:
        paint = colour_table(colours).take(steps, axis=0).astype(np.float32)
        blended = np.rint(pixels + np.float32(opacity) * heat[..., None] * (paint - pixels))
    if not seen.all():
        blended = np.where(seen[..., None], blended, np.rint(np.float32(UNSEEN) * pixels))
    return Image.fromarray(blended.astype(np.uint8))


def contour(
    image: Image.Image,
    heat_map: Float[Tensor, "h w"] | Float[NDArray[Any], "h w"],
    level: float = 0.5,
    *,
    view: Box | None = None,
    colour: Colour = WHITE,
    width: float = 2.0,
) -> Image.Image:
    """The image with the line along which the map has the value `level`; white on a dark rim, `width` pixels thick.

    Raises:
        InputError: the map is not in [0, 1], or `view` does not touch the image.
    """
    heat, seen = on_image(heat_map, image.size, view)
    slope = np.hypot(*np.gradient(heat)) if min(heat.shape) > 1 else np.zeros_like(heat)
    away = np.abs(heat - level) / np.maximum(slope, 1e-6)  # distance to the line in pixels, to first order
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    for thickness, paint in ((width + 2.0, SHADE), (width, colour)):
        share = (np.clip((thickness + 1) / 2 - away, 0, 1) * seen)[..., None]
        pixels = pixels + share * (np.array(paint, dtype=np.float32) - pixels)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def draw_box(
    image: Image.Image, box: Box, label: str | None = None, *, colour: Colour = CYAN, width: int | None = None
) -> Image.Image:
    """The image with the outline of a box, its outer edge on the box's, and a label above or inside its corner.

    `width` is the line's thickness in pixels, by default about 1 % of the shorter side. A box that reaches beyond the
    image is drawn as far as it is visible.
    """
    drawn = image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    width = max(2, round(min(drawn.size) / 110)) if width is None else width
    visible = box.clipped(*drawn.size)
    left, top = round(visible.left), round(visible.top)
    right, bottom = max(round(visible.right) - 1, left), max(round(visible.bottom) - 1, top)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=SHADE, width=width + 2)
    draw.rectangle((left, top, right, bottom), outline=colour, width=width)
    if label:
        font = text_font(max(11, 5 * width))
        x0, y0, x1, y1 = draw.textbbox((0, 0), label, font=font)
        pad = max(2, width)
        across, down = round(x1 - x0) + 2 * pad, round(y1 - y0) + 2 * pad
        y = top - down if top >= down else top  # above the corner where there is room, else inside it
        draw.rectangle((left, y, left + across - 1, y + down - 1), fill=colour)
        draw.text((left + pad - x0, y + pad - y0), label, fill=SHADE, font=font)
    return drawn


@dataclass(frozen=True)
class Photograph:
    """The whole photograph that a crop comes from, the place of the crop, and that of its box without the margin."""

    image: Image.Image
    place: Box
    box: Box

    def around(self, crop: Image.Image) -> Image.Image:
        """The photograph with the crop, which may have been drawn on, back in its place, and the outline of the box."""
        drawn = self.image.convert("RGB")
        drawn.paste(crop, (round(self.place.left), round(self.place.top)))
        return draw_box(drawn, self.box)


def draw_points(
    image: Image.Image, points: Sequence[tuple[float, float]], *, colour: Colour = CYAN, radius: int | None = None
) -> Image.Image:
    """The image with a disc at each point (x, y) in its pixels; several are numbered from 1."""
    drawn = image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    radius = max(4, round(min(drawn.size) / (28 if len(points) > 1 else 40))) if radius is None else radius
    font = text_font(max(8, round(1.5 * radius)))
    for number, (x, y) in enumerate(points, start=1):
        for reach, paint in ((radius + 2, SHADE), (radius, colour)):
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=paint)
        if len(points) > 1:
            draw.text((x, y), str(number), fill=SHADE, font=font, anchor="mm")
    return drawn


def draw_text(text: str, *, side: int = 320) -> Image.Image:
    """A square card with a text on it, as large as it fits in up to eight lines."""
    card = Image.new("RGB", (side, side), WHITE)
    draw = ImageDraw.Draw(card)
    room = side - side // 8
    for size in range(side // 8, side // 20, -2):
        font = text_font(size)
        lines = wrap(text, max(1, int(room / draw.textlength("n", font=font))), max_lines=8, placeholder=" …")
        if len(lines) * 1.3 * size <= room and all(draw.textlength(line, font=font) <= room for line in lines):
            break
    draw.multiline_text((side / 2, side / 2), "\n".join(lines), fill=SHADE, font=font, anchor="mm", align="center")
    return card


def draw_links(
    left: Image.Image,
    right: Image.Image,
    links: Sequence[tuple[tuple[float, float], tuple[float, float], float]],
    *,
    side: int = 480,
    is_faint: bool = False,
) -> Image.Image:
    """Two images side by side at one height, with lines between points (x, y) of both, as wide as they are strong.

    A link is a point on the left image, one on the right, both in pixels, and its strength. Faint ones are thin and
    grey; else each end has the line's colour, so that crossing lines can be told apart.
    """
    scales = [side / image.height for image in (left, right)]
    shown = [
        image.convert("RGB").resize((max(1, round(image.width * scale)), side), Image.Resampling.LANCZOS)
        for image, scale in zip((left, right), scales, strict=True)
    ]
    gap = side // 24
    canvas = Image.new("RGB", (shown[0].width + gap + shown[1].width, side), WHITE)
    canvas.paste(shown[0], (0, 0))
    canvas.paste(shown[1], (shown[0].width + gap, 0))
    draw, strongest = ImageDraw.Draw(canvas), max((strength for *_, strength in links), default=1.0) or 1.0
    for number, (one, other, strength) in reversed(list(enumerate(links))):
        colour = (150, 150, 150) if is_faint else LINK_COLOURS[number % len(LINK_COLOURS)]
        width = 1 if is_faint else max(1, round(side / 96 * (strength / strongest) ** 0.5))
        start = (one[0] * scales[0], one[1] * scales[0])
        end = (shown[0].width + gap + other[0] * scales[1], other[1] * scales[1])
        for reach, paint in ((2, SHADE), (0, colour)):
            draw.line((*start, *end), fill=paint, width=width + reach)
            for x, y in (start, end):
                radius = width + 1 + reach / 2
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=paint)
    return canvas


@cache
def text_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font at about this height in pixels."""
    return ImageFont.load_default(size)


def on_image(
    heat_map: Tensor | NDArray[Any], size: tuple[int, int], view: Box | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A map's value at the centre of every pixel of an image of a size, and which pixels the map covers.

    Raises:
        InputError: `view`, in the image's pixels, does not touch it, or the map is not in [0, 1].
    """
    values = unit_array(heat_map)
    width, height = size
    view = Box(0, 0, width, height) if view is None else view
    if view.intersection(Box(0, 0, width, height)).area == 0:
        raise InputError(f"the view {tuple(view)} does not touch the image of {width}×{height} pixels")
    down, seen_rows = _bilinear(height, values.shape[0], begin=float(view.top), end=float(view.bottom))
    across, seen_columns = _bilinear(width, values.shape[1], begin=float(view.left), end=float(view.right))
    heat = (down @ values @ across.T).clip(0, 1).astype(np.float32)
    return heat, seen_rows[:, None] & seen_columns


def _bilinear(size: int, cells: int, *, begin: float, end: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Weights (size, cells) that read cells spread from `begin` to `end` at pixel centres, and which are inside."""
    centres = np.arange(size) + 0.5
    places = ((centres - begin) / (end - begin) * cells - 0.5).clip(0, cells - 1)
    weights = (1 - np.abs(places[:, None] - np.arange(cells))).clip(min=0)
    return weights, (centres >= begin) & (centres < end)
