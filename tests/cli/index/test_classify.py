"""`distcam classify`: a line, a table or JSON for each image, its map, and what is refused."""

from __future__ import annotations

import csv
import json

import pytest
from commands import distcam, fails, run

from distcam import DistcamWarning
from distcam.images.given import remote


@pytest.fixture(scope="module")
def answers(small_gallery, photos, tmp_path_factory):
    """The folder with the table and the maps of two images and one that is none, and what was said."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "bad.jpg").write_bytes(b"no image")
    files = [*sorted(photos.rglob("*.jpg"))[:2], folder / "bad.jpg"]
    options = ["--csv", folder / "a.csv", "--explain", folder / "why", "--by", "knn", "-k", 1]
    with pytest.warns(DistcamWarning, match="1 of 3 images cannot be used"):
        return folder, distcam("classify", small_gallery.folder, *files, *options, status=1), files


def test_the_table_has_a_line_for_each_image_and_names_what_was_not_used(answers) -> None:
    folder, said, files = answers
    with (folder / "a.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == list(map(str, files))
    assert [row["label"] for row in rows] == [files[0].parent.name, files[1].parent.name, ""]
    assert float(rows[0]["distance"]) == pytest.approx(0, abs=1e-6)
    assert rows[0]["decided_by"] == "rank:1"
    assert rows[2]["problem"]
    assert "3 images: 2 " in said
    assert "1 not used" in said
    assert "expected calibration error" in said


def test_each_answer_has_its_map(answers) -> None:
    folder, _, files = answers
    names = {path.name for path in (folder / "why").iterdir()}
    assert names == {f"{n:03d}-{file.stem}.{kind}" for n, file in enumerate(files[:2], 1) for kind in ("png", "npz")}


def test_json_holds_the_calibration_and_the_answers(small_gallery, photos) -> None:
    file = next(photos.rglob("*.jpg"))
    found = json.loads(distcam("classify", small_gallery.folder, file, "--json"))
    assert found["calibration"]["n"] == 24
    (answer,) = found["answers"]
    assert answer["best"] == next(iter(answer["probabilities"]))


def test_each_box_of_a_table_has_its_answer_and_a_url_its_name(small_gallery, photos, tmp_path, monkeypatch) -> None:
    file, url = next(photos.rglob("*.jpg")), "https://example.org/a.jpg"
    monkeypatch.setattr(remote, "fetch", lambda _url: file.read_bytes())
    table = tmp_path / "boxes.csv"
    table.write_text(f"path,x1,y1,x2,y2\n{file},0,0,40,64\n{file},8,0,64,64\n")
    found = json.loads(distcam("classify", small_gallery.folder, table, url, "--explain", tmp_path / "why", "--json"))
    names = [answer["path"] for answer in found["answers"]]
    assert names == [f"{file}#xywh=0,0,40,64", f"{file}#xywh=8,0,56,64", url]
    assert len(list((tmp_path / "why").iterdir())) == 6


def test_strict_refuses_what_cannot_be_read_and_so_does_a_folder_of_nothing_else(
    small_gallery, answers, capsys
) -> None:
    _, _, files = answers
    for arguments in ([str(files[0]), str(files[2]), "--strict"], [str(files[2])]):
        status, _, said = run(["classify", str(small_gallery.folder), *arguments], capsys)
        assert status == 2
        assert "bad.jpg" in said


def test_a_gallery_without_a_threshold_names_the_command_that_chooses_one(
    small_gallery, photos, monkeypatch, capsys
) -> None:
    said = fails(monkeypatch, capsys, "classify", small_gallery.folder, next(photos.rglob("*.jpg")), "--reject")
    assert "distcam index calibrate" in said
