"""Descriptions that synthetic walkers are drawn from: a person, a camera, a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageFilter

from .painter import Light, texture

Colour = tuple[int, int, int]
Facing = Literal["front", "back", "left", "right"]
HairStyle = Literal["short", "long", "bun", "cap"]
Pattern = Literal["plain", "stripes", "block", "panel", "vest"]
Bottom = Literal["trousers", "shorts", "skirt"]
Bag = Literal["none", "backpack", "shoulder", "hand"]
T = TypeVar("T")
ITEMS = ("bag", "bottom_colour", "top_colour", "pattern", "hair_colour")
"""Items in which two look-alikes may differ."""

COLOURS: dict[str, Colour] = {
    "black": (34, 34, 38),
    "grey": (122, 124, 128),
    "white": (226, 226, 222),
    "navy": (38, 48, 92),
    "blue": (52, 96, 176),
    "sky": (126, 176, 214),
    "green": (52, 110, 66),
    "olive": (104, 104, 58),
    "red": (178, 42, 48),
    "maroon": (98, 32, 46),
    "pink": (218, 134, 160),
    "orange": (214, 120, 44),
    "yellow": (222, 190, 74),
    "purple": (108, 68, 138),
    "brown": (104, 72, 50),
    "beige": (196, 174, 138),
}
SKINS: tuple[Colour, ...] = ((236, 196, 166), (214, 166, 130), (168, 118, 84), (112, 76, 54))
HAIRS: dict[str, Colour] = {
    "black": (30, 26, 26),
    "brown": (86, 58, 40),
    "fair": (188, 152, 92),
    "red": (142, 68, 38),
    "grey": (158, 156, 154),
}
_BACKDROPS = (
    ("bricks", "sand"),
    ("weave", "gradient"),
    ("stripes", "bricks"),
    ("clouds", "meadow"),
    ("checks", "sand"),
    ("wood", "weave"),
    ("gradient", "bricks"),
    ("meadow", "sand"),
)
"""Textures above and below the horizon."""
_SUITS = ("black", "grey", "navy", "white", "blue", "beige", "olive", "brown")  # most trousers are one of these
_SCENE = (384, 288)
"""Rows and columns of a backdrop, at twice the images' usual resolution."""


@dataclass(frozen=True)
class Walker:
    """Clothes and build of a person; two walkers are one person if all of it is equal."""

    skin: int
    hair_colour: str
    hair_style: HairStyle
    top_colour: str
    accent: str
    pattern: Pattern
    has_long_sleeves: bool
    bottom_colour: str
    bottom: Bottom
    shoes: str
    bag: Bag
    bag_colour: str
    breadth: float
    height: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Walker:
        """A person drawn at random."""
        names = list(COLOURS)

        def one(choices: Sequence[T]) -> T:
            return choices[int(generator.integers(len(choices)))]

        top = one(names)
        return cls(
            skin=int(generator.integers(len(SKINS))),
            hair_colour=one(list(HAIRS)),
            hair_style=one(("short", "short", "long", "bun", "cap")),
            top_colour=top,
            accent=one([name for name in names if name != top]),
            pattern=one(("plain", "plain", "plain", "stripes", "block", "panel", "vest")),
            has_long_sleeves=bool(generator.random() < 0.55),
            bottom_colour=one(_SUITS if generator.random() < 0.75 else names),
            bottom=one(("trousers", "trousers", "trousers", "shorts", "skirt")),
            shoes=one(("black", "white", "brown", "red", "grey", "blue")),
            bag=one(("none", "none", "backpack", "shoulder", "hand")),
            bag_colour=one(names),
            breadth=float(generator.uniform(0.88, 1.18)),
            height=float(generator.uniform(0.90, 1.06)),
        )

    def changed(self, item: str, generator: np.random.Generator) -> Walker:
        """A person who differs in one of `ITEMS` and in nothing else."""
        own = getattr(self, item)
        if item in ("bag", "pattern"):
            others: list[str] = [kind for kind in get_args(Bag if item == "bag" else Pattern) if kind != own]
        else:
            table = HAIRS if item == "hair_colour" else COLOURS
            others = [name for name, colour in table.items() if np.abs(np.subtract(colour, table[own])).sum() > 90]
        changes: dict[str, Any] = {item: others[int(generator.integers(len(others)))]}
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Camera:
    """One place: its backdrop, its colours, how sharp it sees, and from which side people come."""

    backdrop: Float32[np.ndarray, "h w 3"]
    gains: Float32[np.ndarray, 3]
    gamma: float
    contrast: float
    blur: float
    body: float
    facings: tuple[float, ...]
    light: Light

    @classmethod
    def draw(cls, generator: np.random.Generator, *, number: int) -> Camera:
        """A camera whose looks depend on its generator, and its backdrop on its number."""
        upper, lower = _BACKDROPS[number % len(_BACKDROPS)]
        rows, columns = _SCENE
        scene = texture(upper, rows, columns, generator=generator)
        horizon = int(rows * generator.uniform(0.45, 0.65))
        scene[horizon:] = texture(lower, rows - horizon, columns, generator=generator)
        low, high = [-0.22, -0.10, 0.70, 0.62, 0.0], [0.22, 0.10, 1.45, 1.08, 1.1]
        warmth, green, gamma, contrast, blur = generator.uniform(low, high)
        shares = generator.dirichlet([0.8] * 4)
        return cls(
            backdrop=(0.35 * scene.mean() + 0.65 * scene).astype(np.float32),  # streets are duller than posters
            gains=np.array([1 + warmth, 1 + green, 1 - warmth], np.float32),
            gamma=float(gamma),
            contrast=float(contrast),
            blur=float(blur),
            body=float(generator.uniform(0.80, 0.95)),
            facings=tuple((0.7 * shares + 0.075).tolist()),
            light=Light.draw(generator),
        )

    def ground(self, height: int, width: int, generator: np.random.Generator) -> Float32[np.ndarray, "h w 3"]:
        """A piece of the backdrop, lower pieces more often seen than sky."""
        rows, columns = self.backdrop.shape[:2]
        span_y, span_x = min(rows, 2 * height), min(columns, 2 * width)
        top = int(generator.integers(rows - span_y + 1))
        left = int(generator.integers(columns - span_x + 1))
        piece = self.backdrop[top : top + span_y : 2, left : left + span_x : 2]
        return np.ascontiguousarray(np.resize(piece, (height, width, 3)))

    def develop(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """The image in this camera's colours and sharpness."""
        levels = np.arange(256, dtype=np.float32)[:, None] / 255
        brightness = generator.uniform(0.85, 1.12)
        curve = (np.clip(levels * self.gains * brightness, 0, 1) ** self.gamma - 0.5) * self.contrast + 0.5
        table = np.clip(255 * curve + 0.5, 0, 255).astype(np.uint8)
        seen = image.point(table.T.ravel().tolist())
        blur = self.blur * float(generator.uniform(0.6, 1.3))
        return seen.filter(ImageFilter.BoxBlur(blur)) if blur > 0.3 else seen


class Moment(NamedTuple):
    """Pose of a person in a box: side, step, and place."""

    facing: Facing
    step: float  # phase of the walk in radians
    scale: float  # height of the body in heights of the box
    middle: float  # place of the body's middle in widths of the box
    top: float  # place of the top of the head in heights of the box

    @classmethod
    def draw(cls, camera: Camera, generator: np.random.Generator) -> Moment:
        """An ordinary detection: nearly centred, nearly whole."""
        shares = np.array(camera.facings) / sum(camera.facings)
        facing = get_args(Facing)[int(generator.choice(4, p=shares))]
        step, scale, middle, top = generator.uniform([0, 0.94, 0.42, 0.0], [2 * np.pi, 1.06, 0.58, 1.0])
        scale = camera.body * scale
        return cls(facing, float(step), float(scale), float(middle), float((1 - scale) * top))

    @classmethod
    def cut_off(cls, camera: Camera, generator: np.random.Generator) -> Moment:
        """A box that holds a fifth to a half of the body."""
        whole = cls.draw(camera, generator)
        scale, side, high = generator.uniform([1.2, 0.0, 0.0], [2.0, 1.0, 1.0])
        middle = 0.02 if side < 0.25 else 0.98 if side > 0.75 else whole.middle
        return whole._replace(scale=scale, middle=middle, top=0.05 if high < 0.4 else float(1.0 - 0.98 * scale))
