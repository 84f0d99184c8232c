"""Complementary patches: two images that share nothing and together are the image: I_h + I_h̄ = I, λ = 1 - N_h / N.

A patch is hidden in I_h with probability p_h, and in I_h̄ exactly if it is not hidden in I_h. Hidden pixels have the
training set's mean colour: 0 in a normalised image. Each image has patches of its own.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import InputError, MissingExtraError
from ...images import Transform

ShareOf = Literal["pixels", "patches"]


@dataclass(frozen=True, eq=False)
class PatchPair:
    """The pixels that each image of a complementary pair shows."""

    visible: Bool[Tensor, "b h w"]  # True where I_h shows the image; I_h̄ shows the rest
    share: Float[Tensor, " b"]  # λ of each image, what I_h shows, in [0, 1]; I_h̄ shows λ̄ = 1 - λ

    def images(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]]:
        """I_h and I_h̄ of normalised images."""
        shown = self.visible.unsqueeze(1)
        return images.where(shown, 0.0), images.where(~shown, 0.0)

    @property
    def is_whole(self) -> Bool[Tensor, " b"]:
        """True where one image of the pair shows everything and the other nothing."""
        seen = self.visible.flatten(1)
        return seen.all(1) | ~seen.any(1)


class Patches(ABC):
    """Division of images into patches, hidden with probability `hidden`; λ counts "pixels" or "patches".

    A draw that would hide all of an image's patches, or none, is repaired: one patch by chance changes sides.
    """

    def __init__(self, *, hidden: float = 0.5, share: ShareOf = "pixels") -> None:
        if not 0 < hidden < 1:
            raise InputError(f"expected the probability of hiding a patch between 0 and 1, got {hidden}")
        if share not in ("pixels", "patches"):
            raise InputError(f"unknown share {share!r}; λ counts 'pixels' or 'patches'")
        self.hidden, self.share = hidden, share

    def draw(self, images: Float[Tensor, "b 3 h w"], *, generator: torch.Generator | None = None) -> PatchPair:
        """A pair for each image, on the images' device."""
        visible, shares = [], []
        for patch in self._divided(images, generator):
            count = int(patch.max()) + 1
            is_hidden = self._chosen(count, generator)
            if count > 1 and bool(is_hidden.all() | ~is_hidden.any()):
                turned = torch.randint(count, (1,), generator=generator)
                is_hidden[turned] = ~is_hidden[turned]
            visible.append(~is_hidden[patch])
            shown = visible[-1] if self.share == "pixels" else ~is_hidden
            shares.append(float(shown.float().mean()))
        return PatchPair(torch.stack(visible).to(images.device), torch.tensor(shares, device=images.device))

    @abstractmethod
    def _divided(
        self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None
    ) -> Sequence[Int[Tensor, "h w"]]:
        """The number of each pixel's patch, from 0 without gaps, image by image, on the CPU."""

    def _chosen(self, count: int, generator: torch.Generator | None) -> Bool[Tensor, " n"]:
        """True for the patches that are hidden in I_h."""
        return torch.rand(count, generator=generator) < self.hidden


class GridPatches(Patches):
    """Squares of a grid from the upper left corner on ([CPN] §3.1, §4.3); each image draws one of the `sizes`."""

    def __init__(
        self, sizes: Sequence[float] = (0.125, 0.25), *, hidden: float = 0.5, share: ShareOf = "pixels"
    ) -> None:
        super().__init__(hidden=hidden, share=share)
        self.sizes = tuple(sizes)
        if not self.sizes or not all(0 < size < 1 or (size >= 1 and float(size).is_integer()) for size in self.sizes):
            raise InputError(f"expected sides in whole pixels, or shares between 0 and 1, got {list(self.sizes)}")

    def _divided(self, images: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        height, width = images.shape[-2:]
        drawn = torch.randint(len(self.sizes), (len(images),), generator=generator)
        sides = [int(size) if size >= 1 else max(round(size * min(height, width)), 1) for size in self.sizes]
        return [grid(height, width, sides[int(number)]) for number in drawn]


def grid(height: int, width: int, side: int) -> Int[Tensor, "h w"]:
    """The number of the square that each pixel lies in, row by row."""
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    return rows[:, None] * (int(columns[-1]) + 1) + columns


class SuperpixelPatches(Patches):
    """SLIC superpixels of each image, found in CIELAB and remembered by its pixels ([CPN] §3.1, §4.3)."""

    def __init__(
        self,
        transform: Transform,  # of the normalised images
        *,
        segments: int = 200,  # S_N, about how many patches an image has; the paper's best is 200
        compactness: float = 10.0,  # of `skimage.segmentation.slic`: more makes squares, less follows colours
        hidden: float = 0.5,  # hidden, share: see `Patches`
        share: ShareOf = "pixels",
        # draw p_h · n patches with replacement, as the published code does: only 39 % are hidden then, not 50 %
        replacement: bool = False,
        remembered: int = 4096,  # images whose superpixels are kept
    ) -> None:
        super().__init__(hidden=hidden, share=share)
        if segments < 1 or compactness <= 0 or remembered < 0:
            raise InputError(f"expected segments ≥ 1 and compactness > 0, got {segments} and {compactness}")
        self.transform, self.segments, self.compactness = transform, segments, compactness
        self.replacement, self.remembered = replacement, remembered
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    def _divided(self, images: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        del generator
        pixels = (self.transform.denormalise(images.detach().cpu()) * 255).round_().to(torch.uint8)
        patches = []
        for own in pixels:
            image = own.permute(1, 2, 0).contiguous().numpy()
            key = hashlib.blake2b(image.tobytes(), digest_size=16, key=str(image.shape).encode()).digest()
            patch = self._known.pop(key, None)
            if patch is None:
                patch = torch.from_numpy(slic_segments(image, segments=self.segments, compactness=self.compactness))
            self._known[key] = patch
            while len(self._known) > self.remembered:
                self._known.popitem(last=False)
            patches.append(patch)
        return patches

    def _chosen(self, count: int, generator: torch.Generator | None) -> Bool[Tensor, " n"]:
        if not self.replacement:
            return super()._chosen(count, generator)
        is_hidden = torch.zeros(count, dtype=torch.bool)
        is_hidden[torch.randint(count, (round(self.hidden * count),), generator=generator)] = True
        return is_hidden


def slic_segments(image: np.ndarray, *, segments: int, compactness: float) -> Int[np.ndarray, "h w"]:
    """SLIC superpixels of an RGB image, numbered from 0 without gaps."""
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise MissingExtraError("superpixels need scikit-image: pip install 'distcam[segment]'") from error
    found = slic(image, n_segments=segments, compactness=compactness, start_label=0)
    return np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.int64)
