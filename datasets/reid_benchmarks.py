"""Re-identification benchmarks: Market-1501, DukeMTMC-reID, VeRi-776, CUHK03, MSMT17, VehicleID.

Cameras are counted from 0, as evaluation codes do. Folders are read sorted: the order of a directory is no property of
a data set. DukeMTMC-reID was withdrawn by its authors; its format is read for data that uses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..images import IMAGE_SUFFIXES
from ..images.joining import spelled
from ..images.tables import lines_of
from ..remarks import remark
from .layouts import mat_list, whole_number
from .reid_records import FormatName, Identity, ReidData, ReidImage, ReidProtocol, Role, usable

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
_CUHK03_ROLES: tuple[Role, ...] = ("train", "query", "gallery")


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
    if images and re.match(r"\d+_c\d+_f\d", Path(images[0].path).name):
        return ReidData("duke", root, images, ReidProtocol(), known=_DUKE, ignored=ignored)
    if images and images[0].path.lower().endswith(".png") and images[0].sequence is None:
        known = next((counts for name, counts in _CUHK03.items() if name in str(root.absolute()).lower()), {})
        return ReidData("cuhk03", root, images, ReidProtocol(), known=known, ignored=ignored)
    is_synthetic, rule = (root / "walkers.csv").is_file(), ReidProtocol(junk=(-1,), distractors=(0,))
    notes = ("synthetic walkers: no published counts to compare with",) if is_synthetic else ()
    known = {} if is_synthetic else _MARKET
    return ReidData("market", root, images, rule, known=known, notes=notes, ignored=ignored)


def read_veri(root: Path) -> ReidData:
    """A folder with `image_train`, `image_query`, `image_test`; evaluated image to image without the same camera."""
    images, ignored = _folders(root, _ROLES["veri"])
    note = "image-to-image, as most papers; VeRi's own code is image-to-track and gives other numbers"
    return ReidData("veri", root, images, ReidProtocol(), known=_VERI, notes=(note,), ignored=ignored)


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
        remark(f"{len(misplaced):,} images of {root} are left out, the first: {misplaced[0]}")
    strange = [path for path in ignored if Path(path).suffix.lower() in IMAGE_SUFFIXES]
    if images and strange:
        remark(
            f"{len(strange):,} images of {root} are passed over, such as {strange[0]}: their names do not begin with "
            "identity and camera, as 0002_c1s1_000451_03.jpg does"
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
    `images_labeled`, or directly in the folder. Boxes `"detected"` (by a detector) and `"labeled"` (by hand) give
    different scores.
    """
    if boxes not in _CUHK03:
        raise InputError(f"CUHK03 has the boxes {', '.join(_CUHK03)}, got {boxes!r}")
    table = root / f"cuhk03_new_protocol_config_{boxes}.mat"
    if not table.is_file():
        raise InputError(f"{root}: expected {table.name}, the table of the new protocol")
    names, labels = mat_list(table, "filelist", str), mat_list(table, "labels", int)
    cameras = mat_list(table, "camId", int)
    splits = {role: mat_list(table, f"{role}_idx", int) for role in _CUHK03_ROLES}
    if not (n := len(names)) == len(labels) == len(cameras):
        raise InputError(f"{table}: expected {n} labels and cameras, one per file name")
    if strange := [place for places in splits.values() for place in places if not 1 <= place <= n]:
        raise InputError(f"{table}: expected indices from 1 to {n}, got {strange[0]}")
    folder = f"images_{boxes}/" if (root / f"images_{boxes}").is_dir() else ""
    images = [
        ReidImage(folder + names[place - 1], labels[place - 1], cameras[place - 1] - 1, role)
        for role, places in splits.items()
        for place in places
    ]
    note = f"{boxes} boxes, the 767/700 split"
    return ReidData("cuhk03", root, tuple(images), ReidProtocol(), known=_CUHK03[boxes], notes=(note,))


_MSMT17 = {"train images": 32_621, "train identities": 1_041, "query images": 11_659, "gallery images": 82_161}
_MSMT17_FOLDERS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
_MSMT17_ROLES: dict[str, Role] = {"train": "train", "val": "train", "query": "query", "gallery": "gallery"}
_MSMT17_NAME = re.compile(r"(\d+)_(\d+)_(\d+)_(\d+)([a-z]+)?_.*")


def read_msmt17(root: Path) -> ReidData:
    """MSMT17, either version: `list_{train,val,query,gallery}.txt` beside `train`, `test` or their masked copies.

    `list_train` and `list_val` both are training images, told apart by the column `list`. Identity 0 is a person here,
    and train and test count their identities independently. A third field per line (the camera) is allowed.
    """
    version = "v2" if (root / _MSMT17_FOLDERS["v2"][0]).is_dir() else "v1"
    lines: list[tuple[str, Path, int, str]] = []
    for name in _MSMT17_ROLES:
        file = root / f"list_{name}.txt"
        if not file.is_file():
            if name == "val":
                continue
            expected = "list_train.txt, list_query.txt and list_gallery.txt"
            raise InputError(f"{root}: expected {expected}; {file.name} is missing")
        lines += [(name, file, number, line) for number, line in lines_of(file, is_utf8=True)]
    images = usable(lines, lambda line: _msmt17_image(*line, folders=_MSMT17_FOLDERS[version]))
    notes = (f"version {version[1]}", "train holds list_train and list_val; some codes train on list_train alone")
    return ReidData(
        "msmt17", root, tuple(images), ReidProtocol(), known=_MSMT17, notes=notes, has_common_identities=False
    )


def _msmt17_image(listed: str, file: Path, line: int, text: str, *, folders: tuple[str, str]) -> ReidImage:
    """`0001/0001_019_07_0303morning_0020_1.jpg`: the camera is the third field of the name."""
    role, fields = _MSMT17_ROLES[listed], text.split()
    folder = file.parent / folders[role != "train"]
    if len(fields) < 2:
        raise InputError(f"{file} line {line}: expected a path and an identity, got {' '.join(fields)!r}")
    path = spelled(folder, fields[0]).replace("\\", "/")
    found = _MSMT17_NAME.fullmatch(PurePosixPath(path).name)
    if found is None:
        example = "0001_019_07_0303morning_0020_1.jpg"
        raise InputError(f"{file} line {line}: expected a name such as {example}, got {path!r}")
    identity, time = whole_number(fields[1], f"{file} line {line}"), found[4] + (found[5] or "")
    return ReidImage(f"{folder.name}/{path}", identity, int(found[3]) - 1, role, None, time, {"list": listed})


def read_vehicleid(root: Path, *, test: str = "800", seed: int | None = 0) -> ReidData:
    """VehicleID: `image/`, `train_test_split/train_list.txt` and `test_list_{800,1600,2400}.txt`; no cameras.

    Its protocol draws one gallery image per identity at random and asks with all others, so a score depends on the
    draw. `seed` fixes one. None draws nothing: every image asks and answers, and the single-gallery-shot CMC of the
    evaluation is the exact mean over all draws.
    """
    lists = root / "train_test_split"
    tested = lists / f"test_list_{test}.txt"
    if not tested.is_file():
        there = sorted(file.stem.removeprefix("test_list_") for file in lists.glob("test_list_*.txt"))
        raise InputError(f"{lists}: expected {tested.name}; there are lists for {', '.join(there) or 'nothing'}")
    images = [replace(image, role="train") for image in _vehicles(lists / "train_list.txt")]
    listed = _vehicles(tested)
    if seed is None:
        images += listed
        note = "no gallery drawn: read the single-gallery-shot CMC"
    else:
        generator = np.random.default_rng(seed)
        places: dict[Identity, list[int]] = {}
        for place, image in enumerate(listed):
            places.setdefault(image.identity, []).append(place)
        drawn = {int(generator.choice(found)) for found in places.values()}  # one place per identity
        images += [replace(image, role="gallery" if i in drawn else "query") for i, image in enumerate(listed)]
        note = f"one gallery image per identity drawn with seed {seed}; other draws give other scores"
    return ReidData("vehicleid", root, tuple(images), ReidProtocol(same_camera="keep"), notes=(f"test {test}", note))


def _vehicles(file: Path) -> list[ReidImage]:
    def read(numbered: tuple[int, str]) -> ReidImage:
        line, fields = numbered[0], numbered[1].split()
        if len(fields) != 2:
            raise InputError(f"{file} line {line}: expected an image and an identity, got {' '.join(fields)!r}")
        name = fields[0].replace("\\", "/").removeprefix("./").removeprefix("image/")
        name = name if Path(name).suffix.lower() in IMAGE_SUFFIXES else f"{name}.jpg"
        return ReidImage(f"image/{name}", whole_number(fields[1], f"{file} line {line}"), None, "test")

    return usable(lines_of(file, is_utf8=True) if file.is_file() else [], read)
