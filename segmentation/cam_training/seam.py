"""SEAM: the map of a smaller view should be the smaller map, and so should the refined one.

    L_er  = |A(Y_1) - Y_2|                                                        [SEAM] Eq. 4
    L_ecr = |A(Ỹ_1) - Y_2| + |A(Y_1) - Ỹ_2|, the hardest fifth of it              [SEAM] Eq. 5

A makes the view: the image at 0.3 of its side. As in the authors' code the plain maps of L_ecr are constants of which
each position keeps its highest class, so that L_ecr trains the refinement, and L_er the network. Here the background
competes, too, as in CPN's code; in SEAM's the classes compete and the background always stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ...encoders import Encoder
from ...errors import InputError
from ...training.engine.step import Step, Term
from ...training.losses.attention import statistics_frozen
from ...training.losses.registry import TermContext, checked_term
from ..pseudo_masks.class_maps import Scaling, class_maps, scaled_maps, with_background
from .map_term import MapTerm, hardest, min_pooling_loss, refinement_for, require_plain_maps
from .refinement import PrcmSoftmax, read_stages, stage_layers

__all__ = ["Seam"]


class Seam(MapTerm):
    """Equivariant attention: two views of every image, and a refinement; CPN's comparison.

    Args:
        encoder: gives the channels of map and stages.
        n_classes: number of classes.
        scale: of the second view.
        er: whether L_er takes part.
        ecr: whether L_ecr does.
        ohem: L_ecr of the hardest elements alone.
        hard_share: how many those are.
        prcm: PRCM beside PCM, as in CPN's Table 5.
        prcm_softmax: see `Prcm`.
        power: a of the background's score.
        scaling: "max" or "range"; see `scaled_maps`.
        batch_norm: "separate": each view has its own statistics. "original": the small view passes with the running
            ones.
        start: the epoch in which the second view comes in, from 0; before, this is the plain CAM.
        stages: see `stage_layers`.
        one_hot: of L_ecr's plain maps keep each position's highest class only.
        stop_plain: let no gradient through L_ecr's plain maps.
        min_pooling: weight of a loss in the authors' code; see `min_pooling_loss`.

    Source: Wang et al., Self-supervised Equivariant Attention Mechanism, 2020, §3.
    """

    def __init__(
        self,
        encoder: Encoder,
        n_classes: int,
        *,
        scale: float = 0.3,
        er: bool = True,
        ecr: bool = True,
        ohem: bool = True,
        hard_share: float = 0.2,
        prcm: bool = False,
        prcm_softmax: PrcmSoftmax = "class",
        power: float = 1.0,
        scaling: Scaling = "max",
        batch_norm: Literal["separate", "original"] = "separate",
        start: int = 0,
        stages: Sequence[str] | None = None,
        one_hot: bool = True,
        stop_plain: bool = True,
        min_pooling: float = 0.0,
    ) -> None:
        super().__init__(encoder.pooled_dim, n_classes)
        if not 0 < scale < 1 or not 0 < hard_share <= 1 or min_pooling < 0 or start < 0:
            raise InputError("expected 0 < scale < 1, 0 < hard_share <= 1, min_pooling and start of at least 0")
        if batch_norm not in ("separate", "original"):
            raise InputError(f"unknown batch_norm {batch_norm!r}: expected 'separate' or 'original'")
        self.scale, self.er, self.ecr, self.start, self.min_pooling = scale, er, ecr, start, min_pooling
        self.hard_share = hard_share if ohem else None
        self.power, self.scaling, self.batch_norm = power, scaling, batch_norm
        self.one_hot, self.stop_plain = one_hot, stop_plain
        self.stages = tuple(stages) if stages is not None else stage_layers(encoder)
        self.refinement = refinement_for(
            encoder, self.stages, prcm=prcm, prcm_softmax=prcm_softmax, scaling=scaling, power=power
        )

    def forward(self, step: Step) -> Tensor:
        """The sum of the losses; its parts are in the step's log."""
        if step.progress.epoch < self.start or self.refinement is None:
            return super().forward(step)
        labels, images = self.labels(step), step.batch.images
        small = functional.interpolate(images, scale_factor=self.scale, mode="bilinear", align_corners=False)
        with read_stages(step.encoder, self.stages) as reader:
            maps = class_maps(step.encode(images).feature_map, self.weight)
            stages = reader.stages
            with statistics_frozen(step.encoder) if self.batch_norm == "original" else nullcontext():
                small_maps = class_maps(step.encode(small).feature_map, self.weight)
            small_stages = reader.stages
        total = self.classification(step, maps, labels)
        total = (total + functional.multilabel_soft_margin_loss(small_maps.mean((-2, -1)), labels)) / 2
        step.log["cls"] = float(total.detach())
        refine, features = self.refinement.refine, self.refinement.features
        refined = [
            refine(own, features(parts, view, (own.shape[-2], own.shape[-1])), labels)
            for own, parts, view in ((maps, stages, images), (small_maps, small_stages, small))
        ]
        return total + self._regularised(step, (maps, small_maps), refined, labels)

    def _regularised(
        self, step: Step, maps: tuple[Tensor, Tensor], refined: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """L_er and L_ecr, at the size of the small view's maps."""
        size = maps[1].shape[-2:]
        one, two = (scaled_maps(own, labels, scaling=self.scaling) for own in maps)
        one = functional.interpolate(one, size, mode="area")
        total = one.new_zeros(())
        if self.er:
            er = (one - two).abs().mean()
            step.log["er"] = float(er.detach())
            total = total + er
        if self.ecr:
            refined_one = functional.interpolate(refined[0], size, mode="area")
            targets = [self._target(with_background(own, power=self.power)) for own in (two, one)]
            errors = [
                hardest((target - own).abs(), self.hard_share)
                for target, own in zip(targets, (refined_one, refined[1]), strict=True)
            ]
            ecr = torch.stack(errors).sum()
            step.log["ecr"] = float(ecr.detach())
            total = total + ecr
        if self.min_pooling:
            low = torch.stack([min_pooling_loss(own[:, 1:]) for own in refined]).mean()
            total = total + self.min_pooling * low
        return total

    def _target(self, maps: Tensor) -> Tensor:
        maps = maps.detach() if self.stop_plain else maps
        return maps * (maps == maps.amax(1, keepdim=True)) if self.one_hot else maps


def build_seam(options: Mapping[str, Any], context: TermContext) -> Term:
    """SEAM from a recipe."""
    require_plain_maps(context.encoder, "seam")
    return checked_term("seam", partial(Seam, context.encoder, context.n_classes), options)
