"""`distcam fewshot predict`: a folder of class folders, images, and an answer with its map for each."""

from __future__ import annotations

import json
import shutil

import pytest
from commands import run

from distcam.images.given import remote

ENCODER = ["--encoder", "conv4", "--weights", "random", "--image-size", "64"]


@pytest.fixture
def support(photos, tmp_path):
    """Two classes of two images, one of which is none."""
    for folder in sorted(photos.iterdir())[:2]:
        (tmp_path / "support" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:2]:
            shutil.copy(file, tmp_path / "support" / folder.name)
    return tmp_path / "support"


def test_a_support_image_is_of_its_class_and_each_answer_has_its_map(support, photos, tmp_path, capsys) -> None:
    first = sorted(support.rglob("*.jpg"))[0]
    (first.parent / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "other.jpg").write_bytes(b"none either")
    asked = [first, sorted(support.rglob("*.jpg"))[-1], tmp_path / "other.jpg"]
    arguments = ["fewshot", "predict", support, *asked, *ENCODER, "--method", "nn", "--explain", tmp_path / "why"]
    status, out, said = run([*map(str, arguments), "--json"], capsys)
    assert status == 1  # an image could not be used
    assert "1 of 5 images cannot be used" in said
    assert "1 of 3 images cannot be used" in said
    answers = json.loads(out)["answers"]
    assert [answer["label"] for answer in answers] == [first.parent.name, asked[1].parent.name, None]
    assert [answer["nearest"] for answer in answers[:2]] == list(map(str, asked[:2]))
    assert {path.name for path in (tmp_path / "why").iterdir()} == {f"001-{first.stem}.png", f"002-{asked[1].stem}.png"}
    status, _, said = run([*map(str, arguments[:4]), *ENCODER, "--strict"], capsys)
    assert status == 2
    assert "bad.jpg" in said


def test_boxes_of_tables_are_cut_out_on_both_sides_and_urls_are_fetched(photos, tmp_path, monkeypatch, capsys) -> None:
    files = [sorted(folder.iterdir())[0] for folder in sorted(photos.iterdir())[:2]]
    monkeypatch.setattr(remote, "fetch", lambda _url: files[1].read_bytes())
    rows = [f"{file},{box},{file.parent.name}" for file in files for box in ("0,0,40,64", "0,0,64,64")]
    (tmp_path / "s.csv").write_text("path,x1,y1,x2,y2,label\n" + "\n".join(rows))
    (tmp_path / "q.csv").write_text(f"path,x1,y1,x2,y2\n{files[0]},0,0,40,64\n")
    asked = ["fewshot", "predict", tmp_path / "s.csv", tmp_path / "q.csv", "https://example.org/a.jpg", *ENCODER]
    status, out, _ = run([*map(str, asked), "--method", "nn", "--explain", str(tmp_path / "why"), "--json"], capsys)
    assert status == 0
    answers = json.loads(out)["answers"]
    assert [answer["label"] for answer in answers] == [file.parent.name for file in files]
    assert [answer["nearest"] for answer in answers] == [f"{files[0]}#xywh=0,0,40,64", f"{files[1]}#xywh=0,0,64,64"]
    assert len(list((tmp_path / "why").iterdir())) == 2


def test_one_class_and_a_method_without_its_mean_are_refused(support, photos, capsys) -> None:
    image = str(next(photos.rglob("*.jpg")))
    shutil.rmtree(next(support.iterdir()))
    for options, says in (([], "at least two classes"), (["--method", "simpleshot-cl2n"], "mean feature")):
        status, _, said = run(["fewshot", "predict", str(support), image, *ENCODER, *options], capsys)
        assert status == 2
        assert says in said
