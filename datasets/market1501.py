"""Data sets whose file names say who is on an image: Market-1501, DukeMTMC-reID, VeRi-776, and CUHK03-NP.

Cameras are counted from 0, as evaluation codes do. Folders are read sorted: the order of a directory is no property of
a data set. Nothing is ever downloaded; DukeMTMC-reID was withdrawn by its authors and only its format is read, for
data that uses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..images import IMAGE_SUFFIXES
from ..remarks import remark
from .reid_records import FormatName, Protocol, ReidData, ReidImage, Role

_NAME = re.compile(r"(-?\d+)_c(\d+)(?:s(\d+))?(?:_f?(\d+))?(?:_(\d+))?[^/]*")
_ROLES: dict[FormatName, dict[str, Role]] = {
    "market": {
        "bounding_box_train": "train",
        "query": "query",
        "bounding_box_test": "gallery",
        "gt_bbox": "multi_query",
    },
    "veri": {"image_train": "train", "image_query": "query", "image_test": "gallery"},
}
_MARKET = {
    "train images": 12_936,
    "train identities": 751,
    "query images": 3_368,
    "query identities": 750,
    "gallery images": 15_913,
    "gallery junk": 3_819,
    "gallery distractors": 2_798,
    "cameras": 6,
}
_DUKE = {"train images": 16_522, "query images": 2_228, "gallery images": 17_661, "cameras": 8}
_VERI = {
    "train images": 37_778,
    "train identities": 576,
    "query images": 1_678,
    "gallery images": 11_579,
    "cameras": 20,
}
_CUHK03 = {
    "detected": {"train images": 7_365, "query images": 1_400, "gallery images": 5_332},
    "labeled": {"train images": 7_368, "query images": 1_400, "gallery images": 5_328},
}
_CUHK03_KEYS = ("filelist", "labels", "camId", "train_idx", "query_idx", "gallery_idx")


class FileName(NamedTuple):
    """Contents of a file name; `camera` is counted from 0."""

    identity: int
    camera: int
    sequence: str | None
    time: str | None


def parse_name(name: str) -> FileName | None:
    """The identity and camera in a name of Market's kind; None for any other name, such as `Thumbs.db`.

    >>> parse_name("0002_c1s1_000451_03.jpg")
    FileName(identity=2, camera=0, sequence='1', time='000451')
    >>> parse_name("-1_c3s2_000001_02.jpg")[:2], parse_name("0001_c020_00016450_0.jpg")[:2]
    ((-1, 2), (1, 19))
    >>> parse_name("readme.txt") is None
    True
    """
    found = _NAME.fullmatch(name)
    if found is None or Path(name).suffix.lower() not in IMAGE_SUFFIXES or int(found[2]) == 0:
        return None
    return FileName(int(found[1]), int(found[2]) - 1, found[3], found[4])


def shows_people(file: Path) -> bool:
    """True for an image that lies and is called as those of Market-1501, DukeMTMC-reID, CUHK03 and MSMT17 are.

    >>> shows_people(Path("market/query/0002_c1s1_000451_03.jpg")), shows_people(Path("nyala/0002.jpg"))
    (True, False)
    """
    folders = {parent.name for parent in file.absolute().parents}
    is_listed = not folders.isdisjoint(_ROLES["market"]) and parse_name(file.name) is not None
    return is_listed or any("msmt17" in name.lower() or "cuhk03" in name.lower() for name in folders)


def read_market(root: Path) -> ReidData:
    """A folder with `bounding_box_train`, `bounding_box_test`, `query`, and perhaps `gt_bbox` (multi-query).

    Identity -1 is junk (ignored), 0 a distractor (a wrong answer). Names with `_f` before the frame are DukeMTMC's,
    and CUHK03-NP comes in this layout too, as PNG; neither has junk or distractors.
    """
    images, ignored = _folders(root, _ROLES["market"])
    duke = any(re.match(r"\d+_c\d+_f\d", Path(image.path).name) for image in images[:1])
    if duke:
        return ReidData("duke", root, images, Protocol(), known=_DUKE, ignored=ignored)
    if images and images[0].path.lower().endswith(".png") and images[0].sequence is None:
        known = next((counts for name, counts in _CUHK03.items() if name in str(root.absolute()).lower()), {})
        return ReidData("cuhk03", root, images, Protocol(), known=known, ignored=ignored)
    is_synthetic = (root / "walkers.csv").is_file()
    return ReidData(
        "market",
        root,
        images,
        Protocol(junk=(-1,), distractors=(0,)),
        known={} if is_synthetic else _MARKET,
        notes=("synthetic walkers: no published counts to compare with",) if is_synthetic else (),
        ignored=ignored,
    )


def read_veri(root: Path) -> ReidData:
    """A folder with `image_train`, `image_query`, `image_test`; evaluated image to image without the same camera."""
    images, ignored = _folders(root, _ROLES["veri"])
    note = "image-to-image, as most papers; VeRi's own code is image-to-track and gives other numbers"
    return ReidData("veri", root, images, Protocol(), known=_VERI, notes=(note,), ignored=ignored)


def _folders(root: Path, roles: Mapping[str, Role]) -> tuple[tuple[ReidImage, ...], tuple[str, ...]]:
    """The images of each role, and the files whose names say nothing; folders per identity inside are looked into."""
    images: list[ReidImage] = []
    ignored: list[str] = []
    misplaced: list[str] = []
    for folder, role in roles.items():
        place = root / folder
        if not place.is_dir():
            if role != "multi_query":
                raise InputError(f"{root}: expected the folders {', '.join(roles)}; {folder} is missing")
            continue
        for file in _files_of(place):
            name = parse_name(file.name)
            path = f"{folder}/{file.relative_to(place).as_posix()}"
            if name is None:
                ignored.append(path)
                continue
            inner = file.parent.name
            if file.parent != place and inner.lstrip("-").isdecimal() and int(inner) != name.identity:
                misplaced.append(f"{path} lies in the folder of {inner}, and its name says {name.identity}")
                continue
            images.append(ReidImage(path, name.identity, name.camera, role, name.sequence, name.time))
    if misplaced and len(misplaced) >= len(images):  # folders that are no identities, rather than images astray
        raise InputError(f"{root}: {misplaced[0]}")
    if misplaced:
        remark(f"{len(misplaced):,} images of {root} are left out, the first: {misplaced[0]}", stacklevel=5)
    strange = [path for path in ignored if Path(path).suffix.lower() in IMAGE_SUFFIXES]
    if images and strange:
        remark(
            f"{len(strange):,} images of {root} are passed over, such as {strange[0]}: their names do not begin with "
            "identity and camera, as 0002_c1s1_000451_03.jpg does",
            stacklevel=5,
        )
    return tuple(images), tuple(ignored)


def _files_of(place: Path) -> list[Path]:
    """The entries of a folder; of one that holds nothing but folders, as with one for each identity, theirs."""
    entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    inside = [entry for entry in entries if entry.is_dir()]
    if not inside or any(parse_name(entry.name) for entry in entries):
        return entries
    return [entry for entry in entries if not entry.is_dir()] + [
        file for folder in inside for file in sorted(folder.rglob("*")) if file.is_file()
    ]


def read_cuhk03(root: Path, *, boxes: str = "detected") -> ReidData:
    """CUHK03 under the new protocol (767 / 700): `cuhk03_new_protocol_config_{detected,labeled}.mat` and the images.

    Images are those cut out of `cuhk-03.mat` under their names in the table (`1_001_1_01.png`), in `images_detected` or
    `images_labeled`, or directly in the folder.

    Args:
        root: the folder with the tables.
        boxes: `"detected"` (by a detector) or `"labeled"` (by hand); the two give different scores.
    """
    if boxes not in _CUHK03:
        raise InputError(f"CUHK03 has the boxes {', '.join(_CUHK03)}, got {boxes!r}")
    table = root / f"cuhk03_new_protocol_config_{boxes}.mat"
    if not table.is_file():
        raise InputError(f"{root}: expected {table.name}, the table of the new protocol")
    names, labels, cameras, splits = _cuhk03_table(table)
    folder = f"images_{boxes}/" if (root / f"images_{boxes}").is_dir() else ""
    roles: tuple[tuple[Role, str], ...] = (("train", "train_idx"), ("query", "query_idx"), ("gallery", "gallery_idx"))
    images = [
        ReidImage(folder + names[i], int(labels[i]), int(cameras[i]) - 1, role)
        for role, key in roles
        for i in splits[key].tolist()
    ]
    note = f"{boxes} boxes, the 767/700 split"
    return ReidData("cuhk03", root, tuple(images), Protocol(), known=_CUHK03[boxes], notes=(note,))


def _cuhk03_table(table: Path) -> tuple[list[str], Any, Any, dict[str, Any]]:
    """File names, identities, cameras, and the indices (from 0) of each split."""
    from scipy.io import loadmat

    try:
        values = loadmat(table)
        names = [str(np.ravel(name)[0]) for name in np.ravel(values["filelist"])]
        labels, cameras = (np.ravel(values[key]) for key in ("labels", "camId"))
        splits = {key: np.ravel(values[key]).astype(np.intp) - 1 for key in _CUHK03_KEYS[3:]}
    except Exception as error:  # a damaged table raises whatever it likes
        raise InputError(f"{table}: expected a MATLAB table with {', '.join(_CUHK03_KEYS)}; {error!r}") from error
    n = len(names)
    if len(labels) != n or len(cameras) != n:
        raise InputError(f"{table}: expected {n} labels and cameras, one per file name")
    for indices in splits.values():
        if indices.size and not (indices.min() >= 0 and indices.max() < n):
            raise InputError(f"{table}: expected indices from 1 to {n}, got {indices.min() + 1} to {indices.max() + 1}")
    return names, labels, cameras, splits
