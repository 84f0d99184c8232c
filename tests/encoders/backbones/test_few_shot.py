"""The backbones of few-shot learning: ResNet-12 with DropBlock, and WRN-28-10."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.ops import drop_block2d

from distcam.encoders import DropBlock, Encoder, ResNet12, WideResNet
from distcam.errors import InputError
from distcam.images import Transform


def test_wrn_28_10_has_the_parameters_of_its_paper_and_a_map_of_a_quarter_of_the_side() -> None:
    network = WideResNet().eval()
    classifier = 640 * 10 + 10
    assert sum(p.numel() for p in network.parameters()) + classifier == 36_479_194  # its CIFAR-10 model
    small = WideResNet(depth=10, width=1).eval()
    assert small(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 8, 8)
    assert WideResNet(depth=10, width=1, stride=2).eval()(torch.zeros(1, 3, 84, 84)).shape == (1, 64, 11, 11)


def test_a_wide_resnet_counts_as_an_encoder_and_survives_a_checkpoint(tmp_path: Path) -> None:
    options = {"depth": 10, "width": 1, "drop_rate": 0.2}
    encoder = Encoder.load("wrn28_10", weights="random", options=options, transform=Transform(32))
    encoder.save(tmp_path / "wide.safetensors")
    assert Encoder.load(tmp_path / "wide.safetensors").fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [({"depth": 12}, "6n . 4"), ({"width": 0}, "width"), ({"drop_rate": 1.0}, "drop rate")],
)
def test_a_wide_resnet_refuses_sizes_that_do_not_exist(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WideResNet(**options)


@pytest.mark.parametrize(
    "options", [{"rate": 1.0}, {"rate": -0.1}, {"rate": 0.1, "size": 0}, {"rate": 0.1, "ramp": -1}]
)
def test_drop_block_refuses_rates_and_sizes_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        DropBlock(**options)


def test_drop_block_keeps_the_mean_drops_squares_and_does_nothing_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    block, ones = DropBlock(0.2, size=3), torch.ones(64, 8, 12, 12)
    dropped = block(ones)
    gone = (dropped == 0).float()
    assert 0.1 < float(gone.mean()) < 0.25  # squares overlap, so a little less than the rate
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    squares = torch.nn.functional.avg_pool2d(gone, 3, stride=1)
    whole = torch.nn.functional.pad((squares == 1).float(), (2, 2, 2, 2))
    covered = torch.nn.functional.max_pool2d(whole, 3, stride=1)
    assert torch.equal(covered, gone)  # every hole is a union of whole 3×3 squares
    assert block.eval()(ones) is ones


def test_a_square_that_covers_the_map_drops_whole_channels() -> None:
    torch.manual_seed(0)
    dropped = DropBlock(0.5, size=5)(torch.ones(16, 32, 5, 5)).flatten(2)
    assert torch.equal(dropped.amax(-1), dropped.amin(-1))


@pytest.mark.parametrize(("size", "shape"), [(5, (9, 7)), (3, (4, 6)), (5, (5, 5)), (1, (2, 2))])
def test_squares_of_an_odd_side_are_dropped_as_torchvision_drops_them(size: int, shape: tuple[int, int]) -> None:
    images = torch.rand(3, 4, *shape)
    torch.manual_seed(1)
    expected = drop_block2d(images, p=0.3, block_size=size)
    torch.manual_seed(1)
    torch.testing.assert_close(DropBlock(0.3, size=size)(images), expected)


@pytest.mark.parametrize("options", [{}, {"drop_size": 2}, {"drop_size": 4, "last_pool": False}])
def test_resnet12_drops_blocks_of_maps_as_small_as_cifars(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    maps = ResNet12(widths=(4, 4, 4, 32), drop_rate=0.4, **options)(torch.rand(8, 3, 32, 32))
    assert maps.isfinite().all()
    assert (maps == 0).any()


def test_the_ramp_counts_training_batches_only_and_lies_in_the_checkpoint() -> None:
    block, pixels = DropBlock(0.1, ramp=4), torch.ones(1, 1, 6, 6)
    rates = []
    for _ in range(6):
        rates.append(block.current_rate)
        block.train()(pixels)
        block.eval()(pixels)
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1, 0.1])
    again = DropBlock(0.1, ramp=4)
    again.load_state_dict(block.state_dict())
    assert again.current_rate == 0.1


def test_resnet12_with_drop_layers_is_the_same_network_in_evaluation_mode() -> None:
    widths = (8, 8, 8, 8)
    torch.manual_seed(0)
    plain = ResNet12(widths=widths, last_pool=False).eval()
    dropping = ResNet12(widths=widths, last_pool=False, drop_rate=0.1, drop_ramp=10).eval()
    dropping.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(plain(images), dropping(images))
    drop_blocks = [module for module in dropping.modules() if isinstance(module, DropBlock)]
    assert len(drop_blocks) == 2  # behind the third and the fourth stage
    assert plain(images).shape == (2, 8, 6, 6)
