"""CUB-200-2011 under its incompatible few-shot splits, and the cross-domain test from miniImageNet to CUB.

Five splits go by the name "CUB": results on different ones cannot be compared, so one has to be named.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from .class_folders import class_folders, data_of_classes, read_class_lists
from .few_shot import FewShotData, Split
from .mini_imagenet import mini_imagenet

__all__ = ["CUB_SPLITS", "cub", "mini_to_cub"]

CUB_SPLITS = {
    "chen": "100/50/50 by rule: of the sorted folders every second is base, the others val and novel in turn",
    "hilliard": "100/50/50, lists splits/hilliard/{train,val,test}.json beside the images",
    "easyfsl": "140/30/30, lists splits/easyfsl/{train,val,test}.json beside the images",
    "cam-loss": "120/30/50, the sizes of the CAM-loss paper, which published no list; drawn here by a fixed rule",
}
N_CLASSES = 200


def cub(root: Path, split: str | None = None) -> FewShotData:
    """CUB-200-2011 with a named split.

    Args:
        root: CUB_200_2011, or its folder `images`.
        split: a key of `CUB_SPLITS`, or a folder with the class lists train.json, val.json and test.json.

    Raises:
        InputError: no split, an unknown one, or folders that are not its 200 classes.
    """
    if split is None or (split not in CUB_SPLITS and not Path(split).is_dir()):
        known = "; ".join(f"cub:{name} ({rule})" for name, rule in CUB_SPLITS.items())
        raise InputError(
            f"{'a bare CUB' if split is None else f'the CUB split {split!r}'} says too little: results on different "
            f"splits cannot be compared. Choose {known}; or cub:FOLDER with train.json, val.json and test.json"
        )
    images = _images_folder(root)
    classes = _by_rule(class_folders(images), split) if split in ("chen", "cam-loss") else _from_lists(root, split)
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
    base = Split("mini-to-cub/base", names, labels, _Joined(tuple(mini)))
    parts = {
        part: Split(f"mini-to-cub/{part}", birds[part].names, birds[part].labels, birds[part].images)
        for part in ("val", "novel")
    }
    return FewShotData("mini-to-cub", {"base": base, **parts})


class _Joined:
    """The images of several parts, one after the other."""

    def __init__(self, parts: tuple[Split, ...]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])
        self.root = parts[0].images.root

    def _place(self, index: int) -> tuple[Split, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part], index - int(self._starts[part])

    def __getitem__(self, index: int) -> Image.Image:
        part, row = self._place(index)
        return part.images[row]

    def content(self, index: int) -> bytes:
        part, row = self._place(index)
        return part.images.content(row)


def _images_folder(root: Path) -> Path:
    return root / "images" if (root / "images").is_dir() else root


def _by_rule(names: list[str], split: str) -> dict[str, list[str]]:
    if len(names) != N_CLASSES:
        raise InputError(f"cub:{split} divides the {N_CLASSES} class folders of CUB-200-2011; found {len(names)}")
    if split == "chen":
        return {"base": names[0::2], "val": names[1::4], "novel": names[3::4]}
    # The order of PCG64's raw 64-bit words with seed 0: the same on every machine and in every NumPy.
    order = np.argsort(np.random.PCG64(0).random_raw(N_CLASSES), kind="stable")
    drawn = [names[i] for i in order]
    return {"base": drawn[:120], "val": drawn[120:150], "novel": drawn[150:]}


def _from_lists(root: Path, split: str) -> dict[str, list[str]]:
    lists = Path(split) if Path(split).is_dir() and split not in CUB_SPLITS else root / "splits" / split
    if not lists.is_dir():
        raise InputError(f"cub:{split} needs its class lists train.json, val.json and test.json in {lists}")
    return read_class_lists(lists)
