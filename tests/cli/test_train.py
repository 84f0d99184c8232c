"""`distcam train`, from a temporary folder: what is printed, what is written, and how errors end."""

from __future__ import annotations

import json
import sys
import tomllib

import pytest
from typer.testing import CliRunner

from distcam.cli import main
from distcam.cli.app import app
from distcam.training.recipes import runs
from distcam.training.recipes.recipe import Recipe

TEXT = """
[data]
size = 32
scenes = { classes = 2, size = 32, splits = { train = 6, test = 3 } }
[encoder]
options = { width = 4 }
[[loss]]
kind = "cross_entropy"
[run]
epochs = 1
[variants.plain]
[variants.proxies]
loss = [{ kind = "proxy_anchor" }]
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TEXT)
    return tmp_path / "tiny.toml"


def distcam(*arguments, status=0):
    result = CliRunner().invoke(app, ["train", *(str(argument) for argument in arguments)])
    if result.exit_code != status and result.exception is not None and status == 0:
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def fails(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["distcam", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_help_has_an_example() -> None:
    assert "distcam train bias --variant all" in " ".join(distcam("--help").stdout.split())


def test_one_run_ends_in_a_table_and_a_folder(recipe) -> None:
    text = distcam(recipe).stdout
    assert "tiny: seed 0" in text
    assert "test.accuracy" in text
    assert "runs/tiny" in text
    assert (recipe.parent / "runs" / "tiny" / "seed-0" / "encoder.safetensors").is_file()


def test_every_variant_with_every_seed_as_json(recipe, tmp_path) -> None:
    out = tmp_path / "out"
    printed = distcam(
        recipe, "--out", out, "--variant", "all", "--seeds", "0,2", "--set", "run.epochs=2", "--json"
    ).stdout
    found = json.loads(printed)
    assert found["seeds"] == [0, 2]
    assert list(found["values"]) == ["plain", "proxies"]
    assert len(found["values"]["proxies"]["test.accuracy"]) == 2
    assert json.loads((out / "plain" / "seed-2" / "recipe.json").read_text())["run"]["epochs"] == 2


def test_a_dry_run_prints_the_resolved_recipe_and_writes_nothing(recipe) -> None:
    changes = ["--set", "run.epochs=7", "--device", "cpu"]
    printed = distcam(recipe, "--dry-run", *changes).stdout
    found = tomllib.loads(printed)
    assert (found["run"]["epochs"], found["run"]["device"]) == (7, "cpu")
    assert found["data"]["scenes"]["splits"]["train"]["backgrounds"] == "any"
    assert not (recipe.parent / "runs").exists()
    assert list(json.loads(distcam(recipe, "--dry-run", "--variant", "all", "--json").stdout)) == ["plain", "proxies"]


def test_the_recipe_that_a_dry_run_prints_reads_back_the_same(recipe) -> None:
    again = recipe.with_name("again.toml")
    again.write_text(distcam(recipe, "--dry-run", "--variant", "proxies").stdout, encoding="utf-8")
    assert Recipe.read(again) == Recipe.read(recipe, variant="proxies")
    again.write_text(distcam(recipe, "--dry-run", "--variant", "all").stdout, encoding="utf-8")
    for variant in ("plain", "proxies"):
        assert Recipe.read(again, variant=variant) == Recipe.read(recipe, variant=variant)


def test_a_stopped_run_says_how_to_go_on_and_does(recipe, monkeypatch) -> None:
    real, calls = runs.fit, []

    def stopped(*arguments, **options):
        calls.append(real(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "fit", stopped)
    assert "the same command with --resume goes on" in " ".join(distcam(recipe, status=130).stderr.split())
    monkeypatch.setattr(runs, "fit", real)
    assert "test.accuracy" in distcam(recipe, "--resume").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "run.epoch=3"], "nearest is 'epochs'"),
        (["--variant", "plan"], "nearest is 'plain'"),
        (["--seeds", "a"], "--seeds as whole numbers such as 0,1,2; got 'a'"),
        (["--set", "loss.cross_entropy.label_smothing=0.1"], "label_smothing"),
        (["--set", "loss=[{kind='tripled'}]"], "'tripled', nearest is 'triplet'"),
        (
            ["--set", "sampler={kind='pk', per_class=20, batch_size=40}", "--set", "data.scenes.splits.train=1"],
            "one of",
        ),
    ],
)
def test_errors_are_one_line(recipe, monkeypatch, capsys, arguments, message) -> None:
    error = fails(monkeypatch, capsys, recipe, *arguments)
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_recipe_without_variants_has_no_all(recipe, monkeypatch, capsys) -> None:
    recipe.write_text(TEXT.partition("[variants")[0])
    assert "leave --variant out" in fails(monkeypatch, capsys, recipe, "--variant", "all")
