"""Which id sits in which row of a FAISS index.

Rows are only ever appended. Deleting masks a row and replacing masks the older one, because FAISS's own removal
renumbers rows, is slow, and under an IVF index wrapped for foreign ids returns wrong ids.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..search import Ids

__all__ = ["Mask", "RowBook", "Rows"]

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_NO_ROW = -1


class RowBook:
    """Ids by row, and back; a row is live until its id is deleted or replaced."""

    def __init__(self) -> None:
        self._ids = np.empty(0, np.uint64)
        self._live = np.empty(0, np.bool_)
        self._size = 0
        self._largest = -1
        self._lookup: tuple[Ids, Rows] | None = None
        self._live_rows: Rows | None = None
        self.live_count = 0

    @classmethod
    def restore(cls, ids: Ids, live: Mask) -> RowBook:
        """The book with these rows."""
        book = cls()
        book._ids, book._live, book._size = ids.copy(), live.copy(), len(ids)
        book._largest = int(ids.max(initial=0))
        book.live_count = int(live.sum())
        return book

    def __len__(self) -> int:
        """Number of rows, live or not."""
        return self._size

    @property
    def ids(self) -> Ids:
        """Id of each row."""
        return self._ids[: self._size]

    @property
    def live(self) -> Mask:
        """Whether each row is live."""
        return self._live[: self._size]

    def append(self, ids: Ids) -> None:
        """One new row for each id; an older row of the same id dies."""
        self.drop(ids)
        end = self._size + len(ids)
        if end > len(self._ids):
            spare = max(end, 2 * self._size) - self._size
            self._ids = np.concatenate([self.ids, np.zeros(spare, np.uint64)])
            self._live = np.concatenate([self.live, np.zeros(spare, np.bool_)])
        self._ids[self._size : end] = ids
        self._live[self._size : end] = True
        self._size = end
        self._largest = max(self._largest, int(ids.max(initial=0)))
        self.live_count += len(ids)
        self._lookup = self._live_rows = None

    def drop(self, ids: Ids) -> None:
        """Masks the live rows of `ids`; unknown ids are no error."""
        if not len(ids) or int(ids.min()) > self._largest:
            return  # the usual batch: ids ascend, so none can be known
        rows = self.rows_of(ids)
        self._live[rows] = False
        self._live_rows = None
        self.live_count -= len(rows)

    def rows_of(self, ids: Ids) -> Rows:
        """The live rows of those `ids` that have one, in the order of `ids`; each row once."""
        rows = self.find(ids)
        if rows.min(initial=0) < 0:
            rows = rows[rows != _NO_ROW]
        if len(rows) > 1 and not (rows[1:] > rows[:-1]).all():
            rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
        return rows

    def find(self, ids: Ids) -> Rows:
        """The live row of each id, −1 where there is none."""
        keys, rows = self._lookup = self._lookup or self._make_lookup()
        found: Rows
        if not len(rows) or not len(ids):
            return np.full(len(ids), _NO_ROW, np.int64)
        if len(keys) == 1:  # a table over the range of ids, starting at the one key
            offsets = ids - keys[0]  # ids below the first wrap round to huge numbers
            if offsets.max() < len(rows):
                found = rows[offsets.view(np.int64)]
            else:
                known = offsets < np.uint64(len(rows))
                found = np.where(known, rows[np.where(known, offsets, 0).astype(np.int64)], _NO_ROW)
        else:
            places = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
            found = np.where(keys[places] == ids, rows[places], _NO_ROW)
        if self.live_count < self._size:
            found = np.where(self.live[found], found, _NO_ROW)  # −1 looks at the last row, and stays −1
        return found

    def all_live(self) -> Rows | None:
        """The live rows, None where that is every row."""
        if self.live_count == self._size:
            return None
        rows = self._live_rows = np.flatnonzero(self.live) if self._live_rows is None else self._live_rows
        return rows

    def ascending(self) -> Rows:
        """The live rows, ascending by id."""
        rows: Rows = np.flatnonzero(self.live).astype(np.int64, copy=False)
        return rows[np.argsort(self.ids[rows], kind="stable")]

    def _make_lookup(self) -> tuple[Ids, Rows]:
        """(first id, row of each id of the range), or (sorted ids, their rows) where ids are far apart.

        The table is ten times faster on the long sorted lists that filters are.
        """
        rows = self.ascending()
        keys = self.ids[rows]
        if not len(keys) or (len(keys) > 1 and keys[-1] - keys[0] >= 8 * len(keys)):
            return keys, rows
        table = np.full(int(keys[-1] - keys[0]) + 1, _NO_ROW, np.int64)
        table[(keys - keys[0]).astype(np.int64)] = rows
        return keys[:1], table
