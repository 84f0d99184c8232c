"""The interface of few-shot classifiers on pooled vectors, and what they share.

`prepare` runs once on the whole bank, `logits` takes the prepared support and queries of b episodes; the largest logit
wins. `is_transductive` says whether an answer may depend on the other queries, or on test data in any other way.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ...errors import ShapeError
from .transforms import FeatureTransform

FewShotMetric = Literal["l2", "cosine"]


class Classifier(Protocol):
    """A frozen recipe that `evaluate` runs on many episodes at once."""

    @property
    def name(self) -> str:
        """Name in reports."""

    @property
    def is_transductive(self) -> bool:
        """True if an answer may depend on other queries or other test data."""

    def prepare(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The whole bank once, as `logits` wants its rows."""

    def logits(self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]) -> Float[Tensor, "b m n"]:
        """One number per query and way for b episodes; the largest wins."""

    def describe(self) -> dict[str, Any]:
        """Name, settings and setting (inductive or transductive), JSON-able."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FewShotClassifier:
    """A classifier's name, the steps before it, and its description."""

    transforms: tuple[FeatureTransform, ...] = ()
    name: str = ""

    @property
    def is_transductive(self) -> bool:
        """True if a step was fitted on test data."""
        return any(transform.is_transductive for transform in self.transforms)

    def prepare(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The bank after the transforms."""
        for transform in self.transforms:
            features = transform(features)
        return features

    def describe(self) -> dict[str, Any]:
        """Name, settings and setting (inductive or transductive), JSON-able."""
        return {
            "name": self.name,
            **_settings(self),
            "transforms": [{"name": type(step).__name__, **_settings(step)} for step in self.transforms],
            "setting": "transductive" if self.is_transductive else "inductive",
        }


def closeness(
    query: Float[Tensor, "b m d"], reference: Float[Tensor, "b r d"], metric: FewShotMetric
) -> Float[Tensor, "b m r"]:
    """2 q·r − ‖r‖² for l2, cos(q, r) for cosine, in one batched product."""
    if metric == "l2":
        square = reference.square().sum(-1)[:, None]
        return torch.baddbmm(square, query, reference.mT, beta=-1, alpha=2)
    length = torch.linalg.vector_norm(query, dim=-1, keepdim=True).clamp(min=1e-12)
    cosine: Tensor = torch.bmm(query, normalize(reference, dim=-1).mT) / length
    return cosine


def check_shapes(support: Tensor, query: Tensor) -> None:
    """Refuse support and query that are not of the same episodes and dimensions."""
    if support.ndim != 4 or query.ndim != 3 or (len(support), support.shape[-1]) != (len(query), query.shape[-1]):
        raise ShapeError(
            f"expected support (b, n, k, d) and query (b, m, d), got {tuple(support.shape)} and {tuple(query.shape)}"
        )


def _settings(recipe: Any) -> dict[str, Any]:
    """The fields of a recipe, a tensor as the first half of its sha256."""
    values = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name not in ("transforms", "name")}
    return {
        name: hashlib.sha256(value.detach().cpu().float().numpy().tobytes()).hexdigest()[:32]
        if isinstance(value, Tensor)
        else value
        for name, value in values.items()
    }
