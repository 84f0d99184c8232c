"""Activation maps by hand, as identities between methods, and for any activations and gradients."""

from __future__ import annotations

import doctest
import sys

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distcam.errors import InputError
from distcam.explain.methods.cam import (
    caam,
    cam,
    eigen_cam,
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    seg_xres_cam,
    xgrad_cam,
)

GRADIENT_METHODS = (
    cam,
    grad_cam,
    grad_cam_plus_plus,
    xgrad_cam,
    layer_cam,
    hires_cam,
    seg_xres_cam,
)


def drawn(*shape: int, seed: int = 0, signed: bool = True) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values if signed else values.relu()


A = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[0.0, 3.0], [1.0, 0.0]]])  # two channels, sums 4 and 4
G = torch.tensor([[[1.0, 0.0], [2.0, 1.0]], [[-1.0, 1.0], [0.0, -2.0]]])  # means 1 and -1/2


# ------------------------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (cam, [[4.0, 4 * 2 - 2 * 3], [-2, 4]]),  # w = (4, -2)
        (grad_cam, [[1, 0.5], [0, 1]]),  # α = (1, -1/2); -1/2 · 1 at (1, 0) is rectified
        (hires_cam, [[1.0, 3], [0, 1]]),  # 1·1, 0·2 + 1·3, 2·0 + 0·1, 1·1 - 2·0
        (layer_cam, [[1.0, 3], [0, 1]]),  # -1 and -2 are cut off, and met a 0 anyway
        (xgrad_cam, [[0.5, 3.25], [0.75, 0.5]]),  # α = ((1 + 1) / 4, 3 / 4)
        # a·ReLU(g) = g / (2 + 4g): 1/6, 0, 2/10, 1/6 for channel 0; 1/6 for channel 1
        (grad_cam_plus_plus, [[8 / 15, 16 / 15 + 0.5], [1 / 6, 8 / 15]]),
    ],
)
def test_two_channels_by_hand(method, expected: list[list[float]]) -> None:
    torch.testing.assert_close(method(A, G), torch.tensor(expected))


def test_caam_is_the_sum_of_the_channels() -> None:
    assert caam(A).tolist() == [[1, 5], [1, 1]]


def test_windows_of_gradients_by_hand() -> None:
    activations, gradients = torch.ones(1, 3, 3), torch.arange(9.0).reshape(1, 3, 3)
    mean = seg_xres_cam(activations, gradients, window=2)  # the windows at the edges hold 2, 2 and 1 positions
    assert mean.tolist() == [[2, 2, 3.5], [2, 2, 3.5], [6.5, 6.5, 8]]
    largest = seg_xres_cam(activations, gradients, window=2, pooling="max")
    assert largest.tolist() == [[4, 4, 5], [4, 4, 5], [7, 7, 8]]


def test_doctests() -> None:
    assert doctest.testmod(sys.modules[cam.__module__]).failed == 0


# ---------------------------------------------------------------------------------------------------------- identities


def test_where_gradients_are_the_same_everywhere_hires_cam_is_grad_cam_and_cam() -> None:
    activations = drawn(2, 5, 4, 3, signed=False)
    gradients = drawn(2, 5, 1, 1, seed=1).expand(-1, -1, 4, 3).clone()
    hires = hires_cam(activations, gradients)
    torch.testing.assert_close(hires, grad_cam(activations, gradients))
    torch.testing.assert_close(hires, cam(activations, gradients).clamp(min=0) / 12)
    torch.testing.assert_close(hires, xgrad_cam(activations, gradients))


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_windows_reach_from_hires_cam_to_grad_cam(rows: int, columns: int, seed: int) -> None:
    activations, gradients = drawn(3, rows, columns, seed=seed), drawn(3, rows, columns, seed=seed + 1)
    finest = seg_xres_cam(activations, gradients, window=1)
    torch.testing.assert_close(finest, hires_cam(activations, gradients))
    for window in (None, max(rows, columns), 99):
        whole = seg_xres_cam(activations, gradients, window=window)
        torch.testing.assert_close(whole, grad_cam(activations, gradients))


def test_xgrad_cam_has_the_total_of_hires_cam() -> None:
    activations, gradients = drawn(2, 5, 4, 3, signed=False) + 0.1, drawn(2, 5, 4, 3, seed=1)
    totals = [f(activations, gradients, relu=False).sum((-2, -1)) for f in (xgrad_cam, hires_cam)]
    torch.testing.assert_close(*totals)


def test_without_negative_gradients_layer_cam_is_hires_cam() -> None:
    activations, gradients = drawn(5, 4, 3), drawn(5, 4, 3, seed=1, signed=False)
    torch.testing.assert_close(layer_cam(activations, gradients), hires_cam(activations, gradients))


def test_the_rectifier_is_all_that_relu_changes() -> None:
    activations, gradients = drawn(5, 4, 3), drawn(5, 4, 3, seed=1)
    for method in GRADIENT_METHODS[1:]:
        signed = method(activations, gradients, relu=False)
        assert (signed < 0).any()
        torch.testing.assert_close(method(activations, gradients), signed.clamp(min=0))


def test_grad_cam_plus_plus_is_the_equation_of_its_paper() -> None:
    activations, gradients = drawn(5, 4, 3, signed=False), drawn(5, 4, 3, seed=1)
    gradients[0, 0] = 0
    total = activations.sum((1, 2), keepdim=True)
    share = gradients**2 / (2 * gradients**2 + total * gradients**3)
    weights = (share.nan_to_num(0) * gradients.relu()).sum((1, 2))
    expected = (weights[:, None, None] * activations).sum(0).relu()
    torch.testing.assert_close(grad_cam_plus_plus(activations, gradients), expected)


def test_grad_cam_plus_plus_survives_gradients_whose_squares_vanish() -> None:
    tiny = grad_cam_plus_plus(A, G.abs() * 1e-30)
    torch.testing.assert_close(tiny / 1e-30, torch.tensordot(G.abs().sum((1, 2)) / 2, A, 1))  # 2 + (Σ A) g is 2


# ----------------------------------------------------------------------------------------------------------- Eigen-CAM


@pytest.mark.parametrize("centred", [True, False])
def test_eigen_cam_is_the_direction_of_largest_variance(centred: bool) -> None:
    activations = drawn(6, 4, 3)
    vectors = activations.flatten(1).T
    vectors = vectors - vectors.mean(0) if centred else vectors
    values, directions = torch.linalg.eigh(vectors.T @ vectors)
    along = (vectors @ directions[:, -1]).reshape(4, 3)
    found = eigen_cam(activations, centred=centred)
    torch.testing.assert_close(found.abs(), along.abs())
    torch.testing.assert_close(found.square().sum(), values[-1])


def test_eigen_cam_points_the_way_of_the_class_agnostic_map_and_has_mean_0() -> None:
    activations = drawn(4, 6, 4, 3, signed=False)
    found = eigen_cam(activations)
    assert ((found * caam(activations)).sum((-2, -1)) >= 0).all()
    torch.testing.assert_close(found.mean((-2, -1)), torch.zeros(4, dtype=torch.float64))


# -------------------------------------------------------------------------------------------------------- any features


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_batches_are_done_one_by_one(method) -> None:
    activations, gradients = drawn(2, 3, 4, 5, 2), drawn(2, 3, 4, 5, 2, seed=1)
    together = method(activations, gradients)
    assert together.shape == (2, 3, 5, 2)
    torch.testing.assert_close(together[1, 2], method(activations[1, 2], gradients[1, 2]))


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_zeros_and_constants_never_give_nan(method) -> None:
    zero, one = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    for activations in (zero, one, -one):
        for gradients in (zero, one, -one, one / 2, -one / 2):  # 2 + (Σ A) g = 2 - 4 / 2 = 0, a pole of Grad-CAM++
            assert method(activations, gradients).isfinite().all()
    assert eigen_cam(zero).tolist() == [[0, 0], [0, 0]]
    assert eigen_cam(one).abs().max() < 1e-6


@pytest.mark.parametrize("method", [f for f in GRADIENT_METHODS if f is not grad_cam_plus_plus])
def test_maps_scale_with_the_score(method) -> None:
    activations, gradients = drawn(5, 4, 3), drawn(5, 4, 3, seed=1)
    torch.testing.assert_close(method(activations, 7 * gradients), 7 * method(activations, gradients))


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run-time shape checks off, as for users, so that the library's own messages are seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("production")
def test_unusable_options_say_what_to_choose() -> None:
    with pytest.raises(InputError, match="window=0 should be 1 or more"):
        seg_xres_cam(A, G, window=0)
    with pytest.raises(InputError, match="choose mean or max"):
        seg_xres_cam(A, G, pooling="median")
