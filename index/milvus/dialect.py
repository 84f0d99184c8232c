"""Filters as Milvus expressions, made of numbers only, without any text of a user; and the names of its indexes.

Every row carries those of its values that are numbers, and `keys`: a 63-bit hash for each (column, value) it has, and
for each column whose value is a number. "label=cat" becomes `array_contains(keys, 4617…)`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ...errors import InputError
from ..filters.tree import And, Eq, Filter, Glob, In, Ne, Not, Or, Range, number

EVERY_ROW = "id >= 0"
_MOST_VALUES = 5000
FLAT_UP_TO = 100_000  # images; "auto" means a graph above
_GRAPH = {"M": 16, "efConstruction": 200}
_LARGEST = 1.7976931348623157e308  # JSON has no infinity


def key_of(column: str, value: str) -> int:
    """The number that stands for "this column has this value"."""
    return _hashed(b"v", column, value)


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
        *(_hashed(b"n", column, "") for column, value in found if _number(value) is not None),
    ]


def numbers_of(values: Mapping[str, str | None]) -> dict[str, float]:
    """The values that are numbers, under names made for expressions."""
    found = {column: _number(value) for column, value in values.items() if value is not None}
    return {_number_name(column): number for column, number in found.items() if number is not None}


def _number(text: str) -> float | None:
    """The number that a text spells, as Milvus can hold it."""
    value = number(text)
    return None if value is None else min(max(value, -_LARGEST), _LARGEST)


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
            return " and ".join([f"(array_contains(keys, {_hashed(b'n', where.column, '')})", *_bounds(where)]) + ")"
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


@dataclass(frozen=True)
class IndexKind:
    """A kind of index by Milvus' name and parameters; FAISS factory strings outside."""

    name: str
    build: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, *, count: int = 0) -> Self:
        """The kind that `--index` means for a gallery of `count` images.

        >>> IndexKind.parse("IVF1024,PQ64")
        IndexKind(name='IVF_PQ', build={'nlist': 1024, 'm': 64, 'nbits': 8})
        """
        if text == "auto":
            return cls("FLAT") if count <= FLAT_UP_TO else cls("HNSW", _GRAPH)
        if text.lower() in ("flat", "diskann"):
            return cls(text.upper())
        if found := re.fullmatch(r"HNSW(\d{1,3})?(,Flat)?", text):
            return cls("HNSW", {**_GRAPH, "M": int(found[1] or _GRAPH["M"])})
        if found := re.fullmatch(r"IVF(\d{1,5}),(Flat|SQ8|PQ(\d{1,4}))", text):
            lists = {"nlist": int(found[1])}
            if found[3]:
                return cls("IVF_PQ", {**lists, "m": int(found[3]), "nbits": 8})
            return cls("IVF_FLAT" if found[2] == "Flat" else "IVF_SQ8", lists)
        raise InputError(
            f"index {text!r}: with Milvus use auto, flat, HNSW, HNSW32, DISKANN, or IVF1024,Flat (or SQ8, or PQ64)"
        )

    @classmethod
    def of_description(cls, description: Mapping[str, Any]) -> Self:
        """The kind that Milvus describes."""
        names = ("M", "efConstruction", "nlist", "m", "nbits")
        build = {name: int(description[name]) for name in names if name in description}
        return cls(str(description.get("index_type", "FLAT")), build)

    def is_like(self, other: Self) -> bool:
        """True if the same index is meant, as far as both say."""
        shared = self.build.keys() & other.build.keys()
        return self.name == other.name and all(self.build[name] == other.build[name] for name in shared)

    @property
    def is_exact(self) -> bool:
        """True if every vector is looked at, in single precision."""
        return self.name == "FLAT"

    def effort(self, n: int) -> dict[str, int]:
        """The parameters of a search for n candidates; twice as many are looked at where the kind allows it."""
        match self.name:
            case "HNSW":
                return {"ef": max(64, 2 * n)}
            case "DISKANN":
                return {"search_list": max(100, 2 * n)}
            case "FLAT":
                return {}
            case _:
                lists = self.build.get("nlist", 128)
                return {"nprobe": min(lists, max(16, lists // 32))}
