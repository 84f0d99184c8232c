"""Training on walkers: what is learned from, what is measured, and what a recipe may say."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from distcam.cli import main
from distcam.cli.app import app
from distcam.encoders import Encoder, Inference
from distcam.errors import InputError
from distcam.reid import WalkerSet, assess, encode_data, pair_energy, read_data, write_walkers
from distcam.reid.training import ReidRecipe, train, training_set
from distcam.synthetic.bodies import PARTS
from distcam.training.recipes.runs import RunResult

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = """
name = "tiny"
[data]
images = "walkers"
size = [48, 24]
[walkers]
identities = 8
cameras = 2
images_per_camera = 2
[encoder]
architecture = "conv4"
options = { width = 8, last_pool = false }
head = { type = "bnneck" }
[[loss]]
kind = "cross_entropy"
bias = false
label_smoothing = 0.1
[[loss]]
kind = "batch_hard_triplet"
on = "pooled"
[[loss]]
kind = "center"
weight = 5e-4
[sampler]
kind = "pk_full"
batch_size = 8
per_class = 2
[run]
epochs = 1
[test]
rerank = [4, 2, 0.3]
before_neck = true
[variants.strong]
[variants.no_neck.encoder.head]
type = "identity"
[variants.cam_loss.loss.cam_loss]
kind = "cam_loss"
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def walkers(tmp_path_factory: pytest.TempPathFactory) -> WalkerSet:
    return write_walkers(tmp_path_factory.mktemp("set") / "walkers", identities=12, cameras=2, images_per_camera=2)


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """A folder with a run and the set that was drawn for it, and what it found."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(ReidRecipe.read(recipe, changes=["run.device=cpu"]), folder=folder / "run", cache=folder)


def test_a_run_measures_what_an_evaluation_of_its_encoder_finds(trained: tuple[Path, RunResult]) -> None:
    folder, result = trained
    data = WalkerSet.read(next(folder.glob("walkers-*"))).data
    encoder = Encoder.load(folder / "run" / "encoder.safetensors")
    features = encode_data([*data.queries, *data.gallery], data, encoder, device="cpu")
    found = assess(data, features).evaluation
    for name, value in (("rank-1", found.rank(1)), ("mAP", found.map_step), ("mINP", found.minp)):
        assert result.metrics[name] == pytest.approx(value, abs=1e-9)
        assert {f"before neck {name}", f"re-ranked {name}"} <= result.metrics.keys()
    assert json.loads((folder / "run" / "result.json").read_text())["metrics"] == dict(result.metrics)


def test_the_same_seed_gives_the_same_scores_and_another_seed_others(
    recipe: Path, trained: tuple[Path, RunResult]
) -> None:
    folder, first = trained
    read = ReidRecipe.read(recipe, changes=["run.device=cpu"])
    again, other = (train(read, cache=folder, seed=seed).metrics for seed in (read.seed, read.seed + 1))
    assert first.metrics == again
    assert first.metrics != other


def test_training_identities_are_the_classes_and_no_tested_one_is_among_them(walkers: WalkerSet) -> None:
    transform = Encoder.load("conv4", weights="random").transform.adapted(size=(48, 24), fit="squash")
    found = training_set(walkers.data, transform)
    assert set(found.class_names) == {str(image.identity) for image in walkers.data.of("train")}
    assert not set(found.class_names) & {str(image.identity) for image in walkers.data.queries}
    assert len(found) == len(walkers.data.of("train"))


def test_an_identity_with_a_single_image_makes_no_pair_and_is_left_out(walkers: WalkerSet, tmp_path: Path) -> None:
    files = sorted((walkers.folder / "bounding_box_train").iterdir())
    alone = [file for file in files if file.name[:4] != files[0].name[:4]] + files[:1]
    rows = [f"{file},{file.name[:4]},{file.name[6]},train" for file in alone]
    (tmp_path / "images.csv").write_text("\n".join(["path,identity,camera,role", *rows]))
    data = read_data(tmp_path)
    transform = Encoder.load("conv4", weights="random").transform.adapted(size=(48, 24), fit="squash")
    assert len(training_set(data, transform)) == len(alone)
    assert len(training_set(data, transform, least=2)) == len(alone) - 1
    with pytest.raises(InputError, match="no training images of identities with 99 or more"):
        training_set(data, transform, least=99)


def test_the_energy_on_all_parts_and_the_background_adds_up_to_one(walkers: WalkerSet) -> None:
    encoder = Encoder.load("conv4", weights="random", options={"width": 8})
    encoder.transform = encoder.transform.adapted(size=(64, 32), fit="squash")
    data = walkers.data
    images = (*data.queries, *data.gallery)
    encoding = Inference(encoder, device="cpu").encode_images([data.file(image) for image in images])
    paths = [image.path for image in images]

    def energy(parts: dict[str, Sequence[str]]) -> dict[str, float]:
        return pair_energy(encoder, walkers, encoding, paths, parts=parts)

    everything = energy({"everything": PARTS, "clothes": ["top", "bottom"], "the rest": set(PARTS) - {"top", "bottom"}})
    for name in ("shares", "dist_cam", "caam", "chance"):
        assert everything[f"energy on everything: {name}"] == pytest.approx(1, abs=1e-5)
        parts = everything[f"energy on clothes: {name}"] + everything[f"energy on the rest: {name}"]
        assert parts == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="no part 'hat'"):
        energy({"hats": ["hat"]})


def test_recipes_of_the_repository_are_resolved_with_every_variant() -> None:
    from distcam.training.recipes.recipe import RecipeFile

    files = sorted(RECIPES.glob("reid_*.toml"))
    assert len(files) >= 2
    for file in files:
        for variant in (None, *RecipeFile.read(file).variants):
            ReidRecipe.read(file, variant=variant)


def test_the_strong_baseline_runs_on_any_folder_of_a_known_format(walkers: WalkerSet) -> None:
    changes = [f'data.images="{walkers.folder}"', "data.size=[64, 32]", "encoder.weights=random"]
    changes += ["sampler.batch_size=8", "run.epochs=1", "schedule.milestones=[1]", "schedule.warm_up=0"]
    recipe = ReidRecipe.read(RECIPES / "reid_strong_baseline.toml", variant="resnet18", changes=changes)
    result = train(recipe)
    assert result.encoder(torch.zeros(1, 3, 64, 32)).feature_map.shape == (1, 512, 4, 2)  # stride 16, not 32
    assert {"rank-1", "mAP", "mINP", "re-ranked mAP"} <= result.metrics.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("test.reranks=[1, 2, 0.3]", "rerank"),
        ("test.rerank=[20, 6]", "k1, k2 and a share"),
        ("walkers.identity=4", "identities"),
        ("walkers.identities=2", "4 to 9999 identities"),
        ("test.metric=cos", "cosine"),
    ],
)
def test_what_a_recipe_must_not_say_is_named(recipe: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(ReidRecipe.read(recipe, changes=[change]), cache=tmp_path)


def test_missing_photographs_and_missing_training_images_are_named(
    recipe: Path, tmp_path: Path, walkers: WalkerSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = RECIPE.replace('images = "walkers"', 'photographs = "animals"').replace("[walkers]", "[unused]")
    file = tmp_path / "animals.toml"
    file.write_text(plain[: plain.index("[unused]")] + plain[plain.index("[encoder]") :])
    monkeypatch.delenv("DISTCAM_DATA", raising=False)
    with pytest.raises(InputError, match="environment variable DISTCAM_DATA"):
        train(ReidRecipe.read(file))
    monkeypatch.setenv("DISTCAM_DATA", str(tmp_path))
    with pytest.raises(InputError, match="no such folder or table"):
        train(ReidRecipe.read(file))
    table = tmp_path / "animals"
    table.mkdir()
    query = walkers.data.queries[0]
    (table / "images.csv").write_text(f"path,identity,camera,role\n{walkers.data.file(query)},1,1,query\n")
    with pytest.raises(InputError, match="no training images"):
        train(ReidRecipe.read(file))


def test_the_command_trains_variants_and_prints_one_table(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    arguments = ["reid", "train", str(recipe), "--out", str(out), "--variant", "strong,no_neck", "--seeds", "0,1"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["values"]) == {"strong", "no_neck"}
    assert all(len(values) == 2 for own in found["values"].values() for values in own.values())
    assert found["values"]["no_neck"]["mAP"] == found["values"]["no_neck"]["before neck mAP"]
    assert len(list(out.glob("walkers-*"))) == 1
    again = CliRunner().invoke(app, [*arguments, "--resume"])
    assert again.exit_code == 0, again.output
    assert "mean ± standard deviation over 2 seeds" in again.stdout
    assert "energy on bag" in again.stdout
    monkeypatch.setattr(sys, "argv", ["distcam", "reid", "train", str(recipe), "--variant", "weak"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "weak" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_run_on_a_gpu(recipe: Path, tmp_path: Path) -> None:
    result = train(ReidRecipe.read(recipe, changes=["run.device=cuda"]), cache=tmp_path)
    assert next(result.encoder.parameters()).device == torch.device("cuda", 0)
    assert 0 <= result.metrics["rank-1"] <= 1
