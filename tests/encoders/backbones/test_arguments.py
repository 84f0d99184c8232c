"""Arguments of another kind than they should be: refused in one line that says what was expected and what came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from distcam import Gallery, Retriever
from distcam.encoders import Encoder
from distcam.encoders.backbones.networks import available_networks, load_network
from distcam.errors import DistcamError, InputError
from distcam.explain import ClassScore, explain_image
from distcam.images import Transform
from distcam.index import encode_to_file

SMALL = Transform(32)


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """As a user has it: without the annotations being looked at, as they are in these tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "source",
    [models.resnet18, nn.ReLU, None, 5, b"conv4", ["conv4"], {"conv1.weight": torch.ones(2)}],
    ids=lambda source: type(source).__name__,
)
def test_a_source_that_is_no_name_path_or_module_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match="expected an architecture's name, a checkpoint's path or a module, got"):
        Encoder.load(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": True}, "expected weights as .* got True"),
        ({"weights": {"conv1.weight": torch.ones(2)}}, "expected weights as .* got a dict"),
        ({"weights": models.ResNet18_Weights.DEFAULT}, "expected weights as"),
        ({"layer": 4}, "expected a layer's name.* got int"),
        ({"layer": nn.ReLU()}, "expected a layer's name.* got ReLU"),
        ({"pooling": None}, "unknown pooling None"),
        ({"pooling": nn.AdaptiveAvgPool2d(1)}, "unknown pooling AdaptiveAvgPool2d"),
        ({"transform": 224}, "expected a Transform .* got 224"),
        ({"options": ["last_stride"]}, "expected options as a dictionary"),
        ({"seed": None}, "expected seed as a whole number, got None"),
        ({"head": nn.Linear}, "expected a module as head"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, dict) else "",
)
def test_an_argument_of_another_kind_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Encoder.load("conv4", **{"weights": "random", "transform": SMALL, **options})


@pytest.mark.parametrize("layer", [4, ["0"], nn.ReLU()], ids=["number", "list", "module"])
def test_a_layer_of_a_module_is_given_by_name(layer: Any) -> None:
    with pytest.raises(InputError, match="expected a layer's name"):
        Encoder.load(nn.Sequential(nn.Conv2d(3, 4, 3)), layer=layer, transform=SMALL)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    "values", [0.5, "0.5", (0.5, 0.5), (0.5, 0.5, float("nan")), (0.5, 0.5, float("inf")), (0.5, 0.5, None)], ids=str
)
def test_mean_and_deviation_are_three_finite_numbers(name: str, values: Any) -> None:
    with pytest.raises(InputError, match=f"expected three .*numbers for {name}"):
        Transform(32, **{name: values})


@pytest.mark.parametrize(
    "values", [np.full(3, 0.5), torch.full((3,), 0.5), [np.float32(0.5)] * 3], ids=["np", "pt", "32"]
)
def test_mean_and_deviation_of_any_library_are_kept_as_numbers(values: Any) -> None:
    encoder = Encoder.load("conv4", weights="random", mean=values, std=values)
    assert encoder.transform == Transform(84, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert encoder.fingerprint


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b"], ids=["long", "null"])
def test_what_can_be_no_path_is_no_such_file(path: str) -> None:
    for source, weights in ((path, "random"), (Path(path), None), (path + ".safetensors", None), ("conv4", path)):
        with pytest.raises(DistcamError, match=r"no such|no architecture"):
            Encoder.load(source, weights=weights)


def test_a_part_with_two_names_is_found_by_either() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    network.again = network[1]
    network.forward = lambda x: network[1](network[0](x))
    x = torch.randn(1, 3, 32, 32)
    maps = [Encoder.load(network, layer=layer, transform=SMALL)(x).feature_map for layer in ("1", "again")]
    assert torch.equal(*maps)


def classifier() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        ).eval()


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "fullgrad"])
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")], ids=["DP", "compile"]
)
def test_a_wrapped_network_is_explained_as_the_network_itself(wrap: Any, method: str) -> None:
    network, x = classifier(), torch.randn(2, 3, 16, 16)
    options: dict[str, Any] = {"target": ClassScore(1), "method": method, "layer": "1"}
    assert torch.equal(explain_image(wrap(network), x, **options).maps, explain_image(network, x, **options).maps)


def test_weights_that_cannot_be_differentiated_are_refused_with_the_cause() -> None:
    with torch.inference_mode():
        network = classifier()
    with pytest.raises(InputError, match=r"made within torch\.inference_mode"):
        explain_image(network, torch.randn(1, 3, 16, 16), target=ClassScore(1), layer="1")


@pytest.mark.parametrize("name", ["regnet_y_400mf", "resnet18", "lraspp_mobilenet_v3_large"])
def test_the_number_of_classes_is_read_from_the_file(name: str, tmp_path: Path) -> None:
    assert name in available_networks()
    model = models.get_model(
        name, weights=None, num_classes=5, **({"weights_backbone": None} if "lraspp" in name else {})
    )
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert load_network(name, weights=tmp_path / "w.pth").n_classes == 5


def gallery_calls(folder: Path, given: Any) -> list[Any]:
    images, gallery = folder / "images", folder / "g"
    return [
        lambda: Gallery.build(images, given, out=folder / "new"),
        lambda: Retriever(gallery, given).query(images / "a.png", k=1),
        lambda: Gallery.open(gallery).add(images, given),
        lambda: encode_to_file(images, given, folder / "out.h5"),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.effect_noise((40, 40), 80).save(tmp_path / "images" / "a.png")
    Gallery.build(tmp_path / "images", conv4(), out=tmp_path / "g")
    return tmp_path


def conv4() -> Encoder:
    return Encoder.load("conv4", weights="random", transform=SMALL)


@pytest.mark.parametrize("given", ["conv4.safetensors", Path("e.safetensors"), nn.ReLU(), 5], ids=str)
def test_what_is_no_encoder_is_refused_wherever_one_is_taken(given: Any, folder: Path) -> None:
    for call in gallery_calls(folder, given):
        with pytest.raises(InputError, match=r"expected an Encoder, got a .*; make one with Encoder\.load"):
            call()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_encoder_in_a_wrapper_is_taken_wherever_one_is_taken(folder: Path) -> None:
    for call in gallery_calls(folder, nn.DataParallel(conv4())):
        call()
    Gallery.open(folder / "g").sync(folder / "images", nn.DataParallel(conv4()))
    new, old = (Gallery.open(folder / name).manifest.encoder for name in ("new", "g"))
    assert (new.fingerprint, new.short_name) == (old.fingerprint, old.short_name)
