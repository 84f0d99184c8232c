"""Boxes that people drew, from the files they come in: a plain CSV, CUB-200-2011's tables, or ILSVRC's XML."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal
from xml.etree import ElementTree

from ...errors import InputError
from ...remarks import remark
from ..labelling import BOX_COLUMNS, box_columns
from ..tables import LABEL_NAMES, header_of, look_alike, rows_of, text_of
from .fitting import SHARES, Annotation, BoxTable, LabelledBox, Size, absolute, as_float, box_of

Split = Literal["train", "test", "all"]

MAX_XML = 1_000_000  # bytes; ILSVRC's largest annotation has 20,000
MAX_TABLE = 1_000_000_000
MAX_BROKEN = 20  # files of XML in a row that are no annotations; the folder is one of something else
CORNERS = ("x1", "y1", "x2", "y2")


def read_boxes(source: str | os.PathLike[str], *, split: Split = "all", strict: bool = False) -> BoxTable:
    """The boxes of a file or folder; its layout is recognised.

    - **CSV** with a header: `path`, `x1`, `y1`, `x2`, `y2` in pixels (edges: the first pixel is 0 to 1), and perhaps
      `label`; a line for each box. `xmin,ymin,xmax,ymax`, `x_1,…`, and `x,y,w,h` are known too. Paths are relative to
      the file's folder, or to the root of the images' listing. Columns `width` and `height` beside corners are the size
      of the image that the box was drawn on.
    - **CUB-200-2011**: a folder with `images.txt`, `bounding_boxes.txt` (x, y, width, height),
      `image_class_labels.txt`, `classes.txt` and `train_test_split.txt`; the images are in its `images/`.
    - **ILSVRC** (and Pascal VOC): a folder of XML files, however deep; an image is found by its name without folder and
      suffix, and boxes are scaled if the image has another size than its annotation says. Corners are taken as edges.

    Boxes that all lie within 0 and 1 are shares of their image. A box without four numbers or without an area is left
    out, and so is an annotation that is none; they are counted in a remark.

    `split` is a part of CUB; other layouts have none.
    """
    path = Path(source)
    if path.is_dir() and (path / "bounding_boxes.txt").is_file():
        table = _read_cub(path, split)
    elif path.is_dir():
        table = _read_xml_folder(path)
    elif not path.is_file():
        raise InputError(f"{path}: no such file or folder of boxes")
    elif path.suffix.lower() == ".xml":
        problems: list[str] = []
        table = BoxTable(path, by_stem={path.stem: read_xml(path, problems)}, problems=tuple(problems))
    else:
        table = _read_csv(path)
    return usable(table, strict=strict)


def usable(table: BoxTable, *, strict: bool = False) -> BoxTable:
    """A table whose problems are remarked on, and whose boxes are shares of their images if they look like it."""
    boxes = [box for name in table.names for box, _ in table.annotation(name).boxes]
    if table.problems and not boxes:
        raise InputError(table.problems[0])
    if table.problems:
        message = f"{len(table.problems):,} boxes or annotations of {table.source} cannot be used and are left out, "
        remark(f"{message}the first: {table.problems[0]}", strict=strict)
    if not boxes or not all(min(box) >= -0.01 and max(box) <= 1.01 for box in boxes):
        return table
    remark(
        f"all {len(boxes):,} boxes of {table.source} lie within 0 … 1, so they are read as shares of their image, "
        "not as pixels",
        strict=strict,
    )
    files, stems = (
        {name: each._replace(size=SHARES) for name, each in side.items()} for side in (table.by_file, table.by_stem)
    )
    return replace(table, by_file=files, by_stem=stems)


def read_synsets(path: str | os.PathLike[str]) -> dict[str, str]:
    """ILSVRC's list of the validation images' classes: stem → synset.

    Two forms are known: a line `ILSVRC2012_val_00000001.JPEG n01751748` for each image, or the synsets alone, where
    line i is that of `ILSVRC2012_val_%08d`.
    """
    classes: dict[str, str] = {}
    for number, line in _lines(Path(path)):
        words = line.split()
        if len(words) not in (1, 2) or not re.fullmatch(r"n\d{8}", words[-1]):
            raise InputError(f"{path}, line {number}: expected `IMAGE n01751748` or `n01751748`, got {line!r}")
        named = words[0].replace("\\", "/")
        stem = PurePosixPath(named).stem if len(words) == 2 else f"ILSVRC2012_val_{number:08d}"
        classes[stem] = words[-1]
    return classes


def _read_csv(path: Path) -> BoxTable:
    _limit(path, MAX_TABLE)
    names = header_of(path)
    columns = _columns(path, names)
    lower = tuple(map(str.lower, columns))  # of a corner with width and height?
    has_size = any(quad[3].endswith(("h", "height")) for quad in BOX_COLUMNS if quad == lower)
    others = [name for name in names if name not in ("path", *columns)]
    similar = None if "label" in others else look_alike(others, LABEL_NAMES)
    if similar is not None:
        remark(
            f"{path}: the boxes have no class, for there is no column 'label'; {similar!r} looks like one, rename it "
            "if it is"
        )
    problems: dict[int, str] = {}
    boxes: dict[str, list[LabelledBox]] = {}
    sizes: dict[str, Size | None] = {}
    given = () if has_size else _size_columns(names)
    for line, row in rows_of(path, left_out=problems):
        cells = [row[name] for name in columns]
        try:
            box = box_of(cells, f"{path}, line {line}", has_size=has_size)
        except InputError as error:
            problems[line] = f"{error}{'' if has_size else _side_hint(cells)}"
        else:
            file = absolute(path.parent / row["path"])
            boxes.setdefault(file, []).append(LabelledBox(box, row.get("label") or None))
            sizes[file] = _whole_size([row[name] for name in given])
    if all(
        size is None or any(abs(box.width - size[0]) <= 1 and abs(box.height - size[1]) <= 1 for box, _ in boxes[file])
        for file, size in sizes.items()
    ):
        sizes = {}  # they are those of the boxes
    found = {file: Annotation(tuple(own), sizes.get(file)) for file, own in boxes.items()}
    return BoxTable(path, found, problems=tuple(problems.values()))


def _columns(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    columns = box_columns(names)
    if "path" in names and len(columns) == 4:
        return columns
    missing = next(name for name in ("path", *CORNERS) if name not in names)
    usual = {
        "path": ("path", "filename", "file", "image"),
        "x2": ("x2", "right", "xmax"),
        "y2": ("y2", "bottom", "ymax"),
    }
    near = look_alike(names, usual.get(missing, (missing, {"x1": "xmin", "y1": "ymin"}.get(missing, missing))))
    hint = f"; did you mean {near!r}?" if near else ""
    raise InputError(f"{path}: expected the columns path, x1, y1, x2, y2, got {', '.join(names)}{hint}")


def _size_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns with the size of the image that boxes were drawn on; empty if there are none."""
    known = {name.lower(): name for name in reversed(names)}
    pairs = ([f"{of}{side}" for side in ("width", "height")] for of in ("", "image_", "img_", "image", "img"))
    return next((tuple(known[side] for side in pair) for pair in pairs if all(side in known for side in pair)), ())


def _whole_size(cells: Sequence[str]) -> Size | None:
    """Two cells as (width, height); None if they are no size."""
    try:
        width, height = (int(as_float(cell)) for cell in cells)
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _side_hint(cells: Sequence[str]) -> str:
    """A hint for corners that could be a corner with width and height."""
    try:
        x, y, width, height = map(as_float, cells)
    except ValueError:
        return ""
    is_size = min(x, y) >= 0 and min(width, height) > 0 and all(map(math.isfinite, (x, y, width, height)))
    return "; if the last two are width and height, call the columns x, y, w, h" if is_size else ""


def _read_cub(folder: Path, split: Split) -> BoxTable:
    if split not in ("train", "test", "all"):
        raise InputError(f"split={split!r} is not known; choose train, test, or all")
    problems: list[str] = []
    paths, corners, names, classes = (
        _numbered(folder / name, problems)
        for name in ("images.txt", "bounding_boxes.txt", "classes.txt", "image_class_labels.txt")
    )
    parts = {} if split == "all" else _numbered(folder / "train_test_split.txt", problems)
    wanted = {"train": "1", "test": "0"}.get(split)
    boxes = {}
    for number, path in paths.items():
        if wanted is not None and parts.get(number) != wanted:
            continue
        try:
            where = f"{folder.name}, image {number}"
            label = names.get(classes.get(number, ""))
            if number not in corners or label is None:
                raise InputError(f"{where}: has no line in bounding_boxes.txt, image_class_labels.txt, or classes.txt")
            cells = corners[number].split()
            if len(cells) != 4:
                raise InputError(
                    f"{where}: expected x, y, width, height in bounding_boxes.txt, got {corners[number]!r}"
                )
            box = box_of(cells, where, has_size=True)
        except InputError as error:
            problems.append(str(error))
        else:
            boxes[absolute(folder / "images" / path)] = Annotation((LabelledBox(box, label),))
    return BoxTable(folder, boxes, problems=tuple(problems))


def _numbered(path: Path, problems: list[str]) -> dict[str, str]:
    """A table of CUB's: a number, a space, the rest of the line."""
    table = {}
    for number, line in _lines(path):
        key, _, value = line.partition(" ")
        if not key.isdecimal() or not value.strip():
            problems.append(f"{path}, line {number}: expected a number and a value, got {line!r}")
        else:
            table[key] = value.strip()
    return table


def _read_xml_folder(folder: Path) -> BoxTable:
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise InputError(f"{folder}: expected CUB's bounding_boxes.txt or ILSVRC's *.xml in it, found neither")
    found: dict[str, Annotation] = {}
    problems: list[str] = []
    for file in files:
        if file.stem in found:
            raise InputError(f"{file}: a second annotation of {file.stem}; name one folder of annotations")
        try:
            found[file.stem] = read_xml(file, problems)
        except InputError as error:
            problems.append(str(error))
            if not found and len(problems) >= MAX_BROKEN:
                raise InputError(f"{problems[0]}; and so on for {MAX_BROKEN} files") from None
    return BoxTable(folder, by_stem=found, problems=tuple(problems))


def read_xml(path: Path, problems: list[str]) -> Annotation:
    """The annotation in a file; objects that have no sound box become problems."""
    _limit(path, MAX_XML)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: has a document type or entities, which annotations never need; refused")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: no sound XML ({error})") from error
    if root.tag != "annotation":
        raise InputError(f"{path}: expected <annotation> as ILSVRC and Pascal VOC write it, got <{root.tag}>")
    sides = [root.findtext(f"size/{name}") for name in ("width", "height")]
    try:
        width, height = (0, 0) if None in sides else (int(side or "") for side in sides)
    except ValueError:
        raise InputError(f"{path}: expected whole numbers as <size>, got {sides}") from None
    size = (width, height) if width > 0 and height > 0 else None
    boxes = []
    for number, item in enumerate(root.iterfind("object"), start=1):
        corners = [item.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        label = (item.findtext("name") or "").strip() or None
        try:
            boxes.append(LabelledBox(box_of(corners, f"{path}, object {number}"), label))
        except InputError as error:
            problems.append(str(error))
    return Annotation(tuple(boxes), size)


def _limit(path: Path, limit: int) -> None:
    try:
        if path.stat().st_size > limit:
            raise InputError(f"{path}: has more than {limit:,} bytes; no file of boxes is that large")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    _limit(path, MAX_TABLE)
    lines = (line.strip() for line in text_of(path).splitlines())
    return ((number, line) for number, line in enumerate(lines, start=1) if line)
