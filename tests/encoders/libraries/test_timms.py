"""Networks of timm by name: what timm computes, from the pixels that timm would show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import photograph

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.images import Transform, read_image

timm = pytest.importorskip("timm", reason="networks of timm need pip install 'distcam[timm]'")

FAMILIES: dict[str, dict[str, Any]] = {
    "test_vit": {},
    "test_efficientnet": {},
    "test_convnext": {},
    "vit_tiny_patch16_siglip": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)},
    "vit_small_patch14_reg4_dinov2": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_small_patch16_dinov3": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "eva02_tiny_patch14_224": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "beit_base_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "mobilenetv4_conv_small_050": {},
    "efficientnetv2_rw_t": {},
}
FAMILIES = {name: options for name, options in FAMILIES.items() if timm.is_model(name)}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore::distcam.DistcamWarning")
def test_embeddings_are_timms_own_to_1e_5_from_its_own_pixels(name: str, tmp_path: Path) -> None:
    encoder = Encoder.load(f"timm:{name}", weights="random", options=FAMILIES[name])
    own = timm.create_model(name, num_classes=0, **FAMILIES[name]).eval()
    own.load_state_dict(encoder.backbone.source.state_dict())
    image = read_image(photograph(tmp_path / "a.jpg"))
    config = timm.data.resolve_model_data_config(own)
    pixels = timm.data.create_transform(**config, is_training=False)(image)[None]
    with torch.no_grad():
        expected, found = own(pixels), encoder(pixels).embedding
        mine = encoder.transform.normalise(encoder.transform(image)[None])
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    levels = (mine - pixels).abs() * torch.tensor(config["std"])[:, None, None] * 255
    assert levels.max() < 2.01  # one grey level, two where both roundings are ties
    assert (levels > 0.5).float().mean() < 0.02


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"crop_pct": 0.9}, {"fit": "crop", "resize": 248}),
        ({"crop_pct": 1.0}, {"fit": "crop", "resize": 224}),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, {"fit": "squash"}),
        ({"crop_pct": 1.0, "crop_mode": "border"}, {"fit": "pad"}),
    ],
)
def test_crop_share_and_mode_are_those_of_the_configuration(config: dict[str, Any], expected: dict[str, Any]) -> None:
    from distcam.encoders.libraries.builders import transform_of_timm

    looks: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 224, 224)}
    found = transform_of_timm({**looks, "interpolation": "bicubic", **config})
    assert found == Transform(224, **{k: looks[k] for k in ("mean", "std")}, interpolation="bicubic", **expected)


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(InputError, match=r"nearest: .*'vit_tiny_patch16_224"):
        Encoder.load("timm:vit_tny_patch16_224", weights="random")


def test_options_reach_timm_and_what_it_does_not_take_is_one_line() -> None:
    assert (
        Encoder.load("timm:test_vit", weights="random", options={"embed_dim": 32, "num_heads": 2}).embedding_dim == 32
    )
    with pytest.raises(InputError, match="timm:test_vit cannot be built with heads=3"):
        Encoder.load("timm:test_vit", weights="random", options={"heads": 3})


def test_a_classifier_in_a_file_of_weights_is_left_out_without_a_word(tmp_path: Path) -> None:
    own = timm.create_model("test_efficientnet", num_classes=10).eval()
    torch.save(own.state_dict(), tmp_path / "w.pth")
    encoder = Encoder.load("timm:test_efficientnet", weights=tmp_path / "w.pth")
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = own.forward_head(own.forward_features(pixels), pre_logits=True)
        assert torch.allclose(encoder(pixels).embedding, expected, atol=1e-5)


def test_transformers_take_other_sizes_than_their_own() -> None:
    encoder = Encoder.load("timm:test_vit", weights="random", transform=Transform((96, 192)))
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 96, 192)).feature_map.shape[2:] == (6, 12)


def test_a_folder_is_a_name_and_what_it_holds_is_kept(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0, embed_dim=32, num_heads=2)
    args = {"embed_dim": 32, "num_heads": 2}
    looks = {key: model.pretrained_cfg[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")}
    config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": looks, "model_args": args}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    encoder = Encoder.load(f"timm:{tmp_path}", weights="pretrained")
    encoder.save(tmp_path / "e.safetensors")
    again = Encoder.load(tmp_path / "e.safetensors")
    assert (again.fingerprint, again.architecture) == (encoder.fingerprint, "timm:test_vit")
    assert torch.equal(again.backbone.source.cls_token, model.cls_token)


def test_no_pooling_but_the_mean_is_taken_of_a_map_made_of_a_vectors_parts() -> None:
    images = torch.randn(2, 3, 160, 160)
    with pytest.raises(InputError, match="no other pooling than gap"):
        Encoder.load("timm:test_vit", weights="random", pooling="gem")(images)
    assert (
        Encoder.load("timm:test_vit", weights="random", pooling="gem", readout="mean")(images).pooled.isfinite().all()
    )
