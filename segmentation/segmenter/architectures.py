"""Segmentation networks that are built here: U-Net, and DeepLab's LargeFOV on VGG-16. Outputs: background, classes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...encoders.backbones.torchvisions import models
from ...errors import InputError

Parts = tuple[nn.Module, nn.Module]  # a backbone, and the classifier of its positions


class UNet(nn.Module):
    """A U-Net up to its last map, (b, 3, H, W) → (b, width, H, W), from 2^(levels-1) pixels.

    `levels` sizes, each half of the one before and with twice the channels, of two 3×3 convolutions with batch norm.
    Unlike the paper's it pads, so that masks keep the image's size, and enlarges bilinearly; `deep` is the lowest.

    Source: Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015, Figure 1.
    """

    layer = "deep"  # the map that an explanation looks at unless told otherwise

    def __init__(self, *, width: int = 64, levels: int = 5) -> None:
        super().__init__()
        if width < 1 or levels < 2:
            raise InputError(f"a U-Net has a width from 1 and levels from 2 on, got {width} and {levels}")
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(_level(inputs, own) for inputs, own in zip([3, *widths], widths[:-1], strict=False))
        self.deep = _level(widths[-2], widths[-1])
        self.up = nn.ModuleList(_level(3 * own, own) for own in reversed(widths[:-1]))

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b k rows columns"]:
        """The last map."""
        if min(images.shape[-2:]) < 2 ** len(self.down):
            raise InputError(
                f"a U-Net of {len(self.down) + 1} levels needs images from {2 ** len(self.down)} pixels on"
            )
        x: Tensor = images
        passed: list[Tensor] = []
        for level in self.down:
            passed.append(level(x))
            x = functional.max_pool2d(passed[-1], 2)
        x = self.deep(x)
        for level in self.up:
            beside = passed.pop()
            enlarged = functional.interpolate(x, beside.shape[-2:], mode="bilinear", align_corners=False)
            x = level(torch.cat([beside, enlarged], 1))
        return x


def _level(inputs: int, outputs: int) -> nn.Sequential:
    def normed(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(*normed(inputs), *normed(outputs))


def unet(n_outputs: int, *, width: int = 64, levels: int = 5) -> Parts:
    """A `UNet`, and its 1×1 classifier."""
    return UNet(width=width, levels=levels), nn.Conv2d(width, n_outputs, 1)


def largefov(n_outputs: int, *, channels: int = 1024, dilation: int = 12, download: bool = False) -> Parts:
    """VGG-16 with a map at an eighth of the image's side (321 → 41), and three convolutions for its fc6 to fc8.

    The fourth and fifth pooling step by 1, poolings are 3×3, the fifth stage spreads its kernels by 2, and the first of
    the three, of 3×3, by `dilation`: 20.5 M parameters with 21 outputs. ImageNet's weights are torchvision's, without
    fc6 and fc7, whose sizes are others here; DeepLab's own took a part of fc6.

    Source: Chen et al., Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs, 2015, §3.1
        and Table 3 (DeepLab-LargeFOV).
    """
    features = models.vgg16(weights="DEFAULT" if download else None).features
    poolings = 0
    for number, part in enumerate(features):
        if isinstance(part, nn.MaxPool2d):
            poolings += 1
            features[number] = nn.MaxPool2d(3, 2 if poolings < 4 else 1, padding=1)
        elif isinstance(part, nn.Conv2d) and poolings == 4:
            part.dilation, part.padding = (2, 2), (2, 2)
    wide = nn.Conv2d(512, channels, 3, padding=dilation, dilation=dilation)
    layers = [wide, nn.ReLU(), nn.Dropout(), nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(OrderedDict(features=features)), nn.Sequential(*layers, nn.Conv2d(channels, n_outputs, 1))


BUILDERS: Mapping[str, Callable[..., Parts]] = {"unet": unet, "deeplab_largefov_vgg16": largefov}
"""By name; each takes the number of outputs, and its options."""
