"""Maps from a layer's activations and gradients: CAM, Eigen-CAM, Grad-CAM and HiResCAM with their kin.

A are a layer's activations and g = ∂y/∂A the gradients of a scalar y: a class score, the scores of a set of pixels (the
segmentation versions), a similarity. Maps are raw: at the layer's resolution and in y's unit. `relu=False` keeps their
signs. i, j run over the N positions, k over channels.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...errors import InputError

Layer: TypeAlias = Float[Tensor, "*b k h w"]  # activations, or gradients
Maps: TypeAlias = Float[Tensor, "*b h w"]


def weighted_sum(activations: Layer, weights: Float[Tensor, "*b k"], *, relu: bool = False) -> Maps:
    """The channels summed with one weight each, `Σ_k w_k A_k`: what all the methods with channel weights share."""
    maps = torch.einsum("...k,...khw->...hw", weights, activations)
    return maps.clamp(min=0) if relu else maps


def caam(activations: Layer) -> Maps:
    """The class-agnostic map, `Σ_k A_k`: the same whatever is asked, so the baseline ([CAM-loss] Eq. 3)."""
    return activations.sum(-3)


def cam(activations: Layer, gradients: Layer) -> Maps:
    """The class activation map, `Σ_k w_k A_k`, signed; w_k = `Σ_ij g_kij`.

    Behind global average pooling and a linear layer w is that layer's row for the class, and the mean of the map is the
    class score without its bias. Behind anything else w is what the score asks of each channel, to first order.

    Source: Zhou et al., Learning Deep Features for Discriminative Localization, 2016, Eq. 2.

    >>> A = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])       # y = 3·mean(A_0) - 1·mean(A_1) + bias, so g = w / 2
    >>> cam(A, torch.tensor([[[1.5, 1.5]], [[-0.5, -0.5]]]))
    tensor([[ 3., -2.]])
    """
    return weighted_sum(activations, gradients.sum((-2, -1)))


def eigen_cam(activations: Layer, *, centred: bool = True) -> Maps:
    """Eigen-CAM: the positions' coordinates along the first principal component of their k-vectors; the same for all y.

    A component has no sign of its own; here the map points the way of the class-agnostic one (their product summed over
    positions is not negative). The paper decomposes A as it is, `centred=False`; the default takes the mean over
    positions away first, which makes it a principal component and the map's mean 0.

    Source: Muhammad and Yeasin, Eigen-CAM, 2020, §III.
    """
    vectors = activations.flatten(-2).mT
    agnostic = vectors.sum(-1)
    if centred:
        vectors = vectors - vectors.mean(-2, keepdim=True)
    left, sizes, _ = torch.linalg.svd(vectors, full_matrices=False)
    along = left[..., 0] * sizes[..., :1]
    flip = (along * agnostic).sum(-1, keepdim=True) < 0
    return torch.where(flip, -along, along).reshape(*activations.shape[:-3], *activations.shape[-2:])


def grad_cam(activations: Layer, gradients: Layer, *, relu: bool = True) -> Maps:
    """Grad-CAM, `ReLU(Σ_k α_k A_k)` with α_k the mean of g_k over its positions; Seg-Grad-CAM for a set of pixels.

    Source: Selvaraju et al., Grad-CAM, 2017, Eq. 1-2; [Seg-HiRes] Eq. 5.
    """
    return weighted_sum(activations, gradients.mean((-2, -1)), relu=relu)


def grad_cam_plus_plus(activations: Layer, gradients: Layer, *, relu: bool = True) -> Maps:
    """Grad-CAM++, `ReLU(Σ_k α_k A_k)` with α_k = `Σ_ij a_kij ReLU(g_kij)`, a = g² / (2g² + (Σ_ij A_k) g³), 0/0 = 0.

    Not linear in y: another scale of the score gives another image. a is computed as 1 / (2 + (Σ A) g), which does
    not underflow for small gradients; peers add 1e-6 or 1e-8 to the denominator, which takes over for such.

    Source: Chattopadhay et al., Grad-CAM++, 2018, Eq. 5, 19.
    """
    return weighted_sum(activations, plus_plus_weights(activations, gradients), relu=relu)


def plus_plus_weights(activations: Layer, gradients: Layer) -> Float[Tensor, "*b k"]:
    """The α_k of `grad_cam_plus_plus`."""
    denominator = 2 + activations.sum((-2, -1), keepdim=True) * gradients
    share = torch.where(denominator == 0, 0.0, 1 / denominator)
    return (share * gradients.clamp(min=0)).sum((-2, -1))


def xgrad_cam(activations: Layer, gradients: Layer, *, relu: bool = True) -> Maps:
    """XGrad-CAM, `ReLU(Σ_k α_k A_k)` with α_k the mean of g_k weighted by A_k; 0 for a channel that sums to 0.

    Its signed map has the same total as that of HiResCAM. Made for activations that are not negative.

    Source: Fu et al., Axiom-based Grad-CAM, 2020, Eq. 8.
    """
    total = activations.sum((-2, -1))
    weights = (gradients * activations).sum((-2, -1)) / torch.where(total == 0, 1.0, total)
    return weighted_sum(activations, weights.masked_fill(total == 0, 0), relu=relu)


def hires_cam(activations: Layer, gradients: Layer, *, relu: bool = True) -> Maps:
    """HiResCAM, `ReLU(Σ_k g_k A_k)` without averaging; Seg-HiRes-Grad-CAM for a set of pixels.

    Behind a network of piecewise linear layers without biases the signed map sums to the score.

    Source: Draelos and Carin, HiResCAM, 2020, Eq. 3; [Seg-HiRes] Eq. 6.
    """
    maps = (gradients * activations).sum(-3)
    return maps.clamp(min=0) if relu else maps


def layer_cam(activations: Layer, gradients: Layer, *, relu: bool = True) -> Maps:
    """LayerCAM, `ReLU(Σ_k ReLU(g_k) A_k)`: HiResCAM of the positive gradients (Jiang et al., 2021, Eq. 6-8)."""
    return hires_cam(activations, gradients.clamp(min=0), relu=relu)


def seg_xres_cam(
    activations: Layer,
    gradients: Layer,
    *,
    window: int | None = None,
    pooling: Literal["mean", "max"] = "mean",
    relu: bool = True,
) -> Maps:
    """Seg-XRes-CAM: gradients pooled over windows, spread over them again, then as HiResCAM.

    `window=1` is HiResCAM, and the whole map (None) with "mean" is Grad-CAM. Windows start in the upper left corner; at
    the other edges they are cut off. The paper pools with the maximum.

    Source: Hasany et al., Seg-XRes-CAM, 2023, §3.
    """
    rows, columns = gradients.shape[-2:]
    if window is not None and window < 1:
        raise InputError(f"window={window} should be 1 or more positions, or None for the whole map")
    if pooling not in ("mean", "max"):
        raise InputError(f"pooling={pooling!r} is not known; choose mean or max")
    kernel = (min(window or rows, rows), min(window or columns, columns))
    flat = gradients.reshape(-1, 1, rows, columns)
    if pooling == "mean":
        pooled = functional.avg_pool2d(flat, kernel, ceil_mode=True, count_include_pad=False)
    else:
        pooled = functional.max_pool2d(flat, kernel, ceil_mode=True)
    spread = pooled.repeat_interleave(kernel[0], -2).repeat_interleave(kernel[1], -1)[..., :rows, :columns]
    return hires_cam(activations, spread.reshape(gradients.shape), relu=relu)
