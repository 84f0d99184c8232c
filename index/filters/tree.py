"""The parts of a filter: comparisons of one column, and how they are combined.

Every value in a gallery is text. A number where text belongs would equal nothing, in silence, so it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ...errors import InputError

__all__ = ["And", "Comparison", "Eq", "Filter", "Glob", "In", "Ne", "Not", "Or", "Range", "number"]


@dataclass(frozen=True)
class Eq:
    """The column has exactly this value."""

    column: str
    value: str

    def __post_init__(self) -> None:
        _require_text(self, self.column, self.value)


@dataclass(frozen=True)
class Ne:
    """The column has another value, or none."""

    column: str
    value: str

    def __post_init__(self) -> None:
        _require_text(self, self.column, self.value)


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
class And:
    """All parts hold."""

    parts: tuple[Filter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _several(self, self.parts, "filters"))
        _require_filters(self, *self.parts)


@dataclass(frozen=True)
class Or:
    """At least one part holds."""

    parts: tuple[Filter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _several(self, self.parts, "filters"))
        _require_filters(self, *self.parts)


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Filter

    def __post_init__(self) -> None:
        _require_filters(self, self.part)


Comparison: TypeAlias = Eq | Ne | In | Glob | Range
Filter: TypeAlias = Comparison | And | Or | Not


def number(text: str) -> float | None:
    """The number that a text spells; None for any other text, "nan" among them."""
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _require_text(where: Comparison, *values: Any) -> None:
    for value in values:
        if not isinstance(value, str):
            raise InputError(f"filter {_spelt(where)}: columns and values are text, write {str(value)!r} for {value!r}")


def _require_filters(where: Filter, *parts: Any) -> None:
    for part in parts:
        if not isinstance(part, Filter):
            raise InputError(
                f"filter {_spelt(where)}: combines filters, got {part!r}; parse_filter reads one from text"
            )


def _several(where: Filter, values: Any, what: str) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"filter {_spelt(where)}: expected several {what}, got {values!r}; put it in a tuple")
    return tuple(values)


def _spelt(where: Filter) -> str:
    text = repr(where)
    return text if len(text) <= 80 else f"{text[:80]}…"
