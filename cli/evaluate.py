"""`distcam evaluate`: R@k, MAP@R, R-precision, mAP and NMI of an encoder, on a benchmark or on any labelled images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError
from ..files import write_text
from .command import Commands, refuse_unused
from .console import answer, load_encoder, note_unfinished_build, progress_bar, require_encoder, resumable
from .options import AsJson, BatchSize, Device, Fit, ImageSize, Layer, Metric, Readout, ReadsImages, Weights, Workers

if TYPE_CHECKING:
    from ..images import Dataset

app = Commands()
EXAMPLE = "Example: `distcam evaluate CUB_200_2011/ --encoder resnet50 --weights imagenet`"
LayoutName = Literal["auto", "cub", "cars", "sop", "inshop", "dogs", "folder", "csv"]
Precision = Literal["fp32", "bf16", "auto"]


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def evaluate(
    dataset: Annotated[
        Path,
        typer.Argument(
            help="An unpacked benchmark, a folder of classes, a CSV (path,label[,split,is_query,is_gallery]), a "
            "gallery, or a file written by `distcam encode`."
        ),
    ],
    encoder: Annotated[
        str | None,
        typer.Option(help="A torchvision architecture, `resnet12`, `conv4`, or a CHECKPOINT. Galleries bring theirs."),
    ] = None,
    weights: Weights = None,
    layer: Layer = None,
    readout: Readout = None,
    protocol: Annotated[
        LayoutName, typer.Option(help="The benchmark; `auto` knows CUB, Cars, SOP, In-Shop and Dogs by their files.")
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="Default: `test`, or the only one.")] = None,
    metric: Annotated[
        Metric | None, typer.Option(help="What ranks. Default: the gallery's metric, else cosine.")
    ] = None,
    recall_at: Annotated[
        str | None, typer.Option(help="The k of R@k, e.g. `1,5,10`. Default: as published, else 1,2,4,8.")
    ] = None,
    nmi: Annotated[
        bool, typer.Option("--nmi/--no-nmi", help="Cluster for NMI, which takes longest by far with many classes.")
    ] = True,
    gallery: Annotated[
        Path | None, typer.Option(help="Search this gallery for DATASET's images, with the gallery's encoder.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keep the encodings in this HDF5 file, or use those that it holds.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the JSON, with every query's values, to this file.")
    ] = None,
    fit: Fit = None,
    image_size: ImageSize = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Of the arithmetic; auto: bf16 where that is faster. fp32 repeats across machines. A --gallery "
            "has its own."
        ),
    ] = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop if the copy is not the official one, or an image cannot be read.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the clustering and the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Evaluate an encoder on retrieval; every number comes with its error and its protocol."""
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no such folder")
    chosen: dict[str, Any] = {"clusters": nmi, "seed": seed, **({} if metric is None else {"metric": metric})}
    if recall_at is not None:
        try:
            chosen["recall_at"] = tuple(int(part) for part in recall_at.split(","))
        except ValueError:
            expected = "expected numbers separated by commas, such as 1,5,10"
            raise InputError(f"--recall-at: {expected}; got {recall_at!r}") from None
    from ..index.storage.manifest import MANIFEST_NAME

    is_file = dataset.is_file() and dataset.suffix.lower() in (".h5", ".hdf5")
    with resumable():
        if is_file or (dataset / MANIFEST_NAME).is_file():
            refuse_unused(
                f"as {dataset} is encoded already", "encoder", "weights", "layer", "gallery", "cache", "split",
                "readout", "protocol", "fit", "image_size", "precision", "batch_size", "workers", "device", "strict",
                "max_pixels",
            )  # fmt: skip
            from ..index import Gallery, read_encodings
            from ..retrieval import Protocol, evaluate_encodings, evaluate_gallery

            with progress_bar("ranking") as progress:
                if dataset.is_dir():
                    asked = Gallery.open(dataset)
                    note_unfinished_build(asked)
                    own = Protocol(**({"metric": asked.metric} | chosen))
                    result = evaluate_gallery(asked, protocol=own, progress=progress)
                else:
                    encodings = read_encodings(dataset)
                    result = evaluate_encodings(encodings, protocol=Protocol(**chosen), progress=progress)
        else:
            if gallery is not None:
                refuse_unused("with --gallery, which has its own", "precision")
                if encoder is None:
                    refuse_unused(
                        "by the encoder that --gallery brings", "weights", "layer", "readout", "fit", "image_size"
                    )
            images = _load(dataset, protocol, split=split, strict=strict)
            from ..index import Gallery

            searched = None if gallery is None else Gallery.open(gallery)
            if encoder is None and searched is None:
                raise InputError("say what to evaluate: --encoder NAME --weights FILE, or --encoder CHECKPOINT")
            if searched is not None:
                note_unfinished_build(searched)
                if encoder is None and searched.encoder_path is None:
                    raise InputError(f"{searched.folder} keeps no encoder; pass --encoder CHECKPOINT")
                encoder = encoder or str(searched.encoder_path)
            assert encoder is not None
            require_encoder(encoder, weights, layer)
            from ..retrieval import EncodingSettings, default_protocol, evaluate_dataset

            loaded = load_encoder(encoder, weights, fit=fit, size=image_size, layer=layer, readout=readout)
            with progress_bar("encoding") as encoding, progress_bar("ranking") as ranking:
                result = evaluate_dataset(
                    images,
                    loaded,
                    gallery=searched,
                    protocol=dataclasses.replace(default_protocol(images, searched), **chosen),
                    cache=cache,
                    settings=EncodingSettings(batch_size, workers, device, precision, strict),
                    progress=encoding,
                    ranking_progress=ranking,
                )
    if out is not None:
        write_text(out, json.dumps(result.to_dict(per_query=True), indent=2) + "\n")
    answer(result.to_dict(), result.table(), as_json=as_json)


def _load(path: Path, layout: str, *, split: str | None, strict: bool) -> Dataset:
    """The split asked for, else the only one or `test`; other splits are not compared with the official counts."""
    from ..datasets.retrieval import listed_splits, named_split
    from ..images import load_dataset

    if split is None:
        listed, problems = listed_splits(path, layout=layout)
        if len(listed) == 1:
            return load_dataset(path, layout=layout, strict=strict)
        split = named_split("test", listed)
        if split is None:
            also = "".join(f"; {problem}" for problem in problems[:1])
            raise InputError(f"{path} has the splits {', '.join(listed)}; choose one with --split{also}")
    return load_dataset(path, layout=layout, split=split, strict=strict)
