"""The table `[paper]` of a recipe that repeats a table of a paper: what it reads, what follows, its miniature run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ...errors import InputError
from .tables import Table


class Miniature(Table):
    """A run of about a minute on small copies of the data."""

    layouts: tuple[str, ...] = ()  # the copies, by their names in `synthetic.miniatures`
    variants: tuple[str, ...] = ()  # those that are run; all if empty
    changes: tuple[str, ...] = ()  # of the recipe, as `--set` takes them


class Paper(Table):
    """How a table of a paper is repeated."""

    # the command that trains; "none" where nothing is trained, and `then` is all
    task: Literal["train", "fewshot", "reid", "segment", "none"] = "train"
    # files and folders below that of the data, as archives unpack; "A|B" where either will do
    needs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()  # further files, which a miniature does without
    # commands for every run, without the word distcam. In braces: {data_folder}, {run} (the run's own folder), and what
    # the recipe says, such as {encoder[architecture]}
    then: tuple[str, ...] = ()
    mini: Miniature = Miniature()

    def commands(self, table: Mapping[str, Any], *, data_folder: Path, run: Path) -> list[list[str]]:
        """The words of what follows a run; `table` is its resolved recipe."""
        known = {**table, "data_folder": data_folder, "run": run}
        try:
            return [[word.format_map(known) for word in shlex.split(command)] for command in self.then]
        except (KeyError, ValueError) as error:
            raise InputError(f"[paper] then: {error} is nothing that the recipe says") from None


def require(papers: Sequence[Paper], folder: Path, *, weights: bool = True) -> None:
    """Nothing, if all that the recipes read lies in its place; else one error that names every path."""
    needs = dict.fromkeys(need for paper in papers for need in (*paper.needs, *(paper.weights if weights else ())))
    places = ([folder / path for path in need.split("|")] for need in needs)  # alternatives in one line
    missing = [" or ".join(map(str, either)) for either in places if not any(path.exists() for path in either)]
    if not missing:
        return
    firsts = {need.partition("/")[0] for paper in papers for need in paper.needs}
    inside = f"; {folder.name} is one of the data sets: give the folder around it" if folder.name in firsts else ""
    listed = "; ".join(missing)
    raise InputError(f"{folder}: {len(missing)} of what the recipe reads are not there: {listed}{inside}")
