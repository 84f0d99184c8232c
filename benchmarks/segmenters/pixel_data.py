"""Images as a network takes them, with the class and the object of each pixel, for judging maps of the network.

A network is any module from images to logits in their size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.ndimage import label
from torch import Tensor, nn

from distcam.encoders.layers import evaluating
from distcam.errors import InputError, ShapeError
from distcam.images import Transform
from distcam.images.masks import VOID
from distcam.segmentation.data import MaskedImages, label_map


@dataclass(frozen=True, eq=False)
class PixelData:
    """Images as a network takes them, with the class and the object of each pixel.

    Attributes:
        images: normalised.
        classes: numbers of the network's outputs; 255 where nobody knows.
        instances: the number of the object within its image; 0 where nothing is told apart.
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

    @classmethod
    def of_masks(cls, images: MaskedImages, transform: Transform) -> PixelData:
        """Images with masks; an instance is a connected region of a class.

        Without a background (CamVid) output c is class c, else class c has output c + 1.
        """
        first, background = (0, 0) if images.has_background else (1, None)
        classes, instances = [], []
        for i in range(len(images)):
            mask = images.mask(i)
            if mask is None:
                raise InputError(f"{images.names[i]} has no mask; every image needs one here")
            seen = label_map(mask, transform)
            known = np.where(seen == VOID, VOID, seen.astype(int) - first)
            numbers = np.zeros(known.shape, dtype=np.int64)
            for c in np.unique(known).tolist():
                if c not in (VOID, background):
                    own = label(known == c, np.ones((3, 3)))[0]
                    numbers = np.where(own > 0, own + numbers.max(), numbers)
            classes.append(torch.from_numpy(known))
            instances.append(torch.from_numpy(numbers))
        pixels = torch.stack([transform(images.image(i)) for i in range(len(images))])
        names = images.mask_names[first:]
        return cls(transform.normalise(pixels), torch.stack(classes), torch.stack(instances), names, background)


def predict(model: nn.Module, images: Float[Tensor, "n 3 h w"], *, batch_size: int = 32) -> Int[Tensor, "n h w"]:
    """The class of each pixel."""
    with evaluating(model), torch.no_grad():
        return torch.cat([model(some).argmax(1) for some in torch.split(images, batch_size)])
