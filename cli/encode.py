"""`distcam encode`: feature maps' pooled vectors and embeddings of many images, in one HDF5 file."""

from __future__ import annotations

from pathlib import Path

from ..remarks import counted
from . import console, library
from .command import Commands
from .options import AsJson, EncoderName, Images, Labels, Loading, ReadsImages, Running, StoreMaps, Strict, option

app = Commands()
EXAMPLE = "Example: `distcam encode photos/ --out photos.h5 --encoder resnet50 --weights imagenet`"


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def encode(
    images: Images,
    *,
    out_file: Path = option(..., "The HDF5 file to write; a stopped run resumes.", "--out"),
    encoder: EncoderName = "resnet50",
    loading: Loading,
    labels: Labels = None,
    store_maps: StoreMaps = False,
    running: Running,
    overwrite: bool = option(False, "Replace the file at --out.", "--overwrite"),
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Encode images into one HDF5 file: embeddings, pooled vectors, paths, labels and content hashes."""
    loading.require(encoder)
    console.require_images([images])
    with console.resumable(), console.progress_bar("encoding") as progress:
        loaded = loading.load(encoder)
        report = library.index.encode_to_file(
            images,
            loaded,
            out_file,
            labels=labels,
            store_maps=store_maps,
            **vars(running),
            strict=strict,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        console.print_json(report.to_dict())
        return
    seen_as = f"{loaded.transform.summary}, {report.precision}"
    console.say(f"{counted(report.added, 'image')} encoded into {out_file} by {loaded.short_name}, {seen_as}")
    console.report_skipped(report.skipped)
