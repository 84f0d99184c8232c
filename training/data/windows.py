"""Parts of images drawn by chance and cut from the original files, where `augment.crop_from` is "file".

What leaves the file is as fine as the network's input allows: nothing is enlarged that the original has in detail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ...errors import InputError
from ...images import Box, Transform
from ..engine.step import Regions
from .augment import PLACE, AugmentSettings
from .training_set import TrainingSet


@dataclass(frozen=True, kw_only=True)
class Window(Transform):
    """One part of an image at the network's size: a share of its area, or a cut from the image brought to a size.

    `chance` are four numbers in [0, 1): of the area or size, the shape, and the place across and down.
    """

    settings: AugmentSettings
    chance: tuple[float, ...]
    asked: str  # the fit of the transform, which says the side that `resize` is about

    @classmethod
    def drawn(cls, transform: Transform, settings: AugmentSettings, chance: Sequence[float]) -> Window:
        """The window of one image; `transform` gives the size, the colours, and the filter."""
        own = {field.name: getattr(transform, field.name) for field in fields(Transform)}
        fit = "squash" if settings.resize is None else "pad"  # an image smaller than the window gets margins
        own |= {"fit": fit, "resize": None}
        return cls(**own, settings=settings, chance=tuple(chance), asked=transform.fit)

    def _placement(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Width and height of the whole image at the window's scale, and the window's left and top edges in it."""
        across, down = self._whole(width, height)
        *_, u, v = self.chance
        return across, down, round(u * (across - self.width)), round(v * (down - self.height))

    def _whole(self, width: int, height: int) -> tuple[int, int]:
        settings, (first, second, *_) = self.settings, self.chance
        if settings.resize is not None:
            side = settings.resize[0] + first * (settings.resize[1] - settings.resize[0])
            if self.asked == "squash":
                factor = side / max(self.width, self.height)
                return max(round(self.width * factor), 1), max(round(self.height * factor), 1)
            factor = side / (min(width, height) if self.asked == "crop" else max(width, height))
            return max(round(width * factor), 1), max(round(height * factor), 1)
        area = settings.crop[0] + first * (settings.crop[1] - settings.crop[0])
        narrow, wide = map(math.log, settings.crop_ratio)
        shape = math.exp(narrow + second * (wide - narrow)) * height / width
        return round(self.width / min(math.sqrt(area * shape), 1)), round(self.height / min(math.sqrt(area / shape), 1))


def require_files(data: TrainingSet) -> None:
    """Refuse images, or outlines, that windows cannot be cut from."""
    if not data.files and data.original is None:
        raise InputError('augment.crop_from = "file" needs image files, and these images are in memory alone')
    if data.regions is not None and data.transform.fit == "crop":
        raise InputError(
            'augment.crop_from = "file" needs outlines of whole images, and data.fit = "crop" cuts their borders off; '
            'choose "squash" or "pad"'
        )


def cut(
    data: TrainingSet, index: Tensor, settings: AugmentSettings, chance: Float[Tensor, "b n"]
) -> tuple[UInt8[Tensor, "b 3 h w"], Regions | None]:
    """Windows of images, and of their outlines; `chance` as for `augment`. ImageError: a file that cannot be read."""
    pixels, seen = [], []
    for i, own in zip(index.tolist(), chance[:, PLACE].tolist(), strict=True):
        window = Window.drawn(data.transform, settings, own)
        if data.original is None:
            levels, size = window.read(data.files[i])
        else:
            image = data.original(i)
            levels, size = window(image), image.size
        pixels.append(levels)
        seen.append(_inside(window.view(*size), data.transform.view(*size)))
    regions = None if data.regions is None else data.regions.of(index)
    if regions is None or not len(regions.row):
        return torch.stack(pixels), regions
    matrix = torch.tensor(seen)[regions.row]
    shape = [len(matrix), 1, *regions.raster.shape[-2:]]
    grid = functional.affine_grid(matrix, shape, align_corners=False)
    raster = functional.grid_sample(regions.raster[:, None], grid, mode="nearest", align_corners=False)[:, 0]
    return torch.stack(pixels), regions.chosen(raster.flatten(1).any(1), raster)


def _inside(window: Box, whole: Box) -> list[list[float]]:
    """The affine map from places of the window to those of the rectangle that the outlines are drawn in, in [-1, 1]."""
    (x, y), (middle_x, middle_y) = window.center, whole.center
    return [
        [window.width / whole.width, 0.0, 2 * (x - middle_x) / whole.width],
        [0.0, window.height / whole.height, 2 * (y - middle_y) / whole.height],
    ]
