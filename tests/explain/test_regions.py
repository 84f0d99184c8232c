"""Regions: how much of a position they cover, pooling over them, and response maps that end at their edge."""

from __future__ import annotations

import doctest
import sys

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from distcam.encoders import GAP, BNNeck, GeM, IdentityHead, Linear, Pooling
from distcam.encoders.regions import coverage, pool_region, region_weights
from distcam.errors import InputError, ShapeError
from distcam.explain import fold
from distcam.images import Box, Transform


@pytest.fixture
def production(monkeypatch):
    """Shapes are not checked at run time, as for a user."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_a_box_and_its_mask_cover_the_same(fit):
    size = (90, 60)
    view = Transform(48, fit=fit).view(*size)
    mask = np.zeros((60, 90), dtype=bool)
    mask[11:37, 20:71] = True
    by_box = coverage(Box(20, 11, 71, 37), size=size, view=view, shape=(4, 5))
    torch.testing.assert_close(by_box, coverage(mask, size=size, view=view, shape=(4, 5)))
    assert 0 < by_box.sum() < 20


def test_the_shares_are_those_of_finely_drawn_areas():
    size, view = (64, 64), Box(8, 8, 56, 56)
    box = Box(10.5, 3, 40.25, 30)
    fine = 32
    y = view.top + (np.arange(6 * fine) + 0.5) * 48 / (6 * fine)
    inside = ((y >= box.top) & (y < box.bottom))[:, None] & ((y >= box.left) & (y < box.right))
    expected = inside.reshape(6, fine, 6, fine).mean((1, 3))
    found = coverage(box, size=size, view=view, shape=(6, 6))
    np.testing.assert_allclose(found.numpy(), expected, atol=0.05)


def test_the_whole_picture_covers_everything_that_is_no_margin():
    size = (100, 50)
    everything = Box(0, 0, *size)
    for fit in ("crop", "squash"):
        assert coverage(everything, size=size, view=Transform(64, fit=fit).view(*size), shape=(4, 4)).eq(1).all()
    padded = coverage(everything, size=size, view=Transform(64, fit="pad").view(*size), shape=(4, 4))
    assert padded.tolist() == [[0.0] * 4, [1.0] * 4, [1.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("pooling", [GAP(), GeM(p=3.0)])
def test_full_coverage_pools_as_the_pooling_does_and_a_single_position_is_itself(pooling):
    feature_map = drawn(2, 5, 3, 4).relu() + 0.1
    whole = region_weights(torch.ones(3, 4))
    torch.testing.assert_close(pool_region(feature_map, whole, pooling=pooling), pooling(feature_map))
    one = torch.zeros(3, 4)
    one[1, 2] = 0.25  # how much of the position is covered does not matter if it is the only one
    pooled = pool_region(feature_map, region_weights(one), pooling=pooling)
    torch.testing.assert_close(pooled, feature_map[:, :, 1, 2])


def test_two_positions_by_hand():
    feature_map = torch.tensor([[[[1.0, 7.0], [100.0, 100.0]]]])
    weights = region_weights(torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
    assert pool_region(feature_map, weights, pooling=GAP()).item() == pytest.approx((1 + 3.5) / 1.5)
    squares = pool_region(feature_map, weights, pooling=GeM(p=2.0))
    assert squares.item() == pytest.approx(((1 + 0.5 * 49) / 1.5) ** 0.5)


@pytest.mark.parametrize("pooling", [GAP(), GeM(p=2.5)])
@pytest.mark.parametrize("head", [IdentityHead(), Linear(5, 3), BNNeck(5), nn.Sequential(nn.Linear(5, 4), nn.Tanh())])
def test_the_mean_of_the_folded_map_is_the_embedding_of_the_region_and_nothing_lies_outside(pooling, head):
    torch.manual_seed(0)
    for tensor in head.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    feature_map, shares = drawn(2, 5, 3, 4).relu(), torch.zeros(3, 4)
    shares[:2, 1:3] = torch.tensor([[1.0, 0.5], [0.25, 1.0]])
    weights = region_weights(shares)
    response = fold(feature_map, pooling=pooling, head=head.eval(), weights=weights).map
    expected = head(pool_region(feature_map, weights, pooling=pooling))
    torch.testing.assert_close(response.mean((2, 3)), expected)
    assert response[:, :, shares == 0].eq(0).all()


@pytest.mark.usefixtures("production")
def test_what_is_no_region_is_refused():
    view = Transform(64, fit="crop").view(128, 64)
    options = {"size": (128, 64), "view": view, "shape": (4, 4)}
    for box in (Box(5, 5, 5, 9), Box(200, 0, 300, 50), Box(float("nan"), 0, 9, 9)):
        with pytest.raises(InputError, match="empty or lies outside the image of 128×64"):
            coverage(box, **options)
    with pytest.raises(InputError, match=r"outside what the encoder sees .* fit='pad'"):
        coverage(Box(0, 0, 10, 64), **options)
    with pytest.raises(ShapeError, match=r"\(64, 128\); got bool \(128, 64\)"):
        coverage(np.ones((128, 64), dtype=bool), **options)
    with pytest.raises(ShapeError, match="float64"):
        coverage(np.ones((64, 128)), **options)
    with pytest.raises(InputError, match="holds no pixel"):
        coverage(np.zeros((64, 128), dtype=bool), **options)

    class Largest(Pooling):
        def forward(self, feature_map):
            return feature_map.amax((2, 3))

    with pytest.raises(InputError, match="Largest cannot be taken over a region"):
        pool_region(drawn(1, 2, 3, 3), torch.ones(3, 3), pooling=Largest())


def test_the_doctests_are_right():
    assert doctest.testmod(sys.modules["distcam.encoders.regions"]).failed == 0
