"""The plain CAM as a loss, and the settings that losses on refined maps share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...encoders import Encoder
from ...encoders.heads import GAP, Identity
from ...errors import InputError
from ...remarks import remark
from ...training.data.labels import accuracy
from ...training.engine.step import Step, Term
from ...training.losses.registry import TermContext, checked_term
from ...training.recipes.tables import NotNegative, Table
from .class_maps import Scaling, class_maps
from .map_refinement import MapRefinement, PrcmSoftmax, stage_dims, stage_layers


class MapSettings(Table):
    """Options of CPN and SEAM alike.

    Attributes:
        ohem: compare refined maps by the hardest elements alone.
        hard_share: share of the elements that those are.
        pcm: refine by PCM.
        prcm: refine by PRCM; without both there is no refinement.
        prcm_softmax: see `Prcm`.
        power: a of the background's score.
        scaling: see `scaled_maps`.
        start: the epoch in which other views come in, from 0; before, this is the plain CAM.
        stages: the layers of stages 3 and 4; see `stage_layers`.
        one_hot: of the maps that refined ones follow, keep each position's highest class only.
        min_pooling: weight of `min_pooling_loss`.
    """

    ohem: bool = True
    hard_share: float = 0.2
    pcm: bool = True
    prcm: bool = True
    prcm_softmax: PrcmSoftmax = "class"
    power: float = 1.0
    scaling: Scaling = "max"
    start: int = 0
    stages: tuple[str, ...] | None = None
    one_hot: bool = False
    min_pooling: NotNegative = 0.0

    def check(self) -> None:
        """Raise InputError for values that do not fit together."""
        if not 0 < self.hard_share <= 1 or self.start < 0:
            raise InputError("expected 0 < hard_share <= 1, and start of at least 0")

    @property
    def hardest_share(self) -> float | None:
        """Share of the elements that count; None for all."""
        return self.hard_share if self.ohem else None


class MapTerm(Term):
    """Image-level labels alone, the plain CAM: the soft margin loss of class maps pooled over positions.

    The class weights are those of a 1×1 convolution on the feature map, without bias, so the logit of a class is the
    mean of its map.

    Args:
        dim: channels of the feature map.
        n_classes: number of classes.
    """

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.refinement: MapRefinement | None = None
        self.stages: tuple[str, ...] = ()
        self.weight = nn.Linear(dim, n_classes, bias=False).weight

    def add_refinement(self, encoder: Encoder, settings: MapSettings) -> None:
        """Give the term the refinement that the settings ask for."""
        if settings.pcm or settings.prcm:
            self.stages = stage_layers(encoder) if settings.stages is None else settings.stages
            self.refinement = MapRefinement(
                stage_dims(encoder, self.stages),
                pcm=settings.pcm,
                prcm=settings.prcm,
                prcm_softmax=settings.prcm_softmax,
                scaling=settings.scaling,
                power=settings.power,
            )

    def class_weights(self) -> Float[Tensor, "c k"]:
        """One vector per class, inside the gradient graph."""
        return self.weight

    def logits(self, embedding: Float[Tensor, "b k"]) -> Float[Tensor, "b c"]:
        """The classes' scores of pooled feature maps."""
        return functional.linear(embedding, self.weight)

    def forward(self, step: Step) -> Tensor:
        """Mean over batch and classes."""
        labels = self.labels(step)
        return self.classification(step, class_maps(step.encoding.feature_map, self.weight), labels)

    def labels(self, step: Step) -> Float[Tensor, "b c"]:
        """The batch's 0/1 columns."""
        batch, name = step.batch, type(self).__name__
        if batch.labels.ndim != 2:
            raise InputError(f"{name} needs one 0/1 column per class, got labels of shape {tuple(batch.labels.shape)}")
        if batch.mix is not None:
            raise InputError(f"{name} cannot learn from blended images; leave augment.mixup and augment.cutmix out")
        return batch.labels.float()

    def classification(self, step: Step, maps: Float[Tensor, "b c h w"], labels: Float[Tensor, "b c"]) -> Tensor:
        """ℓ of the whole images, which also give the accuracy of the log."""
        logits = maps.mean((-2, -1))
        with torch.no_grad():
            step.log["accuracy"] = accuracy(logits, step.batch)
        return functional.multilabel_soft_margin_loss(logits, labels)


def require_plain_maps(encoder: Encoder, who: str) -> None:
    """Nothing, if class weights can lie on the channels of the feature map."""
    if not isinstance(encoder.head, Identity) or not isinstance(encoder.pooling, GAP):
        raise InputError(f'{who} puts its class weights on the feature map; leave head out, and pooling = "gap"')


def renamed(kind: str, options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Options under today's names, with a remark on each that a recipe still spells as earlier versions did.

    An earlier `free_…` is the opposite of today's `detach_…`.
    """
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
    require_plain_maps(context.encoder, "multi_label")
    return checked_term("multi_label", partial(MapTerm, context.encoder.pooled_dim, context.n_classes), options)
