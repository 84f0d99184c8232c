"""Images of many objects of one kind, with every object known: the case in which a map has to choose.

Cells under a microscope, drawn, or several objects of one class among others. The question "why is *this* one a cell?"
has a right place for the answer, and as many wrong ones as there are other cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from distcam.errors import InputError
from distcam.synthetic.blueprint import Blueprint
from distcam.synthetic.scene import draw_scene

__all__ = ["Crowd", "draw_cells", "draw_crowd", "draw_crowds"]

_TRIES = 400  # places that are tried for each cell
_BACKGROUND, _PLASMA, _NUCLEUS = (np.array(ink, float) for ink in ((236, 226, 232), (214, 150, 188), (104, 62, 134)))


@dataclass(frozen=True, eq=False)
class Crowd:
    """An image, what each of its pixels shows, and which of the objects that is.

    Attributes:
        image: RGB.
        classes: 0 background, c + 1 class c.
        instances: 0 background, i + 1 object i.
    """

    image: Image.Image
    classes: UInt8[np.ndarray, "h w"]
    instances: UInt8[np.ndarray, "h w"]

    @property
    def count(self) -> int:
        """Number of objects."""
        return int(self.instances.max())


def draw_cells(
    *,
    generator: np.random.Generator,
    size: int = 96,
    count: int = 14,
    radius: tuple[float, float] = (0.05, 0.095),
    gap: float = 1.5,
) -> Crowd:
    """A stained smear: round cells with a nucleus, close together, none hiding another.

    Args:
        generator: decides everything; the same state draws the same image.
        size: of the square image, in pixels, at least 32.
        count: of cells, at most; fewer where there is no room for more.
        radius: least and largest, as shares of `size`.
        gap: least distance between two cells, in pixels.
    """
    least, most = radius
    if size < 32 or not 1 <= count <= 254 or not 0 < least <= most < 0.5 or gap < 0:
        raise InputError(
            f"expected a size from 32, 1 to 254 cells, radii in (0, 0.5), and a gap from 0; got size={size}, "
            f"count={count}, radius={radius}, gap={gap}"
        )
    y, x = np.mgrid[:size, :size] + 0.5
    colours = _BACKGROUND + _clouds(size, generator)[..., None] * 12
    instances = np.zeros((size, size), np.uint8)
    for number, (row, column, reach) in enumerate(_spread(generator, size, count, radius, gap), start=1):
        outline = _outline(generator, reach)
        distance, angle = np.hypot(y - row, x - column), np.arctan2(y - row, x - column)
        rim = outline(angle)
        inside = (0.5 + rim - distance).clip(0, 1)
        shade = generator.uniform(0.85, 1.08) * (0.92 + 0.16 * (distance / rim).clip(0, 1) ** 3)
        colours += inside[..., None] * (_PLASMA * shade[..., None] - colours)
        offset = generator.uniform(-0.2, 0.2, 2) * reach
        nucleus = (
            0.5 + generator.uniform(0.38, 0.52) * rim - np.hypot(y - row - offset[0], x - column - offset[1])
        ).clip(0, 1)
        colours += nucleus[..., None] * (_NUCLEUS * generator.uniform(0.85, 1.15) - colours)
        instances[inside > 0.5] = number
    colours += generator.normal(0, 5, colours.shape)
    return Crowd(Image.fromarray(colours.clip(0, 255).astype(np.uint8)), (instances > 0).astype(np.uint8), instances)


def _spread(
    generator: np.random.Generator, size: int, count: int, radius: tuple[float, float], gap: float
) -> list[tuple[float, float, float]]:
    """(row, column, radius) of cells that do not touch, each as near to another as the places tried for it allow."""
    placed = np.empty((0, 3))
    for _ in range(count):
        reach = size * generator.uniform(*radius)
        edge = 1.15 * reach + 1  # a cell's outline leaves its circle by a seventh at most
        tried = generator.uniform(edge, size - edge, (_TRIES, 2))
        between = np.hypot(*(tried[:, None] - placed[None, :, :2]).transpose(2, 0, 1))
        room = (between - 1.15 * (reach + placed[:, 2]) - gap).min(1, initial=np.inf)
        if (room > 0).any():
            place = tried[np.where(room > 0, room, np.inf).argmin()]
            placed = np.vstack([placed, [*place, reach]])
    return [(float(row), float(column), float(reach)) for row, column, reach in placed]


def _outline(
    generator: np.random.Generator, reach: float
) -> Callable[[Float[np.ndarray, "h w"]], Float[np.ndarray, "h w"]]:
    """Radius by angle: a circle with two and three soft bulges."""
    (two, three), turns = generator.uniform(0, [0.09, 0.05]), generator.uniform(0, 2 * np.pi, 2)
    return lambda angle: reach * (1 + two * np.cos(2 * angle + turns[0]) + three * np.cos(3 * angle + turns[1]))


def _clouds(size: int, generator: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Smooth unevenness of the light, in [-1, 1]."""
    coarse = Image.fromarray(generator.uniform(-1, 1, (6, 6)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).clip(-1, 1)


def draw_crowd(
    classes: Sequence[Blueprint], *, generator: np.random.Generator, size: int = 96, same: int = 3, others: int = 1
) -> Crowd:
    """A scene with several objects of one class, by chance, and some of the other classes.

    Args:
        classes: at least two, or one if `others` is 0; class c has the number c + 1.
        generator: decides everything.
        size: of the square image.
        same: objects of the one class.
        others: objects of other classes, each by chance.
    """
    if same < 1 or others < 0 or len(classes) < 1 + (others > 0):
        raise InputError(
            f"expected at least one object of a class, and two classes where there are others; got same={same}, "
            f"others={others}, {len(classes)} classes"
        )
    chosen = int(generator.integers(len(classes)))
    rest = [c for c in range(len(classes)) if c != chosen]
    numbers = [chosen] * same + [rest[int(generator.integers(len(rest)))] for _ in range(others)]
    scene = draw_scene([classes[c] for c in numbers], generator=generator, size=size)
    of_object = np.zeros((size, size), np.uint8)
    of_class = np.zeros((size, size), np.uint8)
    for place, (number, shown) in enumerate(zip(numbers, scene.objects, strict=True), start=1):
        of_object[shown.mask] = place
        of_class[shown.mask] = number + 1
    return Crowd(scene.image, of_class, of_object)


def draw_crowds(draw: Callable[[np.random.Generator], Crowd], *, count: int, seed: int = 0) -> list[Crowd]:
    """That many images, each with a generator of its own: image i does not depend on how many there are."""
    return [draw(np.random.default_rng([0xC0D, seed, i])) for i in range(count)]
