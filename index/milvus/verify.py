"""The full check of a gallery in Milvus: exactly its rows are there, each whole, and the folder agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DistcamError
from ...remarks import counted
from ..reports import Problem, VerifyReport
from ..storage.manifest import Manifest
from ..storage.snapshot import Ids, removed_ids
from ..storage.verify import Check
from ..storage.writer import GalleryWriter
from .snapshot import MilvusSnapshot
from .table import MilvusTable

_REPAIR_OF_LOST = "repair takes the images out; build or add them again"
_REPAIR_OF_STRAY = "repair deletes them"
_REPAIR_OF_SERVER = "nothing can be repaired before it is there again"
_BLOCK = 2048


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
        broken = self._broken(table, np.setdiff1d(snapshot.ids, self.lost))
        if len(broken):
            self._say(f"holds {counted(len(broken), 'row')} without usable vectors", _REPAIR_OF_LOST)
            self.lost = np.union1d(self.lost, broken)

    def _broken(self, table: MilvusTable, ids: Ids) -> Ids:
        found = [ids[:0]]
        for start in range(0, len(ids), _BLOCK):
            some = ids[start : start + _BLOCK]
            embeddings = table.embeddings(some)
            parts = [np.isfinite(rows).all(axis=1) for rows in (embeddings, table.pooled(some))]
            parts.append(np.array([_is_record(record) for record in table.records(some)], np.bool_))
            if self.manifest.spec.metric == "cosine":
                parts.append((embeddings != 0).any(axis=1))
            found.append(some[~np.logical_and.reduce(parts)])
        return np.concatenate(found)

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
