"""`distcam reproduce`: tables of the papers at the papers' settings, from data sets as they are downloaded."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from ...errors import InputError
from ..command import Commands, refuse_beside, refuse_unused
from ..console import say
from ..options import ReadsImages, Strict, argument, option
from ..train import (
    FOLDER,
    Runs,
    Saliency,
    changes_with,
    chosen_variants,
    run_file,
    say_titles,
    task_options,
    titles_in,
)

if TYPE_CHECKING:
    from ...training.recipes.recipe import Paper, RecipeFile

PAPERS = FOLDER / "papers"
app = Commands()


def _list(show: bool) -> None:
    if show:
        refuse_beside("--list")
        say_titles(titles_in(PAPERS))
        raise typer.Exit


@app.command(
    cls=ReadsImages,
    epilog="Example: `distcam reproduce market_strong_baseline --data FOLDER`, where FOLDER holds "
    "Market-1501-v15.09.15, or `distcam reproduce market_strong_baseline --mini`",
)
def reproduce(
    name: str = argument(..., "One of --list."),
    *,
    data_path: Path | None = option(
        None, "The FOLDER that holds the data sets, each as its archive unpacks.", "--data"
    ),
    out_path: Path | None = Runs.out_path,
    variant: str | None = Runs.variant,
    seeds: str | None = Runs.seeds,
    changes: list[str] | None = Runs.changes,
    saliency: Saliency = None,
    resume: bool = Runs.resume,
    dry_run: bool = option(False, "Look for the data and print the settings; run nothing.", "--dry-run"),
    mini: bool = option(False, "Run it all on a miniature of the data, drawn for it, in about a minute.", "--mini"),
    _list: bool = option(False, "Name the tables that can be repeated.", "--list", callback=_list, is_eager=True),
    strict: Strict = False,
) -> None:
    """Repeat a table of a paper: look for the data, print the settings, train, and measure."""
    from ...synthetic.miniatures import write_miniature
    from ...training.recipes.recipe import Paper, RecipeFile, require
    from ...training.recipes.tables import as_toml, check_name, parse

    check_name("table of a paper", name, list(titles_in(PAPERS)))
    if mini:
        refuse_unused("with --mini, which draws its own", "data_path")
    elif data_path is None:
        raise InputError("expected --data FOLDER, which holds the data sets; or --mini for a run on drawn images")
    if dry_run:
        refuse_unused("with --dry-run, which runs nothing", "out_path", "seeds", "resume", "max_pixels")
    file = RecipeFile.read(PAPERS / f"{name}.toml")
    first = parse(Paper, file.paper(), "paper")
    chosen = chosen_variants(variant or ("all" if file.variants else None), file.variants)
    if mini and variant is None and first.mini.variants:
        chosen = list(first.mini.variants)
    papers = {each: parse(Paper, file.paper(each), "paper") for each in chosen}
    every_change = [*(first.mini.changes if mini else ()), *changes_with(changes, strict=strict, saliency=saliency)]
    with ExitStack() as stack:
        if data_path is None:
            data_path = Path(stack.enter_context(TemporaryDirectory(prefix="distcam-mini-")))
            for layout in first.mini.layouts:
                write_miniature(layout, data_path)
        folder = data_path.absolute()
        require(list(papers.values()), folder, weights=not mini)
        file = replace(file, folder=folder)
        for each, paper in papers.items():
            say(f"# {' '.join(filter(None, (name, each)))}")
            say(as_toml(file.resolved(variant=each, changes=every_change)))
            for command in paper.then:
                say(f"# then: distcam {command}")
        if not dry_run:
            out = out_path or Path("runs") / (f"{name}-mini" if mini else name)
            _run(file, papers, out, changes=every_change, seeds=seeds, resume=resume)


def _run(
    file: RecipeFile,
    papers: dict[str | None, Paper],
    out: Path,
    *,
    changes: list[str],
    seeds: str | None,
    resume: bool,
) -> None:
    """Train every variant that learns anything, and give the commands that follow each run."""
    from ..app import app as distcam

    trained = [variant for variant, paper in papers.items() if paper.task != "none"]
    used = ["0"]
    if trained:
        task = papers[trained[0]].task
        options: dict[str, Any] = {"changes": changes, "resume": resume, **task_options(task, file)}
        comparison = run_file(file, out, seeds=seeds, as_json=False, variants=trained, **options)
        if comparison is None:  # another process of several prints
            return
        used = [str(seed) for seed in comparison.seeds]
    elif seeds is not None or resume:
        raise InputError("expected --seeds and --resume where something is trained; leave them out")
    for variant, paper in papers.items():
        table = file.resolved(variant=variant, changes=changes)
        for seed in used if paper.task != "none" else used[:1]:
            run = out / (variant or "") / f"seed-{seed}"
            run.mkdir(parents=True, exist_ok=True)
            for words in paper.commands(table, data_folder=file.folder, run=run):
                say(f"# distcam {' '.join(words)}")
                distcam(words, standalone_mode=False)
