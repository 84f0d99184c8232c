"""Class maps, their scale, and the background's score."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distcam.errors import InputError
from distcam.segmentation.cam_training.class_maps import (
    affinity,
    class_maps,
    hardest,
    scaled_maps,
    with_background,
)


def test_the_mean_of_a_class_map_is_the_class_s_logit() -> None:
    feature_map, weights = torch.randn(2, 5, 3, 4), torch.randn(3, 5)
    expected = feature_map.mean((2, 3)) @ weights.T
    torch.testing.assert_close(class_maps(feature_map, weights).mean((2, 3)), expected)


def test_scaling_by_hand() -> None:
    maps = torch.tensor([[[[-2.0, 1.0, 4.0]], [[2.0, 3.0, 6.0]]]])
    assert scaled_maps(maps).tolist() == [[[[0.0, 0.25, 1.0]], [[pytest.approx(1 / 3), 0.5, 1.0]]]]
    assert scaled_maps(maps, scaling="range").tolist() == [[[[0.0, 0.25, 1.0]], [[0.0, 0.25, 1.0]]]]
    assert scaled_maps(maps, torch.tensor([[0.0, 1.0]]))[0, 0].tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("value", [-3.0, 0.0, 2.5, 1e30])
@pytest.mark.parametrize("scaling", ["max", "range"])
def test_a_map_that_is_the_same_everywhere_becomes_0_with_gradient_0_and_never_nan(value: float, scaling: str) -> None:
    maps = torch.full((1, 1, 2, 2), value, requires_grad=True)
    scaled = scaled_maps(maps, scaling=scaling)
    scaled.sum().backward()
    assert scaled.abs().max() == 0
    assert torch.equal(maps.grad, torch.zeros_like(maps))


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.1, 1000), seed=st.integers(0, 99), scaling=st.sampled_from(["max", "range"]))
def test_scaled_maps_lie_in_0_to_1_and_do_not_depend_on_a_factor(factor: float, seed: int, scaling: str) -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    scaled = scaled_maps(maps, scaling=scaling)
    assert 0 <= float(scaled.min()) <= float(scaled.max()) <= 1
    torch.testing.assert_close(scaled_maps(factor * maps, scaling=scaling), scaled, atol=1e-5, rtol=1e-4)


def test_the_background_is_what_no_class_wants() -> None:
    scaled = torch.tensor([[[[0.0, 0.5, 1.0]], [[0.0, 0.75, 0.25]]]])
    assert with_background(scaled)[:, :1].tolist() == [[[[1.0, 0.25, 0.0]]]]
    assert with_background(scaled, power=2.0)[:, :1].tolist() == [[[[1.0, 0.0625, 0.0]]]]
    assert torch.equal(with_background(scaled)[:, 1:], scaled)


def test_an_image_without_classes_is_all_background() -> None:
    assert with_background(scaled_maps(torch.randn(1, 2, 3, 3), torch.zeros(1, 2)))[:, 0].min() == 1


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(InputError, match="'max' or 'range'"):
        scaled_maps(torch.zeros(1, 1, 1, 1), scaling="minmax")
    with pytest.raises(InputError, match="power above 0"):
        with_background(torch.zeros(1, 1, 1, 1), power=0.0)


def test_the_small_examples_come_out_as_by_hand() -> None:
    maps = class_maps(torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]), torch.tensor([[1.0, -1.0]]))
    assert maps.tolist() == [[[[-2.0, -2.0]]]]
    scaled = scaled_maps(torch.tensor([[[[-1.0, 2.0, 4.0]], [[3.0, 3.0, 3.0]]]]))
    assert scaled.tolist() == [[[[0.0, 0.5, 1.0]], [[0.0, 0.0, 0.0]]]]
    ground = with_background(torch.tensor([[[[0.25, 1.0]], [[0.5, 0.0]]]]), power=2.0)[:, :1]
    assert ground.tolist() == [[[[0.25, 0.0]]]]
    assert hardest(torch.tensor([[[[1.0, 5.0, 3.0, 0.0]]]]), 0.5).item() == 4.0
    alike = affinity(torch.tensor([[[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]]))
    assert alike.tolist() == [[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]
