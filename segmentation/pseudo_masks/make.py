"""From class maps to masks on disk: cues or pseudo masks, refined by a random walk or a dense CRF, and measured.

Scores are those of `class_scores`: in an image's own pixels, each class's maximum 1, classes that are not shown 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image

from ...datasets.masked_images import VocFolder
from ...encoders import Encoder
from ...errors import InputError, ShapeError
from ...images.masks import VOID, Mask, MaskFolder
from ...metrics.segmentation import CurveCounter, SegmentationScore, confusion_matrix
from ...progress import Progress
from ...training.recipes.tables import BelowOne, Table
from ..data import MaskedImages
from ..segmenter.inference import InferenceSettings, Shown, on_device, require_classes, score_image
from .refining import (
    AffinityNet,
    AffinitySettings,
    CrfSettings,
    WalkSettings,
    dense_crf,
    refine_by_walk,
    train_affinity,
)
from .sources import ClassMapSource


class CueSettings(Table):
    """The pixels that count as sure.

    Attributes:
        foreground: pixels above this share of a map's maximum are cues of its class.
        conflicts: the winner of a pixel that is above the threshold for several classes: the class whose own region is
            "smaller", or the one with the higher "score".
        background: source of the background's cues. "low": pixels where no class reaches `low`. "saliency": the
            `share` of the pixels that stand out least, and all that do so as little; among those without a cue. "none":
            there are none.
        low: share of the maps' maximum.
        share: of the image's pixels.

    Source: [GAIN] §4: 20 % of the maximum; as in Kolesnikov and Lampert, Seed, Expand and Constrain, 2016, the smaller
        region wins, and a tenth of the image with the least saliency is background.
    """

    only_for: ClassVar = {"low": ("background", "low"), "share": ("background", "saliency")}

    foreground: BelowOne = 0.2
    conflicts: Literal["smaller", "score"] = "smaller"
    background: Literal["low", "saliency", "none"] = "low"
    low: BelowOne = 0.05
    share: BelowOne = 0.1

    def _check(self) -> None:
        if self.background == "low" and self.low > self.foreground:
            raise InputError(f"low = {self.low} lies above foreground = {self.foreground}; pixels would be both")


def make_cues(
    scores: Float[np.ndarray, "c h w"],
    *,
    settings: CueSettings | None = None,
    image: Image.Image | None = None,
    saliency: Float[np.ndarray, "h w"] | None = None,
) -> Mask:
    """A mask of the sure pixels: 0 background, c + 1 class c, 255 undecided.

    background="saliency" needs the image, or a map that is high on objects in place of `border_contrast` of it:
    InputError without, ShapeError if these are not of the scores' size.
    """
    settings = settings or CueSettings()
    cues = foreground_cues(scores, threshold=settings.foreground, conflicts=settings.conflicts)
    free = cues == VOID
    if settings.background == "low":
        cues[free & (scores.max(0) <= settings.low * scores.max(initial=0))] = 0
    elif settings.background == "saliency":
        if saliency is None:
            if image is None:
                raise InputError('background="saliency" needs the image, or a map of what stands out in it')
            saliency = border_contrast(image)
        if saliency.shape != cues.shape:
            raise ShapeError(
                f"expected the image or its saliency in the scores' size {cues.shape}, got {saliency.shape}"
            )
        count = round(settings.share * saliency.size)
        if count:
            limit = np.partition(saliency.ravel(), count - 1)[count - 1]
            cues[free & (saliency <= limit)] = 0
    return cues


def foreground_cues(
    scores: Float[np.ndarray, "c h w"], *, threshold: float = 0.2, conflicts: Literal["smaller", "score"] = "smaller"
) -> Mask:
    """A mask with c + 1 where class c is above `threshold` of its maximum, and 255 elsewhere."""
    most = scores.max((1, 2), keepdims=True)
    inside: Bool[np.ndarray, "c h w"] = (scores > threshold * most) & (most > 0)
    strength = scores if conflicts == "score" else -inside.sum((1, 2), keepdims=True)
    best = np.where(inside, strength, -np.inf).argmax(0) + 1
    return np.where(inside.any(0), best, VOID).astype(np.uint8)


def pseudo_mask(
    scores: Float[np.ndarray, "c h w"],
    *,
    beta: float | Float[np.ndarray, "h w"] = 0.2,
    margin: float = 0.0,
) -> Mask:
    """The argmax over the background's score β, a number or a map, and those of the classes; a tie is background.

    Pixels whose best class and background differ by less than `margin` are undecided (255).

    >>> pseudo_mask(np.array([[[0.9, 0.3, 0.1]], [[0.0, 0.0, 0.5]]]), beta=0.3).tolist()
    [[1, 0, 2]]
    """
    best = scores.max(0)
    decided = np.where(best > beta, scores.argmax(0) + 1, 0).astype(np.uint8)
    if margin:
        decided[np.abs(best - beta) < margin] = VOID
    return decided


def border_contrast(image: Image.Image) -> Float[np.ndarray, "h w"]:
    """Distance of each pixel's colour from the nearest of sixteen mean colours along the border, in [0, 1]."""
    small = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX), dtype=float) / 255
    thick = 5
    strips = ((small[:thick], 1), (small[-thick:], 1), (small[:, :thick], 0), (small[:, -thick:], 0))
    means = np.stack([part.mean((0, 1)) for strip, axis in strips for part in np.array_split(strip, 4, axis=axis)])
    distance = np.sqrt(((small[:, :, None] - means) ** 2).sum(-1)).min(-1)
    distance = distance / max(distance.max(), 1e-12)
    enlarged = Image.fromarray(distance.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    return np.asarray(enlarged, dtype=float)


_CACHE_BYTES = 512 * 1024**2  # of class scores


class CueStage(Table):
    """The way from class maps of the training images to masks."""

    # "cues": sure pixels; "pseudo_masks": every pixel gets a class; "truth": the true masks, to compare with
    kind: Literal["cues", "pseudo_masks", "truth"] = "cues"
    method: Literal["cam", "gradcam"] = "cam"  # of a classifier's maps: "cam" or "gradcam"
    labels: Shown = "known"  # whose maps count: those of the classes "known" of the image, "predicted" ones, or "all"
    inference: InferenceSettings = InferenceSettings()  # scales, mirroring, and what scale 1 is
    sure: CueSettings = CueSettings()  # limits of cues
    # "pseudo_masks": the background's score, or "best": the one with the highest mIoU on the training masks
    beta: float | Literal["best"] = 0.3
    margin: float = 0.0  # "pseudo_masks": see `pseudo_mask`
    # "walk" (random walk by colours), "affinity" (by affinities learnt from cues), "crf", or "none"
    refine: Literal["none", "walk", "affinity", "crf"] = "none"
    walk: WalkSettings = WalkSettings()  # of the random walk
    affinity: AffinitySettings = AffinitySettings()  # of the training of affinities
    crf: CrfSettings = CrfSettings()  # of the dense CRF


def make_masks(
    source: ClassMapSource,
    data: MaskedImages,
    masks: VocFolder,
    *,
    stage: CueStage | None = None,
    saliency: str | Path = "",
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, float]:
    """Write a mask for every image, and measure them where the truth is known.

    `saliency` is a folder of maps, `NAME.png`, in place of `border_contrast` where cues ask what stands out.
    """
    require_classes(source.class_names, data)
    maker = MaskMaker(source, data, stage or CueStage(), saliency=saliency, device=on_device(source, device), seed=seed)
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
    masks.finish("train", data.names)
    if total.any():
        decided = int(total[:, :-1].sum())
        metrics["masks.coverage"] = decided / int(total.sum())
        metrics["masks.accuracy"] = float(np.trace(total[:, :-1])) / max(decided, 1)
        metrics["masks.mean_iou"] = SegmentationScore(data.mask_names, total, len(data)).mean_iou
    return metrics


class MaskMaker:
    """The masks of a data set, image by image; `prepare` does first what needs all images."""

    def __init__(
        self,
        source: ClassMapSource,
        data: MaskedImages,
        stage: CueStage,
        *,
        saliency: str | Path = "",
        device: str | torch.device,
        seed: int = 0,
    ) -> None:
        self.source, self.data, self.stage, self.device, self.seed = source, data, stage, device, seed
        self.beta = 0.0 if stage.beta == "best" else float(stage.beta)
        # street scenes have no background to be sure of
        self.sure = stage.sure if data.has_background else stage.sure.changed(background="none")
        self.saliency = MaskFolder.given(saliency) if saliency and self.sure.background == "saliency" else None
        self.affinity: AffinityNet | None = None
        self._cache: dict[int, Float[np.ndarray, "c h w"]] = {}  # from `prepare`, for the one mask of each image
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
            image = self.data.image(i)
            scores = self._scores(i, image)
            if scores.nbytes <= self._room:
                self._cache[i] = scores
                self._room -= scores.nbytes
            truth = self.data.mask(i)
            if truth is not None:
                counter.add(truth, scores)
            if needs_cues:
                cues.append(self._cues(i, scores, image))
            if progress is not None:
                progress(i + 1, len(self.data))
        if needs_cues:
            encoder = getattr(self.source, "encoder", None)
            if not isinstance(encoder, Encoder):
                raise InputError(f"affinities are learnt on an encoder, and {type(self.source).__name__} has none")
            settings = self.stage.affinity.changed(seed=self.seed)
            self.affinity = train_affinity(encoder, self.data, cues, settings=settings)
        if not has_truth:
            return {}
        curve = counter.curve()
        if self.stage.beta == "best":
            self.beta = curve.best_beta
        return {"maps.mean_iou": curve.best_score.mean_iou, "maps.beta": curve.best_beta}

    def mask(self, i: int) -> Mask:
        """The mask of image i."""
        stage, image = self.stage, self.data.image(i)
        if (scores := self._cache.pop(i, None)) is None:
            scores = self._scores(i, image)
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
        return self._cues(i, scores, image)

    def _cues(self, i: int, scores: Float[np.ndarray, "c h w"], image: Image.Image) -> Mask:
        given = None if self.saliency is None else self.saliency.saliency(f"{self.data.names[i]}.png", image.size)
        return make_cues(scores, settings=self.sure, image=image, saliency=None if given is None else given / 255)

    def _scores(self, i: int, image: Image.Image) -> Float[np.ndarray, "c h w"]:
        labels, settings = self.stage.labels, self.stage.inference
        return score_image(self.source, self.data, i, image=image, labels=labels, settings=settings, device=self.device)


def most_likely(scores: Float[np.ndarray, "c h w"], *, has_background: bool = True) -> Mask:
    """The class with the highest score in every pixel; of images without a background the best other one."""
    first = 0 if has_background else 1
    mask: Mask = (scores[first:].argmax(0) + first).astype(np.uint8)
    return mask
