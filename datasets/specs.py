"""Data sets by name: `omniglot:vinyals@FOLDER`, `cub:chen@FOLDER`, `photos/`."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from ..errors import InputError
from .cifar_fs import cifar_fs
from .class_folders import folder
from .cub import cub, mini_to_cub
from .few_shot import FewShotData
from .mini_imagenet import mini_imagenet, tiered_imagenet
from .omniglot import omniglot

__all__ = ["DATA_SETS", "open_data"]

DATA_SETS: dict[str, Callable[[Path, str | None], FewShotData]] = {
    "omniglot": omniglot,
    "miniimagenet": mini_imagenet,
    "tieredimagenet": tiered_imagenet,
    "cifar-fs": cifar_fs,
    "cub": cub,
    "mini-to-cub": mini_to_cub,
    "folder": folder,
}


def open_data(spec: str) -> FewShotData:
    """The data set that `NAME[:SPLIT]@FOLDER` means; a folder alone is `folder@FOLDER`.

    Args:
        spec: for instance `omniglot:vinyals@data/omniglot`, `miniimagenet:ravi@data/mini`, `cub:chen@CUB_200_2011`,
            `mini-to-cub@data/mini,CUB_200_2011`, `folder:split.csv@photos`, `folder:val@photos` (one of its splits),
            `photos`, or a table `photos.csv`.

    Raises:
        InputError: an unknown name, a split that has to be named, or files that are not there.
    """
    name, at, place = spec.partition("@")
    if not at or Path(spec).exists():
        name, split, place = "folder", "", spec
        if spec.partition(":")[0].lower() in DATA_SETS and not Path(spec).exists():
            raise InputError(f"{spec}: say where the files are, as in {spec}@FOLDER")
    else:
        name, _, split = name.partition(":")
    key = name.lower()
    if key not in DATA_SETS:
        near = get_close_matches(key, DATA_SETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(DATA_SETS)}"
        raise InputError(f"no data set {name!r}{hint}")
    if key == "folder" and place.lower().endswith(".csv") and Path(place).is_file():
        return folder(Path(place), split or None)
    if key == "folder" and place.lower().endswith(".csv") and Path(place).is_file():
        return folder(Path(place), split or None)
    if not place or not all(Path(part).is_dir() for part in place.split(",") if key == "mini-to-cub" or part == place):
        what = "neither a folder nor a CSV with path and label" if key == "folder" else "no folder"
        raise InputError(f"{spec}: {place or 'nothing'} is {what}")
    return DATA_SETS[key](Path(place), split or None)
