"""Boxes, components and peaks of maps."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import distcam.metrics.maps as boxes_module
from distcam.errors import InputError
from distcam.explain import box_from_map, upsample
from distcam.explain.places import boxes_from_maps
from distcam.images import Box
from distcam.metrics.maps import largest_component, peak


def flooded(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """All 8-connected regions in reading order, one pixel at a time."""
    left = {(int(r), int(c)) for r, c in zip(*np.nonzero(mask), strict=True)}
    regions = []
    while left:
        edge, region = [min(left)], set()
        while edge:
            row, column = edge.pop()
            if (row, column) in left:
                left.remove((row, column))
                region.add((row, column))
                edge += [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        regions.append(region)
    return regions


def test_a_box_by_hand() -> None:
    heat = torch.zeros(6, 8)
    heat[1:3, 2:6] = 0.8  # eight positions
    heat[4, 0:3] = 1.0  # three positions
    assert box_from_map(heat, threshold=0.5) == Box(2, 1, 6, 3)
    assert box_from_map(heat, threshold=0.9) == Box(0, 4, 3, 5)


def test_the_threshold_is_a_fraction_after_scaling_by_minimum_and_maximum() -> None:
    heat = torch.tensor([[10.0, 12.0, 14.0, 20.0]])  # scaled: 0, 0.2, 0.4, 1
    assert box_from_map(heat, threshold=0.2) == Box(1, 0, 4, 1)
    assert box_from_map(heat, threshold=0.21) == Box(2, 0, 4, 1)
    assert box_from_map(heat, threshold=0.0) == Box(0, 0, 4, 1)
    assert box_from_map(heat, threshold=1.0) == Box(3, 0, 4, 1)


def test_corners_connect() -> None:
    assert largest_component(torch.eye(5).bool()).sum() == 5


def test_of_two_regions_of_one_size_the_first_in_reading_order_is_taken() -> None:
    mask = torch.tensor([[0, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0]]).bool()
    assert largest_component(mask).nonzero()[1].tolist() == [3, 3]


def test_a_ring_a_comb_and_an_empty_mask() -> None:
    ring = torch.ones(5, 5).bool()
    ring[1:4, 1:4] = False
    ring[2, 2] = True
    assert largest_component(ring).sum() == 16
    comb = torch.zeros(4, 9).bool()
    comb[:3, ::2], comb[3] = True, True
    assert largest_component(comb).sum() == 5 * 3 + 9
    assert not largest_component(torch.zeros(3, 3).bool()).any()


def test_a_constant_map_gives_the_whole_map() -> None:
    assert box_from_map(torch.full((3, 5), 2.0)) == Box(0, 0, 5, 3)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32), st.sampled_from([0.2, 0.4, 0.5, 0.7]))
def test_the_component_is_the_flood_fills(rows: int, columns: int, seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < density
    regions = flooded(mask)
    found = {(int(r), int(c)) for r, c in zip(*largest_component(torch.from_numpy(mask)).nonzero(), strict=True)}
    assert found == max(regions, key=len, default=set())


def test_many_maps_at_once_are_a_loop() -> None:
    maps = upsample(torch.rand(70, 5, 5, generator=torch.Generator().manual_seed(0)), (31, 23))
    assert boxes_from_maps(maps, threshold=0.6) == [box_from_map(heat, threshold=0.6) for heat in maps]
    assert boxes_from_maps(maps[:0]) == []


def test_scale_and_offset_of_the_map_do_not_matter() -> None:
    heat = torch.rand(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert box_from_map(7 * heat - 3, threshold=0.55) == box_from_map(heat, threshold=0.55)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_will_do_with_or_without_gradients(dtype: torch.dtype) -> None:
    heat = torch.eye(4, dtype=dtype).requires_grad_()
    assert box_from_map(heat, threshold=0.5) == Box(0, 0, 4, 4)
    assert peak(heat) == (0, 0)


def test_the_peak_is_the_first_maximum_in_reading_order() -> None:
    assert peak(torch.tensor([[0.0, 1.0, 5.0], [5.0, 2.0, 5.0]])) == (0, 2)
    assert peak(torch.tensor([[-3.0], [-1.0]])) == (1, 0)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_fraction_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="should be a fraction of the map's maximum, from 0 to 1"):
        box_from_map(torch.eye(3), threshold=threshold)


@pytest.mark.parametrize("find", [box_from_map, peak])
def test_a_map_that_is_not_finite_is_refused(find) -> None:
    heat: Tensor = torch.eye(3)
    heat[1, 2] = torch.nan
    with pytest.raises(InputError, match="a map holds NaN or infinite values"):
        find(heat)


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(boxes_module).failed == 0
