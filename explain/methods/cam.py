"""Maps of channels with one weight each: CAM, and the class-agnostic map.

Here and in `grad_cam`, `hires_cam`, `eigen_cam`, A are a layer's activations and g = ∂y/∂A the gradients of a scalar
y: a class score, the scores of a set of pixels (the segmentation versions), a similarity. Maps are raw: at the layer's
resolution and in y's unit. `relu=False` keeps their signs. i, j run over the N positions, k over channels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def weighted_sum(
    activations: Float[Tensor, "*b k h w"], weights: Float[Tensor, "*b k"], *, relu: bool = False
) -> Float[Tensor, "*b h w"]:
    """The channels summed with one weight each, `Σ_k w_k A_k`: what all the methods with channel weights share."""
    maps = torch.einsum("...k,...khw->...hw", weights, activations)
    return maps.clamp(min=0) if relu else maps


def caam(activations: Float[Tensor, "*b k h w"]) -> Float[Tensor, "*b h w"]:
    """The class-agnostic map, `Σ_k A_k`: the same whatever is asked, so the baseline for everything that is not.

    Source: [CAM-loss] Eq. 3.
    """
    return activations.sum(-3)


def cam(activations: Float[Tensor, "*b k h w"], gradients: Float[Tensor, "*b k h w"]) -> Float[Tensor, "*b h w"]:
    """The class activation map, `Σ_k w_k A_k`, signed; w_k = `Σ_ij g_kij`.

    Behind global average pooling and a linear layer w is that layer's row for the class, and the mean of the map is the
    class score without its bias. Behind anything else w is what the score asks of each channel, to first order.

    Source: Zhou et al., Learning Deep Features for Discriminative Localization, 2016, Eq. 2.

    >>> A = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])       # y = 3·mean(A_0) - 1·mean(A_1) + bias, so g = w / 2
    >>> cam(A, torch.tensor([[[1.5, 1.5]], [[-0.5, -0.5]]]))
    tensor([[ 3., -2.]])
    """
    return weighted_sum(activations, gradients.sum((-2, -1)))
