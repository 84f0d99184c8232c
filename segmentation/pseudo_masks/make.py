"""From class maps to masks on disk: cues or pseudo masks, refined by a random walk or a dense CRF, and measured."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from ...datasets.masked_images import VocFolder
from ...encoders import Encoder
from ...errors import InputError
from ...images.masks import Mask
from ...metrics.segmentation import CurveCounter, SegmentationScore, confusion_matrix
from ...progress import Progress
from ...training.recipes.tables import Table
from ..data import MaskedImages
from ..segmenter.inference import InferenceSettings, Shown, on_device, require_classes, score_image
from .affinity_net import AffinityNet, AffinitySettings, WalkSettings, refine_by_walk, train_affinity
from .crf import CrfSettings, dense_crf
from .cues import CueSettings, make_cues, pseudo_mask
from .sources import ClassMapSource

_CACHE_BYTES = 512 * 1024**2  # of class scores


class CueStage(Table):
    """The way from class maps of the training images to masks.

    Attributes:
        kind: "cues": sure pixels; "pseudo_masks": every pixel gets a class; "truth": the true masks, to compare with.
        method: of a classifier's maps: "cam" or "gradcam".
        labels: whose maps count: those of the classes "known" of the image, "predicted" ones, or "all".
        inference: scales, mirroring, and what scale 1 is.
        sure: limits of cues.
        beta: "pseudo_masks": the background's score, or "best": the one with the highest mIoU on the training masks.
        margin: "pseudo_masks": see `pseudo_mask`.
        refine: "walk" (random walk by colours), "affinity" (by affinities learnt from cues), "crf", or "none".
        walk: of the random walk.
        affinity: of the training of affinities.
        crf: of the dense CRF.
    """

    kind: Literal["cues", "pseudo_masks", "truth"] = "cues"
    method: Literal["cam", "gradcam"] = "cam"
    labels: Shown = "known"
    inference: InferenceSettings = InferenceSettings()
    sure: CueSettings = CueSettings()
    beta: float | Literal["best"] = 0.3
    margin: float = 0.0
    refine: Literal["none", "walk", "affinity", "crf"] = "none"
    walk: WalkSettings = WalkSettings()
    affinity: AffinitySettings = AffinitySettings()
    crf: CrfSettings = CrfSettings()


def make_masks(
    source: ClassMapSource,
    data: MaskedImages,
    masks: VocFolder,
    *,
    stage: CueStage | None = None,
    seed: int = 0,
    split: str = "train",
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, float]:
    """Write a mask for every image, and measure them where the truth is known.

    Args:
        source: gives the maps.
        data: the images.
        masks: those that it has already are kept.
        stage: the way to masks; `CueStage()` if left out.
        seed: of what is learnt for it.
        split: the name of the list that is written.
        device: of the network.
        progress: called with (images done, images in all).
    """
    require_classes(source.class_names, data)
    maker = MaskMaker(source, data, stage or CueStage(), device=on_device(source, device), seed=seed)
    metrics = maker.prepare(progress)
    total = np.zeros((len(data.mask_names), len(data.mask_names) + 1), dtype=np.int64)
    for i, name in enumerate(data.names):
        if not masks.has(name):
            masks.write(name, maker.mask(i))
        truth = data.mask(i)
        if truth is not None:
            total += confusion_matrix(truth, masks.read(name), len(data.mask_names))
        if progress is not None:
            progress(i + 1, len(data))
    masks.finish(split, data.names)
    if total.any():
        decided = int(total[:, :-1].sum())
        metrics["masks.coverage"] = decided / int(total.sum())
        metrics["masks.accuracy"] = float(np.trace(total[:, :-1])) / max(decided, 1)
        metrics["masks.mean_iou"] = SegmentationScore(data.mask_names, total, len(data)).mean_iou
    return metrics


class MaskMaker:
    """The masks of a data set, image by image; `prepare` does first what needs all images.

    Args:
        source: gives the maps; on `device`, in evaluation mode.
        data: with the classes of the source.
        stage: the way to masks.
        device: of the source.
        seed: of what is learnt.
    """

    def __init__(
        self, source: ClassMapSource, data: MaskedImages, stage: CueStage, *, device: str | torch.device, seed: int = 0
    ) -> None:
        self.source, self.data, self.stage, self.device, self.seed = source, data, stage, device, seed
        self.beta = 0.0 if stage.beta == "best" else float(stage.beta)
        # street scenes have no background to be sure of
        self.sure = stage.sure if data.has_background else stage.sure.changed(background="none")
        self.affinity: AffinityNet | None = None
        self._cache: dict[int, Float[np.ndarray, "c h w"]] = {}
        self._room = _CACHE_BYTES

    def prepare(self, progress: Progress | None = None) -> dict[str, float]:
        """Find the best background score if the truth is known, and learn affinities if they are asked for."""
        has_truth = any(self.data.has_mask(i) for i in range(len(self.data)))
        needs_beta = self.stage.kind == "pseudo_masks" or self.stage.refine == "crf"
        if self.stage.beta == "best" and needs_beta and not has_truth:
            raise InputError('beta = "best" needs images with true masks to choose it by; give a number')
        needs_cues = self.stage.refine == "affinity"
        if not has_truth and not needs_cues:
            return {}
        counter, cues = CurveCounter(self.data.mask_names), []
        for i in range(len(self.data)):
            scores = self._scores(i)
            truth = self.data.mask(i)
            if truth is not None:
                counter.add(truth, scores)
            if needs_cues:
                cues.append(make_cues(scores, settings=self.sure, image=self.data.image(i)))
            if progress is not None:
                progress(i + 1, len(self.data))
        if needs_cues:
            encoder = getattr(self.source, "encoder", None)
            if not isinstance(encoder, Encoder):
                raise InputError(f"affinities are learnt on an encoder, and {type(self.source).__name__} has none")
            settings = dataclasses.replace(self.stage.affinity, seed=self.seed)
            self.affinity = train_affinity(encoder, self.data, cues, settings=settings)
        if not has_truth:
            return {}
        curve = counter.curve()
        if self.stage.beta == "best":
            self.beta = curve.best_beta
        return {"maps.mean_iou": curve.best_score.mean_iou, "maps.beta": curve.best_beta}

    def mask(self, i: int) -> Mask:
        """The mask of image i."""
        stage, scores, image = self.stage, self._scores(i), self.data.image(i)
        refined: Float[np.ndarray, "c_and_background h w"] | None = None
        if stage.refine == "walk":
            refined = refine_by_walk(scores, image, settings=stage.walk)
        elif stage.refine == "affinity":
            if self.affinity is None:
                raise InputError("affinities have to be learnt first; see train_affinity")
            refined = refine_by_walk(scores, image, settings=stage.walk, features=self.affinity.features(image))
        elif stage.refine == "crf":
            ground = np.full_like(scores[:1], self.beta)
            refined = dense_crf(image, np.concatenate([ground, scores]), settings=stage.crf)
        if stage.kind == "pseudo_masks":
            if refined is not None:
                return most_likely(refined, has_background=self.data.has_background)
            return pseudo_mask(scores, beta=self.beta if self.data.has_background else -1.0, margin=stage.margin)
        if refined is not None:
            scores = refined[1:] / max(float(refined[1:].max()), 1e-12)
        return make_cues(scores, settings=self.sure, image=image)

    def _scores(self, i: int) -> Float[np.ndarray, "c h w"]:
        """The class scores of an image; as many as there is room for are kept for a second look."""
        if i in self._cache:
            return self._cache[i]
        stage = self.stage
        scores = score_image(
            self.source, self.data, i, labels=stage.labels, settings=stage.inference, device=self.device
        )
        if scores.nbytes <= self._room:
            self._cache[i] = scores
            self._room -= scores.nbytes
        return scores


def most_likely(scores: Float[np.ndarray, "c h w"], *, has_background: bool = True) -> Mask:
    """The class with the highest score in every pixel; of images without a background the best other one."""
    first = 0 if has_background else 1
    mask: Mask = (scores[first:].argmax(0) + first).astype(np.uint8)
    return mask
