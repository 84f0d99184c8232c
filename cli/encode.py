"""`distcam encode`: feature maps' pooled vectors and embeddings of many images, in one HDF5 file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..remarks import counted
from . import console, options
from .command import Commands

app = Commands()
EXAMPLE = "Example: `distcam encode photos/ --out photos.h5 --encoder resnet50 --weights imagenet`"


@app.command(cls=options.ReadsImages, epilog=EXAMPLE)
def encode(
    images: options.Images,
    out_file: Annotated[Path, typer.Option("--out", help="The HDF5 file to write; a stopped run resumes.")],
    encoder: options.EncoderName = "resnet50",
    weights: options.Weights = None,
    layer: options.Layer = None,
    readout: options.Readout = None,
    labels: options.Labels = None,
    fit: options.Fit = None,
    image_size: options.ImageSize = None,
    store_maps: options.StoreMaps = False,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    device: options.Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at --out.")] = False,
    strict: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Encode images into one HDF5 file: embeddings, pooled vectors, paths, labels and content hashes."""
    console.require_encoder(encoder, weights, layer)
    console.require_images([images])
    from ..index import encode_to_file

    with console.resumable(), console.progress_bar("encoding") as progress:
        loaded = console.load_encoder(encoder, weights, fit=fit, size=image_size, layer=layer, readout=readout)
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
        console.print_json(report.to_dict())
        return
    seen_as = f"{loaded.transform.summary}, {report.precision}"
    console.say(f"{counted(report.added, 'image')} encoded into {out_file} by {loaded.short_name}, {seen_as}")
    console.report_skipped(report.skipped)
