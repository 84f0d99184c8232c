"""Randomised parameters, exchanged matches, and pictures with two objects."""

from __future__ import annotations

import doctest

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import distcam.explain.checks.sanity as sanity
from distcam.errors import InputError, ShapeError
from distcam.explain import ClassScore, dist_cam, explain_image
from distcam.explain.checks.sanity import match_randomisation, randomise_parameters, two_object_preference
from distcam.images import Box
from distcam.metrics.localisation import box_coverage
from distcam.metrics.maps import spearman


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def small_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        return nn.Sequential(
            body, nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_randomisation_goes_from_the_output_down_and_leaves_the_model_alone() -> None:
    model, images = small_network().train(), random(2, 3, 9, 9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = randomise_parameters(
        model,
        lambda net: explain_image(net, images, target=ClassScore(1), method="hirescam", layer="2", relu=False).maps,
    )
    assert found.stages == ("5", "1", "0.1", "0.0")
    assert found.correlation.shape == (4, 2)
    assert bool((found.correlation < 0.999).all())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_same_seed_gives_the_same_networks() -> None:
    model, images = small_network(), random(1, 3, 9, 9)

    def explain(net: nn.Module) -> Tensor:
        return explain_image(net, images, target=ClassScore(0), method="gradcam", layer="2", relu=False).maps

    one, two = (randomise_parameters(model, explain, seed=3).correlation for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, randomise_parameters(model, explain, seed=4).correlation)


def test_a_map_of_the_pixels_alone_survives_every_randomisation() -> None:
    images = random(2, 3, 9, 9)
    found = randomise_parameters(small_network(), lambda _: images.mean(1), stages=["5", "0"])
    assert bool((found.correlation == 1).all())
    assert found.table().endswith("| `0` | 1.00 |")


def test_parameters_without_a_reset_are_drawn_with_the_mean_and_spread_they_had() -> None:
    network = nn.Sequential(Scale())
    seen: list[Tensor] = []

    def explain(net: nn.Module) -> Tensor:
        seen.append(net.state_dict()["0.weight"].clone())
        return random(1, 2, 2)

    randomise_parameters(network, explain)
    assert not torch.equal(seen[0], seen[1])
    assert seen[1].isfinite().all()


def test_what_cannot_be_randomised_is_refused() -> None:
    with pytest.raises(InputError, match="no layer 'six'"):
        randomise_parameters(small_network(), lambda _: random(1, 2, 2), stages=["six"])
    with pytest.raises(InputError, match="ReLU has no parameters"):
        randomise_parameters(nn.ReLU(), lambda _: random(1, 2, 2))


def test_another_match_changes_the_maps_that_look_at_it() -> None:
    response, references, gallery = random(3, 8, 5, 5), random(3, 8, seed=1), random(9, 8, seed=2)
    blind = match_randomisation(lambda v: dist_cam(response, v, weighting="caam"), references, gallery)
    torch.testing.assert_close(blind, torch.ones(3))
    seeing = match_randomisation(lambda v: dist_cam(response, v, weighting="gradcam_cos"), references, gallery)
    assert bool((seeing < 0.99).all())


def test_a_match_is_not_replaced_by_itself() -> None:
    response, match = random(1, 8, 5, 5), random(1, 8, seed=1)
    other = random(1, 8, seed=2)
    expected = spearman(*dist_cam(response, torch.stack([match, other], 1), weighting="dot")[0])
    for seed in range(5):
        found = match_randomisation(
            lambda v: dist_cam(response, v, weighting="dot"), match, torch.cat([match, other]), seed=seed
        )
        torch.testing.assert_close(found, expected[None])
    alone = match_randomisation(lambda v: dist_cam(response, v, weighting="dot"), match, match)
    torch.testing.assert_close(alone, torch.ones(1))


def test_a_gallery_of_another_dimension_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for gallery in (random(3, 5), random(0, 4), random(4)):
        with pytest.raises(ShapeError, match="expected references"):
            match_randomisation(lambda v: v, random(1, 4), gallery)


def test_two_objects_by_hand() -> None:
    a, b = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    on_a, on_b = torch.tensor([[3.0, 0.0, 9.0, 1.0]]), torch.tensor([[0.0, 0.0, 0.0, 1.0]])  # 1.5 > 1 on A; 1 > 0 on B
    assert two_object_preference(on_a, on_b, a, b) == 1
    assert two_object_preference(on_a, on_a, a, b) == 0.5  # blind to the class
    assert two_object_preference(on_b, on_a, a, b) == 0
    assert two_object_preference(on_a, torch.zeros(1, 4), a, b) == 0.75  # a tie counts half
    assert two_object_preference(torch.zeros(1, 4), on_a, a, b) == 0.25


def test_what_both_objects_cover_does_not_count() -> None:
    a, b = box_coverage([Box(0, 0, 3, 1)], (1, 4)), box_coverage([Box(2, 0, 4, 1)], (1, 4))
    heat = torch.tensor([[1.0, 1.0, -9.0, 0.0]]).double()  # without the common pixel A has 1, B has 0
    assert two_object_preference(heat, 1 - heat, a, b) == 1
    assert bool(two_object_preference(heat, heat, a, a).isnan())


def test_maps_and_regions_of_different_shapes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ShapeError, match="have one shape"):
        two_object_preference(random(2, 2), random(2, 2), random(2, 2), random(2, 3))


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(sanity).failed == 0
