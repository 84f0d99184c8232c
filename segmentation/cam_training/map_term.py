"""The plain CAM as a loss, SEAM, and the settings that losses on refined maps share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...encoders import Encoder
from ...encoders.heads import GAP, IdentityHead
from ...errors import InputError
from ...remarks import remark
from ...training.engine.step import Step, Term, accuracy, multi_hot
from ...training.losses.attention import statistics_frozen
from ...training.losses.registry import TermContext, checked_term
from ...training.recipes.tables import NotNegative, parse
from .class_maps import (
    MapRefinement,
    RefinementSettings,
    class_maps,
    hardest,
    min_pooling_loss,
    read_stages,
    scaled_maps,
    stage_dims,
    stage_layers,
    with_background,
)


class MapSettings(RefinementSettings):
    """Options of CPN and SEAM alike."""

    ohem: bool = True  # compare refined maps by the hardest elements alone
    hard_share: float = 0.2  # share of the elements that those are
    start: int = 0  # the epoch in which other views come in, from 0; before, this is the plain CAM
    stages: tuple[str, ...] | None = None  # the layers of stages 3 and 4; see `stage_layers`
    one_hot: bool = False  # of the maps that refined ones follow, keep each position's highest class only
    min_pooling: NotNegative = 0.0  # weight of `min_pooling_loss`

    def _check(self) -> None:
        if not 0 < self.hard_share <= 1 or self.start < 0:
            raise InputError("expected 0 < hard_share <= 1, and start of at least 0")

    @property
    def compared(self) -> float | None:
        """The share of elements that `hardest` looks at; None for all."""
        return self.hard_share if self.ohem else None


class MapTerm(Term):
    """Image-level labels alone, the plain CAM: the soft margin loss of class maps pooled over positions."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.refinement: MapRefinement | None = None
        self.stages: tuple[str, ...] = ()
        self.weight = nn.Linear(dim, n_classes, bias=False).weight

    def add_refinement(self, encoder: Encoder, settings: MapSettings) -> None:
        """Give the term the refinement that the settings ask for."""
        if settings.pcm or settings.prcm:
            self.stages = stage_layers(encoder) if settings.stages is None else settings.stages
            self.refinement = MapRefinement(stage_dims(encoder, self.stages), settings)

    def class_weights(self) -> Float[Tensor, "c k"]:
        """One vector per class, inside the gradient graph."""
        return self.weight

    def logits(self, embedding: Float[Tensor, "b k"]) -> Float[Tensor, "b c"]:
        """The classes' scores of pooled feature maps."""
        return functional.linear(embedding, self.weight)

    def forward(self, step: Step) -> Tensor:
        """Mean over batch and classes."""
        labels = multi_hot(step.batch, type(self).__name__)
        return self.classification(step, class_maps(step.encoding.feature_map, self.weight), labels)

    def classification(self, step: Step, maps: Float[Tensor, "b c h w"], labels: Float[Tensor, "b c"]) -> Tensor:
        """ℓ of the whole images, which also give the accuracy of the log."""
        logits = maps.mean((-2, -1))
        with torch.no_grad():
            step.log["accuracy"] = accuracy(logits, step.batch)
        return functional.multilabel_soft_margin_loss(logits, labels)


def renamed(kind: str, options: Mapping[str, Any], names: Mapping[str, str], encoder: Encoder) -> dict[str, Any]:
    """Options under today's names, of a loss whose class weights lie on the channels of the feature map.

    Each earlier name is remarked on; an earlier `free_…` is the opposite of today's `detach_…`.
    """
    if not isinstance(encoder.head, IdentityHead) or not isinstance(encoder.pooling, GAP):
        raise InputError(f'{kind} puts its class weights on the feature map; leave head out, and pooling = "gap"')
    own = dict(options)
    for old, new in names.items():
        if old in own:
            value = own.pop(old)
            if new in own:
                raise InputError(f"{kind}: {old} is an earlier name of {new}; leave {old} out")
            own[new] = not value if old.startswith("free_") and isinstance(value, bool) else value
            remark(f"{kind}: {old} is an earlier name; write {new} = {str(own[new]).lower()}")
    return own


def build_multi_label(options: Mapping[str, Any], context: TermContext) -> Term:
    """The plain CAM from a recipe."""
    own = renamed("multi_label", options, {}, context.encoder)
    return checked_term("multi_label", partial(MapTerm, context.encoder.pooled_dim, context.n_classes), own)


class SeamSettings(MapSettings):
    """Options of SEAM, under the names that a recipe gives them; PRCM beside PCM is that of CPN's Table 5."""

    prcm: bool = False
    one_hot: bool = True
    scale: float = 0.3  # of the second view
    er: bool = True  # L_er takes part
    ecr: bool = True  # L_ecr takes part
    # "separate": each view has its own statistics. "original": the small view passes with the running ones.
    batch_norm: Literal["separate", "original"] = "separate"
    detach_plain: bool = True  # L_ecr's plain maps are constants

    def _check(self) -> None:
        super()._check()
        if not 0 < self.scale < 1:
            raise InputError("expected 0 < scale < 1")
        if not self.pcm:
            raise InputError("SEAM refines by PCM; leave pcm out")


class Seam(MapTerm):
    """Equivariant attention: two views of every image, and a refinement (Wang et al., SEAM, 2020, §3).

        L_er  = |A(Y_1) - Y_2|                                                        [SEAM] Eq. 4
        L_ecr = |A(Ỹ_1) - Y_2| + |A(Y_1) - Ỹ_2|, the hardest fifth of it              [SEAM] Eq. 5

    A makes the smaller view. The background competes for the highest class, as in CPN's code; in SEAM's it stays.
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
        labels, images = multi_hot(step.batch, "Seam"), step.batch.images
        small = functional.interpolate(images, scale_factor=own.scale, mode="bilinear", align_corners=False)
        with read_stages(step.encoder, self.stages) as read:
            maps = class_maps(step.encode(images).feature_map, self.weight)
            stages = read()
            with statistics_frozen(step.encoder) if own.batch_norm == "original" else nullcontext():
                small_maps = class_maps(step.encode(small).feature_map, self.weight)
            small_stages = read()
        total = self.classification(step, maps, labels)
        total = total + functional.multilabel_soft_margin_loss(small_maps.mean((-2, -1)), labels)
        total = step.noted("cls", total / 2)
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
            total = total + step.noted("er", (one - two).abs().mean())
        if own.ecr:
            ecr = one.new_zeros(())
            for plain, found in ((two, functional.interpolate(refined[0], size, mode="area")), (one, refined[1])):
                target = with_background(plain, power=own.power)
                target = target.detach() if own.detach_plain else target
                target = target * (target == target.amax(1, keepdim=True)) if own.one_hot else target
                ecr = ecr + hardest((target - found).abs(), own.compared)
            total = total + step.noted("ecr", ecr)
        if own.min_pooling:
            low = torch.stack([min_pooling_loss(maps[:, 1:]) for maps in refined]).mean()
            total = total + own.min_pooling * low
        return total


def build_seam(options: Mapping[str, Any], context: TermContext) -> Term:
    """SEAM from a recipe: the options of `SeamSettings`."""
    own = renamed("seam", options, {"stop_plain": "detach_plain"}, context.encoder)
    return Seam(context.encoder, context.n_classes, parse(SeamSettings, own, "loss.seam"))
