"""Filters as text, read into a tree; `filters.py` describes the grammar."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import InputError
from .tree import And, Eq, Filter, Glob, In, Ne, Not, Or, Range, number

__all__ = ["parse_filter", "tree_of"]

MAX_COMPARISONS = 32  # each may have to look at every path
MAX_STARS = 16  # of one pattern

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
        InputError: the text is no filter, the message shows where; or it holds more than 32 comparisons, or a pattern
            with more than 16 stars, which take long on many images. A tree made in Python may hold any number.
    """
    return _Parser(text).parse()


def tree_of(where: str | Filter) -> Filter:
    """The tree of a filter, whether it comes as text or as a tree.

    Raises:
        InputError: the text is no filter, or it is something else.
    """
    if isinstance(where, str):
        return parse_filter(where)
    if not isinstance(where, Filter):
        raise InputError(f'a filter is text such as "label=cat", or made of Eq, In, Range, …; got {where!r}')
    return where


class _Parser:
    """Recursive descent, one method per rule of the grammar."""

    MAX_DEPTH = 50

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokenise()
        self.position = 0
        self.depth = 0
        self.comparisons = 0

    def parse(self) -> Filter:
        where = self._or()
        if self.comparisons > MAX_COMPARISONS:
            raise self._error(
                f"holds {self.comparisons} comparisons, up to {MAX_COMPARISONS} are allowed; "
                "`label in a,b,c` is one comparison, whatever the number of values"
            )
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
        self.comparisons += 1
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
        if operator == "~" and value.count("*") > MAX_STARS:
            raise self._error(f"a pattern may hold up to {MAX_STARS} stars, this one has {value.count('*')}")
        if operator in ("!=", "~"):
            return Ne(column, value) if operator == "!=" else Glob(column, value)
        bound = number(value)
        if bound is None:
            raise self._error(f"{operator!r} compares numbers, got {value!r}")
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
