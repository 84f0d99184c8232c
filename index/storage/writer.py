"""Changing a gallery: images go in by commits, leave by tombstones, and segments are merged when they become many.

Every change is a new manifest, on the disk when the call returns; files that none names go with the next writer.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import GalleryError
from ...files import LOCK_NAME, Storage, after_commit, file_sha256
from .background import Background
from .manifest import MANIFEST_NAME, CacheEntry, FileEntry, Manifest
from .segments import Entries, RowVectors, Segment, write_segment
from .snapshot import Ids, removed_ids

_OWN_FILE = re.compile(
    r"(segment-[0-9a-f]{32}\.h5|tombstone-[0-9a-f]{32}\.u64|skipped-[0-9a-f]{32}\.jsonl|prototypes-[0-9a-f]{32}\.h5"
    r"|index-[0-9a-f]{32}\.faiss)(\.tmp)?|manifest\.json\.tmp|\.?encoder-[0-9a-f]{32}\.safetensors[.0-9a-z]*"
)


@dataclass(frozen=True)
class CommitLimits:
    """Bounds on the work that a kill may lose (the first reached of three commits), and on the number of files."""

    images: int = 1024
    vector_bytes: int = 64 << 20
    seconds: float = 30.0
    segment_images: int = 65_536  # no segment grows beyond this by merging
    files: int = 16  # of small segments, or of tombstones; with more they are merged


@dataclass(frozen=True)
class _State:
    """The state on the disk, and the changes of the next commit."""

    manifest: Manifest
    pending: tuple[tuple[Entries, RowVectors], ...] = ()
    removed: tuple[Ids, ...] = ()


class GalleryWriter:
    """The writing side of a gallery, for the holder of its lock; the first commit replaces `on_disk` by `manifest`."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        on_disk: Manifest | None,
        storage: Storage | None = None,
        limits: CommitLimits | None = None,
    ) -> None:
        self.folder = folder
        self.limits = limits or CommitLimits()
        self._storage = storage or Storage()
        self._state = _State(manifest)
        self._on_disk = on_disk
        self._pending_since = time.monotonic()
        self._process = os.getpid()

    @property
    def manifest(self) -> Manifest:
        """The state as of the last commit."""
        return self._state.manifest

    @property
    def is_new(self) -> bool:
        """True before the first commit."""
        return self._on_disk is not self.manifest

    @property
    def has_pending(self) -> bool:
        """True while images wait for the next commit."""
        return bool(self._state.pending)

    def begin(self, manifest: Manifest) -> None:
        """Set the manifest that a new gallery starts from; nothing is written before the first commit."""
        assert self.is_new and not self._state.pending  # noqa: PT018
        self._state = _State(manifest)

    def append(self, entries: Entries, vectors: RowVectors, *, replaces: Iterable[int] = ()) -> None:
        """Take images in for the next commit, which numbers them and removes what they replace; it comes when due."""
        state = self._state
        if not state.pending:
            self._pending_since = time.monotonic()
        gone = np.fromiter(replaces, np.uint64)
        self._state = _State(state.manifest, (*state.pending, (entries, vectors)), (*state.removed, gone))
        pending, limits = self._state.pending, self.limits
        if (
            sum(len(entries) for entries, _ in pending) >= limits.images
            or sum(vectors.nbytes for _, vectors in pending) >= limits.vector_bytes
            or time.monotonic() - self._pending_since >= limits.seconds
        ):
            self.commit()

    def remove(self, ids: Iterable[int]) -> None:
        """Remove ids with the next commit."""
        gone = np.fromiter(ids, np.uint64)
        self._state = dataclasses.replace(self._state, removed=(*self._state.removed, gone))

    def commit(self, **changes: Any) -> None:
        """Bring all taken in so far to the disk, with other changes of the manifest; interrupted, it stays pending."""
        manifest, pending = self.manifest, self._state.pending
        gone = np.concatenate([np.empty(0, np.uint64), *self._state.removed])
        if pending:
            entries = Entries.cat([entries for entries, _ in pending])
            next_id = manifest.next_id + len(entries)
            entries = dataclasses.replace(entries, ids=np.arange(manifest.next_id, next_id, dtype=np.uint64))
            changes |= {**self._store(entries, [vectors for _, vectors in pending]), "next_id": next_id}
        if len(gone):
            changes |= {"tombstones": (*manifest.tombstones, self._write_ids(gone))}
        if pending or len(gone):
            changes |= {"generation": manifest.generation + 1, "background": self._background(len(gone))}
        if changes:
            self._save(**changes)

    def _background(self, left: int) -> Background | None:
        """The background once what is pending has come and so many images have left; never begun halfway."""
        came, manifest = [vectors for _, vectors in self._state.pending], self.manifest
        if manifest.background is None and manifest.next_id:
            return None
        borders = [vectors.border for vectors in came if vectors.border is not None]
        moved = sum(len(vectors) for vectors in came if vectors.border is None)
        return Background.after(manifest.background, borders, moved=moved, left=left)

    def _store(self, entries: Entries, blocks: Sequence[RowVectors]) -> dict[str, Any]:
        """Write new rows; returns what changes in the manifest with them."""
        return {"segments": (*self.manifest.segments, self._write_segment(entries, blocks))}

    def _save(self, **changes: Any) -> None:
        """Make the changed manifest, with all that is pending, the gallery's; then delete what only the old named."""
        self._require_own_process()
        old, new = self._on_disk, dataclasses.replace(self.manifest, **changes)
        new.save(self.folder, self._storage)
        self._state = _State(new)  # one step: an interruption sees the images as pending or as committed, never as both
        self._on_disk = new
        named = {entry.name for entry in new.files()}
        for entry in old.files() if old is not None else ():
            if entry.name not in named and self.owns(entry.name):  # a manifest may name what is not the gallery's
                self._storage.remove(self.folder / entry.name)

    def _require_own_process(self) -> None:
        """The lock stays with the process that took it."""
        if os.getpid() != self._process:
            raise GalleryError(
                f"{self.folder}: was opened for writing before this process was forked, which may not write through "
                "it; open the gallery in this process, once the other has finished"
            )

    def _write_new(self, kind: str, suffix: str, fill: Callable[[Path], object], *, count: int) -> FileEntry:
        """Write a file of the gallery durably, under a new name; it belongs to the gallery when a commit names it."""
        self._require_own_process()
        path = self.folder / f"{kind}-{uuid.uuid4().hex}.{suffix}"
        with self._storage.replacing(path) as aside:
            fill(aside)
            size, sha256 = aside.stat().st_size, file_sha256(aside)
        return FileEntry(path.name, count, size, sha256)

    def write_skipped(self, lines: Sequence[str]) -> FileEntry:
        """Write a new list of images that could not be used."""
        data = "".join(f"{line}\n" for line in lines).encode()
        return self._write_new("skipped", "jsonl", lambda path: path.write_bytes(data), count=len(lines))

    def write_encoder(self, save: Callable[[Path], object]) -> FileEntry:
        """Write a copy of the encoder's checkpoint."""
        return self._write_new("encoder", "safetensors", save, count=1)

    def store_cache(
        self,
        kind: Literal["prototypes", "index"],
        fill: Callable[[Path], None],
        *,
        count: int,
        tag: Callable[[CacheEntry], str | None] | None = None,
    ) -> None:
        """Write a cache of the present generation and name it in the manifest; one with a tag can follow to others."""
        assert not self._state.pending
        suffix, key = ("h5", "prototype_cache") if kind == "prototypes" else ("faiss", "index_cache")
        cache = CacheEntry(self._write_new(kind, suffix, fill, count=count), self.manifest.generation)
        if tag is not None:
            cache = dataclasses.replace(cache, next_id=self.manifest.next_id)
            cache = dataclasses.replace(cache, tag=tag(cache))
        self._save(**{key: cache})

    def _write_segment(self, entries: Entries, vectors: Iterable[RowVectors]) -> FileEntry:
        fill = partial(write_segment, entries=entries, vectors=vectors, spec=self.manifest.spec)
        return self._write_new("segment", "h5", fill, count=len(entries))

    def _write_ids(self, ids: Ids) -> FileEntry:
        data = np.unique(ids).astype("<u8").tobytes()
        return self._write_new("tombstone", "u64", lambda path: path.write_bytes(data), count=len(data) // 8)

    @staticmethod
    def owns(name: str) -> bool:
        """True for the names of files that writers make and may delete."""
        return _OWN_FILE.fullmatch(name) is not None

    def delete_orphans(self) -> None:
        """Delete the files that an interrupted writer left behind; what is not ours stays."""
        manifests = [self.manifest, *([] if self._on_disk is None else [self._on_disk])]
        named = {entry.name for manifest in manifests for entry in manifest.files()}
        for path in sorted(self.folder.iterdir()):
            if path.name not in named and self.owns(path.name):
                self._storage.remove(path)

    def delete_gallery(self) -> None:
        """Delete the gallery: its own files, and the folder if nothing else is in it."""
        self._storage.remove(self.folder / MANIFEST_NAME)
        for path in list(self.folder.iterdir()):
            if path.name == LOCK_NAME or self.owns(path.name):
                self._storage.remove(path)
        with suppress(OSError):
            self.folder.rmdir()

    # --- Merging -----------------------------------------------------------------------------------------------------

    def merge_small(self, *, newest: bool = False) -> None:
        """Merge small segments, and tombstone files, when they have become many; or only the `newest`, as builds do."""
        if newest and (self._state.pending or self._state.removed):  # until the next commit
            return
        with after_commit(self.folder, "the number of its files"):
            self._merge_small(newest=newest)

    def _merge_small(self, *, newest: bool) -> None:
        segments, limits = self.manifest.segments, self.limits
        if newest:
            count = newest_to_merge([entry.count for entry in segments], base=limits.files, most=limits.segment_images)
            due = segments[len(segments) - count :]
        else:
            small = tuple(entry for entry in segments if entry.count < limits.segment_images // 2)
            due = small if len(small) > limits.files else ()
        if due:
            self._merge(due)
        elif len(self.manifest.tombstones) > limits.files:
            self._drop_tombstones()

    def compact(self) -> None:
        """Merge all live rows into as few segments as the limit allows, and reclaim the space of removed images."""
        self._merge(self.manifest.segments)

    def _merge(self, entries: Sequence[FileEntry]) -> None:
        assert not self._state.pending
        removed = removed_ids(self.folder, self.manifest.tombstones)
        segments = [Segment.of(self.folder, entry, self.manifest.spec) for entry in entries]
        alive = [len(segment) - int(np.isin(segment.ids, removed).sum()) for segment in segments]
        for group in groups_of([len(segment) for segment in segments], alive, most=self.limits.segment_images):
            parts = [(segments[place], np.flatnonzero(~np.isin(segments[place].ids, removed))) for place in group]
            parts = [(segment, rows) for segment, rows in parts if len(rows)]
            merged: tuple[FileEntry, ...] = ()
            if parts:
                rows_of = Entries.cat([segment.entries(rows) for segment, rows in parts])
                blocks = chain.from_iterable(segment.blocks(rows) for segment, rows in parts)
                merged = (self._write_segment(rows_of, blocks),)
            old, left = entries[group.start : group.stop], list[FileEntry]()
            for entry in self.manifest.segments:
                left.extend(merged if entry == old[0] else () if entry in old else (entry,))
            self._save(segments=tuple(left))
        self._drop_tombstones()

    def _drop_tombstones(self) -> None:
        """Keep only the tombstones of ids that some segment still holds, in one file."""
        if not self.manifest.tombstones:
            return
        removed = removed_ids(self.folder, self.manifest.tombstones)
        segments = [Segment.of(self.folder, entry, self.manifest.spec) for entry in self.manifest.segments]
        held = [np.intersect1d(segment.ids, removed) for segment in segments]
        still = np.concatenate([np.empty(0, np.uint64), *held])
        self._save(tombstones=(self._write_ids(still),) if len(still) else ())


def newest_to_merge(sizes: Sequence[int], *, base: int, most: int) -> int:
    """Number of the newest segments of a long build that should become one now.

    Segments have levels: the power of `base` in their number of images. As many as `base` of one level, with all
    smaller ones among them, become one of a higher level: a row is written again once a level at the most. Segments of
    half of `most` images stay as they are.

    >>> newest_to_merge([64, 16, 4, 4, 1, 4, 4], base=4, most=1000), newest_to_merge([16, 4, 4, 1], base=4, most=1000)
    (5, 0)
    """
    start = len(sizes)
    while start > 0 and sizes[start - 1] < most // 2:
        start -= 1
    levels = [0] * (len(sizes) - start)
    for number, size in enumerate(sizes[start:]):
        while (size := size // base) > 0:
            levels[number] += 1
    for level in sorted(set(levels)):
        first = len(levels)
        while first > 0 and levels[first - 1] <= level:
            first -= 1
        if levels[first:].count(level) >= base:
            return len(levels) - first
    return 0


def groups_of(sizes: Sequence[int], alive: Sequence[int], *, most: int) -> Iterator[range]:
    """Neighbours with at most so many living rows together; a segment that is alone and wholly alive stays as it is.

    >>> list(groups_of([3, 3, 3, 9, 2], [3, 3, 2, 9, 1], most=9))
    [range(0, 3), range(4, 5)]
    """
    start = living = dying = 0
    for number, (size, left) in enumerate(zip(sizes, alive, strict=True)):
        if number > start and living + left > most:
            if number > start + 1 or dying:
                yield range(start, number)
            start, living, dying = number, 0, 0
        living += left
        dying += size - left
    if len(sizes) > start + 1 or dying:
        yield range(start, len(sizes))
