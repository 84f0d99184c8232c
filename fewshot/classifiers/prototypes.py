"""Nearest class mean, its kin, and nearest neighbours: Prototypes, SimpleShot, BD-CSPN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ...errors import InputError
from .base import Centre, FeatureTransform, FewShotClassifier, FewShotMetric, L2Normalise, check_shapes, closeness


@dataclass(frozen=True, eq=False)
class ByMetric(FewShotClassifier):
    """A classifier that compares by squared Euclidean distance (`l2`) or by cosine."""

    metric: FewShotMetric = "l2"

    def __post_init__(self) -> None:
        if self.metric not in ("l2", "cosine"):
            raise InputError(f"metric must be 'l2' or 'cosine', got {self.metric!r}")
        object.__setattr__(self, "name", self.name or f"{type(self).__name__.lower()}-{self.metric}")

    def prepare(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The bank after the transforms; for `l2` moved to its mean, which no distance notices but rounding does."""
        features = super().prepare(features)
        return features - features.mean(0) if self.metric == "l2" else features


@dataclass(frozen=True, eq=False)
class Prototypes(ByMetric):
    """Nearest class mean.

    With `l2` a logit is 2 q·p − ‖p‖² = −‖q − p‖² + ‖q‖²: the negative squared distance up to a term that all ways of a
    query share, so order, margins and softmax are those of −‖q − p‖². With `cosine` it is cos(q, p), where p is the
    mean of the support as it is, not of unit vectors.

    Source: Snell et al. 2017, arXiv:1703.05175, Eq. 1–2.
    """

    def prototypes(self, support: Float[Tensor, "b n k d"]) -> Float[Tensor, "b n d"]:
        """The mean of each way's support."""
        return support.mean(2)

    def logits(self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]) -> Float[Tensor, "b m n"]:
        """Closeness of each query to each prototype."""
        check_shapes(support, query)
        return closeness(query, self.prototypes(support), self.metric)


@dataclass(frozen=True, eq=False)
class NearestNeighbour(ByMetric):
    """The class of the single nearest support image; with one shot the same answer as `Prototypes`.

    A logit is the closeness of the nearest of the way's K support images, in the units of `Prototypes`.
    """

    def logits(self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]) -> Float[Tensor, "b m n"]:
        """Closeness of each query to the nearest support image of each way."""
        check_shapes(support, query)
        to_images = closeness(query, support.flatten(1, 2), self.metric)
        return to_images.view(*to_images.shape[:2], *support.shape[1:3]).amax(-1)


def simple_shot(variant: Literal["UN", "L2N", "CL2N"] = "CL2N", *, mean: Centre | Tensor | None = None) -> Prototypes:
    """Nearest class mean by squared Euclidean distance after the paper's feature transformation.

    Args:
        variant: UN leaves the features, L2N scales them to unit length, CL2N subtracts the base classes' mean first.
        mean: for CL2N the mean feature of the base classes, or a `Centre` that says what else it is the mean of.

    Raises:
        InputError: CL2N without a mean, or a mean that would not be used.

    Source: Wang et al. 2019, arXiv:1911.04623, §3.
    """
    if variant not in ("UN", "L2N", "CL2N"):
        raise InputError(f"variant must be UN, L2N or CL2N, got {variant!r}")
    if (variant == "CL2N") != (mean is not None):
        raise InputError(
            "CL2N needs `mean`, the mean feature of the base classes (centring by test images is transductive: "
            f"Centre(mean, source='test')); UN and L2N take none; got variant {variant} and mean {type(mean).__name__}"
        )
    steps: list[FeatureTransform] = [] if variant == "UN" else [L2Normalise()]
    if mean is not None:
        steps.insert(0, mean if isinstance(mean, Centre) else Centre(mean))
    return Prototypes("l2", transforms=tuple(steps), name=f"simpleshot-{variant}")


@dataclass(frozen=True, eq=False)
class BDCSPN(FewShotClassifier):
    """Prototype rectification: queries are moved to the support's mean, and confident ones join the prototypes.

    Transductive: it sees all queries of an episode at once. Equally many queries per class flatter it, so look at
    Dirichlet queries too. All vectors are brought to unit length by `prepare`. The query shift is used for the
    pseudo-labels and for the decision; a way with fewer than `n_confident` pseudo-labelled queries takes those it has.
    A query that is equally near to two ways joins neither, and those equally confident as the last that joins, join.

    Attributes:
        n_confident: pseudo-labelled queries per way that join its prototype; their Z.
        epsilon: sharpness of the weights exp(ε·cos); their ε.

    Source: Liu et al. 2020, arXiv:1911.10713, §3.
    """

    n_confident: int = 8
    epsilon: float = 10.0

    def __post_init__(self) -> None:
        if self.n_confident < 0 or not 0 <= self.epsilon <= 50:
            raise InputError(f"expected n_confident ≥ 0 and 0 ≤ ε ≤ 50, got {self.n_confident} and {self.epsilon}")
        object.__setattr__(self, "name", self.name or "bd-cspn")

    @property
    def is_transductive(self) -> bool:
        """Always."""
        return True

    def prepare(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The bank after the transforms, at unit length."""
        return normalize(super().prepare(features), dim=-1)

    def rectify(
        self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """The rectified prototypes and the shifted queries."""
        query = query + (support.mean((1, 2)) - query.mean(1))[:, None]  # cross-class bias
        basic = normalize(support.mean(2), dim=-1)
        support_cosine = torch.einsum("bnkd,bnd->bnk", support, basic)
        query_cosine = closeness(query, basic, "cosine")

        # Intra-class bias: the Z most confident queries among those that a way would win.
        confidence = query_cosine.softmax(-1)
        nearest = query_cosine.topk(min(2, query_cosine.shape[2]), dim=2).values
        is_clear = nearest[..., 0] - nearest[..., -1] > 8 * torch.finfo(query.dtype).eps
        is_won = (query_cosine == nearest[..., :1]) & is_clear[..., None]
        ranked = torch.where(is_won, confidence, -1.0)
        top = ranked.topk(min(self.n_confident, query.shape[1]), dim=1).values
        joins = is_won & (ranked >= top.amin(1, keepdim=True)) if self.n_confident else torch.zeros_like(is_won)

        support_weight = (self.epsilon * support_cosine).exp()
        query_weight = (self.epsilon * query_cosine).exp() * joins
        total = support_weight.sum(-1) + query_weight.sum(1)
        weighted = torch.einsum("bnk,bnkd->bnd", support_weight, support) + query_weight.mT @ query
        return weighted / total[..., None], query

    def logits(self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]) -> Float[Tensor, "b m n"]:
        """Cosine of each shifted query with each rectified prototype."""
        check_shapes(support, query)
        prototypes, shifted = self.rectify(support, query)
        return closeness(shifted, prototypes, "cosine")
