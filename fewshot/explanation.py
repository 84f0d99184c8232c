"""Heat maps of few-shot answers: every query of an episode against every prototype, from one forward pass.

Two maps, for two questions. `episode_maps` is Dist-CAM: where the query shows the channels in which it is close to a
prototype. `decision_map` divides the difference of two logits among the positions without remainder: where the query
looks more like one prototype than like another.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import InputError, ShapeError
from ..explain import Norm, Weighting, dist_cam
from ..metrics.distances import Metric

__all__ = ["DecisionMap", "decision_map", "episode_maps"]


def episode_maps(
    query_maps: Float[Tensor, "*e m k h w"],
    prototypes: Float[Tensor, "*e n k"],
    *,
    metric: Metric = "l2",
    weighting: Weighting = "dist",
    tau: float = 1.0,
    norm: Norm = "sum",
    mean: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "*e m n h w"]:
    """Raw Dist-CAM map of each query against each prototype of its episode, in one product.

    The maps explain a classifier on pooled vectors, such as `Prototypes`. For networks that classify flattened feature
    maps they explain another classifier. After `BDCSPN`, pass the rectified prototypes and `metric="cosine"`; its query
    shift is a constant vector without a position, and is in no map.

    Args:
        query_maps: feature maps of the M queries of an episode, or of several episodes.
        prototypes: pooled vectors of the N classes, for instance `Prototypes().prototypes(support)`.
        metric: how the classifier compares, `l2` or `cosine`.
        weighting: channel weights, see `distcam.explain.methods.dist_cam`.
        tau: softness of 1/D, see there.
        norm: normaliser of the weights, see there.
        mean: mean pooled vector, for the weightings that need one.

    Raises:
        ShapeError: channels or episodes of maps and prototypes differ.

    Source: [Dist-CAM] Eq. 4–7.
    """
    _check_maps(query_maps, prototypes)
    references = prototypes.unsqueeze(-3).expand(*query_maps.shape[:-3], *prototypes.shape[-2:])
    return dist_cam(query_maps, references, metric=metric, weighting=weighting, tau=tau, norm=norm, mean=mean)


class DecisionMap(NamedTuple):
    """The difference of two logits, divided among positions: `map.sum((-2, -1)) + constant` is the difference.

    Attributes:
        map: share of each position, (*e, m, h, w); positive where the query speaks for `first`.
        constant: what belongs to no position, (*e,): ‖second‖² − ‖first‖² for l2, 0 for cosine.
    """

    map: Float[Tensor, "*e m h w"]
    constant: Float[Tensor, "*e"]


def decision_map(
    query_maps: Float[Tensor, "*e m k h w"],
    first: Float[Tensor, "*e k"],
    second: Float[Tensor, "*e k"],
    *,
    metric: Literal["l2", "cosine"] = "l2",
) -> DecisionMap:
    """Where in each query the logit of prototype `first` exceeds that of `second`, exactly.

    With q the mean of Q over h·w positions, −‖q − p‖² + ‖q − r‖² = Σ_xy 2/(h·w) Σ_k (p_k − r_k) Q_kxy + ‖r‖² − ‖p‖².
    For the cosine the unit prototypes take the place of p and r, 1/‖q‖ that of 2, and the constant is 0.

    Raises:
        ShapeError: channels or episodes of maps and prototypes differ.
        InputError: an unknown metric.

    >>> maps = torch.tensor([[[[4.0, 0.0]], [[0.0, 2.0]]]])  # one query, two channels, 1×2 positions; q = (2, 1)
    >>> decision_map(maps, torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]))  # −1 − (−4) = 3
    DecisionMap(map=tensor([[[ 8., -2.]]]), constant=tensor(-3.))
    """
    if metric not in ("l2", "cosine"):
        raise InputError(f"metric must be 'l2' or 'cosine', got {metric!r}")
    _check_maps(query_maps, torch.stack([first, second], dim=-2))
    n_positions = query_maps.shape[-2] * query_maps.shape[-1]
    if metric == "l2":
        towards, constant = 2 * (first - second), second.square().sum(-1) - first.square().sum(-1)
    else:
        towards = normalize(first, dim=-1) - normalize(second, dim=-1)
        constant = torch.zeros_like(towards[..., 0])
    share = torch.einsum("...mkhw,...k->...mhw", query_maps, towards) / n_positions
    if metric == "cosine":
        length = torch.linalg.vector_norm(query_maps.mean((-2, -1)), dim=-1).clamp(min=1e-12)
        share = share / length[..., None, None]
    return DecisionMap(share, constant)


def _check_maps(query_maps: Tensor, prototypes: Tensor) -> None:
    if (
        query_maps.ndim < 4
        or prototypes.ndim != query_maps.ndim - 2
        or query_maps.shape[:-4] != prototypes.shape[:-2]
        or query_maps.shape[-3] != prototypes.shape[-1]
    ):
        raise ShapeError(
            f"expected query maps (…, m, k, h, w) and prototypes (…, n, k) of the same episodes and channels, "
            f"got {tuple(query_maps.shape)} and {tuple(prototypes.shape)}"
        )
