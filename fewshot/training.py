"""Training few-shot encoders on the one loop: prototypical, Baseline, Baseline++, Classifier- and Meta-Baseline.

`base` is trained on. `run.monitor = "val.accuracy"` keeps the weights with the best accuracy on stored episodes of the
val part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ..datasets import FewShotData, open_data
from ..datasets.episodes import EpisodeManifest
from ..datasets.few_shot import Split, readable
from ..encoders import Encoder, Inference
from ..errors import InputError
from ..images import Transform
from ..progress import Progress
from ..training.data.batches import DataPart, RunData
from ..training.data.samplers import Sampler
from ..training.data.training_set import Cache, TrainingSet, say_left_out, stays_in_memory
from ..training.engine.step import Objective, Step, Term, is_right, single_labels
from ..training.losses.registry import TERMS, Builder, made
from ..training.recipes.recipe import Recipe
from ..training.recipes.runs import run_recipe as train
from ..training.recipes.tables import Table
from .evaluation import evaluate
from .methods import classifier_of
from .sampling import sample_episodes

__all__ = ["FEW_SHOT_TERMS", "EpisodeTest", "FewShotRecipe", "train"]


class EpisodeSettings(Table):
    """Training batches that are episodes: N classes with K support and Q query images each."""

    n_way: int = 20  # N; more than in the test helps (60 for Omniglot, 20 to 30 for photographs)
    n_shot: int = 1  # K; the test's
    n_query: int = 5  # Q
    per_epoch: int = 100  # episodes in an epoch

    def _check(self) -> None:
        if self.n_way < 2 or min(self.n_shot, self.n_query, self.per_epoch) < 1:
            raise InputError(f"expected n_way ≥ 2 and n_shot, n_query, per_epoch ≥ 1, got {self}")


def training_episodes(labels: NDArray[np.int64], settings: EpisodeSettings, *, seed: int) -> Sampler:
    """A sampler of episodes, way after way, support before queries; (seed, epoch) alone says what they hold."""
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
        labels = single_labels(step.batch, "prototypical")
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
            step.log["accuracy"] = is_right(logits, target).float().mean()
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


FEW_SHOT_TERMS: Mapping[str, Builder] = {**TERMS, "prototypical": made("prototypical", PrototypicalTerm)}
"""All losses of `distcam.training`, and the prototypical one."""


class EpisodeTest(Table):
    """Stored episodes that the trained encoder is measured on."""

    __test__ = False  # for pytest

    part: str = "novel"  # which classes: "base", "val" or "novel"
    n_way: int = 5  # n_way, n_shot, n_query: of the episodes
    n_shot: int = 1
    n_query: int = 15
    episodes: int = 1000  # how many
    methods: tuple[str, ...] = ("proto",)  # names of `distcam fewshot evaluate --method`
    seed: int = 0  # of the list of episodes; not that of the training

    def manifest(self, split: Split) -> EpisodeManifest:
        """The list of episodes of this part."""
        settings = self.model_dump(include={"n_way", "n_shot", "n_query", "seed"})
        return sample_episodes(split.labels, names=split.names, n_episodes=self.episodes, **settings)

    def name(self, method: str) -> str:
        """The name of the accuracy in tables."""
        return f"{self.part}.{self.n_way}-way {self.n_shot}-shot {method}"


class ValidationSettings(EpisodeTest):
    """Stored episodes that are measured while training goes on."""

    part: str = "val"
    episodes: int = 600


class FewShotRecipe(Recipe):
    """A few-shot training run, resolved; `[data]` names a data set as `distcam fewshot evaluate --data` reads it."""

    kept_tables: ClassVar[tuple[str, ...]] = ("episodes",)

    episodes: EpisodeSettings | None = None  # what batches are made of; None for ordinary ones
    test: tuple[EpisodeTest, ...] = (EpisodeTest(),)  # what is measured in the end
    validation: ValidationSettings = ValidationSettings()  # what `run.monitor = "val.accuracy"` measures

    def open(self, transform: Transform, *, cache: Path, progress: Progress | None = None) -> RunData:
        """The base part to train on, in episodes or in batches, and the stored episodes of the others.

        Image files that cannot be read, of any part, are left out; episodes are drawn from the others.
        """
        del cache
        data, skipped = readable(self.open_data(), progress=progress)
        base = data["base"]
        say_left_out(skipped, of=sum(map(len, data)) + len(skipped), strict=self.data.strict)
        labels, names = torch.from_numpy(base.class_of), base.class_names.tolist()
        kept = self.data.cache
        train_set = TrainingSet.from_pixels(
            base.pixels(transform) if stays_in_memory(len(base), transform, kept) else None,
            labels,
            transform=transform,
            class_names=names,
            digests=base.digests,
            original=base.images.__getitem__,
        )
        episodes = self.episodes
        return RunData(
            {"train": train_set},
            parts={name: DataPart(len(own), frozenset(own.class_names.tolist())) for name, own in data.parts.items()},
            left_out=skipped,
            terms=FEW_SHOT_TERMS,
            sampler=None if episodes is None else training_episodes(base.class_of, episodes, seed=self.seed),
            validate=_Measure(data, [self.validation], cache=kept, named="val.accuracy") if self.run.monitor else None,
            measure=_Measure(data, self.test, cache=kept),
        )

    def open_data(self) -> FewShotData:
        """The data set that `[data]` names; folders are relative to the recipe's, or to $DISTCAM_DATA.

        The table of `folder:TABLE@DIR` may lie beside the recipe.
        """
        spec, base = self.data.source(self.folder)
        name, at, folders = spec.rpartition("@")
        kind, _, table = name.partition(":")
        if kind == "folder" and (self.folder / table).is_file():
            name = f"{kind}:{self.folder / table}"
        return open_data(name + at + ",".join(str(base / folder) for folder in folders.split(",")))


class _Measure:
    """Accuracy on stored episodes; decoded images stay in memory as the cache says."""

    def __init__(
        self, data: FewShotData, tests: Sequence[EpisodeTest], *, cache: Cache, named: str | None = None
    ) -> None:
        self._data, self._tests, self._cache, self._named = data, tests, cache, named
        self._manifests = [test.manifest(data[test.part]) for test in tests]  # too few classes now, not after training
        names = [named or test.name(method) for test in tests for method in test.methods]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"{twice[0]} is measured twice; a [[test]] needs other settings, [validation] one method")
        for method in {method for test in tests for method in test.methods}:
            classifier_of(method)
        self._pixels: dict[str, Tensor] = {}

    def __call__(self, encoder: Encoder, _objective: Objective, _folder: Path | None) -> dict[str, float]:
        """Mean accuracy by name, in [0, 1]."""
        device = str(next(encoder.parameters()).device)
        inference = Inference(encoder, device=device, batch_size=256)
        features = {part: self._features(inference, part) for part in {test.part for test in self._tests}}
        found = {}
        for test, manifest in zip(self._tests, self._manifests, strict=True):
            for method in test.methods:
                result = evaluate(features[test.part], manifest, classifier_of(method))
                found[self._named or test.name(method)] = result.mean_accuracy
        return found

    def _features(self, inference: Inference, part: str) -> Tensor:
        images, transform = self._data[part], inference.encoder.transform
        if part not in self._pixels and stays_in_memory(len(images), transform, self._cache):
            self._pixels[part] = images.pixels(transform)
        held, found = self._pixels.get(part), []
        for rows in torch.split(torch.arange(len(images)), 256):
            pixels = images.pixels(transform, rows.tolist()) if held is None else held[rows]
            found.append(inference(pixels).embedding.cpu())
        return torch.cat(found)
