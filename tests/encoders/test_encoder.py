"""The encoder: shapes, layers, dimensions, and the identity of what it computes."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer

from distcam.encoders import (
    BNNeck,
    Conv4,
    Encoder,
    GeM,
    Linear,
    ResNet12,
    Sequential,
    available_architectures,
    evaluating,
)
from distcam.encoders.backbones.registry import TransformerTrunk
from distcam.encoders.layers import as_feature_map
from distcam.errors import InputError, ShapeError
from distcam.images import Transform

SMALL = Transform(64)


def images(n: int = 2, size: int | tuple[int, int] = 64) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(7))


class Toy(nn.Module):
    """A network of the user's own: two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def oracle_features(name: str, model: nn.Module, x: Tensor) -> Tensor:
    """The feature map by torchvision's own forward pass: what goes into the pooling, or its known expression."""
    if name == "densenet121":
        return torch.relu(model.features(x))
    if name in ("vgg11_bn", "alexnet"):
        return model.features[:-1](x)
    pooled_input: list[Tensor] = []
    model.avgpool.register_forward_pre_hook(lambda _m, args: pooled_input.append(args[0]))
    model(x)
    return pooled_input[0]


def check_against_torchvision(name: str) -> None:
    encoder = Encoder.load(name, weights="random", transform=SMALL)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = models.get_model(name, weights=None).eval()
        expected = oracle_features(name, model, images(size=96))
        got = encoder(images(size=96))
    torch.testing.assert_close(got.feature_map, expected)
    torch.testing.assert_close(got.pooled, expected.mean((2, 3)))
    assert torch.equal(got.embedding, got.pooled)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small"])
def test_the_feature_map_is_what_torchvision_pools(name: str) -> None:
    check_against_torchvision(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg11_bn", "alexnet", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf", "swin_t", "resnext50_32x4d"]
)
def test_the_feature_map_is_what_torchvision_pools_in_more_families(name: str) -> None:
    check_against_torchvision(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("squeezenet1_1", 64, (512, 3, 3)),
        ("mobilenet_v2", 64, (1280, 2, 2)),
        ("shufflenet_v2_x0_5", 64, (1024, 2, 2)),
        ("mnasnet0_5", 64, (1280, 2, 2)),
        ("googlenet", 64, (1024, 2, 2)),
        ("inception_v3", 96, (2048, 1, 1)),
        ("vit_b_32", 96, (768, 3, 3)),
        ("swin_v2_t", 64, (768, 2, 2)),
        ("maxvit_t", 224, (512, 7, 7)),
    ],
)
def test_every_family_ends_in_a_map(name: str, size: int, shape: tuple[int, int, int]) -> None:
    encoder = Encoder.load(name, weights="random", transform=Transform(size))
    with torch.no_grad():
        assert encoder(images(1, size)).feature_map.shape[1:] == shape


def test_a_vision_transformer_gives_the_grid_of_its_patches() -> None:
    model = VisionTransformer(image_size=64, patch_size=32, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=8).eval()
    trunk = TransformerTrunk(model)
    with torch.no_grad():
        got = trunk(images(1))
        patches = model._process_input(images(1))
        tokens = model.encoder(torch.cat([model.class_token, patches], dim=1))
    assert got.shape == (1, 16, 2, 2)
    # Row 1, column 0 is the third patch, behind the class token.
    torch.testing.assert_close(got[0, :, 1, 0], tokens[0, 3])
    with pytest.raises(ShapeError, match="built for 64×64 images, got 96×96"):
        trunk(images(1, 96))


def test_a_vision_transformer_refuses_images_that_are_not_square() -> None:
    with pytest.raises(InputError, match="vit_b_32 takes square images, got 64×32"):
        Encoder.load("vit_b_32", weights="random", transform=Transform((64, 32)))


def test_few_shot_networks_have_the_parameters_of_the_literature() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(Conv4()) == 113_088
    assert count(ResNet12()) == 12_424_320
    assert count(ResNet12(widths=(64, 128, 256, 512))) == 7_996_800


@pytest.mark.parametrize(("last_pool", "side"), [(True, 5), (False, 10)])
def test_without_the_last_pooling_few_shot_maps_are_twice_as_fine(last_pool: bool, side: int) -> None:
    for name in ("conv4", "resnet12"):
        encoder = Encoder.load(name, weights="random", options={"last_pool": last_pool})
        with torch.no_grad():
            assert encoder(images(1, 84)).feature_map.shape[2:] == (side, side)


def test_resnet12_refuses_a_wrong_number_of_widths() -> None:
    with pytest.raises(InputError, match="four widths, got 3"):
        ResNet12(widths=(64, 128, 256))


def test_a_resnet_with_last_stride_one_keeps_the_resolution_of_its_third_stage() -> None:
    tall = Transform((128, 64))
    coarse = Encoder.load("resnet18", weights="random", transform=tall)
    fine = Encoder.load("resnet18", weights="random", transform=tall, options={"last_stride": 1})
    with torch.no_grad():
        assert coarse(images(1, (128, 64))).feature_map.shape[2:] == (4, 2)
        assert fine(images(1, (128, 64))).feature_map.shape[2:] == (8, 4)
    assert coarse.fingerprint != fine.fingerprint


def test_layers_in_front_are_reached_and_what_lies_behind_is_dropped() -> None:
    whole = Encoder.load("resnet18", weights="random", transform=SMALL)
    third = Encoder.load("resnet18", weights="random", transform=SMALL, layer="layer3")
    with torch.no_grad():
        x = images()
        for child in list(whole.backbone)[:-1]:
            x = child(x)
        torch.testing.assert_close(third(images()).feature_map, x)
    assert third.pooled_dim == 256
    assert not any("layer4" in name for name in third.state_dict())


def test_a_layer_inside_a_sequence_cuts_the_sequence() -> None:
    encoder = Encoder.load("mobilenet_v2", weights="random", transform=SMALL, layer="features.3")
    assert len(encoder.backbone.features) == 4
    assert encoder.pooled_dim == 24


def test_a_layer_inside_a_block_is_tapped() -> None:
    encoder = Encoder.load("resnet18", weights="random", transform=SMALL, layer="layer2.0.conv1")
    with torch.no_grad():
        got = encoder(images()).feature_map
        stem = encoder.backbone.source
        expected = stem.layer2[0].conv1(stem.layer1(stem.maxpool(stem.relu(stem.bn1(stem.conv1(images()))))))
    torch.testing.assert_close(got, expected)
    assert len(stem.layer2) == 1
    assert not any(module._forward_hooks for module in encoder.modules())


def test_a_layer_that_does_not_exist_is_refused_with_the_nearest_three() -> None:
    with pytest.raises(InputError, match=r"no layer 'layr3'; nearest: 'layer3', '\S+', '\S+'$"):
        Encoder.load("resnet18", weights="random", layer="layr3")


def test_an_unknown_architecture_is_refused_with_the_nearest_three() -> None:
    with pytest.raises(InputError, match=r"no architecture 'resnet5', nearest: 'resnet\d+'"):
        Encoder.load("resnet5", weights="random")


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(InputError, match="resnet18 cannot be built with lats_stride=1"):
        Encoder.load("resnet18", weights="random", options={"lats_stride": 1})
    with pytest.raises(InputError, match="not JSON serializable"):
        Encoder.load("resnet18", weights="random", options={"norm_layer": nn.Identity})
    with pytest.raises(InputError, match="Toy is built already"):
        Encoder.load(Toy(), options={"width": 3})
    with pytest.raises(InputError, match="option of ResNets only"):
        Encoder.load("mobilenet_v2", weights="random", options={"last_stride": 1})


def test_architectures_are_sorted_and_hold_both_kinds() -> None:
    names = available_architectures()
    assert names == sorted(names)
    assert {"conv4", "resnet12", "resnet50", "vit_b_16"} <= set(names)


def test_a_network_of_ones_own_is_read_at_a_layer_and_left_as_it_was() -> None:
    toy = Toy()
    modes = [module.training for module in toy.modules()]
    encoder = Encoder.load(toy, layer="body", transform=SMALL)
    with torch.no_grad():
        toy.eval()
        torch.testing.assert_close(encoder(images()).feature_map, toy.body(toy.stem(images())))
        toy.train()
    assert [module.training for module in toy.modules()] == modes
    assert not any(module._forward_hooks for module in toy.modules())
    assert repr(encoder) == "Encoder(Toy at body, GAP, IdentityHead, 64×64)"


def test_the_hook_is_gone_even_when_the_network_fails() -> None:
    toy = Toy()
    encoder = Encoder.load(toy, layer="stem", transform=SMALL)
    toy.fc = nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        encoder(images())
    assert not toy.stem._forward_hooks


def test_a_network_that_returns_no_map_is_refused() -> None:
    with pytest.raises(InputError, match=r"Toy returns shape \(1, 10\), expected a feature map .* layer='body'"):
        Encoder.load(Toy(), transform=SMALL)
    with pytest.raises(ShapeError, match=r"feature map \(b, k, h, w\) from the backbone, got \(2, 10\)"):
        Encoder(Toy(), transform=SMALL)(images())


def test_a_layer_that_runs_twice_is_refused() -> None:
    class Twice(Toy):
        def forward(self, x: Tensor) -> Tensor:
            self.stem(x)
            return super().forward(x)

    with pytest.raises(InputError, match="'stem' ran 2 times"):
        Encoder.load(Twice(), layer="stem", transform=SMALL)(images())


@pytest.mark.parametrize("extra", [0, 1, 5])
@pytest.mark.parametrize(("size", "grid"), [((64, 64), (4, 4)), ((128, 64), (8, 4)), ((224, 224), (14, 14))])
def test_tokens_become_the_grid_and_special_tokens_in_front_are_dropped(
    extra: int, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    rows, columns = grid
    tokens = torch.arange(float(extra + rows * columns)).view(1, -1, 1)
    got = as_feature_map(tokens, size, origin="layer")
    assert got.shape == (1, 1, rows, columns)
    assert got[0, 0, 0, 1] == extra + 1
    assert got[0, 0, 1, 0] == extra + columns


@pytest.mark.parametrize(("size", "grid"), [((64, 64), (4, 4)), ((128, 64), (8, 4)), ((100, 60), (4, 2))])
def test_channels_are_found_first_or_last(size: tuple[int, int], grid: tuple[int, int]) -> None:
    first = torch.rand(2, 48, *grid)
    assert as_feature_map(first, size, origin="layer") is first
    assert torch.equal(as_feature_map(first.movedim(1, 3), size, origin="layer"), first)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(1, 24, 3), "24 tokens, which form no grid"),
        (torch.zeros(1, 7), "expected \\(b, k, h, w\\) or \\(b, n, k\\)"),
        ((torch.zeros(1),), "returns a tuple"),
        (torch.zeros(1, 4, 2, 4), "cannot be told from the rows"),
        (torch.zeros(1, 40, 2, 40), "cannot be told from the rows"),
    ],
)
def test_what_is_no_feature_map_is_refused(output: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        as_feature_map(output, (64, 64), origin="layer 'x'")


def test_dimensions_follow_the_head() -> None:
    encoder = Encoder.load("conv4", weights="random", transform=SMALL, head=Sequential(BNNeck(64), Linear(64, 10)))
    assert (encoder.pooled_dim, encoder.embedding_dim) == (64, 10)
    encoder.head = Linear(64, 3)
    assert (encoder.pooled_dim, encoder.embedding_dim) == (64, 3)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users run it: without the check of annotations that the tests put around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("head", ["linear", Linear, 128], ids=str)
def test_a_head_that_is_no_module_is_refused_at_once(head: Any) -> None:
    with pytest.raises(InputError, match=r"expected a module as head, such as Linear\(64, 128\), got"):
        Encoder.load("conv4", weights="random", head=head)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Linear(99, 32), "the head's Linear was built for 99 channels, but gets 64"),
        (nn.Linear(99, 32), "the head's Linear was built for 99 channels, but gets 64"),
        (BNNeck(99), "the head's BNNeck was built for 99 channels, but gets 64"),
        (nn.BatchNorm1d(99), "the head's BatchNorm1d was built for 99 channels, but gets 64"),
        (Sequential(BNNeck(64), Linear(64, 7), Linear(8, 2)), "the head's Linear was built for 8 channels, but gets 7"),
    ],
)
def test_a_head_of_another_width_is_refused_with_both_widths(head: nn.Module, message: str) -> None:
    encoder = Encoder.load("conv4", weights="random", transform=SMALL, head=head)
    with pytest.raises(ShapeError, match=message):
        encoder(images())
    with pytest.raises(ShapeError, match=message):
        _ = encoder.embedding_dim


def test_a_head_of_ones_own_may_change_the_width_as_it_likes() -> None:
    halves = nn.Sequential(nn.Identity(), nn.GLU(), nn.Linear(32, 5))
    assert Encoder.load("conv4", weights="random", transform=SMALL, head=halves).embedding_dim == 5


def test_asking_for_dimensions_changes_nothing() -> None:
    encoder = Encoder.load("conv4", weights="random", transform=SMALL, head=BNNeck(64)).train()
    encoder.backbone.encoder[0].eval()
    modes = [module.training for module in encoder.modules()]
    before = copy.deepcopy(encoder.state_dict())
    _ = encoder.pooled_dim, encoder.embedding_dim
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_evaluating_restores_every_mode_even_after_an_error() -> None:
    toy = Toy()
    toy.stem.eval()
    modes = [module.training for module in toy.modules()]
    with evaluating(toy):
        assert not any(module.training for module in toy.modules())
    with pytest.raises(KeyError), evaluating(toy):
        raise KeyError
    assert [module.training for module in toy.modules()] == modes


def test_loading_leaves_every_global_generator_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    Encoder.load("resnet18", weights="random", transform=SMALL, seed=3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, distcam.encoders; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises((ShapeError, TypeError)):
        Encoder.load("conv4", weights="random")(torch.zeros(3, 84, 84))


def test_the_head_and_the_pooling_stay_in_float32_under_autocast() -> None:
    encoder = Encoder.load("conv4", weights="random", transform=SMALL, pooling="gem", head=Linear(64, 8))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = encoder(images())
    assert {got.feature_map.dtype, got.pooled.dtype, got.embedding.dtype} == {torch.float32}
    torch.testing.assert_close(got.pooled, encoder.pooling(got.feature_map))
    torch.testing.assert_close(got.embedding, encoder.head(got.pooled))


def test_gradients_reach_every_weight() -> None:
    encoder = Encoder.load("conv4", weights="random", transform=SMALL, pooling="gem", head=Linear(64, 8)).train()
    encoder(images()).embedding.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


# --- the fingerprint -------------------------------------------------------------------------------------------------


def small(**options: object) -> Encoder:
    return Encoder.load("conv4", weights="random", transform=options.pop("transform", SMALL), **options)


def test_the_same_seed_gives_the_same_fingerprint_and_another_seed_another() -> None:
    assert small().fingerprint == small().fingerprint
    assert small(seed=1).fingerprint != small().fingerprint
    assert small().short_name == f"conv4/{small().fingerprint[:8]}"


def test_mode_and_storage_and_wrapping_do_not_change_the_fingerprint() -> None:
    encoder = small(head=Linear(64, 4))
    with torch.no_grad():
        for p in encoder.parameters():
            p.copy_(p.half())  # values that float16 holds exactly
    expected = encoder.fingerprint
    assert encoder.train().fingerprint == expected
    encoder.backbone.encoder[0][1].num_batches_tracked += 5
    assert encoder.fingerprint == expected
    assert copy.deepcopy(encoder).half().fingerprint == expected
    assert copy.deepcopy(encoder).to(memory_format=torch.channels_last).fingerprint == expected
    encoder.backbone = nn.DataParallel(encoder.backbone)
    assert encoder.fingerprint == expected
    encoder.metadata["note"] = "anything"
    assert encoder.requires_grad_(False).fingerprint == expected


@pytest.mark.parametrize(
    "other",
    [
        lambda: small(transform=Transform(72)),
        lambda: small(pooling="gem"),
        lambda: small(head=Linear(64, 64)),
        lambda: small(layer="encoder.2"),
        lambda: small(options={"last_pool": False}),
    ],
    ids=["transform", "pooling", "head", "layer", "options"],
)
def test_what_changes_the_vectors_changes_the_fingerprint(other: Callable[[], Encoder]) -> None:
    assert other().fingerprint != small().fingerprint


def test_the_fingerprint_follows_every_way_of_changing_weights() -> None:
    encoder = small(pooling=GeM(p=3.0))
    seen = {encoder.fingerprint}
    with torch.no_grad():
        encoder.backbone.encoder[2][0].weight[0, 0, 0, 0] += 1
    seen.add(encoder.fingerprint)
    torch.nn.init.constant_(encoder.pooling.p, 4.0)
    seen.add(encoder.fingerprint)
    encoder.backbone.encoder[0][1].running_mean.fill_(0.5)
    seen.add(encoder.fingerprint)
    encoder.load_state_dict(small(pooling="gem", seed=5).state_dict())
    seen.add(encoder.fingerprint)
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder(images()).pooled.sum().backward()
    optimiser.step()
    seen.add(encoder.fingerprint)
    encoder.half().float()  # loses digits, perhaps at the same address
    seen.add(encoder.fingerprint)
    assert len(seen) == 7


def test_the_fingerprint_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small()
    expected = encoder.fingerprint
    monkeypatch.setattr("distcam.encoders.checkpoint.fingerprint", lambda *_: pytest.fail("computed again"))
    assert encoder.fingerprint == expected
