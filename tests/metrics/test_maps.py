"""Sizes, scales and ranks of maps."""

from __future__ import annotations

import doctest

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import distcam.metrics.maps as maps_module
from distcam.errors import InputError, ShapeError
from distcam.explain import is_constant, normalise, rectify, upsample
from distcam.metrics.maps import spearman


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_upsampling_reads_at_pixel_centres() -> None:
    # Two cells become six pixels of a third of a cell: centres at 1/6, 3/6, … of a cell; cell centres at 1/2 and 3/2.
    enlarged = upsample(torch.tensor([[0.0, 6.0]]), (1, 6))
    torch.testing.assert_close(enlarged, torch.tensor([[0.0, 0.0, 2.0, 4.0, 6.0, 6.0]]))


@pytest.mark.parametrize("side", [1, 7, maps_module._FEW, maps_module._FEW + 1])
def test_upsampling_is_bilinear_interpolation_with_its_gradient_however_it_is_computed(side: int) -> None:
    maps, pull = random_maps(2, 3, side, 5).requires_grad_(), random_maps(2, 3, 40, 33)
    with torch.autocast("cpu"):
        found = upsample(maps, (40, 33))
    expected = torch.nn.functional.interpolate(maps, (40, 33), mode="bilinear")
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(each, maps, pull)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_upsampling_keeps_raw_values_and_leading_dimensions() -> None:
    maps = random_maps(2, 3, 7, 7)
    enlarged = upsample(maps, 224)
    assert enlarged.shape == (2, 3, 224, 224)
    assert enlarged.min() >= maps.min()
    assert enlarged.max() <= maps.max()
    torch.testing.assert_close(enlarged[1, 2], upsample(maps[1, 2], (224, 224)))
    torch.testing.assert_close(upsample(torch.full((3, 3), -2.5), 10), torch.full((10, 10), -2.5))


def test_the_same_size_changes_nothing() -> None:
    maps = random_maps(4, 5, 6)
    torch.testing.assert_close(upsample(maps, (5, 6)), maps)


def test_each_map_or_the_whole_set_is_scaled_to_the_unit_interval() -> None:
    maps = random_maps(2, 3, 4, 4)
    own, shared = normalise(maps), normalise(maps, shared=True)
    assert (own.amin((-2, -1)) == 0).all()
    assert (own.amax((-2, -1)) == 1).all()
    assert shared.amin((-3, -2, -1)).tolist() == [0, 0]
    assert shared.amax((-3, -2, -1)).tolist() == [1, 1]
    torch.testing.assert_close(normalise(shared), own)


def test_centred_scaling_puts_zero_in_the_middle() -> None:
    maps = torch.tensor([[[-2.0, 0.0, 1.0]], [[0.0, 0.0, 4.0]], [[0.0, 0.0, 0.0]]])
    expected = [[[0.0, 0.5, 0.75]], [[0.5, 0.5, 1.0]], [[0.5, 0.5, 0.5]]]
    assert normalise(maps, centred=True).tolist() == expected
    assert normalise(maps, centred=True, shared=True)[0].tolist() == [[0.25, 0.5, 0.625]]


def test_constant_maps_are_known_and_become_zeros() -> None:
    maps = torch.stack([torch.full((3, 3), 7.5), torch.zeros(3, 3), random_maps(3, 3)])
    assert is_constant(maps).tolist() == [True, True, False]
    assert normalise(maps)[:2].abs().max() == 0
    wobbling = torch.full((3, 3), 1000.0)
    wobbling[1, 1] = torch.nextafter(wobbling[1, 1], torch.tensor(2000.0))
    assert is_constant(wobbling)


def test_rectifying_keeps_what_is_positive() -> None:
    assert rectify(torch.tensor([[-1.0, 2.0]])).tolist() == [[0.0, 2.0]]


def test_spearman_by_hand_with_ties() -> None:
    # Ranks (1.5, 1.5, 3) and (1, 2, 3): centred (-.5, -.5, 1) and (-1, 0, 1): 1.5 / sqrt(1.5 · 2)
    value = spearman(torch.tensor([[4.0, 4.0, 9.0]]), torch.tensor([[1.0, 2.0, 3.0]]))
    assert value.item() == pytest.approx(1.5 / 3**0.5)


def test_spearman_equals_the_correlation_of_slowly_counted_ranks() -> None:
    one, other = random_maps(5, 6, 6).relu(), random_maps(5, 6, 6, seed=1).relu()

    def ranks(values: Tensor) -> np.ndarray:
        return np.array([np.mean([(v > w) + (v == w) / 2 for w in values]) for v in values])

    for a, b, correlation in zip(one.flatten(1), other.flatten(1), spearman(one, other), strict=True):
        assert correlation.item() == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1], abs=1e-6)


def test_spearman_survives_monotone_changes_and_turns_with_the_order() -> None:
    one, other = random_maps(7, 7), random_maps(7, 7, seed=1)
    torch.testing.assert_close(spearman(one.exp(), other * 3 + 1), spearman(one, other))
    assert spearman(one, one).item() == pytest.approx(1)
    assert spearman(one, -one).item() == pytest.approx(-1)


def test_spearman_of_constant_maps_is_defined() -> None:
    flat, other = torch.ones(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert spearman(flat, 2 * flat).item() == 1
    assert spearman(flat, other).item() == 0


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.sampled_from([0.0, 1.0, -1.0, 1e-45, 1e30, -1e30]) | st.floats(-9, 9, width=32), min_size=6, max_size=6
    ),
    shared=st.booleans(),
    centred=st.booleans(),
)
def test_scaling_never_gives_anything_outside_the_unit_interval(
    values: list[float], shared: bool, centred: bool
) -> None:
    scaled = normalise(torch.tensor(values).reshape(1, 2, 3), shared=shared, centred=centred)
    assert ((scaled >= 0) & (scaled <= 1)).all()  # false for NaN


@pytest.mark.usefixtures("production")
def test_unusable_sizes_and_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be resized to 0×5"):
        upsample(random_maps(3, 3), (0, 5))
    with pytest.raises(ShapeError, match=r"maps have shape \(…, n, rows, columns\); got \(3, 3\)"):
        normalise(random_maps(3, 3), shared=True)
    with pytest.raises(ShapeError, match=r"none of these two 0; got \(2, 0, 3\)"):
        upsample(torch.zeros(2, 0, 3), 4)
    with pytest.raises(ShapeError, match=r"have one shape; got \(3, 3\) and \(3, 4\)"):
        spearman(random_maps(3, 3), random_maps(3, 4))


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(maps_module).failed == 0
