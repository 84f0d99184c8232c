"""A whole run: class maps from labels, masks from maps, a segmentation network from masks, and what they are worth.

The recipe is `recipe.py`'s. A run leaves `weak/`, `masks/` (in VOC's layout), `network/`, `segmenter.safetensors`, and
`result.json`; what is there already is not made again when it is resumed.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.voc import VocFolder
from ..errors import InputError
from ..training.data.batches import TrainingBatches
from ..training.data.parts import Part, sentence
from ..training.data.sampling import make_sampler
from ..training.engine.logs import write_json
from ..training.engine.loop import fit
from ..training.losses.registry import TERMS, TermContext, build_objective
from ..training.recipes.recipe import EncoderSettings, Recipe
from ..training.recipes.runs import RunResult, run_recipe
from ..training.recipes.tables import plain
from .data import Mask, MaskedImages, all_readable
from .measures import SegmentationScore, evaluate_masks
from .pseudo_masks.make import make_masks, most_likely
from .pseudo_masks.sources import load_source
from .recipe import NetworkSettings, PipelineRecipe, located
from .segmenter.inference import InferenceSettings, require_classes
from .segmenter.losses import SEGMENTER_TERMS, dense_training_set
from .segmenter.segmenter import Segmenter, build_segmenter, class_probabilities

__all__ = ["run_segmentation", "score_segmenter"]

Progress = Callable[[int, int], None]


def run_segmentation(
    recipe: PipelineRecipe,
    *,
    folder: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    announce: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Learn class maps, make masks of them, train a network on these, and measure all three.

    Metrics: `maps.mean_iou` and `maps.beta` (training pictures, at the best constant background score),
    `masks.coverage` (share of the pixels that are decided), `masks.accuracy` (among those), `masks.mean_iou`, and of
    the network `test.mean_iou`, `test.pixel_accuracy`, `test.iou.CLASS`.

    Args:
        recipe: from `PipelineRecipe.read`.
        folder: where results go; None writes to a temporary folder.
        seed: instead of the recipe's.
        resume: go on with a run that was stopped.
        cache: where scenes are drawn; in `folder` if left out.
        announce: called before the training with sizes and classes of the parts, on one line.
        progress: called with (steps done, steps in all) of each stage.

    Raises:
        InputError: whatever in the recipe does not fit.
    """
    started = time.perf_counter()
    seed = recipe.seed if seed is None else seed
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) if folder is None else Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        drawn = Path(cache) / "scenes" if cache is not None else place / "scenes"
        sets = {"train": recipe.data.load("train", folder=recipe.folder, cache=drawn)}
        if recipe.network is not None:
            sets["test"] = recipe.data.load("test", folder=recipe.folder, cache=drawn)
        sets = all_readable(sets, strict=recipe.data.strict)
        train = sets["train"]
        parts = {name: Part(len(own), _classes_shown(own)) for name, own in sets.items()}
        told: dict[str, Any] = {"parts": parts, "announce": announce}
        metrics: dict[str, float] = {}
        weak: RunResult | None = None
        if recipe.weak is not None:
            weak = _learn_maps(
                recipe, recipe.weak, train, place / "weak", seed=seed, resume=resume, progress=progress, told=told
            )
        if recipe.cues.kind != "truth":
            source = load_source(
                place / "weak" if weak is not None else located(recipe.checkpoint, recipe.folder),
                method=recipe.cues.method,
            )
            masks = VocFolder(place / "masks", train.class_names, settings={"cues": plain(recipe.cues), "seed": seed})
            metrics |= make_masks(source, train, masks, stage=recipe.cues, seed=seed, progress=progress)
            train = train.with_masks(masks.masks)
        result = weak
        if recipe.network is not None and recipe.training is not None:
            result, found = _learn_network(
                recipe,
                recipe.network,
                recipe.training,
                train,
                place,
                seed=seed,
                resume=resume,
                progress=progress,
                told=told,
            )
            score = score_segmenter(found, sets["test"], settings=recipe.network.inference, progress=progress)
            metrics |= {"test.mean_iou": score.mean_iou, "test.pixel_accuracy": score.pixel_accuracy}
            metrics |= {
                f"test.iou.{name}": float(value)
                for name, value in zip(score.class_names, score.iou, strict=True)
                if not np.isnan(value)
            }
        if result is None:
            raise InputError("the recipe trains nothing: it has neither a [[weak.loss]] nor a [segmenter]")
        outcome = dataclasses.replace(result, metrics=metrics, parts=parts, seconds=time.perf_counter() - started)
        if folder is not None:
            write_json(place / "result.json", {**outcome.to_dict(), "recipe": plain(dict(recipe.table))})
    return outcome


def _classes_shown(images: MaskedImages) -> frozenset[str]:
    known = filter(images.is_labelled, range(len(images)))
    return frozenset(images.class_names[c] for i in known for c in images.labels(i))


def _learn_maps(
    recipe: PipelineRecipe,
    stage: Recipe,
    train: MaskedImages,
    folder: Path,
    *,
    seed: int,
    resume: bool,
    progress: Progress | None,
    told: dict[str, Any],
) -> RunResult:
    """An encoder and a classifier from image-level labels, and from some outlines where the recipe has them."""
    outlined = train.choose(recipe.data.outlined, seed=recipe.data.outline_seed)
    kind = recipe.data.outlines
    return run_recipe(
        stage,
        terms=TERMS,
        folder=folder,
        seed=seed,
        resume=resume,
        sets=lambda transform: {"train": train.training_set(transform, masks_for=outlined, kind=kind)},
        progress=progress,
        **told,
    )


def _learn_network(
    recipe: PipelineRecipe,
    network: NetworkSettings,
    training: Recipe,
    train: MaskedImages,
    place: Path,
    *,
    seed: int,
    resume: bool,
    progress: Progress | None,
    told: dict[str, Any],
) -> tuple[RunResult, Segmenter]:
    """The segmentation network, trained on the masks as they are now."""
    training = training.with_seed(seed)
    weights: str | Path = network.weights
    if weights == "weak":
        weights = place / "weak" / "encoder.safetensors"
    elif weights not in ("random", "imagenet"):
        weights = located(network.weights, recipe.folder)
    transform = EncoderSettings("conv4").build(training.data, folder=recipe.folder, seed=0).transform
    segmenter = build_segmenter(
        network.architecture,
        train.class_names,
        transform=transform,
        weights=weights,
        options=network.options,
        seed=seed,
    )
    data = dense_training_set(train, segmenter.transform)
    data.require_trainable()
    context = TermContext(segmenter, data.class_names, multi_label=True, folder=recipe.folder)
    objective = build_objective(training.loss, context, terms=SEGMENTER_TERMS, seed=seed)
    sampler = make_sampler(training.sampler, data.labels, seed=seed, class_names=data.class_names)
    batches = TrainingBatches(data, sampler, augment=training.augment, seed=seed)
    if told["announce"] is not None:
        told["announce"](sentence(told["parts"]))
    found = fit(
        segmenter,
        batches,
        objective,
        training.run,
        folder=place / "network",
        resume=resume,
        config=plain(dict(recipe.table)),
        progress=progress,
    )
    segmenter.save(place / "segmenter.safetensors")
    return RunResult(training, {}, found, segmenter, 0.0), segmenter


def score_segmenter(
    segmenter: Segmenter,
    data: MaskedImages,
    *,
    settings: InferenceSettings | None = None,
    progress: Progress | None = None,
) -> SegmentationScore:
    """What a network's masks are worth on pictures with masks.

    Raises:
        InputError: other classes, or no picture with a mask.
    """
    require_classes(segmenter.class_names, data)
    device = next(segmenter.parameters()).device

    def pairs() -> Iterator[tuple[Mask, Mask]]:
        for i in range(len(data)):
            truth = data.mask(i)
            if truth is not None:
                found = class_probabilities(segmenter, data.image(i), settings=settings, device=device)
                yield truth, most_likely(found, has_background=data.has_background)
            if progress is not None:
                progress(i + 1, len(data))

    return evaluate_masks(pairs(), data.mask_names)
