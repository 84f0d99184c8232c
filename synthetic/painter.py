"""The paint box behind the procedural scenes: inks, outlines, textured backgrounds and paper-cut shading."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageDraw, ImageFilter

from ..errors import InputError

MAX_LAYERS = 255  # the index image is 8-bit and 0 is the background
SUPERSAMPLING = 3  # odd, so that every pixel has a middle sub-pixel

INKS: dict[str, tuple[int, int, int]] = {
    "coral": (238, 108, 90),
    "crimson": (196, 48, 72),
    "amber": (240, 162, 46),
    "lemon": (247, 216, 86),
    "leaf": (104, 172, 82),
    "pine": (30, 112, 92),
    "teal": (48, 172, 172),
    "sky": (98, 176, 232),
    "indigo": (62, 84, 172),
    "violet": (142, 96, 188),
    "rose": (240, 148, 178),
    "cream": (250, 240, 216),
    "cocoa": (122, 78, 60),
    "ink": (42, 46, 66),
}


def check_name(what: str, name: str, known: Sequence[str]) -> None:
    """Nothing, or an `InputError` that says the nearest known name and all of them."""
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown {what} {name!r}, nearest is {near!r}; there are {', '.join(known)}")


def _polar(radii: Sequence[float]) -> Float[np.ndarray, "n 2"]:
    """Points at equal angles from "up", clockwise, at the given distances; y points down."""
    angles = np.arange(len(radii)) * (2 * np.pi / len(radii))
    points: Float[np.ndarray, "n 2"] = np.asarray(radii)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)
    return points


def _rounded(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "m 2"]:
    """The closed polygon with soft corners: two rounds of corner cutting."""
    for share in (0.12, 0.25):
        following = np.roll(points, -1, axis=0)
        ends = [(1 - share) * points + share * following, share * points + (1 - share) * following]
        points = np.stack(ends, axis=1).reshape(-1, 2)
    return points


def _ring() -> Float[np.ndarray, "n 2"]:
    """An annulus as one polygon: once around outside, a seam, once around inside."""
    circle = np.concatenate([_polar([1.0] * 36), _polar([1.0])])
    return np.concatenate([circle, 0.52 * circle[::-1]])


def _heart() -> Float[np.ndarray, "n 2"]:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -(y + 2) / 15], axis=1)


def _crescent() -> Float[np.ndarray, "n 2"]:
    """A bowl: most of a circle, open at the top, back along a half ellipse between the two tips."""
    t = np.linspace(-0.78 * np.pi, 0.78 * np.pi, 28)
    bowl = np.stack([np.sin(t), np.cos(t)], axis=1)
    t = np.linspace(0, np.pi, 20)[1:-1]
    bite = np.stack([bowl[-1, 0] * np.cos(t), bowl[-1, 1] + 1.05 * np.sin(t)], axis=1)
    return np.concatenate([bowl, bite])


def _drop() -> Float[np.ndarray, "n 2"]:
    """A circle whose upper half narrows to a tip."""
    x, y = _polar([1.0] * 36).T
    return np.stack([0.62 * x * (1.25 + y), y], axis=1)


def _cross() -> Float[np.ndarray, "n 2"]:
    """A plus sign; one arm, turned four times."""
    arm = np.array([[-0.36, -0.36], [-0.36, -1.0], [0.36, -1.0]])
    turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return _rounded(np.concatenate([arm @ turn for turn in turns]))


_OUTLINES: dict[str, Callable[[], Float[np.ndarray, "n 2"]]] = {
    "disc": lambda: _polar([1.0] * 36),
    "box": lambda: _rounded(0.86 * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])),
    "triangle": lambda: _rounded(_polar([1.1] * 3)),
    "diamond": lambda: _rounded(_polar([1.1, 0.75, 1.1, 0.75])),
    "hexagon": lambda: _rounded(_polar([1.0] * 6)),
    "star": lambda: _rounded(_polar([1.1, 0.52] * 5)),
    "bar": lambda: _rounded(np.array([[-0.36, -1.1], [0.36, -1.1], [0.36, 1.1], [-0.36, 1.1]])),
    "cross": _cross,
    "drop": _drop,
    "heart": _heart,
    "flower": lambda: _polar([0.8 + 0.24 * float(np.cos(6 * a)) for a in np.arange(48) * (np.pi / 24)]),
    "ring": _ring,
    "crescent": _crescent,
}
OUTLINES: tuple[str, ...] = tuple(_OUTLINES)


@cache
def outline(shape: str) -> Float[np.ndarray, "n 2"]:
    """The named shape as a closed polygon (x, y) about the origin with a radius near 1, y pointing down; read-only."""
    points = _OUTLINES[shape]()
    points.flags.writeable = False
    return points


def turn(angle: float) -> Float[np.ndarray, "2 2"]:
    """The matrix that turns rows (x, y) clockwise, as y points down."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _noise(
    height: int, width: int, cells: tuple[float, float], generator: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """Smooth noise about 0 with spread near 1: a coarse random grid of (rows, columns) cells, enlarged."""
    shape = (max(2, round(cells[0])), max(2, round(cells[1])))
    grid = generator.standard_normal(shape, dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


class _Plane(NamedTuple):
    """Coordinates a texture is a function of: `u`, `v` turned and shifted at random, and two kinds of noise."""

    u: Float32[np.ndarray, "h w"]
    v: Float32[np.ndarray, "h w"]
    soft: Float32[np.ndarray, "h w"]  # a few blobs per image
    fine: Float32[np.ndarray, "h w"]  # a few pixels per blob


def _wave(turns: Float32[np.ndarray, "h w"], *, sharp: float = 0.0) -> Float32[np.ndarray, "h w"]:
    """A sine of so many turns in [-1, 1]; `sharp` flattens it towards a square wave."""
    sine = np.sin(turns * np.float32(2 * np.pi))
    return np.tanh(np.float32(sharp) * sine) if sharp else sine


def _bricks(p: _Plane) -> Float32[np.ndarray, "h w"]:
    row = np.floor(7 * p.v)
    across, down = (3.5 * p.u + 0.5 * (row % 2)) % 1, (7 * p.v) % 1
    edge = np.minimum(2 * np.minimum(across, 1 - across), np.minimum(down, 1 - down))
    tint = np.sin(12.9 * row + 78.2 * np.floor(3.5 * p.u + 0.5 * (row % 2)))
    return np.where(edge < 0.07, np.float32(1), -0.5 + 0.3 * tint).astype(np.float32)


def _weave(p: _Plane) -> Float32[np.ndarray, "h w"]:
    over = (np.floor(9 * p.u) + np.floor(9 * p.v)) % 2 > 0
    return np.where(over, abs(_wave(4.5 * p.u)) - np.float32(0.3), abs(_wave(4.5 * p.v)) - np.float32(0.8))


class _Texture(NamedTuple):
    """A pattern in about [-1, 1] and the two colours (hue, saturation, value) it moves between."""

    pattern: Callable[[_Plane], Float32[np.ndarray, "h w"]]
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    turn: float = 0.6  # how far the pattern may be rotated, in radians


_TEXTURES: dict[str, _Texture] = {
    "clouds": _Texture(
        lambda p: 0.8 * p.soft + 0.25 * _wave(1.5 * p.u + 0.3 * p.soft), (0.57, 0.34, 0.78), (0.57, 0.05, 0.95)
    ),
    "waves": _Texture(
        lambda p: _wave(7 * p.v + 0.35 * _wave(2.5 * p.u) + 0.2 * p.soft), (0.54, 0.48, 0.52), (0.50, 0.34, 0.74), 0.25
    ),
    "meadow": _Texture(
        lambda p: 0.6 * p.soft + 0.7 * p.fine * _wave(14 * p.u + p.soft), (0.29, 0.44, 0.46), (0.22, 0.42, 0.72)
    ),
    "wood": _Texture(
        lambda p: _wave(3.2 * p.v + 0.45 * p.soft) * 0.8 + 0.25 * p.fine, (0.08, 0.46, 0.56), (0.09, 0.38, 0.76), 0.3
    ),
    "bricks": _Texture(_bricks, (0.03, 0.36, 0.60), (0.08, 0.10, 0.80), 0.12),
    "sand": _Texture(
        lambda p: 0.35 * _wave(6 * p.v + 0.6 * p.soft) + 0.5 * p.fine, (0.11, 0.34, 0.74), (0.12, 0.22, 0.92)
    ),
    "weave": _Texture(_weave, (0.62, 0.14, 0.52), (0.60, 0.10, 0.74)),
    "stripes": _Texture(lambda p: _wave(4 * p.u, sharp=4), (0.42, 0.22, 0.70), (0.40, 0.10, 0.88), 1.6),
    "checks": _Texture(
        lambda p: 0.5 * _wave(3 * p.u, sharp=6) + 0.5 * _wave(3 * p.v, sharp=6), (0.93, 0.26, 0.74), (0.95, 0.06, 0.93)
    ),
    "dots": _Texture(
        lambda p: np.tanh(5 * (_wave(4.5 * p.u) * _wave(4.5 * p.v) - 0.45)), (0.74, 0.22, 0.62), (0.72, 0.08, 0.90)
    ),
    "rings": _Texture(
        lambda p: _wave(5 * np.hypot(p.u - p.u.mean(), p.v - p.v.mean()) + 0.25 * p.soft, sharp=1.5),
        (0.60, 0.30, 0.36),
        (0.58, 0.24, 0.54),
    ),
    "gradient": _Texture(lambda p: 2.2 * (p.v - p.v.mean()), (0.04, 0.30, 0.86), (0.66, 0.26, 0.66), 3.2),
}
BACKGROUNDS: tuple[str, ...] = tuple(_TEXTURES)


def texture(name: str, height: int, width: int, *, generator: np.random.Generator) -> Float32[np.ndarray, "h w 3"]:
    """An image of the named background, RGB in [0, 255]; the generator varies its colours, scale, angle and place."""
    pattern, low, high, turn = _TEXTURES[name]
    scale = generator.uniform(0.75, 1.3) / min(height, width)
    angle, shift_u, shift_v = generator.uniform([-turn, 0, 0], [turn, 5, 5])
    y, x = np.ogrid[:height, :width]
    x, y = (x * scale).astype(np.float32), (y * scale).astype(np.float32)
    u = x * np.float32(np.cos(angle)) + (y * np.float32(np.sin(angle)) + np.float32(shift_u))
    v = y * np.float32(np.cos(angle)) - (x * np.float32(np.sin(angle)) - np.float32(shift_v))
    soft = _noise(height, width, (4, 4), generator)
    plane = _Plane(u, v, soft, fine=_noise(height, width, (height / 3, width / 3), generator))
    position = np.clip(0.5 + 0.5 * pattern(plane) + 0.06 * plane.soft + 0.05 * plane.fine, 0, 1)[..., None]
    hue, saturation, value = generator.uniform([-0.03, 0.75, 0.88], [0.03, 1.25, 1.06])
    ends = [
        np.array(colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1), min(v * value, 1)), dtype=np.float32)
        for h, s, v in (low, high)
    ]
    return 255 * (ends[0] + position * (ends[1] - ends[0]))


@dataclass(frozen=True)
class Paint:
    """Polygons of one colour, in pixels of the finished image; a higher `level` gives stronger edges."""

    polygons: tuple[Float[np.ndarray, "n 2"], ...]
    colour: tuple[int, int, int]
    level: float = 1.0


@dataclass(frozen=True)
class Light:
    """Lighting of a scene: direction, brightness, warmth, evenness, and grain of the image."""

    angle: float
    exposure: float
    tint: tuple[float, float, float]
    fall_off: float
    grain: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Light:
        """Light from somewhere above, between overcast and bright, between warm and cold."""
        low, high = [-2.6, 0.82, -0.07, 0.0, 1.0], [-0.5, 1.12, 0.07, 0.3, 5.0]
        angle, exposure, warmth, fall_off, grain = generator.uniform(low, high)
        return cls(angle, exposure, (1 + warmth, 1.0, 1 - warmth), fall_off, grain)


def compose(
    ground: Float32[np.ndarray, "h w 3"], layers: Sequence[Paint], *, light: Light, generator: np.random.Generator
) -> tuple[Image.Image, UInt8[np.ndarray, "h w"]]:
    """The finished RGB image and, per pixel, the number of the visible layer (0 background, i + 1 layer i)."""
    height, width = ground.shape[:2]
    assert len(layers) <= MAX_LAYERS
    index = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))  # number of the layer at each sub-pixel
    draw = ImageDraw.Draw(index)
    for number, layer in enumerate(layers, start=1):
        for polygon in layer.polygons:
            draw.polygon((polygon * SUPERSAMPLING - 0.5).ravel().tolist(), fill=number)
    table = np.zeros((256, 5), dtype=np.uint8)  # red, green, blue, coverage, level of each layer
    for number, layer in enumerate(layers, start=1):
        table[number] = (*layer.colour, 255, round(80 * layer.level))
    red, green, blue, coverage, level = (index.point(column.tolist()).reduce(SUPERSAMPLING) for column in table.T)
    radius, cos, sin = max(0.6, min(height, width) / 80), np.cos(light.angle), np.sin(light.angle)
    # edges that face the light are brighter; a wider blur is flatter, for which the radius makes up
    soft = np.pad(np.asarray(level.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32), 1, mode="edge")
    right, down = soft[1:-1, 2:] - soft[1:-1, :-2], soft[2:, 1:-1] - soft[:-2, 1:-1]
    relief = np.clip((-np.float32(cos) * right - np.float32(sin) * down) * np.float32(radius / 110), -0.28, 0.28)
    shifted = Image.new("L", coverage.size)  # the layers' shadow, away from the light
    shifted.paste(coverage, (round(-2 * radius * cos), round(-2 * radius * sin)))
    shadow = np.asarray(shifted.filter(ImageFilter.GaussianBlur(1.6 * radius)), np.float32) * np.float32(0.42 / 255)
    covered = np.asarray(coverage, dtype=np.float32)[..., None] * np.float32(1 / 255)
    painted = np.stack([np.asarray(band, dtype=np.float32) for band in (red, green, blue)], axis=-1)
    painted *= 1 + relief[..., None]
    shaded = ground * ((1 - covered) * (1 - shadow[..., None])) + painted
    y, x = np.ogrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    even = light.exposure * (1 + light.fall_off * (cos * x + sin * y))
    shaded *= even.astype(np.float32)[..., None] * np.asarray(light.tint, dtype=np.float32)
    shaded += np.float32(light.grain) * generator.standard_normal((height, width, 1), dtype=np.float32)
    middle = np.asarray(index)[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING]
    return Image.fromarray(np.clip(shaded + 0.5, 0, 255).astype(np.uint8)), middle.copy()
