"""`distcam index sync`: a gallery follows a folder, once or from now on."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from ...errors import DistcamError, InputError
from ..command import refuse_unused
from ..console import complain, err, note, print_json, progress_bar, require_file, resumable, say
from ..options import AsJson, BatchSize, Device, GalleryPath, Labels, Strict, Workers
from .manage import note_what_is_due, report_skipped

EXAMPLE = "Example: `distcam index sync photos.gallery photos/ --dry-run`, then without; `--watch` goes on for ever"
_SHOWN = 10


def sync(
    gallery: GalleryPath,
    folder: Annotated[Path, typer.Argument(help="The folder to follow; images elsewhere are left alone.")],
    encoder: Annotated[str | None, typer.Option(help="Only for a gallery that keeps no encoder: a CHECKPOINT.")] = None,
    labels: Labels = None,
    checksum: Annotated[
        bool, typer.Option("--checksum", help="Read every file instead of trusting size and time of change.")
    ] = False,
    keep_missing: Annotated[
        bool, typer.Option("--keep-missing", help="Images whose files are gone stay in the gallery.")
    ] = False,
    max_vanishing: Annotated[
        float, typer.Option(min=0, max=1, help="Refuse when more than this share of the folder's images would leave.")
    ] = 0.5,
    force: Annotated[
        bool, typer.Option("--force", help="Let any number leave, and all if the folder is empty.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, and follow every change until Ctrl-C or SIGTERM.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(help="With --watch: look every so many seconds (network disks need it). Default: when told."),
    ] = None,
    settle: Annotated[
        float, typer.Option(min=0, help="With --watch: seconds that a file must have been left alone.")
    ] = 2.0,
    root: Annotated[Path | None, typer.Option(help="Where the gallery's images lie now, if they were moved.")] = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Make a gallery hold what a folder holds: new, changed, renamed and removed files, told apart by contents."""
    from ...index import Gallery

    if watch and dry_run:
        raise InputError("--watch does things and --dry-run does not; leave one out")
    if not watch:
        refuse_unused("without --watch", "every", "settle", remedy="add --watch")
    if keep_missing:
        refuse_unused("with --keep-missing, as no image leaves", "max_vanishing", "force")
    if force:
        refuse_unused("with --force, which lets any number leave", "max_vanishing")
    if dry_run:
        refuse_unused("with --dry-run, which encodes nothing", "encoder", "batch_size", "workers", "device", "strict")
    require_file(encoder, "--encoder")
    opened = Gallery.open(gallery, root=root)
    options: dict[str, Any] = {
        "labels": labels,
        "checksum": checksum,
        "keep_missing": keep_missing,
        "max_vanishing": max_vanishing,
        "force": force,
        "batch_size": batch_size,
        "workers": workers,
        "device": device,
        "strict": strict,
    }
    if watch:
        from ...index import watch_folder

        with _ended_by_signals():
            for outcome in watch_folder(opened, folder, encoder, every=every, settle=settle, **options):
                if isinstance(outcome, DistcamError):
                    complain(str(outcome))
                elif as_json:
                    sys.stdout.write(json.dumps(outcome.to_dict()) + "\n")
                    sys.stdout.flush()
                else:
                    say(str(outcome))
                    report_skipped(outcome.skipped)
        return
    with resumable(), progress_bar("syncing") as progress:
        report = opened.sync(folder, encoder, dry_run=dry_run, progress=progress, **options)
    if as_json:
        print_json({"gallery": str(gallery), "folder": str(folder), **report.to_dict()})
        return
    for change in report.changes[:_SHOWN]:
        origin = f"  (from {change.origin})" if change.origin else ""
        say(f"  {change.kind:10} {change.path}{origin}")
    if len(report.changes) > _SHOWN:
        say(f"  … and {len(report.changes) - _SHOWN} more (all with --json)")
    say(str(report))
    report_skipped(report.skipped)
    if report.refusal is not None:
        note(f"without --dry-run this would be refused: {report.refusal}")
    if not dry_run:
        note_what_is_due(opened)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: what is encoded is committed first."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        err.print("stopped watching; everything encoded so far is kept")
    finally:
        signal.signal(signal.SIGTERM, before)
