"""One recogniser of splits: what is a split and what a class, in folders and in tables, for every command."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcam import DistcamWarning
from distcam.datasets import open_data
from distcam.datasets.masked_images import splits_of_table
from distcam.datasets.registry import read_data
from distcam.errors import InputError
from distcam.images import list_images, load_dataset
from distcam.images.splits import overlooked_column, split_column, split_name, split_of_row
from distcam.index import Gallery
from distcam.segmentation.data import MaskedImages
from distcam.training.data.dividing import SplitSettings, divided, settled


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(file: Path, *lines: str) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("TRAIN_SET", "train"), ("train2017", "train"), ("val", "val"),
        ("Valid", "val"), ("validation", "val"), ("dev", "val"), ("Dev_Set", "val"), ("trainval", "train"),
        ("device", None),
        ("holdout", "test"), ("hold-out", "test"), ("test ", "test"), ("testing", "test"), ("eval", "test"),
        ("test-images", "test"), ("bounding_box_train", "train"), ("image_query", "query"), ("steam_train", None),
        ("Query", "query"), ("gallery", "gallery"),
        ("trains", None), ("trainstation", None), ("contest", None), ("a", None), ("", None), ("test7", None),
    ],
)  # fmt: skip
def test_names_of_splits_in_any_case_and_no_others(name: str, split: str | None) -> None:
    assert split_name(name) == split


# --- folders ----------------------------------------------------------------------------------------------------------

FOLDERS = {
    "torchvision": (["train/cat/1.jpg", "val/cat/2.jpg"], [("cat", "train"), ("cat", "val")]),
    "capitals": (["Train/cat/1.jpg", "Val/cat/2.jpg"], [("cat", "train"), ("cat", "val")]),
    "synonyms": (["testing/cat/1.jpg", "training/cat/2.jpg"], [("cat", "test"), ("cat", "train")]),
    "valid": (["train/cat/1.jpg", "valid/cat/2.jpg"], [("cat", "train"), ("cat", "val")]),
    "roles": (["gallery/cat/1.jpg", "query/cat/2.jpg"], [("cat", "gallery"), ("cat", "query")]),
    "deep": (["x/y/train/cat/1.jpg", "x/y/test/dog/2.jpg"], [("dog", "test"), ("cat", "train")]),
    "held out": (["holdout/cat/1.jpg", "train/dog/2.jpg"], [("cat", "test"), ("dog", "train")]),
    "one split alone": (["train/cat/1.jpg", "train/dog/2.jpg"], [("cat", "train"), ("dog", "train")]),
    "ultralytics": (["images/train/cat/1.jpg", "images/val/cat/2.jpg", "labels/train/1.txt"],
                    [("cat", "train"), ("cat", "val")]),
    "no classes beneath": (["images/train/1.jpg", "images/val/2.jpg"], [(None, "train"), (None, "val")]),
    "one level deeper": (["dataset/test/cat/1.jpg", "dataset/train/cat/2.jpg", "notes/x.txt"],
                         [("cat", "test"), ("cat", "train")]),
    "one folder of any name": (["pets/test/cat/1.jpg", "pets/train/cat/2.jpg"], [("cat", "test"), ("cat", "train")]),
    "two levels deeper": (["data/images/train/cat/1.jpg", "data/images/val/cat/2.jpg"],
                          [("cat", "train"), ("cat", "val")]),
    "deeper than the class": (["train/cat/a/b/1.jpg", "val/cat/2.jpg"], [("cat", "train"), ("cat", "val")]),
    "unlabelled test": (["test/1.jpg", "train/cat/2.jpg"], [(None, "test"), ("cat", "train")]),
    "packed twice": (["test/test/cat/1.jpg", "train/train/cat/2.jpg"], [("cat", "test"), ("cat", "train")]),
    "a class called train": (["test/train/1.jpg", "train/car/2.jpg", "train/train/3.jpg"],
                             [("train", "test"), ("car", "train"), ("train", "train")]),
    "classes above": (["cat/test/1.jpg", "cat/train/2.jpg", "dog/train/3.jpg"],
                      [("cat", "test"), ("cat", "train"), ("dog", "train")]),
}  # fmt: skip


@pytest.mark.parametrize("shape", FOLDERS)
def test_split_folders_are_no_classes_but_a_column(shape: str, tmp_path: Path) -> None:
    names, expected = FOLDERS[shape]
    touch(tmp_path, *names)
    with pytest.warns(DistcamWarning, match="taken for (splits and not for classes|a split and not for a class)"):
        listing = list_images(tmp_path)
    assert [(record.label, record.columns["split"]) for record in listing] == expected
    assert listing.column_names == ("split",)
    assert list(pickle.loads(pickle.dumps(listing))) == list(listing)


@pytest.mark.parametrize("stray", ["scraps/x.jpg", "loose.jpg", "zoo/a/x.jpg"])
def test_a_stray_folder_or_file_beside_splits_is_named_and_makes_no_classes_of_them(stray: str, tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/2.jpg", stray)
    with pytest.warns(DistcamWarning) as said:
        listing = list_images(tmp_path)
    assert any("1 image lies outside" in str(each.message) and stray in str(each.message) for each in said)
    assert {record.path: record.label for record in listing}[stray] is None
    dataset = load_dataset(tmp_path)
    assert dataset.splits == ("train", "val")
    assert stray in dataset.problems[0]


@pytest.mark.parametrize(
    "names",
    [
        ["car/1.jpg", "plane/2.jpg", "train/3.jpg"],
        ["car/suv/1.jpg", "plane/jet/2.jpg", "train/steam/3.jpg", "train/diesel/4.jpg"],
        ["museum/1.jpg", "gallery/2.jpg"],
        ["car/1.jpg", "test/2.jpg", "train/3.jpg"],
    ],
)
def test_a_class_that_is_named_like_a_split_stays_a_class_and_that_is_said(names: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *names)
    with pytest.warns(DistcamWarning, match="named like a split and (is|are) taken for (a class|classes)"):
        listing = list_images(tmp_path)
    assert {record.label for record in listing} == {name.split("/")[0] for name in names}
    assert listing.column_names == ()


def test_labels_folder_means_the_first_folder_whatever_it_is_called_and_that_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg")
    with pytest.warns(DistcamWarning, match="train, val look like splits and are made classes"):
        listing = list_images(tmp_path, labels="folder")
    assert [record.label for record in listing] == ["train", "val"]


def test_labels_split_asks_for_splits_beforehand_and_nothing_need_be_said(tmp_path: Path) -> None:
    touch(tmp_path, "ds/train/cat/1.jpg", "ds/val/cat/2.jpg", "plain/cat/1.jpg")
    listing = list_images(tmp_path / "ds", labels="split", strict=True)
    assert [(record.label, record.columns["split"]) for record in listing] == [("cat", "train"), ("cat", "val")]
    with pytest.raises(InputError, match=r"no folder in .*plain is that of a split"):
        list_images(tmp_path / "plain", labels="split")


def test_a_pattern_below_split_folders_and_a_table_of_labels_know_the_splits(tmp_path: Path) -> None:
    touch(tmp_path, "ds/train/cat/1.jpg", "ds/val/cat/2.jpg")
    with pytest.warns(DistcamWarning, match="taken for splits"):
        listing = list_images(f"{tmp_path}/ds/*/*/*.jpg")
    assert [(record.label, record.columns["split"]) for record in listing] == [("cat", "train"), ("cat", "val")]
    labels = table(tmp_path / "labels.csv", "path,label", "ds/train/cat/1.jpg,x", "ds/val/cat/2.jpg,y")
    with pytest.warns(DistcamWarning, match="taken for splits"):
        listing = list_images(tmp_path / "ds", labels=labels)
    assert [(record.label, record.columns["split"]) for record in listing] == [("x", "train"), ("y", "val")]


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [
        ("split", ["train", "test", "Val", ""], ["train", "test", "val", ""]),
        ("Split", ["TRAIN", "validation", "eval", "a"], ["train", "val", "test", "a"]),
        ("split", ["query", "gallery", "train", "valid"], ["query", "gallery", "train", "val"]),
        ("is_query,is_gallery", ["True,False", "0,1", ",", "nan,nan"], ["test", "test", "train", "train"]),
        ("split,is_query", ["train,", "test,1", "test,0", "val,"], ["train", "test", "test", "val"]),
        ("Is_Query,IS_GALLERY", ["True,False", "0,1", ",", "nan,nan"], ["test", "test", "train", "train"]),
        ("subset", ["train", "test", "test", "train"], ["train", "test", "test", "train"]),
        ("data_split", ["train", "holdout", "dev", "train"], ["train", "test", "val", "train"]),
        ("subset", ["a", "train", "test", "b"], ["", "", "", ""]),
        ("colour", ["train", "test", "test", "train"], ["", "", "", ""]),
    ],
)
def test_what_a_table_says_of_splits(header: str, cells: list[str], expected: list[str], tmp_path: Path) -> None:
    names = header.split(",")
    rows = [dict(zip(names, cell.split(","), strict=True)) for cell in cells]
    column = split_column(rows, names)
    assert [split_of_row(row, column) for row in rows] == expected


OVERLOOKED = {
    "some cells of a usual column": ("subset", "train", "test", "extra", "train"),
    "half the cells of one": ("phase", "train", "", "", "train"),
    "a column of another name": ("colour", "train", "test", "test", "train"),
    "a flag": ("is_train", "1", "0", "0", "1"),
    "folds": ("fold", "0", "1", "2", "0"),
    "numbers": ("partition", "0", "1", "2", "0"),
}


@pytest.mark.parametrize("column", OVERLOOKED.values(), ids=OVERLOOKED)
def test_a_column_that_may_divide_a_table_and_is_not_asked_is_named_by_every_task(
    column: tuple[str, ...], tmp_path: Path
) -> None:
    name, *cells = column
    rows = [f"{n}.jpg,{'ab'[n % 2]},{cell}" for n, cell in enumerate(cells)]
    file = table(touch(tmp_path, "0.jpg", "1.jpg", "2.jpg", "3.jpg") / "t.csv", f"path,label,{name}", *rows)
    assert any(f"the column '{name}'" in problem for problem in load_dataset(file).problems)
    with pytest.warns(DistcamWarning, match=f"all classes are taken for novel, but the column '{name}'"):
        open_data(str(file))
    records, settings = list(list_images(file)), SplitSettings()
    with pytest.warns(DistcamWarning, match=f"divided by chance, but the column '{name}'"):
        settled(settings, records, where=file, strict=False)
    with pytest.raises(InputError, match=f"the column '{name}'"):
        settled(settings, records, where=file, strict=True)


@pytest.mark.parametrize("header", ["breed,year,score", "role,x,y", "setting,unfolded,training_time"])
def test_other_columns_of_a_table_raise_no_doubt(header: str) -> None:
    rows = [dict(zip(header.split(","), (cell, str(n), f"{n}.5"), strict=True)) for n, cell in enumerate("abcabc")]
    assert overlooked_column(rows, header.split(",")) is None


def test_spellings_of_one_split_are_one_split_and_what_is_of_none_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.jpg" for n in range(6)))
    cells = ("Train", "TEST", "testing", "test_set", "", "tset")
    rows = [f"{n}.jpg,a,{cell}" for n, cell in enumerate(cells)]
    file = table(tmp_path / "t.csv", "path,label,split", *rows)
    found = load_dataset(file, split="test")
    assert [record.path for record in found.records] == ["1.jpg", "2.jpg", "3.jpg"]
    assert found.problems == ("2 images are of no known split (empty 1, tset 1), such as 4.jpg",)
    with pytest.raises(InputError, match="2 images are of no known split"):
        load_dataset(file, split="test", strict=True)


def test_a_few_shot_table_whose_splits_are_all_unknown_is_not_undivided_in_silence(tmp_path: Path) -> None:
    touch(tmp_path, "0.jpg", "1.jpg")
    file = table(tmp_path / "t.csv", "path,label,split", "0.jpg,a,A", "1.jpg,b,B")
    with pytest.warns(DistcamWarning, match="the column of splits says A, B, none of which is a known split"):
        open_data(str(file))


def test_folders_of_folds_are_named_as_the_classes_they_become(tmp_path: Path) -> None:
    touch(tmp_path, "fold1/cat/1.jpg", "fold2/cat/2.jpg")
    with pytest.warns(DistcamWarning, match="fold1, fold2 are named like folds"):
        assert list_images(tmp_path).splits is None


def test_a_flag_in_capitals_divides_a_training_again_when_its_recipe_is_read_again(tmp_path: Path) -> None:
    touch(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    file = table(tmp_path / "t.csv", "path,label,Is_Query", "0.jpg,a,", "1.jpg,b,1", "2.jpg,b,0")
    records = list(list_images(file))
    first = settled(SplitSettings(), records, where=file, strict=True)
    assert settled(first, records, where=file, strict=True) == first
    parts = divided(records, first, where=file, strict=True)
    assert {name: len(own) for name, own in parts.items()} == {"train": 1, "test": 2}


def test_evaluation_knows_splits_by_what_they_mean(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    rows = ("1.jpg,a,Train", "2.jpg,a,TEST", "3.jpg,b,test", "4.jpg,b,Valid")
    found = load_dataset(table(tmp_path / "t.csv", "path,label,split", *rows), split="test")
    assert [record.path for record in found.records] == ["2.jpg", "3.jpg"]
    assert len(load_dataset(tmp_path / "t.csv", split="validation")) == 1
    roles = table(tmp_path / "r.csv", "path,label,split", "1.jpg,a,train", "2.jpg,a,query", "3.jpg,a,gallery")
    found = load_dataset(roles, split="test")
    assert [record.role for record in found.records] == ["query", "gallery"]


def test_a_re_identification_table_knows_the_same_names_and_flags(tmp_path: Path) -> None:
    rows = ("1.jpg,1,a,Training,", "2.jpg,1,b,EVAL,True", "3.jpg,1,b,test,False", "4.jpg,2,a,valid,")
    data = read_data(table(tmp_path / "t.csv", "path,pid,camera,split,is_query", *rows))
    assert {image.path: image.role for image in data.images} == {
        "1.jpg": "train", "2.jpg": "query", "3.jpg": "test", "4.jpg": "test",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Role", "Subset", "partition", "data_split"])
def test_a_re_identification_table_is_divided_by_the_same_columns(name: str, tmp_path: Path) -> None:
    rows = ("1.jpg,1,a,train", "2.jpg,2,b,query", "3.jpg,2,c,gallery")
    data = read_data(table(tmp_path / "t.csv", f"path,pid,camera,{name}", *rows))
    assert [image.role for image in data.images] == ["train", "query", "gallery"]


def test_a_segmentation_table_knows_the_same_names(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / name)
    file = table(tmp_path / "t.csv", "path,labels,Split", "1.jpg,a,Training", "2.jpg,b,Validation")
    assert MaskedImages.from_table(file, ["a", "b"], split="val").names == ("2",)
    assert len(MaskedImages.from_table(file, ["a", "b"])) == 2
    assert splits_of_table(file) == ("Training", "Validation")


# --- few-shot ---------------------------------------------------------------------------------------------------------


def few_shot(root: Path, *, said: str) -> dict[str, list[str]]:
    with pytest.warns(DistcamWarning) as warned:
        data = open_data(str(root))
    assert any(said in str(each.message) for each in warned)
    return {name: split.class_names.tolist() for name, split in data.parts.items()}


def test_few_shot_parts_are_the_splits_and_never_classes(tmp_path: Path) -> None:
    touch(tmp_path / "a", "train/cat/1.jpg", "train/dog/1.jpg", "val/fox/2.jpg", "test/cow/3.jpg", "test/elk/3.jpg")
    parts = few_shot(tmp_path / "a", said="the novel part is the split test, beside train and val")
    assert parts == {"base": ["cat", "dog"], "val": ["fox"], "novel": ["cow", "elk"]}
    touch(tmp_path / "b", "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/2.jpg", "val/elk/2.jpg")
    shared = few_shot(tmp_path / "b", said="1 of the 2 classes of the split val also occur in train")
    assert shared == {"novel": ["cat", "elk"]}
    touch(tmp_path / "c", "train/cat/1.jpg", "train/dog/1.jpg")
    assert few_shot(tmp_path / "c", said="the novel part is the split train") == {"novel": ["cat", "dog"]}


def test_few_shot_data_is_one_split_where_one_is_named_and_a_table_does_as_well(tmp_path: Path) -> None:
    touch(tmp_path, "ds/train/cat/1.jpg", "ds/train/dog/1.jpg", "ds/val/cat/2.jpg", "x.jpg", "y.jpg", "z.jpg")
    with pytest.warns(DistcamWarning, match="taken for splits"):
        data = open_data(f"folder:train@{tmp_path}/ds")
    assert data["novel"].names.tolist() == ["train/cat/1.jpg", "train/dog/1.jpg"]
    with (
        pytest.warns(DistcamWarning, match="taken for splits"),
        pytest.raises(InputError, match="no split 'test'; there are train, val"),
    ):
        open_data(f"folder:test@{tmp_path}/ds")
    file = table(tmp_path / "t.csv", "path,label,split", "x.jpg,a,train", "y.jpg,b,test", "z.jpg,c,")
    with pytest.warns(DistcamWarning) as warned:
        data = open_data(str(file))
    assert any(
        "1 images are of no known split (empty) and are left out, such as z.jpg" in str(each.message) for each in warned
    )
    assert {name: split.names.tolist() for name, split in data.parts.items()} == {"base": ["x.jpg"], "novel": ["y.jpg"]}


# --- galleries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [".", "train", "val"])
def test_syncing_split_folders_or_one_of_them_labels_by_class_as_building_does(
    part: str, tmp_path: Path, small_encoder
) -> None:
    for n, name in enumerate(("train/cat/1", "train/dog/2", "val/cat/3")):
        file = tmp_path / "ds" / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 40 * n + 20, np.uint8)).save(file)
    with pytest.warns(DistcamWarning, match="taken for splits"):
        gallery = Gallery.build(tmp_path / "ds", small_encoder, out=tmp_path / "g", metric="l2")
    new = tmp_path / "ds" / ("val/dog" if part == "." else f"{part}/dog") / "9.jpg"
    new.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(new)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DistcamWarning)
        gallery.sync(tmp_path / "ds" / part, small_encoder, settle=0)
    found = {record.path: (record.label, record.columns["split"]) for record in gallery.records(gallery.ids)}
    assert found["train/cat/1.jpg"] == ("cat", "train")
    assert found["val/cat/3.jpg"] == ("cat", "val")
    assert found[new.relative_to(tmp_path / "ds").as_posix()] == ("dog", "val" if part != "train" else "train")
