"""`distcam reid`: audit a data set, draw a synthetic one, evaluate an encoder on either, explain a pair."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ImageError, InputError
from ..files import write_text
from ..remarks import remark
from . import library, train
from .command import Commands, refuse_unused
from .console import answer, number_of, progress_bar, require_images
from .options import AsJson, CropLoading, Device, EncoderName, Metric, ReadsImages, Running, argument, option

if TYPE_CHECKING:
    from ..datasets.reid_records import ReidData


app = Commands(no_args_is_help=True)

FormatChoice = Literal["auto", "market", "duke", "msmt17", "cuhk03", "veri", "vehicleid", "csv", "folder"]
Data = Annotated[Path, typer.Argument(help="The data set's folder, or a CSV with path, identity and camera.")]


@dataclass(frozen=True)
class DataFormat:
    """Options of a data set's format."""

    format_name: FormatChoice = option("auto", "`auto` looks at what the folder holds.", "--format")
    option: list[str] | None = option(
        None, "NAME=VALUE for the format: `boxes=labeled`, `test=800`, `camera=view`, `role=split`.", "--option"
    )

    def read(self, data: Path) -> ReidData:
        """The data set."""
        from ..datasets.registry import read_data

        values: dict[str, Any] = {}
        for text in self.option or []:
            name, equals, value = text.partition("=")
            if not equals:
                raise InputError(f"--option expects NAME=VALUE, got {text!r}")
            values[name] = value
        if "seed" in values:
            values["seed"] = None if values["seed"] == "none" else number_of(values["seed"], "--option seed", int)
        return read_data(data, format=self.format_name, **values)


@dataclass(frozen=True)
class Walkers:
    """Who is drawn; fields are the arguments of `write_walkers`."""

    identities: int = option(100, "People; half of them are for training.", min=4, max=9999)
    cameras: int = option(4, "Cameras, each with its own colours.", min=2, max=9)
    images_per_camera: int = option(3, "Images of a person by each camera.", min=2)
    look_alikes: float = option(0.4, "Share of people who differ from another in one item only.", min=0, max=1)
    distractors: float = option(0.2, "Boxes of nobody, as a share of the gallery.", min=0, max=1)
    junk: float = option(0.2, "Boxes of half a body, likewise.", min=0, max=1)
    masks: bool = option(True, "Write a mask of clothes, bag, … for each image.")
    seed: int = option(0, "Another seed gives other people.", min=0)


@app.command(cls=ReadsImages, epilog="Example: `distcam reid audit Market-1501-v15.09.15`")
def audit(
    data: Data,
    *,
    written_as: DataFormat,
    least_images: int = option(4, "List training identities with fewer images than this.", min=1),
    near: int | None = option(None, "Also find look-alikes that differ in so many of 64 hash bits.", min=0, max=3),
    quick: bool = option(False, "Look at names and lists only; open no image.", "--quick"),
    as_json: AsJson = False,
) -> None:
    """Check a data set before computing anything from it: counts, cameras, leaks, duplicates, unreadable files."""
    from ..reid.auditing import audit as look

    if quick:
        refuse_unused("with --quick, which opens no image", "near", "max_pixels")
    read = written_as.read(data)
    with progress_bar("opening images") as progress:
        found = look(read, least_images=least_images, open_files=not quick, near_bits=near, progress=progress)
    answer(found.to_dict(), str(found), as_json=as_json)


@app.command(epilog="Example: `distcam reid walkers walkers/ --identities 100 --cameras 4`")
def walkers(
    out: Path = argument(..., "The folder to write; it must not exist, or be empty."),
    *,
    drawn: Walkers,
    as_json: AsJson = False,
) -> None:
    """Draw synthetic pedestrians in the layout of Market-1501, with look-alikes, distractors and junk boxes."""
    from ..synthetic.walkers import write_walkers

    with progress_bar("drawing") as progress:
        written = write_walkers(out, **vars(drawn), progress=progress)
    data = written.data
    counts = {"train": len(data.of("train")), "query": len(data.queries), "gallery": len(data.gallery)}
    text = f"{out}: {', '.join(f'{n} {part}' for part, n in counts.items())} images"
    answer({"folder": str(out), "seed": drawn.seed, **counts}, text, as_json=as_json)


@app.command(
    cls=ReadsImages,
    epilog="Example: `distcam reid evaluate walkers/ --encoder resnet50 --weights imagenet --image-size 256x128 "
    "--rerank 20,6,0.3 --html report.html`",
)
def evaluate(
    data: Data,
    *,
    encoder: EncoderName = "resnet50",
    loading: CropLoading,
    features: Path | None = option(None, "Use the features in this file (from --out, or `distcam encode`) instead."),
    written_as: DataFormat,
    metric: Metric = option("cosine", "How features are compared."),
    protocol: str = option("", "Decisions that differ from the format's, e.g. `same_camera=keep,no_match=zero`."),
    rerank: str | None = option(None, "k-reciprocal re-ranking: K1,K2,LAMBDA, e.g. `20,6,0.3`."),
    verify: str | None = option(
        None, "Sort the first K of each query anew by lines: `20`, `lines:20`, `lightglue:20`."
    ),
    calibration: Path | None = option(
        None, "With --verify by lines: a gallery on which `index calibrate --verify` has measured what lines tell."
    ),
    aqe: str | None = option(None, "Query expansion: NEIGHBOURS,ALPHA; alpha 0 is plain AQE."),
    camera_norm: Literal["mean", "standard"] | None = option(None, "Take out what images of one camera share."),
    flip: bool = option(False, "Average each image with its mirror image.", "--flip"),
    multi_query: bool = option(False, "Pool the query images of one person by one camera.", "--multi-query"),
    single_gallery_shot: bool = option(
        False, "Also the CMC with one gallery image per identity.", "--single-gallery-shot"
    ),
    html: Path | None = option(None, "Write a report with the failures as images."),
    out: Path | None = option(None, "Write FILE.json (results, per query) or FILE.h5 (features and results)."),
    running: Running,
    strict: bool = option(
        False, "Stop at what would be left out or remarked on: images, lines, identities.", "--strict"
    ),
    as_json: AsJson = False,
) -> None:
    """Evaluate in one pass: CMC, mAP (both kinds), mINP, ROC, TAR@FAR, DIR@FAR, camera by camera; policies printed."""
    if out is not None and out.suffix.lower() not in (".json", ".h5"):
        raise InputError(f"--out writes FILE.json or FILE.h5, not {out.name}")
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--html writes FILE.html, not {html.name}")
    if features is None:
        loading.require(encoder)
    read = written_as.read(data)
    from functools import partial

    from ..explain.verification import parse_verify
    from ..metrics.fusion import USUAL_FUSION
    from ..reid.assessment import assess
    from ..reid.features import encode_data, read_features, write_features
    from ..reid.line_verification import VerifiedDistances, fusion_of
    from ..reid.policies import changed_protocol, remark_on_placeholders
    from ..reid.refinement import Refinement

    neighbours, _, alpha = (aqe or "").partition(",")
    expansion = None if aqe is None else (number_of(neighbours, "--aqe", int), number_of(alpha or "0", "--aqe", float))
    reranking = None
    if rerank is not None:
        if rerank.count(",") != 2:
            raise InputError(f"--rerank expects K1,K2,LAMBDA such as 20,6,0.3; got {rerank!r}")
        k1, k2, share = rerank.split(",")
        reranking = number_of(k1, "--rerank", int), number_of(k2, "--rerank", int), number_of(share, "--rerank", float)
    if verify is not None:
        if rerank is not None or features is not None:
            raise InputError("--verify looks at images in order of their distances; leave out --rerank and --features")
        parse_verify(verify)  # before anything is encoded
    if verify is None or parse_verify(verify)[0] != "lines":
        refuse_unused("without --verify by lines", "calibration")
    refinement = Refinement(camera_norm, multi_query, expansion, reranking)
    rule = changed_protocol(read.protocol, protocol)
    remark_on_placeholders(read, rule)
    if features is not None:
        refuse_unused(
            "with --features, which brings vectors", "encoder", CropLoading, "flip", "batch_size", "workers",
            "max_pixels", *([] if rerank else ["device"]),
        )  # fmt: skip
        vectors = read_features(features, read)
    else:
        loaded = loading.load(encoder)
        fusion = USUAL_FUSION if calibration is None else fusion_of(calibration, loaded)
        nobody = set(map(str, rule.junk))
        tested = [image for image in (*read.queries, *read.gallery) if str(image.identity) not in nobody]
        views = read.of("multi_query") if multi_query else ()
        with progress_bar("encoding") as progress:
            every = [*tested, *views]
            vectors = encode_data(every, read, loaded, flip=flip, strict=strict, progress=progress, **vars(running))
    neighbours_on = None  # NumPy on the CPU
    if reranking is not None and running.device != "cpu":
        import torch

        neighbours_on = running.device if running.device != "auto" else "cuda" if torch.cuda.is_available() else None
    with progress_bar("evaluating" if verify is None else "verifying") as progress:
        found = assess(
            read,
            vectors,
            metric=metric,
            protocol=rule,
            refinement=refinement,
            single_gallery_shot=single_gallery_shot,
            device=neighbours_on,
            verified=None
            if verify is None
            else partial(
                VerifiedDistances,
                encoder=loaded,
                verify=verify,
                fusion=fusion,
                device=running.device,
                progress=progress,
            ),
        )
    if out is not None:
        results = found.to_dict(per_query=True)
        if out.suffix.lower() == ".h5":
            write_features(out, vectors, results=results)
        else:
            write_text(out, json.dumps(results, indent=1) + "\n")
    if html is not None:
        from ..reid.report import write_report

        write_report(html, found, title=f"Re-identification: {read.root.name}")
    answer(found.to_dict(), str(found), as_json=as_json, written=(out, html))


PairWeighting = Literal["dist", "dist*s", "dot", "gradcam_cos", "caam"]  # those that need no gallery's mean


@app.command(
    cls=ReadsImages,
    epilog="Example: `distcam reid explain probe.jpg match.jpg --different other.jpg --encoder reid.safetensors "
    "--out why.png`",
)
def explain(
    probe: Path = argument(..., "The image that was asked for."),
    match: Path = argument(..., "The image it is compared with."),
    *,
    different: list[Path] | None = option(None, "Another image to set beside it, of another identity; repeatable."),
    encoder: EncoderName = "resnet50",
    loading: CropLoading,
    parts: str | None = option(
        None,
        "Stripes from the top, e.g. `head:0-0.2,torso:0.2-0.55`; or `body`: head, torso, legs, feet. Default: body for "
        "images in the folders and names of a set of people, else four equal stripes.",
    ),
    weighting: PairWeighting = option("dist", "Of the Dist-CAM maps."),
    out_path: Path | None = option(None, "Write OUT.png (a panel) or OUT.npz (raw maps).", "--out"),
    device: Device = "auto",
    strict: bool = option(False, "Stop if one of --different cannot be read.", "--strict"),
    as_json: AsJson = False,
) -> None:
    """Divide the similarity of two images among their places and parts, and draw Dist-CAM on both."""
    if out_path is not None and out_path.suffix.lower() not in (".png", ".jpg", ".npz"):
        raise InputError(f"--out writes OUT.png, OUT.jpg or OUT.npz, not {out_path.name}")
    if out_path is None:
        refuse_unused("where no map is written", "weighting", remedy="add --out OUT.png")
    loading.require(encoder)
    require_images([probe, match, *(different or ())])
    from ..datasets.reid_benchmarks import shows_people
    from ..explain.drawing.page import save_drawing
    from ..reid.pairs import BODY_PARTS, STRIPES, explain_pair, pairs_panel
    from .options import read_stripes

    is_body = parts == "body" or (parts is None and all(map(shows_people, (probe, match, *(different or ())))))
    wanted = BODY_PARTS if is_body else STRIPES if parts is None else read_stripes(parts)
    loaded = loading.load(encoder)
    inference = library.encoders.Inference(loaded, device=device)
    others = {f"different: {path.name}": path for path in different or ()}
    files = {"same" if others else "pair": match, **others}
    pairs = {}
    for title, file in files.items():
        try:
            pairs[title] = explain_pair(inference, probe, file, parts=wanted, weighting=weighting)
        except ImageError as error:
            if title not in others or error.path == str(probe):
                raise
            remark(f"{error}; it is left out", strict=strict)
    if out_path is not None:
        maps = {f"{i}/{name}": m for i, p in enumerate(pairs.values()) for name, m in p.to_arrays().items()}
        save_drawing(out_path, "", lambda: pairs_panel(pairs), lambda: maps)
    told = [{"title": title, "match": str(files[title]), **pair.to_dict()} for title, pair in pairs.items()]
    lines = [f"{title}\n{pair.table()}\n" for title, pair in pairs.items()]
    lines += [] if out_path is None else [f"explanation: {out_path}"]
    answer(told, "\n".join(lines), as_json=as_json)


app.command(name="train", cls=ReadsImages, epilog=train.REID_EXAMPLE)(train.reid_train)
