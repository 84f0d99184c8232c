"""`distcam segment`: masks from image-level labels: train, write masks, and measure them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...errors import InputError
from ...files import replacing
from ...remarks import counted
from ..checks import require_images, require_model
from ..command import Commands, refuse_unused
from ..console import out, print_json, progress_bar, say
from ..options import AsJson, ReadsImages, Strict
from ..recipes import ListRecipes, RecipePath, Template, find_recipe
from ..task_train import Changes, OutFolder, Resume, Seeds, Variant
from ..train import announcer, changes_with, chosen_seeds, chosen_variants, comparison_table, resumable_runs
from .inputs import Layout, inference_settings, is_model, mask_pairs, open_data, open_model

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...segmentation.data import Mask, MaskedImages
    from ...segmentation.pseudo_masks.sources import ClassMapSource
    from ...segmentation.segmenter.inference import InferenceSettings, Known
    from ...training.recipes.runs import RunResult

app = Commands(help="Weakly supervised segmentation: masks from the classes that a picture shows.")

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

LayoutOption = Annotated[
    Layout,
    typer.Option(help="What the data are: VOC's layout, CamVid's, a CSV, drawn scenes, or a folder of pictures."),
]
Split = Annotated[str | None, typer.Option(help="Which split of the data. Default: val, or test of drawn scenes.")]
Names = Annotated[
    Path | None, typer.Option(help="A FILE with the names of the classes, one per line. Default: the model's or VOC's.")
]
Scales = Annotated[str | None, typer.Option(help="Sizes of the input, such as 0.5,1,1.5,2. Default: see --help.")]
Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Also look at the mirrored picture.")]
Base = Annotated[
    Literal["network", "image"], typer.Option(help="What scale 1 is: the network's input, or the picture's own size.")
]
SegmentDevice = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]


@app.command("train", cls=ReadsImages, epilog=TRAIN_EXAMPLE)
def train(
    recipe: RecipePath,
    out_path: OutFolder = None,
    variant: Variant = None,
    seeds: Seeds = None,
    changes: Changes = None,
    resume: Resume = False,
    _list: ListRecipes = False,
    _template: Template = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Train as a recipe says: class maps (CAM, CPN, SEAM), or all the way to a segmentation network."""
    recipe = find_recipe(recipe)
    from ...training.recipes.recipe import RecipeFile
    from ...training.recipes.runs import compare_runs

    folder = out_path or Path("runs") / recipe.stem
    names: Sequence[str | None] = chosen_variants(variant, RecipeFile.read(recipe).variants)
    options: dict[str, Any] = {"announce": announcer(), "resume": resume, "cache": folder}
    loaded = {name or "": _loaded(recipe, name, changes_with(changes, strict=strict), options) for name in names}
    title, own_seed, _ = next(iter(loaded.values()))
    with resumable_runs(folder):
        comparison = compare_runs(
            title,
            {name: run for name, (_, _, run) in loaded.items()},
            seeds=chosen_seeds(seeds) if seeds else [own_seed],
            folder=folder,
            watch=lambda name, seed: progress_bar(" ".join(filter(None, (name, f"seed {seed}")))),
        )
    if as_json:
        print_json(comparison.to_dict())
        return
    out.print(comparison_table(comparison))
    say(f"Models, masks, logs, and resolved recipes: {folder}")


def _loaded(
    path: Path, variant: str | None, changes: Sequence[str], options: dict[str, Any]
) -> tuple[str, int, Callable[..., RunResult]]:
    """Name, seed, and run of a recipe: of the whole way, or of class maps alone."""
    from ...segmentation.pipeline import run_segmentation
    from ...segmentation.recipe import PipelineRecipe, is_pipeline

    if is_pipeline(path):
        whole = PipelineRecipe.read(path, variant=variant, changes=changes)
        return whole.name, whole.seed, partial(run_segmentation, whole, **options)
    from ...segmentation.cam_training.training import SegmentationRecipe
    from ...segmentation.cam_training.training import train as train_maps

    maps = SegmentationRecipe.read(path, variant=variant, changes=changes)
    return maps.recipe.name, maps.recipe.run.seed, partial(train_maps, maps, **options)


@app.command("infer", cls=ReadsImages, epilog=INFER_EXAMPLE)
def infer(
    model: Annotated[
        Path,
        typer.Argument(help="A run's folder, a weak segmenter, a segmentation network, or an encoder.safetensors."),
    ],
    images: Annotated[str, typer.Argument(help="A folder, one picture, a quoted glob, or a data set (see --layout).")],
    folder: Annotated[Path, typer.Option("--out", help="Where masks go, in VOC's layout; the same command resumes.")],
    labels: Annotated[
        str,
        typer.Option(
            help="Which classes a picture may show: `predicted`, `all`, `known` (the data set says), or a FILE.csv "
            "with path,labels (names between semicolons). For models that learnt from labels alone."
        ),
    ] = "predicted",
    background: Annotated[
        float, typer.Option(min=0, max=1, help="Score of the background beside the classes' maps, whose maximum is 1.")
    ] = 0.3,
    refine: Annotated[
        Literal["none", "walk", "crf"], typer.Option(help="A random walk by colours, or a dense CRF (extra `crf`).")
    ] = "none",
    scales: Scales = None,
    flip: Flip = None,
    base: Base = "network",
    refined: Annotated[
        bool, typer.Option("--refined/--plain", help="The refined maps of a model that has any.")
    ] = True,
    layout: LayoutOption = "auto",
    split: Split = None,
    masks: Annotated[Path | None, typer.Option(help="A FOLDER of true masks: measures what was written.")] = None,
    names: Names = None,
    show: Annotated[
        bool, typer.Option("--show", help="Also write pictures with the masks laid over: OUT/overlays.")
    ] = False,
    device: SegmentDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a mask for every picture. Several scales and mirrored by default; a trained network looks once."""
    require_model(model)
    require_images([images])
    from ...datasets.voc import VocFolder
    from ...segmentation.measures import evaluate_masks
    from ...segmentation.pseudo_masks.make import most_likely
    from ...segmentation.segmenter.inference import require_classes, seen_by
    from ...segmentation.segmenter.segmenter import Segmenter, class_probabilities
    from ...training.engine.environment import choose_device

    loaded = open_model(model)
    if isinstance(loaded, Segmenter):
        refuse_unused(
            "by a segmentation network, which knows the classes and the background itself",
            "labels", "background", "refine", "refined",
        )  # fmt: skip
    elif refined and not getattr(loaded, "is_refined", False):
        refuse_unused("by a model without refined maps", "refined")
    settings = inference_settings(scales, flip, base=base, refined=refined, is_network=isinstance(loaded, Segmenter))
    data = open_data(
        images, layout=layout, split=split, masks=masks, names=names, labels=labels, class_names=loaded.class_names
    )
    if not data.has_background and refine == "none":
        refuse_unused("by data without a background", "background")
    if refine == "walk":
        refuse_unused("by a random walk, which has cues of the background", "background")
    require_classes(loaded.class_names, data)
    where = choose_device(device)
    seen_by(loaded, where)
    of_maps = {"labels": labels, "background": background, "refine": refine, "refined": refined}
    note = {
        "model": str(model.absolute()),
        "scales": list(settings.scales),
        "flip": settings.flip,
        "base": base,
        **({} if isinstance(loaded, Segmenter) else of_maps),
    }
    written = VocFolder(folder, data.class_names, settings=note)
    if isinstance(loaded, Segmenter):
        make: Callable[[int, Image], Mask] = lambda _, image: most_likely(  # noqa: E731
            class_probabilities(loaded, image, settings=settings, device=where), has_background=data.has_background
        )
    else:
        make = _mask_maker(loaded, data, settings, labels=labels, beta=background, refine=refine, device=str(where))
    with progress_bar("masks") as progress:
        for i, name in enumerate(data.names):
            if not written.has(name):
                written.write(name, make(i, data.image(i)))
            if show:
                _show(data, i, written)
            progress(i + 1, len(data))
    written.finish(split or "all", data.names)
    pairs = ((truth, written.read(name)) for i, name in enumerate(data.names) if (truth := data.mask(i)) is not None)
    score = evaluate_masks(pairs, data.mask_names) if any(map(data.has_mask, range(len(data)))) else None
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "masks": len(data),
                "settings": note,
                "score": None if score is None else score.to_dict(),
            }
        )
        return
    if score is not None:
        say(score.table())
    say(f"{counted(len(data), 'mask')}: {written.masks}")


@app.command("evaluate", cls=ReadsImages, epilog=EVALUATE_EXAMPLE)
def evaluate(
    found: Annotated[Path, typer.Argument(help="A folder of masks (NAME.png), or a model as for `infer`.")],
    truth: Annotated[str, typer.Argument(help="A folder of true masks (NAME.png), or a data set (see --layout).")],
    layout: LayoutOption = "auto",
    split: Split = None,
    masks: Annotated[
        Path | None, typer.Option(help="A FOLDER of true masks, if TRUTH is a folder of pictures.")
    ] = None,
    names: Names = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="mIoU for every background score; of models that learnt from labels alone.")
    ] = False,
    background: Annotated[
        float | None, typer.Option(min=0, max=1, help="The background's score. Default: the best one of the curve.")
    ] = None,
    labels: Annotated[
        Literal["known", "predicted", "all"], typer.Option(help="Which classes a picture may show, for such models.")
    ] = "known",
    scales: Scales = None,
    flip: Flip = None,
    base: Base = "network",
    refined: Annotated[
        bool, typer.Option("--refined/--plain", help="The refined maps of a model that has any.")
    ] = True,
    device: SegmentDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Compare masks, or a model's masks, with the truth: IoU of every class, mIoU, accuracy, confusion."""
    if is_model(found):
        _evaluate_model(
            found,
            open_data(truth, layout=layout, split=split, masks=masks, names=names, labels="known", class_names=None),
            scales=scales,
            flip=flip,
            base=base,
            refined=refined,
            labels=labels,
            background=background,
            show_curve=curve,
            device=device,
            as_json=as_json,
        )
        return
    refuse_unused(
        "where masks are compared with masks", "curve", "background", "labels", "scales", "flip", "base", "refined",
        "device",
    )  # fmt: skip
    from ...segmentation.measures import evaluate_masks, remark_on_shift

    pairs, mask_names = mask_pairs(found, truth, layout=layout, split=split, masks=masks, names=names)
    score = evaluate_masks(pairs, mask_names)
    remark_on_shift(score)
    if as_json:
        print_json(score.to_dict())
    else:
        say(score.table())


# --- masks from models ---------------------------------------------------------------------------------------------


def _mask_maker(
    source: ClassMapSource,
    data: MaskedImages,
    settings: InferenceSettings,
    *,
    labels: str,
    beta: float,
    refine: Literal["none", "walk", "crf"],
    device: str,
) -> Callable[[int, Image], Mask]:
    """What makes a mask from class maps."""
    from ...segmentation.pseudo_masks.cues import pseudo_mask
    from ...segmentation.pseudo_masks.make import image_scores, most_likely, refined_scores

    whose: Known = "predicted" if labels == "predicted" else "all" if labels == "all" else "known"

    def make(i: int, image: Image) -> Mask:
        known = data.labels(i) if whose == "known" else None
        scores = image_scores(source, image, labels=whose, known=known, settings=settings, device=device)
        with_background = refined_scores(scores, image, refine=refine, beta=beta)
        if with_background is None:
            return pseudo_mask(scores, beta=beta if data.has_background else -1.0)
        return most_likely(with_background, has_background=data.has_background)

    return make


def _evaluate_model(
    path: Path,
    data: MaskedImages,
    *,
    scales: str | None,
    flip: bool | None,
    base: Literal["network", "image"],
    refined: bool,
    labels: Literal["known", "predicted", "all"],
    background: float | None,
    show_curve: bool,
    device: str,
    as_json: bool,
) -> None:
    from ...segmentation.measures import BETAS, background_curve
    from ...segmentation.pipeline import score_segmenter
    from ...segmentation.segmenter.inference import score_images, seen_by
    from ...segmentation.segmenter.segmenter import Segmenter
    from ...training.engine.environment import choose_device

    model, where = open_model(path), choose_device(device)
    if isinstance(model, Segmenter):
        refuse_unused(
            "by a segmentation network, which knows the classes and the background itself",
            "curve", "background", "labels", "refined",
        )  # fmt: skip
    elif refined and not getattr(model, "is_refined", False):
        refuse_unused("by a model without refined maps", "refined")
    seen_by(model, where)
    if not any(data.has_mask(i) for i in range(len(data))):
        raise InputError("none of the pictures has a mask to compare with; give --masks FOLDER, or another --split")
    settings = inference_settings(scales, flip, base=base, refined=refined, is_network=isinstance(model, Segmenter))
    with progress_bar("pictures") as progress:
        if isinstance(model, Segmenter):
            score = score_segmenter(model, data, settings=settings, progress=progress)
            content: dict[str, Any] = score.to_dict()
            text = score.table()
        else:
            scored = score_images(model, data, labels=labels, settings=settings, device=where, progress=progress)
            pairs = ((truth, scores) for i, scores in scored if (truth := data.mask(i)) is not None)
            if not data.has_background:
                refuse_unused("by data without a background", "background", "curve")
                background = 0.0
            found = background_curve(pairs, data.mask_names, betas=BETAS if background is None else [background])
            content = found.to_dict() if show_curve else found.best_score.to_dict() | {"beta": found.best_beta}
            text = "\n".join(
                [
                    *([found.table(), ""] if show_curve else []),
                    f"background score {found.best_beta:g}",
                    found.best_score.table(),
                ]
            )
    if as_json:
        print_json(content)
    else:
        say(text)


def _show(data: MaskedImages, i: int, written: Any) -> None:
    """The picture with its mask laid over, as JPEG."""
    from ...datasets.voc import overlay_mask

    target = written.folder / "overlays" / f"{data.names[i]}.jpg"
    if not target.is_file():
        with replacing(target) as aside:
            overlay_mask(data.image(i), written.read(data.names[i])).save(aside, quality=88)
