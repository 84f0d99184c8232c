"""Training few-shot encoders on the one loop: prototypical, Baseline, Baseline++, Classifier- and Meta-Baseline.

A recipe is one of `distcam.training` with two tables more:

```toml
[data]
photographs = "omniglot:vinyals@omniglot"   # or images = "…": a data set as `distcam fewshot evaluate --data` reads it
size = 28
[episodes]        # EpisodeSettings; left out, batches are those of [sampler]
[[test]]          # TestSettings; as many as wanted
```

`base` is trained on. `run.monitor = "val.accuracy"` keeps the weights with the best accuracy on stored episodes of the
val part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..datasets import FewShotData, open_data
from ..datasets.episodes import EpisodeManifest
from ..datasets.few_shot import Split, readable
from ..encoders import Encoder, Inference
from ..errors import InputError
from ..training.data.parts import Part
from ..training.data.pixels import say_left_out
from ..training.data.training_set import TrainingSet
from ..training.engine.distributed import current_world
from ..training.engine.logs import write_json
from ..training.engine.step import Term
from ..training.losses.registry import TERMS, Builder, TermContext, checked_term
from ..training.recipes.recipe import Recipe, RecipeFile
from ..training.recipes.runs import Reading, RunResult, run_recipe
from ..training.recipes.tables import parse, plain
from .classifiers import classifier_of
from .evaluation import evaluate
from .prototypical import EpisodeSettings, PrototypicalTerm, training_episodes
from .sampling import sample_episodes

__all__ = ["FEW_SHOT_TERMS", "FewShotRecipe", "TestSettings", "train"]


def _prototypical(options: Mapping[str, Any], context: TermContext) -> Term:
    return checked_term("prototypical", partial(PrototypicalTerm, context.dim(), context.n_classes), options)


SETTINGS_NAME = "few_shot.json"  # in a run's folder: the tables of a recipe that only few-shot training knows
FEW_SHOT_TERMS: Mapping[str, Builder] = {**TERMS, "prototypical": _prototypical}
"""All losses of `distcam.training`, and the prototypical one."""


@dataclass(frozen=True)
class TestSettings:
    """Stored episodes that the trained encoder is measured on.

    Attributes:
        part: which classes: "base", "val" or "novel".
        n_way, n_shot, n_query: of the episodes.
        episodes: how many.
        methods: names of `distcam fewshot evaluate --method`.
        seed: of the list of episodes; not that of the training.
    """

    __test__ = False  # for pytest

    part: str = "novel"
    n_way: int = 5
    n_shot: int = 1
    n_query: int = 15
    episodes: int = 1000
    methods: tuple[str, ...] = ("proto",)
    seed: int = 0

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
        """How the result's accuracy is called in tables."""
        return f"{self.part}.{self.n_way}-way {self.n_shot}-shot {method}"


@dataclass(frozen=True)
class FewShotRecipe:
    """A few-shot training run, resolved.

    Attributes:
        recipe: what the training loop reads.
        episodes: what batches are made of; None for ordinary ones.
        test: what is measured in the end.
        validation: what `run.monitor = "val.accuracy"` measures.
    """

    recipe: Recipe
    episodes: EpisodeSettings | None = None
    test: tuple[TestSettings, ...] = (TestSettings(),)
    validation: TestSettings = field(default_factory=lambda: TestSettings(part="val", episodes=600))

    @classmethod
    def read(cls, path: str | Path, *, variant: str | None = None, changes: Sequence[str] = ()) -> FewShotRecipe:
        """The recipe of a TOML file, with the variant and the changes of the command line.

        Raises:
            InputError: no file, no TOML, or a table, key or value that does not fit; the nearest name is given.
        """
        file = RecipeFile.read(path)
        table = file.resolved(variant=variant, changes=changes)
        own = {key: table.pop(key) for key in ("episodes", "test", "validation") if key in table}
        return cls(
            Recipe.from_dict(table, folder=file.folder),
            parse(EpisodeSettings, own["episodes"], "episodes") if "episodes" in own else None,
            tuple(parse(TestSettings, each, "test") for each in own.get("test", [{}])),
            parse(TestSettings, {"part": "val", "episodes": 600, **own.get("validation", {})}, "validation"),
        )

    def open_data(self) -> FewShotData:
        """The data set that `[data]` names; folders are relative to the recipe's, or to $DISTCAM_DATA.

        The table of `folder:TABLE@DIR` may lie beside the recipe.

        Raises:
            InputError: it names none, or the variable is not set.
        """
        spec, base = self.recipe.data.source(self.recipe.folder)
        name, at, folders = spec.rpartition("@")
        kind, _, table = name.partition(":")
        if kind == "folder" and (self.recipe.folder / table).is_file():
            name = f"{kind}:{self.recipe.folder / table}"
        return open_data(name + at + ",".join(str(base / folder) for folder in folders.split(",")))


def train(
    recipe: FewShotRecipe,
    *,
    data: FewShotData | None = None,
    folder: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    announce: Callable[[str], None] | None = None,
    reading: Reading = nullcontext,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> RunResult:
    """Train on the base part and measure on stored episodes.

    Args:
        recipe: what to do.
        data: opened already; `recipe.open_data()` if left out.
        folder: where results go; None writes nothing.
        seed: instead of the recipe's.
        resume: go on from the checkpoint in `folder`; with the same episodes, or it is refused.
        announce: called before the training with sizes and classes of the parts, on one line.
        reading: makes a context that gives the progress callback of reading the images once before the training.
        progress: called with (batches done, batches in all).
        report: called with every epoch's row of the log.

    Image files that cannot be read, of any part, are left out and named before the first step; episodes are then drawn
    from the others.

    Raises:
        InputError: whatever in recipe or data does not fit.
    """
    with reading() as read:
        data, skipped = readable(recipe.open_data() if data is None else data, progress=read)
    inner, base = recipe.recipe.with_seed(seed), data["base"]
    say_left_out(skipped, of=sum(map(len, data)) + len(skipped), strict=inner.data.strict)
    sampler = None
    if recipe.episodes is not None:
        sampler = training_episodes(base.class_of, recipe.episodes, seed=inner.run.seed)
    validation = _Measure(data, [recipe.validation], named="val.accuracy") if inner.run.monitor else None
    test = _Measure(data, recipe.test)
    if folder is not None:
        _keep_tables(recipe, Path(folder), resume=resume)
    return run_recipe(
        inner,
        terms=FEW_SHOT_TERMS,
        folder=folder,
        resume=resume,
        sets=lambda transform: {"train": _training_set(base, transform)},
        sampler=sampler,
        validate=validation,
        evaluations=[lambda encoder, _: test(encoder)],
        parts={name: Part(len(own), frozenset(own.class_names.tolist())) for name, own in data.parts.items()},
        left_out=skipped,
        announce=announce,
        progress=progress,
        report=report,
    )


def _training_set(base: Split, transform: Transform) -> TrainingSet:
    labels, names = torch.from_numpy(base.class_of), base.class_names.tolist()
    pixels = base.pixels(transform)
    return TrainingSet.from_pixels(pixels, labels, transform=transform, class_names=names, digests=base.digests)


def _keep_tables(recipe: FewShotRecipe, folder: Path, *, resume: bool) -> None:
    """Few-shot's own tables, beside the rest of the resolved recipe. A run goes on with the episodes it began with."""
    tables = plain({"episodes": recipe.episodes, "validation": recipe.validation, "test": recipe.test})
    file = folder / SETTINGS_NAME
    if resume and file.is_file():
        began = json.loads(file.read_text(encoding="utf-8"))["episodes"]
        if began != tables["episodes"]:
            raise InputError(
                f"{folder}: the run began with [episodes] {began}, the recipe has {tables['episodes']}; choose another "
                "folder, or leave --resume out"
            )
    if current_world().is_first:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, tables)


class _Measure:
    """Accuracy on stored episodes; images are decoded once and stay in memory.

    Args:
        data: the data set.
        tests: the lists of episodes.
        named: what the accuracy is called; by part, episodes and method if left out.
    """

    def __init__(self, data: FewShotData, tests: Sequence[TestSettings], *, named: str | None = None) -> None:
        self._data, self._tests, self._named = data, tests, named
        self._manifests = [test.manifest(data[test.part]) for test in tests]  # too few classes now, not after training
        names = [named or test.name(method) for test in tests for method in test.methods]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{name} is measured twice; a [[test]] needs other settings, [validation] one method")
        for method in {method for test in tests for method in test.methods}:
            classifier_of(method)
        self._pixels: dict[str, torch.Tensor] = {}

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Mean accuracy by name, in [0, 1]."""
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
