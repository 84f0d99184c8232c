"""`distcam localize`: do maps that were learnt without boxes find the objects?"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError
from ..files import write_text
from ..remarks import remark
from . import library
from .command import Commands, refuse_unused
from .console import answer, progress_bar, require_images
from .options import AsJson, Device, EncoderName, Images, Loading, Metric, ReadsImages, Running, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..images.boxes.joined import BoxedImage
    from ..images.masks import MaskFolder

app = Commands()
EXAMPLE = (
    "Example: `distcam localize photos/query --boxes photos/boxes.csv --references photos/gallery "
    "--encoder mobilenet_v2 --weights imagenet --fit squash`"
)


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def localize(
    images: Images,
    *,
    boxes: Path = option(
        ..., "A CSV (path,x1,y1,x2,y2[,label]), the folder of CUB-200-2011, or a folder of ILSVRC's XML."
    ),
    references: str = option(
        ...,
        "Labelled images to compare with: a folder of class folders, a CSV with path,label, or a GALLERY of the same "
        "encoder.",
    ),
    encoder: EncoderName = "resnet50",
    loading: Loading,
    reference: Literal["prototypes", "nearest"] = option(
        "prototypes", "Compare with class prototypes, or with the nearest image."
    ),
    methods: str | None = option(
        None,
        "Separated by commas, e.g. `cam,dist,dist@tau=0.1,hirescam`. The class-agnostic map, a random one, a centred "
        "box, and the whole image are always there.",
    ),
    labels: str | None = option(None, "`folder`, `none`, a FILE.csv (path,label), or ILSVRC's list of synsets (.txt)."),
    masks: Path | None = option(None, "A FOLDER with a mask for each image (same path, .png, not black): adds PxAP."),
    reference_masks: Path | None = option(
        None, "A FOLDER with masks of the references (same path, .png): prototypes of objects, not of images."
    ),
    composites: int = option(
        0,
        "Of so many images of two photographs, and of four: does a map point to the one that it is asked for? "
        "2 or more; 0: none.",
    ),
    split: Literal["train", "test", "all"] = option("test", "Which part of CUB-200-2011."),
    metric: Metric = option("cosine", "How embeddings are compared."),
    batch_size: int | None = Running.batch_size,
    device: Device = "auto",
    seed: int = option(0, "Of the random map, the other class, and the intervals.", min=0),
    strict: bool = option(False, "Stop at what would be left out: an image, a box, a mask, a class.", "--strict"),
    out_file: Path | None = option(None, "Also write the table: FILE.csv, FILE.json, or FILE.md.", "--out"),
    as_json: AsJson = False,
) -> None:
    """Measure weakly supervised localisation: box errors, pointing, energy, and whether a map knows the class."""
    if out_file is not None and out_file.suffix.lower() not in (".csv", ".json", ".md"):
        raise InputError(f"--out writes FILE.csv, FILE.json or FILE.md, not {out_file.name}")
    if not (boxes / "bounding_boxes.txt").is_file():
        refuse_unused("by boxes that are not CUB's", "split")
    if not boxes.exists():
        raise InputError(f"{boxes}: no such file or folder of boxes")
    loading.require(encoder)
    from ..index.storage.manifest import MANIFEST_NAME

    is_gallery = (Path(references) / MANIFEST_NAME).is_file()
    if is_gallery:
        refuse_unused("by a gallery, which has its own", "metric", "reference_masks")
    require_images([images] if is_gallery else [images, references])
    from ..images.boxes.formats import read_boxes, read_synsets
    from ..images.boxes.joined import boxed_images
    from ..images.listing import quiet_listing
    from ..images.masks import MaskFolder

    synsets = labels if labels is not None and labels.lower().endswith(".txt") else None
    is_cut = Path(images).exists() and boxes.samefile(images)  # the boxes in a table of images are those asked for
    listing = quiet_listing(images, labels if synsets is None else None, needs_no_cut=is_cut)
    for sentence in listing.remarks:
        remark(sentence)
    known_classes = None if synsets is None else read_synsets(synsets)
    boxed = boxed_images(listing, read_boxes(boxes, split=split), labels=known_classes)
    found = None if masks is None else MaskFolder.given(masks)
    if found is not None:
        found.join(image.path for image in boxed).tell(what="a mask", lines=f"masks in {masks}")
    loaded = loading.load(encoder)
    classifier = library.retrieval.read_classifier(encoder, loading.weights, pooled_dim=loaded.pooled_dim)
    chosen = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    keep = reference == "nearest" or chosen is None or "cam_probe" in chosen
    if is_gallery:
        with library.index.Gallery.open(references) as gallery:
            known = library.retrieval.References.of_gallery(gallery, loaded, keep_images=keep)
    else:
        with progress_bar("references") as progress:
            inference = library.encoders.Inference(loaded, device=device, batch_size=batch_size)
            pooled = None if reference_masks is None else MaskFolder.given(reference_masks)
            known = library.retrieval.References.encode(
                library.images.list_images(references),
                inference,
                metric=metric,
                masks=pooled,
                keep_images=keep,
                strict=strict,
                progress=progress,
            )
    with progress_bar("images with boxes") as progress:
        table = library.retrieval.localise(
            boxed,
            loaded,
            known,
            methods=chosen,
            reference=reference,
            classifier=classifier,
            masks=None if found is None else partial(_mask_of, found),
            composites=composites,
            device=device,
            batch_size=batch_size,
            seed=seed,
            strict=strict,
            progress=progress,
        )
    content = table.to_dict()
    if out_file is not None and out_file.suffix.lower() != ".csv":
        is_text = out_file.suffix.lower() == ".md"
        write_text(out_file, (table.table() if is_text else json.dumps(content, indent=2)) + "\n")
    elif out_file is not None:
        _write_table(content["rows"], out_file)
    end = "" if out_file is None else f"\n\nwritten: {out_file}"
    answer(content, table.table() + end, as_json=as_json)


def _mask_of(masks: MaskFolder, image: BoxedImage) -> NDArray[np.bool_]:
    """The object's pixels of an image."""
    from ..images.masks import read_mask

    file = masks.file(image.path)
    if not file.is_file():
        raise InputError(f"expected at {file}, where none is")
    mask = read_mask(file)
    if not mask.any():
        raise InputError(f"{file} is all background")
    return mask


def _write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """CSV with a line for each method; an estimate becomes three columns, its own name for the value."""
    lines = StringIO()
    flat: list[dict[str, Any]] = [{} for _ in rows]
    for own, row in zip(flat, rows, strict=True):
        for key, value in row.items():
            parts = {"value": value} if not isinstance(value, dict) else value
            own |= {key if part == "value" else f"{key}_{part}": number for part, number in parts.items()}
    writer = csv.DictWriter(lines, list(dict.fromkeys(key for own in flat for key in own)))
    writer.writeheader()
    writer.writerows(flat)
    write_text(path, lines.getvalue())
