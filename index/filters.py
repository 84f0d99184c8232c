r"""Filters over labels, columns and paths: written as text, kept as a small tree, evaluated on whole columns at once.

    label=cat                     label != cat                 label in cat,dog
    camera>=3 and camera<6        path~'holiday/*'             not (label=cat or label=dog)

Operators: `=` (or `==`), `!=`, `<`, `<=`, `>`, `>=` (numbers), `~` (a pattern with `*`, `?` and `[…]`), `in`. They are
combined by `not`, `and`, `or` (in this order) and parentheses. Names and values with spaces or operators go in quotes.

An image without a value equals nothing and is in no range: `label=cat` leaves it out, `label!=cat` keeps it.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .rows import Categorical

__all__ = [
    "And",
    "Eq",
    "Filter",
    "Glob",
    "In",
    "Ne",
    "Not",
    "Or",
    "Range",
    "Table",
    "hints",
    "matching",
    "parse_filter",
]

Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Eq:
    """The column has exactly this value."""

    column: str
    value: str


@dataclass(frozen=True)
class Ne:
    """The column has another value, or none."""

    column: str
    value: str


@dataclass(frozen=True)
class In:
    """The column has one of these values."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Glob:
    """The column's value fits a pattern with `*`, `?` and `[…]`, whole, case included."""

    column: str
    pattern: str


@dataclass(frozen=True)
class Range:
    """The column's value is a number between two bounds; text is in no range."""

    column: str
    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True


@dataclass(frozen=True)
class And:
    """All parts hold."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    """At least one part holds."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Filter


Filter: TypeAlias = Eq | Ne | In | Glob | Range | And | Or | Not


class Table(Protocol):
    """Columns of strings with one value, or none, per image; `"path"` and `"label"` are among them."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """What can be asked for."""

    def column(self, name: str) -> Categorical:
        """One of them."""

    def __len__(self) -> int: ...


def matching(where: Filter, table: Table) -> Mask:
    """Which rows of the table a filter keeps.

    Raises:
        InputError: the filter names a column that the table does not have.
    """
    match where:
        case And(parts):
            return reduce(np.logical_and, (matching(part, table) for part in parts), np.ones(len(table), bool))
        case Or(parts):
            return reduce(np.logical_or, (matching(part, table) for part in parts), np.zeros(len(table), bool))
        case Not(part):
            return ~matching(part, table)
    column = _column(where.column, table)
    holds = _predicate(where)
    # The predicate sees each distinct value once; the last entry is for code -1, "no value".
    verdicts = np.array([*(holds(value) for value in column.values), isinstance(where, Ne)], bool)
    return verdicts[column.codes]


def hints(where: Filter | str, table: Table) -> list[str]:
    """One sentence for each value that a filter asks for and no image has, with the nearest one that some image has.

    For whoever shows the answer to a person: nothing found because of a misspelt label looks like nothing there. What
    is asked for by `!=`, by a pattern or by a range is not looked at. `Gallery.filter_hints` asks an open gallery.

    Args:
        where: the filter, or its text.
        table: the columns, such as a snapshot.

    Raises:
        InputError: the text is no filter, or names a column that the table does not have.
    """
    tree = parse_filter(where) if isinstance(where, str) else where
    said: dict[str, None] = {}
    for column, value in _wanted(tree):
        there = _column(column, table).values
        if value not in there:
            folded = {other.casefold(): other for other in there}
            nearest = difflib.get_close_matches(value.casefold(), folded, n=1)
            hint = f"; did you mean {folded[nearest[0]]!r}?" if nearest else _examples(there)
            said[f"no image has {column} {value!r}{hint}"] = None
    return list(said)


def _wanted(where: Filter) -> Iterator[tuple[str, str]]:
    """The (column, value) pairs that a filter asks for."""
    match where:
        case And(parts) | Or(parts):
            for part in parts:
                yield from _wanted(part)
        case Not(part):
            yield from _wanted(part)
        case Eq(column, value):
            yield column, value
        case In(column, values):
            yield from ((column, value) for value in values)


def _examples(values: Sequence[str], *, most: int = 5) -> str:
    if not values:
        return "; no image has any"
    rest = f" and {len(values) - most} others" if len(values) > most else ""
    return f"; there are {', '.join(values[:most])}{rest}"


def _column(name: str, table: Table) -> Categorical:
    if name not in table.column_names:
        nearest = difflib.get_close_matches(name, table.column_names, n=1)
        hint = f", did you mean {nearest[0]!r}?" if nearest else ""
        raise InputError(f"no column {name!r} in this gallery{hint}; there are {', '.join(table.column_names)}")
    return table.column(name)


def _predicate(where: Eq | Ne | In | Glob | Range) -> Callable[[str], bool]:
    match where:
        case Eq(_, value):
            return lambda found: found == value
        case Ne(_, value):
            return lambda found: found != value
        case In(_, values):
            return frozenset(values).__contains__
        case Glob(_, pattern):
            fits = re.compile(fnmatch.translate(pattern)).match
            return lambda found: fits(found) is not None
        case Range():
            return lambda found: _in_range(found, where)


def _in_range(text: str, where: Range) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    above = value >= where.low if where.low_included else value > where.low
    below = value <= where.high if where.high_included else value < where.high
    return above and below


_TOKEN = re.compile(
    r"""\s*(?:
        (?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<operator>==|!=|<=|>=|=|<|>|~|\(|\)|,)
      | (?P<word>[^\s=!<>~(),'"]+)
    )""",
    re.VERBOSE,
)
_COMPARISONS = {"=", "==", "!=", "<", "<=", ">", ">=", "~"}


@dataclass(frozen=True)
class _Token:
    kind: str  # "quoted", "operator", "word", or "end"
    text: str


def parse_filter(text: str) -> Filter:
    """The tree of a filter written as text.

    >>> parse_filter("label in cat,dog and camera<3")
    And(parts=(In(column='label', values=('cat', 'dog')), Range(column='camera', low=-inf, high=3.0, \
low_included=True, high_included=False)))

    Raises:
        InputError: the text is no filter; the message shows where.
    """
    return _Parser(text).parse()


class _Parser:
    """Recursive descent, one method per rule of the grammar."""

    MAX_DEPTH = 50

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokenise()
        self.position = 0
        self.depth = 0

    def parse(self) -> Filter:
        where = self._or()
        if self._peek().kind != "end":
            raise self._error(f"unexpected {self._peek().text!r}; values with spaces need quotes")
        return where

    def _tokenise(self) -> list[_Token]:
        tokens, position, end = [], 0, len(self.text.rstrip())
        while position < end:
            found = _TOKEN.match(self.text, position)
            if found is None:
                raise self._error(f"cannot read {self.text[position:end].strip()!r}")
            kind = str(found.lastgroup)
            token = found[kind]
            tokens.append(_Token(kind, re.sub(r"\\(.)", r"\1", token[1:-1]) if kind == "quoted" else token))
            position = found.end()
        return [*tokens, _Token("end", "the end")]

    def _or(self) -> Filter:
        return self._chain("or", self._and, Or)

    def _and(self) -> Filter:
        return self._chain("and", self._not, And)

    def _chain(self, word: str, rule: Callable[[], Filter], node: type[And] | type[Or]) -> Filter:
        parts = [rule()]
        while self._accept("word", word):
            parts.append(rule())
        return parts[0] if len(parts) == 1 else node(tuple(parts))

    def _not(self) -> Filter:
        self.depth += 1
        if self.depth > self.MAX_DEPTH:
            raise self._error(f"nested more than {self.MAX_DEPTH} deep")
        try:
            if self._accept("word", "not"):
                return Not(self._not())
            if self._accept("operator", "("):
                inner = self._or()
                if not self._accept("operator", ")"):
                    raise self._error("a parenthesis is not closed")
                return inner
            return self._comparison()
        finally:
            self.depth -= 1

    def _comparison(self) -> Filter:
        column = self._value("a column name")
        if self._accept("word", "in"):
            return In(column, tuple(self._list()))
        operator = self._next()
        if operator.kind != "operator" or operator.text not in _COMPARISONS:
            raise self._error(f"expected a comparison such as = after {column!r}, got {operator.text!r}")
        return self._compare(column, operator.text, self._value(f"a value after {operator.text!r}"))

    def _compare(self, column: str, operator: str, value: str) -> Filter:
        if operator in ("=", "=="):
            return Eq(column, value)
        if operator in ("!=", "~"):
            return Ne(column, value) if operator == "!=" else Glob(column, value)
        try:
            bound = float(value)
        except ValueError:
            raise self._error(f"{operator!r} compares numbers, got {value!r}") from None
        if operator in ("<", "<="):
            return Range(column, high=bound, high_included=operator == "<=")
        return Range(column, low=bound, low_included=operator == ">=")

    def _list(self) -> Sequence[str]:
        values = [self._value("a value after 'in'")]
        while self._accept("operator", ","):
            values.append(self._value("a value after ','"))
        return values

    def _value(self, expected: str) -> str:
        token = self._next()
        if token.kind not in ("word", "quoted"):
            raise self._error(f"expected {expected}, got {token.text!r}")
        return token.text

    def _peek(self) -> _Token:
        return self.tokens[self.position]

    def _next(self) -> _Token:
        token = self.tokens[self.position]
        self.position = min(self.position + 1, len(self.tokens) - 1)
        return token

    def _accept(self, kind: str, text: str) -> bool:
        if self._peek() != _Token(kind, text):
            return False
        self.position += 1
        return True

    def _error(self, problem: str) -> InputError:
        return InputError(f'filter {self.text!r}: {problem}; write for example "label=cat" or "label in cat,dog"')
