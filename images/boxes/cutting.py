"""Listings of boxes: `list_items("photos/", boxes="detections.json")`, and tables with the columns of a box."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ImageError, InputError
from ...remarks import remark
from ..image_sources import ImageRecord, Report
from ..items import item_of, whole_pixels
from ..listing import Listing, list_images, quiet_listing
from ..loading import image_size
from .fitting import Annotation, BoxTable, Drawn, LabelledBox, Order, absolute, fitted
from .formats import BoxColumns, BoxRow, Unit, boxes_of_rows, read_boxes, usable
from .joined import drawn_on

LEAST_CONFIDENCE = 0.2  # of a detector's boxes; MegaDetector's makers advise it


@dataclass(frozen=True)
class BoxSource:
    """Boxes to cut out, and how they are to be read.

    Attributes:
        file: a file or folder that `read_boxes` reads; None: the columns of the table of images.
        format: of a table's four numbers: "xyxy", "xywh" or "cxcywh", "pixel" or "relative", or both, such as
            "xywh-relative"; None: what columns are called, and what can be proved.
        confidence: boxes that a detector is less sure of are left out, 0 to 1; None: 0.2, which is remarked on.
    """

    file: str | os.PathLike[str] | None = None
    format: str | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise InputError(f"expected a confidence from 0 to 1, got {self.confidence}")
        _ = self.reading

    @property
    def reading(self) -> dict[str, Any]:
        """The format as `order` and `unit`, see `read_boxes`."""
        words = [] if self.format is None else self.format.split("-")
        found: dict[str, Order | Unit | None] = {"order": None, "unit": None}
        for word in words:
            kind = "order" if word in ("xyxy", "xywh", "cxcywh") else "unit"
            if found[kind] is not None or (kind == "unit" and word not in ("pixel", "relative")):
                raise InputError(
                    "expected a box format such as xyxy, xywh, cxcywh, relative, pixel or xywh-relative, "
                    f"got {self.format!r}"
                )
            found[kind] = word  # type: ignore[assignment]
        return found


GivenBoxes = BoxSource | str | os.PathLike[str] | None


@dataclass(frozen=True)
class _Items:
    """Boxes as a source of images: those of a file behind one another."""

    root: Path
    column_names: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    problems: tuple[str, ...]

    def scan(self, report: Report) -> Iterator[ImageRecord]:
        """The boxes; those that cannot be used are reported."""
        for problem in self.problems:
            path, _, reason = problem.partition(": ")
            report(path, reason)
        yield from self.records


def list_items(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    labels: str | os.PathLike[str] | None = None,
    boxes: GivenBoxes = None,
    strict: bool = False,
) -> Listing:
    """A listing of boxes: each is an `ImageRecord` with its box, in whole pixels of the upright image.

    Boxes come from a file or folder, see `read_boxes`, or from the columns of a table, which then has a line for each.
    Images without a box are left out. Boxes outside of their image, of another size, empty, or doubled are passed over
    and listed in `Listing.problems`, with a remark for each kind. Without boxes it is `list_images`.

    Args:
        source: see `list_images`.
        labels: likewise; left out: the class that the file gives a box, else that of its image.
        boxes: a file or folder, or a `BoxSource`; left out: the columns of a table, if it has such; `"none"`: none.
        strict: refuse what would be remarked on.

    Raises:
        InputError: what `list_images` and `read_boxes` refuse, or no box of any image.
    """
    given = boxes if isinstance(boxes, BoxSource) else BoxSource(boxes)
    if given.file is not None and os.fspath(given.file) == "none":
        return list_images(source, labels=labels, strict=strict)
    listing = quiet_listing(source, labels, strict=strict, is_cut=given.file is None)
    for sentence in listing.remarks:
        remark(sentence, strict=strict)
    columns = None if given.file else BoxColumns.of(listing.column_names, given.reading["order"])
    if columns is None and given.file is None:
        if given.format is not None or given.confidence is not None:
            raise InputError(
                "--box-format and --box-confidence are for boxes, and there are none in the table of images"
            )
        return listing
    problems: list[str] = []
    if columns is not None:
        assert isinstance(source, (str, os.PathLike)), "files have no columns"
        facts, drawn = _of_columns(listing, columns, given, Path(source), problems, strict=strict)
    else:
        facts, drawn = _of_file(listing, given, problems, has_labels=labels is not None, strict=strict)
    records = _cut_out(facts, drawn, problems)
    if not records:
        raise InputError(f"no box of {given.file or source} can be used; {next(iter(problems), 'there is none')}")
    names = tuple(dict.fromkeys(name for record in records for name in record.columns))
    return Listing.of(_Items(listing.root, names, records, tuple(problems)))


_Cuts = tuple[list[ImageRecord], list[Drawn]]  # what is said of each box, and the boxes, labelled with places in it


def _of_columns(
    listing: Listing, columns: BoxColumns, given: BoxSource, table: Path, problems: list[str], *, strict: bool
) -> _Cuts:
    records = list(listing)
    facts, rows = [], []
    for place, record in enumerate(records):
        others = {name: value for name, value in record.columns.items() if name not in columns.names}
        facts.append(record._replace(columns=others))
        rows.append(BoxRow(absolute(listing.file(record)), record.path, record.columns, str(place)))
    found = usable(boxes_of_rows(table, rows, columns, strict=strict), unit=given.reading["unit"], strict=strict)
    problems += found.problems
    paths = {row.file: row.where for row in rows}
    drawn = [Drawn(paths[file], Path(file), annotation) for file, annotation in found.by_file.items()]
    fits = fitted(drawn, table, strict=strict, left_out=problems)
    return facts, [each._replace(annotation=fit) for each, fit in zip(drawn, fits, strict=True)]


_Said = list[tuple[str | None, float | None]]  # label and confidence of each box


def _numbered(table: BoxTable, least: float) -> tuple[BoxTable, _Said]:
    """The boxes that are sure enough, called by their places in a list of what is said of them."""
    said: _Said = []

    def numbered(name: str, annotation: Annotation) -> Annotation:
        sure = table.confidences.get(name, [None] * len(annotation.boxes))
        first = len(said)
        pairs = [pair for pair in zip(annotation.boxes, sure, strict=True) if pair[1] is None or pair[1] >= least]
        said.extend((box.label, confidence) for box, confidence in pairs)
        boxes = (LabelledBox(box.box, str(first + place)) for place, (box, _) in enumerate(pairs))
        return annotation._replace(boxes=tuple(boxes))

    files, stems = (
        {name: numbered(name, each) for name, each in side.items()} for side in (table.by_file, table.by_stem)
    )
    return replace(table, by_file=files, by_stem=stems), said


def _of_file(listing: Listing, given: BoxSource, problems: list[str], *, has_labels: bool, strict: bool) -> _Cuts:
    assert given.file is not None
    table = read_boxes(given.file, strict=strict, **given.reading)
    problems += table.problems
    if given.confidence is not None and not table.confidences:
        raise InputError(f"{given.file}: says no confidence of its boxes; leave out --box-confidence")
    least = LEAST_CONFIDENCE if given.confidence is None else given.confidence
    before = sum(len(table.annotation(name).boxes) for name in table.names)
    table, said = _numbered(table, least)
    if given.confidence is None and len(said) < before:
        remark(
            f"{before - len(said):,} of {before:,} boxes of {table.source} have a confidence below {least:g} and are "
            "left out; --box-confidence says from which on they count"
        )
    drawn, _ = drawn_on(listing, table, strict=strict, left_out=problems)
    images = {record.path: record for record in listing}
    facts = [ImageRecord("")] * len(said)
    others: list[str] = []
    for path, _, annotation in drawn:
        for key in (int(key or 0) for _, key in annotation.boxes):
            record, (label, confidence) = images[path], said[key]
            sure = {} if confidence is None else {"confidence": f"{confidence:g}"}
            if table.label_column != "label":
                sure, label = {table.label_column: label or "", **sure}, None
            elif label is not None and record.label not in (None, label):
                others.append(f"{label!r}, not {record.label!r} ({path})")
            wins = record.label if has_labels and record.label is not None else label or record.label
            facts[key] = ImageRecord(path, wins, {**record.columns, **sure})
    if others and not has_labels:
        remark(
            f"the class of {len(others):,} boxes is the one that {table.source} says and not that of their image, "
            f"such as {others[0]}; --labels folder, or a CSV, says otherwise"
        )
    return facts, drawn


def _cut_out(facts: Sequence[ImageRecord], drawn: Sequence[Drawn], problems: list[str]) -> tuple[ImageRecord, ...]:
    """A record for each box in pixels of its own image; doubled ones, and those of no image, are problems."""
    records: dict[str, ImageRecord] = {}
    for path, file, annotation in drawn:
        across = down = 1.0
        if annotation.size is not None:
            try:
                width, height = image_size(file)
            except ImageError as error:
                problems.append(f"{path}: {error.reason}")
                continue
            across, down = width / annotation.size[0], height / annotation.size[1]
        for box, key in annotation.boxes:
            whole = whole_pixels(box.scaled(across, down))
            item = item_of(path, whole)
            if item in records:
                problems.append(f"{item}: the same box once more")
            else:
                records[item] = facts[int(key or 0)]._replace(box=whole)
    return tuple(records.values())
