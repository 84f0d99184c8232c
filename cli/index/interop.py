"""`distcam index import`, `export` and `restore`: vectors from other tools, and for them; copies of galleries."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from ...remarks import counted
from ..command import refuse_unused
from ..console import err, note, print_json, progress_bar, resumable, say
from ..options import AsJson, Device, GalleryPath, Metric

IMPORT_EXAMPLE = "Example: `distcam index import laion/ --out laion.gallery`, or `table.csv --embeddings vectors.npy`"
EXPORT_EXAMPLE = "Example: `distcam index export photos.gallery --out photos.export --index HNSW32`"
RESTORE_EXAMPLE = "Example: `distcam index restore backup/photos.gallery photos.gallery`"


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
    index: Annotated[str, typer.Option(help="`auto` (by size), `flat` (exact), or a FAISS factory string.")] = "auto",
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
    with resumable("the same command starts the import anew"), progress_bar("importing") as progress:
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
        print_json({**gallery.info(), "skipped": [asdict(item) for item in gallery.skipped]})
        return
    say(f"{counted(len(gallery), 'image')} in {out_path}, {counted(len(gallery.skipped), 'row')} skipped")
    for item in gallery.skipped[:10]:
        err.print(f"  {item.path}: {item.reason}", soft_wrap=True)
    if "imported" in gallery.manifest.encoder.description:
        note(
            "which encoder made these vectors is not known, so stored images and vectors can be queried, other "
            "images cannot; if you know it, import with --encoder CHECKPOINT"
        )


def export(
    gallery: GalleryPath,
    out_path: Annotated[Path, typer.Option("--out", help="A new folder.")],
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

    with resumable("nothing was written"), progress_bar("exporting") as progress:
        written = export_gallery(
            Gallery.open(gallery),
            out_path,
            index=index,
            rows_per_file=rows_per_file,
            half=half,
            encoder=encoder,
            progress=progress,
        )
    if as_json:
        print_json(asdict(written))
        return
    kept = "with" if written.encoder else "without"
    size = written.bytes / 2**20
    say(f"{written.images} images in {out_path}, {kept} their encoder: {written.files} files, {size:.1f} MiB")


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
    if as_json:
        print_json({"gallery": str(gallery), "from": str(source), "images": images})
        return
    say(f"{counted(images, 'image')} in {gallery}, as in {source}")
