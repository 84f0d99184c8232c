"""Encoders as programs for other runtimes: two outputs, any batch size, checked, described, else refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from distcam import Encoder
from distcam.encoders import BNNeck, Linear, Sequential
from distcam.errors import DistcamError, InputError
from distcam.explain import export
from distcam.images import Transform


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    head = Sequential(BNNeck(64), Linear(64, 5))
    return Encoder.load("conv4", weights="random", transform=Transform((32, 48)), head=head, pooling="gem")


@pytest.fixture(scope="module")
def pixels():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 48), np.uint8))


def close_to_the_encoder(encoder, pixels, answer) -> None:
    embedding, response = answer
    with torch.no_grad():
        expected = encoder(encoder.transform.normalise(pixels)).embedding
    torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(response.mean((2, 3)), expected, atol=1e-4, rtol=1e-4)


def test_a_torch_program_answers_as_the_encoder_for_any_batch(encoder, pixels, tmp_path) -> None:
    written = export.export_encoder(encoder, tmp_path / "e.pt2", pixels)
    assert written.difference <= 1e-4
    extra = {"distcam.json": ""}
    program = torch.export.load(tmp_path / "e.pt2", extra_files=extra).module()
    for n in (1, 2, 3):
        close_to_the_encoder(encoder, pixels[:n], program(pixels[:n]))
    described = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert described == json.loads(extra["distcam.json"])
    assert described["fingerprint"] == encoder.fingerprint
    assert Transform.from_dict(described["transform"]) == encoder.transform


@pytest.mark.slow  # torch's ONNX exporter takes seconds to be imported
def test_an_onnx_program_answers_as_the_encoder_and_carries_what_it_is(encoder, pixels, tmp_path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="needs pip install 'distcam[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="needs pip install 'distcam[onnx]'")
    export.export_encoder(encoder, tmp_path / "e.onnx", pixels)
    session = runtime.InferenceSession(str(tmp_path / "e.onnx"), providers=["CPUExecutionProvider"])
    for n in (1, 3):
        answer = session.run(["embedding", "response_map"], {"pixels": pixels[:n].numpy()})
        close_to_the_encoder(encoder, pixels[:n], tuple(map(torch.from_numpy, answer)))
    kept = json.loads(session.get_modelmeta().custom_metadata_map["distcam"])
    assert kept == json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))


def test_a_program_that_answers_otherwise_is_not_kept(encoder, pixels, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export, "_written_torch", lambda *_: lambda given: (torch.zeros(len(given), 5), torch.zeros(1)))
    with pytest.raises(DistcamError, match="the largest difference is"):
        export.export_encoder(encoder, tmp_path / "e.pt2", pixels)
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_exact_map_or_no_such_format_is_refused(encoder, pixels, tmp_path) -> None:
    bent = Encoder.load("conv4", weights="random", transform=Transform((32, 48)), head=nn.Sequential(nn.ReLU()))
    with pytest.raises(InputError, match="exact to first order only"):
        export.export_encoder(bent, tmp_path / "e.pt2", pixels)
    with pytest.raises(InputError, match="is exported as"):
        export.export_encoder(encoder, tmp_path / "e.bin", pixels)
    with pytest.raises(InputError, match="at least two images"):
        export.export_encoder(encoder, tmp_path / "e.pt2", pixels[:1])


@pytest.mark.parametrize(
    ("name", "built"),
    [
        pytest.param("resnet10t", {}, marks=pytest.mark.slow),
        ("vit_tiny_patch16_224", {"options": {"depth": 1, "img_size": 32}, "readout": "mean"}),
    ],
)
def test_means_of_maps_and_of_tokens_are_exported_with_a_free_batch(name, built, tmp_path) -> None:
    pytest.importorskip("timm", reason="needs pip install 'distcam[timm]'")
    encoder = Encoder.load(f"timm:{name}", weights="random", transform=Transform(32), **built)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8))
    assert export.export_encoder(encoder, tmp_path / "e.pt2", images).difference <= 1e-4
