"""One training run of a recipe of any task, from its images to its metrics."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...encoders import Encoder
from ...encoders.inference import resolved_precision
from ...errors import InputError
from ...images import Transform
from ...progress import Progress
from ...remarks import Skipped
from ..data.batches import TrainingBatches
from ..data.dividing import SHARES
from ..data.run_data import Part, RunData, describe, parts_of, sentence
from ..data.samplers import make_sampler
from ..engine.distributed import World, current_world
from ..engine.logs import write_json
from ..engine.loop import fit
from ..engine.outcome import FitResult
from ..engine.step import Objective
from ..losses.registry import TERMS, TermContext, build_objective
from .evaluator import Evaluator
from .recipe import Recipe

Announce = Callable[[str], None]
Reading = Callable[[], AbstractContextManager[Progress | None]]


@dataclass(frozen=True, eq=False)
class RunResult:
    """The result of a run."""

    recipe: Recipe  # as it was run, seed included
    # of the weights that were kept, by name such as "test.accuracy"; empty in all processes but the first
    metrics: Mapping[str, float]
    fit: FitResult  # epoch by epoch
    encoder: Encoder  # trained, in evaluation mode
    seconds: float  # with data and evaluation
    parts: Mapping[str, Part] = field(default_factory=dict)  # sizes and classes of the data
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
    folder: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    announce: Announce | None = None,
    reading: Reading = nullcontext,
    progress: Progress | None = None,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> RunResult:
    """Train what a recipe of any task describes, and measure it.

    The encoder's `trained_on` says afterwards which classes and images that was, beside what it said before.

    Args:
        recipe: from `Recipe.read` or `Recipe.from_dict`.
        data: makes the images from the encoder's transform; the recipe's own if left out.
        folder: where the resolved recipe, encoder, log, metrics, and checkpoints go; None writes nothing.
        seed: instead of the recipe's.
        resume: go on from the checkpoint in `folder`, if there is one.
        cache: where synthetic images are drawn; in `folder` if left out, and for this run only without either.
        announce: called before the training with sizes and classes of the parts, on one line.
        reading: makes a context that gives the progress callback of reading the images once before the training.
        progress: called with (batches done, batches in all).
        report: called with every epoch's row of the log.
    """
    started = time.perf_counter()
    recipe, world = recipe.with_seed(seed), current_world()
    out = None if folder is None else Path(folder)
    encoder = recipe.encoder.build(recipe.data, folder=recipe.folder, seed=recipe.seed)
    with ExitStack() as stack:
        drawn = Path(cache or folder or stack.enter_context(tempfile.TemporaryDirectory()))
        with reading() as read:
            transform = encoder.transform
            opened = data(transform) if data else recipe.open(transform, cache=drawn, progress=read)
        recipe = recipe.divided(opened.split)
        objective = _objective(recipe, encoder, opened)
        parts = opened.parts or parts_of(opened.sets)
        validate = _watched(recipe, opened, objective)
        final = Evaluator(opened.sets, recipe.evaluation, classifier=objective.classifier)
        batches = _batches(recipe, opened, world)
        if out is not None and world.is_first:
            _write_recipe(recipe, out, resume=resume)
        if announce is not None and world.is_first:
            announce(sentence(parts))
        config = _fixed(recipe)
        told: dict[str, Any] = {"evaluate": validate, "config": config, "progress": progress, "report": report}
        fitted = fit(encoder, batches, objective, recipe.run, folder=folder, resume=resume, **told)
        metrics = final(encoder) if world.is_first else {}
        if world.is_first and opened.measure is not None:
            metrics |= opened.measure(encoder, objective, out)
    skipped = (*opened.left_out, *(item for own in opened.sets.values() for item in own.skipped))
    result = RunResult(recipe, metrics, fitted, encoder, time.perf_counter() - started, parts, skipped)
    if out is not None and world.is_first:
        write_json(out / "result.json", result.to_dict())
    return result


def _objective(recipe: Recipe, encoder: Encoder, opened: RunData) -> Objective:
    data = opened.sets["train"]
    data.require_trainable()
    encoder.trained_on = data.trained_on.after(encoder.trained_on)
    context = TermContext(encoder, data.class_names, multi_label=data.is_multi_label, folder=recipe.folder)
    return build_objective(recipe.loss, context, terms=opened.terms or TERMS, seed=recipe.seed)


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


def _write_recipe(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    """Write the resolved recipe; a resumed run keeps the tables of its task that it began with."""
    file, table = folder / "recipe.json", recipe.to_dict()
    began = json.loads(file.read_text(encoding="utf-8")) if resume and file.is_file() else {}
    for name in recipe.kept_tables:
        if name in began and began[name] != table[name]:
            raise InputError(
                f"{folder}: the run began with [{name}] {began[name]}, the recipe has {table[name]}; choose another "
                "folder, or leave --resume out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, table)


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe without a task's tables and what may differ when a run is taken up again."""
    table = {name: own for name, own in recipe.to_dict().items() if name in Recipe.known_tables()}
    for name in ("device", "checkpoint_every_steps", "tensorboard"):
        table["run"].pop(name)
    table["data"].pop("strict")
    table["data"]["split"]["parts"] = table["data"]["split"]["parts"] or dict(SHARES)
    return table
