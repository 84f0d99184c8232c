"""Composites: photographs of different classes side by side in one image, to see which of them a map points to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ...encoders import Inference
from ...errors import InputError, ShapeError
from ...metrics.localisation import energy_shares
from ...metrics.maps import rectify, upsample
from .references import ObjectImage

Grid = tuple[int, int]  # rows and columns of photographs
TWO: Grid = (1, 2)
FOUR: Grid = (2, 2)


def split_off(
    images: Iterable[ObjectImage], n: int, *, generator: torch.Generator
) -> tuple[list[ObjectImage], list[ObjectImage]]:
    """About n images drawn evenly from the classes, at most half of each class, and the images that are left."""
    by_class: dict[str, list[ObjectImage]] = {}
    for image in images:
        by_class.setdefault(image.label, []).append(image)
    several = {label: own for label, own in by_class.items() if len(own) > 1}
    if len(several) < 2:
        raise InputError(
            f"composites need two classes of two images or more, to hold some out; {len(several)} of "
            f"{len(by_class)} classes have them"
        )
    each = -(-n // len(several))
    drawn: set[ObjectImage] = set()
    for own in several.values():
        order = torch.randperm(len(own), generator=generator).tolist()
        drawn |= {own[place] for place in order[: min(each, len(own) // 2)]}
    kept = [image for own in by_class.values() for image in own if image not in drawn]
    return [image for own in several.values() for image in own if image in drawn], kept


def draw_composites(
    images: Sequence[ObjectImage], n: int, grid: Grid, *, generator: torch.Generator
) -> list[tuple[ObjectImage, ...]]:
    """N composites of photographs of different classes, classes and images taken in turn; none if there are too few."""
    by_class: dict[str, list[ObjectImage]] = {}
    for place in torch.randperm(len(images), generator=generator).tolist():
        by_class.setdefault(images[place].label, []).append(images[place])
    labels, size = sorted(by_class), grid[0] * grid[1]
    if len(labels) < size:
        return []
    taken = dict.fromkeys(labels, 0)
    composites = []
    for _ in range(n):
        order = torch.randperm(len(labels), generator=generator).tolist()
        chosen = sorted((labels[place] for place in order), key=lambda label: taken[label])[:size]
        chosen = [chosen[place] for place in torch.randperm(size, generator=generator).tolist()]
        composites.append(tuple(by_class[label][taken[label] % len(by_class[label])] for label in chosen))
        for label in chosen:
            taken[label] += 1
    return composites


def composed(photographs: Tensor, grid: Grid) -> Tensor:
    """The photographs (n, c, h, w) as one image (c, rows · h, columns · w), in reading order.

    >>> composed(torch.arange(4.0).reshape(4, 1, 1, 1), FOUR).tolist()
    [[[0.0, 1.0], [2.0, 3.0]]]
    """
    (rows, columns), (_, c, h, w) = grid, photographs.shape
    return photographs.reshape(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)


@dataclass(frozen=True)
class Canvas:
    """The way photographs, each as large as the network's input, become one input of the network."""

    size: tuple[int, int]
    fill: tuple[int, int, int]
    is_reduced: bool  # the network takes no other size, so the composite is scaled into it

    @classmethod
    def of(cls, inference: Inference) -> Canvas:
        """Of an encoder; found by showing it two black photographs side by side."""
        transform = inference.transform
        size = (transform.height, transform.width)
        try:
            shape = inference(torch.zeros(1, 3, size[0], 2 * size[1], dtype=torch.uint8)).feature_map.shape
            is_reduced = shape[2] > shape[3]
        except (InputError, ShapeError, RuntimeError, AssertionError, ValueError):
            is_reduced = True
        return cls(size, transform.fill, is_reduced)

    def pixels(self, photographs: UInt8[Tensor, "n 3 h w"], grid: Grid) -> UInt8[Tensor, "3 rows columns"]:
        """The network's input for photographs as its transform returns them."""
        return self._fitted(composed(photographs, grid).float(), self.fill).round().clamp(0, 255).to(torch.uint8)

    def cells(self, grid: Grid) -> Float[Tensor, "n rows columns"]:
        """For each photograph the part of each pixel of the input that it covers, in [0, 1]."""
        n = grid[0] * grid[1]
        areas = torch.eye(n)[:, :, None, None].expand(n, n, *self.size)
        return self._fitted(torch.stack([composed(own[:, None], grid)[0] for own in areas]), (0,) * n)

    def _fitted(self, image: Tensor, fill: tuple[int, ...]) -> Tensor:
        if not self.is_reduced:
            return image
        rows, columns = self.size
        scale = min(rows / image.shape[1], columns / image.shape[2])
        size = round(image.shape[1] * scale), round(image.shape[2] * scale)
        small = functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        canvas = image.new_tensor(fill)[:, None, None].repeat(1, rows, columns)
        top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
        canvas[:, top : top + size[0], left : left + size[1]] = small
        return canvas


class Pointing(NamedTuple):
    """Where the maps of composites point; (b, n) for b composites of n photographs, each asked for."""

    preference: Float[Tensor, "b n"]  # share of the others on which the map is lower in the mean; a tie is one half
    energy: Float[Tensor, "b n"]  # share of the map's energy on the photograph asked for; 1/n is chance


def pointing(maps: Float[Tensor, "b n h w"], cells: Float[Tensor, "n rows columns"]) -> Pointing:
    """Preference and energy of maps of which the n-th was asked for the n-th photograph.

    >>> maps = torch.tensor([[[[3.0, 1.0]], [[2.0, 2.0]]]])    # asked for the left one, and for the right one
    >>> pointing(maps, torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])).preference.tolist()
    [[1.0, 0.5]]
    """
    b, n = maps.shape[:2]
    if n != len(cells) or n < 2:
        raise ShapeError(f"{len(cells)} photographs need as many maps, two at least; got {tuple(maps.shape)}")
    heat = upsample(maps, (cells.shape[1], cells.shape[2])).double()
    areas = cells.double()
    means = torch.einsum("bmhw,nhw->bmn", heat, areas) / areas.sum((1, 2))
    own = means.diagonal(dim1=1, dim2=2)[..., None]
    rounding = 8 * torch.finfo(torch.float32).eps * means.abs().amax((1, 2), keepdim=True)
    difference = torch.where((own - means).abs() <= rounding, 0.0, own - means)
    wins = ((difference.sign() + 1) / 2).sum(-1) - 0.5  # its tie with itself
    energy = energy_shares(rectify(heat).flatten(0, 1), areas.repeat(b, 1, 1)).reshape(b, n)
    return Pointing(wins / (n - 1), energy)
