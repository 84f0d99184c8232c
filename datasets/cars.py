"""Cars196: classes 1–98 are for training and 99–196 for the test. Source: Krause et al. 2013.

The archive's own train and test folders are another split, of the images. Copies may hold the lists of several
packings; the one whose images are there is read.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .layouts import DatasetRecord, Layout, lines_of, whole_number

_Car = tuple[str, int, str]  # path, number of the class, its name


def _read(root: Path) -> tuple[DatasetRecord, ...]:
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
    names = _mat(file, "class_names")
    return [_car(str(row["relative_im_path"]), int(row["class"]), names, file) for row in _mat(file, "annotations")]


def _tables(root: Path) -> list[_Car]:
    """The Kaggle copy: tables without a header (file, box, class), and a folder for each class."""
    names = [line.strip().strip('"') for _, line in lines_of(root / "names.csv")]
    inside = "car_data/car_data" if (root / "car_data" / "car_data").is_dir() else "car_data"
    found = []
    for half in ("train", "test"):
        file = root / f"anno_{half}.csv"
        for row in csv.reader(line for _, line in lines_of(file)):
            _, number, name = _car(row[0], whole_number(row[-1], file), names, file)
            found.append((f"{inside}/{half}/{name.replace('/', '-')}/{row[0]}", number, name))
    return found


def _devkit(root: Path) -> list[_Car]:
    """The archives `cars_train`, `cars_test` and `devkit`, with the labels of the test images beside or in the kit."""
    kit, labels = root / "devkit", "cars_test_annos_withlabels.mat"
    names = _mat(kit / "cars_meta.mat", "class_names")
    found = []
    for folder, file in (("cars_train", kit / "cars_train_annos.mat"), ("cars_test", root / labels)):
        file = file if file.exists() else kit / labels
        inside = f"{folder}/{folder}" if (root / folder / folder).is_dir() else folder  # as Kaggle packs it
        found += [_car(f"{inside}/{row['fname']}", int(row["class"]), names, file) for row in _mat(file, "annotations")]
    return found


def _car(path: str, number: int, names: Sequence[str], file: Path) -> _Car:
    if not 1 <= number <= len(names):
        raise InputError(f"{file}: expected a class from 1 to {len(names)}, got {number} for {path}")
    return path, number, str(names[number - 1])


def _mat(file: Path, name: str) -> Any:
    """A variable of a MATLAB file, as an array of one axis."""
    from scipy.io import loadmat  # a third of a second, which most layouts can do without

    try:
        return np.atleast_1d(loadmat(file, squeeze_me=True, variable_names=[name])[name])
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
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
    _read,
    "car_ims/ with cars_annos.mat (the archive car_ims.tgz), or car_data/ with names.csv, anno_train.csv and "
    "anno_test.csv, or cars_train/ and cars_test/ with devkit/ and cars_test_annos_withlabels.mat; the images of "
    "cars_train/ and cars_test/ have other numbers than those of car_ims/, so cars_annos.mat does not label them",
)
