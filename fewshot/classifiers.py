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

from ..errors import InputError, ShapeError


class FeatureTransform(Protocol):
    """A step that acts on each vector by itself."""

    @property
    def is_transductive(self) -> bool:
        """True if it was fitted on test data."""

    def __call__(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The transformed vectors."""


@dataclass(frozen=True)
class L2Normalise:
    """Unit length; a zero vector stays zero. The L2N of SimpleShot."""

    is_transductive = False

    def __call__(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The vectors with length 1."""
        return normalize(features, dim=-1)


@dataclass(frozen=True, eq=False)
class Centre:
    """Subtraction of a mean vector, (d,).

    Attributes:
        mean: the vector to subtract.
        source: what it is the mean of. The base classes' mean is part of the training; the mean of test images makes
            the result transductive, and is declared as such.
    """

    mean: Float[Tensor, " d"]
    source: Literal["base", "test"] = "base"

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or not torch.isfinite(self.mean).all():
            raise InputError(f"the mean must be one finite vector, got shape {tuple(self.mean.shape)}")

    @property
    def is_transductive(self) -> bool:
        """True for the mean of test images."""
        return self.source == "test"

    def __call__(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The vectors minus the mean."""
        if features.shape[-1] != len(self.mean):
            raise ShapeError(f"the mean has {len(self.mean)} dimensions, the features {features.shape[-1]}")
        return features - self.mean.to(features)


@dataclass(frozen=True)
class PowerTransform:
    """(max(x, 0) + offset)^exponent, then unit length: makes skewed, non-negative features more Gaussian.

    Negative entries are cut to 0, so it suits features after a ReLU.

    Source: Hu et al. 2021, arXiv:2006.03806, Eq. 2 (exponent 0.5, offset 1e-6).
    """

    exponent: float = 0.5
    offset: float = 1e-6

    is_transductive = False

    def __post_init__(self) -> None:
        if not (0 < self.exponent <= 1 and self.offset >= 0):
            raise InputError(f"expected 0 < exponent ≤ 1 and offset ≥ 0, got {self.exponent} and {self.offset}")

    def __call__(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The transformed vectors, of length 1."""
        return normalize((features.clamp(min=0) + self.offset) ** self.exponent, dim=-1)


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
        got = f"{tuple(support.shape)} and {tuple(query.shape)}"
        raise ShapeError(f"expected support (b, n, k, d) and query (b, m, d), got {got}")


def _settings(recipe: Any) -> dict[str, Any]:
    """The fields of a recipe, a tensor as the first half of its sha256."""
    values = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name not in ("transforms", "name")}
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = hashlib.sha256(value.detach().cpu().float().numpy().tobytes()).hexdigest()[:32]
    return values
