"""CIFAR-FS: the 100 classes of CIFAR-100 divided 64/16/20."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .archives.arrays import data_of_arrays, first_that_exists, read_pickled_images
from .class_folders import data_of_classes, read_class_lists
from .few_shot import FewShotData

STEMS = {"base": "train", "val": "val", "novel": "test"}


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
