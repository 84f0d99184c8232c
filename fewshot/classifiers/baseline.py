"""Baseline and Baseline++: a classifier trained on the support of each episode, while the encoder stays frozen.

Episodes are trained side by side: their losses are summed, and no parameter belongs to two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ...errors import InputError
from .base import FewShotClassifier, check_shapes


@dataclass(frozen=True, eq=False)
class FineTuned(FewShotClassifier):
    """A linear or cosine classifier trained on the support with SGD.

    The weights start at the same random place, and the support is shuffled in the same order, in every episode: answers
    depend on `seed` but not on which other episodes are evaluated with them.

    Attributes:
        head: `linear` has a weight and a bias per class; `cosine` multiplies the cosine to a class vector by `scale`
            and by a length per class that is trained too (weight normalisation leaves it in the authors' code).
        scale: of the cosine head.
        epochs: passes over the support.
        batch_size: support images in a step.
        learning_rate: of SGD, with momentum 0.9 and dampening 0.9.
        weight_decay: of SGD.
        seed: of the first weights and of the order.

    Source: Chen et al. 2019, arXiv:1904.04232, §3.2 and its published settings.
    """

    bytes_at_a_time: ClassVar[int] = 16 << 20  # about a hundred episodes: a step costs little more than one's

    head: Literal["linear", "cosine"] = "cosine"
    scale: float = 2.0
    epochs: int = 100
    batch_size: int = 4
    learning_rate: float = 0.01
    weight_decay: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head not in ("linear", "cosine"):
            raise InputError(f"head must be 'linear' or 'cosine', got {self.head!r}")
        if min(self.epochs, self.batch_size) < 1 or min(self.learning_rate, self.scale) <= 0 or self.weight_decay < 0:
            raise InputError(
                "expected epochs ≥ 1, batch_size ≥ 1, learning_rate > 0, scale > 0 and weight_decay ≥ 0, got "
                f"{self.epochs}, {self.batch_size}, {self.learning_rate}, {self.scale}, {self.weight_decay}"
            )
        object.__setattr__(self, "name", self.name or ("baseline++" if self.head == "cosine" else "baseline"))

    def logits(self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]) -> Float[Tensor, "b m n"]:
        """Scores of each episode's own classifier for its queries."""
        check_shapes(support, query)
        weight, bias = self.fit(support)
        return torch.baddbmm(bias[:, None], self._normalised(query), weight.mT)

    def fit(self, support: Float[Tensor, "b n k d"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n"]]:
        """The trained classifiers: class vectors and biases; those of `cosine` are for queries of length 1."""
        b, n, k, _ = support.shape
        labels = torch.arange(n, device=support.device).repeat_interleave(k)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.enable_grad():
            parameters = self._initial(support, generator)
            optimiser = torch.optim.SGD(
                parameters,
                lr=self.learning_rate,
                momentum=0.9,
                dampening=0.9,
                weight_decay=self.weight_decay,
                foreach=True,
            )
            vectors = self._normalised(support.flatten(1, 2))
            for _ in range(self.epochs):
                order = torch.randperm(n * k, generator=generator).to(support.device)
                for rows in torch.split(order, self.batch_size):
                    weight, second = parameters
                    if self.head == "linear":
                        scores = torch.baddbmm(second[:, None], vectors[:, rows], weight.mT)
                    else:
                        scores = (vectors[:, rows] @ weight.mT) * self._length(weight, second)[:, None]
                    target = labels[rows].expand(b, -1)
                    loss = b * cross_entropy(scores.flatten(0, 1), target.flatten())  # the sum of the episodes' means
                    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                        parameter.grad = gradient
                    optimiser.step()
        weight, second = (parameter.detach() for parameter in parameters)
        if self.head == "linear":
            return weight, second
        return weight * self._length(weight, second)[..., None], torch.zeros_like(second)

    def _initial(self, support: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The weight of every class, uniform in ±1/√d as torch's linear layer, and its bias 0 or its length."""
        b, n, _, d = support.shape
        weight = (2 * torch.rand(n, d, generator=generator) - 1) / d**0.5
        second = torch.zeros(n) if self.head == "linear" else weight.norm(dim=1)
        return [
            nn.Parameter(value.to(support).expand(b, *value.shape).contiguous())  # a copy for every episode
            for value in (weight, second)
        ]

    def _normalised(self, vectors: Tensor) -> Tensor:
        """The vectors, of unit length for the cosine head."""
        return normalize(vectors, dim=-1) if self.head == "cosine" else vectors

    def _length(self, weight: Tensor, length: Tensor) -> Tensor:
        """Factor that gives a class vector of the cosine head its own length times the scale."""
        factor: Tensor = self.scale * length / torch.linalg.vector_norm(weight, dim=-1)
        return factor


def baseline(**settings: Any) -> FineTuned:
    """A linear layer trained on the support.

    Source: Chen et al. 2019, arXiv:1904.04232, §3.2, Baseline.
    """
    return FineTuned(head="linear", **settings)


def baseline_plus_plus(**settings: Any) -> FineTuned:
    """A cosine classifier trained on the support.

    Source: Chen et al. 2019, arXiv:1904.04232, §3.2, Baseline++.
    """
    return FineTuned(head="cosine", **settings)
