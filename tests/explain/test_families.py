"""The default layer of every torchvision classifier: what its pooling gets, so that class maps add up to the score."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from torchvision import models

from distcam.encoders import Encoder
from distcam.encoders.backbones.networks import Network, available_networks, load_network
from distcam.explain import ClassScore, explain_image
from distcam.explain.layer_runs import capture
from distcam.images import Transform

# No linear layer on the pooled map: hidden layers or a layer norm between (n/a), or a class map before the pooling.
NOT_LINEAR = ("alexnet", "convnext", "maxvit", "mobilenet_v3", "squeezenet", "vgg", "vit")
REPRESENTATIVES = [
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "shufflenet_v2_x0_5",
    "swin_t",
]
LINEAR = [name for name in available_networks("classifier") if not name.startswith(NOT_LINEAR)]
HEAVY = [name for name in LINEAR if name not in REPRESENTATIVES]


@cache
def network(name: str) -> Network:
    """With five classes, a bias, and batch norms that shift: random ones hardly differ behind a rectifier."""
    found = load_network(name, weights="random", n_classes=5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in found.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, std=0.3, generator=generator)
                nn.init.normal_(module.running_mean, std=0.1, generator=generator)
        if isinstance(found.model, models.SqueezeNet):
            return found
        last(found.model).bias.normal_(generator=generator)
    return found


def last(model: nn.Module) -> nn.Linear:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def images(name: str) -> torch.Tensor:
    side = 96 if name == "inception_v3" else 64
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))


def check_that_the_map_adds_up(name: str) -> None:
    found = network(name)
    classes = torch.tensor([[0, 3]])
    maps = explain_image(found.model, images(name), target=ClassScore(classes), method="cam", layer=found.layer)
    expected = maps.scores - last(found.model).bias.detach()[classes[0]]
    scale = float(expected.abs().amax())
    torch.testing.assert_close(maps.maps.mean((-2, -1)), expected, atol=1e-4 * scale, rtol=1e-4)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_the_mean_of_a_class_map_is_the_score_without_its_bias(name: str) -> None:
    check_that_the_map_adds_up(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_the_mean_of_a_class_map_is_the_score_without_its_bias_in_every_network(name: str) -> None:
    check_that_the_map_adds_up(name)
    network.cache_clear()


@pytest.mark.parametrize("name", [*REPRESENTATIVES, "mobilenet_v3_small", "squeezenet1_1"])
def test_the_default_layer_is_the_encoders_feature_map(name: str) -> None:
    found, x = network(name), images(name)
    encoder = Encoder.load(name, weights="random", transform=Transform(x.shape[-1]))
    own = found.model.state_dict()
    encoder.backbone.load_state_dict({key: own[key] for key in encoder.backbone.state_dict()})
    with capture(found.model, found.layer) as run:
        run(x)
        with torch.no_grad():
            torch.testing.assert_close(run.activations, encoder(x).feature_map)


@pytest.mark.parametrize("name", ["densenet121", pytest.param("densenet169", marks=pytest.mark.slow)])
def test_a_densenet_with_its_activation_by_name_answers_as_torchvisions(name: str) -> None:
    found = load_network(name, weights="random", n_classes=5).model
    original = models.get_model(name, weights=None, num_classes=5).eval()
    original.load_state_dict(found.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(found(images(name)), original(images(name)))
