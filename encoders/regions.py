"""A part of an image as the question: how much of each position of a feature map it covers, and pooling over it.

A region is given in pixels of the image. The positions of the feature map divide the network's `view` of it evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ImageError, InputError, ShapeError
from ..images.geometry import Box
from ..images.masks import MaskFolder, read_class_numbers
from ..remarks import remark
from .encoder import Encoder
from .encoding import Encoding
from .heads import GAP, GeM, Pooling

Region = Box | NDArray[np.bool_]


def coverage(
    region: Box | Bool[NDArray[Any], "height width"], *, size: tuple[int, int], view: Box, shape: tuple[int, int]
) -> Float[Tensor, "h w"]:
    """Share of each position's area that the region covers, in [0, 1]; `size` is (width, height) of the image.

    >>> coverage(Box(0, 0, 3, 2), size=(4, 4), view=Box(0, 0, 4, 4), shape=(2, 2))
    tensor([[1.0000, 0.5000],
            [0.0000, 0.0000]])
    """
    width, height = size
    if isinstance(region, Box):  # one cell of ones between its own edges
        visible = region.clipped(*size)
        if not visible.area > 0:  # NaN fails too
            raise InputError(
                f"the region {tuple(region)} is empty or lies outside the image of {width}×{height} pixels"
            )
        mask, rows, columns = np.ones((1, 1)), np.array(visible[1::2], np.float64), np.array(visible[::2], np.float64)
    else:
        mask = region_mask(region, size).astype(np.float64)
        rows, columns = np.arange(height + 1.0), np.arange(width + 1.0)
    down = _overlap(rows, shape[0], begin=float(view.top), end=float(view.bottom))
    across = _overlap(columns, shape[1], begin=float(view.left), end=float(view.right))
    shares = (down @ mask @ across.T) * (shape[0] * shape[1] / view.area)
    if shares.max() < 1e-6:
        seen = tuple(round(edge, 1) for edge in view.clipped(*size))
        raise InputError(
            f"the region lies outside what the encoder sees of this image of {width}×{height} pixels, which is "
            f"(left, top, right, bottom) = {seen}; an encoder whose transform has fit='pad' or 'squash' sees all"
        )
    return torch.from_numpy(shares.clip(0, 1)).float()


def region_mask(region: Box | NDArray[Any], size: tuple[int, int]) -> Bool[NDArray[Any], "height width"]:
    """The region as a boolean array of the image's size; of a box the pixels with their centre inside."""
    width, height = size
    if isinstance(region, Box):
        x, y = np.arange(width) + 0.5, (np.arange(height) + 0.5)[:, None]
        inside: NDArray[np.bool_] = (x >= region.left) & (x < region.right) & (y >= region.top) & (y < region.bottom)
        return inside
    mask = np.asarray(region)
    if mask.shape != (height, width) or mask.dtype != np.bool_:
        raise ShapeError(
            f"a region's mask is boolean and as large as the image, (rows, columns) = ({height}, {width}); "
            f"got {mask.dtype} {mask.shape}"
        )
    if not mask.any():
        raise InputError("the region's mask holds no pixel")
    return mask


def region_weights(shares: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Shares of coverage as weights with mean 1: `weights · map` then has the region's mean as its plain mean."""
    return shares / shares.mean()


def weights_of(region: Region, *, size: tuple[int, int], encoder: Encoder, shape: tuple[int, int]) -> Tensor:
    """The weights (h, w), with mean 1, that a region of an image of `size` (width, height) gives an encoder's map."""
    return region_weights(coverage(region, size=size, view=encoder.transform.view(*size), shape=shape))


def pool_region(
    feature_map: Float[Tensor, "b k h w"], weights: Float[Tensor, "*n h w"], *, pooling: Pooling
) -> Float[Tensor, "b k"]:
    """The pooled vector of a region: mean or generalised mean over the positions, each with its weight (mean 1).

    The weights are one region's for all images, (h, w), or (b, h, w).

    >>> pool_region(torch.tensor([[[[1.0, 5.0]]]]), torch.tensor([[0.0, 2.0]]), pooling=GAP())
    tensor([[5.]])
    """
    if not isinstance(pooling, GAP | GeM):
        raise InputError(f"{type(pooling).__name__} cannot be taken over a region; only GAP and GeM can")
    pooled: Tensor = pooling(feature_map, weights if weights.ndim == 2 else weights[:, None])
    return pooled


def pooled_under(encoder: Encoder, encoding: Encoding, weights: Sequence[Tensor | None]) -> Encoding:
    """The encoding with each image pooled under its own weights; None leaves an image as it is."""
    if len(weights) != len(encoding):
        raise ShapeError(f"{len(encoding)} images need as many weights (None for the whole image); got {len(weights)}")
    own = [row for row, each in enumerate(weights) if each is not None]
    if not own:
        return encoding
    given = torch.stack([each for each in weights if each is not None]).to(encoding.feature_map)
    with torch.no_grad():
        region = pool_region(encoding.feature_map[own], given, pooling=encoder.pooling)
        pooled, embedding = encoding.pooled.clone(), encoding.embedding.clone()
        pooled[own], embedding[own] = region, encoder.embed(region)
    return replace(encoding, pooled=pooled, embedding=embedding)


@dataclass(frozen=True, eq=False)
class MaskPooling:
    """Pooling of images under the masks of a folder.

    An image without a mask, with an empty one, or with one that lies outside what the encoder sees, is pooled as a
    whole; with `strict` it is an error. `marked` has the path of each mask applied and its key in `_ODDITIES`, or "".
    """

    masks: MaskFolder
    encoder: Encoder
    shape: tuple[int, int]
    strict: bool = False
    passed_over: list[str] = field(default_factory=list)
    marked: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, masks: MaskFolder, encoder: Encoder, *, strict: bool = False) -> MaskPooling:
        """With the shape of the feature map, which one empty image tells."""
        transform, parameter = encoder.transform, next(encoder.parameters(), torch.empty(0))
        blank = torch.zeros(1, 3, transform.height, transform.width, device=parameter.device, dtype=parameter.dtype)
        with torch.no_grad():
            rows, columns = encoder(blank).feature_map.shape[2:]
        return cls(masks, encoder, (rows, columns), strict)

    def weights(self, path: str | Path, size: tuple[int, int]) -> Float[Tensor, "h w"] | None:
        """The weights of the image of `size` (width, height) that is known by this path; None for all of it."""
        mask = self.masks.read(path, size)
        if mask is None:
            reason = f"it has no mask; expected {self.masks.file(path)}"
        elif not mask.any():
            reason = "its mask holds no pixel"
            if self.masks.category is not None:
                there = np.unique(read_class_numbers(self.masks.file(path)))[:5].tolist()
                reason += f" with the number {self.masks.category}, only {', '.join(map(str, there))}"
            reason += f": {self.masks.file(path)}"
        else:
            self.marked.append((str(path), _oddity(mask)))
            try:
                return weights_of(mask, size=size, encoder=self.encoder, shape=self.shape)
            except InputError as error:
                reason = f"its mask: {error}"
        if self.strict:
            raise ImageError(path, reason)
        if mask is not None:
            self.passed_over.append(f"{path}: {reason}")
        return None

    def tell(self) -> None:
        """Remark on the masks that mark nothing, whose images are pooled as a whole, and if most mark everything."""
        if self.passed_over:
            count, first = len(self.passed_over), self.passed_over[0]
            remark(f"{count:,} images are pooled as a whole, since their masks mark nothing; the first: {first}")
        for oddity, meaning in _ODDITIES.items():
            found = [path for path, own in self.marked if own == oddity]
            if len(found) > max(2, len(self.marked) / 2):  # a few are close-ups
                remark(
                    f"{len(found):,} of {len(self.marked):,} masks in {self.masks.folder} mark {oddity}, as that of "
                    f"{found[0]}: {meaning}"
                )


_ODDITIES = {
    "every pixel": "no pixel of theirs is black, so they change nothing",
    "the rim and not the middle": "they may be inverted (what is not black is the object)",
}


def _oddity(mask: Bool[NDArray[Any], "height width"]) -> str:
    """The key of `_ODDITIES` that a mask is a case of; "" for the mask of an object."""
    if mask.all():
        return "every pixel"
    height, width = mask.shape
    rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return "the rim and not the middle" if rim.mean() > 0.75 and middle.mean() < rim.mean() / 2 else ""


def _overlap(edges: NDArray[np.float64], cells: int, *, begin: float, end: float) -> NDArray[np.float64]:
    """Length that each of the cells spread from `begin` to `end` shares with each interval between two edges."""
    borders = np.linspace(begin, end, cells + 1)
    low = np.maximum(borders[:-1, None], edges[:-1])
    high = np.minimum(borders[1:, None], edges[1:])
    lengths: NDArray[np.float64] = (high - low).clip(min=0)
    return lengths
