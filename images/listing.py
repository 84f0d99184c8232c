"""Listings of images with their labels, from folders, glob patterns, CSV tables and lists of files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..remarks import remark
from .given.inputs import given_source
from .image_sources import RUN, FolderSource, ImageRecord, Source, TableSource, printable
from .joining import FactsByName, Join, spelled
from .labelling import Tally, remark_on_placeholders, remark_on_twins, uncut_boxes
from .loading import IMAGE_SUFFIXES
from .splits import SPLIT_COLUMN, SplitFolders, find_split_folders
from .tables import header_of, rows_of

GivenLabels = str | os.PathLike[str] | Sequence[Any] | None


class Listing:
    """The images of a folder, pattern, table or list, with labels: iterable any number of times, in the same order.

    `len()` and `problems` make one full pass of their own, once; iterating does not wait for it. What changes on disk
    between two passes changes the listing. Listings can be pickled, so data loaders' workers may hold one.

    Attributes:
        root: the absolute folder that record paths are relative to.
        name: of the table, else of the folder.
        splits: which of a folder's sub-folders are splits, if any are.
        column_names: the columns of a CSV listing besides `path` and `label`, in the file's order; `split` where
            folders are those of splits; else empty.
    """

    def __init__(self, source: Source, labels: _Labels, *, strict: bool = False, needs_no_cut: bool = False) -> None:
        self._source = source
        self._labels = labels
        self._strict = strict
        self._needs_no_cut = needs_no_cut
        self.root = source.root
        self.name = str(source.table if isinstance(source, TableSource) else source.root)
        self.splits = labels.splits if labels.splits is not None and labels.splits.names else None
        self.column_names = (*source.column_names, *((SPLIT_COLUMN,) if self.splits is not None else ()))

    @classmethod
    def of(cls, source: Source) -> Listing:
        """The images of any source, with the labels that it gives."""
        return cls(source, _Labels("column"))

    def __iter__(self) -> Iterator[ImageRecord]:
        return chain.from_iterable(self._blocks(lambda _path, _reason: None, 1))

    def __len__(self) -> int:
        return self._survey[0]

    def __repr__(self) -> str:
        return f"Listing({str(self.root)!r}, labels={self._labels.kind!r})"

    @property
    def problems(self) -> tuple[str, ...]:
        """Entries left out by a folder walk and why, a line each: unreadable folders, broken links, odd names."""
        return self._survey[1]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Folders taken for splits, or for classes although they are named like one; a sentence each."""
        return () if self._labels.splits is None else tuple(self._labels.splits.remarks())

    @property
    def doubt(self) -> str:
        """Why a folder named like a split was taken for a class; empty if none was."""
        return "" if self._labels.splits is None else self._labels.splits.doubt

    @property
    def is_walked(self) -> bool:
        """True if the paths come from walking the root, so that each lies under it and none holds `..`."""
        return isinstance(self._source, FolderSource)

    @property
    def header(self) -> tuple[str, ...]:
        """All columns of a table as they stand there; of anything else those of its records."""
        if isinstance(self._source, TableSource):
            return header_of(self._source.table)
        return ("path", "label", *self.column_names)

    @cached_property
    def has_labels(self) -> bool:
        """True if at least one image has a label; looks no further than the first such image."""
        return any(record.label is not None for record in self)

    def file(self, record: ImageRecord) -> Path:
        """Path of a record's image."""
        return self.root / record.path

    def _blocks(self, report: Callable[[str, str], None], most: int) -> Iterator[Sequence[ImageRecord]]:
        """The images, up to `most` at a time; of a folder those that share label and columns, asked for once."""
        labels, splits = self._labels, self.splits

        def said(record: ImageRecord) -> tuple[str | None, Mapping[str, str]]:
            columns = record.columns if splits is None else {SPLIT_COLUMN: splits.split_of(record.path) or ""}
            return labels.of(record), columns

        if labels.table is None and isinstance(self._source, FolderSource):
            for place, names in self._source.runs(report):
                label, columns = said(ImageRecord(place + names[0]))
                yield list(map(ImageRecord, [place + name for name in names], repeat(label), repeat(columns)))
            return
        records = self._source.scan(report)
        while block := list(islice(records, most)):
            yield [ImageRecord(record.path, *said(record), record.box) for record in block]

    def survey(self) -> list[ImageRecord]:
        """All images, of one pass that `len()` and `problems` need not make again."""
        records: list[ImageRecord] = []
        self.__dict__["_survey"] = self._surveyed(records.extend)
        return records

    @cached_property
    def _survey(self) -> tuple[int, tuple[str, ...]]:
        return self._surveyed(lambda _records: None)

    def _surveyed(self, take: Callable[[Sequence[ImageRecord]], None]) -> tuple[int, tuple[str, ...]]:
        problems: list[str] = []
        tally, join = Tally(self.column_names), Join()
        labels, strict = self._labels, self._strict
        for block in self._blocks(lambda path, reason: problems.append(f"{printable(path)}: {reason}"), RUN):
            take(block)
            paths, said, columns, _ = zip(*block, strict=True)
            tally.add(paths, said, columns)
            for record in block if labels.table is not None else ():
                join.add(record.path, labels.key_of(record), is_empty=record.label is None)
        table = self._source.table if isinstance(self._source, TableSource) else None
        if table is not None:
            if tally.boxed and not self._needs_no_cut:
                remark(uncut_boxes(tally.boxed, tally.box_columns), strict=strict)
            tally.tell_missing(table.name, self.root, strict=strict)
        if labels.table is not None:
            file = Path(labels.kind)
            folders = (self.root, file.parent)
            fit = join.fit(
                labels.table, is_there=lambda name: any(os.path.lexists(at / spelled(at, name)) for at in folders)
            )
            fit.tell(what="a label", lines=f"lines of {file.name}", strict=strict)
        elif isinstance(self._source, TableSource) and labels.kind == "column" and not labels.is_quiet:
            tally.tell_labels(self._source.table.name, has_column=self._source.has_labels, strict=strict)
        if (table is not None or labels.kind != "column") and not labels.is_quiet:
            where = self.root.name if table is None else table.name
            remark_on_placeholders(tally.labels, where, strict=strict)
            remark_on_twins(tally.labels, where, strict=strict)
        return tally.count, tuple(problems)


def list_images(
    source: Any,
    *,
    labels: GivenLabels = None,
    strict: bool = False,
    keep: str | os.PathLike[str] | None = None,
) -> Listing:
    r"""A listing of images, which are looked up but not opened; at least one.

    `source` is one of:

    - a **folder**, walked with all its sub-folders in the order of the sorted paths. Files count as images by suffix
      (`IMAGE_SUFFIXES`, any case). Hidden files and folders are skipped. A folder that can be reached twice, through
      symbolic links or otherwise, is listed under the first path only, so links cannot loop. Sub-folders that cannot be
      read, broken links, and names that are not UTF-8 are left out and listed in `Listing.problems`.
    - a **glob pattern** such as `photos/**/*.jpg`, matched while walking the folder before the first wildcard under the
      same rules; a suffix that the pattern spells out is taken as it is. A path that exists is never read as a pattern.
    - a **CSV file** with a header, a column `path`, and perhaps `label`; paths are relative to the file's folder, may
      be absolute, and may lead out of it; `\` separates folders where no file of that very name is there. Semicolons,
      tabs, `sep=;`, UTF-16 and Windows-1252 are recognised. Columns of Open Metric Learning's tables are just columns;
      boxes in them are not cut out, which `list_items` does.
    - **one image file** or a **sequence of files**, relative to the current folder. Neither the files of a sequence nor
      those of a table are looked up, but for a sample: what is missing fails when it is read.
    - a **table in memory** with the columns of a CSV: a DataFrame of pandas, polars or pyarrow, or a mapping of
      columns; its paths are relative to the current folder. The column `path` may be called `image`, `img`, `bytes`
      or `url`.
    - a **pair** `(images, labels)`, or a **sequence** of images or of pairs `(image, label)`. An image is a path, a URL
      (`https://`, or `s3://` and whatever else fsspec opens), bytes of a file, a Pillow image, an array (rows, columns,
      3), or a tensor (3, rows, columns) of bytes or of intensities in [0, 1].
    - a **data set** of torch with items (image, label), of torchvision's ImageFolder by its files, or of Hugging Face.
    - a **Parquet file** as such a table, and **tar files** of webdataset's samples, `shards-{000..003}.tar`.

    `labels` is one of:

    - `"folder"`: the name of the first sub-folder under the root, whatever it is; none for images at the top.
    - `"split"`: as left out, where sub-folders have to be splits and nothing need be said of it.
    - `"none"`: no labels.
    - a CSV file with the columns `path` and `label`; its paths are relative to the listing's root or to its own folder.
    - a sequence with one for each image of a sequence.
    - `"column"`: the column `label` of a CSV if it has one, and not a word about labels that are missing.
    - left out: for folders and patterns as "folder", but that sub-folders such as `train` and `val` are splits (see
      `find_split_folders`): the class is then the folder beneath, and the column `split` says which split it is; the
      column `label` for a CSV; no labels for files.

    What is taken for a split, or for a class although it is named like a split, is said in a `DistcamWarning`.

    What fits partly is remarked on, with counts and an example: images without a label, lines of a file of labels that
    fit no image, malformed and doubled lines of tables, a table with `class` and without `label`, labels such as
    `unknown`, boxes in columns.

    Args:
        source: see above.
        labels: see above.
        strict: refuse what would be remarked on.
        keep: a folder for images that are no files, which are written there once; without it they are refused.

    Raises:
        InputError: the source is none of those, does not exist or holds no image; a table cannot be read or lacks
            `path`; or `labels` fits no image at all.
    """
    listing = quiet_listing(source, labels, strict=strict, keep=keep)
    for sentence in listing.remarks:
        remark(sentence, strict=strict)
    return listing


def quiet_listing(
    source: Any,
    labels: GivenLabels = None,
    *,
    strict: bool = False,
    needs_no_cut: bool = False,
    is_cut: bool = False,
    keep: str | os.PathLike[str] | None = None,
) -> Listing:
    """`list_images` without its remarks about splits, which are in `Listing.remarks`.

    `needs_no_cut`: the boxes in a table's columns are used, or its images' vectors come along: no remark on them.
    `is_cut`: they are cut out, so that a file may have several lines.
    """
    named = labels if labels is None or isinstance(labels, (str, os.PathLike)) else None
    own, needs_no_cut = None if named is not None else labels, needs_no_cut or is_cut
    resolved = given_source(source, own, keep=keep, strict=strict, is_cut=is_cut)
    listing = Listing(resolved, _labels(resolved, named, strict=strict), strict=strict, needs_no_cut=needs_no_cut)
    if next(iter(listing), None) is None:
        where = listing.name if isinstance(resolved, TableSource) else source
        what = f"no image in {where}: {'none can be used' if listing.problems else 'it is empty'}"
        if isinstance(resolved, FolderSource):
            what = f"no image in {source}; looked for the suffixes {' '.join(sorted(IMAGE_SUFFIXES))} in any case"
        raise InputError("; ".join([what, *listing.problems[:3]]))
    if listing._labels.table is not None or isinstance(resolved, TableSource):
        _ = len(listing)  # a table was read from end to end already; folders of millions wait until they are counted
    return listing


@dataclass(frozen=True)
class _Labels:
    """Source of labels: `kind` is "folder", "none", "column", or the file that `table` was read from."""

    kind: str
    table: FactsByName[str] | None = None
    prefix: str = ""  # from the table's folder to the listing's root
    root: Path = Path()
    is_quiet: bool = False  # about labels that are missing
    splits: SplitFolders | None = None

    def of(self, record: ImageRecord) -> str | None:
        if self.table is not None:
            key = self.key_of(record)
            return None if key is None else self.table[key] or None
        if self.kind == "folder":
            if self.splits is not None and self.splits.names:
                return self.splits.label_of(record.path)
            folder, slash, _ = record.path.partition("/")
            return folder if slash and folder not in ("", "..") else None
        return record.label if self.kind == "column" else None

    def key_of(self, record: ImageRecord) -> str | None:
        """The table's name of an image: from the listing's root, from the table's own folder, or with all folders."""
        assert self.table is not None, "asked for only then"
        names = (record.path, os.path.normpath(f"{self.prefix}/{record.path}"))
        return self.table.key(*names, *([os.fspath(self.root / record.path)] if self.table.has_absolute else []))


def _labels(source: Source, labels: str | os.PathLike[str] | None, *, strict: bool) -> _Labels:
    splits = find_split_folders(source.root, source.can_hold) if isinstance(source, FolderSource) else None
    if labels is None:
        return _Labels("folder" if isinstance(source, FolderSource) else "column", splits=splits)
    text = os.fspath(labels)
    if text == "folder" and splits is not None:
        return _Labels(text, splits=splits.overruled())
    if text == "split":
        if splits is None or not splits.names:
            raise InputError(f'labels "split": no folder in {source.root} is that of a split, such as train')
        return _Labels("folder", splits=replace(splits, is_asked=True))
    if text in ("folder", "none"):
        return _Labels(text)
    if text == "column":
        return _Labels("folder" if isinstance(source, FolderSource) else "column", is_quiet=True)
    file = Path(text)
    if not file.is_file():
        raise InputError(
            f"expected labels to be 'folder', 'split', 'none', or a CSV file; got {text!r}, and no file is there"
        )
    rows = rows_of(file, needed=("path", "label"), once=lambda row: os.path.normpath(row["path"]), strict=strict)
    table = {os.path.normpath(row["path"]): row["label"] for _, row in rows}
    return _Labels(text, FactsByName(table), os.path.relpath(source.root, file.parent), source.root, splits=splits)
