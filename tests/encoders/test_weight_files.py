"""Weights and checkpoints: what loads, and what is refused before it can do harm."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import urllib.error
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distcam import DistcamWarning
from distcam.encoders import BNNeck, Encoder, GeM, Linear, Pooling, Sequential
from distcam.encoders.weight_files import fetch_imagenet, read_state_dict
from distcam.errors import InputError, WeightsError
from distcam.images import Transform

SMALL = Transform(64)


def conv4(**options: Any) -> Encoder:
    return Encoder.load("conv4", **{"weights": "random", "transform": SMALL, **options})


def state(seed: int = 9) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in conv4(seed=seed).backbone.state_dict().items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def lightning(tensors: dict[str, Tensor], *, prefix: str) -> dict[str, Any]:
    """A Lightning trainer's checkpoint of a module that keeps its network as an attribute."""
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {prefix + name: tensor for name, tensor in tensors.items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "hyper_parameters": {"lr": 0.1},
    }


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"module.backbone.{k}": v for k, v in s.items()},
        *(
            partial(lightning, prefix=name)
            for name in ("model.", "net.", "encoder.", "model.encoder.", "model._orig_mod.")
        ),
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
        lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
    ],
    ids=["plain", "state_dict", "nested", "module", "backbone", *("Lightning",) * 5, "no counters", "float64"],
)
def test_weights_load_however_they_are_wrapped(file: Path, wrap: Any) -> None:
    torch.save(wrap(state()), file)
    assert conv4(weights=file).fingerprint == conv4(seed=9).fingerprint


def test_a_classifier_that_nothing_takes_is_named(file: Path) -> None:
    torch.save({**state(), "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}, file)
    with pytest.warns(DistcamWarning, match=r"2 of its tensors have no place .* such as fc\.weight, fc\.bias"):
        assert conv4(weights=file).fingerprint == conv4(seed=9).fingerprint


def test_safetensors_and_the_old_torch_format_load_too(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "weights.safetensors")
    torch.save(state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    expected = conv4(seed=9).fingerprint
    assert conv4(weights=tmp_path / "weights.safetensors").fingerprint == expected
    assert conv4(weights=str(tmp_path / "old.pth")).fingerprint == expected


def test_the_classifier_of_a_torchvision_file_is_left_out(file: Path) -> None:
    from torchvision.models import mobilenet_v3_small

    torch.save(mobilenet_v3_small().state_dict(), file)
    encoder = Encoder.load("mobilenet_v3_small", weights=file, transform=SMALL)
    assert not any("classifier" in name for name in encoder.state_dict())
    assert Encoder.load("mobilenet_v3_small", weights=file, transform=SMALL, layer="features.4").pooled_dim == 40
    assert (
        Encoder.load("mobilenet_v3_small", weights=file, transform=SMALL, layer="features.4.block.0").pooled_dim == 96
    )


def changed(name: str, value: torch.Tensor | None) -> dict[str, torch.Tensor]:
    weights = state()
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    return weights


FIRST = "encoder.0.0.weight"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: changed(FIRST, None), r"1 tensors are missing.*encoder\.0\.0\.weight"),
        (lambda: changed(FIRST, torch.zeros(64, 1, 3, 3)), r"float32\[64, 1, 3, 3\], expected float32\[64, 3, 3, 3\]"),
        (
            lambda: changed(FIRST, torch.zeros(64, 3, 3, 3, dtype=torch.int32)),
            r"int32\[64, 3, 3, 3\], expected float32",
        ),
        (lambda: changed(FIRST, torch.full((64, 3, 3, 3), float("nan"))), "hold NaN or infinity"),
        (lambda: changed("encoder.9.weight", torch.zeros(1)), r"have no place.*encoder\.9\.weight"),
        (lambda: changed(FIRST, torch.zeros(1).expand(10**6, 10**6)), r"float32\[1000000, 1000000\], expected"),
        (lambda: changed(FIRST, torch.zeros(64, 3, 3, 3).to_sparse()), "do not fit|sparse"),
        (lambda: {"epoch": 3}, "expected named tensors"),
        (lambda: [torch.zeros(1)], "expected named tensors.*got a list"),
    ],
    ids=["missing", "shape", "kind", "nan", "superfluous", "10^12 elements", "sparse", "no tensors", "list"],
)
def test_weights_that_do_not_fit_are_refused(file: Path, content: Any, message: str) -> None:
    torch.save(content(), file)
    with pytest.raises(WeightsError, match=message):
        conv4(weights=file)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_runs_code_is_refused_unrun(
    file: Path, new_format: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    torch.save({"weight": Evil()}, file, _use_new_zipfile_serialization=new_format)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state_dict(file)
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state_dict(file)
    assert not Path("evil").exists()


def test_archives_with_more_than_weights_are_refused(file: Path) -> None:
    torch.save(state(), file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("weights/code/__torch__.py", "import os")
    with pytest.raises(WeightsError, match=r"holds 'weights/code/__torch__\.py'"):
        read_state_dict(file)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    with pytest.raises(WeightsError, match="compressed"):
        read_state_dict(tmp_path / "small.pth")


def test_reading_weights_leaves_the_global_generator_alone(file: Path) -> None:
    torch.save(state(), file)
    before = torch.get_rng_state()
    conv4(weights=file)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 60, b"\x80\x02}q\x00."])
def test_garbage_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="weights"):
        read_state_dict(path)


def test_truncated_files_are_refused(file: Path) -> None:
    torch.save(state(), file)
    whole = file.read_bytes()
    for size in range(0, len(whole), len(whole) // 20):
        file.write_bytes(whole[:size])
        with pytest.raises(WeightsError):
            conv4(weights=file)


@pytest.mark.parametrize("new_format", [True, False])
def test_what_is_said_about_a_damaged_file_is_for_its_owner(file: Path, new_format: bool) -> None:
    torch.save(state(), file, _use_new_zipfile_serialization=new_format)
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(WeightsError) as caught:
        read_state_dict(file)
    reason = "damaged, incomplete, or no plain weights as torch.save writes them; fetch or save the file again"
    assert str(caught.value) == f"{file}: cannot be read as weights: {reason}"
    assert caught.value.__cause__ is not None


def test_a_file_with_more_than_tensors_is_told_what_it_holds(file: Path) -> None:
    torch.save({"state_dict": state(), "args": argparse.Namespace(epochs=3)}, file)
    with pytest.raises(WeightsError, match=r"holds 'argparse\.Namespace'.*save the state_dict\(\) alone$"):
        read_state_dict(file)


def test_a_missing_file_is_said_to_be_missing() -> None:
    with pytest.raises(WeightsError, match="no such file; expected 'random', 'imagenet', or a file"):
        conv4(weights="nowhere.pth")


def test_nothing_was_copied_when_weights_are_refused(file: Path) -> None:
    toy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    before = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    torch.save({**before, "0.weight": before["0.weight"] + 1, "1.weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError):
        Encoder.load(toy, weights=file, transform=SMALL)
    assert all(torch.equal(tensor, before[name]) for name, tensor in toy.state_dict().items())


def test_without_a_network_the_message_names_the_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: Any, **_options: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match=r"could not download .*--weights FILE.*--weights random") as caught:
        Encoder.load("resnet18", weights="imagenet")
    assert isinstance(caught.value.__cause__, urllib.error.URLError)


def test_a_download_is_announced_beside_the_results_and_not_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_args: Any, **_options: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(WeightsError, match="could not download"):
        fetch_imagenet("resnet18")
    out, err = capsys.readouterr()
    assert out == ""
    assert "Downloading" in err


def test_imagenet_weights_bring_their_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_a, **_o: {})
    _, transform = fetch_imagenet("efficientnet_b1")
    preset = models.EfficientNet_B1_Weights.DEFAULT.transforms()
    assert (transform.height, transform.fit) == (preset.crop_size[0], "pad")
    assert transform.interpolation == preset.interpolation.value
    assert fetch_imagenet("googlenet")[1].mean == (0.5, 0.5, 0.5)
    with pytest.raises(WeightsError, match="no ImageNet weights"):
        fetch_imagenet("conv4")


def test_imagenet_weights_of_a_network_of_ones_own_are_refused() -> None:
    with pytest.raises(InputError, match="known by name"):
        Encoder.load(nn.Conv2d(3, 4, 3), weights="imagenet")


# --- checkpoints -----------------------------------------------------------------------------------------------------


def rich() -> Encoder:
    encoder = Encoder.load(
        "resnet18",
        weights="random",
        transform=Transform((64, 32), fit="squash", channels="bgr"),
        layer="layer2.0.conv1",
        pooling=GeM(p=2.5),
        head=Sequential(BNNeck(128), Linear(128, 7, bias=False)),
        options={"last_stride": 1},
        seed=4,
    )
    encoder.metadata = {"recipe": {"epochs": 3}}
    return encoder


def test_save_then_load_is_the_identity(tmp_path: Path) -> None:
    encoder = rich()
    encoder.save(tmp_path / "encoder.safetensors")
    again = Encoder.load(tmp_path / "encoder.safetensors")
    assert again.fingerprint == encoder.fingerprint
    assert again.describe() == encoder.describe()
    assert again.metadata == encoder.metadata
    assert not again.training
    x = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(x).embedding, encoder(x).embedding)
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.safetensors"]


@pytest.mark.slow
def test_a_vision_transformer_is_rebuilt_for_its_image_size(tmp_path: Path) -> None:
    encoder = Encoder.load("vit_b_32", weights="random", transform=SMALL)
    encoder.save(tmp_path / "vit.safetensors")
    assert Encoder.load(str(tmp_path / "vit.safetensors")).fingerprint == encoder.fingerprint


def test_a_half_precision_encoder_comes_back_with_its_fingerprint(tmp_path: Path) -> None:
    encoder = conv4().half()
    encoder.save(tmp_path / "half.safetensors")
    assert Encoder.load(tmp_path / "half.safetensors").fingerprint == encoder.fingerprint


def test_another_transform_may_replace_the_saved_one(tmp_path: Path) -> None:
    conv4().save(tmp_path / "encoder.safetensors")
    again = Encoder.load(tmp_path / "encoder.safetensors", transform=Transform(96))
    assert again.fingerprint == Encoder.load("conv4", weights="random", transform=Transform(96)).fingerprint
    with pytest.raises(InputError, match="brings its own weights, layer"):
        Encoder.load(tmp_path / "encoder.safetensors", layer="encoder.2")


def test_what_only_code_can_rebuild_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Conv2d is a network of your own"):
        Encoder.load(nn.Conv2d(3, 4, 3), transform=SMALL).save(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="the head Tanh is a module of your own"):
        conv4(head=nn.Tanh()).save(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"ends in \.safetensors, got"):
        conv4().save("encoder.pt")
    with pytest.raises(InputError, match="the pooling Maximum is a module of your own"):
        conv4(pooling=Maximum()).save(tmp_path / "x.safetensors")
    noted = conv4()
    noted.metadata = {"when": object()}
    with pytest.raises(InputError, match="metadata as JSON"):
        noted.save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_head_of_torchs_own_layers_is_saved_as_it_is(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(32, eps=1e-3)
    nn.init.normal_(norm.running_mean)
    embedder = nn.Sequential(
        OrderedDict(first=nn.Linear(64, 32, bias=False), norm=norm, act=nn.ReLU(), drop=nn.Dropout(0.3)),
    )
    embedder.add_module("rest", nn.Sequential(nn.Flatten(), nn.LayerNorm(32), Linear(32, 8), nn.Identity()))
    encoder = conv4(head=embedder)
    encoder.save(tmp_path / "e.safetensors")
    again = Encoder.load(tmp_path / "e.safetensors")
    assert (again.fingerprint, str(again.head)) == (encoder.fingerprint, str(encoder.head))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(images).embedding, encoder(images).embedding)


class Maximum(Pooling):
    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return feature_map.amax((2, 3))


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "encoder.safetensors"
    conv4().save(path)
    before = path.read_bytes()

    def full(*_args: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distcam.encoders.checkpoint.save_file", full)
    with pytest.raises(WeightsError, match=r"cannot be written.*No space"):
        conv4(seed=1).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_decides_who_may_read_a_checkpoint(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        conv4().save(tmp_path / "encoder.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "encoder.safetensors").stat().st_mode & 0o777 == mode


def rewritten(path: Path, **changes: Any) -> Path:
    """A checkpoint with parts of its configuration replaced."""
    from safetensors import safe_open

    conv4().save(path)
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["distcam"])
    save_file(load_file(path), path, metadata={"distcam": json.dumps({**config, **changes})})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "checkpoint format 99, this distcam reads 1; upgrade"),
        ({"architecture": "resnet18"}, "no layer 'encoder.3'"),
        ({"architecture": "resnet18", "layer": "layer3"}, "are missing"),
        ({"architecture": "nonsense"}, "no architecture 'nonsense'"),
        ({"options": {"width": -1}}, "does not describe an encoder"),
        ({"options": {"width": 10**12}}, "does not describe an encoder"),
        ({"options": 3}, "expected an object as options in its header, got a number"),
        ({"pooling": {"type": "gem", "q": 1}}, "does not describe an encoder"),
        ({"head": {"type": "linear", "in_dim": 64, "out_dim": 10**12, "bias": True}}, "does not describe an encoder"),
        ({"head": {"type": "linear", "in_dim": 64, "out_dim": 8, "bias": True}}, "missing"),
        ({"transform": {"size": -1}}, "does not describe an encoder"),
        ({"layer": "layer9"}, "no layer 'layer9'"),
    ],
)
def test_a_checkpoint_with_a_strange_header_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        Encoder.load(rewritten(tmp_path / "encoder.safetensors", **changes))


def test_weights_and_checkpoints_are_told_apart(tmp_path: Path) -> None:
    conv4().save(tmp_path / "encoder.safetensors")
    save_file(state(), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="is an encoder checkpoint; load it by itself"):
        conv4(weights=tmp_path / "encoder.safetensors")
    with pytest.raises(WeightsError, match=r"no encoder checkpoint of distcam.*weights="):
        Encoder.load(tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="no such checkpoint"):
        Encoder.load(tmp_path / "nowhere.safetensors")
    torch.save(state(), bare := tmp_path / "weights.pth")
    for given in (bare, str(bare)):
        with pytest.raises(InputError, match=r"weights.pth is a file of weights alone.*give this file as its weights"):
            Encoder.load(given)
    with pytest.raises(InputError, match=r"gone.pth: no such file; expected an architecture's name or a checkpoint"):
        Encoder.load("gone.pth")


@pytest.mark.data
def test_published_weight_files_load(real_data: Path) -> None:
    folder = real_data / "weights"
    mobilenet = Encoder.load("mobilenet_v2", weights=folder / "mobilenet_v2_coral_qat-b15abc96.pth")
    assert mobilenet.pooled_dim == 1280
    resnet = Encoder.load("resnet18", weights=folder / "resnet18_to_layer3_bnfolded-31299a69.pth", layer="layer3")
    assert resnet.pooled_dim == 256
    caffe = Transform(channels="bgr", mean=(104 / 255, 117 / 255, 123 / 255), std=(1 / 255, 1 / 255, 1 / 255))
    squeezenet = Encoder.load(
        "squeezenet1_1", weights=folder / "squeezenet1_1_features_caffe_bgr-a7fcdba7.pth", transform=caffe
    )
    assert squeezenet.pooled_dim == 512
