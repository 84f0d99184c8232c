"""Recipes that come with distcam, by name, and templates of recipes for images of one's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .command import refuse_beside, running_words
from .console import note, say

FOLDER = Path(__file__).parents[1] / "recipes"
_COMMAND = re.compile(r"distcam (?:(\w+) )?train")


@dataclass(frozen=True)
class Shipped:
    """A recipe that comes with distcam: its name, the command that runs it, and what it is, in a sentence."""

    name: str
    command: str
    title: str

    @classmethod
    def read(cls, file: Path) -> Shipped:
        """Read the comment at a recipe's head."""
        head = file.read_text(encoding="utf-8")[:1000]
        found = _COMMAND.search(head)
        task = found[1] if found else None
        return cls(file.stem, f"{task} train" if task else "train", head.splitlines()[0].removeprefix("# ").rstrip(":"))


def shipped() -> dict[str, Shipped]:
    """All of them by name, in alphabetical order."""
    return {file.stem: Shipped.read(file) for file in sorted(FOLDER.glob("*.toml"))}


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
        mine = [recipe for recipe in shipped().values() if recipe.command == words]
        width = max(len(recipe.name) for recipe in mine)
        for recipe in mine:
            say(f"{recipe.name:{width}}  {recipe.title}")
        say(f"\nRun one with `distcam {words} NAME`; `distcam {words} --template > my.toml` starts one of your own.")
        raise typer.Exit


def _template(show: bool) -> None:
    if show:
        refuse_beside("--template")
        task = (running_words() or "train").partition(" ")[0]
        typer.echo((FOLDER / "templates" / f"{task}.toml").read_text(encoding="utf-8"), nl=False)
        raise typer.Exit


RecipePath = Annotated[
    Path, typer.Argument(help="A TOML file, or the NAME of a recipe that comes with distcam (see --list).")
]
ListRecipes = Annotated[
    bool,
    typer.Option("--list", callback=_list, is_eager=True, help="Name the recipes that come with distcam."),
]
Template = Annotated[
    bool,
    typer.Option(
        "--template", callback=_template, is_eager=True, help="Print a recipe for images of your own, to be filled in."
    ),
]
