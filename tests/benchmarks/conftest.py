"""Cells and a segmenter of them, for the tests of benchmarks."""

from __future__ import annotations

import pytest
from dark_cells import Bright, cells
from segmenters.pixel_data import PixelData
from torch import nn


@pytest.fixture(scope="module")
def data() -> PixelData:
    return cells(3, seed=2)


@pytest.fixture(scope="module")
def model(data: PixelData) -> nn.Module:
    inside = data.images[:, 1][data.classes == 1].mean()
    return Bright((inside + data.images[:, 1][data.classes == 0].mean()) / 2).eval()
