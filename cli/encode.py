"""`distcam encode`: feature maps' pooled vectors and embeddings of many images, in one HDF5 file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..remarks import counted
from .command import Commands
from .console import (
    load_encoder,
    print_json,
    progress_bar,
    report_skipped,
    require_encoder,
    require_images,
    resumable,
    say,
)
from .options import (
    AsJson,
    BatchSize,
    Device,
    EncoderName,
    Fit,
    Images,
    ImageSize,
    Labels,
    Layer,
    Readout,
    ReadsImages,
    StoreMaps,
    Strict,
    Weights,
    Workers,
)

app = Commands()
EXAMPLE = "Example: `distcam encode photos/ --out photos.h5 --encoder resnet50 --weights imagenet`"


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def encode(
    images: Images,
    out_file: Annotated[Path, typer.Option("--out", help="The HDF5 file to write; a stopped run resumes.")],
    encoder: EncoderName = "resnet50",
    weights: Weights = None,
    layer: Layer = None,
    readout: Readout = None,
    labels: Labels = None,
    fit: Fit = None,
    image_size: ImageSize = None,
    store_maps: StoreMaps = False,
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at --out.")] = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Encode images into one HDF5 file: embeddings, pooled vectors, paths, labels and content hashes."""
    require_encoder(encoder, weights, layer)
    require_images([images])
    from ..index import encode_to_file

    with resumable(), progress_bar("encoding") as progress:
        loaded = load_encoder(encoder, weights, fit=fit, size=image_size, layer=layer, readout=readout)
        report = encode_to_file(
            images,
            loaded,
            out_file,
            labels=labels,
            store_maps=store_maps,
            batch_size=batch_size,
            workers=workers,
            device=device,
            strict=strict,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json(report.to_dict())
        return
    seen_as = f"{loaded.transform.summary}, {report.precision}"
    say(f"{counted(report.added, 'image')} encoded into {out_file} by {loaded.short_name}, {seen_as}")
    report_skipped(report.skipped)
