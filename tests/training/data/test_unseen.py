"""No test image and no test class is trained on unless somebody asks for it, and what was trained on is known later."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import distcam, fails
from PIL import Image

from distcam import DistcamWarning
from distcam.cli import main
from distcam.encoders import Encoder, TrainedOn
from distcam.encoders.trained_on import Overlap
from distcam.errors import InputError, WeightsError
from distcam.fewshot.training import FewShotRecipe
from distcam.fewshot.training import train as train_few_shot
from distcam.files import content_digest
from distcam.images import Transform
from distcam.index import Gallery
from distcam.reid.training import ReidRecipe
from distcam.reid.training import train as train_reid
from distcam.segmentation.cam_training.training import SegmentationRecipe
from distcam.segmentation.cam_training.training import train as train_maps
from distcam.training.data.batches import describe, parts_of
from distcam.training.data.splits import DataSettings, SplitSettings, load_splits
from distcam.training.recipes.recipe import Recipe
from distcam.training.recipes.runs import run_recipe

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
TABLES = {"encoder": {"options": {"width": 4}}, "loss": [{"kind": "cross_entropy"}], "sampler": {"batch_size": 8}}
TRANSFORM = Transform(16, fit="squash")


def picture(file: Path, seed: int, size: tuple[int, int] = (24, 20)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of four images, `animals/CLASS/N.png`."""
    root = tmp_path_factory.mktemp("animals")
    for c, name in enumerate(CLASSES):
        for n in range(4):
            picture(root / name / f"{n}.png", 10 * c + n)
    return root


@pytest.fixture
def place(animals: Path, tmp_path: Path) -> Path:
    """A copy of the animals that a test may change."""
    shutil.copytree(animals, tmp_path / "animals")
    return tmp_path


def table(place: Path, columns: str, *cells: str, name: str = "t.csv") -> Path:
    """A table in which each class has its cells behind path and label."""
    rows = [f"path,label{',' * bool(columns)}{columns}"]
    for label, cell in zip(CLASSES, cells, strict=True):
        rows += [f"animals/{label}/{n}.png,{label}{',' * bool(columns)}{cell}" for n in range(4)]
    (place / name).write_text("\n".join(rows) + "\n")
    return place / name


def settings(images: str, **split: object) -> DataSettings:
    return DataSettings(images=images, size=16, split=SplitSettings(**split))  # type: ignore[arg-type]


def recipe_for(place: Path, images: str, **data: object) -> Recipe:
    return Recipe.from_dict(
        {**TABLES, "data": {"images": images, "size": 16, **data}, "run": {"epochs": 1, "device": "cpu"}}, folder=place
    )


def digests_of(place: Path, *labels: str) -> set[int]:
    return {content_digest(file.read_bytes()) for label in labels for file in place.rglob(f"{label}/*.png")}


# --- how images are divided -------------------------------------------------------------------------------------------

FOUR, TWO = CLASSES[:4], CLASSES[4:]
SHAPES = {
    "split": ("split", ["train"] * 4 + ["test"] * 2, {}),
    "capitals": ("Split", ["Train"] * 4 + ["TEST"] * 2, {}),
    "synonyms": ("split", ["training"] * 4 + ["eval"] * 2, {}),
    "query and gallery": ("split", ["train"] * 4 + ["query", "gallery"], {}),
    "flags": ("is_query,is_gallery", [","] * 4 + ["True,False", "False,True"], {}),
    "split and flags": ("split,is_query", ["train,"] * 4 + ["test,1", "test,0"], {}),
    "subset": ("subset", ["train"] * 4 + ["test"] * 2, {}),
    "column alone": ("part", ["train"] * 4 + ["test"] * 2, {"split": {"column": "part"}}),
    "column and parts": ("part", ["a"] * 4 + ["b"] * 2,
                         {"split": {"column": "part", "parts": {"train": "a", "test": "b"}}}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_training_on_a_table_that_says_its_splits_sees_no_test_image_and_no_test_class(shape: str, place: Path) -> None:
    columns, cells, data = SHAPES[shape]
    table(place, columns, *cells)
    said: list[str] = []
    result = run_recipe(recipe_for(place, "t.csv", **data), folder=place / "run", announce=said.append)
    encoder = Encoder.load(place / "run" / "encoder.safetensors")
    assert encoder.trained_on is not None
    assert encoder.trained_on.classes == FOUR
    assert set(encoder.trained_on.digests.tolist()) == digests_of(place, *FOUR)
    assert not set(encoder.trained_on.digests.tolist()) & digests_of(place, *TWO)
    assert said == ["train: 16 images, 4 classes; test: 8 images, 2 classes, 0 of them in train"]
    kept = json.loads((place / "run" / "result.json").read_text())["data"]
    assert kept == describe(result.parts)
    assert kept["test"] == {"images": 8, "classes": 2, "classes_in_train": 0}
    resolved = json.loads((place / "run" / "recipe.json").read_text())
    again = load_splits(Recipe.from_dict(resolved).data, TRANSFORM, folder=place, cache=place).sets
    assert again["train"].class_names == FOUR
    assert "test.recall_at_1" in result.metrics
    assert "test.accuracy" not in result.metrics  # there is none for unseen classes, and nobody asked for it


def test_training_on_folders_of_splits_sees_the_training_folder_alone(place: Path) -> None:
    for label in CLASSES:
        target = place / "ds" / ("Train" if label in FOUR else "val") / label
        shutil.copytree(place / "animals" / label, target)
    with pytest.warns(DistcamWarning, match="ds: the folders Train, val are taken for splits"):
        result = run_recipe(recipe_for(place, "ds"), folder=place / "run")
    assert result.encoder.trained_on is not None
    assert result.encoder.trained_on.classes == FOUR
    assert set(result.encoder.trained_on.digests.tolist()) == digests_of(place / "animals", *FOUR)
    assert describe(result.parts)["val"] == {"images": 8, "classes": 2, "classes_in_train": 0}
    run_recipe(recipe_for(place, "ds", split={"column": "split"}))  # who says so need not be told


def test_validation_is_a_part_of_its_own_and_the_rest_is_test(place: Path) -> None:
    table(place, "split", "train", "train", "valid", "test", "query", "gallery")
    sets = load_splits(settings("t.csv"), TRANSFORM, folder=place, cache=place).sets
    assert {name: own.class_names for name, own in sets.items()} == {
        "train": CLASSES[:2], "val": CLASSES[2:3], "test": CLASSES[3:],
    }  # fmt: skip


def test_what_is_of_no_part_or_has_no_label_is_left_out_and_named(place: Path) -> None:
    table(place, "split", "train", "train", "extra", "test", "test", "")
    with pytest.warns(DistcamWarning, match=r"8 images are of none of the parts train, test .* such as animals/cat/0"):
        sets = load_splits(settings("t.csv"), TRANSFORM, folder=place, cache=place).sets
    assert {name: len(own) for name, own in sets.items()} == {"train": 8, "test": 8}
    for n in range(3):
        picture(place / "ds" / "train" / ("a" if n else "b") / f"{n}.png", n)
        picture(place / "ds" / "test" / f"{n}.png", n)
    with pytest.warns(DistcamWarning) as said:
        sets = load_splits(settings("ds"), TRANSFORM, folder=place, cache=place).sets
    assert any("3 images of the part test have no label and are left out" in str(each.message) for each in said)
    assert list(sets) == ["train"]


def test_shares_that_a_recipe_asks_for_are_given_and_said_where_a_table_knows_better(place: Path) -> None:
    table(place, "split", *["train"] * 4, "test", "test")
    shares = settings("t.csv", parts={"train": 0.5, "test": 0.5})
    with pytest.warns(DistcamWarning, match=r"by chance although their column 'split' says .*\(train 16, test 8\)"):
        sets = load_splits(shares, TRANSFORM, folder=place, cache=place).sets
    assert {name: len(own) for name, own in sets.items()} == {"train": 12, "test": 12}
    strict = DataSettings(images="t.csv", size=16, split=shares.split, strict=True)
    with pytest.raises(InputError, match="by chance although"):
        load_splits(strict, TRANSFORM, folder=place, cache=place)


@pytest.mark.parametrize("cells", [["0", "1", "0", "1", "0", "1"], ["test"] * 6])
def test_a_column_without_training_images_is_refused_with_what_to_write(place: Path, cells: list[str]) -> None:
    table(place, "split", *cells)
    with pytest.raises(InputError, match=rf"says {cells[0]}.*none of it is train; .*train = \"{cells[0]}\""):
        load_splits(settings("t.csv"), TRANSFORM, folder=place, cache=place)


@pytest.mark.parametrize("marks", [("0", "1"), ("False", "True"), ("no", "yes")])
def test_flags_without_training_images_are_refused_with_marks_that_divide(place: Path, marks: tuple[str, str]) -> None:
    table(place, "is_query", *marks * 3)
    with pytest.raises(InputError, match=r"column 'is_query' says.* none of it is train") as refused:
        load_splits(settings("t.csv"), TRANSFORM, folder=place, cache=place)
    split = tomllib.loads(f"split = {{ {str(refused.value).partition('[data.split] ')[2].partition(', or give')[0]} }}")
    sets = load_splits(settings("t.csv", **split["split"]), TRANSFORM, folder=place, cache=place).sets
    assert {name: len(own) for name, own in sets.items()} == {"train": 12, "test": 12}


def test_classes_that_are_partly_known_get_numbers_of_their_own(place: Path) -> None:
    rows = [f"animals/{label}/{n}.png,{label},{'train' if n < 2 else 'test'}" for label in FOUR for n in range(4)]
    rows += [f"animals/{label}/{n}.png,{label},test" for label in TWO for n in range(4)]
    (place / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    sets = load_splits(settings("t.csv"), TRANSFORM, folder=place, cache=place).sets
    assert sets["test"].class_names == CLASSES
    assert describe(parts_of(sets))["test"]["classes_in_train"] == 4


def test_the_command_says_the_parts_before_it_trains_and_when_it_only_looks(place: Path, monkeypatch, capsys) -> None:
    table(place, "split", *["train"] * 4, "test", "test")
    recipe = place / "r.toml"
    recipe.write_text(
        '[data]\nimages = "t.csv"\nsize = 16\n[encoder]\noptions = { width = 4 }\n[[loss]]\nkind = "cross_entropy"\n'
        "[sampler]\nbatch_size = 8\n[run]\nepochs = 1\n"
    )
    parts = "train: 16 images, 4 classes; test: 8 images, 2 classes, 0 of them in train"
    printed = tomllib.loads(distcam("train", recipe, "--dry-run"))
    assert printed["data"]["split"] == {
        "parts": {"train": "train", "test": "test"}, "column": "split", "novel": 0.0, "seed": 0,
    }  # fmt: skip
    monkeypatch.setattr("sys.argv", ["distcam", "train", str(recipe), "--out", str(place / "run"), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = capsys.readouterr()
    assert parts in found.err.splitlines()
    assert json.loads(found.out)["data"][""]["train"] == {"images": 16, "classes": 4}
    table(place, "split", *["train"] * 4, "test", "oops")
    error = fails(monkeypatch, capsys, "train", recipe, "--out", place / "other", "--strict")
    assert "4 images are of none of the parts" in error


# --- the record -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(animals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an encoder that was trained on four of the classes, and on half of their images."""
    place = tmp_path_factory.mktemp("trained")
    rows = [f"{animals}/{label}/{n}.png,{label},{'train' if n < 2 else 'no'}" for label in FOUR for n in range(4)]
    (place / "t.csv").write_text("\n".join(["path,label,part", *rows]))
    split = {"column": "part", "parts": {"train": "train", "test": "no"}}
    run_recipe(recipe_for(place, "t.csv", split=split), folder=place / "run")
    return place / "run" / "encoder.safetensors"


def test_a_record_travels_with_its_encoder_and_is_no_part_of_the_fingerprint(
    trained: Path, animals: Path, tmp_path: Path
) -> None:
    encoder = Encoder.load(trained)
    fingerprint = encoder.fingerprint
    gallery = Gallery.build(animals, encoder, out=tmp_path / "g")
    assert gallery.encoder_path is not None
    copy = Encoder.load(gallery.encoder_path)
    assert copy.trained_on is not None
    assert copy.trained_on.to_dict() == {"classes": list(FOUR), "images": 8, "is_sample": False}
    read = TrainedOn.read(trained)
    assert read is not None
    assert np.array_equal(read.digests, copy.trained_on.digests)
    copy.trained_on = None
    assert copy.fingerprint == fingerprint
    copy.save(tmp_path / "plain.safetensors")  # as distcam 0.1.0 wrote it
    assert Encoder.load(tmp_path / "plain.safetensors").trained_on is None
    assert TrainedOn.read(tmp_path / "plain.safetensors") is None


def test_training_goes_on_with_the_record_of_the_encoder_it_starts_from(trained: Path, place: Path) -> None:
    table(place, "split", *["test"] * 4, "train", "train")
    recipe = recipe_for(place, "t.csv")
    table_of = {**recipe.to_dict(), "encoder": {"architecture": str(trained)}}
    second = run_recipe(Recipe.from_dict(table_of, folder=place)).encoder
    assert second.trained_on is not None
    assert second.trained_on.classes == CLASSES
    assert second.trained_on.images == len(second.trained_on.digests) == 16


def test_a_record_by_hand(monkeypatch) -> None:
    record = TrainedOn.of(["b", "a"], 3, np.array([5, 3, 5]))
    assert (record.classes, record.digests.tolist(), record.is_sample) == (("a", "b"), [3, 5], False)
    overlap = record.overlap(["a", "c", None, "a"], np.array([5, 9]))
    assert overlap == Overlap(1, 2, 1, 2)
    assert str(overlap) == "1 of the 2 classes measured (by name) and 1 of the 2 images (by content) were trained on"
    assert Overlap.from_dict(json.loads(json.dumps(overlap.to_dict()))) == overlap
    assert not record.overlap(["c"], np.array([9]))
    unknown = TrainedOn.of(["a"], 7, None)
    assert str(unknown.overlap(["a"], np.array([9]))).endswith("were trained on; which images were is not known")
    both = record.after(TrainedOn.of(["c"], 2, np.array([5, 1])))
    assert (both.classes, both.images, both.digests.tolist()) == (("a", "b", "c"), 4, [1, 3, 5])
    monkeypatch.setattr("distcam.encoders.trained_on.LIMIT", 2)
    sample = TrainedOn.of(["a"], 3, np.array([5, 3, 1]))
    assert (sample.digests.tolist(), sample.is_sample) == ([1, 3], True)
    assert "at least 1 of the 2 images" in str(sample.overlap(["a"], np.array([1, 5])))


def test_a_checkpoint_with_a_damaged_record_is_refused_in_one_sentence() -> None:
    digests = torch.tensor([1, 2])
    for config in ({}, {"trained_on": 3}, {"trained_on": {"classes": 5, "images": 1, "is_sample": False}}):
        with pytest.raises(WeightsError, match="does not say properly what it was trained on"):
            TrainedOn.of_checkpoint(config, {"trained_on.digests": digests})


# --- what each command says of it -------------------------------------------------------------------------------------

MEASURED = {"classes": 4, "of_classes": 6, "images": 8, "of_images": 24, "is_sample": False}
SAID = r"4 of the 6 classes measured \(by name\) and 8 of the 24 images \(by content\) were trained on"


def test_evaluation_says_how_much_was_trained_on(trained: Path, animals: Path, tmp_path: Path) -> None:
    with pytest.warns(DistcamWarning, match=SAID):
        found = json.loads(distcam("evaluate", animals, "--encoder", trained, "--no-nmi", "--json"))
    assert found["origin"]["trained_on"] == MEASURED
    with pytest.raises(InputError, match=SAID):
        distcam("evaluate", animals, "--encoder", trained, "--no-nmi", "--strict", status=0)
    Gallery.build(animals, Encoder.load(trained), out=tmp_path / "g")
    distcam("encode", animals, "--out", tmp_path / "e.h5", "--encoder", trained)
    for encoded in ("g", "e.h5"):
        with pytest.warns(DistcamWarning, match=SAID):
            found = json.loads(distcam("evaluate", tmp_path / encoded, "--no-nmi", "--json"))
        assert found["origin"]["trained_on"] == MEASURED


def test_nothing_is_said_where_nothing_was_trained_on_or_nothing_is_known(
    trained: Path, animals: Path, tmp_path
) -> None:
    for label in TWO:
        shutil.copytree(animals / label, tmp_path / "unseen" / label)
    found = json.loads(distcam("evaluate", tmp_path / "unseen", "--encoder", trained, "--no-nmi", "--json"))
    assert found["origin"]["trained_on"] == {**MEASURED, "classes": 0, "of_classes": 2, "images": 0, "of_images": 8}
    text = distcam("evaluate", tmp_path / "unseen", "--encoder", trained, "--no-nmi")
    assert "trained on" not in text
    random = ["--encoder", "conv4", "--weights", "random", "--image-size", "16"]
    assert "trained on" not in distcam("evaluate", animals, *random, "--no-nmi")


def test_few_shot_evaluation_says_it(trained: Path, animals: Path, tmp_path: Path) -> None:
    episodes = ["--n-way", "2", "--n-query", "2", "--episodes", "5", "--json", "--out"]
    with pytest.warns(DistcamWarning, match=SAID):
        found = distcam("fewshot", "evaluate", "--data", animals, "--encoder", trained, *episodes, tmp_path / "f.h5")
    assert json.loads(found)["source"]["trained_on"] == MEASURED
    distcam("encode", animals, "--out", tmp_path / "e.h5", "--encoder", trained)
    with pytest.warns(DistcamWarning, match=SAID):
        found = distcam("fewshot", "evaluate", "--data", tmp_path / "e.h5", *episodes, tmp_path / "g.h5")
    assert json.loads(found)["source"]["trained_on"] == MEASURED


def test_re_identification_says_it(trained: Path, place: Path) -> None:
    table(place, "camera", *["1"] * 6)
    rows = (place / "t.csv").read_text().splitlines()
    cameras = [rows[0], *(f"{row[:-1]}{n % 2}" for n, row in enumerate(rows[1:]))]
    (place / "t.csv").write_text("\n".join(cameras))
    with pytest.warns(DistcamWarning, match=SAID):
        found = json.loads(distcam("reid", "evaluate", place / "t.csv", "--encoder", trained, "--json"))
    assert found["features"]["trained_on"] == MEASURED
    with pytest.warns(DistcamWarning, match=SAID):
        assert "training: 4 of the 6 classes" in distcam("reid", "evaluate", place / "t.csv", "--encoder", trained)


def test_localisation_says_it(trained: Path, place: Path) -> None:
    rows = [f"{label}/{n}.png,1,1,9,9" for label in CLASSES for n in range(4)]
    (place / "boxes.csv").write_text("\n".join(["path,x1,y1,x2,y2", *rows]))
    arguments = ["--boxes", place / "boxes.csv", "--references", place / "animals", "--encoder", trained]
    with pytest.warns(DistcamWarning, match=SAID):
        found = distcam("localize", place / "animals", *arguments, "--methods", "dist", "--json")
    assert json.loads(found)["trained_on"] == MEASURED
    shutil.copytree(place / "animals", place / "shown")
    broken(*(place / "shown" / FOUR[0]).iterdir(), place / "shown" / FOUR[1] / "0.png")
    with pytest.warns(DistcamWarning) as said:
        found = distcam("localize", place / "shown", *arguments, "--methods", "dist", "--json")
    assert any("3 of the 5 classes measured (by name) and 5 of the 19 images" in str(entry.message) for entry in said)
    counts = {"classes": 3, "of_classes": 5, "images": 5, "of_images": 19}
    assert counts.items() <= json.loads(found)["trained_on"].items()


# --- images that cannot be read, in every kind of training ------------------------------------------------------------


def broken(*files: Path) -> None:
    for file in files:
        file.write_bytes(file.read_bytes()[:20])


def test_training_names_unreadable_images_of_all_parts_at_once_and_keeps_the_list(place: Path) -> None:
    table(place, "split", *["train"] * 4, "test", "test")
    broken(place / "animals/ant/1.png", place / "animals/fox/2.png")
    with pytest.warns(DistcamWarning, match=r"2 of 24 images cannot be read .*animals/ant/1\.png .*animals/fox/2\.png"):
        result = run_recipe(recipe_for(place, "t.csv"), folder=place / "run")
    assert [item.path for item in result.left_out] == ["animals/ant/1.png", "animals/fox/2.png"]
    kept = json.loads((place / "run" / "result.json").read_text())
    assert [item["path"] for item in kept["left_out"]] == ["animals/ant/1.png", "animals/fox/2.png"]
    assert kept["data"]["train"] == {"images": 15, "classes": 4}
    with pytest.raises(InputError, match="2 of 24 images cannot be read"):
        run_recipe(recipe_for(place, "t.csv", strict=True))


def test_few_shot_training_does_too(place: Path) -> None:
    table(place, "split", *["train"] * 3, *["test"] * 3)
    broken(place / "animals/ant/1.png", place / "animals/fox/2.png")
    (place / "r.toml").write_text(
        '[data]\nimages = "t.csv"\nsize = 16\n[encoder]\noptions = { width = 4 }\n[[loss]]\nkind = "cross_entropy"\n'
        '[run]\nepochs = 1\ndevice = "cpu"\n[[test]]\nn_way = 3\nn_query = 2\nepisodes = 5\n'
    )
    said: list[str] = []
    with pytest.warns(DistcamWarning) as warned:
        result = train_few_shot(FewShotRecipe.read(place / "r.toml"), announce=said.append)
    assert any("2 of 24 images cannot be read" in str(each.message) for each in warned)
    assert said == ["base: 11 images, 3 classes; novel: 11 images, 3 classes, 0 of them in base"]
    assert result.encoder.trained_on is not None
    assert (result.encoder.trained_on.classes, len(result.encoder.trained_on.digests)) == (CLASSES[:3], 11)
    with pytest.warns(DistcamWarning), pytest.raises(InputError, match="2 of 24 images cannot be read"):
        train_few_shot(FewShotRecipe.read(place / "r.toml", changes=["data.strict=true"]))


def test_training_for_re_identification_does_too(place: Path) -> None:
    rows = [
        f"animals/{label}/{n}.png,{label},{n % 2},{'train' if label in FOUR else 'test'}"
        for label in CLASSES
        for n in range(4)
    ]
    (place / "t.csv").write_text("\n".join(["path,identity,camera,split", *rows]))
    broken(place / "animals/ant/1.png", place / "animals/fox/2.png")
    (place / "r.toml").write_text(
        '[data]\nimages = "t.csv"\nsize = 16\n[encoder]\noptions = { width = 4 }\n[[loss]]\nkind = "cross_entropy"\n'
        '[run]\nepochs = 1\ndevice = "cpu"\n'
    )
    said: list[str] = []
    with pytest.warns(DistcamWarning, match="2 of 24 images cannot be read"):
        result = train_reid(ReidRecipe.read(place / "r.toml"), announce=said.append)
    assert said[0].startswith("train: 15 images, 4 classes; query: 7 images, 2 classes, 0 of them in train")
    assert "mAP" in result.metrics
    assert result.encoder.trained_on is not None
    assert set(result.encoder.trained_on.digests.tolist()) < digests_of(place / "animals", *FOUR)
    with pytest.raises(InputError, match="2 of 24 images cannot be read"):
        train_reid(ReidRecipe.read(place / "r.toml", changes=["data.strict=true"]))


def camvid(root: Path) -> Path:
    for split in ("train", "val"):
        for n in range(3):
            picture(root / split / f"{n}.png", n + 50 * (split == "val"))
            mask = np.repeat(np.arange(20, dtype=np.uint8)[:, None] // 10, 24, 1)
            (root / f"{split}annot").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / f"{split}annot" / f"{n}.png")
    return root


def test_training_for_segmentation_does_too_with_pictures_and_with_masks(tmp_path: Path) -> None:
    root = camvid(tmp_path / "camvid")
    broken(root / "train" / "1.png", root / "valannot" / "2.png")
    (tmp_path / "r.toml").write_text(
        '[data]\nimages = "camvid:camvid"\nsize = 16\n[encoder]\noptions = { width = 4 }\n[[loss]]\n'
        'kind = "multi_label"\n[run]\nepochs = 1\ndevice = "cpu"\n'
    )
    with pytest.raises(InputError, match="2 of 6 images cannot be read"):
        train_maps(SegmentationRecipe.read(tmp_path / "r.toml", changes=["data.strict=true"]))
    with (
        pytest.warns(DistcamWarning, match=r"2 of 6 images cannot be read and are left out: 1 \(.*; 2 \("),
        pytest.raises(InputError, match="none shows"),  # CamVid's other nine classes: the images were looked at before
    ):
        train_maps(SegmentationRecipe.read(tmp_path / "r.toml"))
