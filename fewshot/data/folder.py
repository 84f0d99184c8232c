"""Any folder with one sub-folder per class, divided by a table or by a rule."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...images import list_images
from .dataset import PARTS, FewShotData, data_of_files

__all__ = ["class_folders", "folder", "part_of", "read_class_lists"]

_ALIASES = {"base": "base", "train": "base", "val": "val", "valid": "val", "validation": "val"} | {
    "novel": "novel",
    "test": "novel",
}


def folder(root: Path, split: str | None = None) -> FewShotData:
    """A folder of class folders; without a split file all classes are novel.

    Args:
        root: the folder; the class of an image is its first sub-folder.
        split: a table (CSV) with the columns `class,part` or `path,part`, or JSON `{"base": [classes], …}`; relative to
            the current folder or else to `root`. Parts are base, val, novel, or train, val, test. What it does not name
            is left out.
    """
    listing = list_images(root)
    items = [(record.path, record.label) for record in listing if record.label is not None]
    if not items:
        raise InputError(f"{root}: no image in a sub-folder; few-shot data has one folder per class")
    if split is None:
        return data_of_files(root.name, root, {"novel": ([p for p, _ in items], [label for _, label in items])})
    file = Path(split) if Path(split).is_file() else root / split
    by_class, by_path = _read_split(file)
    found: dict[str, tuple[list[str], list[str]]] = {part: ([], []) for part in PARTS}
    for path, label in items:
        part = by_path.get(path, by_class.get(label))
        if part is not None:
            found[part][0].append(path)
            found[part][1].append(label)
    labels, paths = {label for _, label in items}, {path for path, _ in items}
    missing = [name for name in by_class if name not in labels] + [name for name in by_path if name not in paths]
    if missing:
        raise InputError(f"{file}: {len(missing)} of its entries are not in {root}, the first is {missing[0]!r}")
    return data_of_files(f"{root.name}:{file.stem}", root, found)


def part_of(name: str, where: str) -> str:
    """The part that a name means: train is base, test is novel."""
    if name.strip().lower() not in _ALIASES:
        raise InputError(f"{where}: expected a part out of {', '.join(_ALIASES)}; got {name!r}")
    return _ALIASES[name.strip().lower()]


def class_folders(root: Path) -> list[str]:
    """Names of the sub-folders, sorted."""
    try:
        return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{root}: expected a folder with one sub-folder per class; {error.strerror}") from error


def data_of_classes(name: str, root: Path, classes: Mapping[str, Sequence[str]], *, under: str = "") -> FewShotData:
    """A data set of the class folders `root/under/<class>`, given by part."""
    items: dict[str, tuple[list[str], list[str]]] = {}
    for part, names in classes.items():
        paths, labels = items.setdefault(part, ([], []))
        for label in names:
            place = root / under / label
            if not place.is_dir():
                raise InputError(f"{name}: the split names the class {label!r}, but {place} is no folder")
            for record in list_images(place):
                paths.append((Path(under) / label / record.path).as_posix())
                labels.append(label)
    return data_of_files(name, root, items)


def read_class_lists(folder_of_lists: Path, suffix: str = ".json") -> dict[str, list[str]]:
    """Class names by part from train, val and test files: JSON lists, `{"class_names": [...]}`, or lines of text."""
    found: dict[str, list[str]] = {}
    for stem in ("train", "val", "test", "base", "novel"):
        file = folder_of_lists / f"{stem}{suffix}"
        if file.is_file():
            found[part_of(stem, str(file))] = _class_list(file)
    if not {"base", "novel"} <= set(found):
        raise InputError(f"{folder_of_lists}: expected the class lists train{suffix}, val{suffix} and test{suffix}")
    return found


def _class_list(file: Path) -> list[str]:
    text = _text(file)
    if file.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    content = _json(file, text)
    if isinstance(content, dict):
        content = content.get("class_roots", content.get("class_names", content.get("label_names")))
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        raise InputError(f"{file}: expected a list of class names, or one under `class_names`")
    return [name.rstrip("/").rpartition("/")[2] for name in content]


def _read_split(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Part by class and part by path."""
    by_class: dict[str, str] = {}
    by_path: dict[str, str] = {}
    if file.suffix.lower() == ".json":
        content = _json(file, _text(file))
        if not isinstance(content, dict):
            raise InputError(f'{file}: expected an object such as {{"base": [classes], "novel": [classes]}}')
        pairs = [(name, part) for part, names in content.items() for name in names]
        table, column = by_class, "class"
    else:
        rows = list(csv.DictReader(_text(file).splitlines()))
        columns = set(rows[0]) if rows else set()
        column = "path" if "path" in columns else "class"
        if not {column, "part"} <= columns:
            raise InputError(f"{file}: expected the columns class,part or path,part; got {', '.join(sorted(columns))}")
        pairs = [(row[column], row["part"]) for row in rows]
        table = by_path if column == "path" else by_class
    for name, part in pairs:
        if table.setdefault(name, part_of(part, str(file))) != part_of(part, str(file)):
            raise InputError(f"{file}: the {column} {name!r} is in {table[name]} and in {part}")
    return by_class, by_path


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InputError(f"{file}: expected UTF-8; save it with that encoding") from None


def _json(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not JSON ({error})") from error
