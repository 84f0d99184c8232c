"""Class maps as scores of a segmentation: raw, on a common scale, and beside a score of the background.

With feature map f and one weight vector per class:

    Y^c = Σ_k w_k^c f_k,   logit_c = GAP(Y^c)           a 1×1 convolution without bias, then pooling
    Y^c ← ReLU(Y^c) / max Y^c, 0 for absent classes
    Y^background = (1 - max_c Y^c)^a                                              [CPN] Eq. 16
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...errors import InputError

Scaling = Literal["max", "range"]
_EPS = 1e-5


def class_maps(feature_map: Float[Tensor, "b k h w"], weights: Float[Tensor, "c k"]) -> Float[Tensor, "b c h w"]:
    """Y, raw and signed; its mean over positions is the class's logit.

    >>> class_maps(torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]), torch.tensor([[1.0, -1.0]])).tolist()
    [[[[-2.0, -2.0]]]]
    """
    return functional.conv2d(feature_map, weights[:, :, None, None])


def scaled_maps(
    maps: Float[Tensor, "b c h w"], labels: Float[Tensor, "b c"] | None = None, *, scaling: Scaling = "max"
) -> Float[Tensor, "b c h w"]:
    """The maps in [0, 1], each without its negative part and on its own scale, inside the gradient graph.

    A map that is the same everywhere points nowhere and becomes 0, as does one without a positive value.

    Args:
        maps: raw.
        labels: 0/1 columns; the maps of classes that an image does not show become 0.
        scaling: "max" divides by the maximum. "range" also subtracts the minimum, as the published codes of SEAM and
            CPN do: a map that is large everywhere then shows where it is largest.

    >>> scaled_maps(torch.tensor([[[[-1.0, 2.0, 4.0]], [[3.0, 3.0, 3.0]]]])).tolist()
    [[[[0.0, 0.5, 1.0]], [[0.0, 0.0, 0.0]]]]
    """
    if scaling not in ("max", "range"):
        raise InputError(f"unknown scaling {scaling!r}: expected 'max' or 'range'")
    positive = maps.clamp(min=0)
    low, high = positive.amin((-2, -1), keepdim=True), positive.amax((-2, -1), keepdim=True)
    has_shape = high - low > _EPS
    if scaling == "range":
        positive, high = positive - low, high - low
    scaled = torch.where(has_shape, positive / high.where(has_shape, 1.0), 0.0)
    return scaled if labels is None else scaled * labels[:, :, None, None].to(scaled)


def background_score(scaled: Float[Tensor, "b c h w"], *, power: float = 1.0) -> Float[Tensor, "b 1 h w"]:
    """`(1 - max_c Y^c)^a`, in [0, 1]; a > 1 leaves the background less.

    Source: [CPN] Eq. 16; Ahn and Kwak, AffinityNet, 2018, Eq. 2.

    >>> background_score(torch.tensor([[[[0.25, 1.0]], [[0.5, 0.0]]]]), power=2.0).tolist()
    [[[[0.25, 0.0]]]]
    """
    if power <= 0:
        raise InputError(f"expected a power above 0, got {power}")
    return (1 - scaled.amax(1, keepdim=True)).clamp(0, 1) ** power


def with_background(scaled: Float[Tensor, "b c h w"], *, power: float = 1.0) -> Float[Tensor, "b c_plus_1 h w"]:
    """Background first, then the classes, as masks number them."""
    return torch.cat([background_score(scaled, power=power), scaled], 1)


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
