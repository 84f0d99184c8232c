"""The command line, from a temporary folder: what is printed, what is written, and how errors end."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from typing import get_args

import h5py
import pytest
from commands import distcam, fails
from typer.testing import CliRunner

from distcam.cli.app import _COMMANDS, _HOMES, app
from distcam.cli.command import OnDemand
from distcam.cli.demo import MARKER, DemoSize, run
from distcam.cli.query import Weighting
from distcam.errors import InputError
from distcam.explain import WEIGHTINGS

ENCODER = ["--encoder", "conv4", "--weights", "random", "--image-size", "64", "--fit", "squash"]


@pytest.fixture(scope="module")
def gallery(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "photos.gallery"
    distcam("index", "build", photos, "--out", out, *ENCODER)
    return out


def test_every_command_has_help_with_an_example():
    for command in (
        ["index", "build"], ["index", "add"], ["index", "remove"], ["index", "info"], ["index", "verify"],
        ["index", "compact"], ["query"], ["encode"], ["env"], ["demo"],
    ):  # fmt: skip
        assert f"distcam {' '.join(command)}" in " ".join(distcam(*command, "--help").split())


def loaded_by(*arguments):
    """The modules that the command loads in a process of its own."""
    code = "import sys; from distcam.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(said.splitlines()[-1].split())


def test_a_cold_query_loads_no_compiler_and_no_templates(photos, tmp_path):
    distcam("index", "build", photos, "--out", tmp_path / "g", "--encoder", "mobilenet_v2", "--weights", "random",
            "--image-size", "64")  # fmt: skip
    loaded = loaded_by("query", tmp_path / "g", next(photos.rglob("*.jpg")))
    assert {"torch", "torchvision"} <= loaded
    assert not {"torch._dynamo", "torch._inductor", "sympy", "jinja2", "scipy", "sklearn", "fastapi"} & loaded


def test_help_loads_no_command_and_nothing_heavy():
    loaded = loaded_by("--help")
    assert not {"torch", "numpy", "h5py", "PIL", "rich.progress", "hashlib"} & loaded
    assert not [f"distcam.cli.{name}" for name in _COMMANDS if f"distcam.cli.{name}" in loaded]


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_list_of_commands_says_what_each_says_itself(name):
    command = OnDemand(name, f"distcam.cli.{_HOMES.get(name, name)}", _COMMANDS[name]).load()
    assert (command.name, command.help.splitlines()[0]) == (name, _COMMANDS[name])


def test_words_below_a_command_loaded_on_demand_are_completed(monkeypatch):
    for words, expected in {
        "distcam que": "query",
        "distcam index calib": "calibrate",
        "distcam query --expl": "--explain",
    }.items():
        count = str(len(words.split()) - 1)
        asked = {"_DISTCAM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
        said = CliRunner().invoke(app, [], prog_name="distcam", env=asked)
        assert expected in said.stdout.split(), words


def test_every_weighting_can_be_asked_for():
    assert get_args(Weighting) == WEIGHTINGS  # written out in the command, so that --help needs no torch


def test_build_query_and_explain(gallery, photos, tmp_path):
    queries = sorted(photos.rglob("*.jpg"))[:2]
    answers = json.loads(distcam("query", gallery, *queries, "-k", 3, "--json"))
    assert [len(answer["matches"]) for answer in answers] == [3, 3]
    assert answers[0]["matches"][0]["path"] == queries[0].relative_to(photos).as_posix()
    assert answers[0]["prototype"]["label"]

    assert queries[0].parent.name in distcam("query", gallery, queries[0], "-k", 2, "--explain", tmp_path / "why.html")
    assert "data:image/jpeg" in (tmp_path / "why.html").read_text()
    distcam("query", gallery, *queries, "-k", 2, "--explain", tmp_path / "maps", "--weighting", "dist*s")
    assert sorted(file.suffix for file in (tmp_path / "maps").iterdir()) == [".npz", ".npz", ".png", ".png"]
    distcam("query", gallery, queries[0], "--against", queries[1].parent.name, "--explain", tmp_path / "class.html")
    distcam("query", gallery, queries[0], "--against", "prototype", "--explain", tmp_path / "prototype.html")


def test_add_remove_info_verify_compact(gallery, photos, tmp_path):
    copy = tmp_path / "g"
    shutil.copytree(gallery, copy)
    more = tmp_path / "more" / "new"
    more.mkdir(parents=True)
    for number, file in enumerate(sorted(photos.rglob("*.jpg"))[:3]):
        shutil.copy(file, more / f"{number}.jpg")
    report = json.loads(distcam("index", "add", copy, more.parent, "--json"))
    assert (report["added"], report["images"]) == (3, 27)
    assert json.loads(distcam("index", "remove", copy, "--where", "label=new", "--json"))["removed"] == 3
    path = sorted(photos.rglob("*.jpg"))[0].relative_to(photos)
    assert json.loads(distcam("index", "remove", copy, "--path", path, "--json"))["images"] == 23
    assert json.loads(distcam("index", "info", copy, "--json"))["images"] == 23
    assert "encoder" in distcam("index", "info", copy)
    assert json.loads(distcam("index", "compact", copy, "--json"))["images"] == 23
    assert json.loads(distcam("index", "verify", copy, "--json"))["is_sound"]


def test_verify_ends_with_status_1_when_a_file_is_damaged(gallery, tmp_path):
    copy = tmp_path / "g"
    shutil.copytree(gallery, copy)
    segment = next(copy.glob("segment-*.h5"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    assert segment.name in distcam("index", "verify", copy, status=1)


def test_a_table_of_images_keeps_its_columns(photos, tmp_path):
    table = tmp_path / "photos.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "year"])
        for year, picture in enumerate(sorted(photos.rglob("*.jpg")), start=2000):
            writer.writerow([picture, picture.parent.name, year])
    out = tmp_path / "g"
    distcam("index", "build", table, "--out", out, *ENCODER)
    query = next(photos.rglob("*.jpg"))
    [answer] = json.loads(distcam("query", out, query, "--where", "year>=2003 and year<2006", "--json"))
    assert sorted(int(match["columns"]["year"]) for match in answer["matches"]) == [2003, 2004, 2005]
    assert {match["label"] for match in answer["matches"]} <= {folder.name for folder in photos.iterdir()}


def test_names_with_brackets_are_printed_as_they_are(photos, tmp_path):
    folder = tmp_path / "pictures" / "z["
    folder.mkdir(parents=True)
    for number, file in enumerate(sorted(photos.rglob("*.jpg"))[:3]):
        shutil.copy(file, folder / f"{number}].jpg")  # "z[/0].jpg" would close a tag that was never opened
    out = tmp_path / "g [red]"
    assert "g [red]" in distcam("index", "build", folder.parent, "--out", out, *ENCODER)
    assert "z[/0].jpg" in distcam("query", out, folder / "0].jpg", "-k", 1)


def test_options_of_an_explanation_ask_for_one(gallery, photos, monkeypatch, capsys):
    query = next(photos.rglob("*.jpg"))
    assert "--explain" in fails(monkeypatch, capsys, "query", gallery, query, "--against", "cat")
    assert "not why.txt" in fails(monkeypatch, capsys, "query", gallery, query, "--explain", "why.txt")
    assert "File exists" in fails(monkeypatch, capsys, "query", gallery, query, "--explain", query / "x.html")


def test_pictures_that_moved_are_found_by_root(gallery, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "moved")
    query = next(photos.rglob("*.jpg"))
    distcam("query", gallery, query, "--root", tmp_path / "moved", "--explain", tmp_path / "x.html")
    assert (tmp_path / "x.html").is_file()


def test_encode_writes_one_file(photos, tmp_path):
    report = json.loads(distcam("encode", photos, "--out", tmp_path / "photos.h5", *ENCODER, "--json"))
    assert report["added"] == 24
    with h5py.File(tmp_path / "photos.h5") as file:
        assert file["pooled"].shape == (24, 64)


def test_env_names_versions():
    assert json.loads(distcam("env", "--json"))["torch"]
    assert "torch" in distcam("env")


def test_unreadable_files_are_listed_or_stop_a_strict_build(photos, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    broken = next(copy.rglob("*.jpg"))
    broken.write_bytes(b"not a picture")
    result = json.loads(distcam("index", "build", copy, "--out", tmp_path / "g", *ENCODER, "--json"))
    assert (result["images"], len(result["skipped"])) == (23, 1)
    assert result["skipped"][0]["reason"]
    assert broken.name in fails(
        monkeypatch, capsys, "index", "build", copy, "--out", tmp_path / "strict", *ENCODER, "--strict"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "build", "nowhere", "--out", "g", *ENCODER], "nowhere"),
        (["index", "build", ".", "--out", "g", "--encoder", "resnet18"], "--weights"),
        (["index", "build", ".", "--out", "g", "--encoder", "resnet8", "--weights", "random"], "resnet18"),
        (["query", "nowhere", "probe.jpg"], "nowhere"),
        (["index", "remove", "nowhere"], "--where FILTER"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    text = fails(monkeypatch, capsys, *arguments)
    assert message in text
    assert text.startswith("error: ")
    assert text.count("\n") == 1


def test_the_demo_measures_and_reports(tmp_path):
    size = DemoSize(base_classes=3, novel_classes=3, base_images=6, gallery_images=4, query_images=2, epochs=1, shown=2)
    (tmp_path / "demo").mkdir()
    for name in (MARKER, "of an earlier run"):
        (tmp_path / "demo" / name).touch()
    result = run(tmp_path / "demo", size=size)
    assert not (tmp_path / "demo" / "of an earlier run").exists()
    assert 0 <= result["recall_at_1"] <= 1
    assert result["recall_at_1_chance"] == pytest.approx(1 / 3)
    assert 0 < result["peak_in_box_chance"] < 1
    report = (tmp_path / "demo" / "report.html").read_text()
    assert len(report) > 10_000
    assert "lie alike" in report
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty"):
        run(tmp_path / "mine", size=size)


def test_query_rejects_by_the_stored_threshold_or_by_another(gallery, photos, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy.gallery"
    shutil.copytree(gallery, copy)
    file = str(sorted(photos.rglob("*.jpg"))[0])
    assert "distcam index calibrate" in fails(monkeypatch, capsys, "query", copy, file, "--reject")
    distcam("index", "calibrate", copy, "--false-alarms", "0.2")
    (found,) = json.loads(distcam("query", copy, file, "--reject", "--json"))
    assert found["is_known"] is True
    accepted = [match["is_accepted"] for match in found["matches"]]
    assert accepted == [match["distance"] <= found["max_distance"] for match in found["matches"]]
    assert "too far" in distcam("query", copy, file, "-k", 24, "--reject")
    assert "no match: the nearest image is" in distcam("query", copy, file, "--max-distance", "-1")
    assert "give one" in fails(monkeypatch, capsys, "query", copy, file, "--reject", "--max-distance", "1")
    distcam("index", "remove", copy, "--where", f"label={sorted(folder.name for folder in photos.iterdir())[-1]}")
    changed = CliRunner().invoke(app, ["query", str(copy), file, "--reject"])
    assert "the gallery has changed since its threshold was chosen" in " ".join(changed.stderr.split())
