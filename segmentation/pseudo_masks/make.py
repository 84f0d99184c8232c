"""From class maps to masks on disk: cues or pseudo masks, refined by a random walk or a dense CRF, and measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image

from ...datasets.voc import VocFolder
from ...encoders import Encoder
from ...errors import InputError
from ...training.engine.environment import choose_device
from ..data import Mask, MaskedImages
from ..measures import CurveCounter, SegmentationScore, confusion_matrix
from ..segmenter.inference import InferenceSettings, Known, class_scores, predicted_classes, require_classes, seen_by
from .affinity import AffinityNet, AffinitySettings, train_affinity
from .crf import CrfSettings, dense_crf
from .cues import CueSettings, make_cues, pseudo_mask
from .random_walk import WalkSettings, refine_by_walk
from .sources import ClassMapSource

__all__ = ["CueStage", "image_scores", "make_masks", "most_likely", "refined_scores"]

_KEPT_BYTES = 512 * 1024**2  # of class scores

Progress = Callable[[int, int], None]
Refinement = Literal["none", "walk", "affinity", "crf"]


@dataclass(frozen=True)
class CueStage:
    """What becomes of the class maps of the training pictures.

    Attributes:
        kind: "cues": sure pixels; "pseudo_masks": every pixel gets a class; "truth": the true masks, to compare with.
        method: of a classifier's maps: "cam" or "gradcam".
        labels: whose maps count: those of the classes "known" of the picture, "predicted" ones, or "all".
        inference: scales, mirroring, and what scale 1 is.
        sure: what counts as a cue.
        beta: "pseudo_masks": the background's score, or "best": the one with the highest mIoU on the training masks.
        margin: "pseudo_masks": see `pseudo_mask`.
        refine: "walk" (random walk by colours), "affinity" (by affinities learnt from cues), "crf", or "none".
        walk: of the random walk.
        affinity: how affinities are learnt.
        crf: of the dense CRF.
    """

    kind: Literal["cues", "pseudo_masks", "truth"] = "cues"
    method: Literal["cam", "gradcam"] = "cam"
    labels: Literal["known", "predicted", "all"] = "known"
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    sure: CueSettings = field(default_factory=CueSettings)
    beta: float | Literal["best"] = 0.3
    margin: float = 0.0
    refine: Literal["none", "walk", "affinity", "crf"] = "none"
    walk: WalkSettings = field(default_factory=WalkSettings)
    affinity: AffinitySettings = field(default_factory=AffinitySettings)
    crf: CrfSettings = field(default_factory=CrfSettings)


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
    """Write a mask for every picture, and measure them where the truth is known.

    Args:
        source: gives the maps.
        data: the pictures.
        masks: those that it has already are kept.
        stage: how masks are made; `CueStage()` if left out.
        seed: of what is learnt for it.
        split: the name of the list that is written.
        device: of the network.
        progress: called with (pictures done, pictures in all).

    Raises:
        InputError: other classes than the data's; beta = "best" without any true mask.
    """
    stage = stage or CueStage()
    require_classes(source.class_names, data)
    where = choose_device(device)
    seen_by(source, where)
    maker = _Maker(source, data, stage, device=str(where), seed=seed)
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
        score = SegmentationScore(data.mask_names, total, len(data))
        decided = int(total[:, :-1].sum())
        metrics["masks.coverage"] = decided / int(total.sum())
        metrics["masks.accuracy"] = float(np.trace(total[:, :-1])) / max(decided, 1)
        metrics["masks.mean_iou"] = score.mean_iou
    return metrics


class _Maker:
    """One picture's mask after another; what needs all pictures first is done by `prepare`."""

    def __init__(self, source: ClassMapSource, data: MaskedImages, stage: CueStage, *, device: str, seed: int) -> None:
        self.source, self.data, self.stage, self.device, self.seed = source, data, stage, device, seed
        self.beta = 0.0 if stage.beta == "best" else float(stage.beta)
        ground = (
            stage.sure.background if data.has_background else "none"
        )  # street scenes have no background to be sure of
        self.sure = dataclasses.replace(stage.sure, background=ground)
        self.affinity: AffinityNet | None = None
        self.kept: dict[int, Float[np.ndarray, "c h w"]] = {}
        self.room = _KEPT_BYTES

    def prepare(self, progress: Progress | None) -> dict[str, float]:
        """The best background score if the truth is known, and affinities if they are asked for."""
        has_truth = any(self.data.has_mask(i) for i in range(len(self.data)))
        needs_beta = self.stage.kind == "pseudo_masks" or self.stage.refine == "crf"
        if self.stage.beta == "best" and needs_beta and not has_truth:
            raise InputError('beta = "best" needs pictures with true masks to choose it by; give a number')
        needs_cues = self.stage.refine == "affinity"
        if not has_truth and not needs_cues:
            return {}
        counter, cues = CurveCounter(self.data.mask_names), []
        for i in range(len(self.data)):
            scores = self.scores(i)
            truth = self.data.mask(i)
            if truth is not None:
                counter.add(truth, scores)
            if needs_cues:
                cues.append(make_cues(scores, settings=self.sure, image=self.data.image(i)))
            if progress is not None:
                progress(i + 1, len(self.data))
        if needs_cues:
            self.affinity = self._learnt_affinity(cues)
        if not has_truth:
            return {}
        curve = counter.curve()
        if self.stage.beta == "best":
            self.beta = curve.best_beta
        return {"maps.mean_iou": curve.best_score.mean_iou, "maps.beta": curve.best_beta}

    def _learnt_affinity(self, cues: Sequence[Mask]) -> AffinityNet:
        encoder = getattr(self.source, "encoder", None)
        if not isinstance(encoder, Encoder):
            raise InputError(f"affinities are learnt on an encoder, and {type(self.source).__name__} has none")
        settings = dataclasses.replace(self.stage.affinity, seed=self.seed)
        return train_affinity(encoder, self.data, cues, settings=settings)

    def scores(self, i: int) -> Float[np.ndarray, "c h w"]:
        """The class scores of a picture; as many as there is room for are kept for a second look."""
        if i in self.kept:
            return self.kept[i]
        scores = image_scores(
            self.source,
            self.data.image(i),
            labels=self.stage.labels,
            known=self.data.labels(i) if self.stage.labels == "known" else None,
            settings=self.stage.inference,
            device=self.device,
        )
        if scores.nbytes <= self.room:
            self.kept[i] = scores
            self.room -= scores.nbytes
        return scores

    def mask(self, i: int) -> Mask:
        """What is written for a picture."""
        scores, image = self.scores(i), self.data.image(i)
        with_background = self.refined(scores, image)
        if self.stage.kind == "pseudo_masks":
            if with_background is None:
                beta = self.beta if self.data.has_background else -1.0
                return pseudo_mask(scores, beta=beta, margin=self.stage.margin)
            return most_likely(with_background, has_background=self.data.has_background)
        if with_background is not None:
            scores = with_background[1:] / max(float(with_background[1:].max()), 1e-12)
        return make_cues(scores, settings=self.sure, image=image)

    def refined(self, scores: Float[np.ndarray, "c h w"], image: Image.Image) -> Float[np.ndarray, "c h w"] | None:
        """Scores with the background's first after the refinement; None without one."""
        return refined_scores(
            scores,
            image,
            refine=self.stage.refine,
            beta=self.beta,
            walk=self.stage.walk,
            crf=self.stage.crf,
            affinity=self.affinity,
        )


def image_scores(
    source: ClassMapSource,
    image: Image.Image,
    *,
    labels: Known = "known",
    known: Sequence[int] | None = None,
    settings: InferenceSettings | None = None,
    device: str = "cpu",
) -> Float[np.ndarray, "c h w"]:
    """`class_scores` of the classes that count: those `known`, "predicted" ones, or "all"."""
    shown = known if labels == "known" else None
    if labels == "predicted":
        shown = predicted_classes(source, image, device=device)
    return class_scores(source, image, shown=shown, settings=settings, device=device)


def refined_scores(
    scores: Float[np.ndarray, "c h w"],
    image: Image.Image,
    *,
    refine: Refinement,
    beta: float = 0.3,
    walk: WalkSettings | None = None,
    crf: CrfSettings | None = None,
    affinity: AffinityNet | None = None,
) -> Float[np.ndarray, "c_and_background h w"] | None:
    """The scores of the background and the classes after a random walk or a dense CRF; None for "none"."""
    if refine == "walk":
        return refine_by_walk(scores, image, settings=walk)
    if refine == "affinity":
        if affinity is None:
            raise InputError("affinities have to be learnt first; see train_affinity")
        return refine_by_walk(scores, image, settings=walk, features=affinity.features(image))
    if refine == "crf":
        ground = np.full_like(scores[:1], beta)
        return dense_crf(image, np.concatenate([ground, scores]), settings=crf)
    return None


def most_likely(scores: Float[np.ndarray, "c h w"], *, has_background: bool = True) -> Mask:
    """The class with the highest score in every pixel; of pictures without a background the best other one."""
    first = 0 if has_background else 1
    mask: Mask = (scores[first:].argmax(0) + first).astype(np.uint8)
    return mask
