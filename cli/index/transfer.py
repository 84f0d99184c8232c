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
from typing import Any, Literal

from ...errors import DistcamError, InputError
from ...remarks import counted
from .. import console, library, options
from ..command import refuse_unused
from ..options import argument, option
from .manage import note_what_is_due

SYNC_EXAMPLE = (
    "Example: `distcam index sync photos.gallery photos/ --dry-run`, then without; `--watch` goes on for ever"
)
_SHOWN = 10
IMPORT_EXAMPLE = "Example: `distcam index import laion/ --out laion.gallery`, or `table.csv --embeddings vectors.npy`"
EXPORT_EXAMPLE = "Example: `distcam index export photos.gallery --out photos.export`, or `--to lancedb`, `--to csv`"
RESTORE_EXAMPLE = "Example: `distcam index restore backup/photos.gallery photos.gallery`"


def sync(
    gallery: options.GalleryPath,
    folder: Path = argument(..., "The folder to follow; images elsewhere are left alone."),
    *,
    encoder: options.GalleryEncoder = None,
    labels: options.Labels = None,
    boxed: options.BoxOptions,
    checksum: bool = option(False, "Read every file instead of trusting size and time of change.", "--checksum"),
    keep_missing: bool = option(False, "Images whose files are gone stay in the gallery.", "--keep-missing"),
    max_vanishing: float = option(
        0.5, "Refuse when more than this share of the folder's images would leave.", min=0, max=1
    ),
    force: bool = option(False, "Let any number leave, and all if the folder is empty.", "--force"),
    dry_run: bool = option(False, "Only say what would happen.", "--dry-run"),
    watch: bool = option(False, "Go on, and follow every change until Ctrl-C or SIGTERM.", "--watch"),
    every: float | None = option(
        None, "With --watch: look every so many seconds (network disks need it). Default: when told."
    ),
    settle: float = option(2.0, "With --watch: seconds that a file must have been left alone.", min=0),
    root: options.Root = None,
    running: options.Running,
    strict: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Make a gallery hold what a folder holds: new, changed, renamed and removed files, told apart by contents."""
    if watch and dry_run:
        raise InputError("--watch does things and --dry-run does not; leave one out")
    if not watch:
        refuse_unused("without --watch", "every", "settle", remedy="add --watch")
    if keep_missing:
        refuse_unused("with --keep-missing, as no image leaves", "max_vanishing", "force")
    if force:
        refuse_unused("with --force, which lets any number leave", "max_vanishing")
    if dry_run:
        refuse_unused("with --dry-run, which encodes nothing", "encoder", options.Running, "strict")
    console.require_file(encoder, "--encoder")
    opened = library.index.Gallery.open(gallery, root=root)
    settings: dict[str, Any] = {
        "labels": labels,
        "boxes": boxed.source,
        "checksum": checksum,
        "keep_missing": keep_missing,
        "max_vanishing": max_vanishing,
        "force": force,
        **vars(running),
        "strict": strict,
    }
    if watch:
        with _ended_by_signals():
            for outcome in library.index.watch_folder(opened, folder, encoder, every=every, settle=settle, **settings):
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
    source: Path = argument(
        ..., "A folder of clip-retrieval or of `index export`, a .csv of Open Metric Learning, hloc's .h5."
    ),
    out_path: Path = option(..., "The gallery's folder.", "--out"),
    kind: Literal["auto", "clip-retrieval", "oml", "hloc"] = option("auto", "Whose layout it is; `auto` looks."),
    embeddings: Path | None = option(None, "With a table: its vectors, a .npy or .pt file with a row per line."),
    metric: options.Metric | None = option(None, "Default: `cosine`, or what an export says."),
    name: str | None = option(None, "What made the vectors. Default: the source's name."),
    encoder: str | None = option(None, "The CHECKPOINT that made them; it is tried on some of the images."),
    label_column: str | None = option(None, "The column with the classes. Default: `label`."),
    root: Path | None = option(None, "The folder that relative image paths refer to."),
    index: options.Index = "auto",
    device: options.Device = "auto",
    overwrite: bool = option(False, "Replace a gallery at --out.", "--overwrite"),
    as_json: options.AsJson = False,
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
    gallery: options.GalleryPath,
    out_path: str = option(..., "A new folder, a file for csv; qdrant also an address.", "--out"),
    to: Literal["clip-retrieval", "lancedb", "qdrant", "datasets", "fiftyone", "csv"] = option(
        "clip-retrieval", "For which tool; `datasets` is Hugging Face's, `csv` holds paths, labels and columns."
    ),
    index: str = option("flat", "`flat`, `auto` (by size), `none`, or a FAISS factory string such as `HNSW32`."),
    rows_per_file: int = option(250_000, "Images in each pair of files.", min=1),
    half: bool = option(False, "Vectors in half precision; reading back is not exact.", "--half"),
    encoder: bool = option(True, "Whether the gallery's encoder goes into the export.", "--encoder/--no-encoder"),
    as_json: options.AsJson = False,
) -> None:
    """Write vectors (NumPy), records (Parquet) and a FAISS index for other tools, in clip-retrieval's layout."""
    from ...index.interop.export import export_gallery
    from ...index.interop.stores import export_rows

    if to != "clip-retrieval":
        refuse_unused(f"by --to {to}", "index", "rows_per_file", "half", "encoder")
        with console.resumable("nothing was written"), console.progress_bar("exporting") as progress:
            told = export_rows(library.index.Gallery.open(gallery), out_path, to=to, progress=progress)
        console.answer(told, f"{counted(told['images'], 'image')} in {out_path}, for {to}", as_json=as_json)
        return
    with console.resumable("nothing was written"), console.progress_bar("exporting") as progress:
        written = export_gallery(
            library.index.Gallery.open(gallery),
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
    source: Path = argument(..., "A copy of a gallery; it is checked first.", metavar="FROM"),
    gallery: Path = argument(..., "The gallery to replace, or a new folder.", metavar="GALLERY"),
    as_json: options.AsJson = False,
) -> None:
    """Replace a gallery by a copy in one step, or copy one to a new folder; readers and servers go on meanwhile.

    Copying files over a gallery that is in use breaks it for whoever reads it; this does not.
    """
    library.index.restore_gallery(source, gallery)
    images = len(library.index.Gallery.open(gallery, verify=False))
    content = {"gallery": str(gallery), "from": str(source), "images": images}
    console.answer(content, f"{counted(images, 'image')} in {gallery}, as in {source}", as_json=as_json)
