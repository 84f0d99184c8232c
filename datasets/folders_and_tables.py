"""Folders and tables of one's own as retrieval sets: classes, splits, and what of them is left out or ignored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..images.labelling import box_columns, remark_on_placeholders, remark_on_twins, require_labels, uncut_boxes
from ..images.listing import ImageRecord, quiet_listing
from ..images.splits import flags_of, overlooked_column, split_column, split_name, split_of_row
from .layouts import DatasetRecord, Role

_ROLES: dict[str, Role] = {"query": "query", "gallery": "gallery"}


class Found(NamedTuple):
    """Records of a folder or table; `problems` says what is left out or ignored."""

    root: Path
    records: tuple[DatasetRecord, ...]
    problems: tuple[str, ...] = ()


def read_folders(folder: Path) -> Found:
    """One folder per class; above them perhaps one per split, or `query` and `gallery`; see `find_split_folders`."""
    listing = quiet_listing(folder)
    records, outside = [], []
    for record in listing:
        place = record.columns.get("split", "all")
        if record.label is not None and place:
            records.append(DatasetRecord(record.path, record.label, *_part(place)))
        else:
            outside.append(record.path)
    if not records:
        raise InputError(f"{folder}: expected a sub-folder for each class; its {len(outside)} images have no labels")
    if all(record.role != "both" for record in records):  # nothing but queries and a gallery: no splits to choose from
        records = [record._replace(split="all") for record in records]
    problems = list(listing.problems)
    if listing.doubt:
        problems.insert(0, listing.doubt)
    if outside:
        said = f"{len(outside)} images lie outside of class folders and are left out, such as {outside[0]}"
        problems.insert(0, said)
    return Found(listing.root, tuple(records), tuple(problems))


def _part(split: str) -> tuple[str, Role]:
    """The split and the role of what a folder or cell of this name stands for: query and gallery are of the test."""
    known = split_name(split)
    return (split, "both") if known is None or known not in _ROLES else ("test", _ROLES[known])


def read_table(file: Path) -> Found:
    """A CSV file with `path` and `label`, and perhaps `split`, `is_query` and `is_gallery`; see `split_of_row`."""
    found = list(listing := quiet_listing(file, labels="column"))
    require_labels(file, [record.path for record in found if record.label is None], count=len(found))
    column = split_column([record.columns for record in found], listing.column_names)
    records, boxed, boxes, spellings = [], 0, box_columns(listing.column_names), dict[str, str]()
    for record in found:
        assert record.label is not None, "required above"
        query, gallery = map(flags_of(record.columns, file).get, ("is_query", "is_gallery"))
        if not query and not gallery and (query, gallery) != (None, None):
            raise InputError(f"{file}: {record.path} is neither query nor gallery; leave its line out")
        cell = record.columns.get(column, "").strip() if column is not None else ""
        if not cell:
            cell = split_of_row(record.columns, column, where=file) or "all"
        elif (known := split_name(cell)) is not None:  # as the table spells it first, but for its case
            cell = spellings.setdefault(known, cell.lower())
        split, role = _part(cell)
        if query or gallery:
            role = "both" if query and gallery else ("query" if query else "gallery")
        records.append(DatasetRecord(record.path, record.label, split, role))
        boxed += bool(boxes) and all(record.columns[name] for name in boxes)
    counts = Counter(record.label for record in records)
    remark_on_placeholders(counts, file.name)
    remark_on_twins(counts, file.name)
    problems = [uncut_boxes(boxed, boxes)] if boxed else []
    problems += _of_no_split(records, found, listing.column_names, is_divided=column is not None)
    if column is None and len({record.split for record in records}) == 1:  # flags alone, on every row or on none
        records = [record._replace(split="all") for record in records]
    return Found(listing.root, tuple(records), tuple(problems))


def _of_no_split(
    records: Sequence[DatasetRecord], found: Sequence[ImageRecord], names: Sequence[str], *, is_divided: bool
) -> Iterator[str]:
    """Sentences about images that the table's splits leave out, or about a column of splits that nobody asked."""
    known = any(split_name(record.split) for record in records)
    if is_divided and known:
        if left := [record for record in records if not split_name(record.split)]:
            said = Counter("empty" if record.split == "all" else record.split for record in left)
            shown = ", ".join(f"{name} {count}" for name, count in said.most_common(5))
            yield f"{len(left):,} images are of no known split ({shown}), such as {left[0].path}"
    elif not is_divided and not known and (doubt := overlooked_column([each.columns for each in found], names)):
        yield f"all images are taken together, but {doubt}; name the column split"
