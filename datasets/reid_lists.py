"""Data sets that come with lists: MSMT17, VehicleID, and any CSV table with an identity and a camera."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from ..errors import InputError
from ..images import IMAGE_SUFFIXES, ImageRecord, Listing, list_images
from ..images.joining import spelled
from ..images.splits import SPLIT_COLUMN, flags_of, split_column, split_name
from ..images.tables import LABEL_NAMES, look_alike
from ..remarks import remark
from .layouts import lines_of
from .reid_records import FormatName, Identity, Protocol, ReidData, ReidImage, Role

_MSMT17 = {"train images": 32_621, "train identities": 1_041, "query images": 11_659, "gallery images": 82_161}
_MSMT17_FOLDERS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
_MSMT17_LISTS: dict[str, tuple[Role, int]] = {
    "train": ("train", 0),
    "val": ("train", 0),
    "query": ("query", 1),
    "gallery": ("gallery", 1),
}
_MSMT17_NAME = re.compile(r"(\d+)_(\d+)_(\d+)_(\d+)([a-z]+)?_.*")
_IDENTITY, _CAMERA, _ROLE = ("identity", "label", "pid"), ("camera", "camid", "photo_id"), ("role", "split")
_CAMERA_LIKE = (
    *("cam", "camid", "cameraid", "cameraname", "cameranumber"),
    *("camname", "camnr", "camno", "cameratrap", "station"),
)
_ROLE_LIKE = ("role", "split", "subset", "partition", "set", "phase", "part", "usage", "mode")
_ROLE_NAMES: dict[str, Role] = {
    "train": "train",
    "query": "query",
    "gallery": "gallery",
    "test": "test",
    "val": "test",
    "multi_query": "multi_query",
}


T = TypeVar("T")


def _usable(lines: Iterable[T], read: Callable[[T], ReidImage], problems: list[str]) -> list[ReidImage]:
    """The images of the lines that say who is on one; what is wrong with the others becomes problems."""
    images = []
    for line in lines:
        try:
            images.append(read(line))
        except InputError as error:
            problems.append(str(error))
    return images


def _tell(problems: list[str], images: list[ReidImage]) -> None:
    """Say what was passed over."""
    if problems and not images:
        raise InputError(problems[0])
    if problems:
        remark(f"{len(problems):,} lines cannot be used and are left out, the first: {problems[0]}", stacklevel=5)


def _number(text: str, file: Path, line: int) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{file} line {line}: expected an identity as a number, got {text!r}") from None


def read_msmt17(root: Path) -> ReidData:
    """MSMT17, either version: `list_{train,val,query,gallery}.txt` beside `train`, `test` or their masked copies.

    `list_train` and `list_val` both are training images, told apart by the column `list`. Identity 0 is a person here,
    and train and test count their identities independently. A third field per line (the camera) is allowed.
    """
    version = "v2" if (root / _MSMT17_FOLDERS["v2"][0]).is_dir() else "v1"
    images: list[ReidImage] = []
    problems: list[str] = []
    for name, (role, side) in _MSMT17_LISTS.items():
        file = root / f"list_{name}.txt"
        if not file.is_file():
            if name == "val":
                continue
            raise InputError(
                f"{root}: expected list_train.txt, list_query.txt and list_gallery.txt; {file.name} is missing"
            )
        folder = _MSMT17_FOLDERS[version][side]
        images += _usable(
            lines_of(file),
            lambda numbered: _msmt17_image(numbered, file, root / folder, role=role, listed=name),  # noqa: B023  (used at once)
            problems,
        )
    _tell(problems, images)
    notes = (f"version {version[1]}", "train holds list_train and list_val; some codes train on list_train alone")
    return ReidData("msmt17", root, tuple(images), Protocol(), known=_MSMT17, notes=notes, has_common_identities=False)


def _msmt17_image(numbered: tuple[int, str], file: Path, folder: Path, *, role: Role, listed: str) -> ReidImage:
    """`0001/0001_019_07_0303morning_0020_1.jpg`: the camera is the third field of the name."""
    line, fields = numbered[0], numbered[1].split()
    if len(fields) < 2:
        raise InputError(f"{file} line {line}: expected a path and an identity, got {' '.join(fields)!r}")
    path = spelled(folder, fields[0]).replace("\\", "/")
    found = _MSMT17_NAME.fullmatch(PurePosixPath(path).name)
    if found is None:
        raise InputError(
            f"{file} line {line}: expected a name such as 0001_019_07_0303morning_0020_1.jpg, got {path!r}"
        )
    identity, time = _number(fields[1], file, line), found[4] + (found[5] or "")
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
    problems: list[str] = []
    images = [replace(image, role="train") for image in _vehicles(lists / "train_list.txt", problems)]
    listed = _vehicles(tested, problems)
    _tell(problems, listed)
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
    return ReidData("vehicleid", root, tuple(images), Protocol(same_camera="keep"), notes=(f"test {test}", note))


def _vehicles(file: Path, problems: list[str]) -> list[ReidImage]:
    def read(numbered: tuple[int, str]) -> ReidImage:
        line, fields = numbered[0], numbered[1].split()
        if len(fields) != 2:
            raise InputError(f"{file} line {line}: expected an image and an identity, got {' '.join(fields)!r}")
        name = fields[0].replace("\\", "/").removeprefix("./").removeprefix("image/")
        name = name if Path(name).suffix.lower() in IMAGE_SUFFIXES else f"{name}.jpg"
        return ReidImage(f"image/{name}", _number(fields[1], file, line), None, "test")

    return _usable(lines_of(file) if file.is_file() else [], read, problems)


def read_csv(
    table: Path, *, identity: str | None = None, camera: str | None = None, role: str | None = None
) -> ReidData:
    """A table with `path`, an identity, and perhaps a camera and a role; all other columns are kept.

    Roles are train, query, gallery, and test (`val`, `validation`): query and gallery at once. Without a column of
    roles every image is `test`. What stands in the camera's column is what a query must not be answered from, so a
    photograph's number does as well as a camera's.

    Args:
        table: the CSV file; paths are relative to its folder.
        identity: name of the column; `identity`, `label` or `pid` if left out.
        camera: `camera`, `camid` or `photo_id` if left out; an empty cell is an unknown camera.
        role: `role` or `split` if left out.
    """
    listing = list_images(table, labels="column")
    names = (*listing.column_names, *(("label",) if listing.has_labels else ()))
    columns = {
        "identity": _column(table, names, identity, _IDENTITY, required=True),
        "camera": _column(table, names, camera, _CAMERA),
        "role": _column(table, names, role, _ROLE) or split_column([each.columns for each in listing], names),
    }
    _remark_on_columns(table, listing, columns)
    notes = [f"{name}: column {column!r}" for name, column in columns.items() if column is not None]
    return _listed("csv", table, listing, columns, notes)


def read_folder(root: Path) -> ReidData:
    """Folders of splits, each with a folder for every identity, as `train` and `index build` read them; no cameras.

    The splits are the roles: `train`, `query`, `gallery`, and `test` (`val`), which is query and gallery at once.
    """
    listing, columns = list_images(root, labels="split"), {"identity": "label", "camera": None, "role": SPLIT_COLUMN}
    roles = sorted({record.columns[SPLIT_COLUMN] for record in listing})
    notes = [f"roles from the folders of the splits: {', '.join(roles)}; identities from the folders in them"]
    return _listed("folder", root, listing, columns, notes)


def _listed(
    form: FormatName, source: Path, listing: Listing, columns: Mapping[str, str | None], notes: list[str]
) -> ReidData:
    problems: list[str] = []
    images = _usable(listing, lambda record: _table_image(source, record, columns), problems)
    _tell(problems, images)
    images.sort(key=lambda image: list(_ROLE_NAMES.values()).index(image.role))  # stable: else as listed
    if columns["camera"] is None:
        notes.append("no cameras: choose same_camera=keep, or missing_camera=distinct")
    return ReidData(form, listing.root, tuple(images), Protocol(), notes=tuple(notes))


def _remark_on_columns(table: Path, listing: Listing, columns: Mapping[str, str | None]) -> None:
    """Say which columns look like cameras or roles and are not taken as such."""
    names = listing.column_names
    if columns["camera"] is None and (camera := look_alike(names, _CAMERA_LIKE)) is not None:
        remark(f"{table}: no column is taken as the camera; `--option camera={camera}` takes {camera!r}", stacklevel=4)
    if columns["role"] is not None or (role := look_alike(names, _ROLE_LIKE)) is None:
        return
    cells = {record.columns[role].strip() for record in listing} - {""}
    if cells and all((split_name(cell) or cell.lower()) in _ROLE_NAMES for cell in cells):
        message = f"{table}: no column is taken as the role, so every image is query and gallery at once"
        remark(f"{message}; `--option role={role}` takes {role!r}", stacklevel=4)


def _table_image(table: Path, record: ImageRecord, columns: Mapping[str, str | None]) -> ReidImage:
    path, cells = record.path, {**record.columns, **({} if record.label is None else {"label": record.label})}

    def cell(name: str) -> str:
        column = columns[name]
        return "" if column is None else cells.get(column, "").strip()

    if not cell("identity"):
        raise InputError(f"{table}: {path} has no {columns['identity']}; every image needs an identity")
    role = _role_of(cell("role"), cells, table)
    if role not in _ROLE_NAMES:
        raise InputError(f"{table}: {path} has the role {role!r}; there are {', '.join(_ROLE_NAMES)}")
    others = {name: value for name, value in cells.items() if name not in columns.values()}
    return ReidImage(path, cell("identity"), cell("camera") or None, _ROLE_NAMES[role], columns=others)


def _role_of(cell: str, cells: Mapping[str, str], table: Path) -> str:
    """The role that a cell names; `is_query` and `is_gallery` say more of test images, and who has neither trains."""
    named = split_name(cell) or cell.lower()
    if named not in ("", "test", "val") or not (said := flags_of(cells, table)):
        return named or "test"
    query, gallery = map(said.get, ("is_query", "is_gallery"))
    if query or gallery:
        return "test" if query and gallery else "query" if query else "gallery"
    return named or "train"


def _column(
    table: Path, names: tuple[str, ...], asked: str | None, usual: tuple[str, ...], *, required: bool = False
) -> str | None:
    if asked is not None and asked not in names:
        raise InputError(f"{table}: no column {asked!r}; there are {', '.join(names)}")
    known = {name.lower(): name for name in reversed(names)}
    found = asked or next((known[name] for name in usual if name in known), None)
    if found is None and required:
        similar = look_alike(names, LABEL_NAMES)
        hint = f"; `--option identity={similar}` takes that one" if similar else ""
        raise InputError(f"{table}: expected a column {' or '.join(usual)}; there are {', '.join(names)}{hint}")
    return found
