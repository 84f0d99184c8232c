"""Prototypes, and nearest neighbours: the class whose mean, or whose nearest image, is closest."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from .base import FewShotClassifier, FewShotMetric, check_shapes, closeness


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
