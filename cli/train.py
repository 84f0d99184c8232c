"""`distcam train`, `fewshot train`, `reid train`, `segment train`: recipes, and a table of what they are worth."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from ..errors import InputError
from .command import Commands, refuse_beside, refuse_unused, running_words
from .console import err, note, out, print_json, progress_bar, say
from .options import AsJson, ReadsImages, Strict, argument, option

if TYPE_CHECKING:
    from ..training.recipes.recipe import Recipe, RecipeFile
    from ..training.recipes.runs import VariantComparison

FOLDER = Path(__file__).parents[1] / "recipes"
_COMMAND = re.compile(r"distcam (?:(\w+) )?train")


class Shipped(NamedTuple):
    """A recipe that comes with distcam: the command that runs it, and what it is, in a sentence."""

    command: str
    title: str


def shipped() -> dict[str, Shipped]:
    """All of them by name, in alphabetical order, as the comments at their heads say."""
    titles = titles_in(FOLDER)
    heads = {name: (FOLDER / f"{name}.toml").read_text(encoding="utf-8")[:1000] for name in titles}
    tasks = {name: found[1] if (found := _COMMAND.search(head)) else None for name, head in heads.items()}
    return {name: Shipped(f"{task} train" if task else "train", titles[name]) for name, task in tasks.items()}


def titles_in(folder: Path) -> dict[str, str]:
    """Titles of the recipes in a folder, by name: the first lines of their comments."""
    first = {file.stem: file.read_text(encoding="utf-8").partition("\n")[0] for file in sorted(folder.glob("*.toml"))}
    return {name: line.removeprefix("# ").rstrip(":") for name, line in first.items()}


def say_titles(titles: dict[str, str]) -> None:
    """Print recipes by name, a line each."""
    for name, title in titles.items():
        say(f"{name:{max(map(len, titles))}}  {title}")


def find_recipe(given: Path) -> Path:
    """The file that is meant: one that is there, or the recipe of that name that comes with distcam."""
    if given.is_file():
        return given
    recipes, words = shipped(), running_words()
    mine = [name for name, recipe in recipes.items() if recipe.command == words]
    is_named = given.suffix in ("", ".toml") and given.parent in (Path(), Path("recipes"))
    if is_named and given.stem in recipes:
        if given.stem not in mine and words:
            raise InputError(f"{given.stem} is a recipe for `distcam {recipes[given.stem].command}`")
        if given.suffix:
            note(f"{given}: not here, so the recipe of that name that comes with distcam is taken")
        return FOLDER / f"{given.stem}.toml"
    near = get_close_matches(given.stem, mine, n=1)
    hint = f"did you mean {near[0]}?" if near else "--list names those that come with distcam, --template starts one"
    raise InputError(f"{given}: no such file or recipe; {hint}")


def _list(show: bool) -> None:
    if show:
        refuse_beside("--list")
        words = running_words()
        mine = {name: recipe.title for name, recipe in shipped().items() if recipe.command == words}
        say_titles(mine)
        say(f"\nRun one with `distcam {words} NAME`; `distcam {words} --template > my.toml` starts one of your own.")
        raise typer.Exit


def _template(show: bool) -> None:
    if show:
        refuse_beside("--template")
        task = (running_words() or "train").partition(" ")[0]
        typer.echo((FOLDER / "templates" / f"{task}.toml").read_text(encoding="utf-8"), nl=False)
        raise typer.Exit


Saliency = Annotated[
    Path | None,
    typer.Option(help="A FOLDER of saliency maps, NAME.png in grey levels: data.saliency of the recipe."),
]


def changes_with(changes: list[str] | None, *, strict: bool, saliency: Path | None = None) -> list[str]:
    """The changes of a recipe, those of `--strict` and `--saliency` among them."""
    own = [] if saliency is None else [f"data.saliency={json.dumps(str(saliency.absolute()))}"]
    return [*(changes or []), *(["data.strict=true"] if strict else []), *own]


app = Commands()
EXAMPLE = "Example: `distcam train bias --variant all --seeds 0,1,2 --set run.epochs=10`"
FEWSHOT_EXAMPLE = "Example: `distcam fewshot train omniglot_short`"
REID_EXAMPLE = "Example: `distcam reid train reid_walkers --variant all --seeds 0,1,2`"


@dataclass(frozen=True)
class Runs:
    """A recipe, and which runs of it."""

    recipe: Path = argument(..., "A TOML file, or the NAME of a recipe that comes with distcam (see --list).")
    out_path: Path | None = option(None, "Where runs go. Default: runs/NAME, after the recipe's file.", "--out")
    variant: str | None = option(None, "One of the recipe's variants, several a,b, or `all`.")
    seeds: str | None = option(None, "Such as 0,1,2. Default: the recipe's own.")
    changes: list[str] | None = option(
        None, "Another value, such as run.epochs=3 or loss.gain.weight=2.", "--set", metavar="KEY=VALUE"
    )
    resume: bool = option(False, "Go on with runs that were stopped.", "--resume")
    _list: bool = option(False, "Name the recipes that come with distcam.", "--list", callback=_list, is_eager=True)
    _template: bool = option(
        False,
        "Print a recipe for images of your own, to be filled in.",
        "--template",
        callback=_template,
        is_eager=True,
    )
    strict: Strict = False
    as_json: AsJson = False

    def read(self) -> RecipeFile:
        """The recipe's file, which is one that is there or comes with distcam."""
        found = find_recipe(self.recipe)
        from ..training.recipes.recipe import RecipeFile

        return RecipeFile.read(found)

    def start(self, task: str, file: RecipeFile, changes: list[str], **options: Any) -> None:
        """Train what the recipe says, and print the table; options are those of `run_file`."""
        options |= {"variants": chosen_variants(self.variant, file.variants), **task_options(task, file)}
        folder = self.out_path or Path("runs") / self.recipe.stem
        options |= {"seeds": self.seeds, "as_json": self.as_json, "resume": self.resume}
        run_file(file, folder, changes=changes, **options)


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def train(
    runs: Runs,
    *,
    device: str | None = option(None, "auto, cpu, cuda, cuda:1, … Default: the recipe's own."),
    cache: Path | None = option(None, "Where drawn scenes are kept for other runs. Default: in --out."),
    dry_run: bool = option(False, "Print the recipe with every default filled in; train nothing.", "--dry-run"),
) -> None:
    """Train encoders as a recipe says; several variants and seeds end in one table, mean ± standard deviation."""
    file = runs.read()
    chosen = chosen_variants(runs.variant, file.variants)
    changes = [*changes_with(runs.changes, strict=runs.strict), *([f'run.device="{device}"'] if device else [])]
    if dry_run:
        refuse_unused("with --dry-run, which trains nothing", "out_path", "seeds", "resume", "cache", "max_pixels")
        resolved = {name: file.recipe(variant=name, changes=changes) for name in chosen}
        _print_resolved(resolved, as_json=runs.as_json)
        return
    if file.recipe(variant=chosen[0], changes=changes).data.scenes is None:
        refuse_unused("by a recipe that draws no scenes", "cache")
    runs.start("train", file, changes, cache=cache)


def task_options(name: str, file: RecipeFile) -> dict[str, Any]:
    """Options of `run_variants`: of segmentation class maps alone, or the whole way to a segmentation network."""
    if name == "train":
        return {"reading": lambda: progress_bar("reading images")}
    if name == "fewshot":
        from ..fewshot.training import FewShotRecipe

        return {"task": FewShotRecipe.from_dict, "reading": lambda: progress_bar("reading images")}
    if name == "reid":
        from ..reid.training import ReidRecipe

        return {"task": ReidRecipe.from_dict, "reading": lambda: progress_bar("reading images")}
    from ..segmentation.cam_training.training import SegmentationRecipe
    from ..segmentation.pipeline import run_segmentation
    from ..segmentation.pipeline_recipe import PipelineRecipe, is_pipeline

    whole = {"task": PipelineRecipe.from_dict, "run": run_segmentation}
    return {**(whole if is_pipeline(file) else {"task": SegmentationRecipe.from_dict}), "leaves": "Models, masks"}


def fewshot_train(runs: Runs) -> None:
    """Train an encoder on base classes, in episodes or in batches, and measure it on stored episodes of novel ones."""
    runs.start("fewshot", runs.read(), changes_with(runs.changes, strict=runs.strict))


def reid_train(runs: Runs) -> None:
    """Train a re-identification encoder, and evaluate its queries against the gallery."""
    runs.start("reid", runs.read(), changes_with(runs.changes, strict=runs.strict))


def segment_train(runs: Runs, *, saliency: Saliency = None) -> None:
    """Train as a recipe says: class maps (CAM, CPN, SEAM), or all the way to a segmentation network."""
    runs.start("segment", runs.read(), changes_with(runs.changes, strict=runs.strict, saliency=saliency))


def run_file(
    file: RecipeFile, folder: Path, *, seeds: str | None, as_json: bool, leaves: str = "Encoders", **options: Any
) -> VariantComparison | None:
    """The table of every chosen variant with every seed, printed; None in all processes but the first.

    Options are those of `run_variants`.
    """
    from ..training.engine.environment import current_world
    from ..training.recipes.runs import run_variants

    parts = [part.strip() for part in seeds.split(",")] if seeds else []
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"expected --seeds as whole numbers such as 0,1,2; got {seeds!r}")
    try:
        comparison = run_variants(
            file,
            seeds=[int(part) for part in parts] or None,
            folder=folder,
            announce=announcer(),
            watch=lambda name, seed: progress_bar(" ".join(filter(None, (name, f"seed {seed}")))),
            **options,
        )
    except KeyboardInterrupt:
        err.print(f"stopped; {folder} keeps every epoch, and the same command with --resume goes on", soft_wrap=True)
        raise typer.Exit(130) from None
    if not current_world().is_first:
        return None
    if as_json:
        print_json(comparison.to_dict())
        return comparison
    header, *rows = comparison.rows()
    count = len(comparison.seeds)
    spread = f"mean ± standard deviation over {count} seeds" if count > 1 else f"seed {comparison.seeds[0]}"
    table = Table(title=f"{comparison.name}: {spread}", title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=not number)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    say(f"Images: {'; '.join(comparison.seen_as)}")
    say(f"{leaves}, logs, and resolved recipes: {folder}")
    return comparison


def _print_resolved(recipes: dict[str | None, Recipe], *, as_json: bool) -> None:
    """Print recipes as TOML that reads back, or as JSON; sizes and classes of their parts go to stderr."""
    from ..training.data.batches import sentence
    from ..training.data.splits import settled_parts
    from ..training.recipes.tables import as_toml

    tables: dict[str | None, dict[str, Any]] = {}
    for name, recipe in recipes.items():
        try:  # divided as the data say, if they are there
            split, parts = settled_parts(recipe.data, folder=recipe.folder)
            recipe = recipe.divided(split)
            if parts:
                announcer()(sentence(parts))
        except InputError as error:
            note(f"the data cannot be divided now: {error}")
        tables[name] = recipe.to_dict()
    if as_json:
        print_json(tables.get(None, tables))
        return
    one = next(iter(tables.values())) if len(tables) == 1 else None
    typer.echo(as_toml(one or {"variants": {str(name): table for name, table in tables.items()}}), nl=False)


def announcer() -> Callable[[str], None]:
    """Prints sizes and classes of the data's parts on stderr, each line once for all runs that share it."""
    said: set[str] = set()

    def announce(text: str) -> None:
        if text not in said:
            said.add(text)
            err.print(text, soft_wrap=True)

    return announce


def chosen_variants(text: str | None, known: tuple[str, ...]) -> list[str | None]:
    """The variants that the option names; None is the recipe without any."""
    if text is None:
        return [None]
    if text != "all":
        return list(text.split(","))
    if not known:
        raise InputError("the recipe has no [variants.NAME]; leave --variant out")
    return list(known)
