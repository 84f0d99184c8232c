"""Finer maps from the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distcam.encoders import Encoder
from distcam.encoders.backbones.registry import build_backbone, dilate
from distcam.errors import InputError
from distcam.images import Transform


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        *(("resnet18", stride) for stride in (4, 8, 16)),
        ("resnet50", 8),
        ("mobilenet_v2", 8),
        ("mobilenet_v2", 16),
        ("mobilenet_v3_small", 8),
        ("vgg11", 8),
        ("vgg11", 4),
    ],
)
def test_a_dilated_network_has_the_plain_one_s_values_at_every_few_positions(name: str, output_stride: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    maps: dict[bool, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for options in ({}, {"output_stride": output_stride}):
        network = build_backbone(name, image_size=(32, 64), options=options).network.double().eval()
        state = state or network.state_dict()
        network.load_state_dict(state)
        with torch.no_grad():
            maps[bool(options)] = network(images)
    is_vgg = name.startswith("vgg")  # whose last pooling is left out, and whose others lose a row and column each
    step = (16 if is_vgg else 32) // output_stride
    lost = (step - 1) if is_vgg else 0
    assert maps[True].shape[-2:] == (32 // output_stride - lost, 64 // output_stride - lost)
    torch.testing.assert_close(maps[True][:, :, ::step, ::step], maps[False])


def test_checkpoint_and_fingerprint_remember_the_stride(tmp_path: Path) -> None:
    transform = Transform(64)
    fine = Encoder.load("mobilenet_v2", weights="random", options={"output_stride": 8}, transform=transform)
    fine.save(tmp_path / "fine.safetensors")
    again = Encoder.load(tmp_path / "fine.safetensors")
    assert (
        again.fingerprint
        == fine.fingerprint
        != Encoder.load("mobilenet_v2", weights="random", transform=transform).fingerprint
    )
    assert again(torch.zeros(1, 3, 64, 64)).feature_map.shape[-2:] == (8, 8)


def test_the_full_stride_changes_nothing() -> None:
    plain, same = (
        build_backbone("resnet18", image_size=(64, 64), options=o).network for o in ({}, {"output_stride": 32})
    )
    assert str(plain) == str(same)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"output_stride": 12}, "4, 8, 16, 32, got 12"),
        ("squeezenet1_1", {"output_stride": 8}, "ResNets, MobileNets and VGGs, not of SqueezeNet"),
        (
            "resnet50",
            {"output_stride": 8, "replace_stride_with_dilation": (False, True, True)},
            "leave replace_stride_with_dilation out",
        ),
    ],
)
def test_what_cannot_be_dilated_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_backbone(name, image_size=(64, 64), options=options)


def test_the_last_stride_and_the_output_stride_go_together() -> None:
    options = {"last_stride": 1, "output_stride": 8}
    network = build_backbone("resnet18", image_size=(64, 64), options=options).network.eval()
    assert network(torch.zeros(1, 3, 64, 64)).shape[-2:] == (8, 8)


def test_dilating_twice_is_refused() -> None:
    network = build_backbone("resnet18", image_size=(64, 64), options={}).network
    with pytest.raises(InputError, match="not of Sequential"):
        dilate(network, 8)
