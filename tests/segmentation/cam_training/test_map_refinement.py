"""PCM and PRCM against slow loops, and a refinement that looks at a network without touching it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.images import Transform
from distcam.segmentation.cam_training.class_maps import (
    MapRefinement,
    Prcm,
    RefinementSettings,
    affinity,
    pixel_correlation,
    read_stages,
    stage_dims,
    stage_layers,
)


def slow_pcm(maps: Tensor, embedded: Tensor) -> Tensor:
    """Eq. 9-10 position by position."""
    b, c, h, w = maps.shape
    result = torch.zeros_like(maps)
    places = [(row, column) for row in range(h) for column in range(w)]
    for n in range(b):
        for here in places:
            weights = []
            for there in places:
                one, other = embedded[n, :, *here], embedded[n, :, *there]
                cosine = float(one @ other / (one.norm() * other.norm()))
                weights.append(max(cosine, 0.0))
            for k in range(c):
                values = [float(maps[n, k, *there]) for there in places]
                result[n, k, *here] = sum(v * a for v, a in zip(values, weights, strict=True)) / sum(weights)
    return result


def slow_prcm(maps: Tensor, features: Tensor, embedded: Tensor, phi: Tensor, softmax: str, *, relu: bool) -> Tensor:
    """Eq. 11-12 number by number; `relu` on φ(Z) is the published code's."""
    b, c, h, w = maps.shape
    result = torch.zeros_like(maps)
    places = [(row, column) for row in range(h) for column in range(w)]
    for n in range(b):
        relation = torch.zeros(c, len(places))
        for k in range(c):
            weight = [math.exp(float(maps[n, k, *place])) for place in places]
            region = sum(features[n, :, *place] * a for place, a in zip(places, weight, strict=True)) / sum(weight)
            key = (phi @ region).clamp(min=0) if relu else phi @ region
            for i, place in enumerate(places):
                relation[k, i] = key @ embedded[n, :, *place]
        gate = relation.softmax(0) if softmax == "class" else (relation / math.sqrt(c)).softmax(1)
        for i, place in enumerate(places):
            result[n, :, *place] = maps[n, :, *place] * gate[:, i]
    return result


@pytest.fixture
def parts() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return draw(2, 3, 2, 3).sigmoid(), draw(2, 5, 2, 3), draw(2, 4, 2, 3)


def test_pcm_is_the_slow_loop(parts: tuple[Tensor, Tensor, Tensor]) -> None:
    maps, _, embedded = parts
    torch.testing.assert_close(pixel_correlation(maps, embedded), slow_pcm(maps, embedded), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("softmax", ["class", "pixel"])
def test_prcm_is_the_slow_loop(parts: tuple[Tensor, Tensor, Tensor], softmax: str, relu: bool) -> None:
    maps, features, embedded = parts
    prcm = Prcm(5, 4, softmax=softmax, relu=relu)
    expected = slow_prcm(maps, features, embedded, prcm.phi.weight.detach(), softmax, relu=relu)
    torch.testing.assert_close(prcm(maps, features, embedded).detach(), expected, atol=1e-5, rtol=1e-5)


def test_the_published_reshaping_without_a_transpose_is_another_thing() -> None:
    keys = torch.arange(6.0).view(1, 2, 3)  # (b, d, c): what φ gives when classes lie last
    assert not torch.equal(keys.mT, keys.reshape(1, 3, 2))


def test_means_are_weighted_and_a_position_without_an_embedding_gets_0() -> None:
    embedded = torch.randn(2, 4, 2, 3)
    embedded[0, :, 0, 2] = 0
    assert affinity(embedded.flatten(2))[0, 2].abs().max() == 0
    refined = pixel_correlation(torch.ones(2, 1, 2, 3), embedded)
    expected = torch.ones(2, 1, 2, 3)
    expected[0, 0, 0, 2] = 0
    torch.testing.assert_close(refined, expected)


def test_pcm_of_positions_that_all_look_alike_is_the_mean_and_of_orthogonal_ones_the_map_itself() -> None:
    maps = torch.rand(1, 2, 1, 3)
    alike, apart = torch.ones(1, 3, 1, 3), torch.eye(3).view(1, 3, 1, 3)
    torch.testing.assert_close(pixel_correlation(maps, alike), maps.mean(3, keepdim=True).expand_as(maps))
    torch.testing.assert_close(pixel_correlation(maps, apart), maps)


def test_over_positions_the_gate_hardly_lets_anything_through() -> None:
    torch.manual_seed(0)
    maps, features, embedded = torch.rand(1, 3, 12, 12), torch.randn(1, 5, 12, 12), torch.randn(1, 4, 12, 12)
    means = {
        softmax: float(Prcm(5, 4, softmax=softmax)(maps, features, embedded).mean().detach())
        for softmax in ("class", "pixel")
    }
    assert means["pixel"] < 0.03 * means["class"]


# --- the whole refinement ---------------------------------------------------------------------------------------------


def encoder(**options: object) -> Encoder:
    return Encoder.load(
        "conv4", weights="random", options={"width": 8, "last_pool": False, **options}, transform=Transform(32)
    )


def refined(refinement: MapRefinement, network: Encoder, images: Tensor, maps: Tensor) -> Tensor:
    with read_stages(network, stage_layers(network)) as read:
        network(images)
    return refinement.refine(maps, refinement.features(read(), images, (4, 4)))


@pytest.mark.parametrize("switches", [{}, {"prcm": False}, {"pcm": False}])
def test_a_refinement_is_the_sum_of_its_parts_and_learns_alone(switches: dict[str, bool]) -> None:
    network, images = encoder(), torch.randn(2, 3, 32, 32)
    refinement = MapRefinement((8, 8), RefinementSettings(**switches))
    maps = torch.randn(2, 3, 4, 4, requires_grad=True)
    images.requires_grad_()
    value = refined(refinement, network, images, maps)
    assert value.shape == (2, 4, 4, 4)  # background first
    value.square().sum().backward()
    assert maps.grad is None
    assert images.grad is None
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None for p in refinement.parameters())
    assert (refinement.prcm is not None) == switches.get("prcm", True)


def test_absent_classes_stay_absent() -> None:
    network, images = encoder(), torch.randn(1, 3, 32, 32)
    refinement = MapRefinement((8, 8))
    with read_stages(network, stage_layers(network)) as read:
        network(images)
    features = refinement.features(read(), images, (4, 4))
    value = refinement.refine(torch.randn(1, 3, 4, 4), features, torch.tensor([[1.0, 0.0, 1.0]]))
    assert value[:, 2].abs().max() == 0


def test_reading_stages_leaves_no_hook_also_after_an_error() -> None:
    network = encoder()
    layers = stage_layers(network)
    with pytest.raises(ZeroDivisionError), read_stages(network, layers):
        _ = 1 / 0
    assert not any(module._forward_hooks for module in network.modules())
    with read_stages(network, layers) as read, pytest.raises(InputError, match="did not run"):
        read()


def test_stages_of_the_known_networks_are_where_they_are_expected() -> None:
    assert stage_dims(encoder(), stage_layers(encoder())) == (8, 8)
    small = Transform(32)
    resnet = Encoder.load("resnet18", weights="random", transform=small)
    assert stage_dims(resnet, stage_layers(resnet)) == (256, 512)
    mobile = Encoder.load("mobilenet_v2", weights="random", transform=small)
    assert stage_dims(mobile, stage_layers(mobile)) == (96, 320)
    wide = Encoder.load("resnet38", weights="random", options={"width": 1}, transform=small)
    assert stage_dims(wide, stage_layers(wide)) == (8, 16)  # at the paper's width 512 and 1024


def test_other_networks_need_their_stages_named() -> None:
    with pytest.raises(InputError, match="Name them"):
        stage_layers(Encoder.load("squeezenet1_1", weights="random", transform=Transform(32)))
    with pytest.raises(InputError, match=r"no layer 'encoder\.7'"), read_stages(encoder(), ["encoder.7"]):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pcm": False, "prcm": False}, "pcm or prcm"), ({"prcm_softmax": "both"}, "expected one of 'class', 'pixel'")],
)
def test_refinements_that_do_not_exist_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MapRefinement((8, 8), RefinementSettings(**options))
