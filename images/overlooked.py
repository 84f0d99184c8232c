"""Columns of a table that may say which images are for training, and that nobody asked: for a remark, never a guess."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .splits import split_name

__all__ = ["overlooked_column"]

_NAMES = re.compile(r"((k|cv)?folds?|foldid|partition|(istrain|istest|isval|isvalid)(ing|ation)?(image|set)?)")
_LOOKED_AT, _VALUES = 10_000, 20  # rows, spread evenly, and distinct cells of a column that may be one of splits


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
        is_named = _NAMES.fullmatch(re.sub(r"[\s_-]", "", name.lower())) is not None
        says_train = any(split_name(cell) == "train" for cell in cells)
        if 1 < len(cells) <= _VALUES and (is_named or says_train):
            shown = ", ".join(cell or "nothing" for cell in list(cells)[:5]) + (", …" if len(cells) > 5 else "")
            return f"the column {name!r} ({shown}) may say which images are for training, and is not asked"
    return None
