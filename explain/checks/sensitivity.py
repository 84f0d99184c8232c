"""Numbers about maps: does it depend on the match, does its peak lie on the object, does its energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError, ShapeError
from ...images.geometry import Box
from ..drawing.boxes import peak
from ..maps import is_constant, normalise, spearman

__all__ = ["EnergyShare", "box_coverage", "energy_in_box", "energy_shares", "match_sensitivity", "peak_in_box"]


def match_sensitivity(maps: Float[Tensor, "*b n h w"]) -> Float[Tensor, "*b"]:
    """Rank correlation of the map for the first reference with the others' maps, in [-1, 1]: 1 = blind to the match.

    Usually n = 2: the map for the best match and the map for a random gallery image. With more references it is the
    mean over the pairs of the first and another. The class-agnostic map has 1 by construction, and so does any
    explanation that shows the object whatever it is compared with; read every good-looking map beside this number.

    Raises:
        ShapeError: fewer than two maps.

    >>> match_sensitivity(torch.tensor([[[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]]]))
    tensor(-1.)
    """
    if maps.ndim < 3 or maps.shape[-3] < 2:
        raise ShapeError(
            f"match sensitivity compares two maps or more, as (…, n, rows, columns); got {tuple(maps.shape)}"
        )
    others = maps[..., 1:, :, :]
    return spearman(maps[..., :1, :, :].expand_as(others), others).mean(-1)


def peak_in_box(heat_map: Float[Tensor, "h w"], *boxes: Box) -> bool:
    """Whether the middle of the map's highest pixel lies in one of the boxes (the pointing game, without tolerance).

    Boxes are in pixels of the map. No box is never a hit, and a constant map points nowhere: it never hits.

    Source: Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016 (there with a margin of 15 pixels).
    """
    row, column = peak(heat_map)
    return not bool(is_constant(heat_map)) and any(box.contains(column + 0.5, row + 0.5) for box in boxes)


class EnergyShare(NamedTuple):
    """`share` of a map's sum that lies in boxes, and `chance`, the share of the area they cover; both in [0, 1]."""

    share: float
    chance: float


def energy_in_box(heat_map: Float[Tensor, "h w"], *boxes: Box) -> EnergyShare:
    """How much of the map, scaled to [0, 1] by minimum and maximum, lies inside the boxes (the energy pointing game).

    Pixels on a box's edge count by the part that is covered. A map that knows nothing has its share near `chance`; the
    share of a constant map is exactly that. Boxes are in pixels of the map, and what lies outside it does not count.

    Source: Wang et al., Score-CAM, 2020 (energy-based pointing game).

    >>> energy_in_box(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), Box(1, 1, 2, 2))
    EnergyShare(share=0.75, chance=0.25)
    """
    if not boxes:
        raise InputError("energy_in_box needs at least one box")
    inside = box_coverage(boxes, (heat_map.shape[0], heat_map.shape[1])).to(heat_map.device)
    return EnergyShare(float(energy_shares(heat_map[None], inside[None])[0]), float(inside.mean()))


def energy_shares(maps: Float[Tensor, "n h w"], inside: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """The share of `energy_in_box` for many maps; `inside` is the part of each pixel that counts (`box_coverage`)."""
    flat = is_constant(maps)[:, None, None]
    energy = torch.where(flat, 1.0, normalise(maps.double()))
    return (energy * inside).sum((-2, -1)) / energy.sum((-2, -1))


def box_coverage(boxes: Sequence[Box], size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """The part of each pixel that the boxes cover, in [0, 1]; where boxes overlap, the larger of their parts.

    Args:
        boxes: in pixels; none cover nothing.
        size: rows and columns.

    >>> box_coverage([Box(0.5, 0, 2, 1)], (1, 3))
    tensor([[0.5000, 1.0000, 0.0000]], dtype=torch.float64)
    """
    y, x = (torch.arange(n, dtype=torch.float64) for n in size)
    covered = torch.zeros(size, dtype=torch.float64)
    for box in boxes:
        down = ((y + 1).clamp(max=box.bottom) - y.clamp(min=box.top)).clamp(0, 1)
        across = ((x + 1).clamp(max=box.right) - x.clamp(min=box.left)).clamp(0, 1)
        covered = torch.maximum(covered, down[:, None] * across)
    return covered
