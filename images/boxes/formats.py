"""Boxes that people drew, from the files they come in: plain CSV and CUB-200-2011's tables; more in `annotations`."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from ...errors import ImageError, InputError
from ...remarks import remark
from ..labelling import box_columns
from ..loading import image_size
from ..tables import LABEL_NAMES, header_of, lines_of, look_alike, rows_of
from .annotations import limit_size, read_file, read_folder
from .fitting import SHARES, Annotation, BoxTable, LabelledBox, Order, Size, absolute, as_float, box_of

BoxSplit = Literal["train", "test", "all"]
Unit = Literal["pixel", "relative"]

MAX_TABLE = 1_000_000_000
_TRIED = 2_000  # boxes by which the order of four numbers is found out
CORNERS = ("x1", "y1", "x2", "y2")


def read_boxes(
    source: str | os.PathLike[str],
    *,
    split: BoxSplit = "all",
    order: Order | None = None,
    unit: Unit | None = None,
    strict: bool = False,
) -> BoxTable:
    """The boxes of a file or folder; its layout is recognised.

    - **CSV** with a header: `path`, `x1`, `y1`, `x2`, `y2` in pixels (edges: the first pixel is 0 to 1), and perhaps
      `label`; a line for each box. `xmin,ymin,xmax,ymax`, `x_1,…`, `left,top,width,height`, `x,y,w,h`, and `bbox` with
      four numbers in a cell are known too. Paths are relative to the file's folder, or to the root of the images'
      listing. Columns `width` and `height` beside corners are the size of the image that the box was drawn on.
    - **COCO** and **MegaDetector**: a JSON file; file names are relative to its folder, or to the listing's root.
    - **CUB-200-2011**: a folder with `images.txt`, `bounding_boxes.txt` (x, y, width, height),
      `image_class_labels.txt`, `classes.txt` and `train_test_split.txt`; the images are in its `images/`.
    - **ILSVRC** and **Pascal VOC** (XML), **Labelme** (JSON), **YOLO** (TXT): a folder of files, however deep; an image
      is found by its name without folder and suffix. Boxes are scaled if the image has another size than its annotation
      says. Corners are taken as edges. Of polygons it is the box around them.
    - **CVAT for images**: one XML file.

    Boxes of a table that all lie within 0 and 1 are shares of their image. A box without four numbers or without an
    area is left out, and so is an annotation that is none; they are counted in a remark.

    Args:
        source: the file or folder.
        split: a part of CUB; other layouts have none.
        order: of a table's four numbers; left out: what its columns are called, and for a single one what fits.
        unit: of a table's numbers, "pixel" or "relative"; left out: see above.
        strict: refuse what would be remarked on.
    """
    path = Path(source)
    is_table = path.is_file() and path.suffix.lower() not in (".xml", ".json")
    if (order or unit) and path.exists() and not is_table:
        raise InputError(f"{path}: the format says how its boxes are written; leave out --box-format")
    if path.is_dir():
        table = _read_cub(path, split) if (path / "bounding_boxes.txt").is_file() else read_folder(path)
    elif not path.is_file():
        raise InputError(f"{path}: no such file or folder of boxes")
    else:
        table = _read_csv(path, order, strict=strict) if is_table else read_file(path)
    return usable(table, unit=unit, strict=strict)


def usable(table: BoxTable, *, unit: Unit | None = None, strict: bool = False) -> BoxTable:
    """A table whose problems are remarked on, and whose boxes are shares of their images if they look like it."""
    boxes = [box for box, *_ in table.boxes]
    if table.problems and not boxes:
        raise InputError(table.problems[0])
    if table.problems:
        message = f"{len(table.problems):,} boxes or annotations of {table.source} cannot be used and are left out, "
        remark(f"{message}the first: {table.problems[0]}", strict=strict)
    is_said = any(each.size == SHARES for each in table.annotations.values())
    if unit == "pixel" or is_said or not boxes:
        return table
    if unit is None:
        if not all(min(box) >= -0.01 and max(box) <= 1.01 for box in boxes):
            return table
        remark(
            f"all {len(boxes):,} boxes of {table.source} lie within 0 … 1, so they are read as shares of their image, "
            "not as pixels",
            strict=strict,
        )
    shares = {name: each._replace(size=SHARES) for name, each in table.annotations.items()}
    return replace(table, annotations=shares)


def read_synsets(path: str | os.PathLike[str]) -> dict[str, str]:
    """ILSVRC's list of the validation images' classes: stem → synset.

    Two forms are known: a line `ILSVRC2012_val_00000001.JPEG n01751748` for each image, or the synsets alone, where
    line i is that of `ILSVRC2012_val_%08d`.
    """
    classes: dict[str, str] = {}
    for number, line in lines_of(Path(path)):
        words = line.split()
        if len(words) not in (1, 2) or not re.fullmatch(r"n\d{8}", words[-1]):
            raise InputError(f"{path}, line {number}: expected `IMAGE n01751748` or `n01751748`, got {line!r}")
        named = words[0].replace("\\", "/")
        stem = PurePosixPath(named).stem if len(words) == 2 else f"ILSVRC2012_val_{number:08d}"
        classes[stem] = words[-1]
    return classes


class BoxColumns(NamedTuple):
    """The columns of a table that hold a box, and in what order; None where one column holds all and does not say."""

    names: tuple[str, ...]
    order: Order | None

    @classmethod
    def of(cls, names: Iterable[str], order: Order | None = None) -> BoxColumns | None:
        """Those of a header, in the order that the user or else their names say; None if there are none."""
        columns = box_columns(names)
        if not columns:
            return None
        if order is None and len(columns) == 4:
            first, last = columns[0].lower(), columns[3].lower()
            has_size = last.endswith(("h", "height"))
            order = "xyxy" if not has_size else "cxcywh" if first in ("cx", "x_center") else "xywh"
        return cls(columns, order)

    def cells(self, row: Mapping[str, str]) -> list[str]:
        """The four numbers of a row as text; none where its cells are empty."""
        if len(self.names) == 1:
            return re.findall(r"[-+\d.eE]*\d[\d.eE]*|nan", row[self.names[0]])
        cells = [row[name] for name in self.names]
        return cells if any(cells) else []


class BoxRow(NamedTuple):
    """A line of a table with a box."""

    file: str  # absolute
    where: str
    cells: Mapping[str, str]
    label: str | None


def _read_csv(path: Path, order: Order | None, *, strict: bool) -> BoxTable:
    limit_size(path, MAX_TABLE)
    names = header_of(path)
    columns = BoxColumns.of(names, order) if "path" in names else None
    if columns is None:
        raise _no_columns(path, names)
    others = [name for name in names if name not in ("path", *columns.names)]
    similar = None if "label" in others else look_alike(others, LABEL_NAMES)
    if similar is not None:
        remark(
            f"{path}: the boxes have no class, for there is no column 'label'; {similar!r} looks like one, rename it "
            "if it is"
        )
    problems: dict[int, str] = {}
    rows = [
        BoxRow(absolute(path.parent / row["path"]), f"{path}, line {line}", row, row.get("label") or None)
        for line, row in rows_of(path, left_out=problems)
    ]
    table = boxes_of_rows(path, rows, columns, strict=strict)
    return replace(table, problems=(*problems.values(), *table.problems))


def boxes_of_rows(source: Path, rows: Sequence[BoxRow], columns: BoxColumns, *, strict: bool = False) -> BoxTable:
    """The boxes in the lines of a table, by file; lines without a sound one are its problems."""
    order = columns.order or _found_order(source, rows, columns, strict=strict)
    problems: list[str] = []
    boxes: dict[str, list[LabelledBox]] = {}
    sizes: dict[str, Size | None] = {}
    given = () if order != "xyxy" or not rows else _size_columns(list(rows[0].cells))
    for row in rows:
        cells = columns.cells(row.cells)
        try:
            box = box_of(cells, row.where, order=order)
        except InputError as error:
            problems.append(f"{error}{'' if order != 'xyxy' else _side_hint(cells)}")
        else:
            boxes.setdefault(row.file, []).append(LabelledBox(box, row.label))
            sizes[row.file] = _whole_size([row.cells[name] for name in given])
    if all(
        size is None or any(abs(box.width - size[0]) <= 1 and abs(box.height - size[1]) <= 1 for box, *_ in boxes[file])
        for file, size in sizes.items()
    ):
        sizes = {}  # they are those of the boxes
    found = {file: Annotation(tuple(own), sizes.get(file)) for file, own in boxes.items()}
    return BoxTable(source, found, problems=tuple(problems))


def _found_order(source: Path, rows: Sequence[BoxRow], columns: BoxColumns, *, strict: bool) -> Order:
    """Edges or corner and size: whichever leaves more boxes neither empty nor beyond their image."""
    counts: Counter[Order] = Counter()
    tried = 0
    for row in rows[:_TRIED]:
        try:
            numbers = [as_float(cell) for cell in columns.cells(row.cells)]
            edges = image_size(row.file)
        except (ValueError, ImageError):
            continue
        if len(numbers) == 4:
            width, height = (1, 1) if max(numbers) <= 1 else edges
            tried += 1
            counts["xyxy"] += numbers[0] < numbers[2] <= width + 1 and numbers[1] < numbers[3] <= height + 1
            counts["xywh"] += numbers[0] + numbers[2] <= width + 1 and numbers[1] + numbers[3] <= height + 1
    order: Order = "xyxy" if counts["xyxy"] > counts["xywh"] else "xywh"
    meant = {"xyxy": "edges (x1, y1, x2, y2)", "xywh": "a corner and the size (x, y, width, height)"}
    message = f"the boxes in the column {columns.names[0]!r} of {source.name} are read as {meant[order]}"
    if counts["xyxy"] == counts["xywh"]:
        remark(f"{message}; nothing in them tells, say --box-format xyxy if they are edges", strict=strict)
    else:
        other: Order = "xywh" if order == "xyxy" else "xyxy"
        remark(f"{message}: {counts[order]:,} of {tried:,} fit their image so, and {counts[other]:,} as {meant[other]}")
    return order


def _no_columns(path: Path, names: Sequence[str]) -> InputError:
    missing = next(name for name in ("path", *CORNERS) if name not in names)
    usual = {
        "path": ("path", "filename", "file", "image"),
        "x2": ("x2", "right", "xmax"),
        "y2": ("y2", "bottom", "ymax"),
    }
    near = look_alike(names, usual.get(missing, (missing, {"x1": "xmin", "y1": "ymin"}.get(missing, missing))))
    hint = f"; did you mean {near!r}?" if near else ""
    return InputError(f"{path}: expected the columns path, x1, y1, x2, y2, got {', '.join(names)}{hint}")


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


def _read_cub(folder: Path, split: BoxSplit) -> BoxTable:
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
            box = box_of(corners[number].split(), f"{where} of bounding_boxes.txt (x, y, width, height)", order="xywh")
        except InputError as error:
            problems.append(str(error))
        else:
            boxes[absolute(folder / "images" / path)] = Annotation((LabelledBox(box, label),))
    return BoxTable(folder, boxes, problems=tuple(problems))


def _numbered(path: Path, problems: list[str]) -> dict[str, str]:
    """A table of CUB's: a number, a space, the rest of the line."""
    limit_size(path, MAX_TABLE)
    table = {}
    for number, line in lines_of(path):
        key, _, value = line.partition(" ")
        if not key.isdecimal() or not value.strip():
            problems.append(f"{path}, line {number}: expected a number and a value, got {line!r}")
        else:
            table[key] = value.strip()
    return table
