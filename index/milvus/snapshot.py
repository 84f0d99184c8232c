"""A gallery whose rows lie in Milvus: its folder holds the manifest, the encoder's copy, the skip list and caches.

The manifest decides what is there, as for any gallery. New rows get ids that no manifest has given out yet, and every
reader looks below `next_id`: they become visible when the manifest is replaced, which is the commit. Images that leave
are named in the folder's tombstone files by a commit too, and readers pass over them; the writer deletes their rows
when it is done, or the next one does. What an interrupted writer left in Milvus has ids that were never given out, and
the next writer deletes it.

The live ids are all below `next_id` without those in the tombstone files, so opening asks Milvus for nothing.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..filters.matching import Verdicts, matching
from ..filters.tree import Filter
from ..search import check_ids
from ..storage.manifest import BackendEntry, Manifest
from ..storage.records import Array, Categorical, Record
from ..storage.snapshot import Ids, Snapshot, Verify, check_file, read_ids
from .connection import Address
from .filters import compiled, key_of
from .index import IndexKind
from .search import MilvusSearch, Rows
from .table import MilvusTable, TableSpec

__all__ = ["MilvusSnapshot", "backend_entry", "removed_ids", "require_index", "table_of"]

_SCAN = 4096  # rows
_PATHS = 500  # in one request
_FEW = 20  # times fewer paths than rows are worth asking for one by one


def backend_entry(text: str, old: Manifest | None) -> BackendEntry:
    """What a new gallery's manifest says of its backend; building anew at the same place takes the old rows' place.

    Raises:
        InputError: the text is no address.
    """
    address = str(Address.parse(text))
    if old is not None and old.backend is not None and old.backend.address == address:
        return dataclasses.replace(old.backend, columns=(), settled=0)
    return BackendEntry(address, uuid.uuid4().hex)


def require_index(text: str) -> None:
    """Refuse a kind of index that Milvus does not have, before hours of encoding."""
    IndexKind.parse(text)


def table_of(manifest: Manifest) -> MilvusTable:
    """The rows that a manifest speaks of; connects, but does not look yet."""
    assert manifest.backend is not None
    spec, owner = manifest.spec, manifest.backend.owner
    pooled_dim = None if spec.embedding_is_pooled else spec.pooled_dim
    return MilvusTable(
        Address.parse(manifest.backend.address), TableSpec(spec.embedding_dim, spec.metric, pooled_dim, owner)
    )


def removed_ids(folder: Path, manifest: Manifest, *, start: int = 0) -> Ids:
    """The ids in the tombstone files from number `start` on, ascending."""
    files = [read_ids(folder, entry) for entry in manifest.tombstones[start:]]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *files]))


class MilvusSnapshot(Snapshot):
    """One generation of a gallery in Milvus.

    Args:
        folder: the gallery.
        manifest: the generation to open.
        verify: False: do not look at Milvus before something is asked of it.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, verify: Verify = "auto") -> None:
        self.folder = folder
        self.manifest = manifest
        self.segments = ()
        for entry in manifest.tombstones:
            check_file(folder, entry, checksum=verify is not False)
        self.rows = Rows(manifest.next_id, removed_ids(folder, manifest))
        self._columns: dict[str, Categorical] = {}
        self._verdicts = Verdicts()
        self._known: dict[int, dict[str, Any]] = {}
        if verify is not False and manifest.next_id:
            assert self.table

    @cached_property
    def table(self) -> MilvusTable:
        """The rows in Milvus."""
        table = table_of(self.manifest)
        table.open()
        return table

    @cached_property
    def ids(self) -> Ids:  # type: ignore[override]  # made on first use
        """All ids, ascending."""
        ids = np.arange(self.rows.below, dtype=np.uint64)
        return np.delete(ids, self.rows.removed.astype(np.int64)) if len(self.rows.removed) else ids

    def __len__(self) -> int:
        return self.rows.count

    @property
    def removed_rows(self) -> int:
        """Rows of removed images that Milvus has still to delete."""
        assert self.manifest.backend is not None
        return len(removed_ids(self.folder, self.manifest, start=self.manifest.backend.settled))

    def search(self) -> MilvusSearch:
        """The search over these rows."""
        return MilvusSearch(self.search_spec, self.table, rows=self.rows)

    # --- Which images ------------------------------------------------------------------------------------------------

    def places(self, ids: Iterable[int] | Array) -> NDArray[np.int64]:
        """Where ids stand in `self.ids`, without making that.

        Raises:
            InputError: an id is not in the gallery.
        """
        held = self._held(ids)
        return held.astype(np.int64) - np.searchsorted(self.rows.removed, held)

    def _held(self, ids: Iterable[int] | Array) -> Ids:
        """The same ids, of images that are all in the gallery."""
        wanted = check_ids(ids.reshape(-1) if isinstance(ids, np.ndarray) else ids)
        known = self.rows.hold(wanted)
        if not known.all():
            raise InputError(f"no image with id {wanted[~known][0]} in {self.folder}; it may have been removed")
        return wanted

    @property
    def column_names(self) -> tuple[str, ...]:
        """What a filter may name: path, label, and the user's columns."""
        assert self.manifest.backend is not None
        return tuple(dict.fromkeys(("path", "label", *self.manifest.backend.columns)))

    def column(self, name: str) -> Categorical:
        """One column of all images, read row by row; InputError for an unknown one."""
        if name not in self.column_names:
            raise InputError(f"no column {name!r} in {self.folder}; there are {', '.join(self.column_names)}")
        if name not in self._columns:
            values = [_value(record, name) for record in self._scan()]
            self._columns[name] = Categorical.of(values)
        return self._columns[name]

    def _scan(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _SCAN):
            yield from self.table.records(self.ids[start : start + _SCAN])

    def _records(self, places: Array) -> list[dict[str, Any]]:
        return self.table.records(self.ids[places]) if len(places) else []

    def paths(self, places: Array) -> Iterator[str]:
        """The stored paths of images given by place."""
        return (record["path"] for record in self._records(places))

    def all_paths(self) -> list[str]:
        """The stored paths of all images, in the order of ids."""
        return [record["path"] for record in self._scan()]

    def records(self, ids: Iterable[int] | Array) -> list[Record]:
        """What is known about these images, in their order."""
        held = self._held(ids)
        rows = self.table.records(held) if len(held) else []
        return [
            Record(key, stored["path"], stored["label"], stored["columns"])
            for key, stored in zip(held.tolist(), rows, strict=True)
        ]

    def values(self, name: str, places: Array) -> list[str | None]:
        """One column of some images."""
        return [_value(record, name) for record in self._records(places)]

    def value(self, name: str, place: int) -> str | None:
        """One column of an image that `known_files` has named."""
        return _value(self._known[place], name)

    def preload(self) -> None:
        """Nothing: rows stay where they are."""

    def file_state(self, place: int) -> tuple[bytes, int, int]:
        """SHA-256, size in bytes, and time of change in ns of the file behind an image that `known_files` has named."""
        stored = self._known[place]
        return bytes.fromhex(stored["sha256"]), int(stored["size"]), int(stored["mtime_ns"])

    def known_files(self, among: Iterable[str] | None = None) -> dict[str, int]:
        """Each image's place by its path; where few paths are in question, at least of those."""
        if not len(self):
            return {}
        wanted = None if among is None else list(dict.fromkeys(among))
        if wanted is None or len(wanted) * _FEW > len(self):
            self._known = dict(enumerate(self._scan()))
        else:
            ids = self._ids_of_paths(wanted)
            rows = self.table.records(ids) if len(ids) else []
            self._known = dict(zip(self.places(ids).tolist(), rows, strict=True))
        return {stored["path"]: place for place, stored in sorted(self._known.items())}

    def _ids_of_paths(self, paths: Sequence[str]) -> Ids:
        found = [np.empty(0, np.uint64)]
        for start in range(0, len(paths), _PATHS):
            keys = ", ".join(str(key_of("path", path)) for path in paths[start : start + _PATHS])
            found.append(self.table.ids_where(f"{self.rows.expression} and array_contains_any(keys, [{keys}])"))
        ids = np.concatenate(found)
        return np.unique(ids[self.rows.hold(ids)])

    def ids_where(self, where: Filter) -> Ids:
        """The ids of the images that a filter keeps, ascending."""
        matching(where, _NoRows(self.column_names))  # names a column that is not there
        expression = compiled(where)
        if expression is None:
            return self.ids[matching(where, self, self._verdicts)]
        if not len(self):
            return self.ids
        ids = self.table.ids_where(f"{self.rows.expression} and ({expression})")
        return ids[self.rows.hold(ids)]

    def search_limits(self, where: Filter) -> dict[str, Any]:
        """How a search is told about a filter."""
        matching(where, _NoRows(self.column_names))
        return {"where": where} if compiled(where) is not None else {"allowed": self.ids_where(where)}

    # --- Their vectors -----------------------------------------------------------------------------------------------

    def pooled(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Raw pooled vectors, (n, K)."""
        held = self._held(ids)
        return self.table.pooled(held) if len(held) else np.empty((0, self.spec.pooled_dim), np.float32)

    def embeddings(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Raw embeddings, (n, d)."""
        held = self._held(ids)
        return self.table.embeddings(held) if len(held) else np.empty((0, self.spec.embedding_dim), np.float32)

    def maps(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Never there."""
        del ids
        raise InputError(f"{self.folder} lies in Milvus, which keeps no feature maps")


@dataclasses.dataclass(frozen=True)
class _NoRows:
    """A table without rows, on which a filter's columns can be checked."""

    column_names: tuple[str, ...]

    def column(self, name: str) -> Categorical:
        del name  # all are alike
        return Categorical((), np.empty(0, np.int32))

    def __len__(self) -> int:
        return 0


def _value(stored: dict[str, Any], name: str) -> str | None:
    value: str | None = stored[name] if name in ("path", "label") else stored["columns"].get(name)
    return value
