"""Localisation: how well the boxes and pixels that maps point out agree with the boxes and masks that people drew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, ShapeError
from .maps import components, finite_array, is_constant, normalise, peak

THRESHOLDS: tuple[float, ...] = tuple(step / 50 for step in range(50))  # 0, .02, …, .98
LEVELS = 1000  # of the pixel precision-recall curve, as in Choe et al.
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom; an `images.Box` is one


class BestThreshold(NamedTuple):
    """An accuracy, and the threshold that it is reached at; of several the lowest."""

    accuracy: float
    threshold: float


@dataclass(frozen=True, eq=False)
class BoxOverlaps:
    """Intersection over union of the boxes of n maps, at each of t thresholds, with the nearest true box."""

    thresholds: tuple[float, ...]
    largest: Float[Tensor, "n t"]
    best: Float[Tensor, "n t"]

    def __post_init__(self) -> None:
        shapes = tuple(self.largest.shape), tuple(self.best.shape)
        if shapes[0] != shapes[1] or shapes[0][1:] != (len(self.thresholds),):
            raise ShapeError(f"{len(self.thresholds)} thresholds do not fit overlaps {shapes[0]}, {shapes[1]}")

    def __len__(self) -> int:
        return len(self.largest)

    @classmethod
    def cat(cls, parts: Sequence[BoxOverlaps]) -> BoxOverlaps:
        """The overlaps of several batches as one; all at the same thresholds."""
        if not parts:
            raise InputError("expected the overlaps of at least one batch")
        if any(part.thresholds != parts[0].thresholds for part in parts):
            raise InputError("overlaps at different thresholds cannot be put together")
        return cls(parts[0].thresholds, torch.cat([p.largest for p in parts]), torch.cat([p.best for p in parts]))

    def at(self, threshold: float) -> Float[Tensor, " n"]:
        """Overlaps of the largest regions' boxes at one of the thresholds."""
        distance = [abs(threshold - known) for known in self.thresholds]
        if min(distance) > 1e-6:
            raise InputError(f"threshold={threshold} is none of those measured; measure it: box_overlaps(thresholds=…)")
        return self.largest[:, distance.index(min(distance))]

    def max_box_acc(self, *, iou: float = 0.5) -> BestThreshold:
        """MaxBoxAcc, in [0, 1]: the share of largest regions' boxes that fit, at the one threshold best for all images.

        The threshold is chosen on the images that are measured, so it says what a method could do, not what it does.

        Source: Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, 2020, Eq. 3.
        """
        if not len(self):
            raise InputError("no map was measured, so there is no accuracy")
        accuracy = (self.largest >= iou).double().mean(0)
        at = int(accuracy.argmax())
        return BestThreshold(float(accuracy[at]), self.thresholds[at])


def box_overlaps(
    maps: Float[Tensor, "n h w"],
    boxes: Sequence[Sequence[Rectangle]],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    visible: Sequence[Rectangle] | None = None,
) -> BoxOverlaps:
    """The boxes of each map at each threshold, compared with the image's true boxes.

    Regions are 8-connected positions at the threshold or above. 224×224 pixels at 50 thresholds take about 10 ms.

    >>> heat = torch.tensor([[[0.0, 1.0, 0.2], [0.0, 0.9, 0.0]]])
    >>> overlaps = box_overlaps(heat, [[(1, 0, 2, 2)]], thresholds=(0.1, 0.5))
    >>> overlaps.largest.tolist(), overlaps.max_box_acc(iou=0.9)
    ([[0.5, 1.0]], BestThreshold(accuracy=1.0, threshold=0.5))
    """
    if len(boxes) != len(maps) or (visible is not None and len(visible) != len(maps)):
        raise ShapeError(f"{len(maps)} maps need the boxes of as many images; got {len(boxes)}")
    if any(not own for own in boxes):
        raise InputError("an image has no true box; leave images without boxes out")
    from torchvision.ops import box_iou

    levels = np.asarray(thresholds, np.float64)
    if levels.ndim != 1 or not len(levels) or levels[0] < 0 or levels[-1] > 1 or (np.diff(levels) <= 0).any():
        raise InputError(f"thresholds are rising fractions from 0 to 1; got {list(thresholds)}")
    finite_array(maps)
    largest, best = (np.zeros((len(maps), len(levels))) for _ in range(2))
    flat = is_constant(maps)[:, None, None]
    scaled = torch.where(flat, 1.0, normalise(maps.detach().double()))
    for row, heat in enumerate(scaled.cpu().numpy()):
        passed = np.searchsorted(levels, heat, side="right").astype(np.uint16)  # levels at or below each pixel
        found = components(passed > np.arange(len(levels), dtype=np.uint16)[:, None, None])
        if visible is not None:
            left, top, right, bottom = visible[row]
            found = found._replace(box=found.box.clip([left, top, left, top], [right, bottom, right, bottom]))
        truth = torch.tensor(boxes[row], dtype=torch.float64)
        for into, regions in ((best[row], found), (largest[row], found.largest())):
            ious = box_iou(torch.from_numpy(regions.box), truth).nan_to_num(0.0)  # 0/0: two boxes without an area
            np.maximum.at(into, regions.mask, ious.amax(1).numpy())
    return BoxOverlaps(tuple(float(level) for level in thresholds), torch.from_numpy(largest), torch.from_numpy(best))


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """Counts of the pixels of n maps at or above each level, on the object and in all; levels fall from 1 to 0."""

    on_object: Float[Tensor, "n t"]
    shown: Float[Tensor, "n t"]

    def __len__(self) -> int:
        return len(self.shown)

    @classmethod
    def cat(cls, parts: Sequence[PixelCounts]) -> PixelCounts:
        """The counts of several batches as one."""
        return cls(torch.cat([part.on_object for part in parts]), torch.cat([part.shown for part in parts]))

    def pxap(self, weights: Float[Tensor, "r n"] | None = None) -> Float[Tensor, " r"]:
        """PxAP, in [0, 1]: area under the pixel precision-recall curve, the pixels of all images taken together.

        `Σ_l Prec(τ_l) (Rec(τ_l) - Rec(τ_{l-1}))` over falling thresholds. A constant map has the objects' share of the
        pixels. Empty masks count as images without an object; NaN if all are empty.

        Source: Choe et al. 2020, Eq. 4-6.
        """
        weights = torch.ones(1, len(self), dtype=torch.float64) if weights is None else weights.double()
        hits, shown = weights @ self.on_object, weights @ self.shown
        precision = hits / shown.clamp(min=1)
        recall = hits / hits[:, -1:]  # at level 0 every pixel is shown; 0/0 = NaN: nothing to find
        steps = torch.diff(recall, dim=1, prepend=torch.zeros_like(recall[:, :1]))
        return (precision * steps).sum(1)


def pixel_counts(
    maps: Float[Tensor, "n h w"],
    masks: Bool[Tensor, "n h w"],
    *,
    ignore: Bool[Tensor, "n h w"] | None = None,
    levels: int = LEVELS,
) -> PixelCounts:
    """The counts behind the pixel precision-recall curve, `PixelCounts.pxap`.

    >>> heat = torch.tensor([[[0.0, 1.0, 0.5, 0.2]]])
    >>> pixel_counts(heat, torch.tensor([[[False, True, False, True]]])).pxap()    # 1·(1/2) + (2/3)·(1/2)
    tensor([0.8333], dtype=torch.float64)
    """
    if maps.shape != masks.shape or (ignore is not None and ignore.shape != masks.shape):
        raise ShapeError(f"maps {tuple(maps.shape)}, masks {tuple(masks.shape)} and regions to ignore have one shape")
    if levels < 1:
        raise InputError(f"levels={levels} should be 1 or more")
    finite_array(maps)
    scaled = normalise(maps.detach().double())
    level = (scaled * levels + levels * 1e-7).long().clamp(max=levels)  # .3 in float32 is level 3 of 10, not 2
    counted = torch.ones_like(masks) if ignore is None else ~ignore
    place = level.flatten(1) + (levels + 1) * torch.arange(len(maps), device=level.device)[:, None]

    def at_or_above(pixels: Tensor) -> Tensor:
        count = torch.bincount(place[pixels.flatten(1)], minlength=len(maps) * (levels + 1))
        return count.reshape(len(maps), levels + 1).flip(1).cumsum(1).double().cpu()

    return PixelCounts(at_or_above(masks & counted), at_or_above(counted))


def peak_in_box(heat_map: Float[Tensor, "h w"], *boxes: Rectangle) -> bool:
    """True if the middle of the map's highest pixel lies in one of the boxes (the pointing game, without tolerance).

    Boxes are in pixels of the map. No box is never a hit, and a constant map points nowhere: it never hits.

    Source: Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016 (there with a margin of 15 pixels).
    """
    row, column = peak(heat_map)
    return not bool(is_constant(heat_map)) and any(
        left <= column + 0.5 < right and top <= row + 0.5 < bottom for left, top, right, bottom in boxes
    )


class EnergyShare(NamedTuple):
    """`share` of a map's sum that lies in boxes, and `chance`, the share of the area they cover; both in [0, 1]."""

    share: float
    chance: float


def energy_in_box(heat_map: Float[Tensor, "h w"], *boxes: Rectangle) -> EnergyShare:
    """Share of the map, scaled to [0, 1] by minimum and maximum, that lies inside the boxes (the energy pointing game).

    Pixels on a box's edge count by the part that is covered. A map that knows nothing has its share near `chance`; the
    share of a constant map is exactly that. Boxes are in pixels of the map, and what lies outside it does not count.

    Source: Wang et al., Score-CAM, 2020 (energy-based pointing game).

    >>> energy_in_box(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), (1, 1, 2, 2))
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


def box_coverage(boxes: Sequence[Rectangle], size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """The part of each pixel that the boxes cover, in [0, 1]; where boxes overlap, the larger of their parts.

    >>> box_coverage([(0.5, 0, 2, 1)], (1, 3))
    tensor([[0.5000, 1.0000, 0.0000]], dtype=torch.float64)
    """
    y, x = (torch.arange(n, dtype=torch.float64) for n in size)
    covered = torch.zeros(size, dtype=torch.float64)
    for left, top, right, bottom in boxes:
        down = ((y + 1).clamp(max=bottom) - y.clamp(min=top)).clamp(0, 1)
        across = ((x + 1).clamp(max=right) - x.clamp(min=left)).clamp(0, 1)
        covered = torch.maximum(covered, down[:, None] * across)
    return covered
