"""The parts of a filter: comparisons of one column, and how they are combined."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["And", "Comparison", "Eq", "Filter", "Glob", "In", "Ne", "Not", "Or", "Range"]


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


Comparison: TypeAlias = Eq | Ne | In | Glob | Range
Filter: TypeAlias = Comparison | And | Or | Not
