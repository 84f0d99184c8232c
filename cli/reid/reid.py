"""`distcam reid`: audit a re-identification data set, draw a synthetic one, and evaluate an encoder on either."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...errors import InputError
from ...files import write_text
from ..checks import require_encoder
from ..command import Commands, refuse_unused
from ..console import load_encoder, print_json, progress_bar, say
from ..options import AsJson, BatchSize, Device, EncoderName, FitName, Layer, Metric, ReadsImages, Weights, Workers

if TYPE_CHECKING:
    from ...encoders import Encoder
    from ...reid.features import Features
    from ...reid.records import ReidData

app = Commands(
    help="Re-identification: audit, synthetic walkers, training, evaluation, and why two pictures match.",
    no_args_is_help=True,
)

FormatChoice = Literal["auto", "market", "duke", "msmt17", "cuhk03", "veri", "vehicleid", "csv", "folder"]
Data = Annotated[Path, typer.Argument(help="The data set's folder, or a CSV with path, identity and camera.")]
Format = Annotated[FormatChoice, typer.Option("--format", help="`auto` looks at what the folder holds.")]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option", help="NAME=VALUE for the format: `boxes=labeled`, `test=800`, `camera=view`, `role=split`."
    ),
]

CropSize = Annotated[
    str | None, typer.Option(help="The network's input as HEIGHTxWIDTH, e.g. `256x128`, or one number.")
]
CropFit = Annotated[
    FitName | None, typer.Option(help="How an image fits. Default: pad, or what a checkpoint was trained with.")
]

AUDIT_EXAMPLE = "Example: `distcam reid audit Market-1501-v15.09.15`"
WALKERS_EXAMPLE = "Example: `distcam reid walkers walkers/ --identities 100 --cameras 4`"
EVALUATE_EXAMPLE = (
    "Example: `distcam reid evaluate walkers/ --encoder resnet50 --weights imagenet --image-size 256x128 "
    "--rerank 20,6,0.3 --html report.html`"
)


@app.command(name="audit", cls=ReadsImages, epilog=AUDIT_EXAMPLE)
def audit(
    data: Data,
    format_name: Format = "auto",
    option: Option = None,
    least_images: Annotated[int, typer.Option(min=1, help="List training identities with fewer images than this.")] = 4,
    near: Annotated[
        int | None, typer.Option(min=0, max=3, help="Also find look-alikes that differ in so many of 64 hash bits.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Look at names and lists only; open no image.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a data set before computing anything from it: counts, cameras, leaks, duplicates, unreadable files."""
    from ...reid.auditing import audit as look

    if quick:
        refuse_unused("with --quick, which opens no image", "near", "max_pixels")
    with progress_bar("opening images") as progress:
        found = look(
            _read(data, format_name, option),
            least_images=least_images,
            open_files=not quick,
            near_bits=near,
            progress=progress,
        )
    if as_json:
        print_json(found.to_dict())
    else:
        say(str(found))


@app.command(name="walkers", epilog=WALKERS_EXAMPLE)
def walkers(
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist, or be empty.")],
    identities: Annotated[int, typer.Option(min=4, max=9999, help="People; half of them are for training.")] = 100,
    cameras: Annotated[int, typer.Option(min=2, max=9, help="Cameras, each with its own colours.")] = 4,
    images_per_camera: Annotated[int, typer.Option(min=2, help="Images of a person by each camera.")] = 3,
    look_alikes: Annotated[
        float, typer.Option(min=0, max=1, help="Share of people who differ from another in one item only.")
    ] = 0.4,
    distractors: Annotated[float, typer.Option(min=0, max=1, help="Boxes of nobody, as a share of the gallery.")] = 0.2,
    junk: Annotated[float, typer.Option(min=0, max=1, help="Boxes of half a body, likewise.")] = 0.2,
    masks: Annotated[bool, typer.Option(help="Write a mask of clothes, bag, … for each image.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other people.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw synthetic pedestrians in the layout of Market-1501, with look-alikes, distractors and junk boxes."""
    from ...reid.walkers import write_walkers

    with progress_bar("drawing") as progress:
        written = write_walkers(
            out,
            identities=identities,
            cameras=cameras,
            images_per_camera=images_per_camera,
            look_alikes=look_alikes,
            distractors=distractors,
            junk=junk,
            masks=masks,
            seed=seed,
            progress=progress,
        )
    data = written.data
    counts = {
        "train": len(data.of("train")),
        "query": len(data.queries),
        "gallery": len(data.gallery),
    }
    if as_json:
        print_json({"folder": str(out), "seed": seed, **counts})
    else:
        say(f"{out}: {counts['train']} train, {counts['query']} query, {counts['gallery']} gallery images")


@app.command(name="evaluate", cls=ReadsImages, epilog=EVALUATE_EXAMPLE)
def evaluate(
    data: Data,
    encoder: EncoderName = "resnet50",
    weights: Weights = None,
    layer: Layer = None,
    features: Annotated[
        Path | None, typer.Option(help="Use the features in this file (from --out, or `distcam encode`) instead.")
    ] = None,
    format_name: Format = "auto",
    option: Option = None,
    image_size: CropSize = None,
    fit: CropFit = None,
    metric: Annotated[Metric, typer.Option(help="How features are compared.")] = "cosine",
    protocol: Annotated[
        str, typer.Option(help="Decisions that differ from the format's, e.g. `same_camera=keep,no_match=zero`.")
    ] = "",
    rerank: Annotated[str | None, typer.Option(help="k-reciprocal re-ranking: K1,K2,LAMBDA, e.g. `20,6,0.3`.")] = None,
    aqe: Annotated[str | None, typer.Option(help="Query expansion: NEIGHBOURS,ALPHA; alpha 0 is plain AQE.")] = None,
    camera_norm: Annotated[
        Literal["mean", "standard"] | None, typer.Option(help="Take out what images of one camera share.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average each image with its mirror image.")] = False,
    multi_query: Annotated[
        bool, typer.Option("--multi-query", help="Pool the query images of one person by one camera.")
    ] = False,
    single_gallery_shot: Annotated[
        bool, typer.Option("--single-gallery-shot", help="Also the CMC with one gallery image per identity.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a report with the failures as pictures.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write FILE.json (results, per query) or FILE.h5 (features and results).")
    ] = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at what would be left out or remarked on: images, lines, identities.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate in one pass: CMC, mAP (both kinds), mINP, ROC, TAR@FAR, DIR@FAR, camera by camera; policies printed."""
    if out is not None and out.suffix.lower() not in (".json", ".h5"):
        raise InputError(f"--out writes FILE.json or FILE.h5, not {out.name}")
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--html writes FILE.html, not {html.name}")
    if features is None:
        require_encoder(encoder, weights, layer)
    read = _read(data, format_name, option)
    from ...reid.assessment import assess
    from ...reid.placeholders import remark_on_placeholders
    from ...reid.policies import changed_protocol
    from ...reid.refinement import Refinement

    refinement = Refinement(camera_norm, multi_query, _expansion(aqe), _reranking(rerank))
    rule = changed_protocol(read.protocol, protocol)
    remark_on_placeholders(read, rule)
    if features is not None:
        refuse_unused(
            "with --features, which brings vectors", "encoder", "weights", "layer", "image_size", "fit", "flip",
            "batch_size", "workers", "max_pixels", *([] if rerank else ["device"]),
        )  # fmt: skip
        from ...reid.features import read_features

        vectors = read_features(features, read)
    else:
        loaded = crop_encoder(encoder, weights, layer, image_size, fit)
        options = {
            "flip": flip, "batch_size": batch_size, "workers": workers, "device": device, "strict": strict,
        }  # fmt: skip
        vectors = _encoded(read, loaded, junk=rule.junk, multi_query=multi_query, **options)
    found = assess(
        read,
        vectors,
        metric=metric,
        protocol=rule,
        refinement=refinement,
        single_gallery_shot=single_gallery_shot,
        device=None if refinement.reranking is None else _neighbour_device(device),
    )
    if out is not None:
        _save(out, vectors, found.to_dict(per_query=True))
    if html is not None:
        from ...reid.report import write_report

        write_report(html, found, title=f"Re-identification: {read.root.name}")
    if as_json:
        print_json(found.to_dict())
        return
    say(str(found))
    for written in filter(None, (out, html)):
        say(f"written: {written}")


def _read(data: Path, format_name: str, options: list[str] | None) -> ReidData:
    from ...reid.data import read_data

    values: dict[str, Any] = {}
    for text in options or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option expects NAME=VALUE, got {text!r}")
        values[name] = value
    if "seed" in values:
        values["seed"] = None if values["seed"] == "none" else _whole(values["seed"], "--option seed")
    return read_data(data, format=format_name, **values)


def crop_encoder(name: str, weights: str | None, layer: str | None, size: str | None, fit: FitName | None) -> Encoder:
    """The encoder that the options name, for pictures that are boxes around somebody.

    Raises:
        InputError: a size that is none, or what `load_encoder` refuses.
    """
    loaded = load_encoder(name, weights, layer=layer)
    if size is None:
        loaded.transform = loaded.transform.adapted(fit=fit)
    else:
        sides = tuple(_whole(side, "--image-size") for side in size.lower().split("x"))
        if len(sides) > 2 or min(sides) < 16:
            raise InputError(f"--image-size expects HEIGHTxWIDTH of at least 16 pixels, got {size!r}")
        loaded.transform = loaded.transform.adapted(size=(sides[0], sides[-1]), fit=fit)
    return loaded


def _encoded(data: ReidData, encoder: Encoder, *, junk: tuple[Any, ...], multi_query: bool, **options: Any) -> Features:
    from ...reid.features import encode_data

    views = data.of("multi_query") if multi_query else ()
    nobody = set(map(str, junk))
    tested = [image for image in (*data.queries, *data.gallery) if str(image.identity) not in nobody]
    with progress_bar("encoding") as progress:
        return encode_data([*tested, *views], data, encoder, progress=progress, **options)


def _neighbour_device(device: str) -> str | None:
    """Where re-ranking looks for neighbours: on the GPU if there is one, by NumPy on the CPU."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return None if device == "cpu" else device


def _save(out: Path, features: Features, results: dict[str, Any]) -> None:
    if out.suffix.lower() == ".h5":
        from ...reid.features import write_features

        write_features(out, features, results=results)
        return
    import json

    write_text(out, json.dumps(results, indent=1) + "\n")


def _expansion(text: str | None) -> tuple[int, float] | None:
    if text is None:
        return None
    neighbours, _, alpha = text.partition(",")
    return _whole(neighbours, "--aqe"), _real(alpha or "0", "--aqe")


def _reranking(text: str | None) -> tuple[int, int, float] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3:
        raise InputError(f"--rerank expects K1,K2,LAMBDA such as 20,6,0.3; got {text!r}")
    return _whole(parts[0], "--rerank"), _whole(parts[1], "--rerank"), _real(parts[2], "--rerank")


def _whole(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option}: expected a whole number, got {text!r}") from None


def _real(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option}: expected a number, got {text!r}") from None
