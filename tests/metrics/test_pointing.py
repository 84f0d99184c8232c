"""Match sensitivity, the pointing game, and energy in boxes."""

from __future__ import annotations

import doctest

import jaxtyping
import pytest
import torch
from torch import Tensor

import distcam.metrics.localisation as measures
from distcam.errors import InputError, ShapeError
from distcam.explain import dist_cam, energy_in_box, match_sensitivity, peak_in_box
from distcam.images import Box
from distcam.metrics.maps import spearman


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_class_agnostic_map_is_blind_to_the_match() -> None:
    response, references = random_maps(2, 9, 5, 5), random_maps(2, 3, 9, seed=1)
    sensitivity = match_sensitivity(dist_cam(response, references, weighting="caam"))
    torch.testing.assert_close(sensitivity, torch.ones(2))
    assert (match_sensitivity(dist_cam(response, references, weighting="gradcam_cos")) < 0.99).all()


def test_sensitivity_is_the_mean_over_pairs_with_the_first_map() -> None:
    maps = random_maps(4, 6, 6)
    expected = torch.stack([spearman(maps[0], maps[n]) for n in (1, 2, 3)]).mean()
    torch.testing.assert_close(match_sensitivity(maps), expected)


def test_sensitivity_needs_two_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for maps in (random_maps(1, 3, 3), random_maps(3, 3)):
        with pytest.raises(ShapeError, match="compares two maps or more"):
            match_sensitivity(maps)


def test_the_middle_of_the_highest_pixel_decides() -> None:
    heat = torch.zeros(4, 4)
    heat[1, 2] = 1  # its middle is (2.5, 1.5)
    assert peak_in_box(heat, Box(2, 1, 3, 2))
    assert peak_in_box(heat, Box(0, 0, 1, 1), Box(2.5, 1.5, 4, 4))
    assert not peak_in_box(heat, Box(2.6, 1, 3, 2))
    assert not peak_in_box(heat)
    assert not peak_in_box(torch.ones(4, 4), Box(0, 0, 4, 4))


def test_energy_counts_partly_covered_pixels_by_their_part() -> None:
    heat = torch.tensor([[0.0, 2.0], [4.0, 2.0]])  # scaled: 0, .5, 1, .5; total 2
    share, chance = energy_in_box(heat, Box(0, 0.5, 1.5, 2))
    # covered: top row half of (0: all, 1: half), bottom row (all, half)
    assert share == pytest.approx((0.5 * 0 + 0.25 * 0.5 + 1 * 1 + 0.5 * 0.5) / 2)
    assert chance == pytest.approx(1.5 * 1.5 / 4)


def test_boxes_that_overlap_do_not_count_twice() -> None:
    heat = random_maps(5, 5)
    assert energy_in_box(heat, Box(0, 0, 3, 5), Box(1, 0, 3, 5)) == energy_in_box(heat, Box(0, 0, 3, 5))
    assert energy_in_box(heat, Box(0, 0, 3, 5), Box(2, 0, 5, 5)) == (1, 1)


def test_a_constant_map_has_its_energy_at_chance() -> None:
    share, chance = energy_in_box(torch.full((4, 4), 3.0), Box(0, 0, 2, 2))
    assert share == chance == 0.25


def test_what_lies_outside_the_map_does_not_count() -> None:
    heat = random_maps(4, 4)
    assert energy_in_box(heat, Box(-9, -9, 2, 20)) == energy_in_box(heat, Box(0, 0, 2, 4))
    assert energy_in_box(heat, Box(5, 5, 9, 9)) == (0, 0)


def test_energy_needs_a_box() -> None:
    with pytest.raises(InputError, match="at least one box"):
        energy_in_box(torch.eye(3))


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(measures).failed == 0
