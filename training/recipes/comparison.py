"""Every variant of a recipe with several seeds, and one table of what they came to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from ...errors import InputError
from ...progress import Progress
from ..data.run_data import describe
from ..engine.distributed import current_world
from ..engine.logs import write_json
from .recipe import Recipe, RecipeFile
from .runs import RunResult, run_recipe
from .tables import plain

Watch = Callable[[str, int], AbstractContextManager[Progress | None]]


class Task(Protocol):
    """The recipes of one task: its own tables, data, losses, and measures."""

    @property
    def name(self) -> str:
        """For tables and messages."""

    @property
    def seed(self) -> int:
        """The run's, unless another is asked for."""

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, folder: Path) -> Self:
        """The recipe that the tables of one run hold; `folder` is what relative paths start from."""


@dataclass(frozen=True)
class Comparison:
    """The metrics of several variants, seed by seed."""

    name: str  # the recipe's
    seeds: tuple[int, ...]  # of the runs, in order
    values: Mapping[str, Mapping[str, tuple[float, ...]]]  # by variant and metric, one value per seed
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
        """As JSON can hold it."""
        result: dict[str, Any] = plain(self)
        return result


def run_variants(
    file: RecipeFile,
    *,
    task: type[Task] = Recipe,
    run: Callable[..., RunResult] = run_recipe,
    variants: Sequence[str | None] | None = None,
    seeds: Sequence[int] | None = None,
    changes: Sequence[str] = (),
    folder: str | Path | None = None,
    cache: str | Path | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> Comparison:
    """Every variant with every seed, one after another.

    A run's results lie in `FOLDER/VARIANT/seed-N`; the table, as `comparison.json`, in `folder`. With `resume`, runs
    that are finished are measured again and not trained. In the losses' options `{out}` stands for `folder` and
    `{seed}` for the seed, so that a variant can learn from an earlier one:
    `teacher = "{out}/teacher/seed-{seed}/encoder.safetensors"`.

    Among the variants None stands for the recipe without any; left out, they are all of the file's, and the seeds the
    recipe's own. `run` trains a recipe of the `task`. `watch` makes, from variant and seed, a context that gives the
    run's progress callback. The other options are those of `run_recipe`.
    """
    chosen = list(file.variants or [None]) if variants is None else list(variants)
    tables = {variant or "": file.resolved(variant=variant, changes=changes) for variant in chosen}
    recipes = {variant: task.from_dict(table, folder=file.folder) for variant, table in tables.items()}
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
    comparison = _compared(next(iter(recipes.values())).name, seeds, results)
    if folder is not None and current_world().is_first:
        write_json(Path(folder) / "comparison.json", comparison.to_dict())
    return comparison


def _placed(recipe: Task, *, out: str | Path | None, seed: int) -> Task:
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


def _compared(name: str, seeds: Sequence[int], results: Mapping[str, Sequence[RunResult]]) -> Comparison:
    every = [result for own in results.values() for result in own]
    return Comparison(
        name,
        tuple(seeds),
        values={
            variant: {name: tuple(result.metrics[name] for result in own) for name in own[0].metrics}
            for variant, own in results.items()
        },
        seconds={variant: statistics.fmean(result.seconds for result in own) for variant, own in results.items()},
        data={variant: describe(own[0].parts) for variant, own in results.items()},
        seen_as=tuple(dict.fromkeys(result.seen_as for result in every)),
    )
