"""`distcam segment`: masks from image-level labels: train, write masks, and measure them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError
from ..files import replacing
from ..remarks import counted
from .command import Commands, refuse_unused
from .console import answer, progress_bar, require_images, require_model
from .masked import DataOptions
from .options import AsJson, Device, ReadsImages, Strict, argument, option
from .train import segment_train

if TYPE_CHECKING:
    from ..images.masks import Mask
    from ..segmentation.data import MaskedImages
    from ..segmentation.pseudo_masks.sources import ClassMapSource
    from ..segmentation.segmenter.inference import InferenceSettings
    from ..segmentation.segmenter.segmenter import Segmenter

app = Commands()

TRAIN_EXAMPLE = (
    "Example: `distcam segment train segment_cues --variant gain_losses,truth --seeds 0,1,2`, or "
    "`distcam segment train cpn --variant all`"
)
INFER_EXAMPLE = (
    "Example: `distcam segment infer runs/cpn/prcm/seed-0 photos --out masks --labels photos.csv --background 0.3 "
    "--refine crf --show`"
)
EVALUATE_EXAMPLE = (
    "Example: `distcam segment evaluate masks/SegmentationClass truth --names names.txt`, or "
    "`distcam segment evaluate runs/cpn/prcm/seed-0 VOC2012 --layout voc --split val --curve`"
)


@dataclass(frozen=True)
class Views:
    """The views of an image that a model is asked about, and what becomes of its answers."""

    refine: Literal["none", "walk", "crf"] = option(
        "none", "A dense CRF (extra `crf`); or, for class maps, a random walk by colours."
    )
    scales: str | None = option(None, "Sizes of the input, such as 0.5,1,1.5,2. Default: see --help.")
    flip: bool | None = option(None, "Also look at the mirrored image.", "--flip/--no-flip")
    base: Literal["network", "image"] = option(
        "network", "What scale 1 is: the network's input, or the image's own size."
    )
    refined: bool = option(True, "The refined maps of a model that has any.", "--refined/--plain")


app.command("train", cls=ReadsImages, epilog=TRAIN_EXAMPLE)(segment_train)


@app.command("infer", cls=ReadsImages, epilog=INFER_EXAMPLE)
def infer(
    model: Path = argument(..., "A run's folder, a weak segmenter, a segmentation network, or an encoder.safetensors."),
    images: str = argument(..., "A folder, one image, a quoted glob, or a data set (see --layout)."),
    *,
    folder: Path = option(..., "Where masks go, in VOC's layout; the same command resumes.", "--out"),
    labels: str = option(
        "predicted",
        "Which classes an image may show: `predicted`, `all`, `known` (the data set says), or a FILE.csv with "
        "path,labels (names between semicolons). For models that learnt from labels alone.",
    ),
    background: float = option(
        0.3, "Score of the background beside the classes' maps, whose maximum is 1.", min=0, max=1
    ),
    views: Views,
    given: DataOptions,
    masks: Path | None = option(None, "A FOLDER of true masks: measures what was written."),
    show: bool = option(False, "Also write images with the masks laid over: OUT/overlays.", "--show"),
    device: Device = "auto",
    strict: Strict = False,  # noqa: ARG001 - the command refuses notes
    as_json: AsJson = False,
) -> None:
    """Write a mask for every image. Several scales and mirrored by default; a trained network looks once."""
    require_model(model)
    require_images([images])
    from ..datasets.masked_images import VocFolder, overlay_mask
    from ..metrics.segmentation import evaluate_masks
    from ..segmentation.pipeline import say_trained_on
    from ..segmentation.segmenter.segmenter import Segmenter

    of_maps = {"labels": labels, "background": background, "refined": views.refined}
    loaded, settings = open_model(model, views, of_maps=of_maps)
    data = given.open(images, masks=masks, labels=labels, class_names=loaded.class_names)
    if not data.has_background and views.refine == "none":
        refuse_unused("by data without a background", "background")
    note = {"model": str(model.absolute()), "scales": list(settings.scales), "flip": settings.flip, "base": views.base}
    own = {} if isinstance(loaded, Segmenter) else of_maps
    note |= own | {"refine": views.refine} if own or views.refine != "none" else {}
    shown: Any = labels if labels in ("predicted", "all") else "known"
    judged: dict[str, Any] = {"background": background, "refine": views.refine, "device": device}
    make, _ = _mask_maker(loaded, data, settings, labels=shown, **judged)
    written = VocFolder(folder, data.class_names, settings=note)
    with progress_bar("masks") as progress:
        for i, name in enumerate(data.names):
            if not written.has(name):
                written.write(name, make(i))
            if show and not (target := written.folder / "overlays" / f"{name}.jpg").is_file():
                with replacing(target) as aside:
                    overlay_mask(data.image(i), written.read(name)).save(aside, quality=88)
            progress(i + 1, len(data))
    written.finish(given.split or "all", data.names)
    content: dict[str, Any] = {"folder": str(folder), "masks": len(data), "settings": note}
    content |= {"score": None, "trained_on": None}
    text = f"{counted(len(data), 'mask')}: {written.masks}"
    if any(map(data.has_mask, range(len(data)))):
        pairs = ((true, written.read(name)) for i, name in enumerate(data.names) if (true := data.mask(i)) is not None)
        score, overlap = evaluate_masks(pairs, data.mask_names), say_trained_on(loaded, data)
        content |= {"score": score.to_dict(), "trained_on": None if overlap is None else overlap.to_dict()}
        text = f"{score.table()}\n{text}"
    answer(content, text, as_json=as_json)


@app.command("evaluate", cls=ReadsImages, epilog=EVALUATE_EXAMPLE)
def evaluate(
    found: Path = argument(..., "A folder of masks (NAME.png), or a model as for `infer`."),
    truth: str = argument(..., "A folder of true masks (NAME.png), or a data set (see --layout)."),
    *,
    given: DataOptions,
    masks: Path | None = option(None, "A FOLDER of true masks, if TRUTH is a folder of images."),
    curve: bool = option(False, "mIoU for every background score; of models that learnt from labels alone.", "--curve"),
    background: float | None = option(
        None, "The background's score. Default: the best one of the curve.", min=0, max=1
    ),
    labels: Literal["known", "predicted", "all"] = option("known", "Which classes an image may show, for such models."),
    views: Views,
    hausdorff: bool = option(False, "Also the Hausdorff distance of every class, in pixels.", "--hausdorff"),
    device: Device = "auto",
    strict: Strict = False,  # noqa: ARG001 - the command refuses notes
    as_json: AsJson = False,
) -> None:
    """Compare masks, or a model's masks, with the truth: IoU of every class, mIoU, accuracy, confusion."""
    from ..metrics.segmentation import BETAS, background_curve, evaluate_masks, remark_on_shift

    if not (found.suffix == ".safetensors" or (found.is_dir() and any(found.glob("*.safetensors")))):
        refuse_unused("where masks are compared with masks", "curve", "background", "labels", Views, "device")
        compared, mask_names = given.pairs(found, truth, masks=masks)
        score = evaluate_masks(compared, mask_names, hausdorff=hausdorff)
        remark_on_shift(score)
        answer(score.to_dict(), score.table(), as_json=as_json)
        return
    from ..segmentation.pipeline import masks_with_truth, say_trained_on
    from ..segmentation.segmenter.inference import on_device, score_images
    from ..segmentation.segmenter.segmenter import Segmenter

    data = given.open(truth, masks=masks)
    of_maps = ("curve", "background", "labels", "refined")
    model, settings = open_model(found, views, of_maps=of_maps)
    if not any(map(data.has_mask, range(len(data)))):
        raise InputError("none of the images has a mask to compare with; give --masks FOLDER, or another --split")
    with progress_bar("images") as progress:
        if isinstance(model, Segmenter) or views.refine != "none":
            if not isinstance(model, Segmenter):
                refuse_unused("by refined masks, which are made at one background score", "curve")
            judged: dict[str, Any] = {"background": background, "refine": views.refine, "device": device}
            make, beta = _mask_maker(model, data, settings, labels=labels, **judged)
            score = evaluate_masks(masks_with_truth(data, make, progress), data.mask_names, hausdorff=hausdorff)
            content, text = score.to_dict() | ({} if beta is None else {"beta": beta}), score.table()
        else:
            refuse_unused("by class maps without --refine, which are measured at every background score", "hausdorff")
            where = on_device(model, device)
            scored = score_images(model, data, labels=labels, settings=settings, device=where, progress=progress)
            pairs = ((true, scores) for i, scores in scored if (true := data.mask(i)) is not None)
            if not data.has_background:
                refuse_unused("by data without a background", "background", "curve")
                background = 0.0
            best = background_curve(pairs, data.mask_names, betas=BETAS if background is None else [background])
            content = best.to_dict() if curve else best.best_score.to_dict() | {"beta": best.best_beta}
            text = f"background score {best.best_beta:g}\n{best.best_score.table()}"
            text = f"{best.table()}\n\n{text}" if curve else text
    overlap = say_trained_on(model, data)
    answer(content | {"trained_on": None if overlap is None else overlap.to_dict()}, text, as_json=as_json)


def open_model(
    path: Path, views: Views, *, of_maps: Iterable[str]
) -> tuple[ClassMapSource | Segmenter, InferenceSettings]:
    """A model and the views of an image that it is asked about; `of_maps` are options that only class maps use."""
    from ..encoders.checkpoint import read_checkpoint
    from ..segmentation.pseudo_masks.sources import load_source
    from ..segmentation.segmenter.inference import InferenceSettings
    from ..segmentation.segmenter.segmenter import load_segmenter

    whole = path / "segmenter.safetensors" if path.is_dir() else path
    is_network = whole.is_file() and read_checkpoint(whole)[0].get("kind") == "segmenter"
    model: ClassMapSource | Segmenter
    if is_network:  # it looks once if nothing is said
        model = load_segmenter(whole)
        refuse_unused("by a segmentation network, which knows the classes and the background itself", *of_maps)
    else:
        model = load_source(path / "weak" if (path / "weak").is_dir() else path)
        if views.refined and not getattr(model, "is_refined", False):
            refuse_unused("by a model without refined maps", "refined")
    chosen = (1.0,) if is_network else InferenceSettings().scales
    if views.scales is not None:
        try:
            chosen = tuple(float(part) for part in views.scales.split(","))
        except ValueError:
            raise InputError(f"expected --scales as numbers such as 0.5,1,2; got {views.scales!r}") from None
    is_flipped = not is_network if views.flip is None else views.flip
    return model, InferenceSettings(scales=chosen, flip=is_flipped, base=views.base, refined=views.refined)


def _mask_maker(
    model: ClassMapSource | Segmenter,
    data: MaskedImages,
    settings: InferenceSettings,
    *,
    labels: Literal["known", "predicted", "all"],
    background: float | None,
    refine: Literal["none", "walk", "crf"],
    device: str,
) -> tuple[Callable[[int], Mask], float | None]:
    """The mask of each image, and the background's score beside a CRF: the best one if none is given."""
    from ..segmentation.pipeline import predicted_mask
    from ..segmentation.pseudo_masks.make import CueStage, MaskMaker
    from ..segmentation.pseudo_masks.refining import CrfSettings
    from ..segmentation.segmenter.inference import on_device, require_classes
    from ..segmentation.segmenter.segmenter import Segmenter

    require_classes(model.class_names, data)
    if refine == "walk":
        if isinstance(model, Segmenter):
            raise InputError("--refine walk takes class maps; a segmentation network is refined by --refine crf")
        refuse_unused("by a random walk, which has cues of the background", "background")
    where = on_device(model, device)
    if isinstance(model, Segmenter):
        crf = CrfSettings() if refine == "crf" else None
        return partial(predicted_mask, model, data, settings=settings, crf=crf), None
    stage = CueStage(kind="pseudo_masks", labels=labels, inference=settings, refine=refine)
    stage = stage.changed(beta="best" if background is None and refine == "crf" else background or 0.0)
    maker = MaskMaker(model, data, stage, device=where)
    if stage.beta == "best":
        maker.prepare()
    return maker.mask, maker.beta if refine == "crf" else None
