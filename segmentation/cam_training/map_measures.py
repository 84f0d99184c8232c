"""mIoU of class maps on the images of a training set, while they are trained and afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from ...errors import InputError
from ...metrics.segmentation import BETAS, BackgroundCurve, background_curve
from ...training.data.training_set import TrainingSet
from ..pseudo_masks.sources import ClassMapSource
from ..segmenter.inference import InferenceSettings, class_scores


@dataclass(frozen=True)
class MeasureSettings:
    """Measuring of trained maps against masks.

    Attributes:
        splits: all but "train" if empty. Their images say which classes they show, as for pseudo masks.
        scales: of the multi-scale measure; a single 1 leaves it out.
        flip: that one also looks at mirror images.
        images: of a split at most, spread over it; 0 for all.
        betas: background scores that are tried, 50 from 0 to 1 if empty. The best one is found on the split that it is
            reported for; the whole curve lies beside it.
    """

    splits: tuple[str, ...] = ()
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    flip: bool = True
    images: int = 0
    betas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.images < 0 or not self.scales or not all(0 <= beta <= 1 for beta in self.betas):
            raise InputError("expected images from 0 on, one scale or more, and betas in [0, 1]")

    @property
    def single(self) -> InferenceSettings:
        """One look at scale 1."""
        return InferenceSettings(scales=(1.0,), flip=False)

    @property
    def multiple(self) -> InferenceSettings | None:
        """Several looks; None if there are none."""
        several = InferenceSettings(scales=self.scales, flip=self.flip)
        return None if several == self.single else several


@dataclass(frozen=True, eq=False)
class MeasuredSplit:
    """The images of a split with their masks, in the pixels of the network's input.

    Attributes:
        images: the split.
        masks: 0 background, c + 1 class c, 255 void.
    """

    images: TrainingSet
    masks: UInt8[np.ndarray, "n h w"]


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
    """The maps' mIoU for every background score, at the size of the network's input.

    The classes that an image shows are known, as where maps become pseudo masks: the maps of the others are 0.

    Args:
        source: gives the maps; with the classes of the truth, in evaluation mode.
        truth: images and masks.
        settings: the views of an image.
        limit: of images, spread over the split; 0 for all.
        betas: background scores to try.
        device: of the network.
    """
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
