"""Filters evaluated on whole columns at once. An image without a value equals nothing and is in no range.

Filters of untrusted clients are bounded: comparisons in number, and all by a deadline (`deadlines.finish_by`).
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...deadlines import check_deadline
from ...errors import InputError
from ...forking import ForkSafeLock
from .tree import And, Condition, Eq, Filter, Glob, In, Ne, Not, Or, Range, number, tree_of

if TYPE_CHECKING:
    from ..storage.snapshot import Snapshot

Mask: TypeAlias = NDArray[np.bool_]

_VERDICT_BYTES = 64 << 20
_BLOCK = 4096  # values between two looks at the clock


@dataclass(frozen=True)
class Categorical:
    """A column of strings as codes into its distinct values; code -1 is "no value"."""

    values: tuple[str, ...]
    codes: NDArray[np.int32]

    @classmethod
    def of(cls, strings: Sequence[str | None]) -> Self:
        """Number the distinct values in alphabetical order.

        >>> Categorical.of(["dog", None, "cat", "dog"])
        Categorical(values=('cat', 'dog'), codes=array([ 1, -1,  0,  1], dtype=int32))
        """
        values = tuple(sorted({string for string in strings if string is not None}))
        number: dict[str | None, int] = {value: code for code, value in enumerate(values)}
        number[None] = -1
        return cls(values, np.array([number[string] for string in strings], np.int32))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> str | None:
        code = self.codes.item(index)
        return None if code < 0 else self.values[code]

    def strings(self) -> list[str | None]:
        """The column as a list."""
        known: tuple[str | None, ...] = (*self.values, None)  # code -1 is the last
        return [known[code] for code in self.codes]


class Verdicts:
    """Cache of the rows that each comparison selects in one table that does not change, in bounded memory."""

    def __init__(self, *, max_bytes: int = _VERDICT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = ForkSafeLock()
        self._masks: OrderedDict[Condition, NDArray[np.uint8]] = OrderedDict()
        self.nbytes = 0

    def get(self, where: Condition, count: int) -> Mask | None:
        """The mask of `count` rows that was put in; None if it was dropped."""
        with self._lock:
            if (bits := self._masks.get(where)) is None:
                return None
            self._masks.move_to_end(where)
        return np.unpackbits(bits, count=count).view(np.bool_)

    def put(self, where: Condition, mask: Mask) -> None:
        """Remember the rows that a comparison selects."""
        bits = np.packbits(mask)
        with self._lock:
            if where in self._masks or bits.nbytes > self._max_bytes:
                return
            self._masks[where] = bits
            self.nbytes += bits.nbytes
            while self.nbytes > self._max_bytes:
                self.nbytes -= self._masks.popitem(last=False)[1].nbytes


def matching(where: Filter, table: Snapshot, verdicts: Verdicts | None = None) -> Mask:
    """Mask of the table's rows that a filter selects; equal comparisons are evaluated once, cache or not."""
    check_deadline()
    known = Verdicts() if verdicts is None else verdicts
    match where:
        case And(parts):
            return reduce(np.logical_and, (matching(part, table, known) for part in parts), np.ones(len(table), bool))
        case Or(parts):
            return reduce(np.logical_or, (matching(part, table, known) for part in parts), np.zeros(len(table), bool))
        case Not(part):
            return ~matching(part, table, known)
    require_columns(where, table.column_names)
    column = table.column(where.column)
    mask = known.get(where, len(table))
    if mask is None:
        holds = _predicate(where)
        of_values = np.empty(len(column.values) + 1, bool)  # each distinct value is looked at once
        of_values[-1] = isinstance(where, Ne)  # code -1, "no value"
        for start in range(0, len(column.values), _BLOCK):
            some = column.values[start : start + _BLOCK]
            of_values[start : start + len(some)] = [holds(value) for value in some]
            check_deadline()
        mask = of_values[column.codes]
        known.put(where, mask)
    return mask


def hints(where: Filter | str, table: Snapshot) -> list[str]:
    """One sentence for each value that a filter asks for and no image has, with the nearest one that some image has."""
    said: dict[str, None] = {}
    tree = tree_of(where)
    require_columns(tree, table.column_names)
    for comparison in _comparisons(tree):
        there = table.column(comparison.column).values
        match comparison:
            case Eq(column, value):
                said.update(_unknown(column, [value], there))
            case In(column, values):
                said.update(_unknown(column, values, there))
            case Range(column) if all(number(value) is None for value in there):
                said[f"no image has a number as its {column}, which a range is of{_examples(there)}"] = None
    return list(said)


def require_columns(where: Filter, names: Sequence[str]) -> None:
    """InputError for a column that a filter names and the gallery does not have."""
    for comparison in _comparisons(where):
        if (name := comparison.column) not in names:
            nearest = difflib.get_close_matches(name, names, n=1)
            hint = f", did you mean {nearest[0]!r}?" if nearest else ""
            raise InputError(f"no column {name!r} in this gallery{hint}; there are {', '.join(names)}")


def _comparisons(where: Filter) -> Iterator[Condition]:
    match where:
        case And(parts) | Or(parts):
            for part in parts:
                yield from _comparisons(part)
        case Not(part):
            yield from _comparisons(part)
        case _:
            yield where


def _unknown(column: str, values: Sequence[str], there: Sequence[str]) -> Iterator[tuple[str, None]]:
    for value in values:
        if value not in there:
            folded = {other.casefold(): other for other in there}
            nearest = difflib.get_close_matches(value.casefold(), folded, n=1)
            hint = f"; did you mean {folded[nearest[0]]!r}?" if nearest else _examples(there)
            yield f"no image has {column} {value!r}{hint}", None


def _examples(values: Sequence[str], *, most: int = 5) -> str:
    if not values:
        return "; no image has any"
    rest = f" and {len(values) - most} others" if len(values) > most else ""
    return f"; there are {', '.join(values[:most])}{rest}"


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
        case Range(_, low, high):

            def is_in_range(found: str) -> bool:
                value = number(found)
                if value is None:
                    return False
                above = value >= low if where.low_included else value > low
                return above and (value <= high if where.high_included else value < high)

            return is_in_range
