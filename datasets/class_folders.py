"""Any folder with one sub-folder per class, divided by a table or by a rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..images import ImageRecord, Listing, list_images
from ..images.joining import FactsByName, likely_cause
from ..images.splits import overlooked_column, split_column, split_name, split_of_row
from ..images.tables import header_of, lines_of, rows_of, text_of
from ..remarks import remark
from .few_shot import PARTS, FewShotData, data_of_files


def folder(root: Path, split: str | None = None) -> FewShotData:
    """A folder of class folders, or a table; where nothing divides it, all classes are novel.

    Folders of splits, or a table's column `split`, divide it: train is base, val is val, test (with query and gallery)
    is novel, or val where there is no test. Classes that are in two splits make no episodes of unseen classes: then the
    test images alone are kept, as novel, and a remark says so.

    `split` is the name of one split, whose images alone become the novel part; or a table (CSV) with the columns
    `class,part` or `path,part`, or JSON `{"base": [classes], …}`; relative to the current folder or else to `root`.
    Parts are base, val, novel, or train, val, test. What it does not name is left out.
    """
    listing = list_images(root)
    records = [record for record in listing if record.label is not None]
    items = [(record.path, record.label) for record in records if record.label is not None]
    if not items:
        raise InputError(f"{root}: no image in a sub-folder; few-shot data has one folder per class")
    file = None if split is None else Path(split) if Path(split).is_file() else root / split
    if file is None or (not file.is_file() and not file.suffix):
        by_split = _by_split(listing, records, root)
        if split is not None or not _SPLIT_OF.keys().isdisjoint(by_split):
            return data_of_files(root.name, listing.root, _parts(by_split, root, split))
        if values := [value for value in by_split if value]:
            doubt: str | None = f"the column of splits says {', '.join(values[:5])}, none of which is a known split"
        else:
            doubt = overlooked_column([record.columns for record in listing], listing.column_names)
        if doubt is not None:
            remark(f"{root}: all classes are taken for novel, but {doubt}")
        return data_of_files(root.name, listing.root, {"novel": ([p for p, _ in items], [label for _, label in items])})
    by_class, by_path = _read_split(file)
    names, used = FactsByName(by_path), {label for _, label in items}
    found: dict[str, tuple[list[str], list[str]]] = {part: ([], []) for part in PARTS}
    left_out: list[str] = []
    for path, label in items:
        key = names.key(path)
        part = by_class.get(label) if key is None else by_path[key]
        if part is None:
            left_out.append(path)
        else:
            used.add(path if key is None else key)
            found[part][0].append(path)
            found[part][1].append(label)
    if missing := [name for name in (*by_class, *by_path) if name not in used]:
        pair = likely_cause(missing, left_out or [path for path, _ in items[:500]])
        raise InputError(
            f"{file}: {len(missing)} of its entries are not in {root}, the first is {missing[0]!r}"
            + ("" if pair is None else f"; {pair[2]}")
        )
    if left_out and by_path:
        remark(f"{file.name} names no part for {len(left_out):,} of {len(items):,} images, such as {left_out[0]}")
    return data_of_files(f"{root.name}:{file.stem}", listing.root, found)


_Items = tuple[list[str], list[str]]


def _by_split(listing: Listing, records: Sequence[ImageRecord], root: Path) -> dict[str, _Items]:
    """Paths and labels by split; under "" those that nothing says it of."""
    column = split_column([record.columns for record in records], listing.column_names)
    found: dict[str, _Items] = {}
    for record in records:
        paths, labels = found.setdefault(split_of_row(record.columns, column, where=root), ([], []))
        paths.append(record.path)
        labels.append(record.label or "")
    return found


def _parts(by_split: Mapping[str, _Items], root: Path, chosen: str | None) -> dict[str, _Items]:
    """The parts that the splits make; at least one of them is known, or `chosen`."""
    known: dict[str, _Items] = {name: ([], []) for name in _SPLIT_OF.values()}
    for split, (paths, labels) in by_split.items():
        if split in _SPLIT_OF:
            known[_SPLIT_OF[split]][0].extend(paths)
            known[_SPLIT_OF[split]][1].extend(labels)
    there = [name for name, (paths, _) in known.items() if paths]
    if left := [path for name, (paths, _) in by_split.items() if name not in _SPLIT_OF for path in paths]:
        said = ", ".join(name or "empty" for name in by_split if name not in _SPLIT_OF)
        remark(f"{root}: {len(left)} images are of no known split ({said}) and are left out, such as {left[0]}")
    if chosen is not None:
        wanted = _SPLIT_OF.get(split_name(chosen) or "", "")
        if wanted not in there:
            raise InputError(f"{root}: no split {chosen!r}; there are {', '.join(there) or 'none'}")
        return {"novel": known[wanted]}
    tested = next(name for name in ("test", "val", "train") if name in there)
    others = [name for name in there if name != tested]
    classes = set(known[tested][1])
    if seen := classes & {label for name in others for label in known[name][1]}:
        remark(
            f"{root}: {len(seen)} of the {len(classes)} classes of the split {tested} also occur in "
            f"{' and '.join(others)}: the novel part is the split {tested} alone, and these are no unseen classes"
        )
        return {"novel": known[tested]}
    remark(f"{root}: the novel part is the split {tested}" + (f", beside {' and '.join(others)}" if others else ""))
    named = {"train": "base", "val": "val"} | {tested: "novel"}
    parts = {named[name]: known[name] for name in there}
    if parts.keys() >= {"base", "val"} and not set(parts["base"][1]).isdisjoint(parts["val"][1]):
        remark(f"{root}: the classes of train and val overlap, so the part val is left out")
        del parts["val"]
    return parts


_SPLIT_OF = {"train": "train", "base": "train", "val": "val"} | dict.fromkeys(
    ("test", "novel", "query", "gallery"), "test"
)


def part_of(name: str, where: str) -> str:
    """The part that a name means: train is base, test is novel."""
    split = _SPLIT_OF.get(split_name(name) or name.strip().lower())
    if split is None:
        raise InputError(f"{where}: expected a part out of base, train, val, novel, test; got {name!r}")
    return {"train": "base", "val": "val", "test": "novel"}[split]


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
            content = [line for _, line in lines_of(file, is_utf8=True)] if suffix != ".json" else _json(file)
            if isinstance(content, dict):
                content = content.get("class_roots", content.get("class_names", content.get("label_names")))
            if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
                raise InputError(f"{file}: expected a list of class names, or one under `class_names`")
            found[part_of(stem, str(file))] = [name.rstrip("/").rpartition("/")[2] for name in content]
    if not {"base", "novel"} <= set(found):
        raise InputError(f"{folder_of_lists}: expected the class lists train{suffix}, val{suffix} and test{suffix}")
    return found


def _read_split(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Part by class and part by path."""
    by_class: dict[str, str] = {}
    by_path: dict[str, str] = {}
    if file.suffix.lower() == ".json":
        content = _json(file)
        if not isinstance(content, dict):
            raise InputError(f'{file}: expected an object such as {{"base": [classes], "novel": [classes]}}')
        pairs = [(name, part) for part, names in content.items() for name in names]
        table, column = by_class, "class"
    else:
        columns = header_of(file)
        column = "path" if "path" in columns else "class"
        if not {column, "part"} <= set(columns):
            raise InputError(f"{file}: expected the columns class,part or path,part; got {', '.join(sorted(columns))}")
        pairs = [(row[column], row["part"]) for _, row in rows_of(file, needed=(column, "part"))]
        table = by_path if column == "path" else by_class
    for name, part in pairs:
        if table.setdefault(name, part_of(part, str(file))) != part_of(part, str(file)):
            raise InputError(f"{file}: the {column} {name!r} is in {table[name]} and in {part}")
    return by_class, by_path


def _json(file: Path) -> Any:
    try:
        return json.loads(text_of(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not JSON ({error})") from error
