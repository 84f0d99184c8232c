"""Listings of boxes: `list_items("photos/", boxes="detections.json")`, and tables with the columns of a box."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ImageError, InputError
from ...remarks import remark
from ..image_sources import ImageRecord, RecordSource
from ..items import item_of, whole_pixels
from ..listing import GivenLabels, Listing, list_images, quiet_listing
from ..loading import image_size
from .fitting import BoxTable, Drawn, Order, absolute, fitted
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


def list_items(
    source: Any,
    *,
    labels: GivenLabels = None,
    boxes: GivenBoxes = None,
    strict: bool = False,
    keep: str | os.PathLike[str] | None = None,
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
        keep: see `list_images`.

    Raises:
        InputError: what `list_images` and `read_boxes` refuse, or no box of any image.
    """
    given = boxes if isinstance(boxes, BoxSource) else BoxSource(boxes)
    if given.file is not None and os.fspath(given.file) == "none":
        return list_images(source, labels=labels, strict=strict, keep=keep)
    listing = quiet_listing(source, labels, strict=strict, is_cut=given.file is None, keep=keep)
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
        cuts = _of_columns(listing, columns, given, problems, strict=strict)
    else:
        cuts = _of_file(listing, given, problems, has_labels=labels is not None, strict=strict)
    records = _cut_out(cuts, problems)
    if not records:
        raise InputError(f"no box of {given.file or listing.name} can be used; {next(iter(problems), 'there is none')}")
    names = tuple(dict.fromkeys(name for record in records for name in record.columns))
    return Listing.of(RecordSource(listing.root, names, records, tuple(problems)))


_Cuts = list[tuple[Drawn, list[ImageRecord]]]  # the boxes of each image, and what is said of each of them


def _of_columns(listing: Listing, columns: BoxColumns, given: BoxSource, problems: list[str], *, strict: bool) -> _Cuts:
    table, records = Path(listing.name), list(listing)
    rows = [
        BoxRow(absolute(listing.file(record)), record.path, record.columns, label=str(place))
        for place, record in enumerate(records)
    ]
    found = usable(boxes_of_rows(table, rows, columns, strict=strict), unit=given.reading["unit"], strict=strict)
    problems += found.problems
    paths = {row.file: row.where for row in rows}
    drawn = [Drawn(paths[file], Path(file), annotation) for file, annotation in found.annotations.items()]
    cuts: _Cuts = []
    for each in fitted(drawn, table, strict=strict, left_out=problems):
        own = [records[int(box.label or 0)] for box in each.annotation.boxes]
        others = [{name: cell for name, cell in row.columns.items() if name not in columns.names} for row in own]
        cuts.append((each, [row._replace(columns=cells) for row, cells in zip(own, others, strict=True)]))
    return cuts


def _sure_enough(table: BoxTable, confidence: float | None) -> BoxTable:
    """The boxes with a confidence of this or more; without one, of `LEAST_CONFIDENCE`, which is remarked on."""
    boxes = list(table.boxes)
    if confidence is not None and all(box.confidence is None for box in boxes):
        raise InputError(f"{table.source}: says no confidence of its boxes; leave out --box-confidence")
    least = LEAST_CONFIDENCE if confidence is None else confidence
    sure = {
        name: each._replace(boxes=tuple(box for box in each.boxes if box.confidence is None or box.confidence >= least))
        for name, each in table.annotations.items()
    }
    kept = replace(table, annotations=sure)
    if confidence is None and (unsure := len(boxes) - len(list(kept.boxes))):
        remark(
            f"{unsure:,} of {len(boxes):,} boxes of {table.source} have a confidence below {least:g} and are "
            "left out; --box-confidence says from which on they count"
        )
    return kept


def _of_file(listing: Listing, given: BoxSource, problems: list[str], *, has_labels: bool, strict: bool) -> _Cuts:
    assert given.file is not None
    table = _sure_enough(read_boxes(given.file, strict=strict, **given.reading), given.confidence)
    problems += table.problems
    images = {record.path: record for record in listing}
    cuts: _Cuts = []
    others: list[str] = []
    for each in drawn_on(listing, table, strict=strict, left_out=problems):
        record, own = images[each.path], []
        for _, label, confidence in each.annotation.boxes:
            sure = {} if confidence is None else {"confidence": f"{confidence:g}"}
            if table.label_column != "label":
                sure, label = {table.label_column: label or "", **sure}, None
            elif label is not None and record.label not in (None, label):
                others.append(f"{label!r}, not {record.label!r} ({each.path})")
            wins = record.label if has_labels and record.label is not None else label or record.label
            own.append(ImageRecord(each.path, wins, {**record.columns, **sure}))
        cuts.append((each, own))
    if others and not has_labels:
        remark(
            f"the class of {len(others):,} boxes is the one that {table.source} says and not that of their image, "
            f"such as {others[0]}; --labels folder, or a CSV, says otherwise"
        )
    return cuts


def _cut_out(cuts: _Cuts, problems: list[str]) -> tuple[ImageRecord, ...]:
    """A record for each box in pixels of its own image; doubled ones, and those of no image, are problems."""
    records: dict[str, ImageRecord] = {}
    for (path, file, annotation), own in cuts:
        across = down = 1.0
        if annotation.size is not None:
            try:
                width, height = image_size(file)
            except ImageError as error:
                problems.append(f"{path}: {error.reason}")
                continue
            across, down = width / annotation.size[0], height / annotation.size[1]
        for each, record in zip(annotation.boxes, own, strict=True):
            whole = whole_pixels(each.box.scaled(across, down))
            item = item_of(path, whole)
            if item in records:
                problems.append(f"{item}: the same box once more")
            else:
                records[item] = record._replace(box=whole)
    return tuple(records.values())
