"""Tables as people save them: CSV with any usual separator and encoding, read line by line."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from ..errors import InputError
from ..remarks import remark

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
PATH_NAMES = (
    *("path", "paths", "filename", "file", "filepath", "image", "images", "imagepath", "imagename", "imagefile"),
    *("img", "imgpath", "imgname", "imageid", "photo", "picture", "src", "url", "relpath", "fullpath"),
)
"""Names of columns of files elsewhere, in small letters without marks."""
LABEL_NAMES = (
    *("label", "class", "classname", "classlabel", "classid", "category", "categoryname", "categoryid", "identity"),
    *("target", "species", "name", "individual", "individualid", "product", "productid", "sku", "breed", "pid"),
    *("labelname", "labelid", "lbl", "cls", "y", "tag", "genus", "superclass", "itemid", "truth", "groundtruth"),
)
"""Names of columns of classes elsewhere, likewise; the likeliest first."""

_SEPARATORS = ",;\t|"
_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NAMES = {"cp1252": "Windows-1252", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16"}


class TableFormat(NamedTuple):
    """Encoding and separator of a table."""

    encoding: str
    separator: str
    skipped: int = 0  # lines before the header, 1 where the file begins with `sep=;`

    @classmethod
    def of(cls, table: Path) -> TableFormat:
        """The format that a file seems to have."""
        encoding = _encoding(table)
        with _opened(table, encoding) as file:
            first = next(iter(file), "")
            if given := re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE):
                return cls(encoding, given[1], 1)
        return cls(encoding, _separator(first))

    @classmethod
    def assumed(cls, table: Path | RowTable) -> TableFormat:
        """The format that a table seems to have, with a remark on it."""
        if not isinstance(table, Path):
            return cls("utf-8", ",")
        form = cls.of(table)
        form.remark_on(table)
        return form

    def remark_on(self, table: Path) -> None:
        """Say what was assumed, unless it is commas in UTF-8."""
        assumed = []
        if self.encoding not in ("utf-8", "utf-8-sig"):
            assumed.append(f"as {_NAMES.get(self.encoding, self.encoding.upper())}")
        if self.separator != ",":
            assumed.append(f"with {self.separator!r} between its cells")
        if assumed:
            remark(f"{table.name} is read {' and '.join(assumed)}")


@dataclass(frozen=True)
class RowTable:
    """A table in memory, read as one in a file is.

    Attributes:
        name: what it is, such as "the DataFrame".
        parent: the folder that its paths are relative to.
        header: names of the columns.
        rows: a cell for each column.
        problems: what could not become a row, by name with the reason.
    """

    name: str
    parent: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    problems: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.name


def rows_of(
    table: Path | RowTable,
    *,
    needed: Sequence[str] = ("path",),
    form: TableFormat | None = None,
    once: Callable[[dict[str, str]], str] | None = None,
    left_out: dict[int, str] | None = None,
    strict: bool = False,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column of every usable line; blanks around names and cells are dropped.

    Blanks around a path stay: a file may be called so. A line with too few or too many cells, without a path, or with
    the key (`once`) of an earlier line is left out. How many are is remarked on behind the last line, unless `left_out`
    takes what is wrong with each by its number.
    """
    if form is None:
        form = TableFormat.assumed(table)
    problems: dict[int, str] = {} if left_out is None else left_out
    seen: dict[str, int] = {}
    line, used, word = 1 + form.skipped, 0, "line" if isinstance(table, Path) else "row"
    try:
        lines = _lines(table, form) if isinstance(table, Path) else enumerate([table.header, *table.rows], -1)
        header = _header(next(lines)[1])
        _check_header(header, table, needed)
        for line, cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            row, problem, extra = {}, "", cells[len(header) :]
            if len(cells) < len(header) or any(cell.strip() for cell in extra):
                problem = f"expected {len(header)} cells; got {len(cells)}"
            else:
                pairs = zip(header, cells, strict=False)
                row = {name: cell if name == "path" else cell.strip() for name, cell in pairs}
                problem = "" if row.get("path", "-").strip() else "expected a path; got an empty cell"
            if not problem and once is not None:
                first = seen.setdefault(key := once(row), line)
                problem = "" if first == line else f"{key!r} is in {word} {first} already"
            if problem:
                problems[line] = f"{table} {word} {line}: {problem}"
                continue
            used += 1
            yield line, row
    except UnicodeDecodeError as error:
        raise InputError(f"{table}: expected UTF-8; save the table with that encoding ({error.reason})") from None
    except csv.Error as error:
        raise InputError(f"{table} line {line + 1} or after: expected comma-separated values; {error}") from None
    except OSError as error:
        raise InputError(f"{table}: cannot be read: {error.strerror}") from error
    if left_out is None:
        remark_on_left_out(table, problems, used=used, strict=strict)


def _lines(table: Path, form: TableFormat) -> Iterator[tuple[int, Sequence[str]]]:
    """Number and cells of every line, the header first; an empty one where there is none."""
    with _opened(table, form.encoding, skipped=form.skipped) as file:
        reader = _reader(file, form.separator)
        yield 1 + form.skipped, next(reader, [])
        for cells in reader:
            yield reader.line_num + form.skipped, cells


def remark_on_left_out(table: Path | RowTable, left_out: Mapping[int, str], *, used: int, strict: bool = False) -> None:
    """Say how many lines of a table are left out, and why the first one is."""
    if not left_out:
        return
    first = next(iter(left_out.values()))
    if not used:
        raise InputError(first)
    lines = "lines" if isinstance(table, Path) else "rows"
    count = f"{len(left_out):,} of {len(left_out) + used:,} {lines} of {table.name}"
    remark(f"{count} cannot be used and are left out, the first: {first}", strict=strict)


def header_of(table: Path | RowTable) -> tuple[str, ...]:
    """The names of a table's columns, without blanks around them; empty if the file is."""
    if not isinstance(table, Path):
        return table.header
    form = TableFormat.of(table)
    with _opened(table, form.encoding, skipped=form.skipped) as file:
        return tuple(_header(next(_reader(file, form.separator), [])))


def text_of(file: Path) -> str:
    """The whole text of a small file in whatever usual encoding it has; anything but UTF-8 is remarked on."""
    encoding = _encoding(file)
    TableFormat(encoding, ",").remark_on(file)
    with _opened(file, encoding) as stream:
        return stream.read()


def lines_of(file: Path, *, is_utf8: bool = False) -> list[tuple[int, str]]:
    """Number and text, without the blanks around it, of every line that is not blank.

    Encodings as for `text_of`; with `is_utf8` any other than UTF-8 is refused.
    """
    if is_utf8 and _encoding(file) not in ("utf-8", "utf-8-sig"):
        raise InputError(f"{file}: expected UTF-8 text")
    lines = (line.strip() for line in re.split(r"\r\n?|\n", text_of(file)))
    return [(number, line) for number, line in enumerate(lines, 1) if line]


def look_alike(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The column that is likeliest what `PATH_NAMES` or `LABEL_NAMES` mean, whatever its case and marks.

    >>> look_alike(["id", "Class Name"], LABEL_NAMES)
    'Class Name'
    """
    known = {re.sub(r"[\W_]", "", name).lower(): name for name in reversed(list(names))}
    return next((known[one] for one in wanted if one in known), None)


def missing_column(where: str, *names: str, got: Sequence[str]) -> InputError:
    """The error of a table that has none of the named columns; it names the column that is likeliest meant."""
    usual = {"path": PATH_NAMES, "label": LABEL_NAMES}.get(names[0], ())
    nearest = look_alike(got, usual) or next(iter(get_close_matches(names[0], got, n=1, cutoff=0.5)), None)
    hint = f"; rename {nearest!r}, if that is it" if nearest else ""
    listed = ", ".join(map(repr, got)) or "an empty line"
    return InputError(f"{where}: expected a column {' or '.join(map(repr, names))}; got {listed}{hint}")


def _opened(table: Path, encoding: str, *, skipped: int = 0) -> IO[str]:
    try:
        file = table.open(encoding=encoding, newline="")
    except OSError as error:
        raise InputError(f"{table}: cannot be read: {error.strerror}") from error
    for _ in range(skipped):
        next(file)
    return file


def _encoding(table: Path) -> str:
    """UTF-8 if all of the file is, else what its first bytes say, else Windows-1252."""
    try:
        with table.open("rb") as file:
            head = file.read(4096)
            for mark, name in _MARKS:
                if head.startswith(mark):
                    return name
            for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
                if zeros and zeros.count(0) > len(zeros) / 2:
                    return name
            decoder = codecs.getincrementaldecoder("utf-8")()
            for chunk in chain([head], iter(lambda: file.read(1 << 20), b"")):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "cp1252"
    except OSError as error:
        raise InputError(f"{table}: cannot be read: {error.strerror}") from error
    return "utf-8"


def _reader(lines: Iterable[str], separator: str) -> csv._reader:
    return csv.reader(lines, strict=True, skipinitialspace=separator != "\t", delimiter=separator)


def _separator(header: str) -> str:
    """The one that gives a column `path`, else the one that gives most columns; commas where it makes no difference."""

    def worth(separator: str) -> tuple[bool, int]:
        try:
            names: list[str] = next(_reader([header], separator), [])
        except csv.Error:
            return False, 0
        return look_alike(names, PATH_NAMES) is not None, len(names)

    return max(_SEPARATORS, key=worth)


def _header(cells: Sequence[str]) -> list[str]:
    """Names without blanks; Excel leaves empty ones at the end."""
    names = [cell.strip().strip("\ufeff\u200b").strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    return names


def _check_header(header: Sequence[str], table: Path | RowTable, needed: Sequence[str]) -> None:
    where = f"{table} line 1" if isinstance(table, Path) else table.name
    for name in needed:
        if name not in header:
            raise missing_column(where, name, got=header)
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{where}: expected every column once; got {twice!r} twice")
