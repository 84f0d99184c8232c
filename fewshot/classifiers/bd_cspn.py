"""BD-CSPN: prototypes rectified by the queries of an episode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ...errors import InputError
from .base import FewShotClassifier, check_shapes, closeness


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
