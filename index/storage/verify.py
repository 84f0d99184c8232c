"""The full check of a gallery, and the mending of what can be mended without its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...errors import DistcamError, TooManyFilesError, is_out_of_descriptors, too_many_files
from ...remarks import counted
from ..prototypes import PrototypeStore
from ..reports import Problem, VerifyReport, read_skipped
from .cache import computed_prototypes, load_index_bytes, load_prototypes
from .manifest import CacheEntry, FileEntry, Manifest
from .segments import Segment
from .snapshot import Ids, Snapshot, check_file, read_ids, removed_ids
from .writer import GalleryWriter

_REPAIRS = {
    "segment": "repair sets it aside, {lost} lost; build or add its images again",
    "tombstone": "repair drops it; images removed with it may come back",
    "encoder": "repair drops it; name the encoder with --encoder from then on",
    "skipped": "repair drops the list",
    "cache": "repair drops it; it is computed again",
}
_LOSSES = ("segment", "tombstone", "encoder")


class Check:
    """One pass over everything, collecting problems instead of raising them."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.problems: list[Problem] = []
        self.bad: set[str] = set()
        self.duplicates: Ids | None = None  # images with a path that a newer one has; None until all rows were seen
        self.images = 0
        self._ids: Ids = np.empty(0, np.uint64)
        for entry in manifest.files():
            with self._noting(entry):
                check_file(folder, entry, checksum=True)
                match self._use_of(entry):
                    case "segment":
                        self._check_segment(Segment.of(folder, entry, manifest.spec))
                    case "tombstone":
                        read_ids(folder, entry)
                    case "skipped":
                        read_skipped(folder / entry.name)
        if self.bad.isdisjoint(entry.name for entry in (*manifest.segments, *manifest.tombstones)):
            self._check_whole()
        else:
            self._count_what_is_left()

    def report(self, *, repaired: bool = False) -> VerifyReport:
        """The findings."""
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
        use = self._use_of(entry)
        repair = _REPAIRS[use].format(lost=counted(entry.count, "image"))
        self.problems.append(Problem(entry.name, problem, repair, is_loss=use in _LOSSES))

    def _use_of(self, entry: FileEntry) -> str:
        """The manifest's use for the file: its name may be anything."""
        if entry in self.manifest.segments:
            return "segment"
        if entry in self.manifest.tombstones:
            return "tombstone"
        if entry == self.manifest.encoder.file:
            return "encoder"
        return "skipped" if entry == self.manifest.skipped else "cache"

    # --- Checking ----------------------------------------------------------------------------------------------------

    def _check_segment(self, segment: Segment) -> None:
        corrupt = segment.file.corrupt
        if len(segment) and int(segment.ids.max()) >= self.manifest.next_id:
            raise corrupt("holds an id that was never given out")
        ids = np.concatenate([self._ids, segment.ids])
        if len(np.unique(ids)) < len(ids):
            raise corrupt("holds an id that occurs twice")
        self._ids = ids
        assert segment.columns  # reading them checks their codes and text
        if any(not path or "\0" in path for path in segment.paths):
            raise corrupt("holds a path that no file has")
        for block in segment.blocks(np.arange(len(segment))):
            arrays = [block.pooled, block.embedding, block.maps, block.map_scale]
            if any(array is not None and not np.isfinite(array).all() for array in arrays):
                raise corrupt("holds vectors that are not finite")
            if self.manifest.spec.metric == "cosine" and not (block.embedding != 0).any(1).all():
                raise corrupt("holds a zero embedding, which no cosine compares")

    def _check_whole(self) -> None:
        """Look at all rows together."""
        snapshot = self._opened(self.manifest)
        self.images = len(snapshot)
        self._find_duplicates(snapshot)
        assert self.duplicates is not None
        for path in list(snapshot.paths(snapshot.places(self.duplicates)))[:10]:
            self.problems.append(Problem(path, "is in the gallery twice", "repair keeps the newer one"))
        entry = self.manifest.prototype_cache
        if entry is not None and self.manifest.is_fresh(entry) and entry.file.name not in self.bad:
            cached = load_prototypes(snapshot)
            if cached is None or not _agree(cached, computed_prototypes(snapshot)):
                self._note(entry.file, "does not hold the prototypes of this gallery")
        self._check_index(snapshot)

    def _find_duplicates(self, snapshot: Snapshot) -> Set[str]:
        """Note the older images of paths that several have; returns the paths."""
        newest = snapshot.places_by_path()
        self.duplicates = np.delete(snapshot.ids, list(newest.values()))
        return newest.keys()

    def _count_what_is_left(self) -> None:
        """Count the images in sound segments, and those that are nowhere else than in a bad one."""
        old = self.manifest
        sound = dataclasses.replace(old, segments=self._sound(old.segments), tombstones=self._sound(old.tombstones))
        left = self._opened(sound)
        self.images = len(left)
        removed = removed_ids(self.folder, sound.tombstones)
        kept = self._find_duplicates(left)
        lost = {entry.name: self._lost(entry, removed, kept) for entry in old.segments if entry.name in self.bad}
        for number, problem in enumerate(self.problems):
            if (count := lost.get(problem.file)) is not None:
                repair = _REPAIRS["segment"].format(lost=counted(count, "image"))
                self.problems[number] = dataclasses.replace(problem, repair=repair, is_loss=count > 0)

    def _lost(self, entry: FileEntry, removed: Ids, kept: Set[str]) -> int:
        """Number of images lost with a bad segment; as the manifest has it when the segment cannot be read at all."""
        try:
            segment = Segment.of(self.folder, entry, self.manifest.spec)
            alive = np.flatnonzero(~np.isin(segment.ids, removed))
            return sum(segment.paths[row] not in kept for row in alive.tolist())
        except TooManyFilesError:
            raise
        except (DistcamError, OSError):
            return entry.count

    def _check_index(self, snapshot: Snapshot) -> None:
        """An index that another user wrote is not read, and so not checked: it is never used either."""
        entry = self.manifest.index_cache
        if entry is None or entry.file.name in self.bad or (data := load_index_bytes(snapshot)) is None:
            return
        from ..faiss.search import FaissSearch

        with self._noting(entry.file):
            search = FaissSearch.deserialise(data, spec=snapshot.search_spec, source=snapshot.embeddings)
            problems = search.verify()
            if not problems and self.manifest.is_fresh(entry) and search.count() != len(snapshot):
                problems = [f"holds {counted(search.count(), 'vector')} for {counted(len(snapshot), 'image')}"]
            if problems:
                self._note(entry.file, problems[0])

    # --- Mending -----------------------------------------------------------------------------------------------------

    def mend(self, writer: GalleryWriter) -> None:
        """Keep only sound segments in the manifest; then remove images that are there twice."""
        if self.bad:
            self._drop_bad_files(writer)
        if self.duplicates is None:
            self._find_duplicates(self._opened(writer.manifest))
        if self.duplicates is not None and len(self.duplicates):
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
    names = ("all_pooled", "all_embeddings", "mean_pooled", "mean_embedding")
    pairs = ((getattr(cached, name)(), getattr(true, name)()) for name in names)
    return all(
        np.allclose(one, other, rtol=1e-4, atol=1e-5 * float(np.abs(other).max(initial=1))) for one, other in pairs
    )
