"""miniImageNet, tieredImageNet, CIFAR-FS and CUB-200-2011, as lists of files or as the archives handed around.

Five few-shot splits go by the name of CUB: results on different ones cannot be compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..images.tables import header_of, rows_of
from .archives.arrays import data_of_arrays, encoded_pngs, first_that_exists, read_npz, read_pickled_images
from .archives.restricted_pickle import array_of, read_pickle
from .class_folders import class_folders, data_of_classes, read_class_lists
from .few_shot import FewShotData, SomeImages, Split, data_of_files

MINI_SPLITS = {
    "ravi": "64/16/20, the usual one (Ravi & Larochelle)",
    "vinyals": "64/16/20, the older one with other classes",
}
STEMS = {"base": "train", "val": "val", "novel": "test"}
N_MINI = {"base": 64, "val": 16, "novel": 20}
_PICKLES = ("mini-imagenet-cache-{}.pkl", "miniImageNet_category_split_{}.pickle", "miniImageNet_{}.pickle")
_PHASE = {"base": "train_phase_train", "val": "val", "novel": "test"}


def mini_imagenet(root: Path, split: str | None = None) -> FewShotData:
    """MiniImageNet with 64/16/20 classes, as train.csv, val.csv and test.csv, or as pickles.

    The tables have the columns `filename,label` or `class_name,image_name`. They lie in `root`, `root/splits/<split>`
    or `root/<split>`, the images in `root`, `root/images` or a folder per class in one of them. The splits have tables
    of the same names, so one of `MINI_SPLITS` must be named.
    """
    if split not in MINI_SPLITS:
        known = ", ".join(f"miniimagenet:{name} ({rule})" for name, rule in MINI_SPLITS.items())
        raise InputError(f"miniImageNet has two splits of the same sizes and file names; choose {known}")
    name = f"miniimagenet:{split}"
    tables: dict[str, Path] = {}
    for place in (root / "splits" / split, root / split, root):
        tables = tables or first_that_exists(place, ["{}.csv"], STEMS)
    if tables:
        data = data_of_files(name, root, {part: _read_table(file, root, part) for part, file in tables.items()})
    else:
        files = first_that_exists(root, _PICKLES, STEMS) or first_that_exists(root, _PICKLES, _PHASE)
        if not files:
            raise InputError(f"{root}: expected train.csv, val.csv and test.csv, or mini-imagenet-cache-train.pkl, …")
        data = data_of_arrays(name, files, read_pickled_images)
    found = {part: len(own.class_names) for part, own in data.parts.items()}
    if found != N_MINI:
        raise InputError(f"{data.name}: expected {N_MINI} classes, found {found}; is this another split?")
    return data


def tiered_imagenet(root: Path, split: str | None = None) -> FewShotData:
    """tieredImageNet, 351/97/160 classes.

    As `{train,val,test}_images_png.pkl` or `_images.npz` and `_labels.pkl`, as folders train, val and test of class
    folders, or as class lists train.json, … and a folder per class.
    """
    if split is not None:
        raise InputError(f"tieredImageNet has one split only; leave {split!r} out")
    name = "tieredimagenet"
    if files := first_that_exists(root, ["{}_images_png.pkl"], STEMS):
        return data_of_arrays(name, files, lambda file: encoded_pngs(file, _tiered_labels(file)))
    if files := first_that_exists(root, ["{}_images.npz"], STEMS):
        return data_of_arrays(name, files, lambda file: read_npz(file, _tiered_labels(file)))
    if folders := first_that_exists(root, ["{}"], STEMS):
        classes = {part: [f"{place.name}/{label}" for label in class_folders(place)] for part, place in folders.items()}
        return data_of_classes(name, root, classes)
    return data_of_classes(name, root, read_class_lists(root))


def _read_table(file: Path, root: Path, part: str) -> tuple[list[str], list[str]]:
    """Paths and labels of a table in either layout."""
    columns = set(header_of(file))
    for image, label in (("filename", "label"), ("image_name", "class_name")):
        if {image, label} <= columns:
            rows = [row for _, row in rows_of(file, needed=(image, label))]
            names, labels = [row[image] for row in rows], [row[label] for row in rows]
            if not rows:
                return [], []
            below = ("{name}", "{label}/{name}", f"{STEMS[part]}/{{name}}", f"{STEMS[part]}/{{label}}/{{name}}")
            places = [prefix + place for prefix in ("images/", "") for place in below]
            first = [place.format(name=names[0], label=labels[0]) for place in places]
            there = next((place for place, path in zip(places, first, strict=True) if (root / path).is_file()), None)
            if there is None:
                where = f"neither {', '.join(first[:2])} nor in another usual place"
                raise InputError(f"{root}: the tables name {names[0]}, which is {where}")
            return [there.format(name=name, label=own) for name, own in zip(names, labels, strict=True)], labels
    expected, got = "the columns filename,label or class_name,image_name", ", ".join(sorted(columns))
    raise InputError(f"{file}: expected {expected}; got {got}")


def _tiered_labels(images: Path) -> list[str]:
    """Class names beside an archive of images."""
    file = images.with_name(images.name.partition("_images")[0] + "_labels.pkl")
    content = read_pickle(file)
    if not isinstance(content, dict) or "label_specific" not in content:
        raise InputError(f"{file}: expected a dictionary with label_specific")
    numbers = array_of(content["label_specific"], f"{file}: label_specific").tolist()
    texts = content.get("label_specific_str")
    stem = images.name.partition("_")[0]  # the numbers start at 0 in every part
    named = texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else []
    if numbers and len(named) > max(numbers):
        return [f"{stem}/{number:03d} {named[number]}" for number in numbers]
    return [f"{stem}/{number:03d}" for number in numbers]


def cifar_fs(root: Path, split: str | None = None) -> FewShotData:
    """CIFAR-FS: `data/<class>/*.png` with `splits/bertinetto/{train,val,test}.txt`, or the pickles `CIFAR_FS_*.pickle`.

    Source: Bertinetto et al. 2019, arXiv:1805.08136, §4.
    """
    if split not in (None, "bertinetto"):
        raise InputError(f"CIFAR-FS has one split only, bertinetto; got {split!r}")
    if files := first_that_exists(root, ["CIFAR_FS_{}.pickle"], STEMS):
        return data_of_arrays("cifar-fs", files, read_pickled_images)
    for place in (root, root / "cifar100"):
        if (lists := place / "splits" / "bertinetto").is_dir():
            return data_of_classes("cifar-fs", place, read_class_lists(lists, ".txt"), under="data")
    raise InputError(f"{root}: expected data/ with splits/bertinetto/train.txt, …, or CIFAR_FS_train.pickle, …")


CUB_SPLITS = {
    "chen": "100/50/50 by rule: of the sorted folders every second is base, the others val and novel in turn",
    "hilliard": "100/50/50, lists splits/hilliard/{train,val,test}.json beside the images",
    "easyfsl": "140/30/30, lists splits/easyfsl/{train,val,test}.json beside the images",
    "cam-loss": "120/30/50, the sizes of the CAM-loss paper, which published no list; drawn here by a fixed rule",
}
_CLASSES = 200


def cub(root: Path, split: str | None = None) -> FewShotData:
    """CUB-200-2011 with one of `CUB_SPLITS`, or a folder with the class lists train.json, val.json and test.json."""
    if split is None or (split not in CUB_SPLITS and not Path(split).is_dir()):
        known = "; ".join(f"cub:{name} ({rule})" for name, rule in CUB_SPLITS.items())
        raise InputError(
            f"{'a bare CUB' if split is None else f'the CUB split {split!r}'} says too little: results on different "
            f"splits cannot be compared. Choose {known}; or cub:FOLDER with train.json, val.json and test.json"
        )
    images = root / "images" if (root / "images").is_dir() else root
    if split in ("chen", "cam-loss"):
        names = class_folders(images)
        if len(names) != _CLASSES:
            raise InputError(f"cub:{split} divides the {_CLASSES} class folders of CUB-200-2011; found {len(names)}")
        if split == "chen":
            classes = {"base": names[0::2], "val": names[1::4], "novel": names[3::4]}
        else:  # the order of PCG64's raw 64-bit words with seed 0: the same on every machine and in every NumPy
            order = np.argsort(np.random.PCG64(0).random_raw(_CLASSES), kind="stable")
            drawn = [names[i] for i in order]
            classes = {"base": drawn[:120], "val": drawn[120:150], "novel": drawn[150:]}
    else:
        lists = root / "splits" / split if split in CUB_SPLITS else Path(split)
        if not lists.is_dir():
            raise InputError(f"cub:{split} needs its class lists train.json, val.json and test.json in {lists}")
        classes = read_class_lists(lists)
    return data_of_classes(f"cub:{Path(split).name}", images, classes)


def mini_to_cub(roots: Path, split: str | None = None) -> FewShotData:
    """Trained on miniImageNet, tested on birds: base is all 100 miniImageNet classes, val and novel those of cub:chen.

    `roots` are both folders with a comma between them, miniImageNet's first; `split` is miniImageNet's.

    Source: Chen et al. 2019, arXiv:1904.04232, §4.4.
    """
    first, comma, second = str(roots).partition(",")
    if not comma:
        raise InputError(f"expected the folders of miniImageNet and CUB, as in MINI,CUB; got {roots}")
    mini, birds = mini_imagenet(Path(first), split or "ravi"), cub(Path(second), "chen")
    names, labels = (np.concatenate([getattr(part, what) for part in mini]) for what in ("names", "labels"))
    places = [(part.images, row) for part in mini for row in range(len(part))]
    parts = {"base": Split("mini-to-cub/base", names, labels, SomeImages(places[0][0].root, places))}
    for part in ("val", "novel"):
        parts[part] = Split(f"mini-to-cub/{part}", birds[part].names, birds[part].labels, birds[part].images)
    return FewShotData("mini-to-cub", parts)
