"""The division of a folder or table into parts: as it says itself, by a column, or by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from ...errors import InputError
from ...images import ImageRecord
from ...images.splits import flags_of, overlooked_column, split_column, split_name, split_of_row
from ...remarks import remark
from ..recipes.tables import Table, limited

SHARES: Mapping[str, float | str] = {"train": 0.7, "test": 0.3}
_FLAG = "is_query"  # the column that divides a table which has no other; an empty cell trains
_MEANT = {"train": "train", "val": "val", "test": "test", "query": "test", "gallery": "test"}


class SplitSettings(Table):
    """The division of a folder or table.

    Left out, a table is divided by its column `split` (or `is_query`, `is_gallery`), and folders by those of their
    sub-folders that are splits: "train" is trained on, "val" is a part where there is one, and "test" is the rest,
    query and gallery among it. Where nothing says, 70 % of every class's images are "train" and 30 % "test".
    """

    # by name. Without a column: shares of every class's images, which add up to 1 at most. With a column: the values
    # that make up each part; left out, the values found, each a part.
    parts: Mapping[str, float | str] = {}
    column: str = ""  # of a table, such as `split`; empty for a division by chance where there are parts
    # share of the classes that become a part "novel" of their own, which no training sees
    novel: Annotated[float, limited(lambda value: 0 <= value < 1, "a share of novel classes in [0, 1)")] = 0.0
    seed: int = 0  # of the division

    def _check(self) -> None:
        values = list(self.parts.values())
        if self.parts and "train" not in self.parts:
            raise InputError(f"expected a part 'train', got {', '.join(self.parts)}")
        if self.column:
            if not all(isinstance(value, str) for value in values):
                raise InputError(f'parts of the column {self.column!r} are named by its values, such as train = "a"')
        elif not all(isinstance(value, float) and value > 0 for value in values) or sum(map(float, values)) > 1 + 1e-9:
            raise InputError(f"expected shares above 0 that add up to 1 at most, got {dict(self.parts)}")


def settled(
    split: SplitSettings, records: Sequence[ImageRecord], *, where: object, strict: bool, quiet: bool = False
) -> SplitSettings:
    """The same settings with a column or shares, and with parts: what a run's resolved recipe says."""
    names = list(dict.fromkeys(name for record in records for name in record.columns))
    rows = [record.columns for record in records]
    has_flags = bool(flags_of(dict.fromkeys(names, ""), where))
    own = split_column(rows, names) or (_FLAG if has_flags else None)
    if split.column and split.column not in names and not (has_flags and split.column == _FLAG):
        there = ", ".join(names) or "none besides path and label"
        raise InputError(f"{where}: expected a column {split.column!r} to divide it by; there are {there}")
    if split.parts:
        if own is not None and not split.column and not quiet:
            said = ", ".join(f"{value or 'nothing'} {count}" for value, count in _counts(records, own).items())
            remark(
                f"{where}: [data.split] divides the images by chance although their column {own!r} says which split "
                f"they are of ({said}); leave parts out to divide by it",
                strict=strict,
            )
        return split
    column = split.column or own
    if column is None:
        if not quiet and (doubt := overlooked_column(rows, names)) is not None:
            remark(
                f"{where}: the images are divided by chance, but {doubt}; name the column split, or say "
                "[data.split] column and parts",
                strict=strict,
            )
        return split.changed(parts=SHARES)
    marks = list(dict.fromkeys(row.get(column) or "" for row in rows)) if column == _FLAG else []  # as they are written
    parts = _parts(_counts(records, column), column, where, all_=bool(split.column), marks=marks)
    return split.changed(column=column, parts=parts)


def _counts(records: Sequence[ImageRecord], column: str) -> dict[str, int]:
    """Number of images by value of the column, known splits by their usual names, in order of appearance."""
    return Counter(_value(record, column) for record in records)


def _value(record: ImageRecord, column: str) -> str:
    return split_of_row(record.columns, None if column == _FLAG else column, where=record.path)


def _parts(
    counts: Mapping[str, int], column: str, where: object, *, all_: bool, marks: Sequence[str]
) -> dict[str, float | str]:
    """The parts that the values of a column make; with `all_` also of values that are no known splits."""
    found = {_MEANT[value] for value in counts if value in _MEANT}
    if "train" not in found:
        values = [value for value in counts if value]
        shown = ", ".join(values[:8]) or "nothing"
        train, test = [*marks, *values, "a"][0], marks[1] if len(marks) > 1 else "…"
        raise InputError(
            f"{where}: the column {column!r} says {shown}, and none of it is train; say which images are, such as "
            f'[data.split] column = "{column}", parts = {{ train = "{train}", test = "{test}" }}, or give shares'
        )
    known: dict[str, float | str] = {name: name for name in ("train", "val", "test") if name in found}
    return known | ({value: value for value in counts if value and value not in _MEANT} if all_ else {})


def divided(
    records: Sequence[ImageRecord], split: SplitSettings, *, where: object, strict: bool, quiet: bool = False
) -> dict[str, list[ImageRecord]]:
    """The records of every part, in the order of the listing; settings are `settled`."""
    generator = np.random.default_rng([0x59C, split.seed])
    novel: set[str] = set()
    if split.novel:
        names = sorted({label for record in records for label in shown_classes(record)})
        count = min(max(round(split.novel * len(names)), 1), len(names))
        novel = {names[number] for number in generator.permutation(len(names))[:count]}
    parts: dict[str, list[ImageRecord]] = {name: [] for name in split.parts}
    aside = [record for record in records if not novel.isdisjoint(shown_classes(record))]
    rest = [record for record in records if novel.isdisjoint(shown_classes(record))]
    if split.column:
        part_of = {value: name for name, value in split.parts.items()}
        by_meaning = {split_name(str(value)) or value: name for value, name in part_of.items()}
        own = []
        for record in rest:  # the part whose value it has, as it is written or else as it is meant
            cell, meaning = record.columns.get(split.column, ""), _value(record, split.column)
            meant = by_meaning.get(meaning, by_meaning.get(_MEANT.get(meaning, ""), part_of.get(cell)))
            own.append(part_of[cell] if cell in part_of and split.column != _FLAG else meant)
        outside = [record for record, name in zip(rest, own, strict=True) if name is None]
        if outside and not quiet:
            remark(
                f"{where}: {len(outside)} images are of none of the parts {', '.join(parts)} and are left out, such as "
                f"{outside[0].path} ({split.column}: {outside[0].columns.get(split.column) or 'empty'})",
                strict=strict,
            )
    else:
        own = _by_chance(rest, split, generator)
    for record, name in zip(rest, own, strict=True):
        if name is not None:
            parts[name].append(record)
    if novel:
        parts["novel"] = aside
    empty = next((name for name, members in parts.items() if not members), None)
    if empty is not None:
        raise InputError(f"the part {empty!r} of the data has no images; {len(records)} were divided")
    return parts


def shown_classes(record: ImageRecord) -> tuple[str, ...]:
    """The classes that an image shows, by its label or its column `labels`."""
    if "labels" in record.columns:
        return tuple(name for name in map(str.strip, record.columns["labels"].split(";")) if name)
    return () if record.label is None else (record.label,)


def _by_chance(
    records: Sequence[ImageRecord], split: SplitSettings, generator: np.random.Generator
) -> list[str | None]:
    """The part of every record: each class is divided in the same shares, an image of several classes by its first."""
    of_class: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        of_class.setdefault(next(iter(shown_classes(record)), ""), []).append(number)
    chosen: list[str | None] = [None] * len(records)
    names, ends = list(split.parts), np.cumsum([float(share) for share in split.parts.values()])
    for _, members in sorted(of_class.items()):
        order = generator.permutation(members)
        for name, part in zip(names, np.split(order, np.rint(ends * len(order)).astype(int)), strict=False):
            for number in part.tolist():
                chosen[number] = name
    return chosen
