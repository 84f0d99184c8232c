"""`distcam index sync`, `import`, `export`, `restore`: folders, other tools' vectors, copies."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from ...errors import DistcamError, InputError
from ...remarks import counted
from .. import console, options
from ..command import refuse_unused
from ..options import AsJson, BatchSize, Device, GalleryEncoder, GalleryPath, Index, Labels, Metric, Strict, Workers
from .manage import note_what_is_due

SYNC_EXAMPLE = (
    "Example: `distcam index sync photos.gallery photos/ --dry-run`, then without; `--watch` goes on for ever"
)
_SHOWN = 10
IMPORT_EXAMPLE = "Example: `distcam index import laion/ --out laion.gallery`, or `table.csv --embeddings vectors.npy`"
EXPORT_EXAMPLE = "Example: `distcam index export photos.gallery --out photos.export`, or `--to lancedb`, `--to csv`"
RESTORE_EXAMPLE = "Example: `distcam index restore backup/photos.gallery photos.gallery`"


def sync(
    gallery: GalleryPath,
    folder: Annotated[Path, typer.Argument(help="The folder to follow; images elsewhere are left alone.")],
    encoder: GalleryEncoder = None,
    labels: Labels = None,
    boxes: options.BoxFile = None,
    box_format: options.BoxFormat = None,
    box_confidence: options.BoxConfidence = None,
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
    root: options.Root = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Make a gallery hold what a folder holds: new, changed, renamed and removed files, told apart by contents."""
    from ...images import BoxSource
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
    console.require_file(encoder, "--encoder")
    opened = Gallery.open(gallery, root=root)
    settings: dict[str, Any] = {
        "labels": labels,
        "boxes": BoxSource(boxes, box_format, box_confidence),
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
            for outcome in watch_folder(opened, folder, encoder, every=every, settle=settle, **settings):
                if isinstance(outcome, DistcamError):
                    console.complain(str(outcome))
                elif as_json:
                    sys.stdout.write(json.dumps(outcome.to_dict()) + "\n")
                    sys.stdout.flush()
                else:
                    console.say(str(outcome))
                    console.report_skipped(outcome.skipped)
        return
    with console.resumable(), console.progress_bar("syncing") as progress:
        report = opened.sync(folder, encoder, dry_run=dry_run, progress=progress, **settings)
    if as_json:
        console.print_json({"gallery": str(gallery), "folder": str(folder), **report.to_dict()})
        return
    for change in report.changes[:_SHOWN]:
        origin = f"  (from {change.origin})" if change.origin else ""
        console.say(f"  {change.kind:10} {change.path}{origin}")
    if len(report.changes) > _SHOWN:
        console.say(f"  … and {len(report.changes) - _SHOWN} more (all with --json)")
    console.say(str(report))
    console.report_skipped(report.skipped)
    if report.refusal is not None:
        console.note(f"without --dry-run this would be refused: {report.refusal}")
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
        console.err.print("stopped watching; everything encoded so far is kept")
    finally:
        signal.signal(signal.SIGTERM, before)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder of clip-retrieval or of `index export`, a .csv of Open Metric Learning, hloc's .h5."
        ),
    ],
    out_path: Annotated[Path, typer.Option("--out", help="The gallery's folder.")],
    kind: Annotated[
        Literal["auto", "clip-retrieval", "oml", "hloc"], typer.Option(help="Whose layout it is; `auto` looks.")
    ] = "auto",
    embeddings: Annotated[
        Path | None, typer.Option(help="With a table: its vectors, a .npy or .pt file with a row per line.")
    ] = None,
    metric: Annotated[Metric | None, typer.Option(help="Default: `cosine`, or what an export says.")] = None,
    name: Annotated[str | None, typer.Option(help="What made the vectors. Default: the source's name.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="The CHECKPOINT that made them; it is tried on some of the images.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="The column with the classes. Default: `label`.")] = None,
    root: Annotated[Path | None, typer.Option(help="The folder that relative image paths refer to.")] = None,
    index: Index = "auto",
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a gallery at --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a gallery of vectors that another tool made."""
    from ...index.interop.import_ import import_gallery

    if encoder is None:
        refuse_unused("where nothing is encoded", "device", remedy="add --encoder CHECKPOINT")
    else:
        refuse_unused("where --encoder says what made the vectors", "name")
    with console.resumable("the same command starts the import anew"), console.progress_bar("importing") as progress:
        gallery = import_gallery(
            source,
            out_path,
            kind=kind,
            embeddings=embeddings,
            metric=metric,
            name=name,
            encoder=encoder,
            label_column=label_column,
            root=root,
            index=index,
            device=device,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        console.print_json({**gallery.info(), "skipped": [asdict(item) for item in gallery.skipped]})
        return
    console.say(f"{counted(len(gallery), 'image')} in {out_path}, {counted(len(gallery.skipped), 'row')} skipped")
    for item in gallery.skipped[:10]:
        console.err.print(f"  {item.path}: {item.reason}", soft_wrap=True)
    if "imported" in gallery.manifest.encoder.description:
        console.note(
            "which encoder made these vectors is not known, so stored images and vectors can be queried, other "
            "images cannot; if you know it, import with --encoder CHECKPOINT"
        )


def export(
    gallery: GalleryPath,
    out_path: Annotated[str, typer.Option("--out", help="A new folder, a file for csv; qdrant also an address.")],
    to: Annotated[
        Literal["clip-retrieval", "lancedb", "qdrant", "datasets", "fiftyone", "csv"],
        typer.Option(help="For which tool; `datasets` is Hugging Face's, `csv` holds paths, labels and columns."),
    ] = "clip-retrieval",
    index: Annotated[
        str, typer.Option(help="`flat`, `auto` (by size), `none`, or a FAISS factory string such as `HNSW32`.")
    ] = "flat",
    rows_per_file: Annotated[int, typer.Option(min=1, help="Images in each pair of files.")] = 250_000,
    half: Annotated[bool, typer.Option("--half", help="Vectors in half precision; reading back is not exact.")] = False,
    encoder: Annotated[
        bool, typer.Option("--encoder/--no-encoder", help="Whether the gallery's encoder goes into the export.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Write vectors (NumPy), records (Parquet) and a FAISS index for other tools, in clip-retrieval's layout."""
    from ...index import Gallery
    from ...index.interop.export import export_gallery
    from ...index.interop.stores import export_rows

    if to != "clip-retrieval":
        refuse_unused(f"by --to {to}", "index", "rows_per_file", "half", "encoder")
        with console.resumable("nothing was written"), console.progress_bar("exporting") as progress:
            told = export_rows(Gallery.open(gallery), out_path, to=to, progress=progress)
        console.answer(told, f"{counted(told['images'], 'image')} in {out_path}, for {to}", as_json=as_json)
        return
    with console.resumable("nothing was written"), console.progress_bar("exporting") as progress:
        written = export_gallery(
            Gallery.open(gallery),
            out_path,
            index=index,
            rows_per_file=rows_per_file,
            half=half,
            encoder=encoder,
            progress=progress,
        )
    kept, size = "with" if written.encoder else "without", written.bytes / 2**20
    text = f"{written.images} images in {out_path}, {kept} their encoder: {written.files} files, {size:.1f} MiB"
    console.answer(asdict(written), text, as_json=as_json)


def restore(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="A copy of a gallery; it is checked first.")],
    gallery: Annotated[Path, typer.Argument(metavar="GALLERY", help="The gallery to replace, or a new folder.")],
    as_json: AsJson = False,
) -> None:
    """Replace a gallery by a copy in one step, or copy one to a new folder; readers and servers go on meanwhile.

    Copying files over a gallery that is in use breaks it for whoever reads it; this does not.
    """
    from ...index import Gallery, restore_gallery

    restore_gallery(source, gallery)
    images = len(Gallery.open(gallery, verify=False))
    content = {"gallery": str(gallery), "from": str(source), "images": images}
    console.answer(content, f"{counted(images, 'image')} in {gallery}, as in {source}", as_json=as_json)
