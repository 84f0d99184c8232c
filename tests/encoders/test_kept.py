"""Kept outputs of a layer are those the layer returned, whatever the network does with the tensor afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from distcam.encoders import Encoder, Encoding, Inference, Pooling, evaluating
from distcam.encoders.regions import pooled_under
from distcam.errors import ShapeError
from distcam.explain import ClassScore, explain_image
from distcam.images import Transform
from distcam.segmentation.cam_training.class_maps import read_stages

FAMILIES = [
    "alexnet",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vgg11_bn",
]
LARGE_ENDS = {"alexnet": 9216, "vgg11_bn": 25088}  # what enters classifiers that take seconds to be drawn
SMALL = Transform(64)


def network(name: str) -> nn.Module:
    """With batch norms that shift, so that a rectifier behind them changes what they returned."""
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.device("meta" if name in LARGE_ENDS else "cpu"):
            model = models.get_model(name, weights=None, **options).eval()
        if name in LARGE_ENDS:
            model.classifier = nn.Linear(LARGE_ENDS[name], 8)
            model.to_empty(device="cpu")
            for module in model.modules():
                getattr(module, "reset_parameters", int)()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, std=0.3)
    return model


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def returned(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The oracle: a copy of every map, taken at the moment when its layer, run once, returned it."""
    found: dict[str, list[Any]] = {}

    def keeper(name: str) -> Any:
        return lambda _module, _inputs, output: found.setdefault(name, []).append(
            output.clone() if isinstance(output, Tensor) else output
        )

    handles = [part.register_forward_hook(keeper(name)) for name, part in model.named_modules() if name]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return {
        name: outputs[0]
        for name, outputs in found.items()
        if len(outputs) == 1 and isinstance(outputs[0], Tensor) and outputs[0].ndim == 4 and outputs[0].shape[2] > 1
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tapped_layer_gives_what_it_returned(name: str) -> None:
    model, x = network(name), images()
    truth = returned(model, x)
    layers = list(truth)[:: max(len(truth) // 12, 1)]
    for layer in layers:
        with torch.no_grad():
            found = Encoder.load(model, layer=layer, transform=SMALL)(x).feature_map
        torch.testing.assert_close(found, truth[layer], atol=0, rtol=0, msg=lambda text, at=layer: f"{at}: {text}")


def test_stages_are_what_their_layers_returned() -> None:
    model, x = network("resnet18"), images()
    truth = returned(model, x)
    layers = ("layer3.1.bn2", "layer4.1.bn1", "layer4.1.bn2")
    encoder = Encoder.load(model, layer="layer4", transform=SMALL)
    with torch.no_grad(), read_stages(encoder, layers) as read:
        encoder(x)
    for layer, stage in zip(layers, read(), strict=True):
        assert torch.equal(stage, truth[layer])


def test_the_copy_lets_gradients_through() -> None:
    model = network("resnet18").train()
    encoder = Encoder.load(model, layer="layer4.1.bn2", transform=SMALL)
    encoder(images()).embedding.square().sum().backward()
    assert model.conv1.weight.grad is not None
    assert float(model.conv1.weight.grad.abs().sum()) > 0


def test_inference_mode_keeps_the_layers_output_too() -> None:
    model, x = network("resnet18"), images()
    truth = returned(model, x)["layer4.1.bn2"]
    with torch.inference_mode():
        found = Encoder.load(model, layer="layer4.1.bn2", transform=SMALL)(x).feature_map
    assert torch.equal(found, truth)


def test_the_fast_path_keeps_the_layers_output_too() -> None:
    model = network("resnet18")
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    truth = returned(model, SMALL.normalise(pixels))["layer4.1.bn2"]
    found = Inference(Encoder.load(model, layer="layer4.1.bn2", transform=SMALL), device="cpu", precision="fp32")
    torch.testing.assert_close(found(pixels).feature_map, truth, atol=1e-3, rtol=1e-3)


def test_a_layer_that_returns_several_tensors_is_refused_by_name() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x)[0].mul_(0)

    encoder = Encoder.load(Net(), layer="pair", transform=SMALL)
    with pytest.raises(ShapeError, match="layer 'pair' returns a tuple, expected one tensor"):
        encoder(images())


class Halving(Pooling):
    """Writes into its argument."""

    def forward(self, feature_map: Tensor) -> Tensor:
        return feature_map.mul_(0.5).mean((-2, -1))


@pytest.mark.parametrize(
    "head", [nn.ReLU(inplace=True), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 3))], ids=["relu", "sequence"]
)
def test_pooling_and_head_that_work_in_place_leave_map_and_vector_alone(head: nn.Module) -> None:
    backbone = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        expected = backbone(images())
        encoding = Encoder(backbone, transform=SMALL, pooling=Halving(), head=head)(images())
    assert torch.equal(encoding.feature_map, expected)
    torch.testing.assert_close(encoding.pooled, 0.5 * expected.mean((-2, -1)))
    assert float(encoding.pooled.min()) < 0


def test_a_region_is_pooled_once_whatever_the_head_does() -> None:
    encoder = Encoder(nn.Conv2d(3, 8, 3), transform=SMALL, head=nn.ReLU(inplace=True))
    with torch.no_grad(), evaluating(encoder):
        encoding = encoder(images())
        whole = pooled_under(encoder, encoding, [torch.ones(62, 62), None])
    assert isinstance(whole, Encoding)
    torch.testing.assert_close(whole.pooled, encoding.pooled)


@pytest.mark.parametrize("layer", [None, "1"])
def test_a_backbone_that_works_on_its_input_in_place_does_not_change_the_callers_images(layer: str | None) -> None:
    class Normalised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(0.5).div_(0.25)

    encoder = Encoder.load(
        nn.Sequential(Normalised(), nn.Conv2d(3, 4, 3)), layer=layer, transform=SMALL, mean=(0.5,) * 3
    )
    x = images()
    before = x.clone()
    once, twice = encoder(x), encoder(x)
    assert torch.equal(x, before)
    assert torch.equal(once.embedding, twice.embedding)


@pytest.mark.parametrize("method", ["ablationcam", "scorecam", "liftcam", "gradcam", "fullgrad"])
def test_a_network_that_works_on_its_input_in_place_does_not_change_the_images(method: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x.mul_(0.5)).relu_().mean((2, 3)))

    x = images()
    before, model = x.clone(), Scaled()
    once = explain_image(model, x, target=ClassScore(1), method=method, layer="conv")
    twice = explain_image(model, x, target=ClassScore(1), method=method, layer="conv")
    assert torch.equal(x, before)
    assert torch.equal(once.maps, twice.maps)
