"""Steps on single feature vectors before classification; each knows whether it was fitted on test data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ...errors import InputError, ShapeError


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
