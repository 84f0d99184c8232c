"""What an encoder is made of comes wrapped, renamed, or unfit: taken out, found, named, or refused at the door."""

from __future__ import annotations

import copy
import functools
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from distcam import DistcamWarning
from distcam.encoders import BNNeck, Encoder, IdentityHead, Inference, Linear
from distcam.encoders.backbones.networks import load_network
from distcam.encoders.backbones.registry import available_architectures
from distcam.encoders.names import OWN_ARCHITECTURES
from distcam.encoders.weight_files import usual_transform
from distcam.errors import InputError, WeightsError
from distcam.images import Transform
from distcam.segmentation.segmenter.segmenter import build_segmenter

SMALL = Transform(64)
PIXELS = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
State = dict[str, Tensor]


@functools.cache
def made(num_classes: int) -> nn.Module:
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(0)
        return models.resnet18(num_classes=num_classes).eval()


def resnet(num_classes: int = 1000) -> nn.Module:
    return copy.deepcopy(made(num_classes))


def compiled(module: nn.Module) -> nn.Module:
    found: nn.Module = torch.compile(module, backend="eager")
    return found


def with_child(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    network = resnet()
    network.layer4 = wrap(network.layer4)
    return network


# --- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("wrapped", "layer"),
    [
        (lambda: nn.DataParallel(resnet()), "layer4.0"),
        (lambda: nn.DataParallel(resnet()), "module.layer4.0"),
        (lambda: compiled(resnet()), "layer4.0"),
        (lambda: compiled(resnet()), "_orig_mod.layer4.0"),
        (lambda: nn.DataParallel(compiled(resnet())), "layer4.0"),
        (lambda: compiled(nn.DataParallel(resnet())), "_orig_mod.module.layer4.0"),
        (lambda: AveragedModel(resnet()), "layer4.0"),
        (lambda: with_child(compiled), "layer4.0"),
        (lambda: with_child(compiled), "layer4._orig_mod.0"),
        (lambda: with_child(nn.DataParallel), "layer4.0"),
    ],
    ids=[
        "parallel",
        "parallel, its name",
        "compile",
        "compile, its name",
        "both",
        "both, their names",
        "averaged",
        "a compiled part",
        "a compiled part, its name",
        "a parallel part",
    ],
)
def test_a_wrapped_network_is_the_network_itself(wrapped: Callable[[], nn.Module], layer: str) -> None:
    plain = Encoder.load(resnet(), layer="layer4.0", transform=SMALL)
    encoder = Encoder.load(wrapped(), layer=layer, transform=SMALL)
    assert encoder.describe() == plain.describe()
    assert encoder.short_name == plain.short_name
    found = Inference(encoder, device="cpu", precision="fp32")(PIXELS)
    expected = Inference(plain, device="cpu", precision="fp32")(PIXELS)
    torch.testing.assert_close(found.feature_map, expected.feature_map, atol=1e-4, rtol=1e-4)


def test_a_network_compiled_in_place_is_read_out_at_its_layer() -> None:
    plain, network = resnet(), resnet()
    network.compile(backend="eager")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        network(images)  # now there is code that knows of no hook
        found = Encoder.load(network, layer="layer4", transform=SMALL)(images).embedding
        torch.testing.assert_close(found, Encoder.load(plain, layer="layer4", transform=SMALL)(images).embedding)


def test_a_wrapped_backbone_or_head_given_to_the_constructor_is_unwrapped_too() -> None:
    backbone, head = nn.Conv2d(3, 4, 3), Linear(4, 2)
    plain = Encoder(backbone, head=head, transform=SMALL)
    wrapped = Encoder(nn.DataParallel(backbone), head=compiled(head), transform=SMALL)
    assert wrapped.fingerprint == plain.fingerprint


# --- modules that are hard to copy ------------------------------------------------------------------------------------


def changed(change: Callable[[nn.Module], Any]) -> nn.Module:
    network = resnet()
    change(network.layer4[1].conv2)
    return network


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "change",
    [
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    ],
    ids=["weight norm", "spectral norm", "weight norm, new", "spectral norm, new", "pruned"],
)
def test_a_network_with_computed_weights_is_copied(change: Callable[[nn.Module], Any]) -> None:
    network = changed(change)
    images = SMALL.normalise(PIXELS)
    network(images)  # leaves a computed tensor behind
    encoder = Encoder.load(network, layer="layer4", transform=SMALL)
    with torch.no_grad():
        expected = encoder(images).embedding
    found = Inference(encoder, device="cpu", precision="fp32")(PIXELS).embedding
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_network_made_in_inference_mode_and_asked_in_it_works() -> None:
    with torch.inference_mode():
        encoder = Encoder.load(resnet(), layer="layer4", transform=SMALL)
        inside = Inference(encoder, device="cpu", precision="fp32")(PIXELS).embedding
    outside = Inference(encoder, device="cpu", precision="fp32")(PIXELS).embedding
    torch.testing.assert_close(inside, outside)


class Locked(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.lock = threading.Lock()


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(resnet(), {nn.Linear})


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(resnet(), torch.zeros(1, 3, 64, 64))


def scripted_part() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.ReLU()))


def exported() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 8, 8),)).module()


def sparse() -> nn.Module:
    module = nn.Conv2d(3, 4, 3)
    module.register_buffer("mask", torch.eye(4).to_sparse())
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (traced, "TorchScript, .* hand over the eager module"),
        (scripted_part, r"Sequential \(at '1'\) is TorchScript"),
        (quantised, "ResNet .*is quantised: .* hand over the fp32 module"),
        (lambda: nn.LazyConv2d(4, 3), "LazyConv2d has lazy parts .*; run it once"),
        (lambda: resnet().to("meta"), r"ResNet \(at 'conv1'\) has weights on the meta device"),
        (sparse, "Conv2d has sparse weights"),
        (exported, "is an exported program, .* hand over the module"),
    ],
    ids=["traced", "a scripted part", "quantised", "lazy", "meta", "sparse", "exported"],
)
def test_what_can_be_neither_looked_into_nor_copied_is_refused_at_the_door(
    make: Callable[[], nn.Module], message: str
) -> None:
    module = make()
    with pytest.raises(InputError, match=message):
        Encoder.load(module, layer="layer4", transform=SMALL)
    with pytest.raises(InputError, match=message):
        Encoder(module, transform=SMALL)


def test_a_network_that_holds_something_uncopyable_is_refused_with_its_place() -> None:
    encoder = Encoder.load(nn.Sequential(nn.Conv2d(3, 3, 1), Locked()), transform=SMALL)
    with pytest.raises(InputError, match=r"Sequential cannot be copied \(1: .*lock.*; remove what is no weight"):
        Inference(encoder, device="cpu")


def test_a_wrapped_encoder_is_run_and_anything_else_is_refused() -> None:
    encoder = Encoder.load(resnet(), layer="layer4", transform=SMALL)
    assert Inference(nn.DataParallel(encoder), device="cpu").short_name == encoder.short_name
    with pytest.raises(InputError, match=r"expected an Encoder, got a ResNet; make one with Encoder\.load"):
        Inference(resnet())


def test_extra_state_that_is_no_tensor_stands_in_no_way(tmp_path: Path) -> None:
    class Noted(nn.Conv2d):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            del state

    module = Noted(3, 4, 3)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "w.pth")
    filled = Encoder.load(Noted(3, 4, 3), weights=tmp_path / "w.pth", transform=SMALL)
    assert filled.fingerprint == Encoder.load(module, transform=SMALL).fingerprint


def test_an_attribute_error_inside_a_property_is_told() -> None:
    class Odd(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self.nothing(x)

    with pytest.raises(
        InputError, match="pooled_dim of Encoder cannot be found: 'Odd' object has no attribute 'nothing"
    ):
        _ = Encoder(Odd(3, 4, 3), transform=SMALL).pooled_dim


def test_a_classifier_without_a_layer_is_refused_with_the_layer_to_name() -> None:
    with pytest.raises(InputError, match=r"ResNet returns shape \(1, 1000\), expected a feature map .*layer='layer4'"):
        Encoder.load(resnet(), transform=SMALL)


# --- weights ----------------------------------------------------------------------------------------------------------


def under(prefix: str, state: State | None = None) -> State:
    return {prefix + name: tensor for name, tensor in (state or resnet(num_classes=7).state_dict()).items()}


def trunk() -> State:
    return {name: tensor for name, tensor in resnet().state_dict().items() if not name.startswith("fc.")}


def moved(prefix: str) -> State:
    return {name: tensor + 1 for name, tensor in under(prefix, trunk()).items()}


def loaded(content: Any, folder: Path, **options: Any) -> Encoder:
    torch.save(content, folder / "w.pth")
    return Encoder.load("resnet18", weights=folder / "w.pth", transform=SMALL, **options)


@pytest.mark.parametrize(
    "content",
    [
        under("_orig_mod."),
        under("module._orig_mod."),
        under("extractor.model."),
        under("a.b.c.d."),
        {"state_dict": under("model."), "epoch": 1, "optimizer_states": [{"state": {0: torch.zeros(3)}}]},
        {"net": under("module.")},
        {"checkpoint": {"model_state": under("backbone.")}},
        {"optimizer": {"state": {"exp_avg": torch.zeros(5)}}, "my_network": under("")},
        {name.replace("layer4.", "layer4._orig_mod."): tensor for name, tensor in under("").items()},
        AveragedModel(resnet(num_classes=7)).state_dict(),
    ],
    ids=[
        *(
            "compile",
            "compile, parallel",
            "two",
            "four",
            "lightning",
            "net",
            "unknown names",
            "optimizer first",
            "part",
        ),
        "averaged",
    ],
)
def test_weights_are_found_whatever_their_names_begin_with(content: Any, tmp_path: Path) -> None:
    found, truth = loaded(content, tmp_path).backbone.state_dict(), resnet(num_classes=7).state_dict()
    assert all(torch.equal(tensor, truth[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {**under("model.", trunk()), "loss_fn.W": torch.zeros(3, 512)},
            r"1 of its tensors have no place .*loss_fn\.W",
        ),
        ({**under("", trunk()), "proxies": torch.zeros(3, 512)}, r"1 of its tensors .* proxies"),
        ({**under("base.", trunk()), "bottleneck.weight": torch.ones(512)}, r"bottleneck\.weight"),
        ({**under("", trunk()), "heads.weight": torch.ones(7, 512)}, r"heads\.weight"),
        (
            {"state_dict": {**under("module.encoder_q.", trunk()), **moved("module.encoder_k.")}},
            "2 networks in it fit; the one under 'state_dict.module.encoder_q' is taken, not .*encoder_k",
        ),
        ({"student": moved(""), "teacher": under("", trunk())}, "the one under 'teacher' is taken, not .* 'student'"),
        ({"state_dict_ema": moved(""), "state_dict": under("", trunk())}, "under 'state_dict' is taken"),
    ],
    ids=["loss", "proxies", "half a neck", "head", "MoCo", "DINO", "EMA"],
)
def test_what_is_left_out_or_chosen_is_named(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.warns(DistcamWarning, match=message):
        encoder = loaded(content, tmp_path)
    assert torch.equal(encoder.backbone.conv1.weight, resnet().conv1.weight)


def test_two_copies_of_one_network_need_no_choice(tmp_path: Path) -> None:
    loaded({**under("encoder_q."), **under("encoder_k.")}, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({f"model.net.{n}x": t for n, t in trunk().items()}, r"tensors are missing .*it has 'model\.net\.conv1"),
        (
            {f"model.net.{n}x": t for n, t in trunk().items()},
            r"expected 'conv1\.weight', and all of its names begin with 'model\.net\.'; save the network alone",
        ),
        ({f"{n}0.weight": torch.zeros(1) for n in "ab"}, r"hardly a name in it fits: it has 'a0\.weight'.* itself$"),
        (models.resnet34().state_dict(), r"tensors have no place in the architecture \(layer1\.2"),
        (under("model.", models.resnet34().state_dict()), r"have no place in the architecture \(layer1\.2"),
        ({**under("model."), "model.conv1.weight": torch.zeros(64, 1, 7, 7)}, "do not fit"),
    ],
    ids=["nothing fits", "its beginning", "no beginning", "a larger network", "a larger network, wrapped", "shape"],
)
def test_weights_of_another_network_are_refused_with_what_is_there(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        loaded(content, tmp_path)


@pytest.mark.parametrize("place", ["heads.bottleneck.0.", "bottleneck.", "bnneck."])
def test_a_batch_norm_neck_of_the_file_becomes_the_head(place: str, tmp_path: Path) -> None:
    neck = BNNeck(512).eval()
    with torch.no_grad():
        neck.norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
    own = {place + name: tensor for name, tensor in neck.norm.state_dict().items()}
    content = {**under("backbone.", trunk()), **own, "heads.weight": torch.zeros(7, 512)}
    stride = {"options": {"last_stride": 1}}  # said, so that no remark guesses it
    with pytest.warns(DistcamWarning, match="is the head|have no place") as caught:
        encoder = loaded(content, tmp_path, **stride)
    assert re.search(r"1 of its tensors .*heads\.weight", str(caught[-1].message))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images).embedding, neck(encoder(images).pooled))
    encoder.save(tmp_path / "again.safetensors")
    assert Encoder.load(tmp_path / "again.safetensors").fingerprint == encoder.fingerprint
    with pytest.warns(DistcamWarning, match=rf"{place}weight"):
        assert isinstance(loaded(content, tmp_path, head=IdentityHead(), **stride).head, IdentityHead)


def test_a_module_around_the_network_takes_the_networks_own_file(tmp_path: Path) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    own = Around().net.state_dict()
    torch.save({"model": under("module.", own)}, tmp_path / "w.pth")
    encoder = Encoder.load(Around(), weights=tmp_path / "w.pth", transform=SMALL)
    assert torch.equal(encoder.backbone.net[0].weight, own["0.weight"])


def old_densenet(state: State) -> State:
    renamed = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): t for name, t in state.items()}
    return {name: tensor for name, tensor in renamed.items() if not name.endswith("num_batches_tracked")}


def old_transformer(state: State) -> State:
    names = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    return {re.sub(r"\.mlp\.[03]\.", lambda found: names[found[0]], name): t for name, t in state.items()}


def test_files_with_the_names_of_2017_load_as_torchvision_loads_them(tmp_path: Path) -> None:
    model = models.densenet121().eval()
    torch.save(under("module.", old_densenet(model.state_dict())), tmp_path / "w.pth")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = torch.relu(model.features(images)).mean((2, 3))
        found = Encoder.load("densenet121", weights=tmp_path / "w.pth", transform=SMALL)(images).embedding
        torch.testing.assert_close(found, expected)
        whole = load_network("densenet121", weights=tmp_path / "w.pth").model(images)
    torch.testing.assert_close(whole, model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_transformers_file_of_an_older_torchvision_is_renamed_by_its_own_code(tmp_path: Path) -> None:
    model = models.vit_b_32(image_size=64).eval()
    torch.save(old_transformer(model.state_dict()), tmp_path / "w.pth")
    encoder = Encoder.load("vit_b_32", weights=tmp_path / "w.pth", transform=SMALL)
    expected = model.encoder.layers.encoder_layer_0.mlp[0].weight
    assert torch.equal(encoder.backbone.encoder.layers.encoder_layer_0.mlp[0].weight, expected)


def test_a_modules_own_renaming_is_used(tmp_path: Path) -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

        def _load_from_state_dict(self, state_dict: State, prefix: str, *rest: Any) -> None:
            for name in ("weight", "bias"):
                if f"{prefix}old.{name}" in state_dict:
                    state_dict[f"{prefix}conv.{name}"] = state_dict.pop(f"{prefix}old.{name}")
            super()._load_from_state_dict(state_dict, prefix, *rest)

    weight = torch.randn(4, 3, 3, 3)
    torch.save({"old.weight": weight, "old.bias": torch.zeros(4)}, tmp_path / "w.pth")
    encoder = Encoder.load(Renamed(), weights=tmp_path / "w.pth", transform=SMALL)
    assert torch.equal(encoder.backbone.conv.weight, weight)


@pytest.mark.parametrize(
    "load",
    [
        lambda: Encoder.load("resnet50"),
        lambda: load_network("resnet50"),
        lambda: build_segmenter("fcn_resnet50", ["cat"], transform=SMALL),
    ],
    ids=["encoder", "network", "segmenter"],
)
def test_a_named_architecture_has_no_weights_by_itself(load: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=r"\w+ needs weights: a FILE, 'imagenet' \(downloads them\), or 'random'"):
        load()


@pytest.mark.parametrize("name", OWN_ARCHITECTURES)
def test_an_architecture_without_published_weights_is_random_and_says_so(name: str) -> None:
    with pytest.warns(DistcamWarning, match=f"no weights of {name} to download, so they are drawn at random"):
        Encoder.load(name, transform=SMALL)


def test_the_names_known_without_torch_are_those_that_can_be_built() -> None:
    assert set(OWN_ARCHITECTURES) <= set(available_architectures())
    assert not set(OWN_ARCHITECTURES) & set(models.list_models())


def test_a_module_of_ones_own_takes_no_random_weights() -> None:
    with pytest.raises(InputError, match="a Conv2d keeps the weights that it has; leave weights out"):
        Encoder.load(nn.Conv2d(3, 4, 3), weights="random", transform=SMALL)


# --- mean and deviation -----------------------------------------------------------------------------------------------


def test_that_imagenets_colours_are_assumed_is_said() -> None:
    with pytest.warns(DistcamWarning, match="what mean and std Conv2d wants is not known, so ImageNet's are taken"):
        encoder = Encoder.load(nn.Conv2d(3, 4, 3))
    assert encoder.transform == Transform()


@pytest.mark.parametrize("attribute", ["pretrained_cfg", "default_cfg"])
def test_a_timm_model_says_what_it_wants(attribute: str) -> None:
    module = nn.Conv2d(3, 4, 3)
    own = {"mean": (0.5, 0.5, 0.5), "std": (0.4, 0.4, 0.4), "input_size": (3, 96, 80), "interpolation": "bicubic"}
    setattr(module, attribute, own)
    transform = Encoder.load(module).transform
    assert (transform.mean, transform.std, transform.size) == ((0.5, 0.5, 0.5), (0.4, 0.4, 0.4), (96, 80))
    assert transform.interpolation == "bicubic"


def test_published_files_of_the_inceptions_want_one_half() -> None:
    for name in ("googlenet", "inception_v3"):
        assert usual_transform(name).mean == usual_transform(name).std == (0.5, 0.5, 0.5)
    assert usual_transform("resnet50") == Transform()


def test_mean_and_deviation_given_are_used_and_nothing_is_said(tmp_path: Path) -> None:
    half = (0.5, 0.5, 0.5)
    encoder = Encoder.load(nn.Conv2d(3, 4, 3), mean=half, std=[0.4, 0.4, 0.4])
    assert (encoder.transform.mean, encoder.transform.std) == (half, (0.4, 0.4, 0.4))
    named = Encoder.load("conv4", weights="random", mean=half, std=half)
    assert (named.transform.mean, named.transform.std, named.transform.size) == (half, half, (84, 84))
    named.save(tmp_path / "e.safetensors")
    assert Encoder.load(tmp_path / "e.safetensors", mean=(0.1, 0.2, 0.3)).transform.mean == (0.1, 0.2, 0.3)
