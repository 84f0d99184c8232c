"""Training from image-level labels on the one loop: plain CAM, CPN, SEAM, and every other loss, measured by mIoU.

A recipe is one of `distcam.training` with a table more:

```toml
[data]
photographs = "camvid:camvid"    # or "voc:FOLDER"; or scenes, folders and tables as anywhere, with 0/1 labels
[measure]                        # MeasureSettings
```

What comes out is `weak_segmenter.safetensors`: encoder, class weights, refinement, names of the classes, the recipe,
and the best background score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import UInt8

from ...encoders import Encoder, Identity
from ...errors import InputError
from ...images import Transform
from ...metrics.segmentation import BackgroundCurve
from ...progress import Progress
from ...training.data.run_data import RunData
from ...training.engine.logs import write_json
from ...training.engine.step import Objective
from ...training.losses.classifier import ClassifierTerm, save_classifier
from ...training.losses.registry import TERMS, Builder
from ...training.recipes.recipe import Recipe
from ...training.recipes.runs import run_recipe as train
from ...training.recipes.tables import check_name
from ..data import MaskedImages, all_readable
from ..label_maps import label_map
from ..segmenter.inference import InferenceSettings
from .cpn import build_cpn
from .map_measures import MeasuredSplit, MeasureSettings, masks_of, measure
from .map_term import MapTerm, build_multi_label
from .seam import build_seam
from .weak_segmenter import WeakSegmenter

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

_SOURCES: Mapping[str, Callable[[Path, str], MaskedImages]] = {
    "voc": MaskedImages.from_voc,
    "camvid": MaskedImages.from_camvid,
}


class SegmentationRecipe(Recipe):
    """A weakly supervised training run, resolved.

    Metrics are `SPLIT.miou` of one look and `SPLIT.miou_multi_scale`, each at its best β; where the maps are refined
    also both without that, with `_plain` at the end.

    Attributes:
        measure: what is measured in the end; `run.monitor = "SPLIT.miou"` follows it epoch by epoch.
    """

    measure: MeasureSettings = MeasureSettings()

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, folder: Path = Path()) -> Self:
        """The recipe that a resolved table holds.

        Segmentation looks at whole images squashed, in training as in use: masks are brought back by stretching.
        """
        data = table.get("data")
        own = {"data": {"fit": "squash", **data}} if isinstance(data, Mapping) else {}
        return super().from_dict({"evaluation": {"metrics": ["accuracy"]}, **table, **own}, folder=folder)

    def open(self, transform: Transform, *, cache: Path, progress: Progress | None = None) -> RunData:
        """The images by split, and the masks of those that are measured."""
        kind, _, place = (self.data.images or self.data.photographs).partition(":")
        if kind in _SOURCES:
            opened = self._masked(_SOURCES[kind], self.data.source(self.folder)[1] / place)
            data = RunData({split: images.training_set(transform) for split, images in opened.items()})
            wanted = self.measure.splits or ("val",)
            masks = {
                name: np.stack([_mask(opened[name], i, transform) for i in range(len(opened[name]))]) for name in wanted
            }
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
        measured = _Measured(self.measure, truths, sets["train"].class_names)
        follows = (self.run.monitor or "").endswith(".miou")
        return replace(data, terms=SEGMENTATION_TERMS, validate=measured.quick if follows else None, measure=measured)

    def _masked(self, source: Callable[[Path, str], MaskedImages], place: Path) -> dict[str, MaskedImages]:
        splits = dict.fromkeys(("train", *(self.measure.splits or ("val",))))
        return all_readable({split: source(place, split) for split in splits}, strict=self.data.strict)


def _mask(images: MaskedImages, i: int, transform: Transform) -> UInt8[np.ndarray, "h w"]:
    mask = images.mask(i)
    if mask is None:
        raise InputError(f"{images.file(i)} has no mask to be measured against")
    return label_map(mask, transform)


class _Measured:
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
            if isinstance(term, ClassifierTerm) and term.head == "linear" and isinstance(encoder.head, Identity):
                return WeakSegmenter(encoder, term.class_weights(), self._class_names)
        raise InputError("segmentation needs a loss with class weights on the feature map: multi_label, cpn or seam")

    def quick(self, encoder: Encoder, objective: Objective, folder: Path | None) -> dict[str, float]:
        """One look at every split."""
        del folder
        curves = self._curves(self.segmenter(encoder, objective), self._settings.single)
        return {f"{split}.miou": curve.best_score.mean_iou for split, curve in curves.items()}

    def _curves(self, segmenter: WeakSegmenter, settings: InferenceSettings) -> dict[str, BackgroundCurve]:
        device = next(segmenter.parameters()).device
        options: dict[str, Any] = {"limit": self._settings.images, "betas": self._settings.betas, "device": device}
        return {split: measure(segmenter, truth, settings, **options) for split, truth in self._truths.items()}

    def __call__(self, encoder: Encoder, objective: Objective, folder: Path | None) -> dict[str, float]:
        """Every metric by name; with a folder also the segmenter, its classifier, and the curves."""
        segmenter = self.segmenter(encoder, objective)
        looks = {"miou": self._settings.single}
        if self._settings.multiple is not None:
            looks["miou_multi_scale"] = self._settings.multiple
        if segmenter.is_refined:
            looks |= {f"{name}_plain": replace(look, refined=False) for name, look in looks.items()}
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
            self._save_classifier(segmenter, folder)
            write_json(folder / CURVES_NAME, {name: curve.to_dict() for name, curve in curves.items()})
        return found

    def _save_classifier(self, segmenter: WeakSegmenter, folder: Path) -> None:
        """The class weights in the file that everything else draws class maps with."""
        weights = segmenter.class_weights
        with torch.random.fork_rng(devices=[]):
            plain_term = ClassifierTerm(weights.shape[1], len(weights), multi_label=True, bias=False).to(weights.device)
        with torch.no_grad():
            plain_term.weight.copy_(weights)
        save_classifier(
            folder / "classifier.safetensors", plain_term, self._class_names, fingerprint=segmenter.encoder.fingerprint
        )
