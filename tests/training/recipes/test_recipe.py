"""Recipes: what a file may say, what it may not, and that a run does what it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.images import Transform
from distcam.segmentation.pipeline_recipe import PipelineData
from distcam.segmentation.pseudo_masks.make import CueSettings
from distcam.training.data.augment import AugmentSettings
from distcam.training.data.batches import RunData
from distcam.training.data.samplers import Sampler, SamplerSettings
from distcam.training.data.splits import DataSettings, load_splits
from distcam.training.data.training_set import TrainingSet
from distcam.training.losses.classifier import load_classifier
from distcam.training.losses.registry import TERMS
from distcam.training.recipes.recipe import EncoderSettings, Recipe, RecipeFile, parse_change
from distcam.training.recipes.runs import VariantComparison, run_recipe, run_variants
from distcam.training.recipes.settings import OptimiserSettings, ScheduleSettings
from distcam.training.recipes.tables import as_toml, merged, parse

TEXT = """
[data]
size = 32
[data.scenes]
classes = 3
novel_classes = 2
size = 40
splits = { train = { per_class = 8, backgrounds = "own" }, usual = { per_class = 3, backgrounds = "own" }, unusual = { per_class = 3, backgrounds = "other" }, novel = { per_class = 3, classes = "novel" } }
[data.regions]
kind = "mask"
share = 0.25
[encoder]
options = { width = 8, last_pool = false }
head = { type = "linear", out_dim = 6 }
[[loss]]
kind = "cross_entropy"
[sampler]
batch_size = 12
[run]
epochs = 2
monitor = "usual.accuracy"
[evaluation]
metrics = ["accuracy", "recall_at_1", "energy_cam"]
[variants.plain]
[variants.both]
loss = { proxy_anchor = { kind = "proxy_anchor", weight = 0.5 } }
[variants.other]
loss = [{ kind = "proxy_anchor" }]
optimiser = { learning_rate = 0.01 }
"""  # noqa: E501


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "bias.toml"
    path.write_text(TEXT)
    return RecipeFile.read(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_recipe_fills_in_its_defaults_and_survives_json(file) -> None:
    recipe = file.recipe()
    assert recipe.name == "bias"
    assert recipe.sampler.batch_size == 12
    assert recipe.augment.flip == 0.5
    assert recipe.run.optimiser.kind == "adamw"
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert list(again.to_dict())[-3:] == ["optimiser", "schedule", "run"]


def test_variants_change_what_they_name(file) -> None:
    assert file.variants == ("plain", "both", "other")
    assert file.recipe(variant="plain").loss == file.recipe().loss
    assert [dict(loss) for loss in file.recipe(variant="both").loss] == [
        {"kind": "cross_entropy"},
        {"kind": "proxy_anchor", "weight": 0.5, "name": "proxy_anchor"},
    ]
    other = file.recipe(variant="other")
    assert [dict(loss) for loss in other.loss] == [{"kind": "proxy_anchor"}]
    assert other.run.optimiser.learning_rate == 0.01
    assert other.variant == "other"


def test_changes_come_after_the_variant(file) -> None:
    changes = ["optimiser.learning_rate=0.5", "loss.0.margin=0.2", "encoder.weights=imagenet", "run.monitor='loss'"]
    recipe = file.recipe(variant="other", changes=changes)
    assert recipe.run.optimiser.learning_rate == 0.5
    assert recipe.loss[0]["margin"] == 0.2
    assert recipe.encoder.weights == "imagenet"
    assert recipe.run.monitor == "loss"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.epoch=3", r"unknown key in \[run\] 'epoch', nearest is 'epochs'"),
        ("rnu.epochs=3", "unknown table or key of the recipe 'rnu', nearest is 'run'"),
        ("data.scenes.clases=3", r"unknown key in \[data.scenes\] 'clases', nearest is 'classes'"),
        ("data.scenes.splits.usual.background=any", "nearest is 'backgrounds'"),
        ("data.scenes.splits.usual.backgrounds=mine", "expected one of 'any', 'own', 'other'; got 'mine'"),
        ("data.images=photos", "expected one of images, photographs, scenes; got images and scenes"),
        ("loss.crossentropy.weight=1", "unknown entry of .* 'crossentropy', nearest is 'cross_entropy'"),
        ("loss.0=3", r"loss.0: expected a table with what changes, got 3"),
        ("run.epochs=three", "run.epochs: expected a whole number, got 'three'"),
        ("run.epochs=true", "run.epochs: expected a whole number, got True"),
        ("run.epochs=0", "run.epochs: expected a whole number from 1 on, got 0"),
        ("run.optimiser.kind=sgd", r"unknown key in \[run\] 'optimiser'"),
        ("augment.crop=[0.5]", "augment.crop: expected 2 values, got 1"),
        ("augment.flip=2", "augment.flip: expected a number from 0 to 1, got 2.0"),
        ("optimiser.kind=sdg", "expected one of 'adamw', 'adam', 'sgd'; got 'sdg'"),
        *((f"{name}=3", f"{name}: expected a table, got 3") for name in ("sampler", "run", "optimiser", "data")),
        ("loss=[3]", r"loss\[0\]: expected a table, got 3"),
        ("name=1979-05-27", "a recipe holds numbers, strings, lists and tables"),
        ("evaluation.metrics=accuracy", "evaluation.metrics: expected a list, got 'accuracy'"),
        ("loss=[]", "needs a .* or more"),
        ("run.epochs", "expected a change as key=value"),
        ("data.scenes.splits.test={classes='base'}", r"\[data.scenes.splits.test\] lacks a key: .*per_class"),
        ("data.scenes.novel_classes=0", "'novel' shows novel classes; set novel_classes"),
    ],
)
def test_what_a_recipe_may_not_say(file, change, message) -> None:
    with pytest.raises(InputError, match=message):
        file.recipe(changes=[change])


def test_unknown_variants_and_broken_files_are_refused(file, tmp_path) -> None:
    with pytest.raises(InputError, match="unknown variant 'plan', nearest is 'plain'"):
        file.recipe(variant="plan")
    (tmp_path / "broken.toml").write_text("[data\n")
    with pytest.raises(InputError, match=r"broken.toml: expected a recipe in TOML; .*line 1"):
        RecipeFile.read(tmp_path / "broken.toml")
    for text, name in (("variants = 3", "variants"), ("[variants]\na = 3", "variants.a")):
        (tmp_path / "broken.toml").write_text(text)
        with pytest.raises(InputError, match=rf"{name}: expected a table, got 3"):
            RecipeFile.read(tmp_path / "broken.toml")
    with pytest.raises(InputError, match=r"nothing.toml: cannot be read: No such file"):
        RecipeFile.read(tmp_path / "nothing.toml")
    with pytest.raises(InputError, match=r"the recipe lacks \[data\]"):
        Recipe.from_dict({"loss": []})


VALUES = st.recursive(
    st.integers() | st.booleans() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


@settings(deadline=None, max_examples=60)
@given(TABLES, TABLES)
def test_merging_keeps_what_is_not_changed_and_takes_every_change(table, changes) -> None:
    result = merged(table, changes)
    assert merged(result, changes) == result
    assert merged(table, {}) == table
    for key in table.keys() | changes.keys():
        if key not in changes:
            assert result[key] == table[key]
        elif not isinstance(changes[key], dict):
            assert result[key] == changes[key]


def test_changes_are_toml_or_else_strings() -> None:
    assert parse_change("a.b=[1, 2]") == {"a": {"b": [1, 2]}}
    assert parse_change("a = {b = 1}") == {"a": {"b": 1}}
    assert parse_change("a=x=y") == {"a": "x=y"}


def test_whole_numbers_stand_for_others_and_lists_for_tuples() -> None:
    found = parse(EncoderSettings, {"options": {"width": 8}, "seed": 3}, "encoder")
    assert (found.options, found.seed) == ({"width": 8}, 3)


# --- encoders ---------------------------------------------------------------------------------------------------------


def test_the_encoder_is_built_for_the_datas_size_with_the_heads_width_filled_in(file, tmp_path) -> None:
    recipe = file.recipe()
    encoder = recipe.encoder.build(recipe.data, folder=tmp_path, seed=1)
    assert encoder.transform.size == (32, 32)
    assert encoder.transform.fit == "pad"
    assert (encoder.pooled_dim, encoder.embedding_dim) == (8, 6)
    again = recipe.encoder.build(recipe.data, folder=tmp_path, seed=1)
    assert again.fingerprint == encoder.fingerprint
    assert recipe.encoder.build(recipe.data, folder=tmp_path, seed=2).fingerprint != encoder.fingerprint
    encoder.save(tmp_path / "kept.safetensors")
    kept = EncoderSettings("kept.safetensors").build(recipe.data, folder=tmp_path, seed=5)
    assert kept.fingerprint == encoder.fingerprint


def test_heads_and_files_that_do_not_exist_are_refused(file, tmp_path, monkeypatch) -> None:
    data = file.recipe().data
    with pytest.raises(InputError, match=r"\[encoder\] head: .* describes no head"):
        EncoderSettings(head={"type": "linear"}).build(data, folder=tmp_path, seed=0)
    monkeypatch.delenv("DISTCAM_DATA", raising=False)
    with pytest.raises(InputError, match="set the environment variable DISTCAM_DATA"):
        EncoderSettings(weights="$DISTCAM_DATA/w.pth").build(data, folder=tmp_path, seed=0)


# --- data -------------------------------------------------------------------------------------------------------------


def images(folder, *, classes=6, per_class=10):
    for label in range(classes):
        for number in range(per_class):
            path = folder / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (label * 40, number * 20, 0)).save(path)
    return folder


SMALL = Transform(8, fit="squash")


def test_scenes_are_drawn_once_and_backgrounds_are_as_asked(file, cache) -> None:
    recipe = file.recipe()
    transform = Transform(32, fit="squash")
    sets = load_splits(recipe.data, transform, folder=cache, cache=cache / "scenes").sets
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.jpg")}
    again = load_splits(recipe.data, transform, folder=cache, cache=cache / "scenes").sets
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.jpg")} == before
    assert torch.equal(again["train"].pixels(torch.arange(4)), sets["train"].pixels(torch.arange(4)))
    assert {name: len(own) for name, own in sets.items()} == {"train": 24, "usual": 9, "unusual": 9, "novel": 6}
    assert sets["train"].class_names == sets["unusual"].class_names
    assert not set(sets["novel"].class_names) & set(sets["train"].class_names)
    assert len(sets["train"].regions.image) == 6
    assert len(sets["unusual"].regions.image) == 9
    tables = {path.parent.name.split("-")[0]: path.read_text().splitlines()[1:] for path in cache.rglob("scenes.csv")}
    own = {(row.split(",")[1], row.split(",")[3]) for row in tables["train"]}
    assert len(own) == 3
    assert {(row.split(",")[1], row.split(",")[3]) for row in tables["usual"]} == own
    assert own.isdisjoint({(row.split(",")[1], row.split(",")[3]) for row in tables["unusual"]})


def test_a_folder_is_divided_class_by_class(tmp_path) -> None:
    table = {"images": str(images(tmp_path / "p")), "split": {"parts": {"train": 0.5, "validation": 0.2, "test": 0.3}}}
    sets = load_splits(parse(DataSettings, table, "data"), SMALL, folder=tmp_path, cache=tmp_path).sets
    assert {name: own.per_class().tolist() for name, own in sets.items()} == {
        "train": [5] * 6,
        "validation": [2] * 6,
        "test": [3] * 6,
    }
    names = [name for own in sets.values() for name in own.names(range(len(own)))]
    assert len(set(names)) == len(names) == 60


def test_novel_classes_are_put_aside(tmp_path) -> None:
    table = {"images": "p", "split": {"parts": {"train": 0.7, "test": 0.3}, "novel": 0.5}}
    images(tmp_path / "p")
    sets = load_splits(parse(DataSettings, table, "data"), SMALL, folder=tmp_path, cache=tmp_path).sets
    assert {name: len(own.class_names) for name, own in sets.items()} == {"train": 3, "test": 3, "novel": 3}
    assert not set(sets["novel"].class_names) & set(sets["train"].class_names)
    assert len(sets["novel"]) == 30


def test_a_table_is_divided_by_its_column_and_other_classes_get_numbers_of_their_own(tmp_path) -> None:
    images(tmp_path / "p", classes=3, per_class=2)
    rows = [f"p/class{c}/{n}.png,{c},{'gallery' if c < 2 else 'query'}" for c in range(3) for n in range(2)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,part", *rows]))
    table = {"images": "t.csv", "split": {"column": "part", "parts": {"train": "gallery", "test": "query"}}}
    sets = load_splits(parse(DataSettings, table, "data"), SMALL, folder=tmp_path, cache=tmp_path).sets
    assert {name: own.class_names for name, own in sets.items()} == {"train": ("0", "1"), "test": ("2",)}
    table["split"]["column"] = "prat"
    with pytest.raises(InputError, match="expected a column 'prat' to divide it by; there are part"):
        load_splits(parse(DataSettings, table, "data"), SMALL, folder=tmp_path, cache=tmp_path)


def test_photographs_need_to_be_somewhere(monkeypatch, tmp_path) -> None:
    settings = DataSettings(photographs="caltech101")
    monkeypatch.delenv("DISTCAM_DATA", raising=False)
    with pytest.raises(InputError, match=r"needs photographs: set the environment variable DISTCAM_DATA .* not set"):
        load_splits(settings, SMALL, folder=tmp_path, cache=tmp_path)
    images(tmp_path / "caltech101")
    monkeypatch.setenv("DISTCAM_DATA", str(tmp_path))
    assert len(load_splits(settings, SMALL, folder=tmp_path, cache=tmp_path).sets["train"]) == 42


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"parts": {"test": 0.5}}, "expected a part 'train', got test"),
        ({"parts": {"train": 0.8, "test": 0.4}}, "add up to 1 at most"),
        ({"parts": {"train": 0.5}, "column": "part"}, "named by its values"),
        ({"parts": {"train": "a"}}, "expected shares above 0"),
        ({"novel": 1.0}, r"novel classes in \[0, 1\)"),
    ],
)
def test_divisions_that_make_no_sense_are_refused(split, message) -> None:
    with pytest.raises(InputError, match=message):
        parse(DataSettings, {"images": "p", "split": split}, "data")


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_recipe_its_encoder_and_its_metrics(file, cache, tmp_path) -> None:
    done = []
    result = run_recipe(
        file.recipe(), folder=tmp_path / "run", seed=3, cache=cache, progress=lambda *counts: done.append(counts)
    )
    assert done[-1] == (4, 4)
    assert result.seed == 3
    assert set(result.metrics) == {
        *(f"{split}.{name}" for split in ("usual", "unusual") for name in ("accuracy", "recall_at_1", "energy_cam")),
        "usual.energy_chance",
        "unusual.energy_chance",
        "novel.recall_at_1",
    }
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["metrics"] == result.metrics
    resolved = Recipe.from_dict(json.loads((tmp_path / "run" / "recipe.json").read_text()))
    assert resolved == result.recipe
    encoder = Encoder.load(tmp_path / "run" / "encoder.safetensors")
    assert encoder.fingerprint == result.encoder.fingerprint
    assert "cross_entropy" in json.dumps(encoder.metadata)
    _, names, fingerprint = load_classifier(tmp_path / "run" / "classifier.safetensors")
    assert (len(names), fingerprint) == (3, encoder.fingerprint)
    assert not any(name.isdecimal() for name in names)
    row = result.fit.metrics
    assert row["usual.accuracy"] == pytest.approx(result.metrics["usual.accuracy"])


def test_every_batch_can_have_outlined_images_to_learn_from(file, cache) -> None:
    gain = "loss.gain={kind='gain', mining=0}"
    changes = ["sampler.outlined=6", gain, "data.regions.share=0.04", "run.monitor='loss'"]  # one mask of 24 images
    result = run_recipe(file.recipe(changes=changes), cache=cache)
    assert all(row["attention_masks"] > 0 for row in result.fit.history)
    with pytest.raises(InputError, match="no image has any"):
        run_recipe(file.recipe(changes=["sampler.outlined=6", "data.regions.kind='none'"]), cache=cache)


def test_the_same_seed_gives_the_same_weights_and_a_run_can_be_taken_up_again(file, cache, tmp_path) -> None:
    recipe = file.recipe(changes=["run.checkpoint_every_steps=1"])
    whole = run_recipe(recipe, cache=cache)

    def killed(done, _total) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, folder=tmp_path / "run", cache=cache, progress=killed)
    resumed = run_recipe(recipe, folder=tmp_path / "run", cache=cache, resume=True)
    assert resumed.encoder.fingerprint == whole.encoder.fingerprint
    assert resumed.metrics == whole.metrics


def test_tasks_bring_data_batches_and_measures_of_their_own(file) -> None:
    recipe = file.recipe(changes=["run.monitor='loss'", "evaluation.metrics=['accuracy']"])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    own = TrainingSet.from_pixels(pixels, torch.arange(8) % 2, transform=Transform(32, fit="squash"))
    result = run_recipe(
        recipe,
        data=lambda _: RunData(
            {"train": own, "test": own},
            sampler=Sampler(lambda _epoch: [[0, 1, 2, 3]], steps_per_epoch=1),
            measure=lambda encoder, _objective, _folder: {"width": encoder.embedding_dim},
        ),
    )
    assert result.metrics["width"] == 6
    assert "test.accuracy" in result.metrics


def test_variants_and_seeds_become_a_table(file, cache, tmp_path) -> None:
    watched = []

    def watch(variant, seed):
        from contextlib import nullcontext

        watched.append((variant, seed))
        return nullcontext()

    comparison = run_variants(
        file,
        variants=["plain", "both"],
        seeds=[0, 1],
        changes=["run.epochs=1"],
        folder=tmp_path,
        cache=cache,
        watch=watch,
    )
    assert watched == [("plain", 0), ("plain", 1), ("both", 0), ("both", 1)]
    assert (tmp_path / "both" / "seed-1" / "encoder.safetensors").is_file()
    assert json.loads((tmp_path / "comparison.json").read_text()) == json.loads(json.dumps(comparison.to_dict()))
    header, *rows = comparison.rows()
    assert header == ["", "plain", "both"]
    assert rows[0][0] == "usual.accuracy"
    assert "±" in rows[0][1]
    with pytest.raises(InputError, match="holds a run already"):
        run_variants(file, variants=["plain"], seeds=[0], changes=["run.epochs=1"], folder=tmp_path, cache=cache)
    with pytest.raises(InputError, match="each once"):
        run_variants(file, variants=["plain", "plain"])


def test_a_run_that_is_refused_leaves_the_recipe_of_the_one_that_lies_there(file, cache, tmp_path) -> None:
    run_recipe(file.recipe(changes=["run.epochs=1"]), folder=tmp_path / "run", cache=cache)
    before = (tmp_path / "run" / "recipe.json").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        run_recipe(file.recipe(changes=["run.epochs=2"]), folder=tmp_path / "run", cache=cache)
    other = file.recipe(changes=["run.epochs=1", "loss.cross_entropy.weight=2"])
    with pytest.raises(InputError, match="cannot resume"):
        run_recipe(other, folder=tmp_path / "run", cache=cache, resume=True)
    assert (tmp_path / "run" / "recipe.json").read_bytes() == before


@pytest.mark.parametrize("seeds", [[0, 1], [1, 0]])
def test_a_metric_that_one_seed_does_not_have_is_no_number_there(file, cache, tmp_path, seeds) -> None:
    def run(recipe, *, seed, **options):
        result = run_recipe(recipe, seed=seed, **options)
        return dataclasses.replace(result, metrics={"test.iou": 0.5, **({"test.iou.cat": 0.25} if seed else {})})

    changes = ["run.epochs=1"]
    comparison = run_variants(
        file, run=run, variants=["plain"], seeds=seeds, changes=changes, folder=tmp_path, cache=cache
    )
    assert comparison.cell("plain", "test.iou.cat") == "nan"
    stored = json.loads((tmp_path / "comparison.json").read_text())["values"]["plain"]
    assert stored == {"test.iou": [0.5, 0.5], "test.iou.cat": [0.25 if seed else None for seed in seeds]}


def test_a_variant_can_learn_from_an_earlier_one(file, cache, tmp_path) -> None:
    teacher = "{out}/plain/seed-{seed}/encoder.safetensors"
    losses = [{"kind": "cross_entropy"}, {"kind": "ccm", "teacher": teacher}]
    table = {**file.table, "variants": {"plain": {}, "student": {"loss": losses}}}
    both = RecipeFile(table)
    comparison = run_variants(both, seeds=[4], changes=["run.epochs=1"], folder=tmp_path, cache=cache)
    assert list(comparison.values) == ["plain", "student"]
    used = json.loads((tmp_path / "student" / "seed-4" / "recipe.json").read_text())["loss"][1]["teacher"]
    assert used == str(tmp_path / "plain" / "seed-4" / "encoder.safetensors")
    with pytest.raises(InputError, match="speaks of the folder of the runs"):
        run_variants(both, variants=["student"], cache=cache)


def test_the_recipes_of_the_repository_can_be_read() -> None:
    folder = Path(__file__).parents[3] / "recipes"
    for name in ("bias", "cam_loss_scenes", "distillation"):
        recipes = RecipeFile.read(folder / f"{name}.toml")
        resolved = [recipes.recipe(variant=variant) for variant in recipes.variants]
        assert len(resolved) > 3
        assert all(loss["kind"] in TERMS for recipe in resolved for loss in recipe.loss)


def test_a_cell_is_mean_and_spread_by_hand() -> None:
    table = VariantComparison(
        "n", (0, 1), {"a": {"m": (0.2, 0.4)}, "b": {"k": (0.5, float("nan"))}}, {"a": 1.0, "b": 2.0}
    )
    assert table.cell("a", "m") == "0.300 ± 0.141"
    assert table.cell("a", "k") == "–"
    assert table.cell("b", "k") == "nan"
    assert table.rows() == [
        ["", "a", "b"],
        ["m", "0.300 ± 0.141", "–"],
        ["k", "–", "nan"],
        ["seconds", "1", "2"],
    ]


@pytest.mark.parametrize(
    ("cls", "table", "key"),
    [
        (OptimiserSettings, {"kind": "adamw", "momentum": 0.8}, "momentum"),
        (OptimiserSettings, {"kind": "sgd", "betas": [0.8, 0.9]}, "betas"),
        (ScheduleSettings, {"kind": "cosine", "factor": 0.5}, "factor"),
        (ScheduleSettings, {"kind": "constant", "end": 0.1}, "end"),
        (ScheduleSettings, {"kind": "cosine", "peak": 0.2}, "peak"),
        (SamplerSettings, {"kind": "shuffled", "per_class": 8}, "per_class"),
        (SamplerSettings, {"kind": "pk", "drop_last": True}, "drop_last"),
        (AugmentSettings, {"crop_ratio": [1.0, 1.0]}, "crop_ratio"),
        (AugmentSettings, {"erase_area": [0.1, 0.2]}, "erase_area"),
        (AugmentSettings, {"mix_share": 0.5}, "mix_share"),
        (CueSettings, {"background": "none", "low": 0.1}, "low"),
        (CueSettings, {"share": 0.2}, "share"),
        (PipelineData, {"scenes": {}, "names": "names.txt"}, "names"),
        (PipelineData, {"voc": "VOC2012", "masks": "masks"}, "masks"),
    ],
)
def test_a_key_that_its_table_does_not_use_is_refused(cls, table, key) -> None:
    with pytest.raises(InputError, match=rf"\[here\] {key} is not used by .*; leave it out"):
        parse(cls, table, "here")
    used = {name: value for name, value in table.items() if name != key}
    as_written_out = parse(cls, used, "here").to_dict()
    assert parse(cls, {name: each for name, each in as_written_out.items() if each is not None}, "here").to_dict()


def test_a_table_as_toml_leaves_out_what_is_none() -> None:
    text = as_toml({"name": "a", "size": [8, 8], "run": {"seed": 0, "ema": None}})
    assert text == 'name = "a"\nsize = [8, 8]\n\n[run]\nseed = 0\n'
