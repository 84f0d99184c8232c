"""Masks of maps, which the benchmark of masks searches under."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ranking.map_masks import mask_of_map, write_mask

from distcam.errors import InputError, ShapeError
from distcam.images import Transform


def test_the_mask_of_a_map_is_where_it_is_high():
    heat = torch.tensor([[0.0, -9.0], [0.0, 4.0]])
    mask = mask_of_map(heat, threshold=0.9, transform=Transform(8, fit="squash"), size=(16, 8))
    assert mask.shape == (8, 16)
    assert mask[7, 15]
    assert not mask[:4].any()
    assert not mask[:, :8].any()
    assert not mask_of_map(torch.ones(2, 2), threshold=0.5, transform=Transform(8), size=(16, 8)).any()
    seen = mask_of_map(torch.eye(2), threshold=0.0, transform=Transform(8, fit="crop", resize=8), size=(16, 8))
    assert seen[:, 4:12].all()  # the middle, which the crop sees
    assert not seen[:, :4].any()
    with pytest.raises(InputError, match="fraction of the map's range"):
        mask_of_map(heat, threshold=2, transform=Transform(8), size=(16, 8))


def test_a_mask_is_an_array_of_booleans(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="boolean array"):
        write_mask(np.zeros((3, 3)), tmp_path / "m.png")
