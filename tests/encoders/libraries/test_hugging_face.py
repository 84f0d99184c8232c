"""Networks of transformers by folder: what transformers computes, from the pixels that its processor makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import folder_of_transformers, photograph

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.images import read_image
from distcam.remarks import DistcamWarning

transformers = pytest.importorskip(
    "transformers", reason="networks of transformers need pip install 'distcam[transformers]'"
)


def own_vectors(kind: str, folder: Path, pixels: Any) -> torch.Tensor:
    """The oracle: the vector that the authors of each rank by."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if kind == "dinov2":
            return model(pixel_values=pixels).pooler_output
        found = model.get_image_features(pixel_values=pixels)
        return getattr(found, "pooler_output", found)


@pytest.mark.filterwarnings("ignore:no tokenizer:distcam.remarks.DistcamWarning")
@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
def test_embeddings_are_transformers_own_to_1e_5_from_its_own_pixels(kind: str, tmp_path: Path) -> None:
    folder = folder_of_transformers(kind, tmp_path / "model")
    encoder = Encoder.load(f"hf:{folder}", weights="pretrained")
    image = read_image(photograph(tmp_path / "a.jpg"))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    expected = own_vectors(kind, folder, pixels)
    with torch.no_grad():
        found = encoder(pixels).embedding
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    mine = encoder.transform.normalise(encoder.transform(image)[None])
    levels = (mine - pixels).abs() * torch.tensor(processor.image_std)[:, None, None] * 255
    assert levels.mean() < 0.6  # transformers resizes tensors, Pillow is another rounding


def test_a_folder_is_kept_as_configuration_and_weights(tmp_path: Path) -> None:
    folder = folder_of_transformers("clip", tmp_path / "model")
    encoder = Encoder.load(f"hf:{folder}", weights="pretrained")
    encoder.save(tmp_path / "e.safetensors")
    folder.rename(tmp_path / "elsewhere")
    again = Encoder.load(tmp_path / "e.safetensors")
    assert (again.fingerprint, again.architecture) == (encoder.fingerprint, "hf:clip")
    assert Encoder.load(f"hf:{tmp_path / 'elsewhere'}", weights="pretrained").fingerprint == encoder.fingerprint


def test_without_an_image_processor_the_transform_is_said_to_be_assumed(tmp_path: Path) -> None:
    folder = folder_of_transformers("dinov2", tmp_path / "model", processor=False)
    with pytest.warns(DistcamWarning, match=r"without an image processor.*56×56.*ImageNet's mean"):
        Encoder.load(f"hf:{folder}", weights="random")


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    folder = folder_of_transformers("bert", tmp_path / "model")
    with pytest.raises(InputError, match="a bert model, which takes input_ids and no images"):
        Encoder.load(f"hf:{folder}", weights="random")


@pytest.mark.filterwarnings("ignore:no tokenizer:distcam.remarks.DistcamWarning")
@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])  # DINOv2's files have names of an older release
def test_weights_of_a_file_fill_a_configuration(kind: str, tmp_path: Path) -> None:
    folder = folder_of_transformers(kind, tmp_path / "model")
    expected = Encoder.load(f"hf:{folder}", weights="pretrained").fingerprint
    assert Encoder.load(f"hf:{folder}", weights=folder / "model.safetensors").fingerprint == expected
