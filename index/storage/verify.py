"""The full check of a gallery, and the mending of what can be mended without its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DistcamError, TooManyFilesError, is_out_of_descriptors, too_many_files
from ..prototypes import PrototypeStore
from ..reports import Problem, VerifyReport, counted, read_skipped
from .cache import computed_prototypes, load_index_bytes, load_prototypes
from .manifest import CacheEntry, FileEntry, Manifest
from .segments import BLOCK_BYTES, Segment
from .snapshot import Ids, Snapshot, check_file, read_ids, removed_ids
from .writer import GalleryWriter

__all__ = ["Check"]

_REPAIR_OF_SEGMENT = "repair sets it aside, {lost} lost; build or add its images again"
_REPAIR_OF_TOMBSTONE = "repair drops it; images removed with it may come back"
_REPAIR_OF_ENCODER = "repair drops it; name the encoder with --encoder from then on"
_REPAIR_OF_SKIPPED = "repair drops the list"
_REPAIR_OF_CACHE = "repair drops it; it is computed again"
_REPAIR_OF_PATH = "repair keeps the newer one"


class Check:
    """One pass over everything, collecting problems instead of raising them."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.problems: list[Problem] = []
        self.bad: set[str] = set()
        self.duplicates: Ids = np.empty(0, np.uint64)
        self.images = 0
        self._ids: Ids = np.empty(0, np.uint64)
        for entry in manifest.files():
            with self._noting(entry):
                check_file(folder, entry, checksum=True)
                self._check_contents(entry)
        if self.bad.isdisjoint(entry.name for entry in (*manifest.segments, *manifest.tombstones)):
            self._check_whole()
        else:
            self._count_what_is_left()

    def report(self, *, repaired: bool = False) -> VerifyReport:
        """What was found."""
        return VerifyReport(
            path=str(self.folder),
            generation=self.manifest.generation,
            images=self.images,
            files=sum(1 for _ in self.manifest.files()),
            problems=tuple(dataclasses.replace(problem, repaired=repaired) for problem in self.problems),
        )

    def _opened(self, manifest: Manifest) -> Snapshot:
        return Snapshot(self.folder, manifest, verify=False)

    @contextmanager
    def _noting(self, entry: FileEntry) -> Iterator[None]:
        """Turn an exception into a problem of this file."""
        try:
            yield
        except FileNotFoundError:
            self._note(entry, "is missing")
        except TooManyFilesError:  # says nothing of the file
            raise
        except (DistcamError, OSError) as error:
            if is_out_of_descriptors(error):
                raise too_many_files(self.folder / entry.name) from error
            self._note(entry, str(error).removeprefix(f"{self.folder / entry.name}: ").split(";")[0])

    def _note(self, entry: FileEntry, problem: str) -> None:
        self.bad.add(entry.name)
        self.problems.append(Problem(entry.name, problem, self._repair_of(entry), is_loss=self._is_loss(entry)))

    def _repair_of(self, entry: FileEntry) -> str:
        """By what the manifest uses the file for: its name may be anything."""
        if entry in self.manifest.segments:
            return _REPAIR_OF_SEGMENT.format(lost=counted(entry.count, "image"))
        if entry in self.manifest.tombstones:
            return _REPAIR_OF_TOMBSTONE
        if entry == self.manifest.encoder.file:
            return _REPAIR_OF_ENCODER
        return _REPAIR_OF_SKIPPED if entry == self.manifest.skipped else _REPAIR_OF_CACHE

    def _is_loss(self, entry: FileEntry) -> bool:
        manifest = self.manifest
        return entry in (*manifest.segments, *manifest.tombstones) or entry == manifest.encoder.file

    # --- Checking ----------------------------------------------------------------------------------------------------

    def _check_contents(self, entry: FileEntry) -> None:
        if entry in self.manifest.segments:
            self._check_segment(entry)
        elif entry in self.manifest.tombstones:
            read_ids(self.folder, entry)
        elif entry == self.manifest.skipped:
            read_skipped(self.folder / entry.name)

    def _check_segment(self, entry: FileEntry) -> None:
        segment = Segment.of(self.folder, entry, self.manifest.spec)
        if len(segment) and int(segment.ids.max()) >= self.manifest.next_id:
            self._note(entry, "holds an id that was never given out")
            return
        ids = np.concatenate([self._ids, segment.ids])
        if len(np.unique(ids)) < len(ids):
            self._note(entry, "holds an id that occurs twice")
            return
        self._ids = ids
        assert segment.columns  # reading them checks their codes and text
        for path in segment.paths:
            if not path or "\0" in path:
                self._note(entry, "holds a path that no file has")
                return
        step = max(1, BLOCK_BYTES // max(1, segment.file.bytes // max(1, len(segment))))
        for start in range(0, len(segment), step):
            problem = self._vector_problem(segment, np.arange(start, min(start + step, len(segment))))
            if problem:
                self._note(entry, problem)
                return

    def _vector_problem(self, segment: Segment, rows: NDArray[np.int64]) -> str:
        vectors = segment.vectors(rows)
        arrays = [vectors.pooled, vectors.embedding, vectors.maps, vectors.map_scale]
        if any(array is not None and not np.isfinite(array).all() for array in arrays):
            return "holds vectors that are not finite"
        if self.manifest.spec.metric == "cosine" and not (vectors.embedding != 0).any(1).all():
            return "holds a zero embedding, which no cosine compares"
        return ""

    def _check_whole(self) -> None:
        """Look at all rows together."""
        snapshot = self._opened(self.manifest)
        self.images = len(snapshot)
        newest = snapshot.places_by_path()
        kept = np.zeros(len(snapshot), bool)
        kept[list(newest.values())] = True
        self.duplicates = snapshot.ids[~kept]
        for path in list(snapshot.paths(np.flatnonzero(~kept)))[:10]:
            self.problems.append(Problem(path, "is in the gallery twice", _REPAIR_OF_PATH))
        self._check_prototypes(snapshot)
        self._check_index(snapshot)

    def _count_what_is_left(self) -> None:
        """Count the images in sound segments, and those that are nowhere else than in a bad one."""
        old = self.manifest
        sound = dataclasses.replace(old, segments=self._sound(old.segments), tombstones=self._sound(old.tombstones))
        left = self._opened(sound)
        self.images = len(left)
        removed = removed_ids(self.folder, sound.tombstones)
        kept = left.places_by_path().keys()
        lost = {entry.name: self._lost(entry, removed, kept) for entry in old.segments if entry.name in self.bad}
        self.problems = [
            problem
            if (count := lost.get(problem.file)) is None
            else dataclasses.replace(
                problem, repair=_REPAIR_OF_SEGMENT.format(lost=counted(count, "image")), is_loss=count > 0
            )
            for problem in self.problems
        ]

    def _lost(self, entry: FileEntry, removed: Ids, kept: Set[str]) -> int:
        """How many images go with a bad segment; as many as the manifest names when it cannot be read at all."""
        try:
            segment = Segment.of(self.folder, entry, self.manifest.spec)
            alive = np.flatnonzero(~np.isin(segment.ids, removed))
            return sum(segment.paths[row] not in kept for row in alive.tolist())
        except TooManyFilesError:
            raise
        except (DistcamError, OSError):
            return entry.count

    def _check_prototypes(self, snapshot: Snapshot) -> None:
        entry = self.manifest.prototype_cache
        if not self._is_checkable(entry):
            return
        assert entry is not None
        cached, true = load_prototypes(snapshot), computed_prototypes(snapshot)
        if cached is None or not _agree(cached, true):
            self._note(entry.file, "does not hold the prototypes of this gallery")

    def _check_index(self, snapshot: Snapshot) -> None:
        """An index that another user wrote is not read, and so not checked: it is never used either."""
        entry = self.manifest.index_cache
        data = load_index_bytes(snapshot) if self._is_checkable(entry) else None
        if entry is None or data is None:
            return
        from ..faiss.search import FaissSearch

        with self._noting(entry.file):
            search = FaissSearch.deserialise(data, spec=snapshot.search_spec, source=snapshot.embeddings)
            problems = search.verify()
            if not problems and search.count() != len(snapshot):
                problems = [f"holds {counted(search.count(), 'vector')} for {counted(len(snapshot), 'image')}"]
            if problems:
                self._note(entry.file, problems[0])

    def _is_checkable(self, entry: CacheEntry | None) -> bool:
        fresh = entry is not None and entry.generation == self.manifest.generation
        return fresh and entry is not None and entry.file.name not in self.bad

    # --- Mending -----------------------------------------------------------------------------------------------------

    def mend(self, writer: GalleryWriter) -> None:
        """Let the manifest name only what is sound; then remove what is there twice."""
        if self.bad:
            self._drop_bad_files(writer)
        if not len(self.duplicates):
            newest = (after := self._opened(writer.manifest)).places_by_path()
            self.duplicates = np.setdiff1d(after.ids, after.ids[list(newest.values())])
        if len(self.duplicates):
            writer.remove(self.duplicates.tolist())
            writer.commit()
        self.images = len(self._opened(writer.manifest))

    def _drop_bad_files(self, writer: GalleryWriter) -> None:
        old = self.manifest
        segments, tombstones = self._sound(old.segments), self._sound(old.tombstones)
        encoder = old.encoder
        if encoder.file is not None and encoder.file.name in self.bad:
            encoder = dataclasses.replace(encoder, file=None)
        for entry in old.files():
            path = self.folder / entry.name
            is_kept = entry in old.segments or path.is_dir()  # what is in a folder is not ours to delete
            if entry.name in self.bad and is_kept and path.exists():
                path.replace(path.with_name(f"{path.name}.damaged"))
        changed = (segments, tombstones) != (old.segments, old.tombstones)
        writer.commit(
            segments=segments,
            tombstones=tombstones,
            encoder=encoder,
            generation=old.generation + changed,
            complete=old.complete and segments == old.segments,
            skipped=None if old.skipped is None or old.skipped.name in self.bad else old.skipped,
            prototype_cache=self._sound_cache(old.prototype_cache),
            index_cache=self._sound_cache(old.index_cache),
        )

    def _sound(self, entries: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        return tuple(entry for entry in entries if entry.name not in self.bad)

    def _sound_cache(self, cache: CacheEntry | None) -> CacheEntry | None:
        return None if cache is None or cache.file.name in self.bad else cache


def _agree(cached: PrototypeStore, true: PrototypeStore) -> bool:
    """Equal up to the rounding of images that came and went."""
    if cached.labels != true.labels or cached.counts.tolist() != true.counts.tolist():
        return False
    pairs = [
        (cached.all_pooled(), true.all_pooled()),
        (cached.all_embeddings(), true.all_embeddings()),
        (cached.mean_pooled(), true.mean_pooled()),
        (cached.mean_embedding(), true.mean_embedding()),
    ]
    return all(
        np.allclose(one, other, rtol=1e-4, atol=1e-5 * float(np.abs(other).max(initial=1))) for one, other in pairs
    )
