"""`distcam fewshot …` from a temporary folder: what is printed and written, and how errors end."""

from __future__ import annotations

import json
import shutil
import sys

import h5py
import pytest
from typer.testing import CliRunner

from distcam import DistcamWarning
from distcam.cli import main
from distcam.cli.app import app
from distcam.fewshot import EpisodeManifest, EpisodeResult
from distcam.fewshot.methods import METHODS
from distcam.fewshot.results import ResultFile

ENCODER = ["--encoder", "conv4", "--weights", "random", "--image-size", "64", "--fit", "squash"]
SMALL = ["--n-way", "3", "--n-query", "4", "--episodes", "40"]
ALL = (
    "proto,proto-cosine,proto-power,nn,nn-cosine,simpleshot-un,simpleshot-l2n,simpleshot-cl2n,"
    "baseline,baseline++,bdcspn"
)


def fewshot(*arguments) -> str:
    result = CliRunner().invoke(app, ["fewshot", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(monkeypatch, capsys, *arguments) -> str:
    """The one line of error."""
    monkeypatch.setattr(sys, "argv", ["distcam", "fewshot", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def work(photos, tmp_path_factory):
    """A folder with results of all methods; one class of four is base, which gives the mean."""
    folder = tmp_path_factory.mktemp("fewshot")
    names = sorted(each.name for each in photos.iterdir() if each.is_dir())
    lines = [f"{name},{'base' if number == 3 else 'novel'}" for number, name in enumerate(names)]
    (folder / "split.csv").write_text("\n".join(["class,part", *lines]))
    data = f"folder:{folder / 'split.csv'}@{photos}"
    text = fewshot("evaluate", "--data", data, *ENCODER, *SMALL, "--method", ALL, "--out", folder / "r.h5")
    (folder / "said.txt").write_text(text)
    (folder / "data.txt").write_text(data)
    return folder


def test_every_method_of_the_library_is_named_in_the_help() -> None:
    text = " ".join(fewshot("evaluate", "--help").replace("│", " ").split())
    assert all(name in text for name in METHODS)
    assert set(ALL.split(",")) == set(METHODS)
    for command in ("evaluate", "compare", "episodes", "report"):
        assert f"distcam fewshot {command}" in " ".join(fewshot(command, "--help").split())


def test_evaluate_prints_every_method_with_its_setting_and_three_intervals(work) -> None:
    lines = (work / "said.txt").read_text().splitlines()
    assert lines[0].startswith("3-way 1-shot, 4 queries per class, 40 episodes of 3 classes, manifest ")
    assert lines[1].split() == ["method", "setting", "accuracy", "±", "usual", "bootstrap", "class", "jackknife"]
    settings = {line.split()[0]: line.split()[1] for line in lines[2:13]}
    assert settings == {name: "transductive" if name == "bdcspn" else "inductive" for name in ALL.split(",")}
    assert "usual: Where would the mean be with other episodes" in lines[13]
    assert "class jackknife: does not exist" in "".join(lines)  # three classes, three ways
    file = ResultFile.load(work / "r.h5")
    assert file.names == tuple(ALL.split(","))
    assert file.source["data"] == (work / "data.txt").read_text()
    assert sorted(each.name for each in (work / "r.features").iterdir()) == ["base.h5", "novel.h5"]


def test_a_stored_manifest_is_replayed_without_encoding_again(work, monkeypatch) -> None:
    from distcam.encoders import Encoder

    data = (work / "data.txt").read_text()
    shown = json.loads(fewshot("episodes", work / "m.h5", "--data", data, *SMALL, "--seed", 5, "--json"))
    assert shown["content_hash"] == EpisodeManifest.load(work / "m.h5").content_hash
    assert "n_episodes    40" in fewshot("episodes", work / "m.h5")
    monkeypatch.setattr(Encoder, "forward", None)
    said = json.loads(fewshot(
        "evaluate", "--data", data, *ENCODER, "--episodes-file", work / "m.h5", "--features", work / "r.features",
        "--out", work / "replay.h5", "--json",
    ))  # fmt: skip
    assert said["results"][0]["episodes"]["content_hash"] == shown["content_hash"]
    assert EpisodeResult.load(work / "replay.h5").classifier["name"] == "proto"


def test_a_file_of_encodings_is_data(work) -> None:
    out = work / "again.h5"
    fewshot("evaluate", "--data", work / "r.features" / "novel.h5", *SMALL, "--out", out)
    again, first = EpisodeResult.load(out), ResultFile.load(work / "r.h5")["proto"]
    assert again.episodes.content_hash == first.episodes.content_hash
    assert again.mean_accuracy == first.mean_accuracy
    assert "nothing" not in fewshot("report", out, "--html", work / "again.html")


def test_a_mean_of_the_tested_images_makes_a_method_transductive(work) -> None:
    features, out = work / "r.features" / "novel.h5", work / "test-mean.h5"
    fewshot("evaluate", "--data", features, "--base", features, *SMALL, "--method", "simpleshot-cl2n", "--out", out)
    assert EpisodeResult.load(out).is_transductive
    assert not ResultFile.load(work / "r.h5")["simpleshot-cl2n"].is_transductive


def test_compare_is_paired_and_says_how_many_episodes_it_takes(work) -> None:
    pair = [f"{work / 'r.h5'}:nn-cosine", f"{work / 'r.h5'}:bdcspn"]
    text = fewshot("compare", *pair, "--difference", 0.5)
    assert "nn-cosine (inductive)" in text
    assert "bdcspn (transductive)" in text
    assert "one of them is transductive" in text
    assert "a difference of 0.50 points is found in 80 % of cases with" in text
    facts = json.loads(fewshot("compare", *pair, "--json"))
    assert set(facts) == {"first", "second", "difference", "intervals", "sought_difference", "required_episodes"}
    same = fewshot("compare", f"{work / 'r.h5'}:proto", f"{work / 'r.h5'}:nn")  # one shot: the same method
    assert "no difference anywhere" in same


def test_report_shows_pictures_and_maps(work) -> None:
    fewshot("report", work / "r.h5", "--html", work / "r.html", "--failures", 1)
    text = (work / "r.html").read_text()
    assert "data:image/jpeg" in text
    assert '"decision":[' in text
    assert '"standard_deviation"' in text
    fewshot("report", work / "r.h5", "--html", work / "plain.html", "--no-pictures")
    assert "data:image/jpeg" not in (work / "plain.html").read_text()


def test_report_goes_on_without_its_images_and_says_so(work, tmp_path) -> None:
    fewshot("report", work / "r.h5", "--html", tmp_path / "r.html", "--data", tmp_path)
    assert "Without images and maps" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--n-way", 4], "4-way episodes need 4 classes, the labels hold 3"),
        (["--n-query", 30], "every class needs 31 images"),
        (["--method", "prot"], "no few-shot method 'prot'; did you mean proto?"),
        (["--method", ","], "names no method"),
        (["--part", "val"], "has no part 'val'; it has base, novel"),
        (["--data", "cub@."], "a bare CUB"),
    ],
)
def test_options_that_cannot_be_met_end_in_one_line(work, monkeypatch, capsys, changes, message) -> None:
    options = {
        "--data": (work / "data.txt").read_text(),
        "--n-way": 3,
        "--n-query": 4,
        "--features": work / "r.features",
    }
    options |= dict([changes]) | {"--out": work / "bad.h5"}
    flat = [each for pair in options.items() for each in pair]
    assert message in fails(monkeypatch, capsys, "evaluate", *ENCODER, *flat)
    assert not (work / "bad.h5").exists()


def test_existing_results_and_different_manifests_are_refused(work, monkeypatch, capsys) -> None:
    data = (work / "data.txt").read_text()
    assert "is there already" in fails(monkeypatch, capsys, "evaluate", "--data", data, "--out", work / "r.h5")
    assert "nowhere.h5" in fails(
        monkeypatch,
        capsys,
        "evaluate",
        *ENCODER,
        "--data",
        data,
        "--out",
        work / "bad.h5",
        "--episodes-file",
        "nowhere.h5",
    )
    assert "say what makes their features" in fails(
        monkeypatch, capsys, "evaluate", "--data", data, *SMALL, "--out", work / "bad.h5")  # fmt: skip
    features = work / "r.features" / "novel.h5"
    fewshot("evaluate", "--data", features, *SMALL, "--seed", 9, "--out", work / "seed9.h5")
    assert "are of different episodes" in fails(
        monkeypatch, capsys, "compare", work / "seed9.h5", f"{work / 'r.h5'}:proto"
    )
    assert "say which method is meant" in fails(monkeypatch, capsys, "compare", work / "seed9.h5", work / "r.h5")
    assert "holds features already" in fails(
        monkeypatch, capsys, "evaluate", "--data", features, *ENCODER, *SMALL, "--out", work / "bad.h5")  # fmt: skip
    assert "has no base part; give --base DATA" in fails(
        monkeypatch, capsys, "evaluate", "--data", features, *SMALL, "--method", "simpleshot-cl2n",
        "--out", work / "bad.h5",
    )  # fmt: skip


def test_a_manifest_of_other_images_is_refused(work, monkeypatch, capsys) -> None:
    other = work / "other.h5"
    with h5py.File(other, "w") as file:
        file.attrs["x"] = 1
    assert "is not an episode manifest" in fails(monkeypatch, capsys, "episodes", other)


def test_one_bad_image_is_left_out_and_stops_when_strict(photos, tmp_path, monkeypatch, capsys) -> None:
    own = shutil.copytree(photos, tmp_path / "photos")
    bad = sorted(own.rglob("*.jpg"))[1]
    bad.write_bytes(b"no image")
    given = ["evaluate", "--data", own, *ENCODER, *SMALL, "--out", tmp_path / "r.h5"]
    with pytest.warns(DistcamWarning, match=f"1 of 24 images cannot be used and are left out, the first: .*{bad.name}"):
        fewshot(*given)
    assert len(ResultFile.load(tmp_path / "r.h5").episodes.names) == 23
    assert bad.name in fails(monkeypatch, capsys, *given, "--overwrite", "--strict")
