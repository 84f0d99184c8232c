"""CIFAR's networks: parameters as their papers count them, torchvision's blocks as oracle, and what is dropped."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from distcam.encoders import DropBlock, Encoder
from distcam.encoders.backbones.cifar import ShakeDrop, cifar_resnet, cifar_resnext, densenet_bc, pyramidnet
from distcam.errors import InputError
from distcam.images import Transform

TINY = {"resnet56": {"depth": 8}, "resnext29_8x64d": {"depth": 11, "groups": 2, "width": 2},
        "densenet_bc_190_40": {"depth": 10, "growth": 2}, "pyramidnet200": {"depth": 11, "alpha": 6}}  # fmt: skip


@pytest.mark.parametrize(
    ("network", "channels", "classes", "millions"),
    [
        (lambda: cifar_resnet(), 64, 10, "0.85"),  # He et al., Table 6
        (lambda: cifar_resnet(depth=110), 64, 10, "1.73"),  # there 1.7
        (lambda: cifar_resnext(), 1024, 10, "34.43"),  # Xie et al., Table 7: 34.4
        (lambda: densenet_bc(), 2190, 10, "25.62"),  # Huang et al., Table 2: 25.6
        (lambda: pyramidnet(), 1024, 100, "26.84"),  # Han et al., Table 4: 26.8
    ],
    ids=["resnet56", "resnet110", "resnext29", "densenet", "pyramidnet"],
)
def test_networks_have_the_parameters_of_their_papers(network, channels, classes, millions) -> None:
    with torch.device("meta"):
        built = network()
    count = sum(p.numel() for p in built.parameters()) + channels * classes + classes  # with the linear classifier
    assert f"{count / 1e6:.2f}" == millions


@pytest.mark.parametrize("name", TINY)
def test_a_network_ends_in_a_map_of_a_quarter_and_survives_a_checkpoint(name, tmp_path) -> None:
    encoder = Encoder.load(name, weights="random", options=TINY[name], transform=Transform(32))
    feature_map = encoder(torch.rand(2, 3, 32, 32)).feature_map
    assert feature_map.shape[-2:] == (8, 8)
    assert bool((feature_map >= 0).all())
    encoder.save(tmp_path / "e.safetensors")
    assert Encoder.load(tmp_path / "e.safetensors").fingerprint == encoder.fingerprint


def test_blocks_are_torchvisions(monkeypatch) -> None:
    """Basic and bottleneck blocks with the same weights give the same numbers."""
    ours = cifar_resnet(depth=8).layer1[0].eval()
    theirs = BasicBlock(16, 16).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    ours = cifar_resnext(depth=11).layer2[0].eval()
    shortcut = nn.Sequential(nn.Conv2d(256, 512, 1, 2, bias=False), nn.BatchNorm2d(512))
    theirs = Bottleneck(256, 128, 2, shortcut, groups=8, base_width=64).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.rand(1, 256, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_shortcut_of_kind_a_takes_every_second_position_and_adds_channels_of_zeros() -> None:
    block = cifar_resnet(depth=8).layer2[0].eval()
    nn.init.zeros_(block.branch[-1].weight)  # the branch adds nothing
    x = torch.rand(1, 16, 6, 6)
    y = block(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()


def test_a_pyramid_grows_by_the_same_amount_with_every_block() -> None:
    network = pyramidnet(depth=29, alpha=90)
    widths = [
        block.branch[-1].num_features for stage in (network.layer1, network.layer2, network.layer3) for block in stage
    ]
    assert widths == [4 * (16 + 10 * number) for number in range(1, 10)]


# --- what is dropped --------------------------------------------------------------------------------------------------


def test_shake_drop_multiplies_branch_and_gradient_by_numbers_of_their_own() -> None:
    torch.manual_seed(0)
    shaken = ShakeDrop(0.999999)
    x = torch.rand(4000, 1, 1, 1, requires_grad=True)
    y = shaken(x)
    y.sum().backward()
    alpha, beta = (y / x).detach().flatten(), x.grad.flatten()
    assert float(alpha.min()) >= -1.001
    assert float(alpha.max()) <= 1.001
    assert float(alpha.mean()) == pytest.approx(0, abs=0.05)
    assert float(beta.min()) >= 0
    assert float(beta.max()) <= 1
    assert float(beta.mean()) == pytest.approx(0.5, abs=0.05)
    assert abs(float(torch.corrcoef(torch.stack([alpha, beta]))[0, 1])) < 0.05
    assert torch.equal(ShakeDrop(0.25).eval()(x), x * 0.75)


def test_shake_drop_leaves_a_branch_alone_as_often_as_its_rate_says() -> None:
    torch.manual_seed(0)
    shaken, x = ShakeDrop(0.3), torch.rand(2, 1, 2, 2)
    assert sum(shaken(x) is x for _ in range(2000)) / 2000 == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("name", ["resnet56", "resnext29_8x64d", "pyramidnet200"])
@pytest.mark.parametrize("drop", ["stochastic_depth", "shake_drop"])
def test_rates_of_dropped_branches_rise_in_proportion_to_depth(name, drop) -> None:
    options = {**TINY[name], "drop": drop, "drop_rate": 0.6}
    encoder = Encoder.load(name, weights="random", options=options, transform=Transform(32))
    rates = [
        part.rate if drop == "shake_drop" else part.p
        for part in encoder.modules()
        if hasattr(part, "rate") or hasattr(part, "p")
    ]
    assert rates == pytest.approx([0.2, 0.4, 0.6])
    images = torch.rand(2, 3, 32, 32)
    torch.manual_seed(1)
    looks = [encoder.train()(images).feature_map for _ in range(8)]
    assert any(not torch.equal(looks[0], look) for look in looks)
    assert torch.equal(encoder.eval()(images).feature_map, encoder(images).feature_map)


def test_drop_block_lies_behind_every_block_of_the_last_two_stages() -> None:
    network = pyramidnet(depth=20, alpha=6, drop="drop_block", drop_rate=0.1, drop_size=3)
    places = [name for name, part in network.named_modules() if isinstance(part, DropBlock)]
    assert places == ["layer2.1", "layer2.3", "layer3.1", "layer3.3"]
    assert {part.rate for part in network.modules() if isinstance(part, DropBlock)} == {0.1}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cifar_resnet(depth=57), r"ResNet for CIFAR has 6n \+ 2 layers, got 57"),
        (lambda: cifar_resnext(depth=30), r"9n \+ 2"),
        (lambda: cifar_resnext(groups=0), "one group or more"),
        (lambda: pyramidnet(alpha=-1), "at least 0"),
        (lambda: densenet_bc(depth=191), r"6n \+ 4"),
        (lambda: cifar_resnet(drop="shake"), "expected drop as one of none, stochastic_depth"),
        (lambda: Encoder.load("resnet56", weights="random", options={"dept": 8}), "cannot be built with dept=8"),
    ],
)  # fmt: skip
def test_networks_that_do_not_exist_are_refused(make, words) -> None:
    with pytest.raises(InputError, match=words):
        make()
