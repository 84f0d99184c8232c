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
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ...encoders import Encoder
from ...errors import InputError
from ...training.engine.step import Step, Term
from ...training.losses.attention import statistics_frozen
from ...training.losses.registry import TermContext
from ...training.recipes.tables import parse
from .class_maps import class_maps, hardest, min_pooling_loss, read_stages, scaled_maps, with_background
from .map_term import MapSettings, MapTerm, renamed, require_plain_maps


class SeamSettings(MapSettings):
    """Options of SEAM, under the names that a recipe gives them; PRCM beside PCM is that of CPN's Table 5.

    Attributes:
        scale: of the second view.
        er: L_er takes part.
        ecr: L_ecr takes part.
        batch_norm: "separate": each view has its own statistics. "original": the small view passes with the running
            ones.
        detach_plain: L_ecr's plain maps are constants.
    """

    prcm: bool = False
    one_hot: bool = True
    scale: float = 0.3
    er: bool = True
    ecr: bool = True
    batch_norm: Literal["separate", "original"] = "separate"
    detach_plain: bool = True

    def check(self) -> None:
        """Raise InputError for values that do not fit together."""
        super().check()
        if not 0 < self.scale < 1:
            raise InputError("expected 0 < scale < 1")
        if not self.pcm:
            raise InputError("SEAM refines by PCM; leave pcm out")


class Seam(MapTerm):
    """Equivariant attention: two views of every image, and a refinement; CPN's comparison.

    Source: Wang et al., Self-supervised Equivariant Attention Mechanism, 2020, §3.
    """

    def __init__(self, encoder: Encoder, n_classes: int, settings: SeamSettings | None = None) -> None:
        super().__init__(encoder.pooled_dim, n_classes)
        self.settings = settings or SeamSettings()
        self.add_refinement(encoder, self.settings)

    def forward(self, step: Step) -> Tensor:
        """The sum of the losses; its parts are in the step's log."""
        own = self.settings
        if step.progress.epoch < own.start or self.refinement is None:
            return super().forward(step)
        labels, images = self.labels(step), step.batch.images
        small = functional.interpolate(images, scale_factor=own.scale, mode="bilinear", align_corners=False)
        with read_stages(step.encoder, self.stages) as read:
            maps = class_maps(step.encode(images).feature_map, self.weight)
            stages = read()
            with statistics_frozen(step.encoder) if own.batch_norm == "original" else nullcontext():
                small_maps = class_maps(step.encode(small).feature_map, self.weight)
            small_stages = read()
        total = self.classification(step, maps, labels)
        total = (total + functional.multilabel_soft_margin_loss(small_maps.mean((-2, -1)), labels)) / 2
        step.log["cls"] = float(total.detach())
        refine, features = self.refinement.refine, self.refinement.features
        refined = [
            refine(raw, features(parts, view, (raw.shape[-2], raw.shape[-1])), labels)
            for raw, parts, view in ((maps, stages, images), (small_maps, small_stages, small))
        ]
        return total + self._regularisation(step, (maps, small_maps), refined, labels)

    def _regularisation(
        self, step: Step, maps: tuple[Tensor, Tensor], refined: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """L_er and L_ecr, at the size of the small view's maps."""
        own, size = self.settings, maps[1].shape[-2:]
        one, two = (scaled_maps(raw, labels, scaling=own.scaling) for raw in maps)
        one = functional.interpolate(one, size, mode="area")
        total = one.new_zeros(())
        if own.er:
            er = (one - two).abs().mean()
            step.log["er"] = float(er.detach())
            total = total + er
        if own.ecr:
            ecr = one.new_zeros(())
            for plain, found in ((two, functional.interpolate(refined[0], size, mode="area")), (one, refined[1])):
                target = with_background(plain, power=own.power)
                target = target.detach() if own.detach_plain else target
                target = target * (target == target.amax(1, keepdim=True)) if own.one_hot else target
                ecr = ecr + hardest((target - found).abs(), own.hardest_share)
            step.log["ecr"] = float(ecr.detach())
            total = total + ecr
        if own.min_pooling:
            low = torch.stack([min_pooling_loss(maps[:, 1:]) for maps in refined]).mean()
            total = total + own.min_pooling * low
        return total


def build_seam(options: Mapping[str, Any], context: TermContext) -> Term:
    """SEAM from a recipe: the options of `SeamSettings`."""
    require_plain_maps(context.encoder, "seam")
    own = renamed("seam", options, {"stop_plain": "detach_plain"})
    return Seam(context.encoder, context.n_classes, parse(SeamSettings, own, "loss.seam"))
