"""The one recogniser of splits (training, validation, test, query, gallery) by name, and in the columns of tables.

Names are compared without regard to case: `train`, `training`, `trainval`; `val`, `valid`, `validation`, `dev`;
`test`, `testing`, `eval`, `evaluation`, `holdout`; `query`; `gallery`; each perhaps with a tail such as `_set` or
`2017`, or with a head that data sets are known to have, as in `bounding_box_train`, `seg_train` and `cars_test`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ..errors import InputError

SplitName = Literal["train", "val", "test", "query", "gallery"]
SPLIT_COLUMN = "split"  # what the folder says is listed under this name
_ALIASES: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout", "hold_out", "hold-out", "heldout"), "test"),
    "query": "query",
    "gallery": "gallery",
}
_OVERLOOKED = re.compile(r"((k|cv)?folds?|foldid|partition|(istrain|istest|isval|isvalid)(ing|ation)?(image|set)?)")
_LOOKED_AT, _VALUES = 10_000, 20  # rows, spread evenly, and distinct cells of a column that may be one of splits
_HEAD, _TAIL = r"((bounding_box|images?|seg|cars)_)?", r"([ _-]?(set|images?|imgs?|data|split|\d{4}))?"
_NAME = re.compile(f"{_HEAD}(?P<split>{'|'.join(_ALIASES)}){_TAIL}", re.IGNORECASE)
# all but the first only if every cell names a split
_COLUMNS = ("split", "subset", "partition", "set", "phase", "usage", "data_split", "dataset_split", "image_set")
_FLAGS = ("is_query", "is_gallery")


def split_name(name: str) -> SplitName | None:
    """The split that a folder or a cell is named after; None for any other name.

    >>> split_name("Training"), split_name("valid"), split_name("train_set"), split_name("trains")
    ('train', 'val', 'train', None)
    """
    found = _NAME.fullmatch(name.strip())
    return None if found is None else _ALIASES[found["split"].lower()]


# --- tables -----------------------------------------------------------------------------------------------------------


def split_column(rows: Iterable[Mapping[str, str]], names: Sequence[str]) -> str | None:
    """The column that divides a table: `split` in any case, or another usual name if all its cells name splits.

    Args:
        rows: the cells of each row, by column.
        names: of the columns.
    """
    by_name = {name.strip().lower(): name for name in reversed(names)}
    if _COLUMNS[0] in by_name:
        return by_name[_COLUMNS[0]]
    candidates = [by_name[name] for name in _COLUMNS[1:] if name in by_name]
    for column in candidates:
        cells = {row.get(column, "").strip() for row in rows} - {""}
        if len(cells) > 1 and all(map(split_name, cells)):
            return column
    return None


def split_of_row(row: Mapping[str, str], column: str | None, *, where: object = "the table") -> str:
    """The split of a row: a known name, the cell as it is, or "" where it says nothing.

    `is_query` and `is_gallery` say "test" where no column does, and in a table that has them an empty cell in both says
    "train".
    """
    if column is not None and (cell := row.get(column, "").strip()):
        return split_name(cell) or cell
    said = {} if column is not None else flags_of(row, where)
    return "" if not said else "test" if any(value is not None for value in said.values()) else "train"


def flags_of(row: Mapping[str, str], where: object) -> dict[str, bool | None]:
    """Values of the flags `is_query` and `is_gallery`, in any case, in a row; those alone that its table has."""
    present = {name.strip().lower(): name for name in row}
    return {name: flag(row[present[name]], name, where) for name in _FLAGS if name in present}


def flag(text: str, column: str, where: object) -> bool | None:
    """True, False, or None where the cell is empty."""
    value = text.strip().lower()
    if value in ("", "nan", "none"):
        return None
    if value in ("true", "1", "1.0", "yes"):
        return True
    if value in ("false", "0", "0.0", "no"):
        return False
    raise InputError(f"{where}: expected True or False in the column {column}, got {text!r}")


def overlooked_column(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> str | None:
    """A clause about a column that seems to divide a table which `split_column` found undivided; None without one.

    Such a column says train in some rows and something else in others; or it is named like a fold or a flag, as `fold`
    and `is_train` are, and has several values.

    Args:
        rows: the cells of each row, by column.
        names: of the columns.
    """
    looked_at = rows[:: max(len(rows) // _LOOKED_AT, 1)]
    for name in names:
        cells: dict[str, None] = {}
        for row in looked_at:
            cells[row.get(name, "").strip()] = None
            if len(cells) > _VALUES:
                break
        is_named = _OVERLOOKED.fullmatch(re.sub(r"[\s_-]", "", name.lower())) is not None
        says_train = any(split_name(cell) == "train" for cell in cells)
        if 1 < len(cells) <= _VALUES and (is_named or says_train):
            shown = ", ".join(cell or "nothing" for cell in list(cells)[:5]) + (", …" if len(cells) > 5 else "")
            return f"the column {name!r} ({shown}) may say which images are for training, and is not asked"
    return None
