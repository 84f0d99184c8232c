"""Sources of images: a folder or pattern, files by name, a CSV table; each scanned anew in every pass."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import InputError, is_out_of_descriptors, too_many_files
from .geometry import Box
from .joining import spelled
from .labelling import box_columns
from .loading import IMAGE_SUFFIXES
from .tables import TABLE_SUFFIXES, RowTable, TableFormat, header_of, remark_on_left_out, rows_of

_NO_COLUMNS: Mapping[str, str] = {}  # one for all records; not a MappingProxyType, which cannot be pickled
RUN = 4096  # images that are looked at together
_WILDCARDS = frozenset("*?[")
Report = Callable[[str, str], None]  # path, reason


class ImageRecord(NamedTuple):
    """One line of a listing.

    Attributes:
        path: relative to the listing's root and with forward slashes where the file lies under the root, else absolute.
        label: its class, or None.
        columns: the other columns of a CSV listing, as the strings they are.
        box: the part of the image that is meant, in pixels of the upright image; None for all of it.
    """

    path: str
    label: str | None = None
    columns: Mapping[str, str] = _NO_COLUMNS
    box: Box | None = None


class Source(Protocol):
    """Source of a listing's images."""

    @property
    def root(self) -> Path:
        """The absolute folder that record paths are relative to."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns besides `path` and `label`."""

    def scan(self, report: Report) -> Iterator[ImageRecord]:
        """The images in a fixed order; what is left out is reported with its path."""


def source_of(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, strict: bool, is_cut: bool = False
) -> Source:
    """The source that `list_images` describes; `strict` refuses lines of a table that cannot be used.

    `is_cut`: a table may have several lines for a file, with different boxes.
    """
    if not isinstance(source, (str, os.PathLike)):
        return FileSource(Path.cwd(), tuple(os.fspath(path) for path in source))
    text = os.fspath(source)
    path = Path(os.path.abspath(text))  # noqa: PTH100  (no resolve(): names of links stay as the user gave them)
    if path.is_dir() and text:
        return FolderSource(path)
    if path.is_file():
        is_table = path.suffix.lower() in TABLE_SUFFIXES
        return TableSource.read(path, strict=strict, is_cut=is_cut) if is_table else FileSource(Path.cwd(), (text,))
    if text and path.exists():
        raise InputError(f"expected a folder, image, CSV file or pattern; {text!r} is not a regular file")
    if _WILDCARDS.isdisjoint(text):
        raise InputError(f"expected a folder, image, CSV file or pattern; nothing is at {text!r} (in {Path.cwd()})")
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if not _WILDCARDS.isdisjoint(part))
    root = Path(*parts[:fixed])
    if not root.is_dir():
        raise InputError(f"expected a folder before the first wildcard of {text!r}; got {str(root)!r}, which is none")
    return FolderSource(root, parts[fixed:])


@dataclass(frozen=True)
class FolderSource:
    """A folder tree, or with `pattern` those files of it whose path matches, segment by segment."""

    root: Path
    pattern: tuple[str, ...] = ("**",)
    column_names: tuple[str, ...] = ()

    def can_hold(self, parts: Sequence[str]) -> bool:
        """True if a sub-folder can hold images of the listing."""
        for part, expected in zip(parts, self.pattern, strict=False):
            if expected == "**":
                return True
            if not fnmatchcase(part, expected):
                return False  # so that `photos/*.jpg` does not walk all of `photos`
        return len(parts) < len(self.pattern)

    def scan(self, report: Report) -> Iterator[ImageRecord]:
        """The images in the order of their sorted paths."""
        return (ImageRecord(place + name) for place, names in self.runs(report) for name in names)

    def runs(self, report: Report) -> Iterator[tuple[str, list[str]]]:
        """The images as `scan`, some of one folder at a time: what their paths begin with, and the rest of each."""
        suffix = Path(self.pattern[-1]).suffix
        takes_any_suffix = bool(suffix) and _WILDCARDS.isdisjoint(suffix)
        seen: dict[tuple[int, int], str] = {}
        pending = [""]  # folders relative to the root, each ending in a slash; the next one last
        while pending:
            place, names = pending.pop(), [""]
            if place.endswith("/") or not place:
                names = self._entries(place, seen, report, takes_any_suffix)
                if any(name[-1] == "/" for name in names):
                    pending.extend(place + name for name in reversed(names))
                    continue
            if self.pattern != ("**",):
                names = [name for name in names if _matches((place + name).split("/"), self.pattern)]
            for start in range(0, len(names), RUN):
                yield place, names[start : start + RUN]

    def _entries(
        self, place: str, seen: dict[tuple[int, int], str], report: Report, takes_any_suffix: bool
    ) -> list[str]:
        """The visible images and sub-folders (ending in a slash) of a folder, sorted so that whole paths are sorted."""
        names: list[str] = []
        try:
            status = os.stat(self.root / place)  # noqa: PTH116  (one call, no object)
            if (first := seen.setdefault((status.st_dev, status.st_ino), place)) != place:
                report(place, f"the same folder as {printable(first) or 'the root'}, listed once")
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
        return sorted(names)

    def _name(self, entry: os.DirEntry[str], place: str, report: Report, takes_any_suffix: bool) -> str | None:
        name = entry.name
        if name.startswith("."):
            return None
        is_image = takes_any_suffix or name[name.rfind(".") :].lower() in IMAGE_SUFFIXES
        if is_image and name.isascii() and entry.is_file():  # as nearly all are
            return name
        is_folder = entry.is_dir()
        if not (self.can_hold([*place.split("/")[:-1], name]) if is_folder else is_image):
            return None
        if not _is_utf8(name):
            report(place + name, "the name is not UTF-8, which galleries store; rename it")
        elif is_folder:
            return name + "/"
        elif entry.is_file():
            return name
        else:
            report(place + name, "a broken link" if entry.is_symlink() else "not a regular file")
        return None


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """True if path segments match a pattern's, where `**` stands for any number of segments, also none."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


@dataclass(frozen=True)
class FileSource:
    """Files named one by one."""

    root: Path
    paths: tuple[str, ...]
    column_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for number, path in enumerate(self.paths, 1):
            if (first := seen.setdefault(_under(self.root, path), number)) != number:
                raise InputError(f"expected every file once; got {printable(path)!r} as number {first} and {number}")

    def scan(self, report: Report) -> Iterator[ImageRecord]:
        """The files in the order in which they were named."""
        for path in self.paths:
            if _is_utf8(path):
                yield ImageRecord(_under(self.root, path))
            else:
                report(path, "the name is not UTF-8, which galleries store; rename it")


@dataclass(frozen=True)
class TableSource:
    """A table with a column `path`, a CSV file's or one in memory; checked by `read`, streamed by `scan`."""

    table: Path | RowTable
    column_names: tuple[str, ...]
    form: TableFormat
    has_labels: bool
    left_out: frozenset[int] = frozenset()  # numbers of the lines that cannot be used

    @property
    def root(self) -> Path:
        """The table's folder."""
        return self.table.parent

    @classmethod
    def read(cls, table: Path | RowTable, *, strict: bool, is_cut: bool = False) -> TableSource:
        """The source, after a look at every line; with `strict` one that cannot be used is an error."""
        form = TableFormat.assumed(table)
        left_out: dict[int, str] = {}
        names: tuple[str, ...] = ()
        used = 0
        columns = box_columns(header_of(table)) if is_cut else ()

        def key(row: dict[str, str]) -> str:
            return ", ".join([_under(table.parent, row["path"]), *(row[name] for name in columns)])

        for _, row in rows_of(table, form=form, once=key, left_out=left_out):
            names = tuple(row)
            used += 1
        remark_on_left_out(table, left_out, used=used, strict=strict)
        others = tuple(name for name in names if name not in ("path", "label"))
        return cls(table, others, form, "label" in names, frozenset(left_out))

    def scan(self, report: Report) -> Iterator[ImageRecord]:
        """The usable lines in the table's order; `read` has said which are not."""
        for name, reason in () if isinstance(self.table, Path) else self.table.problems:
            report(name, reason)
        for line, row in rows_of(self.table, form=self.form, left_out={}):
            if line in self.left_out:
                continue
            path, label = row.pop("path"), row.pop("label", None)
            yield ImageRecord(_under(self.root, path), label or None, row)


@dataclass(frozen=True)
class RecordSource:
    """Images that are known one by one, and what was left out, a line `path: reason` each."""

    root: Path
    column_names: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    problems: tuple[str, ...] = ()

    def scan(self, report: Report) -> Iterator[ImageRecord]:
        """The images as they are."""
        for problem in self.problems:
            path, _, reason = problem.partition(": ")
            report(path, reason)
        yield from self.records


def _under(root: Path, path: str) -> str:
    """The path relative to the root with forward slashes where it lies under it, else absolute; `..` is worked out."""
    absolute = Path(os.path.normpath(root / spelled(root, path)))
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()


def _is_utf8(name: str) -> bool:
    """False if the name holds bytes that Python had to smuggle in as lone surrogates."""
    return name.isascii() or re.search(r"[\ud800-\udfff]", name) is None


def printable(path: str) -> str:
    """The path on one line and in UTF-8, with everything else escaped."""
    return path.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
