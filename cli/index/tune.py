"""`distcam index tune`: choose the search index by what it finds, how long it takes, and what it holds in memory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ...errors import InputError
from ...remarks import counted
from ..console import out, print_json, progress_bar, resumable, say
from ..options import AsJson, Device, GalleryPath

if TYPE_CHECKING:
    from ...index import TuningReport

EXAMPLE = "Example: `distcam index tune photos.gallery --memory 4G --recall 0.97 --latency-ms 5`"

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def tune(
    gallery: GalleryPath,
    recall: Annotated[float, typer.Option(help="Share of the true ten neighbours that have to be found.")] = 0.97,
    memory: Annotated[
        str | None, typer.Option(help="What index and ids may take: 4G, 500M. Default: half of the machine's memory.")
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(help="What a single query may take; the smallest such index wins. Default: the quickest wins."),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="How many stored images ask, each without itself.")] = 500,
    candidates: Annotated[
        list[str] | None,
        typer.Option(help="A FAISS factory string to try, such as `IVF4096,SQ8`; repeatable. Default: by size."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of queries and of the training.")] = 0,
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and leave the gallery as it is.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try search indexes on the gallery's own vectors and keep the cheapest that is good enough.

    Matches are re-scored exactly whatever the index: it decides only which true neighbours may be missed.
    """
    from ...index import Gallery

    opened = Gallery.open(gallery)
    with resumable("the gallery is as it was"), progress_bar("trying indexes") as progress:
        report = opened.tune(
            recall=recall,
            memory=None if memory is None else read_size(memory),
            latency_ms=latency_ms,
            candidates=candidates,
            queries=queries,
            seed=seed,
            device=device,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        print_json({"gallery": str(gallery), "stored": not dry_run, **report.to_dict()})
        return
    out.print(trials_table(report), width=max(out.width, 100), crop=False)
    say(str(report) + (" (not stored)" if dry_run else ""))


def read_size(text: str) -> int:
    """A number of bytes: `4G`, `500M`, `1.5GiB`; K, M, G and T are powers of 1024."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise InputError(f"expected a size such as 4G or 500M, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def trials_table(report: TuningReport) -> Table:
    """One row for each candidate, the chosen one marked; bytes are per vector, milliseconds per query."""
    title = Text(f"{counted(report.tuning.images, 'image')}, {report.tuning.queries} queries; recall after re-scoring")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("index", no_wrap=True)
    for name in ("bytes", "build s", "@1", "@10", "@100", "ms", "p95", "batch", "fetch", "effort"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for trial in report.trials:
        found, is_chosen = trial.tuning, trial.tuning is report.tuning
        room = f"{trial.total_bytes / report.tuning.images:.0f}" if trial.total_bytes else "–"
        cells = [trial.factory, room, *[""] * 9]
        if found is not None:
            cells[2:] = [
                f"{found.build_seconds:.1f}",
                *(f"{value:.3f}" for value in (found.recall_at_1, found.recall_at_10, found.recall_at_100)),
                *(f"{value:.2f}" for value in (found.latency_ms, found.latency_p95_ms, found.batch_ms)),
                f"×{found.overfetch}",
                "" if found.effort is None else str(found.effort),
            ]
        note = "chosen" if is_chosen else f"beyond {trial.note}" if found is not None and trial.note else trial.note
        table.add_row(*(Text(cell, style="bold" if is_chosen else "") for cell in (*cells, note)))
    return table
