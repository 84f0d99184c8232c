"""A gallery whose rows lie in Milvus: its folder holds the manifest, the encoder's copy, the skip list and caches.

The live ids are those below the manifest's `next_id` without those in the tombstone files: opening asks Milvus for
nothing, and replacing the manifest is the commit. Rows of what left, or of a writer that was killed, go with the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..filters.matching import Categorical, Verdicts, require_columns
from ..filters.tree import Filter
from ..search import check_ids
from ..storage.hdf5 import Array
from ..storage.manifest import Manifest
from ..storage.segments import Record
from ..storage.snapshot import Ids, Snapshot, Verify, check_file, removed_ids
from .connection import Address
from .dialect import compiled, key_of
from .search import MilvusSearch, RowSet
from .table import MilvusTable, TableSpec

_SCAN = 4096  # rows
_PATHS = 500  # in one request
_FEW = 20  # times fewer paths than rows are worth asking for one by one


def table_of(manifest: Manifest) -> MilvusTable:
    """The rows that a manifest speaks of; connects, but does not look yet."""
    assert manifest.backend is not None
    spec, owner = manifest.spec, manifest.backend.owner
    pooled_dim = None if spec.embedding_is_pooled else spec.pooled_dim
    return MilvusTable(
        Address.parse(manifest.backend.address), TableSpec(spec.embedding_dim, spec.metric, pooled_dim, owner)
    )


class MilvusSnapshot(Snapshot):
    """One generation of a gallery in Milvus; `verify=False` does not look there before something is asked of it."""

    is_remote = True

    def __init__(self, folder: Path, manifest: Manifest, *, verify: Verify = "auto") -> None:
        self.folder = folder
        self.manifest = manifest
        self.segments = ()
        for entry in manifest.tombstones:
            check_file(folder, entry, checksum=verify is not False)
        self.rows = RowSet(manifest.next_id, removed_ids(folder, manifest.tombstones))
        self._columns: dict[str, Categorical] = {}
        self._verdicts = Verdicts()
        self._seen: dict[int, dict[str, Any]] = {}  # what Milvus said of the images that were asked for by path
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
        return len(removed_ids(self.folder, self.manifest.tombstones[self.manifest.backend.settled :]))

    def places(self, ids: Iterable[int] | Array) -> NDArray[np.int64]:
        """The places of ids in `self.ids`, without making that."""
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
        """The columns that a filter may name: path, label, and the user's."""
        assert self.manifest.backend is not None
        return tuple(dict.fromkeys(("path", "label", *self.manifest.backend.columns)))

    def _read_column(self, name: str) -> Categorical:
        return Categorical.of([_value(record, name) for record in self._scan()])

    def _scan(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _SCAN):
            yield from self.table.records(self.ids[start : start + _SCAN])

    def paths(self, places: Array) -> Iterator[str]:
        """The stored paths of images given by place."""
        return (record["path"] for record in self.table.records(self.ids[places]))

    def all_paths(self) -> list[str]:
        """The stored paths of all images, in the order of ids."""
        return [record["path"] for record in self._scan()]

    def records(self, ids: Iterable[int] | Array) -> list[Record]:
        """Path, label and columns of these images, in their order."""
        held = self._held(ids)
        return [
            Record(key, stored["path"], stored["label"], stored["columns"])
            for key, stored in zip(held.tolist(), self.table.records(held), strict=True)
        ]

    def values(self, name: str, places: Array) -> list[str | None]:
        """One column of some images."""
        return [_value(record, name) for record in self.table.records(self.ids[places])]

    def value(self, name: str, place: int) -> str | None:
        """One column of one image."""
        return _value(self._record(place), name)

    def file_state(self, place: int) -> tuple[bytes, int, int]:
        """SHA-256, size in bytes, and time of change in ns of the file an image was read from."""
        stored = self._record(place)
        return bytes.fromhex(stored["sha256"]), int(stored["size"]), int(stored["mtime_ns"])

    def _record(self, place: int) -> dict[str, Any]:
        return self._seen.get(place) or self.table.records(self.ids[[place]])[0]

    def preload(self) -> None:
        """Nothing: rows stay where they are."""

    def places_by_path(self, among: Iterable[str] | None = None) -> dict[str, int]:
        """The place of each image, or of those under the paths `among`, by its path."""
        if not len(self):
            return {}
        wanted = None if among is None else set(among)
        if wanted is None or len(wanted) * _FEW > len(self):
            self._seen = dict(enumerate(self._scan()))
        else:
            keys, found_ids = [str(key_of("path", path)) for path in wanted], [np.empty(0, np.uint64)]
            for start in range(0, len(keys), _PATHS):
                some = ", ".join(keys[start : start + _PATHS])
                found_ids.append(self.table.ids_where(f"{self.rows.expression} and array_contains_any(keys, [{some}])"))
            ids = np.concatenate(found_ids)
            ids = np.unique(ids[self.rows.hold(ids)])
            self._seen = dict(zip(self.places(ids).tolist(), self.table.records(ids), strict=True))
        found = {stored["path"]: place for place, stored in sorted(self._seen.items())}
        return found if wanted is None else {path: place for path, place in found.items() if path in wanted}

    def ids_where(self, where: Filter) -> Ids:
        """The ids of the images that a filter keeps, ascending."""
        expression = self._expression(where)
        if expression is None:
            return super().ids_where(where)
        ids = self.table.ids_where(f"{self.rows.expression} and ({expression})") if len(self) else self.ids
        return ids[self.rows.hold(ids)]

    def search(self) -> MilvusSearch:
        """The search over these rows."""
        return MilvusSearch(self.search_spec, self.table, rows=self.rows)

    @property
    def recall(self) -> float:
        """1 where Milvus looks at every vector, else NaN."""
        return 1.0 if self.table.kind.is_exact and self.spec.metric != "l1" else float("nan")

    def search_limits(self, where: Filter) -> dict[str, Any]:
        """The arguments by which a search is told of a filter."""
        return super().search_limits(where) if self._expression(where) is None else {"where": where}

    def _expression(self, where: Filter) -> str | None:
        """The filter for Milvus; None when only we can decide it. A column that is not there is refused."""
        require_columns(where, self.column_names)
        return compiled(where)

    def pooled(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Raw pooled vectors, (n, K)."""
        held = self._held(ids)
        return self.table.pooled(held) if len(held) else np.empty((0, self.spec.pooled_dim), np.float32)

    def embeddings(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Raw embeddings, (n, d)."""
        held = self._held(ids)
        return self.table.embeddings(held) if len(held) else np.empty((0, self.spec.embedding_dim), np.float32)

    def maps(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:  # noqa: ARG002
        """Refused: Milvus keeps none."""
        raise InputError(f"{self.folder} lies in Milvus, which keeps no feature maps")

    fine_maps = maps


def _value(stored: dict[str, Any], name: str) -> str | None:
    value: str | None = stored[name] if name in ("path", "label") else stored["columns"].get(name)
    return value
