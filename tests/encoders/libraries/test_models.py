"""Names of other libraries where something is missing: weights, the network, the library itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from distcam.encoders import Encoder
from distcam.errors import InputError, MissingExtraError, WeightsError

NAMES = ("timm:test_vit", "hf:facebook/dinov2-small", "open_clip:ViT-B-32")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_without_weights_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(InputError, match=r"needs weights: a FILE, 'pretrained' .*, or 'random'"):
        Encoder.load(name)
    with pytest.raises(InputError, match=r"no weights 'imagenet' of .*: say 'pretrained'"):
        Encoder.load(name, weights="imagenet")
    with pytest.raises(InputError, match=r"no weights 'pretrained' of resnet18: say 'imagenet'"):
        Encoder.load("resnet18", weights="pretrained")


def test_a_readout_is_for_names_of_other_libraries(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a readout is for networks of other libraries, such as timm:resnet18"):
        Encoder.load("resnet18", weights="random", readout="mean")
    Encoder.load("conv4", weights="random").save(tmp_path / "e.safetensors")
    with pytest.raises(InputError, match="brings its own weights, layer"):
        Encoder.load(tmp_path / "e.safetensors", readout="mean")


def test_a_readout_is_part_of_what_an_encoder_is(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="networks of timm need pip install 'distcam[timm]'")
    both = [Encoder.load("timm:test_vit", weights="random", readout=readout) for readout in ("class", "mean")]
    assert both[0].fingerprint != both[1].fingerprint
    both[1].save(tmp_path / "e.safetensors")
    assert Encoder.load(tmp_path / "e.safetensors").fingerprint == both[1].fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_library_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"timm": "timm", "hf": "transformers", "open_clip": "open_clip"}[name.partition(":")[0]]
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'distcam\[{extra}\]'"):
        Encoder.load(name, weights="random")


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_without_network_and_cache_is_one_line_with_the_alternatives(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="libraries' hubs need 'distcam[models]'")
    pytest.importorskip({"timm": "timm", "hf": "transformers", "open_clip": "open_clip"}[name.partition(":")[0]])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"without a network.*--weights FILE.*--weights random.*HF_HOME") as caught:
        Encoder.load(name, weights="pretrained")
    assert "\n" not in str(caught.value)
    assert constants.HF_HUB_OFFLINE is True


def test_pretrained_comes_from_the_cache_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="networks of timm need pip install 'distcam[timm]'")
    from huggingface_hub import constants
    from safetensors.torch import save_file

    own = timm.create_model("test_vit")
    repo = tmp_path / "models--timm--test_vit.r160_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(own.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    encoder = Encoder.load("timm:test_vit", weights="pretrained")
    assert torch.equal(encoder.backbone.source.cls_token, own.cls_token)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:test_vit", {"checkpoint_path": "w.pth"}),
        ("timm:test_vit", {"pretrained_cfg": {"file": "w.pth"}}),
        ("open_clip:ViT-B-32", {"weights_only": False}),
        ("open_clip:ViT-B-32", {"pretrained_image_path": "w.pth"}),
        ("hf:folder", {"trust_remote_code": True}),
    ],
)
def test_options_that_name_files_or_allow_code_are_refused(name: str, options: dict[str, object]) -> None:
    pytest.importorskip({"timm": "timm", "hf": "transformers", "open_clip": "open_clip"}[name.partition(":")[0]])
    with pytest.raises(InputError, match="files and permissions are no options"):
        Encoder.load(name, weights="random", options=options)


def test_a_checkpoint_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="networks of timm need pip install 'distcam[timm]'")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    encoder = Encoder.load("timm:test_vit", weights="random")
    encoder.architecture = "timm:hf-hub:somebody/else"
    encoder.save(tmp_path / "e.safetensors")
    with pytest.raises(WeightsError, match="without a network"):
        Encoder.load(tmp_path / "e.safetensors")
    assert constants.HF_HUB_OFFLINE is False
