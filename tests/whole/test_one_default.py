"""One way to fit an image and one precision, the same in every command and call, and printed with every number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import distcam
from torch import nn
from torchvision import models

from distcam.cli.console import crop_encoder, load_encoder
from distcam.encoders import Encoder, Inference
from distcam.encoders.weight_files import fetch_imagenet
from distcam.images import Transform
from distcam.index import encode_to_file, read_encodings
from distcam.retrieval import EncodingSettings
from distcam.training.data.splits import DataSettings
from distcam.training.recipes.settings import Settings

FIT = Transform(64).fit
ENCODER = ["--encoder", "conv4", "--weights", "random", "--image-size", "64"]
PRECISION = Inference(Encoder.load("conv4", weights="random")).precision
SEEN_AS = f"{FIT} to 64×64, {PRECISION}"
RECIPE = """
[data]
size = 64
scenes = { classes = 2, size = 64, splits = { train = 4, test = 2 } }
[encoder]
options = { width = 4 }
[[loss]]
kind = "cross_entropy"
[run]
epochs = 1
"""


@pytest.mark.parametrize(
    "fit",
    [
        lambda: Encoder.load("conv4", weights="random").transform.fit,
        lambda: Encoder.load(nn.Conv2d(3, 4, 3), mean=(0.5,) * 3, std=(0.5,) * 3).transform.fit,
        lambda: Encoder(nn.Conv2d(3, 4, 3)).transform.fit,
        lambda: load_encoder("conv4", "random").transform.fit,
        lambda: crop_encoder("conv4", "random", "128x64").transform.fit,
        lambda: DataSettings(images="x").fit,
    ],
    ids=["by name", "module", "constructor", "command line", "reid", "training"],
)
def test_every_door_has_the_same_fit(fit: Any) -> None:
    assert fit() == FIT == "pad"


def test_published_weights_bring_their_size_and_colours_but_not_another_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_a, **_o: {})
    transform = fetch_imagenet("efficientnet_b1")[1]
    assert transform.fit == FIT
    assert transform.height == models.EfficientNet_B1_Weights.DEFAULT.transforms().crop_size[0]


def test_every_door_has_the_same_precision() -> None:
    assert EncodingSettings().precision == Settings().precision == "auto"


def test_what_was_stored_with_another_fit_keeps_it(tmp_path: Path) -> None:
    Encoder.load("conv4", weights="random", transform=Transform(64, fit="crop")).save(tmp_path / "e.safetensors")
    assert Encoder.load(tmp_path / "e.safetensors").transform.fit == "crop"
    assert load_encoder(str(tmp_path / "e.safetensors"), None).transform.fit == "crop"


def test_a_file_of_encodings_says_its_precision(photos: Path, small_encoder: Encoder, tmp_path: Path) -> None:
    encode_to_file(photos, small_encoder, tmp_path / "p.h5", precision="bf16")
    assert read_encodings(tmp_path / "p.h5").encoder["precision"] == "bf16"


def test_retrieval_numbers_come_with_both(photos: Path, tmp_path: Path) -> None:
    text = distcam("evaluate", photos, *ENCODER, "--no-nmi")
    assert f"fit={FIT}" in text.replace("'", "")
    assert f"precision: {PRECISION}" in text
    origin = json.loads(distcam("evaluate", photos, *ENCODER, "--no-nmi", "--json"))["origin"]
    assert (origin["description"]["transform"]["fit"], origin["precision"]) == (FIT, PRECISION)
    built = distcam("index", "build", photos, *ENCODER, "--out", tmp_path / "g")
    assert SEEN_AS in built
    info = json.loads(distcam("index", "info", tmp_path / "g", "--json"))
    assert f"{info['images_as']}, {info['precision']}" == SEEN_AS
    stored = json.loads(distcam("evaluate", tmp_path / "g", "--no-nmi", "--json"))["origin"]
    assert (stored["description"]["transform"]["fit"], stored["precision"]) == (FIT, PRECISION)


def test_few_shot_numbers_come_with_both(photos: Path, tmp_path: Path) -> None:
    small = ["--n-way", "2", "--n-shot", "1", "--n-query", "2", "--episodes", "4"]
    text = distcam("fewshot", "evaluate", "--data", photos, *ENCODER, *small, "--out", tmp_path / "r.h5")
    assert SEEN_AS in text
    stored = json.loads(
        distcam("fewshot", "evaluate", "--data", photos, *ENCODER, *small, "--out", tmp_path / "s.h5", "--json")
    )
    assert stored["source"]["transform"]["fit"] == FIT
    assert stored["source"]["precision"] == PRECISION


def test_numbers_of_a_training_come_with_both(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    assert f"Images: {SEEN_AS}" in distcam("train", tmp_path / "r.toml", "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "comparison.json").read_text())["seen_as"] == [SEEN_AS]
    assert json.loads((tmp_path / "run" / "seed-0" / "result.json").read_text())["images_as"] == SEEN_AS


def test_numbers_of_localisation_come_with_both(tmp_path: Path) -> None:
    from distcam.synthetic.blueprint import blueprints
    from distcam.synthetic.scene_set import write_scenes

    write_scenes(tmp_path / "set", classes=blueprints(2), splits={"gallery": 2, "query": 2}, size=64, masks=True)
    arguments = ["localize", tmp_path / "set" / "query", "--boxes", tmp_path / "set" / "boxes.csv", "--references"]
    text = distcam(*arguments, tmp_path / "set" / "gallery", *ENCODER, "--methods", "dist")
    assert SEEN_AS in text
    content = json.loads(distcam(*arguments, tmp_path / "set" / "gallery", *ENCODER, "--methods", "dist", "--json"))
    assert content["images_as"] == SEEN_AS
