"""Data sets by name: `cub:FOLDER` to train on, `omniglot:vinyals@FOLDER` for few-shot learning, `market`, `veri`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..images import Listing
from ..images.splits import find_split_folders
from ..remarks import remark
from .cifar import CIFAR
from .class_folders import folder
from .few_shot import FewShotData
from .few_shot_benchmarks import cifar_fs, cub, mini_imagenet, mini_to_cub, tiered_imagenet
from .mask_benchmarks import voc_labels
from .omniglot import omniglot
from .reid_benchmarks import read_cuhk03, read_market, read_msmt17, read_vehicleid, read_veri
from .reid_records import FormatName, ReidData, read_csv, read_folder
from .retrieval import LAYOUTS, load_dataset

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
    """The few-shot data set that `NAME[:SPLIT]@FOLDER` means; a folder alone is `folder@FOLDER`.

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
    is_table = key == "folder" and place.lower().endswith(".csv") and Path(place).is_file()
    places = place.split(",") if key == "mini-to-cub" else [place]
    if not is_table and not (place and all(Path(part).is_dir() for part in places)):
        what = "neither a folder nor a CSV with path and label" if key == "folder" else "no folder"
        raise InputError(f"{spec}: {place or 'nothing'} is {what}")
    return DATA_SETS[key](Path(place), split or None)


class _Format(NamedTuple):
    """A layout of re-identification data: its reader, what a folder of it holds, and the reader's options."""

    read: Callable[..., ReidData]
    mark: str | None
    options: tuple[str, ...] = ()


_TABLE: FormatName = "csv"
_REID: Mapping[FormatName, _Format] = {
    "market": _Format(read_market, "bounding_box_test"),
    "duke": _Format(read_market, None),
    "veri": _Format(read_veri, "image_query"),
    "msmt17": _Format(read_msmt17, "list_gallery.txt"),
    "cuhk03": _Format(read_cuhk03, "cuhk03_new_protocol_config_*.mat", ("boxes",)),
    "vehicleid": _Format(read_vehicleid, "train_test_split", ("test", "seed")),
    "csv": _Format(read_csv, "images.csv", ("identity", "camera", "role")),
    "folder": _Format(read_folder, None),
}


def read_data(source: str | os.PathLike[str], *, format: str = "auto", **options: Any) -> ReidData:
    """A re-identification data set from a folder or a CSV file; images are listed, not opened.

    Args:
        source: the folder (or one that holds nothing but it), or a CSV file.
        format: `"auto"` looks at what the folder holds; or `market` (which knows DukeMTMC's and CUHK03-NP's names too),
            `duke`, `msmt17`, `cuhk03`, `veri`, `vehicleid`, `csv`, or
            `folder` (of splits, with a folder for each identity).
        **options: cuhk03: `boxes`; vehicleid: `test`, `seed`; csv: `identity`, `camera`, `role` (names of columns).

    Raises:
        InputError: there is no such folder, it is of no known format, or its lists are damaged.
    """
    if format not in ("auto", *_REID):
        raise InputError(f"format must be auto or one of {', '.join(_REID)}; got {format!r}")
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path}: no such folder or table; data sets are not downloaded, see docs/guides/reid.md")
    root, found = path, None if path.is_dir() else _TABLE
    if found is None:  # by its mark, in the folder or in the only one inside
        inside = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
        folders = (path, *(inside if len(inside) == 1 and inside[0].is_dir() else []))
        marked = ((at, name) for at in folders for name, each in _REID.items() if each.mark and any(at.glob(each.mark)))
        root, found = next(marked, (path, None))
    if format == "auto" and found is None and (splits := find_split_folders(path)) is not None and splits.names:
        found = "folder"
    name = found if format == "auto" else next(name for name in _REID if name == format)
    if name is None:
        marks = ", ".join(f"{each.mark} ({name})" for name, each in _REID.items() if each.mark is not None)
        raise InputError(
            f"{path} is of no known format; looked for {marks}, folders of splits (train, query, gallery, test) with a "
            "folder for each identity; or give a CSV file"
        )
    if strange := set(options) - set(_REID[name].options):
        raise InputError(f"the {name} format has no option {', '.join(sorted(strange))}")
    if name == "csv" and root.is_dir():
        root = root / "images.csv"
    return _REID[name].read(root, **options)


def named_benchmark(images: str, base: Path) -> tuple[str, Path, str] | None:
    """Data set, folder, and the split behind a `#`, of a recipe's `images = "cub:FOLDER"`; None for any other path.

    There are those of `LAYOUTS`, cifar10, cifar100, and voc, which may say what list it trains on.
    """
    kind, colon, place = images.partition(":")
    if not colon or kind not in (*LAYOUTS, *CIFAR, "voc") or (base / images).exists():
        return None
    place, mark, split = place.partition("#")
    if mark and kind != "voc":
        raise InputError(f"{images}: {kind} has one division; leave #{split} out")
    return kind, (base / place).absolute(), split


def benchmark_listing(kind: str, folder: Path, split: str, *, strict: bool, quiet: bool) -> Listing:
    """The images of a data set, with the literature's division as a column; what its copy lacks is remarked on."""
    if kind == "voc":
        return voc_labels(folder, split or "train")
    found = load_dataset(folder, layout=kind, strict=strict)
    if found.problems and not quiet:
        remark(f"{folder}: {'; '.join(found.problems)}")
    return found.listing()
