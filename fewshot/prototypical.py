"""Episodes to learn from: the prototypical loss, and batches that are episodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ..errors import InputError
from ..training.data.samplers import Sampler
from ..training.engine.step import Step, Term, is_right


@dataclass(frozen=True)
class EpisodeSettings:
    """Training batches that are episodes: N classes with K support and Q query images each."""

    n_way: int = 20  # N; more than in the test helps (60 for Omniglot, 20 to 30 for photographs)
    n_shot: int = 1  # K; the test's
    n_query: int = 5  # Q
    per_epoch: int = 100  # episodes in an epoch

    def __post_init__(self) -> None:
        if self.n_way < 2 or min(self.n_shot, self.n_query, self.per_epoch) < 1:
            raise InputError(f"expected n_way ≥ 2 and n_shot, n_query, per_epoch ≥ 1, got {self}")


def training_episodes(
    labels: Int[Tensor, " n"] | NDArray[np.int64], settings: EpisodeSettings, *, seed: int
) -> Sampler:
    """A sampler whose batches are episodes, way after way, a way's support before its queries.

    What an epoch holds follows from (seed, epoch) alone.
    """
    order, counts = np.argsort(labels, kind="stable"), np.bincount(labels)
    members = np.split(order, np.cumsum(counts)[:-1])
    needed = settings.n_shot + settings.n_query
    if len(members) < settings.n_way:
        raise InputError(f"an episode of {settings.n_way} ways needs as many classes, got {len(members)}")
    if counts.min() < needed:
        raise InputError(
            f"an episode needs {needed} images of a class ({settings.n_shot} + {settings.n_query}), but class "
            f"{int(counts.argmin())} has {int(counts.min())}"
        )

    def listed(epoch: int) -> list[list[int]]:
        generator = np.random.default_rng([0xE91, seed, epoch])
        episodes = []
        for _ in range(settings.per_epoch):
            ways = generator.choice(len(members), settings.n_way, replace=False)
            drawn = [generator.choice(members[way], needed, replace=False) for way in ways]
            episodes.append([int(item) for items in drawn for item in items])
        return episodes

    return Sampler(listed, settings.per_epoch)


class PrototypicalTerm(Term):
    """Cross entropy of the queries over their closeness to the prototypes of the batch's own episode.

    With `l2` a logit is minus the squared distance; with `cosine` it is `scale` times the cosine. The log gets
    `accuracy`. After a step the term has class weights, the episode's prototypes, so that CAM-loss can follow it in the
    list of losses.

    Source: Snell et al. 2017, arXiv:1703.05175, Algorithm 1 (l2); Chen et al. 2021, Meta-Baseline, arXiv:2003.04390,
    Eq. 4 (cosine with a learnt scale).
    """

    def __init__(
        self,
        dim: int,  # length of the embedding
        n_classes: int,  # of the training set
        *,
        n_shot: int = 1,  # support images per way; they come first among a way's images
        metric: Literal["l2", "cosine"] = "l2",  # how queries and prototypes are compared
        scale: float = 10.0,  # of the cosine; what it starts from if it is learnt
        learn_scale: bool = True,  # whether the scale is trained (its logarithm is)
    ) -> None:
        super().__init__()
        if metric not in ("l2", "cosine"):
            raise InputError(f"metric must be 'l2' or 'cosine', got {metric!r}")
        if scale <= 0 or n_shot < 1:
            raise InputError(f"expected scale > 0 and n_shot ≥ 1, got {scale} and {n_shot}")
        self.metric, self.n_shot, self._shape = metric, n_shot, (n_classes, dim)
        is_trained = learn_scale and metric == "cosine"
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=is_trained)
        self._prototypes: Tensor | None = None  # of the last step, with the gradient graph; no state of the run
        self._ways: Tensor | None = None

    def forward(self, step: Step) -> Tensor:
        """Mean over the episode's queries."""
        labels = step.batch.labels
        if labels.ndim != 1:
            raise InputError("episodes need one class per image, got 0/1 columns")
        ways, counts = torch.unique_consecutive(labels, return_counts=True)
        size = int(counts[0])
        if len(ways.unique()) < len(ways) or len(ways) < 2 or bool((counts != size).any()) or size <= self.n_shot:
            raise InputError(
                f"the batch is no episode with {self.n_shot} support images: it shows classes "
                f"{ways[:8].tolist()}… with {counts[:8].tolist()}… images; give the recipe an [episodes] table"
            )
        vectors = step.encoding.embedding.reshape(len(ways), size, -1)
        prototypes, query = vectors[:, : self.n_shot].mean(1), vectors[:, self.n_shot :]
        self._prototypes, self._ways = prototypes, ways
        logits = self._closeness(query.flatten(0, 1), prototypes)
        target = torch.arange(len(ways), device=logits.device).repeat_interleave(query.shape[1])
        with torch.no_grad():
            step.log["accuracy"] = float(is_right(logits, target).float().mean())
        return cross_entropy(logits, target)

    def _closeness(self, query: Tensor, prototypes: Tensor) -> Tensor:
        if self.metric == "cosine":
            return self.log_scale.exp() * normalize(query, dim=1) @ normalize(prototypes, dim=1).mT
        return -torch.cdist(query, prototypes, compute_mode="donot_use_mm_for_euclid_dist").square()

    def class_weights(self) -> Float[Tensor, "c d"]:
        """The last episode's prototypes in the rows of their classes; the other rows are 0."""
        if self._prototypes is None or self._ways is None:
            raise InputError("there are no prototypes before the first step; list `prototypical` before other losses")
        return self._prototypes.new_zeros(self._shape).index_copy(0, self._ways, self._prototypes)

    def logits(self, embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Closeness to the last episode's prototypes."""
        return self._closeness(embedding, self.class_weights())
