"""Class scores that spread to where the picture looks alike: a random walk on the pixels, or on a coarser grid.

    T = D⁻¹ A^∘β,   scores ← T scores, t times          (A^∘β: every entry to the power β; D: sums of its rows)

Source: Ahn and Kwak, Learning Pixel-level Semantic Affinity with Image-level Supervision (AffinityNet), 2018, Eq. 5-6.
Affinities are learnt (`affinity.py`) or those of colour. A is never written out: a position has an affinity to those
within a radius only, and each such offset is a picture of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...errors import InputError, ShapeError
from .cues import background_score

__all__ = ["WalkSettings", "affinities", "colour_features", "neighbours", "random_walk", "refine_by_walk"]

Offset = tuple[int, int]


@dataclass(frozen=True)
class WalkSettings:
    """How far and how strictly scores spread.

    Attributes:
        radius: positions further away have no affinity.
        power: β; a larger one lets only the most alike positions exchange anything.
        steps: t.
        background: power of the background's score, `(1 - max)^power`, which walks along.
        side: the longer side of the grid that is walked on, in positions.
        colour: the difference of colours (mean over red, green, blue, in [0, 1]) at which an affinity is 1/e.
    """

    radius: int = 5
    power: float = 8.0
    steps: int = 16
    background: float = 1.0
    side: int = 64
    colour: float = 0.25

    def __post_init__(self) -> None:
        for name in ("radius", "side"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} of 1 or more, got {getattr(self, name)}")
        if self.steps < 0 or self.power <= 0 or self.background <= 0 or self.colour <= 0:
            raise InputError("expected steps of 0 or more, and power, background and colour above 0")


def neighbours(radius: int) -> list[Offset]:
    """The offsets (down, across) within the radius, a position itself among them.

    >>> neighbours(1)
    [(-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)]
    """
    steps = range(-radius, radius + 1)
    return [(down, across) for down in steps for across in steps if down**2 + across**2 <= radius**2]


def shifted(maps: Float[Tensor, "*c h w"], offset: Offset, *, fill: float = 0.0) -> Float[Tensor, "*c h w"]:
    """At each position what lies at the offset from it; `fill` beyond the edge."""
    (down, across), (height, width) = offset, maps.shape[-2:]
    if abs(down) >= height or abs(across) >= width:
        return torch.full_like(maps, fill)
    margins = (max(-across, 0), max(across, 0), max(-down, 0), max(down, 0))
    padded = functional.pad(maps, margins, value=fill)
    top, left = max(down, 0), max(across, 0)
    return padded[..., top : top + height, left : left + width]


def affinities(features: Float[Tensor, "d h w"], offsets: Sequence[Offset]) -> Float[Tensor, "o h w"]:
    """`exp(-mean_d |f(x) - f(x + offset)|)` in (0, 1], and 0 where the offset leads out of the picture.

    Source: AffinityNet, Eq. 1; the mean over features, as its authors' code has it, where the text has the sum.
    """
    inside = features.new_ones(1, *features.shape[1:])
    rows = []
    for offset in offsets:
        difference = (features - shifted(features, offset)).abs().mean(0, keepdim=True)
        rows.append(torch.exp(-difference) * shifted(inside, offset))
    return torch.cat(rows)


def random_walk(
    scores: Float[Tensor, "c h w"],
    affinity: Float[Tensor, "o h w"],
    offsets: Sequence[Offset],
    *,
    power: float = 8.0,
    steps: int = 16,
) -> Float[Tensor, "c h w"]:
    """The scores after `steps` steps; each is a mean over neighbours, so it never leaves the range of the scores.

    Raises:
        ShapeError: affinities that do not fit.

    >>> alike = torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]])              # to itself, and to the right
    >>> random_walk(torch.tensor([[[0.0, 1.0]]]), alike, [(0, 0), (0, 1)], steps=1).tolist()
    [[[0.5, 1.0]]]
    """
    if affinity.shape != (len(offsets), *scores.shape[1:]):
        raise ShapeError(f"expected affinities {(len(offsets), *scores.shape[1:])}, got {tuple(affinity.shape)}")
    weights = affinity**power
    weights = weights / weights.sum(0).clamp(min=1e-12)
    for _ in range(steps):
        moved = torch.zeros_like(scores)
        for weight, offset in zip(weights, offsets, strict=True):
            moved += weight * shifted(scores, offset)
        scores = moved
    return scores


def colour_features(image: Image.Image, size: tuple[int, int], *, colour: float = 0.25) -> Float[Tensor, "3 h w"]:
    """The picture's colours on a grid of `size` = (rows, columns), in units of `colour`."""
    small = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255) / colour


def grid_size(image: Image.Image, side: int) -> tuple[int, int]:
    """Rows and columns of a grid whose longer side has that many positions, or the picture's if it has fewer."""
    scale = min(side / max(image.size), 1.0)
    return max(round(image.height * scale), 1), max(round(image.width * scale), 1)


def refine_by_walk(
    scores: Float[np.ndarray, "c h w"],
    image: Image.Image,
    *,
    settings: WalkSettings | None = None,
    features: Float[Tensor, "d rows columns"] | None = None,
) -> Float[np.ndarray, "c_and_background h w"]:
    """The scores of the background and the classes after the walk, in the picture's pixels; the largest one wins.

    Args:
        scores: of the classes, as from `class_scores`; a class that is 0 everywhere stays so.
        image: the picture.
        settings: `WalkSettings()` if left out.
        features: learnt ones, on their own grid, in place of the picture's colours.

    Raises:
        ShapeError: scores of another size than the picture.
    """
    if scores.shape[1:] != (image.height, image.width):
        raise ShapeError(f"expected scores of {image.height} x {image.width} pixels, got {scores.shape[1:]}")
    settings = settings or WalkSettings()
    if features is None:
        features = colour_features(image, grid_size(image, settings.side), colour=settings.colour)
    size = (features.shape[-2], features.shape[-1])
    stacked = np.concatenate([background_score(scores, power=settings.background)[None], scores])
    small = functional.interpolate(torch.from_numpy(stacked).float()[None], size, mode="area")[0]
    offsets = neighbours(settings.radius)
    walked = random_walk(small, affinities(features, offsets), offsets, power=settings.power, steps=settings.steps)
    full = functional.interpolate(walked[None], scores.shape[1:], mode="bilinear", align_corners=False)[0]
    refined: np.ndarray = full.numpy()
    return refined
