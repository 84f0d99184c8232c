"""A whole run: class maps from labels, masks from maps, a segmentation network from masks, and what they are worth.

The recipe is `pipeline_recipe.py`'s. A run leaves `weak/`, `masks/` (in VOC's layout), `network/`,
`segmenter.safetensors`, and `result.json`; what is there already is not made again when it is resumed.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.masked_images import VocFolder
from ..encoders import Encoder, Overlap, TrainedOn
from ..encoders.trained_on import say_overlap
from ..errors import InputError
from ..files import file_digests
from ..images import Transform
from ..images.masks import Mask
from ..metrics.segmentation import SegmentationScore, evaluate_masks
from ..progress import Progress
from ..training.data.batches import DataPart, RunData
from ..training.engine.outcome import write_json
from ..training.recipes.recipe import EncoderSettings, Recipe, located
from ..training.recipes.runs import RunResult, run_recipe
from .data import MaskedImages, all_readable
from .pipeline_recipe import NetworkSettings, PipelineRecipe
from .pseudo_masks.make import make_masks, most_likely
from .pseudo_masks.refining import CrfSettings, dense_crf
from .pseudo_masks.sources import load_source
from .segmenter.inference import InferenceSettings, require_classes
from .segmenter.losses import SEGMENTER_TERMS, dense_training_set
from .segmenter.segmenter import Segmenter, build_segmenter, class_probabilities


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

    Metrics: `maps.mean_iou` and `maps.beta` (training images, at the best constant background score),
    `masks.coverage` (share of the pixels that are decided), `masks.accuracy` (among those), `masks.mean_iou`, and of
    the network `test.mean_iou`, `test.pixel_accuracy`, `test.iou.CLASS`. Options are those of `run_recipe`; without
    `folder` results go to a temporary one. InputError: whatever in the recipe does not fit.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) if folder is None else Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        drawn = Path(cache) / "scenes" if cache is not None else place / "scenes"
        sets = {"train": recipe.data.load("train", folder=recipe.folder, cache=drawn)}
        if recipe.network is not None:
            sets["test"] = recipe.data.load("test", folder=recipe.folder, cache=drawn)
        sets = all_readable(sets, strict=recipe.data.strict)
        parts: dict[str, DataPart] = {}
        for name, images in sets.items():
            shown = {c for i in filter(images.is_labelled, range(len(images))) for c in images.labels(i)}
            parts[name] = DataPart(len(images), frozenset(images.class_names[c] for c in shown))
        seed = recipe.seed if seed is None else seed
        told = {"seed": seed, "resume": resume, "announce": announce, "progress": progress}
        run = _PipelineRun(recipe, place, parts, seed, progress, told)
        result, metrics, train = None, dict[str, float](), sets["train"]
        if recipe.weak is not None:
            result = run.learn_maps(recipe.weak, train)
        if recipe.cues.kind != "truth":
            train, metrics = run.make_masks(train)
        if recipe.network is not None and recipe.training is not None:
            result, network = run.learn_network(recipe.network, recipe.training, train)
            metrics |= run.measure(network, recipe.network, sets["test"])
        if result is None:
            raise InputError("the recipe trains nothing: it has neither a [[weak.loss]] nor a [segmenter]")
        outcome = dataclasses.replace(result, metrics=metrics, parts=parts, seconds=time.perf_counter() - started)
        if folder is not None:
            write_json(place / "result.json", {**outcome.to_dict(), "recipe": dict(recipe.table)})
    return outcome


@dataclass(frozen=True, eq=False)
class _PipelineRun:
    """The stages of a run, in the folder that they leave their results in."""

    recipe: PipelineRecipe
    folder: Path
    parts: Mapping[str, DataPart]
    seed: int
    progress: Progress | None
    told: Mapping[str, Any]  # options of `run_recipe` for each training

    @property
    def saliency(self) -> str:
        """The folder of saliency maps; empty if there is none."""
        given = self.recipe.data.saliency
        return str(located(given, self.recipe.folder)) if given else ""

    def learn_maps(self, stage: Recipe, train: MaskedImages) -> RunResult:
        """An encoder and a classifier from image-level labels, and from some outlines where the recipe has them."""
        data = self.recipe.data
        outlined, all_of_them = (
            train.choose(count, seed=data.outline_seed) for count in (data.outlined, data.outlined + data.boxed)
        )
        boxed = [i for i in all_of_them if i not in outlined]

        def opened(transform: Transform) -> RunData:
            own = train.training_set(
                transform,
                masks_for=outlined,
                kind=data.outlines,
                boxes_for=boxed,
                saliency=self.saliency,
                cache=data.cache,
            )
            return RunData({"train": own}, parts=self.parts)

        return run_recipe(stage, data=opened, folder=self.folder / "weak", **self.told)

    def make_masks(self, train: MaskedImages) -> tuple[MaskedImages, dict[str, float]]:
        """The training images with masks from class maps, and what these are worth."""
        recipe = self.recipe
        weak = self.folder / "weak" if recipe.weak is not None else located(recipe.checkpoint, recipe.folder)
        source = load_source(weak, method=recipe.cues.method)
        settings = {"cues": recipe.cues.to_dict(), "seed": self.seed}
        masks = VocFolder(self.folder / "masks", train.class_names, settings=settings)
        told: dict[str, Any] = {"stage": recipe.cues, "saliency": self.saliency, "seed": self.seed}
        metrics = make_masks(source, train, masks, progress=self.progress, **told)
        return train.with_masks(masks.masks), metrics

    def learn_network(
        self, network: NetworkSettings, training: Recipe, train: MaskedImages
    ) -> tuple[RunResult, Segmenter]:
        """The segmentation network, trained on the masks as they are now."""
        recipe = self.recipe
        weights: str | Path = network.weights
        if weights == "weak":
            weights = self.folder / "weak" / "encoder.safetensors"
        elif weights not in ("random", "imagenet"):
            weights = located(network.weights, recipe.folder)
        transform = EncoderSettings(architecture="conv4").build(training.data, folder=recipe.folder, seed=0).transform
        segmenter = build_segmenter(
            network.architecture,
            train.class_names,
            transform=transform,
            weights=weights,
            options=network.options,
            seed=self.seed,
        )

        def opened(transform: Transform) -> RunData:
            own = dense_training_set(train, transform, cache=recipe.data.cache)
            return RunData({"train": own}, parts=self.parts, terms=SEGMENTER_TERMS)

        options = {"encoder": segmenter, "config": dict(recipe.table), **self.told}
        result = run_recipe(training, data=opened, folder=self.folder / "network", **options)
        segmenter.save(self.folder / "segmenter.safetensors")
        return result, segmenter

    def measure(self, segmenter: Segmenter, network: NetworkSettings, test: MaskedImages) -> dict[str, float]:
        """The network's metrics on the test images."""
        crf = network.crf if network.refine == "crf" else None
        score = score_segmenter(segmenter, test, settings=network.inference, crf=crf, progress=self.progress)
        say_trained_on(segmenter, test)
        by_class = zip(score.class_names, score.iou.tolist(), strict=True)
        return {
            "test.mean_iou": score.mean_iou,
            "test.pixel_accuracy": score.pixel_accuracy,
            **{f"test.iou.{name}": iou for name, iou in by_class if not np.isnan(iou)},
        }


def predicted_mask(
    segmenter: Segmenter,
    data: MaskedImages,
    i: int,
    *,
    settings: InferenceSettings | None = None,
    crf: CrfSettings | None = None,
) -> Mask:
    """The network's mask of image i, after a CRF if there is one; without a background every pixel gets a class."""
    device, image = next(segmenter.parameters()).device, data.image(i)
    found = class_probabilities(segmenter, image, settings=settings, device=device)
    if crf is not None:
        if not data.has_background:
            found[0] = 0  # a class that is 0 everywhere has no part in a CRF
        found = dense_crf(image, found, settings=crf)
    return most_likely(found, has_background=data.has_background)


def score_segmenter(
    segmenter: Segmenter,
    data: MaskedImages,
    *,
    settings: InferenceSettings | None = None,
    crf: CrfSettings | None = None,
    progress: Progress | None = None,
) -> SegmentationScore:
    """The score of a network's masks on images with masks; InputError if there are none, or of other classes.

    `crf` are the settings of a dense CRF behind the network; MissingExtraError where its library is not installed.
    """
    require_classes(segmenter.class_names, data)
    make = partial(predicted_mask, segmenter, data, settings=settings, crf=crf)
    return evaluate_masks(masks_with_truth(data, make, progress), data.mask_names)


def masks_with_truth(
    data: MaskedImages, make: Callable[[int], Mask], progress: Progress | None = None
) -> Iterator[tuple[Mask, Mask]]:
    """The true mask of each image that has one, and what `make` makes of the image."""
    for i in range(len(data)):
        if (truth := data.mask(i)) is not None:
            yield truth, make(i)
        if progress is not None:
            progress(i + 1, len(data))


def say_trained_on(model: object, data: MaskedImages) -> Overlap | None:
    """Count of the measured images that a model was trained on, remarked on if there are any; None if unknown."""
    encoder = model if isinstance(model, Encoder) else getattr(model, "encoder", None)
    record: TrainedOn | None = getattr(encoder, "trained_on", None)
    if record is None:
        return None
    measured = [data.file(i) for i in range(len(data)) if data.has_mask(i)]
    return say_overlap(record.overlap((), file_digests(measured)))
