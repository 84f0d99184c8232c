"""Filters: comparisons of one column, how they are combined, and how both are written as text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from ...errors import InputError

MAX_DEPTH = 128  # levels of a tree; a text's parentheses and `not` make two levels each at most
MAX_NESTING = 50  # of a text
MAX_COMPARISONS = 32  # of a text; each may have to look at every path
MAX_STARS = 16  # of one pattern in a text

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
class _OneValue:
    """A column compared with one value."""

    column: str
    value: str

    def __post_init__(self) -> None:
        _require_text(self, self.column, self.value)


class Eq(_OneValue):
    """The column has exactly this value."""


class Ne(_OneValue):
    """The column has another value, or none."""


@dataclass(frozen=True)
class In:
    """The column has one of these values."""

    column: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _several(self, self.values, "texts"))
        _require_text(self, self.column, *self.values)


@dataclass(frozen=True)
class Glob:
    """The column's value fits a pattern with `*`, `?` and `[…]`, whole, case included."""

    column: str
    pattern: str

    def __post_init__(self) -> None:
        _require_text(self, self.column, self.pattern)


@dataclass(frozen=True)
class Range:
    """The column's value is a number between two bounds; text is in no range."""

    column: str
    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True

    def __post_init__(self) -> None:
        _require_text(self, self.column)
        for bound in (self.low, self.high):
            if not isinstance(bound, (int, float)) or math.isnan(bound):
                raise InputError(f"filter {_spelt(self)}: a bound is a number, got {bound!r}")


@dataclass(frozen=True)
class _Parts:
    parts: tuple[Filter, ...]
    depth: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _several(self, self.parts, "filters"))
        object.__setattr__(self, "depth", _depth_over(self, *self.parts))


class And(_Parts):
    """All parts hold."""


class Or(_Parts):
    """At least one part holds."""


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Filter
    depth: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", _depth_over(self, self.part))


Condition: TypeAlias = Eq | Ne | In | Glob | Range
Filter: TypeAlias = Condition | And | Or | Not


def number(text: str) -> float | None:
    """The number that a text spells; None for any other text, "nan" among them."""
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _require_text(where: object, *values: Any) -> None:
    for value in values:
        if not isinstance(value, str):
            raise InputError(f"filter {_spelt(where)}: columns and values are text, write {str(value)!r} for {value!r}")


def _depth_over(where: object, *parts: Any) -> int:
    """Levels of `and`, `or`, `not` in a filter over these parts; evaluation goes down them by recursion."""
    for part in parts:
        if not isinstance(part, Filter):
            raise InputError(
                f"filter {_spelt(where)}: combines filters, got {part!r}; parse_filter reads one from text"
            )
    depth = 1 + max((getattr(part, "depth", 0) for part in parts), default=0)
    if depth > MAX_DEPTH:
        raise InputError(
            f"a filter is nested more than {MAX_DEPTH} deep; And and Or take any number of parts at one level"
        )
    return depth


def _several(where: object, values: Any, what: str) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"filter {_spelt(where)}: expected several {what}, got {values!r}; put it in a tuple")
    return tuple(values)


def _spelt(where: object) -> str:
    text = repr(where)
    return text if len(text) <= 80 else f"{text[:80]}…"


class _Token(NamedTuple):
    kind: str  # "quoted", "operator", "word", or "end"
    text: str


def parse_filter(text: str) -> Filter:
    """The tree of a filter written as text.

    Operators: `=` (or `==`), `!=`, `<`, `<=`, `>`, `>=` (numbers), `~` (a pattern with `*`, `?` and `[…]`), `in`; they
    are combined by `not`, `and`, `or` (in this order) and parentheses. Names and values with spaces or operators go in
    quotes: `camera>=3 and not (label in cat,dog or path~'holiday/*')`.

    >>> parse_filter("label in cat,dog and camera<3")
    And(parts=(In(column='label', values=('cat', 'dog')), Range(column='camera', low=-inf, high=3.0, \
low_included=True, high_included=False)))

    Raises:
        InputError: the text is no filter, the message shows where; or it holds more than 32 comparisons, or a pattern
            with more than 16 stars, which take long on many images. A tree made in Python may hold any number.
    """
    return _Parser(text).parse()


def tree_of(where: str | Filter) -> Filter:
    """The tree of a filter, whether it comes as text or as a tree."""
    if isinstance(where, str):
        return parse_filter(where)
    if not isinstance(where, Filter):
        raise InputError(f'a filter is text such as "label=cat", or made of Eq, In, Range, …; got {where!r}')
    return where


class _Parser:
    """Recursive descent, one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[_Token] = []  # those to come
        self.depth = self.comparisons = 0
        position, end = 0, len(text.rstrip())
        while position < end:
            found = _TOKEN.match(text, position)
            if found is None:
                raise self._error(f"cannot read {text[position:end].strip()!r}")
            kind = str(found.lastgroup)
            token = found[kind]
            self.tokens.append(_Token(kind, re.sub(r"\\(.)", r"\1", token[1:-1]) if kind == "quoted" else token))
            position = found.end()
        self.tokens.append(_Token("end", "the end"))

    def parse(self) -> Filter:
        where = self._or()
        if self.comparisons > MAX_COMPARISONS:
            raise self._error(
                f"holds {self.comparisons} comparisons, up to {MAX_COMPARISONS} are allowed; "
                "`label in a,b,c` is one comparison, whatever the number of values"
            )
        if self.tokens[0].kind != "end":
            raise self._error(f"unexpected {self.tokens[0].text!r}; values with spaces need quotes")
        return where

    def _or(self) -> Filter:
        return self._chain("or", lambda: self._chain("and", self._not, And), Or)

    def _chain(self, word: str, rule: Callable[[], Filter], node: type[And] | type[Or]) -> Filter:
        parts = [rule()]
        while self._accept("word", word):
            parts.append(rule())
        return parts[0] if len(parts) == 1 else node(tuple(parts))

    def _not(self) -> Filter:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise self._error(f"nested more than {MAX_NESTING} deep")
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
        self.comparisons += 1
        column = self._value("a column name")
        if self._accept("word", "in"):
            values = [self._value("a value after 'in'")]
            while self._accept("operator", ","):
                values.append(self._value("a value after ','"))
            return In(column, tuple(values))
        operator = self._next()
        if operator.kind != "operator" or operator.text not in _COMPARISONS:
            raise self._error(f"expected a comparison such as = after {column!r}, got {operator.text!r}")
        sign, value = operator.text, self._value(f"a value after {operator.text!r}")
        if sign in ("=", "=="):
            return Eq(column, value)
        if sign == "!=":
            return Ne(column, value)
        if sign == "~":
            if value.count("*") > MAX_STARS:
                raise self._error(f"a pattern may hold up to {MAX_STARS} stars, this one has {value.count('*')}")
            return Glob(column, value)
        if (bound := number(value)) is None:
            raise self._error(f"{sign!r} compares numbers, got {value!r}")
        if sign in ("<", "<="):
            return Range(column, high=bound, high_included=sign == "<=")
        return Range(column, low=bound, low_included=sign == ">=")

    def _value(self, expected: str) -> str:
        token = self._next()
        if token.kind not in ("word", "quoted"):
            raise self._error(f"expected {expected}, got {token.text!r}")
        return token.text

    def _next(self) -> _Token:
        return self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]

    def _accept(self, kind: str, text: str) -> bool:
        is_next = self.tokens[0] == _Token(kind, text)
        if is_next:
            self._next()
        return is_next

    def _error(self, problem: str) -> InputError:
        return InputError(f'filter {self.text!r}: {problem}; write for example "label=cat" or "label in cat,dog"')
