"""FullGrad: the gradient at the input and at every bias, whose contributions together are the score.

For a network of piecewise linear layers, `y = Σ x · ∂y/∂x + Σ_l Σ b_l · ∂y/∂b_l`: the image's own contributions and
those of the biases, each bias counted where it acts. Normalisation in evaluation mode is such a layer, and its bias is
`β - γ μ / σ`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...encoders.heads import batch_norm_affine
from ...encoders.layers import as_feature_map
from ...errors import InputError, ShapeError
from ...metrics.maps import normalise, upsample
from ..inputs import refuse_non_finite
from ..layer_runs import jacobian, undisturbed
from ..targets import Target


class FullGradient(NamedTuple):
    """The contributions that a score is made of."""

    scores: Float[Tensor, "b m"]
    maps: list[Tensor]
    elsewhere: Float[Tensor, "b m"]


def full_grad(gradient: FullGradient, size: tuple[int, int]) -> Float[Tensor, "b m h w"]:
    """FullGrad's map at the size of the image, never negative: each channel of each layer counts alike.

    A channel's contributions are taken without sign, scaled to [0, 1] on their own, and resized before they are summed.

    Source: Srinivas and Fleuret, Full-Gradient Representation for Neural Network Visualization, 2019, Eq. 9.
    """
    layers = [normalise(contributions.abs()).sum(-3) for contributions in gradient.maps]
    return torch.stack([upsample(layer, size) for layer in layers]).sum(0)


def full_gradient(model: nn.Module, images: Float[Tensor, "b c h w"], target: Target) -> FullGradient:
    """The contributions of the input and of all biases to each score."""
    refuse_non_finite("the images", images)
    with undisturbed(model), torch.enable_grad():
        entry = images.detach().clone().requires_grad_()
        met: list[tuple[nn.Module, Tensor]] = []

        def keep(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            met.append((module, output))
            return output.clone()  # an operation in place behind the module does not touch what was kept

        biased = [part for part in model.modules() if _bias(part) is not None]
        handles = [part.register_forward_hook(keep) for part in biased]
        try:
            output = model(entry.clone())  # the network may work on its input in place
        finally:
            for handle in handles:
                handle.remove()
        scores = target.fix(output)(output)
        # An auxiliary classifier's biases have no part in the score.
        gradients = jacobian(scores, [entry, *(out for _, out in met)], allow_unrelated=True)
    maps, elsewhere = [(gradients[0] * entry.detach()).transpose(0, 1)], torch.zeros_like(scores.detach())
    for (module, _), gradient in zip(met, gradients[1:], strict=True):
        bias = _bias(module)  # of each channel, which comes first in maps (m, b, k, …) and last in tokens
        assert bias is not None
        is_last = isinstance(module, nn.Linear) or (
            isinstance(module, nn.LayerNorm) and (type(module) is nn.LayerNorm or gradient.shape[2] != len(bias))
        )
        contributions = gradient * (bias if is_last else bias[:, None, None])
        try:
            flat = as_feature_map(contributions.flatten(0, 1), (images.shape[-2], images.shape[-1]), origin="a layer")
            maps.append(flat.reshape(*contributions.shape[:2], *flat.shape[1:]).transpose(0, 1))
        except ShapeError:
            elsewhere = elsewhere + contributions.flatten(2).sum(2).T
    return FullGradient(scores.detach(), maps, elsewhere)


def _bias(module: nn.Module) -> Tensor | None:
    """The bias that a module adds to each channel; None if it adds nothing, or is none of the known kinds."""
    if isinstance(module, nn.BatchNorm2d):
        if module.running_mean is None or module.running_var is None:
            raise InputError(
                "a batch norm without running statistics mixes the images of a batch; FullGrad cannot be used"
            )
        return batch_norm_affine(module).bias
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.LayerNorm) and module.bias is not None:
        return module.bias.detach()
    return None
