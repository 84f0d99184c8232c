"""Maps with a weight for each position: HiResCAM, LayerCAM, and Seg-XRes-CAM."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...errors import InputError


def hires_cam(
    activations: Float[Tensor, "*b k h w"], gradients: Float[Tensor, "*b k h w"], *, relu: bool = True
) -> Float[Tensor, "*b h w"]:
    """HiResCAM, `ReLU(Σ_k g_k A_k)` without averaging; Seg-HiRes-Grad-CAM for a set of pixels.

    Behind a network of piecewise linear layers without biases the signed map sums to the score.

    Source: Draelos and Carin, HiResCAM, 2020, Eq. 3; [Seg-HiRes] Eq. 6.
    """
    maps = (gradients * activations).sum(-3)
    return maps.clamp(min=0) if relu else maps


def layer_cam(
    activations: Float[Tensor, "*b k h w"], gradients: Float[Tensor, "*b k h w"], *, relu: bool = True
) -> Float[Tensor, "*b h w"]:
    """LayerCAM, `ReLU(Σ_k ReLU(g_k) A_k)`: each position has its own weight, where the gradient is positive.

    Source: Jiang et al., LayerCAM, 2021, Eq. 6-8.
    """
    maps = (gradients.clamp(min=0) * activations).sum(-3)
    return maps.clamp(min=0) if relu else maps


def seg_xres_cam(
    activations: Float[Tensor, "*b k h w"],
    gradients: Float[Tensor, "*b k h w"],
    *,
    window: int | None = None,
    pooling: Literal["mean", "max"] = "mean",
    relu: bool = True,
) -> Float[Tensor, "*b h w"]:
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
