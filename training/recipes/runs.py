"""Training runs of a recipe of any task, from images to metrics: one, or every variant with several seeds."""

from __future__ import annotations

import dataclasses
import json
import math
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
from ...encoders.devices import resolved_precision
from ...errors import InputError
from ...images import Transform
from ...progress import Progress
from ...remarks import Skipped
from ..data.batches import DataPart, RunData, TrainingBatches, describe, parts_of, sentence
from ..data.dividing import SHARES
from ..data.samplers import make_sampler
from ..engine.environment import World, current_world
from ..engine.loop import fit
from ..engine.outcome import FitResult, write_json
from ..engine.step import Objective
from ..losses.registry import TERMS, TermContext, build_objective
from .evaluator import Evaluator
from .recipe import Recipe, RecipeFile


@dataclass(frozen=True, eq=False)
class RunResult:
    """The result of a run."""

    recipe: Recipe  # as it was run, seed included
    # of the weights that were kept, by name such as "test.accuracy"; empty in all processes but the first
    metrics: Mapping[str, float]
    fit: FitResult  # epoch by epoch
    encoder: Encoder  # trained, in evaluation mode
    seconds: float  # with data and evaluation
    parts: Mapping[str, DataPart] = field(default_factory=dict)  # sizes and classes of the data
    left_out: tuple[Skipped, ...] = ()  # training and test images that cannot be read, with the reasons

    @property
    def seed(self) -> int:
        """The number that everything random came from."""
        return self.recipe.seed

    @property
    def seen_as(self) -> str:
        """The images' size and fit, and the precision of the arithmetic."""
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
    data: Callable[[Transform], RunData] | None = None,
    encoder: Encoder | None = None,
    config: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    announce: Callable[[str], None] | None = None,
    reading: Callable[[], AbstractContextManager[Progress | None]] = nullcontext,
    progress: Progress | None = None,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> RunResult:
    """Train what a recipe of any task describes, and measure it; without `folder` nothing is written.

    `data` makes the images from the encoder's transform in place of the recipe, `encoder` and `config` (kept with it)
    are others than the recipe's. Synthetic images are drawn in `cache`,
    else in `folder`, else for this run only. `reading` makes a context that gives the progress of reading images.
    """
    started = time.perf_counter()
    recipe = recipe if seed is None else recipe.model_copy(update={"run": recipe.run.changed(seed=seed)})
    world = current_world()
    out = None if folder is None else Path(folder)
    encoder = encoder or recipe.encoder.build(recipe.data, folder=recipe.folder, seed=recipe.seed)
    with ExitStack() as stack:
        drawn = Path(cache or folder or stack.enter_context(tempfile.TemporaryDirectory()))
        with reading() as read:
            transform = encoder.transform
            opened = data(transform) if data else recipe.open(transform, cache=drawn, progress=read)
        recipe = recipe.divided(opened.split)
        images = opened.sets["train"]
        images.require_trainable()
        encoder.trained_on = images.trained_on.after(encoder.trained_on)
        context = TermContext(encoder, images.class_names, multi_label=images.is_multi_label, folder=recipe.folder)
        objective = build_objective(recipe.loss, context, terms=opened.terms or TERMS, seed=recipe.seed)
        parts = opened.parts or parts_of(opened.sets)
        validate = _watched(recipe, opened, objective)
        final = Evaluator(opened.sets, recipe.evaluation, classifier=objective.classifier)
        batches = _batches(recipe, opened, world)
        if out is not None and world.is_first:
            write_recipe = _recipe_writer(recipe, out, resume=resume)
            if not (out / "recipe.json").is_file():  # else `fit` may refuse the run, and what lies there is another's
                write_recipe()
        if announce is not None and world.is_first:
            announce(sentence(parts))
        config = config or _fixed(recipe)
        told: dict[str, Any] = {"evaluate": validate, "config": config, "progress": progress, "report": report}
        told["announce"] = announce
        fitted = fit(encoder, batches, objective, recipe.run, folder=folder, resume=resume, **told)
        if out is not None and world.is_first:
            write_recipe()
        metrics = final(encoder) if world.is_first else {}
        if world.is_first and opened.measure is not None:
            metrics |= opened.measure(encoder, objective, out)
    skipped = (*opened.left_out, *(item for own in opened.sets.values() for item in own.skipped))
    result = RunResult(recipe, metrics, fitted, encoder, time.perf_counter() - started, parts, skipped)
    if out is not None and world.is_first:
        write_json(out / "result.json", result.to_dict())
    return result


def _batches(recipe: Recipe, opened: RunData, world: World) -> TrainingBatches:
    data = opened.sets["train"]
    sampler = opened.sampler or make_sampler(
        recipe.sampler,
        data.labels,
        seed=recipe.seed,
        world_size=world.size,
        class_names=data.class_names,
        outlined=() if data.regions is None else data.regions.image,
    )
    processes = {"rank": world.rank, "world_size": world.size}
    return TrainingBatches(data, sampler, augment=recipe.augment, seed=recipe.seed, **processes)


def _watched(recipe: Recipe, opened: RunData, objective: Objective) -> Callable[[Encoder], Mapping[str, float]] | None:
    """The measure of every epoch: the task's own, or what `run.monitor` names of `[evaluation]`."""
    validate = opened.validate
    if validate is not None:
        return lambda encoder: validate(encoder, objective, None)
    monitor = recipe.run.monitor
    if monitor is None or "." not in monitor:
        return None
    return Evaluator(opened.sets, recipe.evaluation, classifier=objective.classifier, only=[monitor])


def _recipe_writer(recipe: Recipe, folder: Path, *, resume: bool) -> Callable[[], object]:
    """The call that writes the resolved recipe; a resumed run keeps the tables of its task that it began with."""
    file, table = folder / "recipe.json", recipe.to_dict()
    began = json.loads(file.read_text(encoding="utf-8")) if resume and file.is_file() else {}
    for name in recipe.kept_tables:
        if name in began and began[name] != table[name]:
            raise InputError(
                f"{folder}: the run began with [{name}] {began[name]}, the recipe has {table[name]}; choose another "
                "folder, or leave --resume out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    return partial(write_json, file, table)


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe without a task's tables and what may differ when a run is taken up again."""
    table = {name: own for name, own in recipe.to_dict().items() if name in Recipe.known_tables()}
    for name in ("device", "checkpoint_every_steps", "tensorboard"):
        table["run"].pop(name)
    table["data"].pop("strict")
    table["data"]["split"]["parts"] = table["data"]["split"]["parts"] or dict(SHARES)
    return table


@dataclass(frozen=True)
class VariantComparison:
    """The metrics of several variants, seed by seed."""

    name: str  # the recipe's
    seeds: tuple[int, ...]  # of the runs, in order
    values: Mapping[str, Mapping[str, tuple[float, ...]]]  # by variant and metric, one per seed; NaN where it has none
    seconds: Mapping[str, float]  # by variant, the mean of a run
    # by variant, images and classes of the parts of the data
    data: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    # what images became, and the precision of the arithmetic; several where variants differ
    seen_as: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that some variant has, in the order of the first."""
        return tuple(dict.fromkeys(metric for own in self.values.values() for metric in own))

    def cell(self, variant: str, metric: str) -> str:
        """Mean and standard deviation over the seeds (n - 1), as a table shows them; the mean alone for one seed."""
        values = self.values[variant].get(metric, ())
        if not values or not all(map(math.isfinite, values)):
            return "nan" if values else "–"
        mean = f"{statistics.fmean(values):.3f}"
        return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"

    def rows(self) -> list[list[str]]:
        """The table: a header with the variants, one row per metric, and the seconds of a run."""
        header = ["", *(variant or self.name for variant in self.values)]
        body = [[metric, *(self.cell(variant, metric) for variant in self.values)] for metric in self.metrics]
        return [header, *body, ["seconds", *(f"{seconds:.0f}" for seconds in self.seconds.values())]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: a metric that a seed does not have is null."""
        values = {
            variant: {name: [None if math.isnan(value) else value for value in seeds] for name, seeds in own.items()}
            for variant, own in self.values.items()
        }
        more = {"seconds": dict(self.seconds), "data": dict(self.data), "seen_as": list(self.seen_as)}
        return {"name": self.name, "seeds": list(self.seeds), "values": values, **more}


def run_variants(
    file: RecipeFile,
    *,
    task: Callable[..., Any] = Recipe.from_dict,
    run: Callable[..., RunResult] = run_recipe,
    variants: Sequence[str | None] | None = None,
    seeds: Sequence[int] | None = None,
    changes: Sequence[str] = (),
    folder: str | Path | None = None,
    cache: str | Path | None = None,
    watch: Callable[[str, int], AbstractContextManager[Progress | None]] | None = None,
    **options: Any,
) -> VariantComparison:
    """Every variant (None: the recipe without any) with every seed, one after another; options are `run_recipe`'s.

    A run's results lie in `FOLDER/VARIANT/seed-N`; the table, as `comparison.json`, in `folder`. With `resume`, runs
    that are finished are measured again and not trained. In the losses' options `{out}` stands for `folder` and
    `{seed}` for the seed: `teacher = "{out}/teacher/seed-{seed}/encoder.safetensors"`.
    """
    chosen = list(file.variants or [None]) if variants is None else list(variants)
    tables = {variant or "": file.resolved(variant=variant, changes=changes) for variant in chosen}
    recipes = {variant: task(table, folder=file.folder) for variant, table in tables.items()}
    seeds = [next(iter(recipes.values())).seed] if seeds is None else list(seeds)
    if not seeds or len(recipes) < len(chosen) or len(set(seeds)) < len(seeds):
        raise InputError(f"expected variants and seeds, each once; got {chosen} and {seeds}")
    results: dict[str, list[RunResult]] = {}
    for variant, recipe in recipes.items():
        for seed in seeds:
            place = None if folder is None else Path(folder) / variant / f"seed-{seed}"
            placed = _placed(recipe, out=folder, seed=seed)
            with nullcontext(None) if watch is None else watch(variant, seed) as progress:
                told = {"seed": seed, "folder": place, "cache": cache or folder, "progress": progress, **options}
                results.setdefault(variant, []).append(run(placed, **told))
    comparison = VariantComparison(
        next(iter(recipes.values())).name,
        tuple(seeds),
        values={
            variant: {
                name: tuple(result.metrics.get(name, math.nan) for result in own)
                for name in dict.fromkeys(name for result in own for name in result.metrics)
            }
            for variant, own in results.items()
        },
        seconds={variant: statistics.fmean(result.seconds for result in own) for variant, own in results.items()},
        data={variant: describe(own[0].parts) for variant, own in results.items()},
        seen_as=tuple(dict.fromkeys(result.seen_as for own in results.values() for result in own)),
    )
    if folder is not None and current_world().is_first:
        write_json(Path(folder) / "comparison.json", comparison.to_dict())
    return comparison


def _placed(recipe: Any, *, out: str | Path | None, seed: int) -> Any:
    """The recipe with the places of this run in its losses' options."""
    place = "" if out is None else str(Path(out).absolute())

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            if "{out}" in value and out is None:
                raise InputError(f"{value!r} speaks of the folder of the runs; give one")
            return value.replace("{out}", place).replace("{seed}", str(seed))
        return {key: filled(each) for key, each in value.items()} if isinstance(value, Mapping) else value

    if not isinstance(recipe, Recipe):
        return recipe
    return recipe.model_copy(update={"loss": tuple(filled(table) for table in recipe.loss)})
