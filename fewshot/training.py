"""Training few-shot encoders on the one loop: prototypical, Baseline, Baseline++, Classifier- and Meta-Baseline.

A recipe is one of `distcam.training` with three tables more:

```toml
[data]
photographs = "omniglot:vinyals@omniglot"   # or images = "…": a data set as `distcam fewshot evaluate --data` reads it
size = 28
[episodes]        # EpisodeSettings; left out, batches are those of [sampler]
[[test]]          # EpisodeTest; as many as wanted
[validation]      # the same
```

`base` is trained on. `run.monitor = "val.accuracy"` keeps the weights with the best accuracy on stored episodes of the
val part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from ..datasets import FewShotData, open_data
from ..datasets.episodes import EpisodeManifest
from ..datasets.few_shot import Split, readable
from ..encoders import Encoder, Inference
from ..errors import InputError
from ..images import Transform
from ..progress import Progress
from ..training.data.batches import Part, RunData
from ..training.data.training_set import TrainingSet, say_left_out
from ..training.engine.step import Objective
from ..training.losses.registry import TERMS, Builder, sized
from ..training.recipes.recipe import Recipe
from ..training.recipes.runs import run_recipe as train
from ..training.recipes.tables import Table
from .evaluation import evaluate
from .methods import classifier_of
from .prototypical import EpisodeSettings, PrototypicalTerm, training_episodes
from .sampling import sample_episodes

__all__ = ["FEW_SHOT_TERMS", "EpisodeTest", "FewShotRecipe", "train"]


FEW_SHOT_TERMS: Mapping[str, Builder] = {**TERMS, "prototypical": sized("prototypical", PrototypicalTerm)}
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
        return sample_episodes(
            split.labels,
            names=split.names,
            n_way=self.n_way,
            n_shot=self.n_shot,
            n_query=self.n_query,
            n_episodes=self.episodes,
            seed=self.seed,
        )

    def name(self, method: str) -> str:
        """The name of the accuracy in tables."""
        return f"{self.part}.{self.n_way}-way {self.n_shot}-shot {method}"


class ValidationSettings(EpisodeTest):
    """Stored episodes that are measured while training goes on."""

    part: str = "val"
    episodes: int = 600


class FewShotRecipe(Recipe):
    """A few-shot training run, resolved."""

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
        train_set = TrainingSet.from_pixels(
            base.pixels(transform), labels, transform=transform, class_names=names, digests=base.digests
        )
        episodes = self.episodes
        return RunData(
            {"train": train_set},
            parts={name: Part(len(own), frozenset(own.class_names.tolist())) for name, own in data.parts.items()},
            left_out=skipped,
            terms=FEW_SHOT_TERMS,
            sampler=None if episodes is None else training_episodes(base.class_of, episodes, seed=self.seed),
            validate=_Measure(data, [self.validation], named="val.accuracy") if self.run.monitor else None,
            measure=_Measure(data, self.test),
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
    """Accuracy on stored episodes; images are decoded once and stay in memory."""

    def __init__(self, data: FewShotData, tests: Sequence[EpisodeTest], *, named: str | None = None) -> None:
        self._data, self._tests, self._named = data, tests, named
        self._manifests = [test.manifest(data[test.part]) for test in tests]  # too few classes now, not after training
        names = [named or test.name(method) for test in tests for method in test.methods]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{name} is measured twice; a [[test]] needs other settings, [validation] one method")
        for method in {method for test in tests for method in test.methods}:
            classifier_of(method)
        self._pixels: dict[str, torch.Tensor] = {}

    def __call__(self, encoder: Encoder, objective: Objective, folder: Path | None) -> dict[str, float]:
        """Mean accuracy by name, in [0, 1]."""
        del objective, folder
        device = str(next(encoder.parameters()).device)
        inference = Inference(encoder, device=device, batch_size=256)
        features: dict[str, torch.Tensor] = {}
        found = {}
        for test, manifest in zip(self._tests, self._manifests, strict=True):
            if test.part not in features:
                features[test.part] = self._features(inference, test.part)
            for method in test.methods:
                result = evaluate(features[test.part], manifest, classifier_of(method))
                found[self._named or test.name(method)] = result.mean_accuracy
        return found

    def _features(self, inference: Inference, part: str) -> torch.Tensor:
        if part not in self._pixels:
            self._pixels[part] = self._data[part].pixels(inference.encoder.transform)
        return torch.cat([inference(pixels).embedding.cpu() for pixels in torch.split(self._pixels[part], 256)])
