"""`distcam reid …` from a temporary folder: what is printed, what is written, how errors end."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from distcam import DistcamWarning
from distcam.cli import main
from distcam.cli.app import app

ENCODER = ["--encoder", "conv4", "--weights", "random", "--image-size", "64x32"]


def distcam(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["reid", *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["distcam", "reid", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def walkers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reid") / "walkers"
    text = distcam("walkers", out, "--identities", 12, "--cameras", 3, "--images-per-camera", 2, "--no-masks")
    assert "query" in text
    return out


@pytest.fixture(scope="module")
def features(walkers: Path) -> Path:
    out = walkers.parent / "features.h5"
    distcam("evaluate", walkers, *ENCODER, "--out", out)
    return out


@pytest.mark.parametrize("command", ["audit", "walkers", "evaluate", "explain", "train"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"distcam reid {command}" in " ".join(distcam(command, "--help").split())


def test_an_audit_of_walkers_finds_no_problem(walkers: Path) -> None:
    assert "no problem found" in distcam("audit", walkers)
    found = json.loads(distcam("audit", walkers, "--json", "--near", 1))
    assert (found["format"], found["counts"]["query identities"], found["problems"]) == ("market", 6, [])
    assert "no file was opened" in distcam("audit", walkers, "--quick")


def test_evaluate_prints_scores_with_the_protocol(walkers: Path) -> None:
    text = distcam("evaluate", walkers, *ENCODER, "--single-gallery-shot")
    for part in (
        "mAP (step)",
        "mAP (trapezoid)",
        "mINP",
        "TAR@FAR",
        "DIR@FAR",
        "single gallery shot",
        "same camera: gallery images of the query's identity and camera are ignored",
        "distractors: {0} count as wrong",
        "query camera by gallery camera",
        "input: 64x32, pad",
        "refinement: none",
    ):
        assert part in text


def test_saved_features_give_the_same_scores(walkers: Path, features: Path) -> None:
    fresh = json.loads(distcam("evaluate", walkers, *ENCODER, "--json"))
    saved = json.loads(distcam("evaluate", walkers, "--features", features, "--json"))
    for name in ("map_step", "map_trapezoid", "minp", "cmc", "failures"):
        assert fresh[name] == saved[name]


def test_features_of_distcam_encode_are_joined_by_file(walkers: Path, tmp_path: Path, features: Path) -> None:
    out = tmp_path / "all.h5"
    arguments = [
        "encode",
        str(walkers),
        "--out",
        str(out),
        "--encoder",
        "conv4",
        "--weights",
        "random",
        "--image-size",
        "64",
        "--labels",
        "none",
    ]
    assert CliRunner().invoke(app, [*arguments, "--fit", "squash"]).exit_code == 0
    found = json.loads(distcam("evaluate", walkers, "--features", out, "--json"))
    assert (
        found["counts"]["queries"]
        == json.loads(distcam("evaluate", walkers, "--features", features, "--json"))["counts"]["queries"]
    )


def test_refinements_and_protocol_reach_the_result(walkers: Path, features: Path, tmp_path: Path) -> None:
    out, html = tmp_path / "r.json", tmp_path / "r.html"
    text = distcam(
        "evaluate", walkers, "--features", features, "--rerank", "6,3,0.3", "--aqe", "2,1", "--camera-norm", "standard",
        "--multi-query", "--protocol", "same_camera=drop_all,no_match=zero", "--metric", "l2",
        "--out", out, "--html", html,
    )  # fmt: skip
    for part in (
        "re-ranking: k1 6, k2 3, original share 0.3",
        "query expansion: 2 neighbours, alpha 1",
        "camera normalisation: standard",
        "multi-query",
        "every gallery image from the query's camera is ignored",
        "before re-ranking",
    ):
        assert part in text
    written = json.loads(out.read_text())
    assert written["protocol"]["no_match"] == "zero"
    assert len(written["query_paths"]) == len(written["per_query"]["ap_step"])
    assert "Content-Security-Policy" in html.read_text()


def test_a_table_of_ones_own_is_evaluated(walkers: Path, tmp_path: Path) -> None:
    table = tmp_path / "images.csv"
    files = sorted((walkers / "bounding_box_train").iterdir())
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "identity", "camera"])
        writer.writerows([file, file.name[:4], file.name[5:7]] for file in files)
    found = json.loads(distcam("evaluate", table, *ENCODER, "--json"))
    assert found["counts"]["queries"] == len(files)
    assert found["data"]["format"] == "csv"
    assert np.isfinite(found["map_step"])


def test_errors_are_one_line(walkers: Path, features: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def says(*arguments: object) -> str:
        text = fails(monkeypatch, capsys, *arguments)
        assert len(text.strip().splitlines()) == 1
        return text

    given = ["evaluate", walkers, "--features", features]
    assert "no such folder or table" in says("audit", tmp_path / "none")
    assert "is taken" in says("walkers", walkers)
    assert "needs --weights" in says("evaluate", walkers, "--encoder", "resnet18")
    assert "K1,K2,LAMBDA" in says(*given, "--rerank", "20")
    assert "nearest is same_camera" in says(*given, "--protocol", "same_cameras=keep")
    assert "expected a whole number" in says(*given, "--aqe", "x")
    assert "writes FILE.json or FILE.h5" in says(*given, "--out", "r.txt")
    assert "HEIGHTxWIDTH" in says("evaluate", walkers, *ENCODER[:4], "--image-size", "1x2x3")
    assert "--flip is not used with --features" in says(*given, "--flip")
    assert "NAME=VALUE" in says("audit", walkers, "--option", "boxes")
    assert "no option boxes" in says("audit", walkers, "--option", "boxes=labeled")


@pytest.fixture(scope="module")
def trio(walkers: Path) -> list[str]:
    """Two pictures of one walker, and one of another."""
    files = sorted((walkers / "bounding_box_train").iterdir())
    first = files[0].name[:4]
    return [str(files[0]), str(files[1]), str(next(file for file in files if file.name[:4] != first))]


def test_explain_divides_the_similarity_among_the_parts(trio: list[str], tmp_path: Path) -> None:
    probe, match, other = trio
    panel, arrays = tmp_path / "why.png", tmp_path / "why.npz"
    text = distcam("explain", probe, match, "--different", other, *ENCODER, "--out", panel)
    assert text.startswith("same\n")
    assert f"different: {Path(other).name}" in text
    assert "the parts' sums differ from it by" in text
    with Image.open(panel) as picture:
        width, height = picture.size
    assert width > height > 2 * 196  # two pairs below one another, six tiles each
    found = json.loads(distcam("explain", probe, match, *ENCODER, "--json", "--parts", "upper:0-0.5", "--out", arrays))
    (pair,) = found
    assert [part["name"] for part in pair["parts"]] == ["upper", "elsewhere"]
    for side in ("on_probe", "on_match"):
        assert sum(part[side] for part in pair["parts"]) == pytest.approx(pair["similarity"], abs=1e-6)
    with np.load(arrays) as saved:
        assert saved["0/probe_shares"].sum() == pytest.approx(pair["similarity"], abs=1e-5)


def test_only_people_have_heads_and_one_bad_picture_is_left_out(
    trio: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    assert distcam("explain", *trio[:2], *ENCODER).splitlines()[2].startswith("head ")
    animals = [str(shutil.copy(file, tmp_path / f"nyala_{n}.jpg")) for n, file in enumerate(trio)]
    assert distcam("explain", *animals[:2], *ENCODER).splitlines()[2].startswith("top ")
    assert distcam("explain", *animals[:2], *ENCODER, "--parts", "body").splitlines()[2].startswith("head ")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    given = ["explain", *animals[:2], "--different", animals[2], "--different", str(tmp_path / "bad.jpg"), *ENCODER]
    with pytest.warns(DistcamWarning, match=r"bad.jpg: .*; it is left out"):
        assert [one["title"] for one in json.loads(distcam(*given, "--json"))] == ["same", "different: nyala_2.jpg"]
    assert "bad.jpg" in fails(monkeypatch, capsys, *given, "--strict")


def test_what_cannot_be_explained_is_one_line(trio: list[str], monkeypatch, capsys) -> None:
    given = ["explain", *trio[:2], *ENCODER]
    assert "writes OUT.png" in fails(monkeypatch, capsys, *given, "--out", "why.gif")
    assert "`name:top-bottom,…`" in fails(monkeypatch, capsys, *given, "--parts", "head")
    assert "overlap" in fails(monkeypatch, capsys, *given, "--parts", "a:0-0.6,b:0.5-1")
