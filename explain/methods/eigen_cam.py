"""Eigen-CAM: the first principal component of a layer's activations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def eigen_cam(activations: Float[Tensor, "*b k h w"], *, centred: bool = True) -> Float[Tensor, "*b h w"]:
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
    maps: Tensor = torch.where(flip, -along, along).reshape(*activations.shape[:-3], *activations.shape[-2:])
    return maps
