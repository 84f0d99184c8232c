"""What all losses on class maps share: the plain CAM, the hardest elements of an error, and a refinement that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...encoders import Encoder
from ...encoders.heads import Identity
from ...encoders.pooling import GAP
from ...errors import InputError
from ...training.data.labels import accuracy
from ...training.engine.step import Step, Term
from ...training.losses.registry import TermContext, checked_term
from ..pseudo_masks.class_maps import class_maps
from .refinement import Refinement, stage_dims

__all__ = [
    "MapTerm",
    "build_multi_label",
    "hardest",
    "min_pooling_loss",
    "refinement_for",
    "require_plain_maps",
]


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
        self.refinement: Refinement | None = None
        self.stages: tuple[str, ...] = ()
        self.weight = nn.Linear(dim, n_classes, bias=False).weight

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
        """The batch's 0/1 columns.

        Raises:
            InputError: labels are class indices, or images are blended.
        """
        batch, name = step.batch, type(self).__name__
        if batch.labels.ndim != 2:
            raise InputError(f"{name} needs one 0/1 column per class, got labels of shape {tuple(batch.labels.shape)}")
        if batch.mix is not None:
            raise InputError(f"{name} cannot learn from blended images; leave augment.mixup and augment.cutmix out")
        return batch.labels.float()

    def classification(self, step: Step, maps: Float[Tensor, "b c h w"], labels: Float[Tensor, "b c"]) -> Tensor:
        """ℓ: of the whole images, which also give the accuracy of the log."""
        logits = maps.mean((-2, -1))
        with torch.no_grad():
            step.log["accuracy"] = accuracy(logits, step.batch)
        return functional.multilabel_soft_margin_loss(logits, labels)


def hardest(errors: Float[Tensor, "b c h w"], share: float | None) -> Tensor:
    """The mean of each image's largest errors, that share of all of its elements; of all if `share` is None.

    >>> hardest(torch.tensor([[[[1.0, 5.0, 3.0, 0.0]]]]), 0.5).item()
    4.0
    """
    flat = errors.flatten(1)
    return flat.mean() if share is None else flat.topk(max(int(share * flat.shape[1]), 1), dim=1).values.mean()


def min_pooling_loss(refined: Float[Tensor, "b c h w"]) -> Tensor:
    """The mean of the lowest quarter of the positions' highest class scores: some of the image is no object.

    Source: the published codes of SEAM and CPN; in neither paper.
    """
    highest = refined.amax(1).flatten(1)
    return highest.topk(max(highest.shape[1] // 4, 1), dim=1, largest=False).values.clamp(min=0).mean()


def refinement_for(encoder: Encoder, stages: Sequence[str], **options: Any) -> Refinement:
    """A refinement that fits the stages of an encoder.

    Raises:
        InputError: not two stages, or none by that name.
    """
    if len(stages) != 2:
        raise InputError(f"expected two stages, got {len(stages)}: {', '.join(stages)}")
    first, second = stage_dims(encoder, stages)
    return Refinement((first, second), **options)


def require_plain_maps(encoder: Encoder, who: str) -> None:
    """Nothing, if class weights can lie on the channels of the feature map.

    Raises:
        InputError: there is a head, or another pooling than the mean.
    """
    if not isinstance(encoder.head, Identity) or not isinstance(encoder.pooling, GAP):
        raise InputError(f'{who} puts its class weights on the feature map; leave head out, and pooling = "gap"')


def build_multi_label(options: Mapping[str, Any], context: TermContext) -> Term:
    """The plain CAM from a recipe."""
    require_plain_maps(context.encoder, "multi_label")
    return checked_term("multi_label", partial(MapTerm, context.encoder.pooled_dim, context.n_classes), options)
