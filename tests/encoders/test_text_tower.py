"""Text towers of open_clip and transformers: as the libraries' own, and the same from a checkpoint."""

from __future__ import annotations

import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from wordy import TinyTower

from distcam import Encoder
from distcam.encoders.text_tower import TextTower
from distcam.errors import InputError
from distcam.remarks import DistcamWarning

TEXTS = ["a red mug", "a dog"]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip", reason="needs pip install 'distcam[open_clip]'")


@pytest.fixture(scope="module")
def clip_folder(open_clip, tmp_path_factory):
    """A tiny CLIP of open_clip as a folder, without weights."""
    import json

    folder = tmp_path_factory.mktemp("open_clip") / "tiny"
    folder.mkdir()
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    looks = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": looks}))
    return folder


def test_open_clips_vectors_are_its_own_and_survive_a_checkpoint(open_clip, clip_folder, tmp_path) -> None:
    encoder = Encoder.load(f"open_clip:{clip_folder}", weights="random")
    assert isinstance(encoder.text, TextTower)
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=16)(TEXTS)
    with torch.no_grad():
        vectors = encoder.encode_text(TEXTS)
        torch.testing.assert_close(vectors, encoder.text.network.encode_text(tokens), atol=1e-5, rtol=0)
        encoder.save(tmp_path / "e.safetensors")
        again = Encoder.load(tmp_path / "e.safetensors")
        torch.testing.assert_close(again.encode_text(TEXTS), vectors)
    assert again.fingerprint == encoder.fingerprint
    assert vectors.shape == (2, encoder.embedding_dim)
    weight = dict(encoder.backbone.named_parameters())
    assert not any("token_embedding" in name for name in weight)  # the two sides are kept apart


@pytest.fixture(params=["clip", "siglip"])
def hf_folder(request, tmp_path):
    """A tiny model of transformers with its tokenizer, as a folder."""
    transformers = pytest.importorskip("transformers", reason="needs pip install 'distcam[transformers]'")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(
        models.WordLevel(
            {w: i for i, w in enumerate(["<pad>", "<unk>", "</s>", "a", "red", "mug", "dog"])}, unk_token="<unk>"
        )
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    text = {**SMALL, "vocab_size": 10, "max_position_embeddings": 16, "pad_token_id": 0}
    text |= {"eos_token_id": 2, "bos_token_id": 1}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    name, more = ("CLIP", {"projection_dim": 16}) if request.param == "clip" else ("Siglip", {})
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **more)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(config).eval()
    model.save_pretrained(tmp_path / "model")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **marks).save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def test_vectors_of_transformers_are_its_own_and_survive_without_the_folder(hf_folder, tmp_path) -> None:
    folder, model = hf_folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DistcamWarning)  # of the image processor that the folder does not have
        encoder = Encoder.load(f"hf:{folder}", weights="pretrained")
    tokens = encoder.text.tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        whole = model(input_ids=tokens.input_ids, pixel_values=torch.zeros(1, 3, 32, 32))
        vectors = encoder.encode_text(TEXTS)
        unit = torch.nn.functional.normalize(vectors, dim=1)
        torch.testing.assert_close(unit, whole.text_embeds, atol=1e-5, rtol=0)
        encoder.save(tmp_path / "e.safetensors")
        folder.rename(tmp_path / "gone")
        again = Encoder.load(tmp_path / "e.safetensors").encode_text(TEXTS)
    torch.testing.assert_close(again, vectors)


@pytest.mark.slow
def test_texts_are_taken_in_another_process_from_the_checkpoint_alone(hf_folder, tmp_path) -> None:
    folder, _ = hf_folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DistcamWarning)
        encoder = Encoder.load(f"hf:{folder}", weights="pretrained")
    encoder.save(tmp_path / "e.safetensors")
    folder.rename(tmp_path / "gone")
    code = "import sys, distcam; print(distcam.Encoder.load(sys.argv[1]).encode_text(['a red mug'])[0, 0].item())"
    command = [sys.executable, "-c", code, str(tmp_path / "e.safetensors")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    with torch.no_grad():
        expected = encoder.encode_text(TEXTS[:1])[0, 0].item()
    assert float(said.split()[-1]) == pytest.approx(expected, abs=1e-6)


def test_weights_of_the_image_side_alone_make_no_text_tower(open_clip, clip_folder, tmp_path) -> None:
    encoder = Encoder.load(f"open_clip:{clip_folder}", weights="random")
    seen = {name.removeprefix("source."): value for name, value in encoder.backbone.state_dict().items()}
    torch.save(seen, tmp_path / "visual.pt")
    with pytest.warns(DistcamWarning, match="of its image side alone, so this encoder takes no texts"):
        found = Encoder.load(f"open_clip:{clip_folder}", weights=tmp_path / "visual.pt")
    assert found.text is None
    whole = {f"visual.{name}": value for name, value in seen.items()}
    torch.save({**whole, **encoder.text.network.state_dict()}, tmp_path / "whole.pt")
    again = Encoder.load(f"open_clip:{clip_folder}", weights=tmp_path / "whole.pt")
    with torch.no_grad():
        torch.testing.assert_close(again.encode_text(TEXTS), encoder.encode_text(TEXTS))


def test_a_tower_of_ones_own_is_left_out_of_a_checkpoint_with_a_remark(small_encoder, tmp_path) -> None:
    encoder = deepcopy(small_encoder)
    encoder.text = TinyTower(torch.eye(64))
    with pytest.warns(DistcamWarning, match="the text tower is a module of your own"):
        encoder.save(tmp_path / "e.safetensors")
    assert Encoder.load(tmp_path / "e.safetensors").text is None
    with pytest.raises(InputError, match="expected a list of texts"):
        encoder.encode_text("a red mug")
    assert Path(tmp_path / "e.safetensors").is_file()
