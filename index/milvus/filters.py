"""Filters as Milvus expressions, made of numbers only: no text of a user ever stands in one.

Every row carries `keys`, an array with one 63-bit hash for each (column, value) it has, its label and path among
them, and one for each column whose value is a number; and those numbers themselves. "label=cat" becomes
`array_contains(keys, 4617…)`. What values look like, how Milvus escapes strings and compares nothing with something,
does not matter then. Two values share a hash with probability 2⁻⁶³.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

from ..filters.tree import And, Eq, Filter, Glob, In, Ne, Not, Or, Range

__all__ = ["EVERY_ROW", "compiled", "key_of", "keys_of", "numbers_of"]

EVERY_ROW = "id >= 0"
_MOST_VALUES = 5000
_LARGEST = 1.7976931348623157e308  # JSON has no infinity


def key_of(column: str, value: str) -> int:
    """The number that stands for "this column has this value"."""
    return _hashed(b"v", column, value)


def _number_key(column: str) -> int:
    """The number that stands for "this column's value is a number"."""
    return _hashed(b"n", column, "")


def _number_name(column: str) -> str:
    return f"n{_hashed(b'c', column, ''):016x}"


def _hashed(kind: bytes, column: str, value: str) -> int:
    name, text = column.encode("utf-8", "surrogatepass"), value.encode("utf-8", "surrogatepass")
    data = kind + len(name).to_bytes(4, "little") + name + text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def keys_of(values: Mapping[str, str | None]) -> list[int]:
    """The keys of a row with these values, path and label among them."""
    found = [(column, value) for column, value in values.items() if value is not None]
    return [
        *(key_of(column, value) for column, value in found),
        *(_number_key(column) for column, value in found if _number(value) is not None),
    ]


def numbers_of(values: Mapping[str, str | None]) -> dict[str, float]:
    """The values that are numbers, under names made for expressions."""
    found = {column: _number(value) for column, value in values.items() if value is not None}
    return {_number_name(column): number for column, number in found.items() if number is not None}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else min(max(value, -_LARGEST), _LARGEST)


def compiled(where: Filter) -> str | None:
    """The expression that keeps the same rows as `where`; None when there is none, as for patterns.

    >>> compiled(Ne("label", "cat"))
    'not array_contains(keys, 7081538212898758407)'
    """
    match where:
        case Eq(column, value):
            return f"array_contains(keys, {key_of(column, value)})"
        case Ne(column, value):
            return f"not array_contains(keys, {key_of(column, value)})"
        case In(column, values):
            if not 0 < len(values) <= _MOST_VALUES:
                return None if values else "id < 0"
            return f"array_contains_any(keys, [{', '.join(str(key_of(column, value)) for value in values)}])"
        case Range():
            return " and ".join([f"(array_contains(keys, {_number_key(where.column)})", *_bounds(where)]) + ")"
        case Not(part):
            inner = compiled(part)
            return None if inner is None else f"not ({inner})"
        case And(parts):
            return _joined(parts, " and ", EVERY_ROW)
        case Or(parts):
            return _joined(parts, " or ", "id < 0")
        case Glob():
            return None


def _bounds(where: Range) -> Iterator[str]:
    name = f'record["numbers"]["{_number_name(where.column)}"]'
    for bound, sign, is_included in ((where.low, ">", where.low_included), (where.high, "<", where.high_included)):
        if math.isnan(bound):
            yield "id < 0"
        elif not math.isinf(bound):
            yield f"{name} {sign}{'=' * is_included} {bound!r}"
        elif (bound > 0) == (sign == ">") or not is_included:
            yield f"{name} {sign}{'=' * is_included} {math.copysign(_LARGEST, bound)!r}"


def _joined(parts: tuple[Filter, ...], word: str, nothing: str) -> str | None:
    inner = [compiled(part) for part in parts]
    if None in inner:
        return None
    return word.join(f"({text})" for text in inner) if inner else nothing
