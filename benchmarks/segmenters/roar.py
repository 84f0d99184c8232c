"""ROAR for segmenters: what a new network still learns from pictures without the pixels that a map calls important.

ROAD asks the network at hand, which has never seen a picture with holes; ROAR trains another one on such pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distcam.errors import InputError, ShapeError
from distcam.explain import PixelScore, explain_image, rectify, upsample
from distcam.explain.checks.faithfulness import pixel_order
from distcam.explain.checks.imputation import impute_linearly

from .pixel_data import PixelData


def whole_explanations(
    model: nn.Module, data: PixelData, *, method: str, layer: str, seed: int = 0, batch_size: int = 16, **options: Any
) -> Float[Tensor, "n h w"]:
    """One map for each picture, of everything that is predicted in it, in the picture's size.

    The maps of all classes, each for the pixels predicted to be of it and scaled to a maximum of 1, and of these the
    largest value at each place. The truth is not looked at. "random" is a smooth map of noise.
    """
    size = (data.images.shape[-2], data.images.shape[-1])
    if method == "random":
        noise = torch.rand(len(data), 8, 8, generator=torch.Generator().manual_seed(seed))
        return upsample(noise, size)
    classes = [c for c in range(len(data.names)) if c != data.background]
    target = PixelScore(torch.tensor([classes]), "predicted")
    found = []
    for images in torch.split(data.images, batch_size):
        maps = explain_image(model, images, target=target, method=method, layer=layer, **options).maps
        heat = rectify(upsample(maps, size))
        found.append((heat / heat.amax((-2, -1), keepdim=True).clamp(min=1e-30)).amax(1))
    return torch.cat(found)


def remove_and_retrain(
    train: PixelData,
    test: PixelData,
    maps: tuple[Float[Tensor, "n h w"], Float[Tensor, "t h w"]],
    fit: Callable[[PixelData], nn.Module],
    *,
    fractions: Sequence[float],
    measure: Callable[[nn.Module, PixelData], float],
    fill: Literal["linear", "mean"] = "linear",
    seed: int = 0,
) -> list[float]:
    """ROAR: what a network still learns from pictures whose most important pixels were removed, one value a fraction.

    Pixels go in the order of the maps, in training and test pictures alike, and a network is trained on what is left:
    the faster its measure falls, the more of what the classes are known by lay in those pixels. With "mean" the removed
    pixels become 0, as in the paper; where objects are segmented their hole then shows their outline, so the default
    puts what the surrounding pixels let one guess, as in ROAD.

    Args:
        train: pictures with masks.
        test: others.
        maps: of the training and of the test pictures, in their size.
        fit: trains a new network on pictures.
        fractions: shares of the pixels to remove, in [0, 1); 0 removes nothing.
        measure: of a network on pictures, larger is better.
        fill: what stands where pixels were.
        seed: of the order among equal values.

    Raises:
        InputError: a fraction that is none.
        ShapeError: maps that do not belong to the pictures.

    Source: Hooker et al., A Benchmark for Interpretability Methods in Deep Neural Networks, 2019, §3.
    """
    if not fractions or any(not 0 <= share < 1 for share in fractions):
        raise InputError(f"fractions={tuple(fractions)} should be shares of the pixels, from 0 to less than 1")
    if fill not in ("linear", "mean"):
        raise InputError(f"fill={fill!r} is not known; choose linear or mean")
    values = []
    for share in fractions:
        left = [_without(data, own, share, fill, seed) for data, own in zip((train, test), maps, strict=True)]
        values.append(measure(fit(left[0]), left[1]))
    return values


def _without(data: PixelData, maps: Tensor, share: float, fill: str, seed: int) -> PixelData:
    if maps.shape != data.classes.shape:
        raise ShapeError(f"expected maps {tuple(data.classes.shape)}, got {tuple(maps.shape)}")
    if share == 0:
        return data
    removed = pixel_order(maps, seed=seed) < round(share * maps[0].numel())
    if fill == "mean":
        return replace(data, images=data.images.masked_fill(removed[:, None], 0.0))
    pairs = zip(torch.split(data.images, 32), torch.split(removed, 32), strict=True)
    return replace(data, images=torch.cat([impute_linearly(images, gone) for images, gone in pairs]))
