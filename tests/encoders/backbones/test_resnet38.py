"""ResNet-38: its shape, its size, and the names of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distcam.encoders import Encoder, ResNet38
from distcam.errors import InputError, WeightsError
from distcam.images import Transform


def block(inputs: int, middle: int, outputs: int, *, shortcut: bool) -> int:
    """Two batch norms, two 3×3 kernels, and a 1×1 shortcut where there is one."""
    return 2 * inputs + 2 * middle + 9 * inputs * middle + 9 * middle * outputs + shortcut * inputs * outputs


def bottleneck(inputs: int, outputs: int) -> int:
    quarter, half = outputs // 4, outputs // 2
    norms = 2 * (inputs + quarter + half)
    return norms + inputs * quarter + 9 * quarter * half + half * outputs + inputs * outputs


def test_it_has_the_parameters_of_its_definition() -> None:
    expected = (
        27 * 64
        + block(64, 128, 128, shortcut=True)
        + 2 * block(128, 128, 128, shortcut=False)
        + block(128, 256, 256, shortcut=True)
        + 2 * block(256, 256, 256, shortcut=False)
        + block(256, 512, 512, shortcut=True)
        + 5 * block(512, 512, 512, shortcut=False)
        + block(512, 512, 1024, shortcut=True)
        + 2 * block(1024, 512, 1024, shortcut=False)
        + bottleneck(1024, 2048)
        + bottleneck(2048, 4096)
        + 2 * 4096
    )
    with torch.device("meta"):
        network = ResNet38()
    assert sum(p.numel() for p in network.parameters()) == expected
    assert 103e6 < expected < 106e6


def test_the_map_has_64_times_the_width_at_an_eighth_of_the_side() -> None:
    network = ResNet38(width=2).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 40)).shape == (1, 128, 8, 5)
    with torch.device("meta"):
        assert ResNet38().bn7.num_features == 4096


def test_strides_and_kernels_are_spread_as_published() -> None:
    network = ResNet38(width=1)
    convolutions = dict(network.named_modules())
    assert [convolutions[f"{name}.conv_branch2a"].stride[0] for name in ("b2", "b3", "b4", "b5")] == [2, 2, 2, 1]
    names = ("b4_5.conv_branch2b1", "b5.conv_branch2a", "b5.conv_branch2b1", "b5_2.conv_branch2a", "b7.conv_branch2b1")
    assert [convolutions[name].dilation[0] for name in names] == [1, 1, 2, 2, 4]


def test_a_published_state_dict_loads_with_its_classifier_left_out(tmp_path: Path) -> None:
    source = ResNet38(width=1)
    state = {**source.state_dict(), "fc8.weight": torch.zeros(20, 64, 1, 1), "f9.weight": torch.zeros(2, 2, 1, 1)}
    torch.save(state, tmp_path / "resnet38.pth")
    parts = {"options": {"width": 1}, "transform": Transform(32)}
    loaded = Encoder.load("resnet38", weights=tmp_path / "resnet38.pth", **parts)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded(images).feature_map, source.eval()(images))
    del state["b4_3.conv_branch2a.weight"]
    torch.save(state, tmp_path / "resnet38.pth")
    with pytest.raises(WeightsError, match=r"b4_3\.conv_branch2a"):
        Encoder.load("resnet38", weights=tmp_path / "resnet38.pth", **parts)


def test_a_checkpoint_brings_it_back(tmp_path: Path) -> None:
    encoder = Encoder.load("resnet38", weights="random", options={"width": 1}, transform=Transform(32))
    encoder.save(tmp_path / "small.safetensors")
    assert Encoder.load(tmp_path / "small.safetensors").fingerprint == encoder.fingerprint


@pytest.mark.parametrize("options", [{"width": 0}, {"drop_rate": (0.3, 1.0)}])
def test_sizes_that_do_not_exist_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="ResNet-38 needs"):
        ResNet38(**options)
