"""Retrieval benchmarks as their archives unpack: markers, lists, official counts.

CUB-200-2011 (Wah et al. 2011), Cars196 (Krause et al. 2013), Stanford Online Products (Oh Song et al. 2016), In-Shop
Clothes Retrieval (Liu et al. 2016); and for classification Stanford Dogs (Khosla et al. 2011) and ILSVRC 2012
(Russakovsky et al. 2015).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import InputError
from ..images.boxes.annotations import read_file
from ..images.tables import lines_of

Role = Literal["query", "gallery", "both"]


class DatasetRecord(NamedTuple):
    """One image of a dataset.

    Attributes:
        path: relative to the dataset's root, with forward slashes; absolute where a table leads out of it.
        label: its class.
        split: `"train"`, `"test"`, …; `"all"` where the source knows no splits.
        role: whether it is searched for, searched in, or both.
    """

    path: str
    label: str
    split: str
    role: Role = "both"


@dataclass(frozen=True)
class Layout:
    """A benchmark's archive."""

    title: str
    folder: str  # that the archive unpacks into; the user may point at it or at its parent
    markers: tuple[tuple[str, ...], ...]  # sets of files; any one complete set tells the layout
    counts: Mapping[str, tuple[str, int, int]]  # part (a split or role) → (split, images, classes), as published
    read: Callable[[Path], tuple[DatasetRecord, ...]]
    images: str  # what a copy must hold besides the lists, for the error where no image is there

    def find(self, path: Path) -> Path | None:
        """The archive's root, at a path or in its usual sub-folder."""
        for root in (path, path / self.folder):
            if any(all((root / file).exists() for file in files) for files in self.markers):
                return root
        return None


def fields_of(file: Path, *columns: str, skip: int = 0) -> Iterator[list[str]]:
    """The fields of every line after the first `skip`; as many as there are columns, the last may hold blanks."""
    for number, line in lines_of(file, is_utf8=True)[skip:]:
        fields = line.split(maxsplit=len(columns) - 1)
        if len(fields) != len(columns):
            raise InputError(f"{file} line {number}: expected {' '.join(columns)}; got {line[:80]!r}")
        yield fields


def whole_number(text: str, file: Path | str) -> int:
    """A number in a list; InputError names the file."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{file}: expected a whole number, got {text[:80]!r}") from None


def _read_cub(root: Path, halves: str = "") -> tuple[DatasetRecord, ...]:
    """Classes 1–100 are for training: not `train_test_split.txt`, whose halves share all classes; or these `halves`."""
    images, labels, classes = root / "images.txt", root / "image_class_labels.txt", root / "classes.txt"
    number_of = {image: whole_number(number, labels) for image, number in fields_of(labels, "image", "class")}
    name_of = {whole_number(number, classes): name for number, name in fields_of(classes, "id", "name")}
    half_of = dict(fields_of(root / halves, "image", "half")) if halves else {}
    records = []
    for image, path in fields_of(images, "image", "path"):
        number, half = number_of.get(image, -1), half_of.get(image)
        if number not in name_of:
            raise InputError(f"{images}: image {image} has no class in {labels.name}, or one that classes.txt lacks")
        if halves and half not in ("0", "1"):
            raise InputError(f"{root / halves}: expected 0 or 1 for image {image}")
        is_train = half == "1" if halves else number <= 100
        records.append(DatasetRecord(f"images/{path}", name_of[number], "train" if is_train else "test"))
    return tuple(records)


CUB = Layout(
    "CUB-200-2011",
    "CUB_200_2011",
    (("images.txt", "image_class_labels.txt", "classes.txt"),),
    {"train": ("train", 5_864, 100), "test": ("test", 5_924, 100)},
    _read_cub,
    "images/ with a folder for each class",
)


_HALVES = "train_test_split.txt"  # which have the same 200 classes
CUB_CLASSIFICATION = Layout(
    "CUB-200-2011 for classification",
    CUB.folder,
    ((*CUB.markers[0], _HALVES),),
    {"train": ("train", 5_994, 200), "test": ("test", 5_794, 200)},
    partial(_read_cub, halves=_HALVES),
    CUB.images,
)


def _read_sop(root: Path) -> tuple[DatasetRecord, ...]:
    columns = ("image_id", "class_id", "super_class_id", "path")
    return tuple(
        DatasetRecord(path, number, split)
        for split in ("train", "test")
        for _, number, _, path in fields_of(root / f"Ebay_{split}.txt", *columns, skip=1)
    )


SOP = Layout(
    "Stanford Online Products",
    "Stanford_Online_Products",
    (("Ebay_train.txt", "Ebay_test.txt"),),
    {"train": ("train", 59_551, 11_318), "test": ("test", 60_502, 11_316)},
    _read_sop,
    "the folders of the archive, bicycle_final/ to toaster_final/",
)


def _read_inshop(root: Path) -> tuple[DatasetRecord, ...]:
    file = next(file for place in ("Eval", "Anno", ".") if (file := root / place / "list_eval_partition.txt").exists())
    places = [place for place in ("Img/img", "Img/img_highres", "img", "img_highres") if (root / place).is_dir()]
    images = places[0] if places else "img"
    records = []
    for path, item, status in fields_of(file, "image_name", "item_id", "evaluation_status", skip=2):
        path = f"{images}/{path.removeprefix('img/')}"
        if status == "train":
            records.append(DatasetRecord(path, item, "train"))
        elif status == "query" or status == "gallery":
            records.append(DatasetRecord(path, item, "test", status))  # type: ignore[arg-type]
        else:
            raise InputError(f"{file}: expected train, query or gallery, got {status[:80]!r} for {path}")
    return tuple(records)


INSHOP = Layout(
    "In-Shop Clothes Retrieval",
    "In-shop Clothes Retrieval Benchmark",
    tuple((f"{place}list_eval_partition.txt",) for place in ("Eval/", "Anno/", "")),
    {"train": ("train", 25_882, 3_997), "query": ("test", 14_218, 3_985), "gallery": ("test", 12_612, 3_985)},
    _read_inshop,
    "img/ or img_highres/, perhaps in Img/, which the archive holds as img.zip and img_highres.zip",
)


_Car = tuple[str, int, str]  # path, number of the class, its name


def _read_cars(root: Path) -> tuple[DatasetRecord, ...]:
    copies: dict[str, tuple[tuple[str, ...], Callable[[Path], list[_Car]]]] = {
        "car_data": (("names.csv", "anno_train.csv", "anno_test.csv"), _tables),
        "car_ims": (("cars_annos.mat",), _whole),
        "cars_train": (("devkit/cars_train_annos.mat",), _devkit),
    }
    listed = {folder: read for folder, (files, read) in copies.items() if all((root / file).exists() for file in files)}
    read = next((read for folder, read in listed.items() if (root / folder).is_dir()), next(iter(listed.values())))
    ordered = sorted(read(root), key=lambda image: (image[1], image[0]))
    return tuple(DatasetRecord(path, name, "train" if number <= 98 else "test") for path, number, name in ordered)


def _whole(root: Path) -> list[_Car]:
    """The one archive `car_ims`, with the labels of all images in one file."""
    file = root / "cars_annos.mat"
    names, rows = mat_list(file, "class_names"), mat_list(file, "annotations")
    return [_car(str(row["relative_im_path"]), int(row["class"]), names, file) for row in rows]


def _tables(root: Path) -> list[_Car]:
    """The Kaggle copy: tables without a header (file, box, class), and a folder for each class."""
    names = [line.strip('"') for _, line in lines_of(root / "names.csv", is_utf8=True)]
    inside = "car_data/car_data" if (root / "car_data" / "car_data").is_dir() else "car_data"
    found = []
    for half in ("train", "test"):
        file = root / f"anno_{half}.csv"
        for row in csv.reader(line for _, line in lines_of(file, is_utf8=True)):
            _, number, name = _car(row[0], whole_number(row[-1], file), names, file)
            found.append((f"{inside}/{half}/{name.replace('/', '-')}/{row[0]}", number, name))
    return found


def _devkit(root: Path) -> list[_Car]:
    """The archives `cars_train`, `cars_test` and `devkit`, with the labels of the test images beside or in the kit."""
    kit, labels = root / "devkit", "cars_test_annos_withlabels.mat"
    names = mat_list(kit / "cars_meta.mat", "class_names")
    found = []
    for folder, file in (("cars_train", kit / "cars_train_annos.mat"), ("cars_test", root / labels)):
        file = file if file.exists() else kit / labels
        inside = f"{folder}/{folder}" if (root / folder / folder).is_dir() else folder  # as Kaggle packs it
        rows = mat_list(file, "annotations")
        found += [_car(f"{inside}/{row['fname']}", int(row["class"]), names, file) for row in rows]
    return found


def _car(path: str, number: int, names: Sequence[str], file: Path) -> _Car:
    if not 1 <= number <= len(names):
        raise InputError(f"{file}: expected a class from 1 to {len(names)}, got {number} for {path}")
    return path, number, str(names[number - 1])


def mat_list(file: Path, name: str, kind: type | None = None) -> list[Any]:
    """A variable of a MATLAB file, as a list; InputError where it is not there, or not of this kind."""
    from scipy.io import loadmat  # a third of a second, which most layouts can do without

    try:
        found = np.atleast_1d(loadmat(file, squeeze_me=True, variable_names=[name])[name])
        return list(found if kind is None else found.astype(kind).ravel().tolist())
    except Exception as error:  # a damaged file raises whatever it likes
        raise InputError(f"{file}: expected a MATLAB file with {name!r}; {error}") from error


CARS = Layout(
    "Cars196",
    "stanford_cars",
    (
        ("names.csv", "anno_train.csv", "anno_test.csv"),
        ("cars_annos.mat",),
        ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
        ("devkit/cars_train_annos.mat", "devkit/cars_test_annos_withlabels.mat"),
    ),
    {"train": ("train", 8_054, 98), "test": ("test", 8_131, 98)},
    _read_cars,
    "car_ims/ with cars_annos.mat (the archive car_ims.tgz), or car_data/ with names.csv, anno_train.csv and "
    "anno_test.csv, or cars_train/ and cars_test/ with devkit/ and cars_test_annos_withlabels.mat; the images of "
    "cars_train/ and cars_test/ have other numbers than those of car_ims/, so cars_annos.mat does not label them",
)


def _read_dogs(root: Path) -> tuple[DatasetRecord, ...]:
    lists = root if (root / "train_list.mat").exists() else root / "lists"
    return tuple(
        DatasetRecord(f"Images/{path}", path.partition("/")[0], split)
        for split in ("train", "test")
        for path in mat_list(lists / f"{split}_list.mat", "file_list", str)
    )


DOGS = Layout(
    "Stanford Dogs",
    "stanford_dogs",
    (("train_list.mat", "test_list.mat"), ("lists/train_list.mat", "lists/test_list.mat")),
    {"train": ("train", 12_000, 120), "test": ("test", 8_580, 120)},
    _read_dogs,
    "Images/ with a folder for each class, which the archive holds as images.tar",
)


def _read_ilsvrc(root: Path) -> tuple[DatasetRecord, ...]:
    """Training images by their folders; those for validation, which lie side by side, by their annotations."""
    images, annotations = root / "Data" / "CLS-LOC", root / "Annotations" / "CLS-LOC" / "val"
    records = []
    for folder in sorted(place for place in (images / "train").iterdir() if place.is_dir()):
        names = sorted(file.name for file in folder.glob("*.JPEG"))
        records += [DatasetRecord(f"Data/CLS-LOC/train/{folder.name}/{name}", folder.name, "train") for name in names]
    for file in sorted(annotations.glob("*.xml")):
        boxes = [box for found in read_file(file).annotations.values() for box in found.boxes]
        labels = {box.label for box in boxes if box.label is not None}
        if len(labels) != 1:
            raise InputError(f"{file}: expected objects of one class, got {', '.join(sorted(labels)) or 'none'}")
        records.append(DatasetRecord(f"Data/CLS-LOC/val/{file.stem}.JPEG", labels.pop(), "test"))
    return tuple(records)


ILSVRC = Layout(
    "ILSVRC 2012",
    "ILSVRC",
    (("Data/CLS-LOC/train", "Annotations/CLS-LOC/val"),),
    {"train": ("train", 1_281_167, 1_000), "test": ("test", 50_000, 1_000)},
    _read_ilsvrc,
    "Data/CLS-LOC/train/ with a folder for each class, and Data/CLS-LOC/val/",
)
