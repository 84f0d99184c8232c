"""Gaps in a listing's labels and columns: images without a label, placeholders, boxes that nobody cuts out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

from ..errors import InputError
from ..remarks import remark
from .joining import near_file
from .tables import LABEL_NAMES, look_alike, missing_column

# fmt: off
_PLACEHOLDERS = frozenset({
    "unknown", "unk", "unkn", "nan", "none", "null", "nil", "na", "n/a", "#n/a", "nat", "undefined", "undetermined",
    "unidentified", "unid", "notidentified", "unlabeled", "unlabelled", "notlabeled", "nolabel", "tbd", "todo",
    "missing", "empty", "noid", "noname", "unnamed", "newindividual", "notavailable", "notapplicable",
    "?", "??", "???", "-", "--", "-1",
    "newwhale", "unbekannt", "unbestimmt", "inconnu", "inconnue", "inconnus", "desconocido", "desconocida",
    "desconhecido", "desconhecida", "sconosciuto", "sconosciuta", "onbekend", "okänd", "ukendt", "ukjent", "tuntematon",
    "nieznany", "nieznana", "neznámý", "ismeretlen", "necunoscut", "bilinmeyen", "неизвестно", "неизвестный",
    "неизвестная", "невідомо", "άγνωστο", "不明", "未知", "未詳", "알수없음", "미상", "غيرمعروف", "مجهول",
})
# fmt: on
BOX_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("x1", "y1", "x2", "y2"),
    ("x_1", "y_1", "x_2", "y_2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
    ("left", "top", "width", "height"),
    ("cx", "cy", "w", "h"),
    ("x_center", "y_center", "width", "height"),
    ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"),
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("bbox_x", "bbox_y", "bbox_w", "bbox_h"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
    ("bbox",),
    ("box",),
    ("bounding_box",),
)
"""Names of the columns of a box in tables: its edges, or a corner with width and height, or all in one cell."""


@lru_cache(maxsize=4096)
def is_placeholder(name: str) -> bool:
    """True if a name stands for "nobody knows" rather than for a class or an individual.

    >>> is_placeholder("Unknown"), is_placeholder("N/A "), is_placeholder("nanette"), is_placeholder("0")
    (True, True, False, False)
    """
    text = normalize("NFC", name).strip().lower()
    return not text or text in _PLACEHOLDERS or re.sub(r"[\s_-]", "", text) in _PLACEHOLDERS - {"1"}


def remark_on_placeholders(counts: Mapping[str, int], where: str, *, what: str = "class", strict: bool = False) -> None:
    """Say which labels look like placeholders: as labels they make one class of all their images."""
    found = {name: number for name, number in counts.items() if is_placeholder(name)}
    if found:
        listed = ", ".join(f"{name!r} ({number:,} images)" for name, number in list(found.items())[:3])
        remark(
            f"{where}: {listed} looks like a placeholder rather than a {what}; its images count as one {what}",
            strict=strict,
        )


def twins(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that are probably one: `cat` and `Cat`, `3` and `3.0`, `red fox` and `red_fox`.

    Single letters are no such pair, for sets of letters tell `a` from `A`.

    >>> twins(["3.0", "cat", "a", "A", "3", "Cat "])
    [('3.0', '3'), ('cat', 'Cat ')]
    """
    seen: dict[str, str] = {}
    found = []
    for name in names:
        spelling = text = normalize("NFC", name).strip()
        if number := re.fullmatch(r"([+-]?[0-9]+)(?:[.]0*)?", text):
            spelling = str(int(number[1])) if len(text) < 20 else text
        elif len(text) > 1:
            spelling = re.sub(r"[\s_-]+", " ", text.casefold())
        if (first := seen.setdefault(spelling, name)) != name:
            found.append((first, name))
    return found


def remark_on_twins(counts: Mapping[str, int], where: str, *, what: str = "class", strict: bool = False) -> None:
    """Say which labels differ in their spelling alone: each counts as a class of its own."""
    if found := twins(counts):
        first, second = (f"{name!r} ({counts[name]:,} images)" for name in found[0])
        remark(
            f"{where}: {len(found):,} labels differ from another in their spelling alone, such as {first} and "
            f"{second}; each counts as one {what}",
            strict=strict,
        )


def box_columns(names: Iterable[str]) -> tuple[str, ...]:
    """The columns that hold a box, as they are written; empty if there are none.

    >>> box_columns(["split", "X1", "y1", "x2", "y2"])
    ('X1', 'y1', 'x2', 'y2')
    """
    known = {name.lower(): name for name in names}
    return next((tuple(known[each] for each in quad) for quad in BOX_COLUMNS if all(e in known for e in quad)), ())


def uncut_boxes(count: int, columns: Sequence[str]) -> str:
    """A sentence about boxes that stand in a table's columns and are not used as crops."""
    return (
        f"the boxes of {count:,} images (columns {', '.join(columns)}) are kept as columns and NOT cut out: "
        "whole images are used; `distcam index build` cuts them out, or do so beforehand if the boxes are meant"
    )


def require_labels(table: str, names: Sequence[str], bare: Sequence[str], *, count: int) -> None:
    """Refuse a table with these columns that says of some of its `count` images, `bare`, no label."""
    if not bare:
        return
    if "label" not in names:
        raise missing_column(table, "label", got=names)
    raise InputError(
        f"{table}: expected a label for every image; {len(bare):,} of {count:,} have none, such as {bare[0]}"
    )


_MOST_LABELS = 100_000  # whose spelling is compared
_LOOKED_UP, _GUESSED = 200, 3  # files of a table, and those of them that are nowhere


class Tally:
    """Counts what is said of images while they pass."""

    def __init__(self, column_names: Iterable[str] = ()) -> None:
        self.count = self.labelled = self.boxed = 0
        self.labels: Counter[str] = Counter()
        self.columns = tuple(column_names)
        self.box_columns = box_columns(self.columns)
        self.unlabelled: str | None = None
        self.first: list[str] = []

    def add(self, paths: Sequence[str], labels: Sequence[str | None], columns: Iterable[Mapping[str, str]]) -> None:
        """Some images."""
        self.count += len(paths)
        self.first += paths[: max(0, _LOOKED_UP - len(self.first))]
        counts = Counter(label for label in labels if label is not None)
        if counts.total() < len(labels):
            self.unlabelled = self.unlabelled or paths[labels.index(None)]
        self.labelled += counts.total()
        for label, number in counts.items():
            if label in self.labels or len(self.labels) < _MOST_LABELS or is_placeholder(label):
                self.labels[label] += number
        if self.box_columns:
            self.boxed += sum(all(map(cells.get, self.box_columns)) for cells in columns)

    def tell_missing(self, table: str, root: Path, *, strict: bool = False) -> None:
        """Say which file a path of a table probably means that is nowhere; only the first paths are looked up."""
        missing = [path for path in self.first if not os.path.lexists(root / path)]
        for path in missing[:_GUESSED]:
            if (near := near_file(root, path)) is not None:
                message = f"{len(missing):,} of the first {len(self.first):,} files in {table} are not there"
                remark(f"{message}; {path} and {near[0]}, which is, {near[1]}", strict=strict)
                return

    def tell_labels(self, table: str, *, has_column: bool, strict: bool = False) -> None:
        """Say how many lines of a table have no label; of a table without any, which column looks like one."""
        others = [name for name in self.columns if name not in self.box_columns]
        similar = None if has_column or "labels" in others else look_alike(others, LABEL_NAMES)
        if has_column and self.count != self.labelled:
            lacking = self.count - self.labelled
            message = f"{lacking:,} of {self.count:,} images in {table} have no label, such as {self.unlabelled}"
        elif similar is not None:
            message = (
                f"none of the {self.count:,} images in {table} has a label: it has no column 'label'; "
                f"{similar!r} looks like one, rename it if it is"
            )
        else:
            return
        remark(message, strict=strict)
