"""Networks of open_clip: what `encode_image` gives, from the pixels that open_clip makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign import folder_of_open_clip, photograph

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.images import Transform, read_image
from distcam.remarks import DistcamWarning

open_clip = pytest.importorskip("open_clip", reason="networks of open_clip need pip install 'distcam[open_clip]'")


def test_embeddings_are_encode_image_to_1e_5_from_its_own_pixels(tmp_path: Path) -> None:
    folder = folder_of_open_clip(tmp_path / "model")
    encoder = Encoder.load(f"open_clip:{folder}", weights="pretrained")
    own, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    image = read_image(photograph(tmp_path / "a.jpg"))
    pixels = transform(image)[None]
    with torch.no_grad():
        expected, found = own.eval().encode_image(pixels), encoder(pixels).embedding
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(encoder.transform.normalise(encoder.transform(image)[None]), pixels)  # squashed: bit for bit


def test_a_folder_is_kept_as_configuration_and_weights(tmp_path: Path) -> None:
    folder = folder_of_open_clip(tmp_path / "model")
    encoder = Encoder.load(f"open_clip:{folder}", weights="pretrained")
    encoder.save(tmp_path / "e.safetensors")
    folder.rename(tmp_path / "elsewhere")
    again = Encoder.load(tmp_path / "e.safetensors")
    assert again.fingerprint == encoder.fingerprint
    assert again.transform == Transform(
        32, fit="squash", mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bicubic", fill=(0,) * 3
    )


def test_a_name_takes_the_tag_of_its_weights_and_their_transform() -> None:
    with pytest.raises(InputError, match=r"knows no 'ViT-B-32/openal', nearest: 'ViT-B-32/openai'"):
        Encoder.load("open_clip:ViT-B-32/openal", weights="random")
    with pytest.raises(InputError, match=r"knows no 'ViTB-32', nearest: 'ViT-B-32'"):
        Encoder.load("open_clip:ViTB-32", weights="random")


def test_the_transform_of_a_network_without_published_weights_is_said_to_be_assumed() -> None:
    with pytest.warns(DistcamWarning, match="CLIP's mean and std are assumed"):
        encoder = Encoder.load("open_clip:ViT-S-32-alt", weights="random")
    assert encoder.embedding_dim == 256


def test_a_module_is_read_out_as_asked_with_the_transform_that_it_carries() -> None:
    timm = pytest.importorskip("timm", reason="needs pip install 'distcam[timm]'")
    tower = open_clip.create_model("ViT-S-32-alt", pretrained=None).visual
    encoder = Encoder.load(torch.nn.DataParallel(tower), layer="ln_post")
    assert encoder.transform.mean == tuple(tower.preprocess_cfg["mean"])

    model = timm.create_model("test_vit").eval()
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        encoding = Encoder.load(model, readout="class")(images)
        torch.testing.assert_close(encoding.pooled, model.forward_features(images)[:, 0])
    torch.testing.assert_close(encoding.feature_map.mean((2, 3)), encoding.pooled)
