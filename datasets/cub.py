"""CUB-200-2011: for retrieval, under its incompatible few-shot splits, and as the target of miniImageNet's test.

Source: Wah et al. 2011. Five few-shot splits go by its name: results on different ones cannot be compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .class_folders import class_folders, data_of_classes, read_class_lists
from .few_shot import FewShotData, SomeImages, Split
from .layouts import DatasetRecord, Layout, fields_of, whole_number
from .mini_imagenet import mini_imagenet

CUB_SPLITS = {
    "chen": "100/50/50 by rule: of the sorted folders every second is base, the others val and novel in turn",
    "hilliard": "100/50/50, lists splits/hilliard/{train,val,test}.json beside the images",
    "easyfsl": "140/30/30, lists splits/easyfsl/{train,val,test}.json beside the images",
    "cam-loss": "120/30/50, the sizes of the CAM-loss paper, which published no list; drawn here by a fixed rule",
}
_CLASSES = 200


def _read(root: Path) -> tuple[DatasetRecord, ...]:
    """Classes 1–100 are for training: not `train_test_split.txt`, whose halves share all classes."""
    images, labels, classes = root / "images.txt", root / "image_class_labels.txt", root / "classes.txt"
    number_of = {image: whole_number(number, labels) for image, number in fields_of(labels, "image", "class")}
    name_of = {whole_number(number, classes): name for number, name in fields_of(classes, "id", "name")}
    records = []
    for image, path in fields_of(images, "image", "path"):
        number = number_of.get(image, -1)
        if number not in name_of:
            raise InputError(f"{images}: image {image} has no class in {labels.name}, or one that classes.txt lacks")
        records.append(DatasetRecord(f"images/{path}", name_of[number], "train" if number <= 100 else "test"))
    return tuple(records)


CUB: Layout = Layout(
    "CUB-200-2011",
    "CUB_200_2011",
    (("images.txt", "image_class_labels.txt", "classes.txt"),),
    {"train": ("train", 5_864, 100), "test": ("test", 5_924, 100)},
    _read,
    "images/ with a folder for each class",
)


def cub(root: Path, split: str | None = None) -> FewShotData:
    """CUB-200-2011 with a named few-shot split.

    Args:
        root: CUB_200_2011, or its folder `images`.
        split: a key of `CUB_SPLITS`, or a folder with the class lists train.json, val.json and test.json.
    """
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

    Args:
        roots: both folders with a comma between them, miniImageNet's first.
        split: miniImageNet's, `ravi` if left out; all its parts are base.

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
