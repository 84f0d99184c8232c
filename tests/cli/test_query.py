"""`distcam query`: where queries come from, where explanations may go, and what is said about filters and distances."""

from __future__ import annotations

import json
import shutil

import pytest
from commands import distcam, fails
from typer.testing import CliRunner

from distcam.cli.app import app
from distcam.remarks import DistcamWarning


@pytest.fixture
def probes(photos, tmp_path):
    """A folder of two query images in two sub-folders."""
    for number, folder in enumerate(sorted(each for each in photos.iterdir() if each.is_dir())[:2]):
        (tmp_path / "probes" / folder.name).mkdir(parents=True)
        shutil.copy(sorted(folder.glob("*.jpg"))[0], tmp_path / "probes" / folder.name / f"{number}.jpg")
    return tmp_path / "probes"


def queries(small_gallery, *arguments):
    return [each["query"] for each in json.loads(distcam("query", small_gallery.folder, *arguments, "-k", 1, "--json"))]


def test_queries_are_files_folders_tables_and_patterns(small_gallery, probes, tmp_path) -> None:
    files = sorted(map(str, probes.rglob("*.jpg")))
    table = tmp_path / "probes.csv"
    table.write_text("path\n" + "".join(f"{file}\n" for file in files))
    assert queries(small_gallery, probes) == files
    assert queries(small_gallery, table) == files
    assert queries(small_gallery, probes / "**" / "*.jpg") == files
    assert queries(small_gallery, files[0], probes) == [files[0], *files]


def test_what_cannot_be_read_in_a_folder_is_named_and_passed_over(small_gallery, probes, monkeypatch, capsys) -> None:
    broken = sorted(probes.rglob("*.jpg"))[0]
    broken.write_bytes(b"no picture")
    done = CliRunner().invoke(app, ["query", str(small_gallery.folder), str(probes), "--json"])
    assert len(json.loads(done.stdout)) == 1
    assert str(broken) in done.stderr
    assert str(broken) in fails(monkeypatch, capsys, "query", small_gallery.folder, broken)
    for each in probes.rglob("*.jpg"):
        each.write_bytes(b"no picture")
    done = CliRunner().invoke(app, ["query", str(small_gallery.folder), str(probes)])
    assert "none of the 2 query images can be read" in str(done.exception)


@pytest.mark.parametrize("name", ["why.png", "why.jpg", "why.npz"])
def test_one_query_is_explained_in_one_file(small_gallery, probes, tmp_path, name) -> None:
    photo = sorted(probes.rglob("*.jpg"))[0]
    style = [] if name == "why.npz" else ["--style", "box"]
    assert str(tmp_path / name) in distcam(
        "query", small_gallery.folder, photo, "-k", 2, "--explain", tmp_path / name, *style
    )
    assert (tmp_path / name).stat().st_size > 1000


def test_several_queries_are_not_written_over_one_another(small_gallery, probes, tmp_path, monkeypatch, capsys) -> None:
    said = fails(monkeypatch, capsys, "query", small_gallery.folder, probes, "--explain", tmp_path / "why.png")
    assert "why.png holds one query and there are 2" in said


def test_a_folder_of_something_else_is_left_alone(small_gallery, probes, tmp_path, monkeypatch, capsys) -> None:
    run = tmp_path / "run"
    (run / "seed-0").mkdir(parents=True)
    (run / "recipe.toml").touch()
    said = fails(monkeypatch, capsys, "query", small_gallery.folder, probes, "--explain", run)
    assert "holds something else than explanations, such as recipe.toml" in said
    for _ in range(2):  # an earlier explanation's folder is used again
        distcam("query", small_gallery.folder, probes, "-k", 1, "--explain", tmp_path / "maps")
    assert len(list((tmp_path / "maps").iterdir())) == 4


def test_the_nearest_prototype_obeys_the_filter(small_gallery, probes) -> None:
    photo = sorted(probes.rglob("*.jpg"))[0]
    for label in small_gallery.labels:
        said = distcam("query", small_gallery.folder, photo, "--where", f"label={label}")
        assert f"nearest class prototype: {label} (similarity " in said
        assert f"nearest by cosine among label={label}" in " ".join(said.split())
    (found,) = json.loads(distcam("query", small_gallery.folder, photo, "--where", "label=nothing", "--json"))
    assert (found["matches"], found["prototype"]) == ([], None)


def test_a_threshold_is_shown_beside_the_distances_it_is_about(small_gallery, probes) -> None:
    photo = sorted(probes.rglob("*.jpg"))[0]
    assert "distance" not in distcam("query", small_gallery.folder, photo).split("nearest class")[0]
    assert "distance" in distcam("query", small_gallery.folder, photo, "--max-distance", 0.5).split("within")[0]


def test_one_unreadable_image_of_several_costs_only_itself(small_gallery, probes, monkeypatch, capsys) -> None:
    broken, whole = sorted(probes.rglob("*.jpg"))
    broken.write_bytes(b"no image")
    done = CliRunner().invoke(app, ["query", str(small_gallery.folder), str(broken), str(whole), "--json"])
    assert [each["query"] for each in json.loads(done.stdout)] == [str(whole)]
    assert str(broken) in done.stderr
    assert done.exit_code == 1
    assert str(broken) in fails(monkeypatch, capsys, "query", small_gallery.folder, broken, whole, "--strict")


def test_a_region_is_in_pixels_and_on_the_image(small_gallery, probes, monkeypatch, capsys) -> None:
    photo = sorted(probes.rglob("*.jpg"))[0]
    asked = ["query", small_gallery.folder, photo, "--region"]
    said = fails(monkeypatch, capsys, *asked, "0,0,.5,.5")
    assert "boxes are in pixels of the image, here of 64×64, not in shares of its sides" in said
    assert "lies outside the image of 64×64 pixels" in fails(monkeypatch, capsys, *asked, "70,0,80,9")
    with pytest.warns(DistcamWarning, match=r"\(32.0, 32.0, 99.0, 64.0\) reaches beyond the image of 64×64 pixels"):
        distcam(*asked, "32,32,99,64")
    assert "reaches beyond the image" in fails(monkeypatch, capsys, *asked, "32,32,99,64", "--strict")
