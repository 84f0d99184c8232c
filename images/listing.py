"""Which images there are: folders, glob patterns, CSV tables and lists of files behind one kind of listing.

A listing is a recipe, not a list: every pass walks the folder or reads the table again, one record at a time, in the
same order, so that a tree of millions of images costs little more memory than the names in its largest folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import InputError, is_out_of_descriptors, too_many_files
from ..remarks import remark
from .joining import Join, Names, likely_cause, spelled
from .labelling import Tally, remark_on_placeholders, remark_on_twins
from .loading import IMAGE_SUFFIXES
from .splits import SPLIT_COLUMN, SplitFolders, find_split_folders
from .tables import TABLE_SUFFIXES, TableFormat, remark_on_left_out, rows_of

__all__ = ["ImageRecord", "Listing", "list_images", "quiet_listing"]

_NO_COLUMNS: Mapping[str, str] = {}  # one for all records; not a MappingProxyType, which cannot be pickled
_WILDCARDS = frozenset("*?[")
_Report = Callable[[str, str], None]  # path, reason


class ImageRecord(NamedTuple):
    """One line of a listing.

    Attributes:
        path: relative to the listing's root and with forward slashes where the file lies under the root, else absolute.
        label: its class, or None.
        columns: the other columns of a CSV listing, as the strings they are.
    """

    path: str
    label: str | None = None
    columns: Mapping[str, str] = _NO_COLUMNS


class _Source(Protocol):
    @property
    def root(self) -> Path: ...
    @property
    def column_names(self) -> tuple[str, ...]: ...
    def scan(self, report: _Report) -> Iterator[ImageRecord]: ...


class Listing:
    """The images of a folder, pattern, table or list, with labels: iterable any number of times, in the same order.

    `len()` and `problems` make one full pass of their own, once; iterating does not wait for it. What changes on disk
    between two passes changes the listing. Listings can be pickled, so data loaders' workers may hold one.

    Attributes:
        root: the absolute folder that record paths are relative to.
        splits: which of a folder's sub-folders are splits, if any are.
        column_names: the columns of a CSV listing besides `path` and `label`, in the file's order; `split` where
            folders are those of splits; else empty.
    """

    def __init__(self, source: _Source, labels: _Labels, *, strict: bool = False, has_vectors: bool = False) -> None:
        self._source = source
        self._labels = labels
        self._strict = strict
        self._has_vectors = has_vectors
        self.root = source.root
        self.splits = labels.splits if labels.splits is not None and labels.splits.names else None
        self.column_names = (*source.column_names, *((SPLIT_COLUMN,) if self.splits is not None else ()))

    def __iter__(self) -> Iterator[ImageRecord]:
        return self._scan(lambda _path, _reason: None)

    def __len__(self) -> int:
        return self._survey[0]

    def __repr__(self) -> str:
        return f"Listing({str(self.root)!r}, labels={self._labels.kind!r})"

    @property
    def problems(self) -> tuple[str, ...]:
        """What a folder walk left out and why, one printable line each: unreadable folders, broken links, odd names."""
        return self._survey[1]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was taken for a split, or for a class although it is named like one; a sentence each."""
        return () if self._labels.splits is None else tuple(self._labels.splits.remarks())

    @cached_property
    def has_labels(self) -> bool:
        """True if at least one image has a label; looks no further than the first such image."""
        return any(record.label is not None for record in self)

    def file(self, record: ImageRecord) -> Path:
        """Where the image of a record lies."""
        return self.root / record.path

    def _scan(self, report: _Report) -> Iterator[ImageRecord]:
        for record in self._source.scan(report):
            label = self._labels.of(record)
            if self.splits is not None:
                record = record._replace(columns={SPLIT_COLUMN: self.splits.split_of(record.path) or ""})
            yield record if label == record.label else record._replace(label=label)

    @cached_property
    def _survey(self) -> tuple[int, tuple[str, ...]]:
        problems: list[str] = []
        tally, join = Tally(self.column_names), Join()
        for record in self._scan(lambda path, reason: problems.append(f"{_printable(path)}: {reason}")):
            tally.add(record.path, record.label, record.columns)
            if self._labels.table is not None:
                join.add(record.path, self._labels.key_of(record), is_empty=record.label is None)
        self._remark(tally, join)
        return tally.count, tuple(problems)

    def _remark(self, tally: Tally, join: Join) -> None:
        """Say what is left open, and what of a file of labels does not fit."""
        labels, is_table = self._labels, isinstance(self._source, _Table)
        if isinstance(self._source, _Table):
            if not self._has_vectors:
                tally.tell_boxes(strict=self._strict)
            tally.tell_missing(self._source.table.name, self.root, strict=self._strict)
        if labels.table is not None:
            file = Path(labels.kind)
            fit = join.fit(labels.table, is_there=lambda name: _is_there(name, self.root, file.parent))
            fit.tell(what="a label", lines=f"lines of {file.name}", strict=self._strict)
        elif isinstance(self._source, _Table) and labels.kind == "column" and not labels.is_quiet:
            where = self._source.table.name
            tally.tell_labels(where, has_column=self._source.has_labels, strict=self._strict)
        if (is_table or labels.kind != "column") and not labels.is_quiet:
            named = next((each.table.name for each in (self._source,) if isinstance(each, _Table)), self.root.name)
            remark_on_placeholders(tally.labels, named, strict=self._strict)
            remark_on_twins(tally.labels, named, strict=self._strict)


def list_images(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    labels: str | os.PathLike[str] | None = None,
    strict: bool = False,
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
      boxes in them are not cut out.
    - **one image file** or a **sequence of files**, relative to the current folder. Neither the files of a sequence nor
      those of a table are looked up, but for a sample: what is missing fails when it is read.

    `labels` is one of:

    - `"folder"`: the name of the first sub-folder under the root, whatever it is; none for images at the top.
    - `"split"`: as left out, where sub-folders have to be splits and nothing need be said of it.
    - `"none"`: no labels.
    - a CSV file with the columns `path` and `label`; its paths are relative to the listing's root or to its own folder.
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

    Raises:
        InputError: the source does not exist or holds no image; a table cannot be read or lacks `path`; or `labels`
            fits no image at all.
    """
    listing = quiet_listing(source, labels, strict=strict)
    for sentence in listing.remarks:
        remark(sentence, strict=strict)
    return listing


def quiet_listing(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    labels: str | os.PathLike[str] | None = None,
    *,
    strict: bool = False,
    has_vectors: bool = False,
) -> Listing:
    """`list_images` without its remarks about splits, which are in `Listing.remarks`.

    `has_vectors`: those of a table's images come along, so nobody expects its boxes to be cut out now.
    """
    resolved = _resolve(source, strict=strict)
    listing = Listing(resolved, _labels(resolved, labels, strict=strict), strict=strict, has_vectors=has_vectors)
    first = next(iter(listing), None)
    if first is None:
        raise InputError(_nothing_found(source, listing))
    table = listing._labels.table
    if table is not None and not listing.has_labels:
        known = next((name for name, label in table.items() if label), "no labelled path")
        pair = likely_cause(table, [record.path for record in islice(listing, 500)])
        raise InputError(
            f"{labels}: expected paths such as {first.path!r}; got {known!r}, and no image has a label"
            + ("" if pair is None else f"; {pair[2]}")
        )
    if table is not None or isinstance(resolved, _Table):
        _ = len(listing)  # a table was read from end to end already; folders of millions wait until they are counted
    return listing


def _resolve(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, strict: bool) -> _Source:
    if not isinstance(source, (str, os.PathLike)):
        return _Files(Path.cwd(), tuple(os.fspath(path) for path in source))
    text = os.fspath(source)
    path = Path(os.path.abspath(text))  # noqa: PTH100  (no resolve(): names of links stay as the user gave them)
    if path.is_dir() and text:
        return _Folder(path)
    if path.is_file():
        return (
            _Table.read(path, strict=strict) if path.suffix.lower() in TABLE_SUFFIXES else _Files(Path.cwd(), (text,))
        )
    if text and path.exists():
        raise InputError(f"expected a folder, image, CSV file or pattern; {text!r} is not a regular file")
    if _WILDCARDS.isdisjoint(text):
        raise InputError(f"expected a folder, image, CSV file or pattern; nothing is at {text!r} (in {Path.cwd()})")
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if not _WILDCARDS.isdisjoint(part))
    root = Path(*parts[:fixed])
    if not root.is_dir():
        raise InputError(f"expected a folder before the first wildcard of {text!r}; got {str(root)!r}, which is none")
    return _Folder(root, parts[fixed:])


def _nothing_found(source: object, listing: Listing) -> str:
    if isinstance(listing._source, _Folder):
        what = f"no image in {source}; looked for the suffixes {' '.join(sorted(IMAGE_SUFFIXES))} in any case"
    else:
        what = f"no image in {source}: it is empty"
    return "; ".join([what, *listing.problems[:3]])


# --- folders and patterns ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folder:
    """A folder tree, or with `pattern` those files of it whose path matches, segment by segment."""

    root: Path
    pattern: tuple[str, ...] = ("**",)
    column_names: tuple[str, ...] = ()

    def can_hold(self, parts: Sequence[str]) -> bool:
        """Whether a sub-folder can hold images of the listing."""
        return _may_contain(parts, self.pattern)

    def scan(self, report: _Report) -> Iterator[ImageRecord]:
        suffix = Path(self.pattern[-1]).suffix
        takes_any_suffix = bool(suffix) and _WILDCARDS.isdisjoint(suffix)
        seen: dict[tuple[int, int], str] = {}
        pending = [""]  # folders relative to the root, each ending in a slash; the next one last
        while pending:
            place = pending.pop()
            if place.endswith("/") or not place:
                names = self._entries(place, seen, report, takes_any_suffix)
                pending.extend(place + name for name in reversed(names))
            elif self.pattern == ("**",) or _matches(place.split("/"), self.pattern):
                yield ImageRecord(place)

    def _entries(
        self, place: str, seen: dict[tuple[int, int], str], report: _Report, takes_any_suffix: bool
    ) -> list[str]:
        """The visible images and sub-folders (ending in a slash) of a folder, sorted so that whole paths are sorted."""
        names: list[str] = []
        try:
            status = os.stat(self.root / place)  # noqa: PTH116  (one call, no object)
            if (first := seen.setdefault((status.st_dev, status.st_ino), place)) != place:
                report(place, f"the same folder as {_printable(first) or 'the root'}, listed once")
                return []
            with os.scandir(self.root / place) as entries:
                for entry in entries:
                    try:
                        if name := self._name(entry, place, report, takes_any_suffix):
                            names.append(name)
                    except OSError as error:  # such as a link to itself
                        report(place + entry.name, f"cannot be looked up: {error.strerror}")
        except OSError as error:
            if is_out_of_descriptors(error):  # says nothing of the folder
                raise too_many_files(self.root / place) from error
            report(place or ".", f"folder cannot be read: {error.strerror}")
        names.sort()
        return names

    def _name(self, entry: os.DirEntry[str], place: str, report: _Report, takes_any_suffix: bool) -> str | None:
        name = entry.name
        is_image = takes_any_suffix or os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  (speed)
        if name.startswith("."):
            return None
        if entry.is_dir():
            result = name + "/" if self.can_hold([*place.split("/")[:-1], name]) else None
        else:
            result = name if is_image else None
        if result is None:
            return None
        if not _is_utf8(name):
            report(place + name, "the name is not UTF-8, which galleries store; rename it")
            return None
        if result is name and not entry.is_file():
            report(place + name, "a broken link" if entry.is_symlink() else "not a regular file")
            return None
        return result


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """True if path segments match a pattern's, where `**` stands for any number of segments, also none."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _may_contain(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """True if a folder can hold matching files, so that `photos/*.jpg` does not walk all of `photos`."""
    for part, expected in zip(parts, pattern, strict=False):
        if expected == "**":
            return True
        if not fnmatchcase(part, expected):
            return False
    return len(parts) < len(pattern)


# --- tables and lists -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    """Files named one by one."""

    root: Path
    paths: tuple[str, ...]
    column_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for number, path in enumerate(self.paths, 1):
            if (first := seen.setdefault(_under(self.root, path), number)) != number:
                raise InputError(f"expected every file once; got {_printable(path)!r} as number {first} and {number}")

    def scan(self, report: _Report) -> Iterator[ImageRecord]:
        for path in self.paths:
            if _is_utf8(path):
                yield ImageRecord(_under(self.root, path))
            else:
                report(path, "the name is not UTF-8, which galleries store; rename it")


@dataclass(frozen=True)
class _Table:
    """A CSV file with a column `path`; checked from end to end by `read`, streamed by `scan`.

    `left_out` holds the numbers of the lines that cannot be used.
    """

    table: Path
    column_names: tuple[str, ...]
    form: TableFormat
    has_labels: bool
    left_out: frozenset[int] = frozenset()

    @property
    def root(self) -> Path:
        return self.table.parent

    @classmethod
    def read(cls, table: Path, *, strict: bool) -> _Table:
        form = TableFormat.of(table)
        form.remark_on(table)
        left_out: dict[int, str] = {}
        names: tuple[str, ...] = ()
        used = 0
        for _, row in rows_of(table, form=form, once=lambda row: _under(table.parent, row["path"]), left_out=left_out):
            names = tuple(row)
            used += 1
        remark_on_left_out(table, left_out, used=used, strict=strict)
        columns = tuple(name for name in names if name not in ("path", "label"))
        return cls(table, columns, form, "label" in names, frozenset(left_out))

    def scan(self, report: _Report) -> Iterator[ImageRecord]:  # noqa: ARG002  (`read` has said what is left out)
        for line, row in rows_of(self.table, form=self.form, left_out={}):
            if line in self.left_out:
                continue
            path, label = row.pop("path"), row.pop("label", None)
            yield ImageRecord(_under(self.root, path), label or None, row)


# --- labels -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Labels:
    """Where labels come from: `kind` is "folder", "none", "column", or the file that `table` was read from."""

    kind: str
    table: Names[str] | None = None
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
        """What the table calls an image: from the listing's root, from the table's own folder, or with all folders."""
        assert self.table is not None, "asked for only then"
        names = (record.path, os.path.normpath(f"{self.prefix}/{record.path}"))
        return self.table.key(*names, *([os.fspath(self.root / record.path)] if self.table.has_absolute else []))


def _labels(source: _Source, labels: str | os.PathLike[str] | None, *, strict: bool) -> _Labels:
    splits = find_split_folders(source.root, source.can_hold) if isinstance(source, _Folder) else None
    if labels is None:
        return _Labels("folder" if isinstance(source, _Folder) else "column", splits=splits)
    text = os.fspath(labels)
    if text == "folder" and splits is not None:
        return _Labels(text, splits=splits.overruled())
    if text == "split":
        if splits is None or not splits.names:
            raise InputError(f'labels "split": no folder in {source.root} is that of a split, such as train')
        return _Labels("folder", splits=splits.asked())
    if text in ("folder", "none"):
        return _Labels(text)
    if text == "column":
        return _Labels("folder" if isinstance(source, _Folder) else "column", is_quiet=True)
    file = Path(text)
    if not file.is_file():
        raise InputError(
            f"expected labels to be 'folder', 'split', 'none', or a CSV file; got {text!r}, and no file is there"
        )
    rows = rows_of(file, needed=("path", "label"), once=lambda row: os.path.normpath(row["path"]), strict=strict)
    table = {os.path.normpath(row["path"]): row["label"] for _, row in rows}
    return _Labels(text, Names(table), os.path.relpath(source.root, file.parent), source.root, splits=splits)


# --- paths ------------------------------------------------------------------------------------------------------------


def _under(root: Path, path: str) -> str:
    """The path relative to the root with forward slashes where it lies under it, else absolute; `..` is worked out."""
    absolute = Path(os.path.normpath(root / spelled(root, path)))
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()


def _is_there(path: str, *folders: Path) -> bool:
    return any(os.path.lexists(folder / spelled(folder, path)) for folder in folders)


def _is_utf8(name: str) -> bool:
    """False if the name holds bytes that Python had to smuggle in as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(path: str) -> str:
    """The path on one line and in UTF-8, with everything else escaped."""
    return path.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
