"""Labelled image sets for evaluation: the retrieval benchmarks as their archives unpack, folders, and CSV tables.

What lies on disk is compared with the official counts: a number on an incomplete copy is none on that benchmark.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..images.given.inputs import is_given
from ..images.image_sources import ImageRecord, RecordSource
from ..images.joining import is_plain, near_file, spelled
from ..images.labelling import box_columns, remark_on_placeholders, remark_on_twins, require_labels, uncut_boxes
from ..images.listing import Listing, quiet_listing
from ..images.splits import flags_of, overlooked_column, split_column, split_name, split_of_row
from .layouts import CARS, CUB, CUB_CLASSIFICATION, DOGS, ILSVRC, INSHOP, SOP, DatasetRecord, Layout, Role

_ROLES: dict[str, Role] = {"query": "query", "gallery": "gallery"}
LAYOUTS: Mapping[str, Layout] = {
    "cub": CUB,
    "cars": CARS,
    "sop": SOP,
    "inshop": INSHOP,
    "dogs": DOGS,
    "ilsvrc": ILSVRC,
    "cub-classification": CUB_CLASSIFICATION,
}


@dataclass(frozen=True)
class Dataset:
    """Labelled images, or those of one split.

    Attributes:
        layout: a name in `LAYOUTS`, `"folder"` or `"csv"`.
        title: the benchmark's name, or the folder's or table's.
        root: the absolute folder that record paths are relative to.
        records: path, label, split and role of each image, in the order of the archive's own lists.
        problems: what makes this copy differ from the official one, one sentence each.
        shared_classes: classes of these images that also occur in splits left out; the benchmarks have none.
    """

    layout: str
    title: str
    root: Path
    records: tuple[DatasetRecord, ...]
    problems: tuple[str, ...] = ()
    shared_classes: int = 0

    def __len__(self) -> int:
        return len(self.records)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits in the order in which they first occur."""
        return tuple(dict.fromkeys(record.split for record in self.records))

    @property
    def has_gallery(self) -> bool:
        """True when queries and gallery are not the same images."""
        return any(record.role != "both" for record in self.records)

    def listing(self) -> Listing:
        """The images as encoders and galleries take them, with the columns `split` and `role`."""
        records = [
            ImageRecord(path, label, {"split": split, "role": role}) for path, label, split, role in self.records
        ]
        return Listing.of(RecordSource(self.root, ("split", "role"), tuple(records)))


def dataset_layouts() -> tuple[str, ...]:
    """The values of `layout` besides "auto"."""
    return (*LAYOUTS, "folder", "csv")


def load_dataset(
    source: Any,
    *,
    layout: str = "auto",
    split: str | None = None,
    strict: bool = False,
    keep: str | os.PathLike[str] | None = None,
) -> Dataset:
    """A benchmark, folder or table on disk; files are looked up but not opened.

    - `cub`: CUB-200-2011, classes 1–100 are `train`, 101–200 `test` (not `train_test_split.txt`, whose halves share
      all classes). `cars`: Cars196, classes 1–98 and 99–196, from the Kaggle copy's CSV files or the official `.mat`
      files. `sop`: Stanford Online Products. `inshop`: In-Shop clothes retrieval,
      whose `test` split has queries and a gallery. `dogs` (Stanford Dogs), `ilsvrc` and
      `cub-classification` have splits of the same classes.
    - `folder`: one folder per class; above them perhaps folders of splits (`train`, `test`, …), or `query` and
      `gallery`.
    - `csv`: a table with `path` and `label`, and perhaps `split`, `is_query`, `is_gallery`, as Open Metric Learning's.

    Args:
        source: the unpacked archive, the folder in which it was unpacked, any folder, or a CSV file; or a table, pair,
            or data set in memory, see `list_images`.
        layout: one of those above; `"auto"` recognises it by its files.
        split: only this one; by default all.
        strict: raise where the copy differs from the official one, instead of listing it in `Dataset.problems`.
        keep: a folder for images that are no files, see `list_images`.

    Raises:
        InputError: nothing fits the layout; a list is malformed; there is no such split, or no image of it is there.
    """
    whole, official = _read(source, layout, keep)
    if split is not None:
        chosen = named_split(split, whole.splits)
        if chosen is None:
            raise InputError(f"{whole.root}: no split {split!r}; there are {', '.join(whole.splits)}")
        records = tuple(record for record in whole.records if record.split == chosen)
        others = {record.label for record in whole.records if record.split != chosen}
        shared = len({record.label for record in records} & others)
        whole = replace(whole, records=records, shared_classes=shared)
    dataset = _present(whole, official)
    if strict and dataset.problems:
        raise InputError(f"{whole.root} is not the official {dataset.title}: {'; '.join(dataset.problems)}")
    return dataset


def listed_splits(
    source: str | os.PathLike[str], *, layout: str = "auto", keep: str | os.PathLike[str] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The splits that the lists of a data set name, whether their images are there or not; and its problems."""
    whole, _ = _read(source, layout, keep)
    if not whole.records:
        raise InputError(_nothing_there(whole, None))
    return whole.splits, whole.problems


def named_split(name: str, splits: Sequence[str]) -> str | None:
    """The split of this name, or else the one that means the same, as `validation` and `val` do; None if none does."""
    if name in splits:
        return name
    meant = split_name(name)
    return next((split for split in splits if meant is not None and split_name(split) == meant), None)


def _read(source: Any, layout: str, keep: str | os.PathLike[str] | None = None) -> tuple[Dataset, Layout | None]:
    """Everything that the lists name, and the benchmark's layout."""
    if layout not in ("auto", *dataset_layouts()):
        raise InputError(f"expected a layout out of auto, {', '.join(dataset_layouts())}; got {layout!r}")
    if is_given(source):
        return _read_table(source, keep), None
    path = Path(os.path.abspath(source))  # noqa: PTH100  (no resolve(): names of links stay as the user gave them)
    if not path.exists():
        raise InputError(f"{path}: expected a folder or a CSV file; nothing is there")
    if layout == "csv" or (layout == "auto" and path.is_file()):
        return _read_table(path, keep), None
    if not path.is_dir():
        raise InputError(f"{path}: expected a folder, got a file")
    for name, known in LAYOUTS.items():
        if layout in ("auto", name) and (root := known.find(path)) is not None:
            return Dataset(name, known.title, root, known.read(root)), known
    if layout in LAYOUTS:
        known = LAYOUTS[layout]
        expected = ", or ".join(" and ".join(files) for files in known.markers)
        raise InputError(f"{path}: no {known.title}; expected {expected} in it")
    return _read_folders(path), None


def _read_folders(folder: Path) -> Dataset:
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
        problems.insert(0, f"{len(outside)} images lie outside of class folders and are left out, such as {outside[0]}")
    if len(records) > 1 and len({record.label for record in records}) == 1:
        only = f"the one class {records[0].label!r}"
        problems.append(f"all {len(records):,} images are of {only}, so every answer is right")
    return Dataset("folder", folder.name, listing.root, tuple(records), (*_half_a_benchmark(folder), *problems))


def _part(split: str) -> tuple[str, Role]:
    """The split and the role of what a folder or cell of this name stands for: query and gallery are of the test."""
    known = split_name(split)
    return (split, "both") if known is None or known not in _ROLES else ("test", _ROLES[known])


def _read_table(source: Any, keep: str | os.PathLike[str] | None) -> Dataset:
    """A table with `path` and `label`, and perhaps `split`, `is_query` and `is_gallery`; see `split_of_row`."""
    found = list(listing := quiet_listing(source, "column", keep=keep))
    file = Path(listing.name)
    bare = [record.path for record in found if record.label is None]
    if len(bare) == len(found):
        require_labels(listing.name, listing.header, bare, count=len(found))
    column = split_column([record.columns for record in found], listing.column_names)
    records, boxed, boxes, spellings = [], 0, box_columns(listing.column_names), dict[str, str]()
    for record in found:
        if record.label is None:
            continue
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
    if bare:
        problems.append(f"{len(bare):,} of {len(found):,} images have no label and are left out, such as {bare[0]}")
    problems += _of_no_split(records, found, listing.column_names, is_divided=column is not None)
    if column is None and len({record.split for record in records}) == 1:  # flags alone, on every row or on none
        records = [record._replace(split="all") for record in records]
    return Dataset("csv", file.name, listing.root, tuple(records), tuple(problems))


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


def _half_a_benchmark(path: Path) -> Iterator[str]:
    """A sentence about a folder that has some of a benchmark's lists and not the others."""
    for known in LAYOUTS.values():
        for root in (path, path / known.folder):
            for files in known.markers:
                lacking = [file for file in files if not (root / file).exists()]
                if 0 < len(lacking) <= len(files) / 2:
                    yield (
                        f"{root} looks like {known.title}, but has no {' and no '.join(lacking)}: its lists are not "
                        "read, and the folders are the classes"
                    )
                    return


def _present(dataset: Dataset, official: Layout | None) -> Dataset:
    """Without files that are not there, and with what that and the official counts say about the copy."""
    root = os.fspath(dataset.root)
    records = [
        record if is_plain(record.path) else record._replace(path=spelled(dataset.root, record.path).replace("\\", "/"))
        for record in dataset.records
    ]
    present: list[DatasetRecord] = []
    missing: list[DatasetRecord] = []
    for record in records:
        is_there = os.path.exists(os.path.join(root, record.path))  # noqa: PTH110, PTH118  (speed)
        (present if is_there else missing).append(record)
    if not present:
        raise InputError(_nothing_there(dataset, official))
    problems = list(dataset.problems)
    if missing:
        first = missing[0].path
        near = near_file(dataset.root, first)
        probably = "" if near is None else f"; {first} and {near[0]}, which is, {near[1]}"
        problems.append(f"{len(missing):,} of {len(records):,} images are missing, such as {first}{probably}")
    if official is not None:
        splits = {record.split for record in present}
        parts = [(record.split if record.role == "both" else record.role, record.label) for record in present]
        n_images, n_classes = Counter(part for part, _ in parts), Counter(part for part, _ in set(parts))
        for name, (split, *expected) in official.counts.items():
            got = [n_images[name], n_classes[name]]
            if split in splits and got != expected:
                shown = ["{:,} images of {:,} classes".format(*counts) for counts in (expected, got)]
                problems.append(f"{name}: expected {shown[0]}, got {shown[1]}")
    return replace(dataset, records=tuple(present), problems=tuple(problems))


def _nothing_there(dataset: Dataset, official: Layout | None) -> str:
    """The error where the lists are there and the images are not."""
    if not dataset.records:
        return f"{dataset.root}: the lists of {dataset.title} name no image"
    first = dataset.records[0].path
    parts = first.split("/")
    places = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
    absent = next((place for place in places if not (dataset.root / place).is_dir()), None)
    what = f"{dataset.root}: none of {len(dataset.records):,} images is there, such as {first}"
    what += "" if absent is None else f": {absent}/ is not in this copy"
    return what if official is None else f"{what}; a usable one has {official.images}"
