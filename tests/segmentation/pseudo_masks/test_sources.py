"""The segmenter that training leaves: maps, and a file without code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import distcam, fails
from PIL import Image

from distcam.encoders import Encoder, TrainedOn
from distcam.errors import InputError, ShapeError, WeightsError
from distcam.explain import ClassScore, explain_image
from distcam.images import Transform
from distcam.segmentation.cam_training.class_maps import class_maps
from distcam.segmentation.cam_training.cpn import Cpn, CpnSettings
from distcam.segmentation.pseudo_masks.sources import WeakSegmenter, load_source, network_of
from distcam.segmentation.segmenter.inference import InferenceSettings, class_scores

NAMES = ("cat", "dog")


@pytest.fixture
def trained() -> tuple[Encoder, Cpn]:
    encoder = Encoder.load(
        "conv4", weights="random", options={"width": 8, "last_pool": False}, transform=Transform(32), seed=2
    )
    return encoder, Cpn(encoder, 2)


def test_plain_maps_are_the_class_weights_on_the_feature_map(trained: tuple[Encoder, Cpn]) -> None:
    encoder, term = trained
    segmenter, images = WeakSegmenter.of(encoder, term, NAMES), torch.randn(2, 3, 32, 32)
    plain = segmenter.class_maps(images, refined=False)
    torch.testing.assert_close(plain, class_maps(encoder(images).feature_map, term.weight.detach()))
    torch.testing.assert_close(segmenter.presence(images), term.logits(encoder(images).pooled).detach())


def test_refined_maps_are_not_negative_and_knowing_the_labels_removes_absent_classes(
    trained: tuple[Encoder, Cpn],
) -> None:
    segmenter, images = WeakSegmenter.of(*trained, NAMES), torch.randn(2, 3, 32, 32)
    refined = segmenter.class_maps(images)
    assert refined.shape == (2, 2, 4, 4)
    assert refined.min() >= 0
    known = segmenter.class_maps(images, labels=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert known[0, 1].abs().max() == known[1, 0].abs().max() == 0
    torch.testing.assert_close(segmenter.class_maps(images[1:]), refined[1:])  # rows do not depend on one another


def test_images_of_other_sizes_are_taken(trained: tuple[Encoder, Cpn]) -> None:
    assert WeakSegmenter.of(*trained, NAMES).class_maps(torch.randn(1, 3, 48, 80)).shape == (1, 2, 6, 10)


@pytest.mark.parametrize("options", [{}, {"prcm_softmax": "pixel", "scaling": "range"}, {"pcm": False}, None])
def test_save_and_load_are_the_identity(
    trained: tuple[Encoder, Cpn], tmp_path: Path, options: dict[str, object] | None
) -> None:
    encoder = trained[0]
    encoder.metadata = {"training": {"config": {"name": "a recipe"}}}
    without = {"cpcr": False, "pcm": False, "prcm": False}
    term = Cpn(encoder, 2, CpnSettings(**(without if options is None else options)))
    encoder.trained_on = TrainedOn.of(NAMES, 2, np.array([5, 3]))
    segmenter = WeakSegmenter.of(encoder, term, NAMES, metadata={"beta": 0.3})
    segmenter.save(tmp_path / "weak.safetensors")
    again, images = WeakSegmenter.load(tmp_path / "weak.safetensors"), torch.randn(2, 3, 32, 32)
    assert torch.equal(again.class_maps(images), segmenter.class_maps(images))
    assert again.class_names == NAMES
    assert again.is_refined == (options is not None)
    assert again.encoder.fingerprint == encoder.fingerprint
    assert again.encoder.trained_on.classes == NAMES
    assert again.encoder.trained_on.digests.tolist() == [3, 5]
    assert again.metadata["beta"] == 0.3
    assert again.metadata["training"]["config"]["name"] == "a recipe"


def test_inference_takes_it_and_finds_its_file(trained: tuple[Encoder, Cpn], tmp_path: Path) -> None:
    segmenter = WeakSegmenter.of(*trained, NAMES)
    segmenter.save(tmp_path / "weak_segmenter.safetensors")
    source = load_source(tmp_path)
    picture = Image.new("RGB", (40, 30), "red")
    picture.paste("blue", (5, 5, 20, 20))
    settings = InferenceSettings(scales=(1.0,), flip=False)
    scores = class_scores(source, picture, shown=[0], settings=settings)
    assert scores.shape == (2, 30, 40)
    assert scores[1].max() == 0


def test_other_files_are_refused(trained: tuple[Encoder, Cpn], tmp_path: Path) -> None:
    trained[0].save(tmp_path / "encoder.safetensors")
    with pytest.raises(WeightsError, match="holds no weak segmenter"):
        WeakSegmenter.load(tmp_path / "encoder.safetensors")
    with pytest.raises(WeightsError, match="no such"):
        WeakSegmenter.load(tmp_path / "nothing.safetensors")


def test_a_network_of_one_s_own_is_used_but_not_saved(tmp_path: Path) -> None:
    encoder = Encoder.load(torch.nn.Conv2d(3, 4, 8, stride=8), transform=Transform(32))
    segmenter = WeakSegmenter(encoder, torch.randn(2, 4), NAMES)
    assert segmenter.class_maps(torch.randn(1, 3, 32, 32)).shape == (1, 2, 4, 4)
    with pytest.raises(InputError, match="network of your own"):
        segmenter.save(tmp_path / "weak.safetensors")


def test_parts_that_do_not_fit_are_refused(trained: tuple[Encoder, Cpn]) -> None:
    encoder, term = trained
    with pytest.raises(ShapeError, match=r"class weights \(3, 8\)"):
        WeakSegmenter(encoder, term.weight, ("a", "b", "c"))
    with pytest.raises(InputError, match="come together"):
        WeakSegmenter(encoder, term.weight, NAMES, refinement=term.refinement)


def test_it_is_explained_for_a_class_by_its_file_or_its_run(
    trained: tuple[Encoder, Cpn],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    segmenter = WeakSegmenter.of(*trained, NAMES)
    segmenter.save(tmp_path / "weak_segmenter.safetensors")
    picture = Image.new("RGB", (40, 30), "red")
    picture.paste("blue", (5, 5, 20, 20))
    picture.save(tmp_path / "picture.png")
    pixels = segmenter.transform.normalise(segmenter.transform(picture)[None])
    network = network_of(segmenter)
    torch.testing.assert_close(network.model(pixels), segmenter.presence(pixels))
    found = explain_image(network.model, pixels, target=ClassScore(1), method="hirescam", layer=network.layer)
    plain = segmenter.class_maps(pixels, refined=False)[0, 1].clamp(min=0)
    torch.testing.assert_close(found.maps[0, 0] * plain.numel(), plain.detach(), atol=1e-5, rtol=1e-4)  # HiResCAM = CAM
    logit = segmenter.presence(pixels)[0, 1].detach()
    for given in (tmp_path, tmp_path / "weak_segmenter.safetensors"):
        said = distcam("explain", tmp_path / "picture.png", "--encoder", given, "--target", "class:dog", "--json")
        assert json.loads(said)[0]["score"] == pytest.approx(float(logit), abs=1e-5)
    asked = ("explain", tmp_path / "picture.png", "--encoder", tmp_path, "--target", "segment:dog@all")
    assert "ask for --target class:dog" in fails(monkeypatch, capsys, *asked)
