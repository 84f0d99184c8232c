"""Changing and checking a gallery whose rows lie in Milvus; `snapshot.py` says why nothing is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DistcamError, GalleryError
from ...remarks import counted
from ..reports import Problem, VerifyReport
from ..storage.manifest import BackendEntry, Manifest
from ..storage.segments import Entries, RowVectors
from ..storage.snapshot import Ids, removed_ids
from ..storage.verify import Check
from ..storage.writer import GalleryWriter
from .dialect import IndexKind, keys_of, numbers_of
from .snapshot import MilvusSnapshot, table_of
from .table import MilvusTable

_REPAIR_OF_LOST = "repair takes the images out; build or add them again"
_REPAIR_OF_STRAY = "repair deletes them"
_REPAIR_OF_SERVER = "nothing can be repaired before it is there again"
_BLOCK = 2048


class MilvusWriter(GalleryWriter):
    """The writing side of a gallery in Milvus, for the holder of its lock."""

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

    def _store(self, entries: Entries, blocks: Sequence[RowVectors]) -> dict[str, Any]:
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

    def delete_orphans(self) -> None:
        """Delete what an interrupted writer left in the folder and in Milvus."""
        super().delete_orphans()
        if self.is_new:
            return
        if not self.manifest.next_id:
            self.table.create()
            return
        self.table.open()
        if (newest := self.table.generation) > self.manifest.generation:
            raise GalleryError(
                f"{self.folder}: is a copy of generation {self.manifest.generation}, but {self.table.address} has been "
                f"changed up to {newest} through another copy; write with that one"
            )
        for is_pooled in {False, self.table.spec.pooled_dim is not None}:  # of both collections, where there are two
            self.table.delete(self.table.ids_where(f"id >= {self.manifest.next_id}", pooled=is_pooled))
        self.delete_removed_rows()

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
        """Index the embeddings as the gallery says, for the number of images it has now."""
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


class MilvusCheck(Check):
    """One pass over the folder's files and all rows."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.lost: Ids = np.empty(0, np.uint64)
        self.is_reachable = True
        super().__init__(folder, manifest)

    def _opened(self, manifest: Manifest) -> MilvusSnapshot:
        return MilvusSnapshot(self.folder, manifest, verify=False)

    def _check_whole(self) -> None:
        """Compare ids first; nothing can be read of a row that is missing."""
        snapshot = self._opened(self.manifest)
        self.images = len(snapshot)
        if not len(snapshot):
            return
        try:
            self._check_ids(snapshot, snapshot.table)
        except DistcamError as error:
            self.is_reachable = False
            self._say(str(error).split(";")[0], _REPAIR_OF_SERVER)
            return
        if not len(self.lost):
            super()._check_whole()

    def _check_ids(self, snapshot: MilvusSnapshot, table: MilvusTable) -> None:
        there = table.ids_where()
        whole = there
        if table.spec.pooled_dim is not None:
            pooled = table.ids_where(pooled=True)
            whole, there = np.intersect1d(there, pooled), np.union1d(there, pooled)
        self.lost = np.setdiff1d(snapshot.ids, whole)
        waiting = removed_ids(self.folder, self.manifest.tombstones)  # until their writer is done
        strays = np.setdiff1d(there, np.concatenate([snapshot.ids, waiting]))
        if len(strays):
            self._say(f"holds {counted(len(strays), 'row')} that the gallery does not know", _REPAIR_OF_STRAY)
        if len(self.lost):
            self._say(f"lacks the rows of {counted(len(self.lost), 'image')}", _REPAIR_OF_LOST)
        ids, found = np.setdiff1d(snapshot.ids, self.lost), [snapshot.ids[:0]]
        for start in range(0, len(ids), _BLOCK):
            some = ids[start : start + _BLOCK]
            embeddings = table.embeddings(some)
            parts = [np.isfinite(rows).all(axis=1) for rows in (embeddings, table.pooled(some))]
            parts.append(np.array([_is_record(record) for record in table.records(some)], np.bool_))
            if self.manifest.spec.metric == "cosine":
                parts.append((embeddings != 0).any(axis=1))
            found.append(some[~np.logical_and.reduce(parts)])
        broken = np.concatenate(found)
        if len(broken):
            self._say(f"holds {counted(len(broken), 'row')} without usable vectors", _REPAIR_OF_LOST)
            self.lost = np.union1d(self.lost, broken)

    def _say(self, problem: str, repair: str) -> None:
        assert self.manifest.backend is not None
        is_loss = repair == _REPAIR_OF_LOST
        self.problems.append(Problem(self.manifest.backend.address, problem, repair, is_loss=is_loss))

    def report(self, *, repaired: bool = False) -> VerifyReport:
        """The findings; of a server that does not answer nothing is repaired."""
        return super().report(repaired=repaired and self.is_reachable)

    def mend(self, writer: GalleryWriter) -> None:
        """Take out what is lost, so that a build brings it in again; the writer has swept what is too much."""
        if not self.is_reachable:
            return
        if len(self.lost):
            writer.remove(self.lost.tolist())
            writer.commit(complete=False)
        super().mend(writer)

    def _count_what_is_left(self) -> None:
        """Without its tombstone files nothing is known about a gallery in Milvus but that it is one."""
        self.images = 0


def _is_record(record: Any) -> bool:
    """True for a record that distcam wrote."""
    match record:
        case {"path": str(), "sha256": str(digest), "size": int(), "mtime_ns": int(), "columns": dict(columns)}:
            label = record.get("label")
            texts = [*columns.values(), *([] if label is None else [label])]
            return len(digest) == 64 and all(isinstance(text, str) for text in texts)
    return False
