"""`distcam benchmark explanations`: which map of this encoder depends on the match, and points to the right object."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..errors import InputError
from ..metrics import Metric
from . import library
from .command import Commands, refuse_unused
from .console import answer, progress_bar, require_images
from .options import AsJson, Device, EncoderName, Loading, ReadsImages, Strict, argument, option

EXAMPLE = "Example: `distcam benchmark explanations photos.gallery --html explanations.html`"

app = Commands(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure what an encoder can do on your own images."""


@app.command(name="explanations", cls=ReadsImages, epilog=EXAMPLE)
def explanations(
    subject: Path = argument(..., "A gallery, or labelled images (class = sub-folder).", metavar="GALLERY|FOLDER"),
    *,
    queries: str | None = option(
        None, "Labelled images to ask with. Default: some of the gallery's or folder's, held out."
    ),
    boxes: Path | None = option(
        None, "Boxes around the objects of --queries, see `localize`: adds V2, peak and energy."
    ),
    encoder: EncoderName = "resnet50",
    loading: Loading,
    metric: Metric = option("cosine", "How embeddings are compared."),
    reference: Literal["prototypes", "nearest"] = option(
        "prototypes", "Compare with class prototypes, or with the nearest image."
    ),
    methods: str | None = option(None, "Separated by commas. Default: all weightings, CAM, and torchcam if installed."),
    composites: int = option(40, "How many of two photographs, and how many of four.", min=2),
    faithful: int = option(8, "Images for insertion and deletion, 22 passes for each method; 0: none.", min=0),
    html: Path | None = option(None, "Also write the table and some composites as one HTML FILE."),
    device: Device = "auto",
    seed: int = option(0, "Of the draws and the intervals.", min=0),
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Compare ways of explaining a match on your own images, without any box.

    Photographs of two and of four classes become one image, and every map is asked for each of them: it should be
    higher on the photograph asked for. `index calibrate --explanations` keeps the best weighting in a gallery.
    """
    from dataclasses import replace

    from ..images.boxes.formats import read_boxes
    from ..images.boxes.joined import boxed_images
    from ..index.storage.manifest import MANIFEST_NAME
    from ..retrieval.localisation.explanations import benchmark_explanations, from_gallery, from_images, gallery_encoder
    from ..retrieval.localisation.maps import FLOORS

    chosen = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    if boxes is not None and queries is None:
        raise InputError("--boxes are around the objects of --queries; add them")
    require_images([subject, *([queries] if queries else [])] if not (subject / MANIFEST_NAME).is_file() else [])
    given = None if queries is None else library.images.list_images(queries)
    classifier = None
    if (subject / MANIFEST_NAME).is_file():
        refuse_unused("with a gallery, which has them", "encoder", Loading, "metric")
        opened = library.index.Gallery.open(subject)
        loaded = gallery_encoder(opened)
        asked, references = from_gallery(opened, given, 2 * composites, seed=seed)
    else:
        loading.require(encoder)
        loaded = loading.load(encoder)
        if loading.weights is not None:
            classifier = library.retrieval.read_classifier(encoder, loading.weights, pooled_dim=loaded.pooled_dim)
        with progress_bar("references") as progress:
            asked, references = from_images(
                library.images.list_images(subject),
                given,
                library.encoders.Inference(loaded, device=device),
                2 * composites,
                metric=metric,
                seed=seed,
                strict=strict,
                progress=progress,
            )
    with progress_bar("composites") as progress:
        table = benchmark_explanations(
            asked,
            loaded,
            references,
            composites=composites,
            methods=chosen,
            reference=reference,
            classifier=classifier,
            faithful=faithful,
            device=device,
            seed=seed,
            strict=strict,
            progress=progress,
        )
    if boxes is not None and given is not None:
        with progress_bar("images with boxes") as progress:
            boxed = library.retrieval.localise(
                boxed_images(given, read_boxes(boxes)),
                loaded,
                references,
                methods=[name for name in table.values if name not in FLOORS],
                reference=reference,
                classifier=classifier if "cam" in table.values else None,
                device=device,
                seed=seed,
                strict=strict,
                progress=progress,
            )
        table = replace(table, boxes=boxed)
    if html is not None:
        table.save(html)
    best, lead = table.best()
    said = "nothing leads the default" if lead is None else f"{best} leads the default by {lead} in the right of two"
    answer(table.to_dict(), f"{table.table()}\n\n{said}", as_json=as_json, written=[html])
