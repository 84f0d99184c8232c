"""Drawn cells on a bright ground, and a segmenter that knows them without learning."""

from __future__ import annotations

import torch
from segmenters.crowds import draw_cells, draw_crowds
from segmenters.pixel_data import PixelData
from segmenters.small_segmenters import crowd_data
from torch import Tensor, nn

from distcam.images import Transform


def cells(count: int, *, seed: int = 0, size: int = 32) -> PixelData:
    crowds = draw_crowds(
        lambda generator: draw_cells(generator=generator, size=size, count=6, radius=(0.1, 0.14)),
        count=count,
        seed=seed,
    )
    return crowd_data(crowds, ("cell",), Transform(size, fit="squash"))


class Bright(nn.Module):
    """Calls cell what is darker than the background; its features are the two scores: nothing has to be learnt."""

    def __init__(self, level: Tensor) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.level = level

    def forward(self, images: Tensor) -> Tensor:
        darkness = 3 * (self.level - images[:, 1])
        return self.features(torch.stack([-darkness, darkness], 1))
