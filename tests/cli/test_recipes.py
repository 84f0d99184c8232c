"""Recipes come with the package: by name, from any folder, and as templates for images of one's own."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from commands import distcam, fails
from typer.testing import CliRunner

from distcam.cli.app import app
from distcam.cli.train import FOLDER, shipped
from distcam.fewshot.training import FewShotRecipe
from distcam.reid.training import ReidRecipe
from distcam.segmentation.pipeline_recipe import PipelineRecipe
from distcam.training.recipes.recipe import RecipeFile

COMMANDS = ["train", "fewshot train", "reid train", "segment train"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_recipe_is_listed_by_the_command_that_runs_it(command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = [line.split()[0] for line in distcam(*command.split(), "--list").split("\n\n")[0].splitlines()]
    assert listed == [name for name, recipe in shipped().items() if recipe.command == command]
    assert listed


def test_no_recipe_is_left_out() -> None:
    assert {recipe.command for recipe in shipped().values()} == set(COMMANDS)
    assert sorted(shipped()) == sorted(file.stem for file in FOLDER.glob("*.toml"))


def test_a_recipe_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    by_name = tomllib.loads(distcam("train", "bias", "--variant", "plain", "--dry-run"))
    assert by_name["data"]["scenes"]
    done = CliRunner().invoke(app, ["train", "recipes/bias.toml", "--variant", "plain", "--dry-run"])
    assert tomllib.loads(done.stdout) == by_name
    assert "the recipe of that name that comes with distcam is taken" in " ".join(done.stderr.split())
    assert "did you mean bias?" in fails(monkeypatch, capsys, "train", "biass")
    assert "--template starts one" in fails(monkeypatch, capsys, "train", "my.toml")
    assert "is a recipe for `distcam fewshot train`" in fails(monkeypatch, capsys, "train", "omniglot_short")


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = '[data]\nimages = "photos"\nsize = 32\n[[loss]]\nkind = "cross_entropy"\n'
    Path("bias").write_text(text)
    assert tomllib.loads(distcam("train", "bias", "--dry-run"))["data"]["size"] == 32


@pytest.mark.parametrize(
    ("command", "read"),
    [
        ("train", lambda file: RecipeFile.read(file).recipe()),
        ("fewshot train", FewShotRecipe.read),
        ("reid train", ReidRecipe.read),
        ("segment train", PipelineRecipe.read),
    ],
)
def test_a_template_is_a_recipe(command, read, tmp_path) -> None:
    text = distcam(*command.split(), "--template")
    assert f"distcam {command} my.toml" in text
    (tmp_path / "my.toml").write_text(text)
    assert read(tmp_path / "my.toml")


def test_recipes_and_what_they_read_are_package_data() -> None:
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["distcam"]
    packed = {file for pattern in patterns for file in root.glob(pattern)}
    assert {file for file in (root / "recipes").rglob("*") if file.is_file()} <= packed
    assert {file.name for file in FOLDER.rglob("*") if file.is_file()} >= {
        file.name for file in packed if file.suffix == ".toml"
    }
