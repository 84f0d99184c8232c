"""Data sets by name in a recipe, from miniature trees in the layouts of their archives."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from distcam.datasets.archives.restricted_pickle import read_pickle
from distcam.datasets.cifar import CIFAR
from distcam.errors import InputError
from distcam.images import Transform
from distcam.remarks import DistcamWarning
from distcam.synthetic.miniatures import write_miniature
from distcam.training.data.splits import DataSettings, load_splits, settled_parts


def picture(file, colour=(9, 9, 9)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).save(file)


def opened(folder, images, **options):
    settings = DataSettings(images=images, size=16, **options)
    return load_splits(settings, Transform(16), folder=folder, cache=folder)


@pytest.fixture
def cub(tmp_path):
    root = tmp_path / "CUB_200_2011"
    names = {n: f"{n:03d}.Bird" for n in (1, 100, 101, 200)}
    images = [(i, number, f"{names[number]}/{i}.jpg") for i, number in enumerate(sorted([*names] * 2), 1)]
    for _, _, path in images:
        picture(root / "images" / path)
    (root / "images.txt").write_text("".join(f"{i} {path}\n" for i, _, path in images))
    (root / "image_class_labels.txt").write_text("".join(f"{i} {number}\n" for i, number, _ in images))
    (root / "classes.txt").write_text("".join(f"{number} {name}\n" for number, name in names.items()))
    return tmp_path


def test_cub_trains_on_its_first_hundred_classes_and_says_what_the_copy_lacks(cub) -> None:
    with pytest.warns(DistcamWarning, match="expected 5,864 images of 100 classes, got 4 images of 2 classes"):
        data = opened(cub, "cub:CUB_200_2011")
    assert {name: own.class_names for name, own in data.sets.items()} == {
        "train": ("001.Bird", "100.Bird"),
        "test": ("101.Bird", "200.Bird"),
    }
    assert [len(own) for own in data.sets.values()] == [4, 4]
    assert (data.split.column, data.split.parts) == ("split", {"train": "train", "test": "test"})
    with pytest.raises(InputError, match="is not the official CUB-200-2011"):
        opened(cub, "cub:CUB_200_2011", strict=True)


def test_the_parts_are_known_before_a_run_without_a_word(cub) -> None:
    settings = DataSettings(images="cub:.", size=16)  # the folder around the archive
    split, parts = settled_parts(settings, folder=cub)
    assert {name: (part.images, len(part.classes)) for name, part in parts.items()} == {"train": (4, 2), "test": (4, 2)}
    assert split.column == "split"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("cars:CUB_200_2011", "no Cars196; expected"),
        ("cub:nowhere", "nothing is there"),
        ("cub:CUB_200_2011#train", "cub has one division; leave #train out"),
        ("cifar10:CUB_200_2011", "expected batches.meta, data_batch_1, .* batches.meta is missing"),
    ],
)
def test_what_is_not_there_is_one_sentence(cub, images, message) -> None:
    with pytest.raises(InputError, match=message):
        opened(cub, images)


# --- VOC --------------------------------------------------------------------------------------------------------------


def test_voc_trains_on_the_list_that_is_named_with_the_classes_of_its_annotations(tmp_path) -> None:
    root = tmp_path / "VOC2012"
    shown = {"a": ["cat", "dog", "cat"], "b": ["boat"], "c": ["dog"]}
    for name, objects in shown.items():
        picture(root / "JPEGImages" / f"{name}.jpg")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        text = "".join(f"<object><name>{each}</name>{box}</object>" for each in objects)
        file = root / "Annotations" / f"{name}.xml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"<annotation>{text}</annotation>")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\n")
    (lists / "trainaug.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    data = opened(tmp_path, "voc:VOC2012#trainaug")
    train, test = data.sets["train"], data.sets["test"]
    assert train.class_names == test.class_names == ("boat", "cat", "dog")
    assert train.labels.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert test.labels.tolist() == [[0, 0, 1]]
    (root / "Annotations" / "c.xml").unlink()
    with pytest.raises(InputError, match=r"expected its classes in Annotations/c\.xml"):
        opened(tmp_path, "voc:VOC2012")


# --- CIFAR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_archive_once(tmp_path, name, monkeypatch) -> None:
    write_miniature(name, tmp_path)
    opened = Counter()
    read = "distcam.datasets.cifar.read_pickle"
    monkeypatch.setattr(read, lambda file: opened.update([file.name]) or read_pickle(file))
    settings = DataSettings(images=f"{name}:.", size=32)
    data = load_splits(settings, Transform(32), folder=tmp_path, cache=tmp_path)
    files = CIFAR[name]
    assert opened == dict.fromkeys([files.names, *(file for part in files.parts.values() for file in part)], 1)
    train, count = data.sets["train"], int(name.removeprefix("cifar"))
    assert train.class_names == data.sets["test"].class_names == tuple(f"class {number}" for number in range(count))
    last = pickle.loads((tmp_path / files.folder / files.parts["train"][-1]).read_bytes())[b"data"][-1]
    expected = torch.from_numpy(last.reshape(3, 32, 32))
    assert torch.equal(train.pixels(torch.tensor([len(train) - 1]))[0], expected)
    _, parts = settled_parts(settings, folder=tmp_path)
    images = {"train": count * len(files.parts["train"]), "test": count}
    assert {part: (found.images, len(found.classes)) for part, found in parts.items()} == {
        part: (number, count) for part, number in images.items()
    }
    assert len(set(train.digests.tolist())) == len(train)
    with pytest.raises(InputError, match=r"\[data.split\] is not used by cifar"):
        settled_parts(settings.changed(split={"novel": 0.5}), folder=tmp_path)


def test_cifar_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch) -> None:
    write_miniature("cifar100", tmp_path)
    monkeypatch.setattr("distcam.training.data.splits.MEMORY_LIMIT", 200 * 3 * 32 * 32)
    assert len(opened(tmp_path, "cifar100:.").sets["train"]) == 100
    with pytest.raises(InputError, match=r"at 33 x 33 pixels takes 0\.0 GiB of memory; choose a smaller data.size"):
        load_splits(DataSettings(images="cifar100:.", size=33), Transform(33), folder=tmp_path, cache=tmp_path)


def test_a_damaged_file_of_cifar_is_named(tmp_path) -> None:
    write_miniature("cifar100", tmp_path)
    file = tmp_path / "cifar-100-python" / "train"
    for content, message in (
        (
            {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]},
            "a label below 100 for each; got uint8 .1, 3072. and 1 labels",
        ),
        ({"data": np.zeros((1, 99), np.uint8), "fine_labels": [0]}, "expected uint8 rows of 3,072"),
        ({"data": np.zeros((1, 3072), np.uint8)}, "expected a dictionary with 'fine_labels'; it has data"),
        ([1], "expected a dictionary with 'data'; it has none"),
    ):
        file.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(InputError, match=message):
            opened(tmp_path, "cifar100:.")
