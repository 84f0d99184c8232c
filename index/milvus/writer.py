"""Changing a gallery whose rows lie in Milvus; `snapshot.py` says in what order, and why nothing is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GalleryError
from ..storage.manifest import BackendEntry, Manifest
from ..storage.segments import Entries, Vectors
from ..storage.snapshot import removed_ids
from ..storage.writer import GalleryWriter
from .filters import keys_of, numbers_of
from .index import IndexKind
from .snapshot import table_of


class MilvusWriter(GalleryWriter):
    """The writing side of a gallery in Milvus, for the holder of its lock.

    Raises:
        GalleryExistsError: the gallery is new, and its collections belong to another.
    """

    def __init__(self, folder: Path, manifest: Manifest, **options: Any) -> None:
        super().__init__(folder, manifest, **options)
        self.table = table_of(manifest)
        self._replaced = self._on_disk if self.is_new else None
        if self.is_new:
            self.table.refuse_strangers()

    def begin(self, manifest: Manifest) -> None:
        """The folder names its collections before they exist: a kill between the two leaves no strangers behind."""
        super().begin(manifest)
        self.table = table_of(manifest)
        self._save()
        self.table.create()
        old = None if self._replaced is None else self._replaced.backend
        if self._replaced is not None and old is not None and old.address != self._backend.address:
            with suppress(GalleryError):  # its server may be gone
                table_of(self._replaced).drop()

    @property
    def _backend(self) -> BackendEntry:
        assert self.manifest.backend is not None
        return self.manifest.backend

    def commit(self, **changes: Any) -> None:
        """Bring everything taken in so far to Milvus, then make it visible, together with other changes."""
        before = self.manifest.generation
        super().commit(**changes)
        if self.manifest.generation != before:
            self.table.note_generation(self.manifest.generation)

    def _store(self, entries: Entries, blocks: Sequence[Vectors]) -> dict[str, Any]:
        start = 0
        for block in blocks:
            stop = start + len(block)
            self.table.upsert(
                entries.ids[start:stop],
                block.embedding,
                pooled=None if self.manifest.spec.embedding_is_pooled else block.pooled,
                records=[_stored(entries, place) for place in range(start, stop)],
            )
            start = stop
        columns = dict.fromkeys((*self._backend.columns, *(name for name in entries.columns if name != "label")))
        return {"backend": dataclasses.replace(self._backend, columns=tuple(columns))}

    def delete_orphans(self) -> list[str]:
        """Delete what an interrupted writer left in the folder and in Milvus."""
        names = super().delete_orphans()
        if self.is_new:
            return names
        if not self.manifest.next_id:
            self.table.create()
            return names
        self.table.open()
        if (newest := self.table.generation) > self.manifest.generation:
            raise GalleryError(
                f"{self.folder}: is a copy of generation {self.manifest.generation}, but {self.table.address} has been "
                f"changed up to {newest} through another copy; write with that one"
            )
        leftovers = self.table.ids_where(f"id >= {self.manifest.next_id}")
        if self.manifest.spec.pooled_dim:
            more = self.table.ids_where(f"id >= {self.manifest.next_id}", pooled=True)
            leftovers = np.union1d(leftovers, more)
        self.table.delete(leftovers)
        self.delete_removed_rows()
        return names

    def delete_removed_rows(self) -> None:
        """Delete the rows of removed images, and note that it is done."""
        if self.is_new or self._backend.settled == len(self.manifest.tombstones):
            return
        assert not self._state.pending
        self.table.delete(removed_ids(self.folder, self.manifest.tombstones[self._backend.settled :]))
        tombstones = self.manifest.tombstones
        if len(tombstones) > self.limits.files:
            tombstones = (self._write_ids(removed_ids(self.folder, self.manifest.tombstones)),)
        self._save(tombstones=tombstones, backend=dataclasses.replace(self._backend, settled=len(tombstones)))

    def _merge_small(self, *, newest: bool) -> None:
        """Let Milvus index the embeddings as the gallery says, for the number of images it has now."""
        if newest:
            return
        count = self.manifest.next_id - len(removed_ids(self.folder, self.manifest.tombstones))
        self.table.reindex(IndexKind.parse(self.manifest.index, count=count))

    def compact(self) -> None:
        """Delete the rows of removed images, and let Milvus give their room back."""
        self.delete_removed_rows()
        self._merge_small(newest=False)
        self.table.compact()


def _stored(entries: Entries, place: int) -> dict[str, Any]:
    """The record of an image: all that Milvus keeps besides its vectors."""
    columns = {name: column[place] for name, column in entries.columns.items() if name != "label"}
    label = entries.columns.get("label", [None] * len(entries))[place]
    values = {**columns, "path": entries.paths[place], "label": label}
    return {
        "path": entries.paths[place],
        "label": label,
        "columns": {name: value for name, value in columns.items() if value is not None},
        "sha256": entries.sha256[place].tobytes().hex(),
        "size": int(entries.size[place]),
        "mtime_ns": int(entries.mtime_ns[place]),
        "numbers": numbers_of(values),
        "keys": keys_of(values),
    }
