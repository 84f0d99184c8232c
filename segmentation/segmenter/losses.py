"""Losses of a segmentation network that learns from weak labels: terms for the one training loop.

[SEC] is Kolesnikov and Lampert, Seed, Expand and Constrain: Three Principles for Weakly-Supervised Image Segmentation,
2016. GAIN trains its network with `pixels` and `pooled`, SEC with `pixels`, `expand` and `constrain`. Masks come as the
regions of a batch, one for each number in them, so they are augmented with the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...errors import InputError
from ...images import Transform
from ...images.masks import VOID, Mask
from ...threads import in_threads
from ...training.data.outlines import RegionTable
from ...training.data.training_set import Cache, TrainingSet, stays_in_memory
from ...training.engine.step import Batch, Step, Term, multi_hot
from ...training.losses.registry import Builder, made
from ...training.recipes.tables import check_name
from ..data import MaskedImages, label_map
from ..pseudo_masks.refining import CrfSettings, dense_crf

_WHO = "a segmentation network"


@dataclass(frozen=True, eq=False, kw_only=True)
class _Numbered(RegionTable):
    """One region for each number in a mask, taken from the mask when a batch asks for it; `raster` is empty."""

    mask: Callable[[int], Mask]  # of an image, in the pixels of the network's input

    def rasters(self, which: Int[Tensor, " n"]) -> UInt8[Tensor, "n h w"]:
        masks = {i: torch.from_numpy(self.mask(i)) for i in dict.fromkeys(self.image[which].tolist())}
        pairs = zip(self.image[which].tolist(), self.label[which].tolist(), strict=True)
        own = [(masks[i] == number).byte() for i, number in pairs]
        return torch.stack(own) if own else self.raster[which]


def dense_training_set(data: MaskedImages, transform: Transform, *, cache: Cache = "auto") -> TrainingSet:
    """Images with 0/1 columns for the classes they show, and their masks as regions, one per number but void's.

    Masks stay in memory where the images do; else they are decoded, like these, when a batch needs them.
    """

    def seen(i: int) -> Mask:
        mask = data.mask(i)
        if mask is None:
            raise InputError(f"{data.names[i]} has no mask to learn from")
        return label_map(mask, transform)

    keeps = stays_in_memory(len(data), transform, cache)
    held, found = list[Mask](), list[tuple[int, int]]()
    for i, mask in enumerate(in_threads(seen, range(len(data)))):
        found += [(i, int(number)) for number in np.unique(mask[mask != VOID])]
        held += [mask] if keeps else []
    if not found:
        raise InputError(f"none of the {len(data)} masks has a decided pixel; lower the threshold of the cues")
    image, label = torch.tensor(found).unbind(1)
    blank = torch.zeros(0, transform.height, transform.width, dtype=torch.uint8)
    is_box = torch.zeros(len(found), dtype=torch.bool)
    regions = _Numbered(image.contiguous(), label, is_box, blank, mask=held.__getitem__ if keeps else seen)
    return data.training_set(transform, regions=regions, cache=cache)


def dense_labels(batch: Batch) -> Int[Tensor, "b h w"]:
    """The masks of a batch: 0 background, c + 1 class c, 255 undecided or moved out of the image."""
    size = batch.images.shape[-2:]
    labels = torch.full((len(batch), *size), VOID, dtype=torch.long, device=batch.images.device)
    if batch.regions is not None:
        for row, number, raster in zip(batch.regions.row, batch.regions.label, batch.regions.raster, strict=True):
            labels[row][raster > 0.5] = number
    return labels


class PixelCrossEntropy(Term):
    """Cross entropy of the decided pixels, at the masks' resolution ([SEC], seeding loss)."""

    def __init__(self, *, balance: Literal["no", "background"] = "no") -> None:
        super().__init__()
        check_name("balance", balance, ("no", "background"))
        self.balance = balance

    def forward(self, step: Step) -> Tensor:
        """Mean -log probability; 0 for a batch without decided pixels."""
        multi_hot(step.batch, _WHO)
        labels = dense_labels(step.batch)
        logits = step.encoding.feature_map
        enlarged = functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        decided = labels != VOID
        with torch.no_grad():
            right = (enlarged.argmax(1) == labels)[decided]
            step.log["accuracy"] = right.float().mean() if len(right) else 0.0
        values = functional.cross_entropy(enlarged, labels, ignore_index=VOID, reduction="none")
        parts = [decided] if self.balance == "no" else [labels == 0, decided & (labels > 0)]
        means = [values[part].mean() for part in parts if part.any()]
        return torch.stack(means).mean() if means else logits.sum() * 0


class Pooled(Term):
    """Multi-label soft margin of the classes' pooled logits, the background left out ([GAIN] §4)."""

    def __init__(self, *, pooling: Literal["mean", "max"] = "mean") -> None:
        super().__init__()
        check_name("pooling", pooling, ("mean", "max"))
        self.pooling = pooling

    def forward(self, step: Step) -> Tensor:
        """Mean over images and classes."""
        logits = step.encoding.feature_map[:, 1:]
        pooled = logits.mean((-2, -1)) if self.pooling == "mean" else logits.amax((-2, -1))
        return functional.multilabel_soft_margin_loss(pooled, multi_hot(step.batch, _WHO))


def rank_pooled(probabilities: Float[Tensor, "b c h w"], decay: float) -> Float[Tensor, "b c"]:
    """Global weighted rank pooling, `Σ_j d^(j-1) f_j / Σ_j d^(j-1)` from a class's largest pixel on ([SEC])."""
    flat = probabilities.flatten(2)
    if decay == 0:
        return flat.amax(2)
    weights = decay ** torch.arange(flat.shape[2], device=flat.device, dtype=flat.dtype)
    return (flat.sort(2, descending=True).values * weights).sum(2) / weights.sum()


class Expand(Term):
    """Shown classes cover a part of the image, the others nothing, the background much ([SEC], expansion loss).

    Decays are those of SEC's 41×41 map and are raised to the power that gives the same shares on another.
    """

    def __init__(self, *, shown: float = 0.996, absent: float = 0.0, background: float = 0.999) -> None:
        super().__init__()
        for name, value in (("shown", shown), ("absent", absent), ("background", background)):
            if not 0 <= value <= 1:
                raise InputError(f"expected the decay {name} in [0, 1], got {value}")
        self.shown, self.absent, self.background = shown, absent, background

    def forward(self, step: Step) -> Tensor:
        """The three parts added, mean over images."""
        labels = multi_hot(step.batch, _WHO)
        probabilities = step.encoding.feature_map.softmax(1)
        power = 41 * 41 / probabilities[0, 0].numel()
        foreground = probabilities[:, 1:]
        there = rank_pooled(foreground, self.shown**power).clamp(1e-6, 1)
        not_there = rank_pooled(foreground, self.absent**power).clamp(0, 1 - 1e-6)
        ground = rank_pooled(probabilities[:, :1], self.background**power).clamp(1e-6, 1)
        of_shown = -(labels * there.log()).sum(1) / labels.sum(1).clamp(min=1)
        of_absent = -((1 - labels) * torch.log1p(-not_there)).sum(1) / (1 - labels).sum(1).clamp(min=1)
        return (of_shown + of_absent - ground.log()[:, 0]).mean()


class Constrain(Term):
    """Mean KL divergence of the prediction from what a dense CRF makes of it ([SEC], constrain-to-boundary loss)."""

    def __init__(self, transform: Transform, *, factor: float | None = None, steps: int = 10) -> None:
        super().__init__()
        self.transform, self.factor, self.steps = transform, factor, steps

    def forward(self, step: Step) -> Tensor:
        """Mean over images and positions."""
        logits = step.encoding.feature_map
        probabilities = logits.softmax(1).clamp(min=1e-4)
        probabilities = probabilities / probabilities.sum(1, keepdim=True)
        with torch.no_grad():
            size = probabilities.shape[-2:]
            colours = functional.interpolate(self.transform.denormalise(step.batch.images), size, mode="area")
            if self.transform.channels == "bgr":
                colours = colours.flip(1)
            small = (colours.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            settings = CrfSettings(steps=self.steps).scaled(self.factor or max(size) / 500)
            found = [
                dense_crf(Image.fromarray(own), scores, settings=settings)
                for own, scores in zip(small, probabilities.detach().cpu().numpy(), strict=True)
            ]
            wanted = torch.from_numpy(np.stack(found)).to(step.batch.images).clamp(min=1e-4)
            wanted = wanted / wanted.sum(1, keepdim=True)
        return (wanted * (wanted.log() - probabilities.log())).sum(1).mean()


SEGMENTER_TERMS: Mapping[str, Builder] = {
    "pixels": made("pixels", PixelCrossEntropy),
    "pooled": made("pooled", Pooled),
    "expand": made("expand", Expand),
    "constrain": made("constrain", Constrain),
}
