"""One procedural scene: toy-like objects on a textured background, with boxes, masks and parts known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from ..errors import InputError
from ..images.geometry import Box
from .blueprint import Blueprint
from .painter import BACKGROUNDS, INKS, OUTLINES, Light, Paint, check_name, compose, outline, texture, turn

_MIN_SIDE = 32  # on fewer pixels the small parts vanish
_MAX_OBJECTS = 12
_MAX_CLUTTER = 60
_MAX_OVERLAP = 0.05  # of two boxes, as a share of the smaller
_CLUTTER_SHAPES = tuple(name for name in OUTLINES if name != "crescent")


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a scene: its class, and the number of the part on each of its visible pixels."""

    blueprint: Blueprint
    part_map: UInt8[np.ndarray, "h w"]  # 0 where the object is not seen, i + 1 on `blueprint.parts[i]`

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """True on its visible pixels."""
        return self.part_map > 0


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and everything known about it; the first object gives the image its label."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    background: str

    @property
    def label(self) -> str:
        """The class of the first object."""
        return self.objects[0].blueprint.name

    @property
    def boxes(self) -> tuple[tuple[str, Box], ...]:
        """Label of every object, in drawing order, and the tight box of its visible pixels."""
        return tuple((each.blueprint.name, Box.around(each.mask)) for each in self.objects)

    def class_map(self, labels: Sequence[str]) -> UInt8[np.ndarray, "h w"]:
        """The scene as a segmentation mask: 0 background, i + 1 on objects of class `labels[i]`; others stay 0."""
        classes = np.zeros((self.image.height, self.image.width), dtype=np.uint8)
        for each in self.objects:
            if (label := each.blueprint.name) in labels:
                classes[each.mask] = labels.index(label) + 1
        return classes


def draw_scene(
    objects: Sequence[Blueprint],
    *,
    generator: np.random.Generator,
    size: int | tuple[int, int] = 128,
    background: str | None = None,
    clutter: int | None = None,
) -> Scene:
    """An image of these objects, in this order, at random places on the background.

    The box of a single object covers about 9 to 41 % of the image. Several objects are smaller, and their boxes share
    at most a twentieth of the smaller one. The generator decides all that is left open: a background, and 2 to 6
    pieces of clutter. `size` is the side of a square image, or (height, width), in pixels, at least 32.
    """
    height, width = check_scene(objects, size=size, background=background, clutter=clutter)
    if background is None:
        background = BACKGROUNDS[int(generator.integers(len(BACKGROUNDS)))]
    if clutter is None:
        clutter = int(generator.integers(2, 7))
    ground = texture(background, height, width, generator=generator)
    arranged = _arranged(objects, height, width, generator)
    taken = np.array([_corners(polygons) for polygons in arranged])
    layers = [layer for _ in range(clutter) for layer in _loose_piece(height, width, taken, generator)]
    first = []  # number of the layer that holds each object's first part
    for blueprint, polygons in zip(objects, arranged, strict=True):
        first.append(len(layers) + 1)
        fade = generator.uniform(0.9, 1.1, 3)  # the paint is never quite the same twice
        for part, pair in zip(blueprint.parts, polygons, strict=True):
            red, green, blue = (np.array(INKS[part.colour]) * fade).clip(0, 255).astype(int).tolist()
            level = 1.0 if part.is_limb else 2.0 if part.place == "body" else 2.7
            layers.append(Paint(pair, (red, green, blue), level))
    image, index = compose(ground, layers, light=Light.draw(generator), generator=generator)
    shown = []
    for blueprint, start in zip(objects, first, strict=True):
        is_own = (index >= start) & (index < start + len(blueprint.parts))
        shown.append(SceneObject(blueprint, np.where(is_own, index - (start - 1), 0).astype(np.uint8)))
    return Scene(image, tuple(shown), background)


def check_scene(
    objects: Sequence[Blueprint], *, size: int | tuple[int, int], background: str | None, clutter: int | None
) -> tuple[int, int]:
    """The image's (height, width), or the `InputError` that `draw_scene` raises for these arguments."""
    height, width = (size, size) if isinstance(size, int) else size
    if not 1 <= len(objects) <= _MAX_OBJECTS:
        raise InputError(f"expected 1 to {_MAX_OBJECTS} objects in a scene, got {len(objects)}")
    if min(height, width) < _MIN_SIDE:
        raise InputError(f"expected a size of at least {_MIN_SIDE} pixels a side, got {height} x {width}")
    if clutter is not None and not 0 <= clutter <= _MAX_CLUTTER:
        raise InputError(f"expected clutter from 0 to {_MAX_CLUTTER}, got {clutter}")
    if background is not None:
        check_name("background", background, BACKGROUNDS)
    return height, width


def _arranged(
    objects: Sequence[Blueprint], height: int, width: int, generator: np.random.Generator
) -> list[list[tuple[Float[np.ndarray, "n 2"], ...]]]:
    """Each object's polygons in pixels, with its box inside the image and clear of the others'."""
    posed = []
    for blueprint in objects:  # parts slightly out of place, all turned up to 25 degrees, stretched and sheared
        spread = np.where([part.place == "body" for part in blueprint.parts], 0.0, 0.05)[:, None]
        polygons = blueprint.outlines(spread * generator.uniform(-1, 1, (len(blueprint.parts), 3)))
        angle, stretch, shear = generator.uniform([-0.44, -0.1, -0.1], [0.44, 0.1, 0.1])
        pose = np.array([[np.exp(stretch), 0], [shear, np.exp(-stretch)]]) @ turn(angle)
        posed.append([tuple(polygon @ pose for polygon in pair) for pair in polygons])
    corners = np.array([_corners(polygons) for polygons in posed])
    extents = corners[:, 1] - corners[:, 0]
    canvas = np.array([width, height])
    least, most = (0.3, 0.64) if len(objects) == 1 else np.array([0.44, 0.68]) / np.sqrt(len(objects))
    scales = generator.uniform(least, most, len(objects)) * np.sqrt(canvas.prod() / extents.prod(axis=1))
    scales = np.minimum(scales, 0.94 * (canvas / extents).min(axis=1))
    scales, places = _places(extents, scales, canvas, generator)
    return [
        [tuple((polygon - low) * scale + place for polygon in pair) for pair in polygons]
        for polygons, low, scale, place in zip(posed, corners[:, 0], scales, places, strict=True)
    ]


def _corners(polygons: Sequence[tuple[Float[np.ndarray, "n 2"], ...]]) -> Float[np.ndarray, "2 2"]:
    points = np.concatenate([polygon for pair in polygons for polygon in pair])
    return np.stack([points.min(axis=0), points.max(axis=0)])


def _places(
    extents: Float[np.ndarray, "n 2"],
    scales: Float[np.ndarray, " n"],
    canvas: Int[np.ndarray, " 2"],
    generator: np.random.Generator,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 2"]]:
    """Magnifications and top left corners that keep boxes apart; all shrink a little as often as there is no room."""
    while True:
        sizes = extents * scales[:, None]
        places = np.zeros_like(sizes)
        for number, own in enumerate(sizes):
            # a U-shaped distribution: uniform corners would leave every large object in the middle
            tries = generator.beta(0.4, 0.4, (30, 2)) * (canvas - own)
            starts = np.maximum(tries[:, None], places[:number])
            ends = np.minimum(tries[:, None] + own, places[:number] + sizes[:number])
            shared = (ends - starts).clip(min=0).prod(axis=2)
            smaller = np.minimum(own.prod(), sizes[:number].prod(axis=1))
            fits = (shared / smaller <= _MAX_OVERLAP).all(axis=1)
            if not fits.any():
                break
            places[number] = tries[fits.argmax()]
        else:
            return scales, places
        scales = 0.92 * scales


def _loose_piece(
    height: int, width: int, taken: Float[np.ndarray, "n 2 2"], generator: np.random.Generator
) -> list[Paint]:
    """A shape in any ink beside the taken boxes, often with a smaller one on it, to catch the eye as objects do."""
    names = [_CLUTTER_SHAPES[number] for number in generator.integers(len(_CLUTTER_SHAPES), size=2)]
    inks = [tuple(INKS.values())[number] for number in generator.permutation(len(INKS))[:2]]
    angle, radius = generator.uniform([0, 0.03], [2 * np.pi, 0.09]) * [1, min(height, width)]
    tries = generator.uniform(0, [width, height], (12, 1, 2))
    clear = ((tries < taken[:, 0] - radius) | (tries > taken[:, 1] + radius)).any(axis=2).all(axis=1)
    center = tries[int(clear.argmax()), 0]
    large, small = (
        center + scale * radius * outline(name) @ turn(angle) for name, scale in zip(names, (1, 0.5), strict=True)
    )
    layers = [Paint((large,), inks[0], 1.0), Paint((small,), inks[1], 2.0)]
    return layers[: 1 if generator.random() < 0.4 else 2]
