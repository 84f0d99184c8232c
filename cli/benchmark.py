"""`distcam benchmark explanations`: which map of this encoder depends on the match, and points to the right object."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InputError
from ..metrics import Metric
from .command import Commands, refuse_unused
from .console import load_encoder, print_json, progress_bar, require_encoder, require_images, say
from .options import AsJson, Device, EncoderName, Fit, ImageSize, Layer, Readout, ReadsImages, Strict, Weights

EXAMPLE = "Example: `distcam benchmark explanations photos.gallery --html explanations.html`"

app = Commands(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure what an encoder can do on your own images."""


@app.command(name="explanations", cls=ReadsImages, epilog=EXAMPLE)
def explanations(
    subject: Annotated[
        Path, typer.Argument(metavar="GALLERY|FOLDER", help="A gallery, or labelled images (class = sub-folder).")
    ],
    queries: Annotated[
        str | None,
        typer.Option(help="Labelled images to ask with. Default: some of the gallery's or folder's, held out."),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(help="Boxes around the objects of --queries, see `localize`: adds V2, peak and energy."),
    ] = None,
    encoder: EncoderName = "resnet50",
    weights: Weights = None,
    layer: Layer = None,
    readout: Readout = None,
    fit: Fit = None,
    image_size: ImageSize = None,
    metric: Annotated[Metric, typer.Option(help="How embeddings are compared.")] = "cosine",
    reference: Annotated[
        Literal["prototypes", "nearest"], typer.Option(help="Compare with class prototypes, or with the nearest image.")
    ] = "prototypes",
    methods: Annotated[
        str | None, typer.Option(help="Separated by commas. Default: all weightings, CAM, and torchcam if installed.")
    ] = None,
    composites: Annotated[int, typer.Option(min=2, help="How many of two photographs, and how many of four.")] = 40,
    faithful: Annotated[
        int, typer.Option(min=0, help="Images for insertion and deletion, 22 passes for each method; 0: none.")
    ] = 8,
    html: Annotated[
        Path | None, typer.Option(help="Also write the table and some composites as one HTML FILE.")
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of the draws and the intervals.")] = 0,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Compare ways of explaining a match on your own images, without any box.

    Photographs of two and of four classes become one image, and every map is asked for each of them: it should be
    higher on the photograph asked for. `index calibrate --explanations` keeps the best weighting in a gallery.
    """
    from dataclasses import replace

    from ..encoders import Inference
    from ..images import list_images
    from ..images.boxes.formats import read_boxes
    from ..images.boxes.joined import boxed_images
    from ..index import Gallery
    from ..index.storage.manifest import MANIFEST_NAME
    from ..retrieval import localise, read_classifier
    from ..retrieval.localisation.explanations import benchmark_explanations, from_gallery, from_images, gallery_encoder
    from ..retrieval.localisation.maps import FLOORS

    chosen = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    if boxes is not None and queries is None:
        raise InputError("--boxes are around the objects of --queries; add them")
    require_images([subject, *([queries] if queries else [])] if not (subject / MANIFEST_NAME).is_file() else [])
    given = None if queries is None else list_images(queries)
    classifier = None
    if (subject / MANIFEST_NAME).is_file():
        refuse_unused(
            "with a gallery, which has them", "encoder", "weights", "layer", "readout", "fit", "image_size", "metric"
        )
        opened = Gallery.open(subject)
        loaded = gallery_encoder(opened)
        asked, references = from_gallery(opened, given, 2 * composites, seed=seed)
    else:
        require_encoder(encoder, weights, layer)
        loaded = load_encoder(encoder, weights, fit=fit, size=image_size, layer=layer, readout=readout)
        if weights is not None:
            classifier = read_classifier(encoder, weights, pooled_dim=loaded.pooled_dim)
        with progress_bar("references") as progress:
            asked, references = from_images(
                list_images(subject),
                given,
                Inference(loaded, device=device),
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
            boxed = localise(
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
    if as_json:
        print_json(table.to_dict())
        return
    say(table.table())
    best, lead = table.best()
    said = "nothing leads the default" if lead is None else f"{best} leads the default by {lead} in the right of two"
    say(f"\n{said}" + (f"\nwritten: {html}" if html is not None else ""))
