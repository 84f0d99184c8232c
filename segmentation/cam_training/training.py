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

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from ...encoders import Encoder, Identity
from ...errors import InputError
from ...images import Transform
from ...training.data.splits import load_splits
from ...training.data.training_set import TrainingSet
from ...training.engine.distributed import current_world
from ...training.engine.logs import write_json
from ...training.engine.step import Term
from ...training.losses.classifier import ClassifierTerm, save_classifier
from ...training.losses.registry import TERMS, Builder, TermContext
from ...training.recipes.options import check_name
from ...training.recipes.recipe import Recipe, RecipeFile
from ...training.recipes.runs import RunResult, run_recipe
from ...training.recipes.tables import parse, plain
from ..data import MaskedImages, all_readable, label_map
from ..measures import BackgroundCurve
from ..segmenter.inference import InferenceSettings
from .cpn import build_cpn
from .map_measures import MeasureSettings, Truth, masks_of, measure
from .map_term import MapTerm, build_multi_label
from .seam import build_seam
from .weak_segmenter import WeakSegmenter

__all__ = ["SEGMENTATION_TERMS", "SegmentationRecipe", "train"]

SEGMENTER_NAME = "weak_segmenter.safetensors"  # in a run's folder
CURVES_NAME = "background_curves.json"
SETTINGS_NAME = "measure.json"
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


@dataclass(frozen=True)
class SegmentationRecipe:
    """A weakly supervised training run, resolved.

    Attributes:
        recipe: what the training loop reads.
        measure: what is measured in the end; `run.monitor = "SPLIT.miou"` follows it epoch by epoch.
    """

    recipe: Recipe
    measure: MeasureSettings = field(default_factory=MeasureSettings)

    @classmethod
    def read(cls, path: str | Path, *, variant: str | None = None, changes: Sequence[str] = ()) -> SegmentationRecipe:
        """The recipe of a TOML file, with the variant and the changes of the command line.

        Raises:
            InputError: no file, no TOML, or a table, key or value that does not fit; the nearest name is given.
        """
        file = RecipeFile.read(path)
        table = file.resolved(variant=variant, changes=changes)
        own = table.pop("measure", {})
        table.setdefault("evaluation", {"metrics": ["accuracy"]})
        # Segmentation looks at whole images squashed, in training as in use: masks are brought back by stretching.
        if isinstance(data := table.get("data"), Mapping):
            table["data"] = {"fit": "squash", **data}
        return cls(Recipe.from_dict(table, folder=file.folder), parse(MeasureSettings, own, "measure"))


def train(
    recipe: SegmentationRecipe,
    *,
    folder: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    announce: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> RunResult:
    """Train from image-level labels, and measure the maps.

    Metrics are `SPLIT.miou` of one look and `SPLIT.miou_multi_scale`, each at its best β; where the maps are refined
    also both without that, with `_plain` at the end.

    Args:
        recipe: what to do.
        folder: where results go; None writes nothing.
        seed: instead of the recipe's.
        resume: go on from the checkpoint in `folder`.
        cache: where scenes are drawn; in `folder` if left out.
        announce: called before the training with sizes and classes of the parts, on one line.
        progress: called with (batches done, batches in all).
        report: called with every epoch's row of the log.

    Raises:
        InputError: whatever in recipe or data does not fit: no loss with class weights on the feature map, labels of
            one class per image, a class that no training image shows, a split without masks.
    """
    inner = asked = recipe.recipe.with_seed(seed)  # what is left to the data is remarked on when they are opened
    if (inner.data.images or inner.data.photographs).partition(":")[0] not in _SOURCES:
        inner = inner.settled()
    built: list[Term] = []
    measured = _Measured(recipe.measure, built)

    def open_sets(transform: Transform) -> dict[str, TrainingSet]:
        place = cache if cache is not None else folder
        sets, truths = _open(asked, transform, recipe.measure, None if place is None else Path(place))
        measured.truths = truths
        measured.class_names = sets["train"].class_names
        return sets

    if folder is not None and current_world().is_first:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / SETTINGS_NAME, plain(recipe.measure))
    return run_recipe(
        inner,
        terms={kind: partial(_kept, build, built) for kind, build in SEGMENTATION_TERMS.items()},
        folder=folder,
        resume=resume,
        sets=open_sets,
        validate=measured.quick if inner.run.monitor and inner.run.monitor.endswith(".miou") else None,
        evaluations=[lambda encoder, _: measured(encoder, folder)],
        announce=announce,
        progress=progress,
        report=report,
    )


def _kept(build: Builder, built: list[Term], options: Mapping[str, Any], context: TermContext) -> Term:
    """A term as its builder makes it, remembered."""
    if not context.multi_label:
        raise InputError("the images have one class each; segmentation learns from 0/1 labels: data.multi_label = true")
    term = build(options, context)
    built.append(term)
    return term


# --- data -------------------------------------------------------------------------------------------------------------


def _open(
    recipe: Recipe, transform: Transform, settings: MeasureSettings, cache: Path | None
) -> tuple[dict[str, TrainingSet], dict[str, Truth]]:
    """The images by split, and the masks of those that are measured."""
    name, base = ("", Path()) if recipe.data.scenes is not None else recipe.data.source(recipe.folder)
    kind, colon, place = name.partition(":")
    if colon and kind in _SOURCES:
        wanted = settings.splits or ("val",)
        opened = all_readable(
            {split: _SOURCES[kind](base / place, split) for split in dict.fromkeys(("train", *wanted))},
            strict=recipe.data.strict,
        )
        sets = {split: images.training_set(transform) for split, images in opened.items()}
        masks = {split: [_mask(opened[split], i, transform) for i in range(len(opened[split]))] for split in wanted}
        return sets, {split: Truth(sets[split], np.stack(masks[split])) for split in wanted}
    with _place(cache) as scenes:
        sets = load_splits(recipe.data, transform, folder=recipe.folder, cache=scenes)
    for split in settings.splits:
        check_name("split", split, sets)
    wanted = settings.splits or tuple(split for split in sets if split != "train")
    return sets, {split: Truth(sets[split], masks_of(sets[split], split)) for split in wanted}


def _mask(images: MaskedImages, i: int, transform: Transform) -> UInt8[np.ndarray, "h w"]:
    mask = images.mask(i)
    if mask is None:
        raise InputError(f"{images.file(i)} has no mask to be measured against")
    return label_map(mask, transform)


@contextmanager
def _place(cache: Path | None) -> Iterator[Path]:
    """Where scenes are drawn: for this run alone if nothing is kept; by each process for itself."""
    world = current_world()
    if cache is not None:
        yield cache / "scenes" / (f"process-{world.rank}" if world.size > 1 else "")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# --- measuring --------------------------------------------------------------------------------------------------------


class _Measured:
    """What a run's maps are worth, and the file that they go into; terms and masks are filled in as the run opens."""

    def __init__(self, settings: MeasureSettings, built: Sequence[Term]) -> None:
        self._settings, self._built = settings, built
        self.truths: Mapping[str, Truth] = {}
        self.class_names: tuple[str, ...] = ()

    def segmenter(self, encoder: Encoder) -> WeakSegmenter:
        """Encoder and term as they are now.

        Raises:
            InputError: no term has class weights on the feature map.
        """
        for term in self._built:
            if isinstance(term, MapTerm):
                return WeakSegmenter.of(encoder, term, self.class_names)
            if isinstance(term, ClassifierTerm) and term.head == "linear" and isinstance(encoder.head, Identity):
                return WeakSegmenter(encoder, term.class_weights(), self.class_names)
        raise InputError("segmentation needs a loss with class weights on the feature map: multi_label, cpn or seam")

    def quick(self, encoder: Encoder) -> dict[str, float]:
        """One look at every split."""
        return {f"{split}.miou": curve.best_score.mean_iou for split, curve in self._curves(encoder).items()}

    def _curves(self, encoder: Encoder, settings: InferenceSettings | None = None) -> dict[str, BackgroundCurve]:
        segmenter = self.segmenter(encoder)
        device = next(segmenter.parameters()).device
        options: dict[str, Any] = {"limit": self._settings.images, "betas": self._settings.betas, "device": device}
        looked = settings or self._settings.single
        return {split: measure(segmenter, truth, looked, **options) for split, truth in self.truths.items()}

    def __call__(self, encoder: Encoder, folder: str | Path | None) -> dict[str, float]:
        """Every metric by name; with a folder also the segmenter, its classifier, and the curves."""
        segmenter = self.segmenter(encoder)
        looks = {"miou": self._settings.single}
        if self._settings.multiple is not None:
            looks["miou_multi_scale"] = self._settings.multiple
        if segmenter.is_refined:
            looks |= {f"{name}_plain": replace(look, refined=False) for name, look in looks.items()}
        found: dict[str, float] = {}
        curves: dict[str, BackgroundCurve] = {}
        for name, settings in looks.items():
            for split, curve in self._curves(encoder, settings).items():
                found[f"{split}.{name}"] = curve.best_score.mean_iou
                curves[f"{split}.{name}"] = curve
        first = next(iter(curves.values()))
        found = {**found, **{f"{split}.beta": curves[f"{split}.miou"].best_beta for split in self.truths}}
        if folder is not None:
            segmenter.metadata = {"beta": first.best_beta, "measured": found}
            segmenter.save(Path(folder) / SEGMENTER_NAME)
            self._save_classifier(segmenter, Path(folder))
            write_json(Path(folder) / CURVES_NAME, {name: curve.to_dict() for name, curve in curves.items()})
        return found

    def _save_classifier(self, segmenter: WeakSegmenter, folder: Path) -> None:
        """The class weights in the file that everything else draws class maps with."""
        weights = segmenter.class_weights
        with torch.random.fork_rng(devices=[]):
            plain_term = ClassifierTerm(weights.shape[1], len(weights), multi_label=True, bias=False).to(weights.device)
        with torch.no_grad():
            plain_term.weight.copy_(weights)
        save_classifier(
            folder / "classifier.safetensors", plain_term, self.class_names, fingerprint=segmenter.encoder.fingerprint
        )
