"""`distcam localize`: do maps that were learnt without boxes find the objects?"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError
from ..files import write_text
from ..remarks import remark
from .command import Commands, refuse_unused
from .console import load_encoder, print_json, progress_bar, require_encoder, require_images, say
from .options import (
    AsJson,
    BatchSize,
    Device,
    EncoderName,
    Fit,
    Images,
    ImageSize,
    Layer,
    Metric,
    Readout,
    ReadsImages,
    Weights,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..images.boxes.joined import BoxedImage, BoxedImages
    from ..retrieval import LocalisationTable

app = Commands()
EXAMPLE = (
    "Example: `distcam localize photos/query --boxes photos/boxes.csv --references photos/gallery "
    "--encoder mobilenet_v2 --weights imagenet --fit squash`"
)


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def localize(
    images: Images,
    boxes: Annotated[
        Path,
        typer.Option(help="A CSV (path,x1,y1,x2,y2[,label]), the folder of CUB-200-2011, or a folder of ILSVRC's XML."),
    ],
    references: Annotated[
        str, typer.Option(help="Labelled images to compare with: a folder of class folders, or a CSV with path,label.")
    ],
    encoder: EncoderName = "resnet50",
    weights: Weights = None,
    reference: Annotated[
        Literal["prototypes", "nearest"], typer.Option(help="Compare with class prototypes, or with the nearest image.")
    ] = "prototypes",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas, e.g. `cam,dist,dist@tau=0.1,hirescam`. The class-agnostic map, a random one, a "
            "centred box, and the whole image are always there."
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="`folder`, `none`, a FILE.csv (path,label), or ILSVRC's list of synsets (.txt).")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="A FOLDER with a mask for each image (same path, .png, not black): adds PxAP.")
    ] = None,
    reference_masks: Annotated[
        Path | None,
        typer.Option(
            help="A FOLDER with masks of the references (same path, .png): prototypes of objects, not of images."
        ),
    ] = None,
    split: Annotated[Literal["train", "test", "all"], typer.Option(help="Which part of CUB-200-2011.")] = "test",
    layer: Layer = None,
    readout: Readout = None,
    fit: Fit = None,
    image_size: ImageSize = None,
    metric: Annotated[Metric, typer.Option(help="How embeddings are compared.")] = "cosine",
    batch_size: BatchSize = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of the random map, the other class, and the intervals.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at what would be left out: an image, a box, a mask, a class.")
    ] = False,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Also write the table: FILE.csv, FILE.json, or FILE.md.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure weakly supervised localisation: box errors, pointing, energy, and whether a map knows the class."""
    if out_file is not None and out_file.suffix.lower() not in (".csv", ".json", ".md"):
        raise InputError(f"--out writes FILE.csv, FILE.json or FILE.md, not {out_file.name}")
    if not (boxes / "bounding_boxes.txt").is_file():
        refuse_unused("by boxes that are not CUB's", "split")
    if not boxes.exists():
        raise InputError(f"{boxes}: no such file or folder of boxes")
    require_encoder(encoder, weights, layer)
    require_images([images, references])
    from ..encoders import Inference
    from ..images import list_images
    from ..images.boxes.formats import read_boxes, read_synsets
    from ..images.boxes.joined import boxed_images
    from ..images.listing import quiet_listing
    from ..images.masks import MaskFolder
    from ..retrieval import References, localise, read_classifier

    synsets = labels if labels is not None and labels.lower().endswith(".txt") else None
    is_cut = Path(images).exists() and boxes.samefile(images)  # the boxes in a table of images are those asked for
    listing = quiet_listing(images, labels if synsets is None else None, needs_no_cut=is_cut)
    for sentence in listing.remarks:
        remark(sentence)
    known_classes = None if synsets is None else read_synsets(synsets)
    boxed = boxed_images(listing, read_boxes(boxes, split=split), labels=known_classes)
    reader = None if masks is None else _mask_reader(masks, boxed)
    loaded = load_encoder(encoder, weights, fit=fit, size=image_size, layer=layer, readout=readout)
    classifier = None if weights is None else read_classifier(encoder, weights, pooled_dim=loaded.pooled_dim)
    with progress_bar("references") as progress:
        inference = Inference(loaded, device=device, batch_size=batch_size)
        pooled = None if reference_masks is None else MaskFolder.given(reference_masks)
        known = References.encode(
            list_images(references), inference, metric=metric, masks=pooled, strict=strict, progress=progress
        )
    with progress_bar("images with boxes") as progress:
        table = localise(
            boxed,
            loaded,
            known,
            methods=None if methods is None else [name.strip() for name in methods.split(",") if name.strip()],
            reference=reference,
            classifier=classifier,
            masks=reader,
            device=device,
            batch_size=batch_size,
            seed=seed,
            strict=strict,
            progress=progress,
        )
    if out_file is not None:
        _write(table, out_file)
    if as_json:
        print_json(table.to_dict())
        return
    say(table.table())
    if out_file is not None:
        say(f"\nwritten: {out_file}")


def _mask_reader(folder: Path, images: BoxedImages) -> Callable[[BoxedImage], NDArray[np.bool_]]:
    """A reader of the object's pixels of an image; says how many images have a mask."""
    from ..images.masks import MaskFolder, read_mask

    masks = MaskFolder.given(folder)
    masks.join(image.path for image in images).tell(what="a mask", lines=f"masks in {folder}")

    def read(image: BoxedImage) -> NDArray[np.bool_]:
        file = masks.file(image.path)
        if not file.is_file():
            raise InputError(f"expected at {file}, where none is")
        mask = read_mask(file)
        if not mask.any():
            raise InputError(f"{file} is all background")
        return mask

    return read


def _write(table: LocalisationTable, path: Path) -> None:
    """The table as CSV (a line for each method), JSON, or Markdown."""
    content = table.to_dict()
    if path.suffix.lower() == ".md":
        text = f"{table.table()}\n"
    elif path.suffix.lower() == ".json":
        text = json.dumps(content, indent=2) + "\n"
    else:
        rows = []
        for row in content["rows"]:  # an estimate becomes three columns, its own name for the value
            flat: dict[str, Any] = {}
            for key, value in row.items():
                if isinstance(value, dict):
                    flat |= {key: value["value"], f"{key}_low": value["low"], f"{key}_high": value["high"]}
                else:
                    flat[key] = value
            rows.append(flat)
        lines = StringIO()
        writer = csv.DictWriter(lines, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        text = lines.getvalue()
    write_text(path, text)
