"""Few-shot training on drawn scenes: every recipe of the field, alone and with CAM-loss, in Python and in the shell."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from distcam.cli import main
from distcam.cli.app import app
from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.fewshot.training import FewShotRecipe, train
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes
from distcam.training.recipes.recipe import RecipeFile

SETTING = """
[data]
images = "folder:split.csv@scenes/all"
size = 32
[encoder]
options = { width = 8 }
[sampler]
batch_size = 12
[run]
epochs = 2
[validation]
n_way = 2
n_query = 3
episodes = 10
[[test]]
n_way = 3
n_query = 3
episodes = 6
methods = ["proto", "baseline++"]
"""
EPISODES = """
[episodes]
n_way = 3
n_query = 3
per_epoch = 4
"""
LOSSES = {
    "prototypical": '[[loss]]\nkind = "prototypical"\n' + EPISODES,
    "baseline": '[[loss]]\nkind = "cross_entropy"\n',
    "baseline++": '[[loss]]\nkind = "cross_entropy"\nhead = "cosine"\n',
}
CAM_LOSS = '[[loss]]\nkind = "cam_loss"\nstart = 0\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Ten classes of six scenes, divided by a table that lies beside the recipes."""
    folder = tmp_path_factory.mktemp("training")
    write_scenes(folder / "scenes", classes=blueprints(10), splits={"all": 6}, size=32, two_object_share=0.0)
    names = sorted(each.name for each in (folder / "scenes" / "all").iterdir())
    parts = ["base"] * 5 + ["val"] * 2 + ["novel"] * 3
    rows = [f"{name},{part}" for name, part in zip(names, parts, strict=True)]
    (folder / "split.csv").write_text("\n".join(["class,part", *rows]))
    return folder


def recipe_of(place, text, *changes, name="tiny"):
    (place / f"{name}.toml").write_text(SETTING + text)
    return FewShotRecipe.read(place / f"{name}.toml", changes=changes)


@pytest.mark.parametrize("cam_loss", [False, True], ids=["alone", "with CAM-loss"])
@pytest.mark.parametrize("method", LOSSES)
def test_every_way_of_training_learns_with_and_without_cam_loss(place, method, cam_loss) -> None:
    recipe = recipe_of(place, LOSSES[method].replace("[episodes]", f"{CAM_LOSS * cam_loss}[episodes]"))
    if cam_loss and method != "prototypical":
        recipe = recipe_of(place, LOSSES[method] + CAM_LOSS)
    rows = []
    result = train(recipe, report=rows.append)
    expected = {"novel.3-way 1-shot proto", "novel.3-way 1-shot baseline++"}
    assert set(result.metrics) == expected
    assert all(1 / 3 < accuracy <= 1 for accuracy in result.metrics.values())
    assert ("loss/cam_loss" in rows[-1]) == cam_loss
    assert rows[-1]["loss"] < rows[0]["loss"]
    before = recipe.encoder.build(recipe.data, folder=place, seed=0)
    assert result.encoder.fingerprint != before.fingerprint


def test_a_recipe_and_a_seed_give_one_encoder_and_leave_the_global_generator_alone(place) -> None:
    recipe = recipe_of(place, LOSSES["prototypical"], "run.epochs=1")
    before = torch.get_rng_state()
    first, again, other = (train(recipe, seed=seed).encoder.fingerprint for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_the_weights_of_the_best_validation_accuracy_are_kept(place) -> None:
    rows = []
    recipe = recipe_of(place, LOSSES["prototypical"], "run.monitor=val.accuracy", "run.epochs=3")
    result = train(recipe, report=rows.append)
    accuracy = [row["val.accuracy"] for row in rows]
    assert len(accuracy) == 3
    assert result.fit.best_epoch == 1 + accuracy.index(max(accuracy))


def test_meta_baseline_goes_on_from_a_trained_encoder_with_a_cosine_whose_scale_is_learnt(place, tmp_path) -> None:
    train(recipe_of(place, LOSSES["baseline"], "run.epochs=1"), folder=tmp_path / "base")
    second = f"""
[[loss]]
kind = "prototypical"
metric = "cosine"
scale = 10.0
{EPISODES}"""
    checkpoint = tmp_path / "base" / "encoder.safetensors"
    recipe = recipe_of(place, second, f"encoder.architecture={checkpoint}", "run.epochs=1", name="meta")
    start = recipe.encoder.build(recipe.data, folder=place, seed=0)
    assert start.fingerprint == Encoder.load(checkpoint).fingerprint
    result = train(recipe, folder=tmp_path / "meta")
    assert result.encoder.fingerprint != start.fingerprint
    assert Encoder.load(tmp_path / "meta" / "encoder.safetensors").fingerprint == result.encoder.fingerprint


def test_a_stopped_run_goes_on_to_the_same_encoder(place, tmp_path) -> None:
    recipe = recipe_of(place, LOSSES["prototypical"] + "", "run.epochs=3")
    whole = train(recipe, folder=tmp_path / "whole")

    def stop(row) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, folder=tmp_path / "stopped", report=stop)
    rows = []
    resumed = train(recipe, folder=tmp_path / "stopped", resume=True, report=rows.append)
    assert resumed.encoder.fingerprint == whole.encoder.fingerprint
    assert resumed.metrics == whole.metrics
    assert rows[-1]["epoch"] == 3


def test_the_folder_keeps_the_episodes_and_a_run_goes_on_with_no_others(place, tmp_path) -> None:
    recipe = recipe_of(place, LOSSES["prototypical"], "run.epochs=1")
    train(recipe, folder=tmp_path)
    kept = json.loads((tmp_path / "recipe.json").read_text())
    assert kept["episodes"] == {"n_way": 3, "n_shot": 1, "n_query": 3, "per_epoch": 4}
    assert kept["test"][0]["methods"] == ["proto", "baseline++"]
    changed = recipe_of(place, LOSSES["prototypical"], "run.epochs=1", "episodes.n_way=4")
    with pytest.raises(InputError, match=r"the run began with \[episodes\] \{'n_way': 3.*leave --resume out"):
        train(changed, folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (LOSSES["baseline"], ["test.0.n_way=4"], "4-way episodes need 4 classes, the labels hold 3"),
        (LOSSES["baseline"], ['test.0.methods=["prot"]'], "no few-shot method 'prot'; did you mean proto?"),
        (LOSSES["baseline"], ['test.0.methods=["simpleshot-cl2n"]'], "needs the mean feature of the base classes"),
        (LOSSES["baseline"], ["test.0.ways=4"], "n_way"),
        (LOSSES["baseline"], ['test.0.methods=["nn", "nn"]'], "novel.3-way 1-shot nn is measured twice"),
        (LOSSES["baseline"], ["run.monitor=val.accuracy", 'validation.methods=["nn", "proto"]'], r"\[validation\] one"),
        (LOSSES["baseline"], ["test.0.part=all"], "has no part 'all'; it has base, val, novel"),
        ('[[loss]]\nkind = "prototypical"\n', [], r"the batch is no episode.*\[episodes\]"),
        (LOSSES["prototypical"], ["episodes.n_way=9"], "an episode of 9 ways needs as many classes, got 5"),
        (LOSSES["prototypical"], ["episodes.n_shots=1"], "n_shot"),
        (LOSSES["prototypical"], ["loss.prototypical.metric=l1"], "metric must be 'l2' or 'cosine', got 'l1'"),
        (LOSSES["baseline"], ["data.images=folder:absent.csv@scenes/all"], "absent.csv"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_before_training(place, text, changes, message) -> None:
    with pytest.raises(InputError, match=message):
        train(recipe_of(place, text, *changes, name="bad"))


def test_photographs_need_the_variable(place, monkeypatch) -> None:
    text = LOSSES["baseline"].replace("kind", "name = 'x'\nkind")
    (place / "photographs.toml").write_text(
        SETTING.replace('images = "folder:split.csv@scenes/all"', 'photographs = "folder:split.csv@all"') + text
    )
    recipe = FewShotRecipe.read(place / "photographs.toml")
    monkeypatch.delenv("DISTCAM_DATA", raising=False)
    with pytest.raises(InputError, match="environment variable DISTCAM_DATA"):
        recipe.open_data()
    monkeypatch.setenv("DISTCAM_DATA", str(place / "scenes"))
    assert recipe.open_data()["val"].describe()["n_classes"] == 2


@pytest.mark.parametrize("name", ["omniglot", "omniglot_short", "baseline_plus_plus"])
def test_the_recipes_of_the_repository_are_resolved_with_every_variant(name) -> None:
    file = Path(__file__).parents[2] / "recipes" / f"{name}.toml"
    for variant in RecipeFile.read(file).variants or (None,):
        recipe = FewShotRecipe.read(file, variant=variant)
        recipe.encoder.build(recipe.data, folder=file.parent, seed=0)
        assert recipe.test


@pytest.mark.parametrize(
    ("recipe", "known"),
    [
        ("baseline_plus_plus", {"base": 56, "val": 14, "novel": 31}),
        pytest.param("omniglot_short", {"base": 4112, "val": 688, "novel": 1692}, marks=pytest.mark.slow),
    ],
)
def test_the_recipes_find_their_data_and_their_split(real_data, recipe, known) -> None:
    data = FewShotRecipe.read(Path(__file__).parents[2] / "recipes" / f"{recipe}.toml").open_data()
    assert {part: len(split.class_names) for part, split in data.parts.items()} == known


# --- the command ------------------------------------------------------------------------------------------------------


def fewshot_train(*arguments) -> str:
    result = CliRunner().invoke(app, ["fewshot", "train", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_runs_variants_with_seeds_and_goes_on(place, tmp_path) -> None:
    variants = f"{LOSSES['baseline']}\n[variants.plain]\n[variants.cam.loss]\ncam_loss = {{ kind = 'cam_loss' }}\n"
    recipe_of(place, variants)
    options = [place / "tiny.toml", "--variant", "all", "--seeds", "0,1", "--set", "run.epochs=1"]
    found = json.loads(fewshot_train(*options, "--out", tmp_path / "runs", "--json"))
    assert list(found["values"]) == ["plain", "cam"]
    assert len(found["values"]["cam"]["novel.3-way 1-shot baseline++"]) == 2
    assert (tmp_path / "runs" / "cam" / "seed-1" / "encoder.safetensors").is_file()
    again = json.loads(fewshot_train(*options, "--out", tmp_path / "runs", "--resume", "--json"))
    assert again["values"] == found["values"]
    text = fewshot_train(*options, "--out", tmp_path / "runs", "--resume")
    assert "novel.3-way 1-shot proto" in text
    assert "distcam fewshot train" in " ".join(fewshot_train("--help").split())


def test_a_misspelt_key_ends_in_one_line(place, monkeypatch, capsys) -> None:
    recipe_of(place, LOSSES["baseline"])
    monkeypatch.setattr(
        sys, "argv", ["distcam", "fewshot", "train", str(place / "tiny.toml"), "--set", "episodes.nway=3"]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "n_way" in lines[0]
