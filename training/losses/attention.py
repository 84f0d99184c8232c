"""Attention maps inside the gradient graph, and what the losses that train attention have in common.

All gradients come from `torch.autograd.grad` through pooling and head alone: no accumulated `.grad` is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...encoders import Encoder
from ...encoders.heads import GAP, affine_of
from ...encoders.layers import evaluating
from ...errors import InputError
from ...explain.methods.cam import plus_plus_weights
from ..engine.step import HasClassWeights, Step, Targets, Term, TrainingProgress

ADAPTIVE_ACCURACY = 0.5


def scaled(maps: Float[Tensor, "*b h w"], *, eps: float = 1e-8) -> Float[Tensor, "*b h w"]:
    """Each map in [0, 1] by its own minimum and maximum, inside the graph; 0 if these differ by `eps` or less."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span > eps, (maps - low) / (span + eps), 0.0)


def map_of_places(step: Step, who: str) -> Float[Tensor, "b k h w"]:
    """The batch's feature map; InputError if it has one place only, where no map could be trained."""
    feature_map = step.encoding.feature_map
    if feature_map[0, 0].numel() > 1:
        return feature_map
    remedy = "read an earlier layer, take larger images, or another readout"
    if any(isinstance(part, nn.MultiheadAttention) and part.dropout > 0 for part in step.encoder.modules()):
        remedy = "dropout of its nn.MultiheadAttention hides what is read of each place; set it to 0"
    raise InputError(
        f"{who} trains where a map is high, but that of {step.encoder.architecture} has one place only: {remedy}"
    )


def above_rounding(agnostic: Float[Tensor, "t h w"], maps: Float[Tensor, "t k h w"]) -> Float[Tensor, "t h w"]:
    """CAAM, `Σ_k maps_k`; 0 at every place of an image where nothing but rounding tells its places apart.

    A layer norm whose weights are all alike makes a token's entries sum to the same at every place. What is left, of
    some units in the last place, would be scaled to [0, 1] like any other map.
    """
    magnitude = maps.detach().abs().sum(1).amax((-2, -1), keepdim=True)
    span = agnostic.detach().amax((-2, -1), keepdim=True) - agnostic.detach().amin((-2, -1), keepdim=True)
    is_told = span > 8 * torch.finfo(maps.dtype).eps * magnitude
    return torch.where(is_told, agnostic, 0.0)


def weighted_map(maps: Float[Tensor, "t k h w"], weights: Float[Tensor, "t k"]) -> Float[Tensor, "t h w"]:
    """`Σ_k weights_k maps_k`."""
    flat = weights.unsqueeze(1) @ maps.flatten(2)
    return flat.reshape(len(maps), *maps.shape[-2:])


def pooled_weights(encoder: Encoder, weights: Float[Tensor, "c d"]) -> Float[Tensor, "c k"]:
    """Class weights carried back to the channels of the feature map: `Hᵀ w` for a head `H x + b`, a constant."""
    affine = affine_of(encoder.head)
    if affine is None:
        raise InputError(
            f"the head {type(encoder.head).__name__} is not affine, so it has no CAM; use method='gradcam'"
        )
    if affine.weight is not None:
        return weights @ affine.weight
    return weights if affine.diagonal is None else weights * affine.diagonal


def gradient_weights(
    encoder: Encoder,
    feature_map: Float[Tensor, "b k h w"],
    classifier: HasClassWeights,
    targets: Targets,
    *,
    score: Literal["logit", "log_odds"] = "logit",
    second_order: bool = False,
    plus_plus: bool = False,
) -> Float[Tensor, "t k"]:
    """Grad-CAM's channel weights, `GAP(∂ s^c / ∂ f)`, for each pair of an image and a class ([GAIN] Eq. 1).

    With `plus_plus` those of Grad-CAM++, see `explain.methods.cam.grad_cam_plus_plus`. s^c is the class's logit, or its
    log-odds `logit_c - log Σ_{j≠c} exp logit_j`. The head runs as in evaluation mode; the weights are constants, or,
    with `second_order`, part of the graph.
    """
    maps = targets.of(feature_map)
    is_mean = isinstance(encoder.pooling, GAP)
    source = encoder.pooling(maps) if is_mean else maps
    with torch.enable_grad(), evaluating(encoder.head):
        source = source if second_order else source.detach().requires_grad_()
        logits = classifier.logits(encoder.embed(source if is_mean else encoder.pooling(source)))
        own = logits.gather(1, targets.label[:, None])
        if score == "log_odds":
            own = own - logits.scatter(1, targets.label[:, None], -torch.inf).logsumexp(1, keepdim=True)
        (gradient,) = torch.autograd.grad(own.sum(), source, create_graph=second_order)
    if plus_plus:
        slopes = (gradient / maps[0, 0].numel())[:, :, None, None].expand_as(maps) if is_mean else gradient
        return plus_plus_weights(maps if second_order else maps.detach(), slopes)
    return gradient / maps[0, 0].numel() if is_mean else gradient.mean((-2, -1))


def statistics_frozen(module: nn.Module) -> AbstractContextManager[None]:
    """Every batch norm inside works with its running statistics and leaves them alone; then the modes are as before."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return evaluating(nn.ModuleList(norms))


@contextmanager
def gradients_off(*modules: object) -> Iterator[None]:
    """The modules' parameters are constants in whatever is computed inside."""
    own = [p for module in modules if isinstance(module, nn.Module) for p in module.parameters() if p.requires_grad]
    for parameter in own:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in own:
            parameter.requires_grad_(True)


class LateTerm(Term):
    """A term that begins at an epoch, or, "adaptive", once an epoch's training accuracy is 50 % or more."""

    has_started: Tensor

    def __init__(self, start: int | Literal["adaptive"]) -> None:
        super().__init__()
        is_epoch = isinstance(start, int) and not isinstance(start, bool) and start >= 0
        if not is_epoch and start != "adaptive":
            raise InputError(f"expected `start` as an epoch, from 0, or 'adaptive', got {start!r}")
        self.start = start
        self.register_buffer("has_started", torch.tensor(False))

    def weight_at(self, progress: TrainingProgress, weight: float) -> float:
        """0 before the start, then the recipe's."""
        if isinstance(self.start, int):
            return weight if progress.epoch >= self.start else 0.0
        if progress.train_accuracy is not None and progress.train_accuracy >= ADAPTIVE_ACCURACY:
            self.has_started.fill_(True)
        return weight if bool(self.has_started) else 0.0
