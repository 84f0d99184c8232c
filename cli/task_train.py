"""`distcam fewshot train` and `distcam reid train`: `distcam train` for recipes with a task's own tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import out, print_json, progress_bar, say
from .options import AsJson, Strict
from .recipes import ListRecipes, RecipePath, Template, find_recipe
from .train import announcer, changes_with, chosen_seeds, chosen_variants, comparison_table, resumable_runs

if TYPE_CHECKING:
    from ..training.recipes.runs import RunResult

FEWSHOT_EXAMPLE = "Example: `distcam fewshot train omniglot_short`"
REID_EXAMPLE = "Example: `distcam reid train reid_walkers --variant all --seeds 0,1,2`"

OutFolder = Annotated[Path | None, typer.Option("--out", help="Where runs go. Default: runs/NAME, after the recipe's.")]
Variant = Annotated[str | None, typer.Option(help="One of the recipe's variants, several a,b, or `all`.")]
Seeds = Annotated[str | None, typer.Option(help="Such as 0,1,2. Default: the recipe's own.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value, such as run.epochs=3.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with runs that were stopped.")]


def fewshot_train(
    recipe: RecipePath,
    out_path: OutFolder = None,
    variant: Variant = None,
    seeds: Seeds = None,
    changes: Changes = None,
    resume: Resume = False,
    _list: ListRecipes = False,
    _template: Template = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Train an encoder on base classes, in episodes or in batches, and measure it on stored episodes of novel ones."""
    recipe = find_recipe(recipe)
    from ..fewshot.training import FewShotRecipe, train

    announce = announcer()

    def load(name: str | None) -> tuple[str, int, Callable[..., RunResult]]:
        loaded = FewShotRecipe.read(recipe, variant=name, changes=changes_with(changes, strict=strict))
        return (
            loaded.recipe.name,
            loaded.recipe.run.seed,
            partial(train, loaded, resume=resume, announce=announce, reading=reading),
        )

    _run(recipe, load, out_path=out_path, variant=variant, seeds=seeds, as_json=as_json)


def reid_train(
    recipe: RecipePath,
    out_path: OutFolder = None,
    variant: Variant = None,
    seeds: Seeds = None,
    changes: Changes = None,
    resume: Resume = False,
    _list: ListRecipes = False,
    _template: Template = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Train a re-identification encoder, and evaluate its queries against the gallery."""
    recipe = find_recipe(recipe)
    from ..reid.training import ReidRecipe, train

    cache, announce = out_path or Path("runs") / recipe.stem, announcer()

    def load(name: str | None) -> tuple[str, int, Callable[..., RunResult]]:
        loaded = ReidRecipe.read(recipe, variant=name, changes=changes_with(changes, strict=strict))
        return (
            loaded.recipe.name,
            loaded.recipe.run.seed,
            partial(train, loaded, resume=resume, cache=cache, announce=announce, reading=reading),
        )

    _run(recipe, load, out_path=out_path, variant=variant, seeds=seeds, as_json=as_json)


def reading() -> AbstractContextManager[Callable[[int, int], None]]:
    """The bar of reading all images once before a training."""
    return progress_bar("reading images")


def _run(
    path: Path,
    load: Callable[[str | None], tuple[str, int, Callable[..., Any]]],
    *,
    out_path: Path | None,
    variant: str | None,
    seeds: str | None,
    as_json: bool,
) -> None:
    """Every chosen variant with every seed, and one table; recipes are checked before the first run starts."""
    from ..training.recipes.recipe import RecipeFile
    from ..training.recipes.runs import compare_runs

    names: Sequence[str | None] = chosen_variants(variant, RecipeFile.read(path).variants)
    loaded = {name or "": load(name) for name in names}
    title, own_seed, _ = next(iter(loaded.values()))
    folder = out_path or Path("runs") / path.stem
    with resumable_runs(folder):
        comparison = compare_runs(
            title,
            {name: run for name, (_, _, run) in loaded.items()},
            seeds=chosen_seeds(seeds) if seeds else [own_seed],
            folder=folder,
            watch=lambda name, seed: progress_bar(" ".join(filter(None, (name, f"seed {seed}")))),
        )
    if as_json:
        print_json(comparison.to_dict())
        return
    out.print(comparison_table(comparison))
    say(f"Images: {'; '.join(comparison.seen_as)}")
    say(f"Encoders, logs, and resolved recipes: {folder}")
