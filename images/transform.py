"""From an image of any size to the pixels a network sees, and back: where those pixels lie in the original."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from .geometry import Fitting
from .loading import read_levels


@dataclass(frozen=True)
class Transform(Fitting):
    """The way from an image to a network's input; part of the encoder's identity, so every value is stored with it.

    `fit` says what becomes of the aspect ratio:

    - "pad" (default): the whole image fits inside, centred, the rest is filled with `fill`; nothing is lost, and
      proportions stay.
    - "squash": both sides are resized to `size`; nothing is lost, proportions change.
    - "crop": the shorter side is resized to `resize`, the middle is cut out; as torchvision's Resize and CenterCrop on
      Pillow images, to within a grey level (two where both roundings are ties).

    Two transforms that do the same are equal: `size` is kept as (height, width), `resize` as the number in use.

    Attributes:
        size: (height, width) of the network's input in pixels; a number stands for a square.
        fit: see above.
        resize: fit="crop": pixels of the shorter side after resizing, `round(longer side of size * 256 / 224)` if left
            out. None for the other fits.
        mean: what `normalise` subtracts, in units of [0, 1] and in the order of `channels`; ImageNet's by default.
        std: what `normalise` divides by, likewise.
        channels: the order the network expects; images themselves are always RGB.
        interpolation: the filter for resizing, antialiased.
        fill: fit="pad": the colour of the margin as (red, green, blue) from 0 to 255.
        decoding: how `read` decodes a JPEG: "scaled" (default) leaves out the detail that resizing would, and keeps at
            least 2.5 times the rows and columns of the resized image; "full" decodes all, as version 0.1 did.
    """

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """The network's input for one image, grey levels 0 to 255; modes other than RGB pass through `as_rgb`."""
        return torch.from_numpy(self.levels(image))

    def read(
        self, source: str | os.PathLike[str] | bytes | BinaryIO, *, whole: bool = False
    ) -> tuple[UInt8[Tensor, "3 h w"], tuple[int, int]]:
        """The network's input for an image file, and the width and height of the upright image, see `read_image`."""
        levels, size = read_levels(source, self, whole=whole)
        return torch.from_numpy(levels), size

    def normalise(self, pixels: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Grey levels 0 to 255 as the network's numbers, on the device of the batch; bytes become float32."""
        levels = pixels if pixels.is_floating_point() else pixels.float()
        mean, std = self._columns(levels)
        return (levels / 255 - mean) / std

    def denormalise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The network's numbers as intensities in [0, 1], still in the order of `channels`; undoes `normalise`."""
        mean, std = self._columns(images)
        return images * std + mean

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = like.new_tensor([self.mean, self.std]).view(2, 3, 1, 1)
        return mean, std
