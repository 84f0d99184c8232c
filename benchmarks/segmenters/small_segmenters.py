"""Two small segmentation networks, the plain loop that trains them from masks, and drawn crowds as their data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import mobilenet_v2

from distcam.encoders.state_dicts import load_state, say_what_is_left
from distcam.encoders.weight_files import drawn_from, read_state_dict
from distcam.errors import InputError
from distcam.images import Transform
from distcam.images.masks import VOID
from distcam.metrics.segmentation import SegmentationScore, evaluate_masks
from distcam.segmentation.data import label_map

from .crowds import Crowd
from .pixel_data import PixelData, predict


def crowd_data(crowds: Sequence[Crowd], names: Sequence[str], transform: Transform) -> PixelData:
    """Drawn images with their masks; class 0 is the background."""
    pixels = torch.stack([transform(crowd.image) for crowd in crowds])
    classes, instances = (
        torch.stack([torch.from_numpy(label_map(getattr(crowd, of), transform, outside=0)) for crowd in crowds])
        for of in ("classes", "instances")
    )
    return PixelData(transform.normalise(pixels), classes.long(), instances.long(), ("background", *names), 0)


def score(model: nn.Module, data: PixelData) -> SegmentationScore:
    """How well the network's masks agree with the truth."""
    predicted = predict(model, data.images)
    pairs = (
        (truth.numpy().astype(np.uint8), found.numpy().astype(np.uint8))
        for truth, found in zip(data.classes, predicted, strict=True)
    )
    return evaluate_masks(pairs, data.names)


def as_image(pixels: Tensor, transform: Transform) -> Image.Image:
    """A network's input (3, h, w) as an image again."""
    shown = (transform.denormalise(pixels[None])[0] * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(shown.permute(1, 2, 0).numpy())


class SmallSegmenter(nn.Module):
    """A U-Net of three levels: 1, 1/2, 1/4 of the input; scores (b, c, h, w) by a 1×1 head. `layer` is the lowest."""

    layer = "deep"

    def __init__(self, n_classes: int, *, width: int = 12, seed: int = 0) -> None:
        super().__init__()
        with drawn_from(seed):
            self.fine = _block(3, width)
            self.middle = _block(width, 2 * width)
            self.deep = nn.Sequential(_block(2 * width, 4 * width), _block(4 * width, 4 * width))
            self.up = _block(6 * width, 2 * width)
            self.out = _block(3 * width, 2 * width)
            self.head = nn.Conv2d(2 * width, n_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The logits, in the size of the images, whose sides are multiples of 4."""
        fine = self.fine(images)
        middle = self.middle(functional.max_pool2d(fine, 2))
        deep = self.deep(functional.max_pool2d(middle, 2))
        up = self.up(torch.cat([middle, _enlarged(deep, middle)], 1))
        scores: Tensor = self.head(self.out(torch.cat([fine, _enlarged(up, fine)], 1)))
        return scores


class MobileSegmenter(nn.Module):
    """MobileNetV2 up to 1/16 of the input, with scores at 1/8 and 1/16 added up; `layer` is the end of the backbone.

    Args:
        n_classes: outputs.
        weights: a file with torchvision's state_dict of the classifier; None draws them.
        seed: of what is drawn.

    Raises:
        WeightsError: the file cannot be read, or does not fit.
    """

    layer = "deep"

    def __init__(self, n_classes: int, *, weights: str | os.PathLike[str] | None = None, seed: int = 0) -> None:
        super().__init__()
        with drawn_from(seed):
            network = mobilenet_v2(weights=None)
            if weights is not None:
                origin = f"{os.fspath(weights)} for mobilenet_v2"
                say_what_is_left(load_state(network, read_state_dict(weights), origin=origin), origin=origin)
            self.fine, self.deep = network.features[:7], network.features[7:14]
            self.reduced = nn.Sequential(nn.Conv2d(96, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
            self.deep_head, self.fine_head = nn.Conv2d(64, n_classes, 1), nn.Conv2d(32, n_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The logits, in the size of the images."""
        fine = self.fine(images)
        deep = self.deep_head(self.reduced(self.deep(fine)))
        scores = self.fine_head(fine) + _enlarged(deep, fine)
        return _enlarged(scores, images)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _enlarged(maps: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class FitSettings:
    """How a network is trained: Adam with a one-cycle learning rate, mirrored pictures, cross entropy per pixel."""

    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not self.learning_rate > 0:
            raise InputError(f"expected at least one epoch, batches of at least two, and a learning rate; got {self}")


def fit_segmenter(model: nn.Module, data: PixelData, settings: FitSettings | None = None) -> list[float]:
    """Train a network on every known pixel; the mean loss of each epoch. The same seed gives the same weights.

    Raises:
        InputError: no pixel's class is known.
    """
    settings = settings or FitSettings()
    if bool((data.classes == VOID).all()):
        raise InputError("no pixel's class is known, so there is nothing to learn")
    generator = torch.Generator().manual_seed(settings.seed)
    batches = max(1, len(data) // settings.batch_size)
    optimiser = torch.optim.Adam(model.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.epochs * batches
    )
    losses = []
    model.train()
    for _ in range(settings.epochs):
        order, total = torch.randperm(len(data), generator=generator), 0.0
        for rows in order[: batches * settings.batch_size].tensor_split(batches):
            images, classes = data.images[rows], data.classes[rows]
            mirrored = torch.rand(len(rows), generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
            classes = torch.where(mirrored[:, None, None], classes.flip(-1), classes)
            loss = functional.cross_entropy(model(images), classes, ignore_index=VOID)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(total / batches)
    model.eval()
    return losses
