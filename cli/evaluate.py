"""`distcam evaluate`: R@k, MAP@R, R-precision, mAP and NMI of an encoder, on a benchmark or on any labelled images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError
from ..files import write_text
from . import library
from .command import Commands, refuse_unused
from .console import answer, note_unfinished_build, progress_bar, resumable
from .options import AsJson, Loading, Metric, ReadsImages, Running, argument, option

if TYPE_CHECKING:
    from ..images import Dataset

app = Commands()
EXAMPLE = "Example: `distcam evaluate CUB_200_2011/ --encoder resnet50 --weights imagenet`"
LayoutName = Literal["auto", "cub", "cars", "sop", "inshop", "dogs", "ilsvrc", "cub-classification", "folder", "csv"]
Precision = Literal["fp32", "bf16", "auto"]


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def evaluate(
    dataset: Path = argument(
        ...,
        "An unpacked benchmark, a folder of classes, a CSV (path,label[,split,is_query,is_gallery]), a gallery, or a "
        "file written by `distcam encode`.",
    ),
    *,
    encoder: str | None = option(
        None, "A torchvision architecture, `resnet12`, `conv4`, or a CHECKPOINT. Galleries bring theirs."
    ),
    loading: Loading,
    protocol: LayoutName = option(
        "auto", "The benchmark; `auto` knows CUB, Cars, SOP, In-Shop and Dogs by their files."
    ),
    split: str | None = option(None, "Default: `test`, or the only one."),
    metric: Metric | None = option(None, "What ranks. Default: the gallery's metric, else cosine."),
    recall_at: str | None = option(None, "The k of R@k, e.g. `1,5,10`. Default: as published, else 1,2,4,8."),
    nmi: bool = option(True, "Cluster for NMI, which takes longest by far with many classes.", "--nmi/--no-nmi"),
    gallery: Path | None = option(None, "Search this gallery for DATASET's images, with the gallery's encoder."),
    cache: Path | None = option(None, "Keep the encodings in this HDF5 file, or use those that it holds."),
    out: Path | None = option(None, "Also write the JSON, with every query's values, to this file."),
    precision: Precision = option(
        "auto",
        "Of the arithmetic; auto: bf16 where that is faster. fp32 repeats across machines. A --gallery has its own.",
    ),
    running: Running,
    strict: bool = option(False, "Stop if the copy is not the official one, or an image cannot be read.", "--strict"),
    seed: int = option(0, "Of the clustering and the bootstrap.", min=0),
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
                f"as {dataset} is encoded already", "encoder", Loading, "protocol", "split", "gallery", "cache",
                "precision", Running, "strict", "max_pixels",
            )  # fmt: skip
            with progress_bar("ranking") as progress:
                if dataset.is_dir():
                    asked = library.index.Gallery.open(dataset)
                    note_unfinished_build(asked)
                    own = library.retrieval.RetrievalProtocol(**({"metric": asked.metric} | chosen))
                    result = library.retrieval.evaluate_gallery(asked, protocol=own, progress=progress)
                else:
                    encodings = library.index.read_encodings(dataset)
                    result = library.retrieval.evaluate_encodings(
                        encodings, protocol=library.retrieval.RetrievalProtocol(**chosen), progress=progress
                    )
        else:
            if gallery is not None:
                refuse_unused("with --gallery, which has its own", "precision")
                if encoder is None:
                    refuse_unused("by the encoder that --gallery brings", Loading)
            images = _load(dataset, protocol, split=split, strict=strict)
            searched = None if gallery is None else library.index.Gallery.open(gallery)
            if encoder is None and searched is None:
                raise InputError("say what to evaluate: --encoder NAME --weights FILE, or --encoder CHECKPOINT")
            if searched is not None:
                note_unfinished_build(searched)
                if encoder is None and searched.encoder_path is None:
                    raise InputError(f"{searched.folder} keeps no encoder; pass --encoder CHECKPOINT")
                encoder = encoder or str(searched.encoder_path)
            assert encoder is not None
            loading.require(encoder)
            loaded = loading.load(encoder)
            with progress_bar("encoding") as encoding, progress_bar("ranking") as ranking:
                result = library.retrieval.evaluate_dataset(
                    images,
                    loaded,
                    gallery=searched,
                    protocol=dataclasses.replace(library.retrieval.default_protocol(images, searched), **chosen),
                    cache=cache,
                    settings=library.retrieval.EncodingSettings(**vars(running), precision=precision, strict=strict),
                    progress=encoding,
                    ranking_progress=ranking,
                )
    if out is not None:
        write_text(out, json.dumps(result.to_dict(per_query=True), indent=2) + "\n")
    answer(result.to_dict(), result.table(), as_json=as_json)


def _load(path: Path, layout: str, *, split: str | None, strict: bool) -> Dataset:
    """The split asked for, else the only one or `test`; other splits are not compared with the official counts."""
    from ..datasets.retrieval import listed_splits, named_split
    from ..images.queries import passing_folder

    keep = passing_folder()
    if split is None:
        listed, problems = listed_splits(path, layout=layout, keep=keep)
        if len(listed) == 1:
            return library.images.load_dataset(path, layout=layout, strict=strict, keep=keep)
        split = named_split("test", listed)
        if split is None:
            also = "".join(f"; {problem}" for problem in problems[:1])
            raise InputError(f"{path} has the splits {', '.join(listed)}; choose one with --split{also}")
    return library.images.load_dataset(path, layout=layout, split=split, strict=strict, keep=keep)
