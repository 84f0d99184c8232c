"""Pictures as a network takes them with what each of their pixels shows, and what a network says about these.

Here the network is not the point, it is what maps are judged with: any module from images to logits in their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from ...encoders.encoder import evaluating
from ...errors import InputError, ShapeError
from ...images import Transform
from ...metrics.components import labelled
from ..crowds import Crowd
from ..data import VOID, MaskedImages, label_map
from ..measures import SegmentationScore, evaluate_masks

__all__ = ["PixelData", "picture_of", "predict", "score"]


@dataclass(frozen=True, eq=False)
class PixelData:
    """Pictures as a network takes them, with what each of their pixels shows.

    Attributes:
        images: normalised.
        classes: numbers of the network's outputs; 255 where nobody knows.
        instances: 0 where nothing is told apart, else the number of the object, within its picture.
        names: of the classes.
        background: the class that is no thing, which nothing is asked about; None if every class is one.
    """

    images: Float[Tensor, "n 3 h w"]
    classes: Int[Tensor, "n h w"]
    instances: Int[Tensor, "n h w"]
    names: tuple[str, ...]
    background: int | None = None

    def __post_init__(self) -> None:
        expected = (len(self.images), *self.images.shape[-2:])
        if not self.classes.shape == self.instances.shape == expected:
            raise ShapeError(
                f"expected maps of classes and instances {expected}, got {tuple(self.classes.shape)} and "
                f"{tuple(self.instances.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def with_images(self, images: Float[Tensor, "n 3 h w"]) -> PixelData:
        """The same masks under other pictures."""
        return replace(self, images=images)

    @classmethod
    def of_crowds(cls, crowds: Sequence[Crowd], names: Sequence[str], transform: Transform) -> PixelData:
        """Drawn pictures; class 0 is the background."""
        pixels = torch.stack([transform(crowd.image) for crowd in crowds])
        classes, instances = (
            torch.stack([torch.from_numpy(label_map(getattr(crowd, of), transform, outside=0)) for crowd in crowds])
            for of in ("classes", "instances")
        )
        return cls(transform.normalise(pixels), classes.long(), instances.long(), ("background", *names), 0)

    @classmethod
    def of_masks(cls, pictures: MaskedImages, transform: Transform) -> PixelData:
        """Pictures with masks; an instance is a connected region of a class.

        Without a background (CamVid) output c is class c, else class c has output c + 1.

        Raises:
            InputError: a picture without a mask.
        """
        first = 0 if pictures.has_background else 1
        classes, instances = [], []
        for i in range(len(pictures)):
            mask = pictures.mask(i)
            if mask is None:
                raise InputError(f"{pictures.names[i]} has no mask; every picture needs one here")
            seen = label_map(mask, transform)
            known = np.where(seen == VOID, VOID, seen.astype(int) - first)
            classes.append(torch.from_numpy(known))
            instances.append(torch.from_numpy(_regions(known, background=0 if pictures.has_background else None)))
        pixels = torch.stack([transform(pictures.image(i)) for i in range(len(pictures))])
        names = pictures.mask_names[first:]
        background = 0 if pictures.has_background else None
        return cls(transform.normalise(pixels), torch.stack(classes), torch.stack(instances), names, background)


def _regions(classes: np.ndarray, *, background: int | None) -> np.ndarray:
    """The connected regions of all classes, numbered through."""
    numbers = np.zeros(classes.shape, dtype=np.int64)
    for c in np.unique(classes).tolist():
        if c not in (VOID, background):
            own = labelled(classes == c)
            numbers = np.where(own > 0, own + numbers.max(), numbers)
    return numbers


def predict(model: nn.Module, images: Float[Tensor, "n 3 h w"], *, batch_size: int = 32) -> Int[Tensor, "n h w"]:
    """The class of each pixel."""
    with evaluating(model), torch.no_grad():
        return torch.cat([model(some).argmax(1) for some in torch.split(images, batch_size)])


def score(model: nn.Module, data: PixelData) -> SegmentationScore:
    """How well the network's masks agree with the truth."""
    predicted = predict(model, data.images)
    pairs = (
        (truth.numpy().astype(np.uint8), found.numpy().astype(np.uint8))
        for truth, found in zip(data.classes, predicted, strict=True)
    )
    return evaluate_masks(pairs, data.names)


def picture_of(image: Float[Tensor, "3 h w"], transform: Transform) -> Image.Image:
    """A network's input as a picture again."""
    pixels = (transform.denormalise(image[None])[0] * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
