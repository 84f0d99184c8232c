"""`distcam index`: what is removed, what is listed, and what is said afterwards."""

from __future__ import annotations

import json
import shutil

import pytest
from commands import distcam, fails
from typer.testing import CliRunner

from distcam.cli.app import app

ENCODER = ["--encoder", "conv4", "--weights", "random", "--image-size", "64"]


@pytest.fixture
def copy(small_gallery, tmp_path):
    shutil.copytree(small_gallery.folder, tmp_path / "g")
    return tmp_path / "g"


def test_images_are_removed_by_paths_or_by_a_filter(copy, photos, monkeypatch, capsys) -> None:
    first, second, *_ = sorted(photos.rglob("*.jpg"))
    said = distcam("index", "remove", copy, first.relative_to(photos), "--path", second.relative_to(photos))
    assert "2 removed; 22 images left" in said
    assert "paths of images, or --where FILTER" in fails(monkeypatch, capsys, "index", "remove", copy)
    both = fails(monkeypatch, capsys, "index", "remove", copy, "x.jpg", "--where", "label=a")
    assert "one of both" in both


def test_a_filter_that_fits_nothing_says_so(copy) -> None:
    for command in (["index", "remove", copy], ["query", copy, "--id", 0]):
        done = CliRunner().invoke(app, [*map(str, command), "--where", "label=dog", "--json"])
        assert json.loads(done.stdout)
        assert "no image has label 'dog'" in " ".join(done.stderr.split())


def test_what_could_not_be_used_can_be_listed(photos, tmp_path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    broken = next((tmp_path / "photos").rglob("*.jpg"))
    broken.write_bytes(b"not a picture")
    distcam("index", "build", tmp_path / "photos", "--out", tmp_path / "g", *ENCODER)
    assert "1 file could not be used; --skipped lists them" in distcam("index", "info", tmp_path / "g")
    assert f"{broken.parent.name}/{broken.name}: " in distcam("index", "info", tmp_path / "g", "--skipped")
    (listed,) = json.loads(distcam("index", "info", tmp_path / "g", "--skipped", "--json"))["skipped_files"]
    assert listed["reason"]


def test_one_image_is_an_image(photos, tmp_path) -> None:
    (tmp_path / "one" / "a").mkdir(parents=True)
    shutil.copy(next(photos.rglob("*.jpg")), tmp_path / "one" / "a")
    assert "1 image in" in distcam("index", "build", tmp_path / "one", "--out", tmp_path / "g", *ENCODER)


def test_a_threshold_that_turns_most_away_comes_with_the_next_step(copy, monkeypatch) -> None:
    from distcam.index import Gallery
    from distcam.index.rejection import Rejection

    found = Rejection(0.1, 0.01, 0.0, 0.3, 0.9, 24, 24, True, "its own", 1)
    monkeypatch.setattr(Gallery, "calibrate", lambda *_arguments, **_options: found)
    done = CliRunner().invoke(app, ["index", "calibrate", str(copy)])
    assert "--false-alarms 0.05, let more of it pass" in " ".join(done.stderr.split())
