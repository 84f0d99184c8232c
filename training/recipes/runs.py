"""Recipes put to work: one run, or every variant with several seeds and one table of what came out."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...encoders import Encoder
from ...encoders.inference import resolved_precision
from ...errors import InputError
from ...files import write_text
from ...images import Transform
from ...remarks import Skipped
from ..data.batches import TrainingBatches
from ..data.dividing import SHARES
from ..data.parts import Part, describe, parts_of, sentence
from ..data.sampling import Sampler, make_sampler
from ..data.splits import load_splits
from ..data.training_set import TrainingSet
from ..engine.distributed import World, current_world
from ..engine.loop import fit
from ..engine.outcome import FitResult
from ..losses.registry import TERMS, Builder, TermContext, build_objective
from .comparison import Comparison
from .evaluation import Evaluator
from .recipe import Recipe, RecipeFile

__all__ = ["Comparison", "RunResult", "compare_runs", "run_recipe", "run_variants"]

Progress = Callable[[int, int], None]
Evaluation = Callable[[Encoder, Mapping[str, TrainingSet]], Mapping[str, float]]
Announce = Callable[[str], None]
Reading = Callable[[], AbstractContextManager[Progress | None]]
Watch = Callable[[str, int], AbstractContextManager[Progress | None]]


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run came to.

    Attributes:
        recipe: as it was run, seed included.
        metrics: of the weights that were kept, by name such as "test.accuracy"; empty in all processes but the first.
        fit: epoch by epoch.
        encoder: trained, in evaluation mode.
        seconds: with data and evaluation.
        parts: sizes and classes of the data.
        left_out: training and test images that cannot be read, with the reasons.
    """

    recipe: Recipe
    metrics: Mapping[str, float]
    fit: FitResult
    encoder: Encoder
    seconds: float
    parts: Mapping[str, Part] = field(default_factory=dict)
    left_out: tuple[Skipped, ...] = ()

    @property
    def seed(self) -> int:
        """What everything random came from."""
        return self.recipe.run.seed

    @property
    def seen_as(self) -> str:
        """What images became, and the precision of the arithmetic."""
        device = next(self.encoder.parameters(), torch.empty(0)).device
        return f"{self.encoder.transform.summary}, {resolved_precision(self.recipe.run.precision, device)}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it, without the recipe's content."""
        return {
            "name": self.recipe.name,
            "variant": self.recipe.variant,
            "seed": self.seed,
            "metrics": dict(self.metrics),
            "images_as": self.seen_as,
            "best_epoch": self.fit.best_epoch,
            "folder": None if self.fit.folder is None else str(self.fit.folder),
            "seconds": self.seconds,
            "data": describe(self.parts),
            "left_out": [dataclasses.asdict(item) for item in self.left_out],
        }


def run_recipe(
    recipe: Recipe,
    *,
    terms: Mapping[str, Builder] = TERMS,
    folder: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    sets: Mapping[str, TrainingSet] | Callable[[Transform], Mapping[str, TrainingSet]] | None = None,
    sampler: Sampler | None = None,
    validate: Callable[[Encoder], Mapping[str, float]] | None = None,
    evaluations: Sequence[Evaluation] = (),
    parts: Mapping[str, Part] | None = None,
    left_out: Sequence[Skipped] = (),
    announce: Announce | None = None,
    reading: Reading = nullcontext,
    progress: Progress | None = None,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> RunResult:
    """Train what a recipe describes, and measure it.

    The encoder's `trained_on` says afterwards which classes and images that was, beside what it said before.

    Args:
        recipe: from `RecipeFile.recipe` or `Recipe.from_dict`.
        terms: the kinds of losses there are; the tasks above this package add theirs, `TERMS | {…}`.
        folder: where the resolved recipe, encoder, log, metrics, and checkpoints go; None writes nothing.
        seed: instead of the recipe's.
        resume: go on from the checkpoint in `folder`, if there is one.
        cache: where scenes are drawn; in `folder` if left out, and for this run only without either.
        sets: images by split instead of the recipe's `[data]`, "train" among them; or what makes them from the
            encoder's transform.
        sampler: instead of the recipe's `[sampler]`: few-shot episodes, for example.
        validate: what `run.monitor` looks at, instead of a metric of `[evaluation]`.
        evaluations: further measures of the trained encoder, from the sets by split.
        parts: of the data, where the sets are not all of them.
        left_out: images that were left out of the sets beforehand.
        announce: called before the training with sizes and classes of the parts, on one line.
        reading: makes a context that gives the progress callback of reading the images once before the training.
        progress: called with (batches done, batches in all).
        report: called with every epoch's row of the log.

    Raises:
        InputError: whatever in the recipe does not fit, and a loss that is not finite.
        ImageError: an image that could be read before the first step and cannot any more.
    """
    started = time.perf_counter()
    recipe = recipe.with_seed(seed)
    seed, world = recipe.run.seed, current_world()
    encoder = recipe.encoder.build(recipe.data, folder=recipe.folder, seed=seed)
    if sets is None:
        with reading() as read:
            sets = _sets(recipe, encoder, cache or folder, world, read)
        recipe = recipe.settled()
    elif callable(sets):
        sets = sets(encoder.transform)
    data = sets["train"]
    data.require_trainable()
    parts = parts or parts_of(sets)
    encoder.trained_on = data.trained_on.after(encoder.trained_on)
    context = TermContext(encoder, data.class_names, multi_label=data.is_multi_label, folder=recipe.folder)
    objective = build_objective(recipe.loss, context, terms=terms, seed=seed)
    if sampler is None:
        sampler = make_sampler(
            recipe.sampler,
            data.labels,
            seed=seed,
            world_size=world.size,
            class_names=data.class_names,
            outlined=() if data.regions is None else data.regions.image,
        )
    batches = TrainingBatches(data, sampler, augment=recipe.augment, seed=seed, rank=world.rank, world_size=world.size)
    if folder is not None and world.is_first:
        Path(folder).mkdir(parents=True, exist_ok=True)
        _write(Path(folder) / "recipe.json", recipe.to_dict())
    final = Evaluator(sets, recipe.evaluation, classifier=objective.classifier)
    monitor = recipe.run.monitor
    watched = validate
    if validate is None and monitor is not None and "." in monitor:
        watched = Evaluator(sets, recipe.evaluation, classifier=objective.classifier, only=[monitor])
    if announce is not None and world.is_first:
        announce(sentence(parts))
    result = fit(
        encoder,
        batches,
        objective,
        recipe.run,
        folder=folder,
        resume=resume,
        evaluate=watched,
        config=_kept(recipe),
        progress=progress,
        report=report,
    )
    metrics: dict[str, float] = {}
    if world.is_first:
        metrics = final(encoder)
        for evaluation in evaluations:
            metrics |= evaluation(encoder, sets)
    skipped = (*left_out, *(item for own in sets.values() for item in own.skipped))
    outcome = RunResult(recipe, metrics, result, encoder, time.perf_counter() - started, parts, skipped)
    if folder is not None and world.is_first:
        _write(Path(folder) / "result.json", outcome.to_dict())
    return outcome


def _sets(
    recipe: Recipe, encoder: Encoder, cache: str | Path | None, world: World, progress: Progress | None = None
) -> dict[str, TrainingSet]:
    with ExitStack() as stack:
        if cache is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            place = Path(cache) / "scenes" / (f"process-{world.rank}" if world.size > 1 else "")
        return load_splits(recipe.data, encoder.transform, folder=recipe.folder, cache=place, progress=progress)


def _kept(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe without what may differ when a run is taken up again."""
    table = recipe.to_dict()
    for name in ("device", "checkpoint_every_steps", "tensorboard"):
        table["run"].pop(name)
    table["data"].pop("strict")
    table["data"]["split"]["parts"] = table["data"]["split"]["parts"] or dict(SHARES)
    return table


def _write(file: Path, value: Mapping[str, Any]) -> None:
    write_text(file, json.dumps(value, indent=2) + "\n")


def _placed(recipe: Recipe, *, out: str | Path | None, seed: int) -> Recipe:
    """The recipe with the places of this run in its losses' options."""
    place = "" if out is None else str(Path(out).absolute())

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            if "{out}" in value and out is None:
                raise InputError(f"{value!r} speaks of the folder of the runs; give one")
            return value.replace("{out}", place).replace("{seed}", str(seed))
        return {key: filled(each) for key, each in value.items()} if isinstance(value, Mapping) else value

    return dataclasses.replace(recipe, loss=tuple(filled(table) for table in recipe.loss))


# --- several runs -----------------------------------------------------------------------------------------------------


def run_variants(
    file: RecipeFile,
    *,
    variants: Sequence[str | None] | None = None,
    seeds: Sequence[int] = (0,),
    changes: Sequence[str] = (),
    folder: str | Path | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    announce: Announce | None = None,
    reading: Reading = nullcontext,
    terms: Mapping[str, Builder] = TERMS,
    evaluations: Sequence[Evaluation] = (),
) -> Comparison:
    """Every variant with every seed, one after another.

    A run's results lie in `FOLDER/VARIANT/seed-N`; the table, as `comparison.json`, in `folder`. With `resume`, runs
    that are finished are measured again and not trained. In the losses' options `{out}` stands for `folder` and
    `{seed}` for the seed, so that a variant can learn from an earlier one:
    `teacher = "{out}/teacher/seed-{seed}/encoder.safetensors"`.

    Args:
        file: the recipe.
        variants: names; None stands for the recipe without a variant. All of the file's if left out.
        seeds: of the runs.
        changes: as in `RecipeFile.recipe`.
        folder: see above; None writes nothing.
        cache: where scenes are drawn; in `folder` if left out.
        resume: as in `run_recipe`.
        watch: from (variant, seed) to a context that gives the run's progress callback.
        announce: as in `run_recipe`.
        reading: as in `run_recipe`.
        terms: as in `run_recipe`.
        evaluations: as in `run_recipe`.

    Raises:
        InputError: as in `run_recipe`; recipes are checked before the first run starts.
    """
    chosen = list(file.variants or [None]) if variants is None else list(variants)
    recipes = {variant: file.recipe(variant=variant, changes=changes) for variant in chosen}

    if len(recipes) < len(chosen):
        raise InputError(f"expected variants, each once; got {chosen}")
    fixed: dict[str, Any] = {"terms": terms, "resume": resume, "cache": cache or folder, "evaluations": evaluations}
    fixed |= {"announce": announce, "reading": reading}

    def run(recipe: Recipe, *, seed: int, **options: Any) -> RunResult:
        return run_recipe(_placed(recipe, out=folder, seed=seed), seed=seed, **fixed, **options)

    runs = {variant or "": partial(run, recipe) for variant, recipe in recipes.items()}
    return compare_runs(next(iter(recipes.values())).name, runs, seeds=seeds, folder=folder, watch=watch)


def compare_runs(
    name: str,
    runs: Mapping[str, Callable[..., RunResult]],
    *,
    seeds: Sequence[int],
    folder: str | Path | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Several runs with every seed, one after another; their table lies in `folder` as `comparison.json`.

    Args:
        name: of the comparison.
        runs: by variant; called with `seed`, `folder` (that of the run), and `progress`.
        seeds: each once.
        folder: a run's results lie in `FOLDER/VARIANT/seed-N`; None writes nothing.
        watch: from (variant, seed) to a context that gives the run's progress callback.

    Raises:
        InputError: no run, no seed, or a seed that is there twice; and what the runs raise.
    """
    if not runs or not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"expected variants and seeds, each once; got {list(runs)} and {list(seeds)}")
    values: dict[str, dict[str, tuple[float, ...]]] = {}
    seconds: dict[str, float] = {}
    data: dict[str, dict[str, dict[str, int]]] = {}
    seen_as: dict[str, None] = {}
    for variant, run in runs.items():
        results = []
        for seed in seeds:
            place = None if folder is None else Path(folder) / variant / f"seed-{seed}"
            with nullcontext(None) if watch is None else watch(variant, seed) as progress:
                results.append(run(seed=seed, folder=place, progress=progress))
        metrics = results[0].metrics
        seen_as |= dict.fromkeys(result.seen_as for result in results)
        values[variant] = {name: tuple(result.metrics[name] for result in results) for name in metrics}
        seconds[variant] = statistics.fmean(result.seconds for result in results)
        data[variant] = describe(results[0].parts)
    comparison = Comparison(name, tuple(seeds), values, seconds, data, tuple(seen_as))
    if folder is not None and current_world().is_first:
        _write(Path(folder) / "comparison.json", comparison.to_dict())
    return comparison
