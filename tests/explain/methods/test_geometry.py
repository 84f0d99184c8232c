"""One similarity transform through most of the pairs: by hand, against its definition, and with its sides exchanged."""

from __future__ import annotations

import cmath
import doctest
import math

import pytest
import torch

import distcam.explain.methods.lines as geometry
from distcam.explain.methods.lines import fit_similarity


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def moved(points: torch.Tensor, *, scale: float, degrees: float, shift: tuple[float, float]) -> torch.Tensor:
    a = cmath.rect(scale, math.radians(degrees))
    turned = torch.tensor([[a.real, -a.imag], [a.imag, a.real]], dtype=points.dtype)
    return points @ turned.T + torch.tensor(shift)


def test_the_doctest_shows_what_it_says():
    assert doctest.testmod(geometry).failed == 0


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0.0), (0.6, 20.0), (1.9, -55.0)])
def test_a_transform_is_recovered_among_as_many_random_pairs(scale, degrees):
    points = 28 * drawn(60, 2)
    partners = moved(points, scale=scale, degrees=degrees, shift=(3.0, -2.0))
    partners[::2] = 28 * drawn(30, 2, seed=1)
    found = fit_similarity(points, partners, torch.ones(60))
    assert found is not None
    assert found.scale == pytest.approx(scale, abs=0.1)
    assert found.degrees == pytest.approx(degrees, abs=5)
    assert found.is_inlier[1::2].all()


@pytest.mark.parametrize(("scale", "degrees"), [(2.5, 0.0), (0.4, 0.0), (1.0, 75.0)])
def test_what_leaves_the_bounds_of_scale_and_rotation_is_not_believed(scale, degrees):
    points = 28 * drawn(30, 2)
    found = fit_similarity(points, moved(points, scale=scale, degrees=degrees, shift=(0.0, 0.0)), torch.ones(30))
    assert found is None or int(found.is_inlier.sum()) < 30


def test_the_sides_may_be_exchanged():
    points, partners = 28 * drawn(40, 2), 28 * drawn(40, 2, seed=1)
    there, back = (fit_similarity(*sides, drawn(40, seed=2)) for sides in ((points, partners), (partners, points)))
    assert there is not None
    assert back is not None
    assert there.is_inlier.equal(back.is_inlier)
    assert there.a * back.a == pytest.approx(1, abs=1e-5)


def test_the_order_of_pairs_does_not_matter():
    points, partners, strength = 28 * drawn(40, 2), 28 * drawn(40, 2, seed=1), drawn(40, seed=2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    found, again = (
        fit_similarity(points, partners, strength),
        fit_similarity(points[order], partners[order], strength[order]),
    )
    assert found is not None
    assert again is not None
    assert found.is_inlier[order].equal(again.is_inlier)


def test_strength_counts_not_the_number_of_inliers():
    still = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0], [4.0, 20.0]])
    partners = still.clone()
    partners[3:] += 15.0
    heavy = fit_similarity(still, partners, torch.tensor([1.0, 1.0, 1.0, 9.0, 9.0]))
    light = fit_similarity(still, partners, torch.ones(5))
    assert heavy is not None
    assert light is not None
    assert heavy.is_inlier.tolist()[3:] == [True, True]
    assert light.is_inlier.tolist()[:3] == [True, True, True]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pairs_define_nothing(count):
    assert fit_similarity(torch.zeros(count, 2), torch.zeros(count, 2), torch.ones(count)) is None


def test_pairs_closer_than_two_cells_define_nothing():
    assert (
        fit_similarity(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.ones(2))
        is None
    )
