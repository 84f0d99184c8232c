"""`distcam benchmark explanations` and `index calibrate --explanations`, from a folder and a gallery."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run

from distcam.encoders import Encoder
from distcam.index import Gallery
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes


@pytest.fixture(scope="module")
def work(small_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    splits = {"all": 4, "query": 2}
    write_scenes(folder, classes=blueprints(4), splits=splits, size=64, two_object_share=0.0)
    small_encoder.save(folder / "encoder.safetensors")
    Gallery.build(folder / "all", small_encoder, out=folder / "gallery", device="cpu")
    return folder


def test_a_folder_with_boxes_becomes_a_table_and_a_page(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "explanations", str(work / "all"), "--encoder", str(work / "encoder.safetensors")]
    arguments += ["--queries", str(work / "query"), "--boxes", str(work / "boxes.csv")]
    arguments += ["--composites", "2", "--faithful", "0", "--methods", "root_ratio,dist"]
    code, out, _ = run([*arguments, "--html", str(work / "page.html")], capsys)
    assert code == 0
    assert "| energy in boxes |" in out.replace("V2 | peak ", "")
    assert "| `root_ratio` | " in out
    assert (work / "page.html").is_file()
    code, _, err = run(["benchmark", "explanations", str(work / "all"), "--boxes", str(work / "boxes.csv")], capsys)
    assert code == 2
    assert "add --queries" in err or "add them" in err


def test_a_gallery_brings_its_encoder(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "explanations", str(work / "gallery"), "--composites", "2", "--faithful", "0"]
    code, out, _ = run([*arguments, "--methods", "root_ratio", "--json"], capsys)
    assert code == 0
    assert json.loads(out)["composites"]["right_of_two"] == 2
    code, _, err = run([*arguments, "--encoder", "resnet18"], capsys)
    assert code == 2
    assert "--encoder is not used with a gallery" in err


def test_calibrate_keeps_the_winner_or_says_that_the_default_stays(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["index", "calibrate", str(work / "gallery"), "--explanations", "--composites", "3"]
    code, out, _ = run([*arguments, "--json"], capsys)
    assert code == 0
    kept = Gallery.open(work / "gallery").map_choice
    assert json.loads(out)["map_choice"] == (None if kept is None else vars(kept))
    code, _, err = run([*arguments, "--false-alarms", "0.1"], capsys)
    assert code == 2
    assert "--false-alarms is not used with --explanations" in err
