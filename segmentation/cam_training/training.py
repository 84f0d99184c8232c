"""Training from image-level labels on the one loop: plain CAM, CPN, SEAM, and every other loss, measured by mIoU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from ...encoders import Encoder, IdentityHead
from ...errors import InputError
from ...images import Transform
from ...metrics.segmentation import BETAS, BackgroundCurve, background_curve
from ...progress import Progress
from ...training.data.batches import RunData
from ...training.data.training_set import TrainingSet
from ...training.engine.outcome import write_json
from ...training.engine.step import Objective
from ...training.losses.classifier import ClassifierTerm, save_classifier
from ...training.losses.registry import TERMS, Builder
from ...training.recipes.recipe import Recipe
from ...training.recipes.runs import run_recipe as train
from ...training.recipes.tables import Table, check_name
from ..data import BENCHMARKS, MaskedImages, all_readable, label_map
from ..pseudo_masks.sources import ClassMapSource, WeakSegmenter
from ..segmenter.inference import ONE_LOOK, InferenceSettings, class_scores
from .cpn import build_cpn
from .map_term import MapTerm, build_multi_label, build_seam


class MeasureSettings(Table):
    """Measuring of trained maps against masks."""

    # all but "train" if empty. Their images say which classes they show, as for pseudo masks.
    splits: tuple[str, ...] = ()
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)  # of the multi-scale measure; a single 1 leaves it out
    flip: bool = True  # that one also looks at mirror images
    images: int = 0  # of a split at most, spread over it; 0 for all
    betas: tuple[float, ...] = ()  # background scores that are tried, 50 from 0 to 1 if empty; the best one is reported

    def _check(self) -> None:
        if self.images < 0 or not self.scales or not all(0 <= beta <= 1 for beta in self.betas):
            raise InputError("expected images from 0 on, one scale or more, and betas in [0, 1]")

    @property
    def multiple(self) -> InferenceSettings | None:
        """Several looks; None if there are none."""
        several = InferenceSettings(scales=self.scales, flip=self.flip)
        return None if several == ONE_LOOK else several


@dataclass(frozen=True, eq=False)
class MeasuredSplit:
    """The images of a split with their masks, in the pixels of the network's input."""

    images: TrainingSet
    masks: UInt8[np.ndarray, "n h w"]  # 0 background, c + 1 class c, 255 void


def masks_of(images: TrainingSet, split: str) -> UInt8[np.ndarray, "n h w"]:
    """The masks that the outlines of a set make: c + 1 where class c is, 0 elsewhere."""
    regions = images.regions
    if regions is None or not len(regions.image) or bool(regions.is_box.any()):
        raise InputError(f"the split {split!r} has no masks to be measured against; name others in [measure] splits")
    masks = np.zeros((len(images), *regions.raster.shape[-2:]), dtype=np.uint8)
    for image, label, raster in zip(regions.image, regions.label, regions.raster.numpy(), strict=True):
        masks[int(image)][raster > 0] = int(label) + 1
    return masks


def measure(
    source: ClassMapSource,
    truth: MeasuredSplit,
    settings: InferenceSettings,
    *,
    limit: int = 0,
    betas: Sequence[float] = (),
    device: str | torch.device = "cpu",
) -> BackgroundCurve:
    """The maps' mIoU for every background score, at the network's input; maps of classes that are not shown are 0."""
    count = len(truth.images)
    chosen = (
        range(count) if not limit or limit >= count else np.linspace(0, count - 1, limit).round().astype(int).tolist()
    )

    def pairs() -> Iterator[tuple[UInt8[np.ndarray, "h w"], np.ndarray]]:
        for i in chosen:
            pixels = truth.images.pixels(torch.tensor([i]))[0]
            image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            shown = truth.images.labels[i].nonzero()[:, 0].tolist()
            scores = class_scores(source, image, shown=shown, settings=settings, device=device)
            yield truth.masks[i], scores

    return background_curve(pairs(), ("background", *source.class_names), betas=betas or BETAS)


__all__ = ["SEGMENTATION_TERMS", "SegmentationRecipe", "train"]

SEGMENTER_NAME = "weak_segmenter.safetensors"  # in a run's folder
CURVES_NAME = "background_curves.json"
SEGMENTATION_TERMS: Mapping[str, Builder] = {
    **TERMS,
    "multi_label": build_multi_label,
    "cpn": build_cpn,
    "seam": build_seam,
}
"""All losses of `distcam.training`, and those of weakly supervised segmentation."""


class SegmentationRecipe(Recipe):
    """A weakly supervised training run, resolved.

    `[data]` may also name "voc:FOLDER", "camvid:FOLDER" or "cityscapes:FOLDER", and behind a `#` the split to learn
    from, such as "voc:FOLDER#trainaug".
    """

    # what is measured in the end; `run.monitor = "SPLIT.miou"` follows it epoch by epoch
    measure: MeasureSettings = MeasureSettings()

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, folder: Path = Path()) -> Self:
        """The recipe that a resolved table holds; images are squashed, for masks are stretched back."""
        data = table.get("data")
        own = {"data": {"fit": "squash", **data}} if isinstance(data, Mapping) else {}
        return super().from_dict({"evaluation": {"metrics": ["accuracy"]}, **table, **own}, folder=folder)

    def open(self, transform: Transform, *, cache: Path, progress: Progress | None = None) -> RunData:
        """The images by split, and the masks of those that are measured."""
        kind, _, place = (self.data.images or self.data.photographs).partition(":")
        if kind in BENCHMARKS:
            place, _, learnt = place.partition("#")
            root, listed = self.data.source(self.folder)[1] / place, {"train": learnt or "train"}
            splits = dict.fromkeys(("train", *(self.measure.splits or ("val",))))
            found = {name: BENCHMARKS[kind](root, listed.get(name, name)) for name in splits}
            opened = all_readable(found, strict=self.data.strict)
            kept = self.data.cache
            data = RunData({split: images.training_set(transform, cache=kept) for split, images in opened.items()})
            wanted = self.measure.splits or ("val",)
            masks = {name: _masks_of_files(opened[name], transform) for name in wanted}
        else:
            data = super().open(transform, cache=cache, progress=progress)
            wanted = self.measure.splits or tuple(split for split in data.sets if split != "train")
            for split in wanted:
                check_name("split", split, data.sets)
            masks = {split: masks_of(data.sets[split], split) for split in wanted}
        sets = data.sets
        if not sets["train"].is_multi_label:
            raise InputError(
                "the images have one class each; segmentation learns from 0/1 labels: data.multi_label = true"
            )
        truths = {split: MeasuredSplit(sets[split], own) for split, own in masks.items()}
        measured = _MeasuredMaps(self.measure, truths, sets["train"].class_names)
        follows = (self.run.monitor or "").endswith(".miou")
        return replace(data, terms=SEGMENTATION_TERMS, validate=measured.quick if follows else None, measure=measured)


def _masks_of_files(images: MaskedImages, transform: Transform) -> UInt8[np.ndarray, "n h w"]:
    found = []
    for i in range(len(images)):
        mask = images.mask(i)
        if mask is None:
            raise InputError(f"{images.file(i)} has no mask to be measured against")
        found.append(label_map(mask, transform))
    return np.stack(found)


class _MeasuredMaps:
    """The mIoU of a run's maps, and the file that they go into."""

    def __init__(
        self, settings: MeasureSettings, truths: Mapping[str, MeasuredSplit], class_names: tuple[str, ...]
    ) -> None:
        self._settings, self._truths, self._class_names = settings, truths, class_names

    def segmenter(self, encoder: Encoder, objective: Objective) -> WeakSegmenter:
        """Encoder and term as they are now."""
        for term in objective.terms.values():
            if isinstance(term, MapTerm):
                return WeakSegmenter.of(encoder, term, self._class_names)
            if isinstance(term, ClassifierTerm) and term.head == "linear" and isinstance(encoder.head, IdentityHead):
                return WeakSegmenter(encoder, term.class_weights(), self._class_names)
        raise InputError("segmentation needs a loss with class weights on the feature map: multi_label, cpn or seam")

    def quick(self, encoder: Encoder, objective: Objective, _folder: Path | None) -> dict[str, float]:
        """One look at every split."""
        curves = self._curves(self.segmenter(encoder, objective), ONE_LOOK)
        return {f"{split}.miou": curve.best_score.mean_iou for split, curve in curves.items()}

    def _curves(self, segmenter: WeakSegmenter, settings: InferenceSettings) -> dict[str, BackgroundCurve]:
        device = next(segmenter.parameters()).device
        options: dict[str, Any] = {"limit": self._settings.images, "betas": self._settings.betas, "device": device}
        return {split: measure(segmenter, truth, settings, **options) for split, truth in self._truths.items()}

    def __call__(self, encoder: Encoder, objective: Objective, folder: Path | None) -> dict[str, float]:
        """Every metric by name; with a folder also the segmenter, its classifier, and the curves."""
        segmenter = self.segmenter(encoder, objective)
        looks = {"miou": ONE_LOOK}
        if self._settings.multiple is not None:
            looks["miou_multi_scale"] = self._settings.multiple
        if segmenter.is_refined:
            looks |= {f"{name}_plain": look.changed(refined=False) for name, look in looks.items()}
        found: dict[str, float] = {}
        curves: dict[str, BackgroundCurve] = {}
        for name, settings in looks.items():
            for split, curve in self._curves(segmenter, settings).items():
                found[f"{split}.{name}"] = curve.best_score.mean_iou
                curves[f"{split}.{name}"] = curve
        first = next(iter(curves.values()))
        found = {**found, **{f"{split}.beta": curves[f"{split}.miou"].best_beta for split in self._truths}}
        if folder is not None:
            segmenter.metadata = {"beta": first.best_beta, "measured": found}
            segmenter.save(folder / SEGMENTER_NAME)
            weights = segmenter.class_weights  # in the file that everything else draws class maps with
            with torch.random.fork_rng(devices=[]):
                plain = ClassifierTerm(weights.shape[1], len(weights), multi_label=True, bias=False).to(weights.device)
            with torch.no_grad():
                plain.weight.copy_(weights)
            fingerprint = segmenter.encoder.fingerprint
            save_classifier(folder / "classifier.safetensors", plain, self._class_names, fingerprint=fingerprint)
            write_json(folder / CURVES_NAME, {name: curve.to_dict() for name, curve in curves.items()})
        return found
