"""A gallery survives every moment at which its writer may be killed or the power may fail.

The first part records the file operations of a writer and replays every prefix of them, as a kill leaves it (all that
was written is there) and as a power failure may leave it: contents that were not synced are missing, cut, or zero;
names that were not synced are there or not, in any combination. The second part kills real processes.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import kill_at_random, sha256_of, start

from distcam.errors import GalleryLockedError, NotAGalleryError
from distcam.files import Storage
from distcam.images import list_images
from distcam.index import Gallery, restore_gallery, verify_gallery
from distcam.index.backends import newest_snapshot, opened_for_writing
from distcam.index.storage.manifest import EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.writer import CommitLimits, GalleryWriter

SPEC = Spec("l2", embedding_dim=2, pooled_dim=2, embedding_is_pooled=True)
Model = dict[str, float]  # path → first number of its vector


# --- A disk that forgets what was not synced --------------------------------------------------------------------------


class Recorder(Storage):
    """Performs the operations and notes them; `skip` names syncs that are left out, to see whether that is noticed."""

    def __init__(self, skip: Callable[[Path], bool] = lambda path: False) -> None:
        self.log: list[tuple[Any, ...]] = []
        self._skip = skip

    def make_folder(self, folder: Path) -> None:
        self.log.append(("make", folder))
        super().make_folder(folder)

    def sync(self, path: Path) -> None:
        self.log.append(("write", path, path.read_bytes()))
        if not self._skip(path):
            self.log.append(("sync", path))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.log.append(("rename", source, target))

    def sync_folder(self, folder: Path) -> None:
        if not self._skip(folder):
            self.log.append(("sync folder", folder))

    def remove(self, path: Path) -> None:
        if path.exists():
            super().remove(path)
            self.log.append(("remove", path))

    def acknowledge(self, model: Model) -> None:
        self.log.append(("acknowledge", dict(model)))


class Disk:
    """What is written, what of it is on the disk, and what a power failure may make of the difference."""

    def __init__(self) -> None:
        self.names: dict[Path, int] = {}
        self.durable_names: dict[Path, int] = {}
        self.pending: list[tuple[Path, dict[Path, int | None]]] = []  # folder, changes of names
        self.contents: dict[int, bytes] = {}
        self.synced: set[int] = set()

    def apply(self, operation: str, *arguments: Any) -> None:
        path = arguments[0]
        if operation in ("make", "write"):
            number = len(self.contents)
            self.contents[number] = b"" if operation == "make" else arguments[1]
            if operation == "make":
                self.synced.add(number)
            self._change(path.parent, {path: number})
        elif operation == "sync":
            self.synced.add(self.names[path])
        elif operation == "rename":
            self._change(path.parent, {path: None, arguments[1]: self.names[path]})
        elif operation == "remove":
            self._change(path.parent, {path: None})
        elif operation == "sync folder":
            for folder, change in self.pending:
                if folder == path:
                    _rename(self.durable_names, change)
            self.pending = [(folder, change) for folder, change in self.pending if folder != path]

    def _change(self, folder: Path, change: dict[Path, int | None]) -> None:
        _rename(self.names, change)
        self.pending.append((folder, change))

    def after_kill(self) -> dict[Path, bytes]:
        return {path: self.contents[number] for path, number in self.names.items()}

    def after_power_failure(self) -> Iterator[dict[Path, bytes]]:
        for survivors in _subsets(range(len(self.pending))):
            names = dict(self.durable_names)
            for index in survivors:
                _rename(names, self.pending[index][1])
            for spoil in (bytes, lambda data: data[: len(data) // 2], lambda data: bytes(len(data)), lambda data: data):
                yield {
                    path: self.contents[number] if number in self.synced else spoil(self.contents[number])
                    for path, number in names.items()
                }


def _rename(names: dict[Path, int], change: dict[Path, int | None]) -> None:
    for path, number in change.items():
        if number is None:
            names.pop(path, None)
        else:
            names[path] = number


def _subsets(items: range) -> Iterator[tuple[int, ...]]:
    """All subsets of few items; of many, the beginnings and those that lack one."""
    if len(items) <= 5:
        for size in range(len(items) + 1):
            yield from combinations(items, size)
    else:
        yield from (tuple(items[:size]) for size in range(len(items) + 1))
        yield from (tuple(item for item in items if item != lost) for lost in items)


# --- One writer's life ------------------------------------------------------------------------------------------------


def _rows(model: Model) -> tuple[Entries, RowVectors]:
    n = len(model)
    pooled = np.array([[value, 1.0] for value in model.values()], np.float32)
    entries = Entries(
        ids=np.zeros(n, np.uint64),
        paths=list(model),
        sha256=np.zeros((n, 32), np.uint8),
        size=np.zeros(n, np.uint64),
        mtime_ns=np.zeros(n, np.int64),
        columns={"label": [path[0] for path in model]},
    )
    return entries, RowVectors(pooled, pooled)


def _live(folder: Path, storage: Recorder) -> None:
    """Build, replace, remove, merge, cache, compact and sweep, acknowledging each step when its call has returned."""
    storage.make_folder(folder)
    manifest = Manifest(SPEC, EncoderEntry("f" * 64, "fake/ffffffff"), root="/photos")
    limits = CommitLimits(images=2, files=2, segment_images=100)
    writer = GalleryWriter(folder, manifest, on_disk=None, storage=storage, limits=limits)
    model: Model = {}
    for first in range(0, 6, 2):  # three segments, by the limit on images
        new = {f"c{number}": float(number) for number in range(first, first + 2)}
        writer.append(*_rows(new))
        model |= new
        storage.acknowledge(model)
        writer.merge_small(newest=True)  # as a build does
        storage.acknowledge(model)
    assert len(writer.manifest.segments) == 2
    writer.append(*_rows({"c0": 10.0}), replaces=[0])  # changed content: the old image leaves in the same commit
    writer.remove([3])
    writer.commit(complete=True)
    model = {path: value for path, value in (model | {"c0": 10.0}).items() if path != "c3"}
    storage.acknowledge(model)
    writer.merge_small()
    storage.acknowledge(model)
    writer.store_cache("prototypes", lambda path: path.write_bytes(b"sums") and None, count=1)
    storage.acknowledge(model)
    writer.remove([1])
    writer.commit()
    del model["c1"]
    storage.acknowledge(model)
    writer.compact()
    storage.acknowledge(model)
    (folder / f"segment-{'0' * 32}.h5.tmp").write_bytes(b"left behind by a killed writer")
    with opened_for_writing(folder, storage=storage, limits=limits) as second:
        second.append(*_rows({"d0": 20.0, "d1": 21.0}))
        storage.acknowledge(model | {"d0": 20.0, "d1": 21.0})


def _restored(folder: Path, storage: Recorder) -> None:
    """Build, copy the gallery elsewhere, change it, and put the copy back."""
    storage.make_folder(folder)
    manifest = Manifest(SPEC, EncoderEntry("f" * 64, "fake/ffffffff"), root="/photos")
    writer = GalleryWriter(folder, manifest, on_disk=None, storage=storage, limits=CommitLimits(images=2))
    model: Model = {"c0": 0.0, "c1": 1.0, "c2": 2.0, "c3": 3.0}
    for count in (2, 4):
        known = dict([*model.items()][:count])
        writer.append(*_rows(dict([*known.items()][-2:])))
        storage.acknowledge(known)
    writer.commit(complete=True)
    storage.acknowledge(model)
    backup = folder.parent / "backup"
    shutil.copytree(folder, backup)
    writer.remove([0])
    writer.append(*_rows({"d0": 20.0, "d1": 21.0}))
    later = {"c1": 1.0, "c2": 2.0, "c3": 3.0, "d0": 20.0, "d1": 21.0}
    storage.acknowledge(later)
    writer.compact()
    storage.acknowledge(later)
    restore_gallery(backup, folder, storage=storage)
    storage.acknowledge(model)


def _carried(folder: Path, storage: Recorder) -> None:
    """A gallery whose index is carried over a change, and written again with the next; then compacted."""
    storage.make_folder(folder)
    entry = EncoderEntry("f" * 64, "fake/ffffffff")
    manifest = Manifest(SPEC, entry, root="/photos", index="HNSW8", gallery_id="carried")
    model: Model = {f"c{number:02d}": float(number) for number in range(60)}
    writer = GalleryWriter(folder, manifest, on_disk=None, storage=storage)
    writer.append(*_rows(model))
    writer.commit(complete=True)
    storage.acknowledge(model)
    gallery = Gallery.open(folder)
    gallery.save_caches(writer)
    storage.acknowledge(model)
    ages = []
    for number in range(2):
        writer.append(*_rows({f"d{number}": 60.0 + number}))
        writer.remove([7 * number])
        writer.commit()
        model = {path: value for path, value in model.items() if value != 7 * number} | {f"d{number}": 60.0 + number}
        storage.acknowledge(model)
        gallery.save_caches(writer)
        storage.acknowledge(model)
        assert gallery.manifest.index_cache is not None
        ages.append(gallery.manifest.generation - gallery.manifest.index_cache.generation)
    assert ages == [1, 0]  # carried over, and written again
    writer.compact()
    storage.acknowledge(model)


def _searched(folder: Path) -> Model:
    """What is there, once each image has found itself and its neighbours, in order, by the index."""
    model = _read(folder)
    with Gallery.open(folder) as gallery:
        search = gallery.searcher
        assert (search.count(), search.description["factory"]) == (len(model), "HNSW8")  # type: ignore[attr-defined]
        numbers = np.array([*model.values()])
        for number, hits in zip(numbers, gallery.search(gallery.embeddings(gallery.ids), 3), strict=True):
            order = np.lexsort((gallery.ids, np.abs(numbers - number)))[:3]
            assert hits.ids.tolist() == gallery.ids[order].tolist()
    return model


def _read(folder: Path) -> Model:
    with Gallery.open(folder, verify=True) as gallery:
        paths = [record.path for record in gallery.records(gallery.ids)]
        return dict(zip(paths, gallery.pooled(gallery.ids)[:, 0].tolist(), strict=True))


def _states(log: list[tuple[Any, ...]]) -> Iterator[tuple[dict[Path, bytes], list[Model | None]]]:
    """Every state a crash may leave, with what may be found: what was acknowledged last, or what comes next."""
    acknowledged: list[Model | None] = [None, *(entry[1] for entry in log if entry[0] == "acknowledge")]
    disk, done, seen = Disk(), 0, set()
    for operation in [*log, ("end",)]:
        for state in [disk.after_kill(), *disk.after_power_failure()]:
            key = hash((done, tuple(sorted((path, hash(data)) for path, data in state.items()))))
            if key not in seen:
                seen.add(key)
                yield state, acknowledged[done : done + 2]
        if operation[0] == "acknowledge":
            done += 1
        elif operation[0] != "end":
            disk.apply(*operation)


def _count_bad_states(
    tmp_path: Path,
    storage: Recorder,
    *,
    life: Callable[[Path, Recorder], None] = _live,
    read: Callable[[Path], Model] = _read,
    stop_at: int | None = None,
) -> tuple[int, int]:
    """How many crash states do not open, or have lost something; and how many there are."""
    folder = tmp_path / "recorded" / "gallery"
    folder.parent.mkdir(parents=True)
    life(folder, storage)
    bad = total = 0
    for total, (state, allowed) in enumerate(_states(storage.log), 1):
        replayed = tmp_path / "replayed" / str(total)
        if folder in state:
            replayed.mkdir(parents=True)
            for path, data in state.items():
                if path != folder:
                    (replayed / path.name).write_bytes(data)
        try:
            bad += read(replayed) not in allowed
        except NotAGalleryError:
            bad += None not in allowed
        except Exception:
            bad += 1
        if stop_at is not None and bad >= stop_at:
            break
    return bad, total


def test_a_gallery_survives_every_crash_and_every_power_failure(tmp_path: Path) -> None:
    bad, total = _count_bad_states(tmp_path, Recorder())
    assert total > 150
    assert bad == 0


def test_a_gallery_survives_every_crash_while_it_is_restored(tmp_path: Path) -> None:
    bad, total = _count_bad_states(tmp_path, Recorder(), life=_restored)
    assert total > 50
    assert bad == 0


@pytest.mark.usefixtures("own_state")
def test_an_index_carried_over_changes_survives_every_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distcam.index.storage.cache.small_change", lambda count: 2)
    bad, total = _count_bad_states(tmp_path, Recorder(), life=_carried, read=_searched)
    assert total > 50
    assert bad == 0


@pytest.mark.usefixtures("own_state")
def test_the_crash_test_notices_an_index_that_is_not_brought_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(folder: Path) -> Model:
        with monkeypatch.context() as patch:
            patch.setattr("distcam.index.storage.cache._bring_up_to_date", lambda search, snapshot: None)
            return _searched(folder)

    monkeypatch.setattr("distcam.index.storage.cache.small_change", lambda count: 2)
    bad, _ = _count_bad_states(tmp_path, Recorder(), life=_carried, read=searched, stop_at=1)
    assert bad > 0


def test_the_crash_test_notices_a_restored_file_that_is_not_synced(tmp_path: Path) -> None:
    hasty = Recorder(lambda path: path.name.startswith("segment"))
    bad, _ = _count_bad_states(tmp_path, hasty, life=_restored, stop_at=1)
    assert bad > 0


@pytest.mark.parametrize(
    "skip",
    [
        pytest.param(lambda path: path.name.startswith("segment"), id="segments are not synced"),
        pytest.param(lambda path: path.name.startswith("tombstone"), id="tombstones are not synced"),
        pytest.param(lambda path: path.name.startswith("manifest"), id="the manifest is not synced"),
        pytest.param(lambda path: path.name == "gallery", id="the folder is not synced"),
        pytest.param(lambda path: path.name == "recorded", id="the parent folder is not synced"),
    ],
)
def test_the_crash_test_notices_a_missing_sync(tmp_path: Path, skip: Callable[[Path], bool]) -> None:
    bad, _ = _count_bad_states(tmp_path, Recorder(skip), stop_at=1)
    assert bad > 0


class Hasty(GalleryWriter):
    """Deletes what the new manifest does not name before the new manifest is there."""

    def _save(self, **changes: Any) -> None:
        kept = {entry.name for key in ("segments", "tombstones") for entry in changes.get(key, ())}
        for key in ("segments", "tombstones"):
            for entry in getattr(self.manifest, key) if key in changes else ():
                if entry.name not in kept:
                    self._storage.remove(self.folder / entry.name)
        super()._save(**changes)


def test_the_crash_test_notices_files_deleted_too_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "GalleryWriter", Hasty)
    bad, _ = _count_bad_states(tmp_path, Recorder(), stop_at=1)
    assert bad > 0


# --- Killed processes -------------------------------------------------------------------------------------------------

CHILD = """
import json, random, sys, time
from pathlib import Path
import numpy as np
from distcam.images.listing import list_images
from distcam.files import Storage, WriterLock
from distcam.index.building.ingest import Encoded, ingest, read_offer
from distcam.index.storage.manifest import EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import RowVectors
from distcam.index.storage.snapshot import Snapshot
from distcam.index.storage.writer import CommitLimits, GalleryWriter

assert "torch" not in sys.modules
images, folder, job, seed = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
listing, chance = list_images(images), random.Random(seed)
limits = CommitLimits(images=6, files=3, segment_images=40)

def say(kind, paths):
    print(json.dumps([kind, sorted(paths)]), flush=True)

def stream(offers):
    batch = []
    for offer in offers:
        data = read_offer(offer)
        batch.append((offer, np.frombuffer(offer.sha256, np.uint8).astype(np.float32)))
        if len(batch) == 3:
            yield encoded(batch)
            batch = []
    if batch:
        yield encoded(batch)

def encoded(batch):
    pooled = np.stack([vector for _, vector in batch])
    return Encoded([offer for offer, _ in batch], RowVectors(pooled, pooled), [])

def held(manifest):
    return Snapshot(folder, manifest, verify=False).all_paths()

def manifest():
    try:
        return Manifest.load(folder)
    except FileNotFoundError:
        return None

class Telling(GalleryWriter):
    def _save(self, **changes):
        super()._save(**changes)
        if job == "build":
            say("done", held(self.manifest))

Storage().make_folder(folder)
with WriterLock(folder):
    old = manifest()
    new = Manifest(Spec("l2", 32, 32, None, True), EncoderEntry("f" * 64, "fake"), root=str(listing.root))
    writer = Telling(folder, old or new, on_disk=old, limits=limits)
    writer.delete_orphans()
    say("ready", [])
    ingest(writer, listing, stream)
    writer.commit(complete=True)
    writer.merge_small()
    if job == "change":
        say("done", held(writer.manifest))
    while job == "change":
        snapshot = Snapshot(folder, writer.manifest, verify=False)
        gone = chance.sample(range(len(snapshot)), 5)
        paths = snapshot.all_paths()
        left = [path for place, path in enumerate(paths) if place not in gone]
        say("begin", left)
        writer.remove(int(snapshot.ids[place]) for place in gone)
        writer.commit()
        say("done", left)
        say("begin", paths)
        ingest(writer, listing, stream)
        say("done", paths)
        writer.merge_small() if chance.random() < 0.5 else writer.compact()
"""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """60 files that nobody decodes."""
    folder = tmp_path / "photographs"
    for number in range(60):
        path = folder / f"class{number % 3}" / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"photograph {number}".encode())
    return folder


def _start(photographs: Path, gallery: Path, job: str, seed: int) -> subprocess.Popen[str]:
    return start(CHILD, photographs, gallery, job, seed)


def _check(folder: Path, photographs: Path, *, at_least: set[str], allowed: list[set[str]] | None = None) -> None:
    """The gallery opens, is sound, holds what it must, and every vector belongs to its path."""
    try:
        gallery = Gallery.open(folder, verify=True)
    except NotAGalleryError:
        assert not at_least
        return
    report = verify_gallery(folder)
    assert report.is_sound, str(report)
    records = gallery.records(gallery.ids)
    paths = {record.path for record in records}
    assert at_least <= paths
    assert allowed is None or paths in allowed
    for record, vector in zip(records, gallery.pooled(gallery.ids), strict=True):
        assert vector.astype(np.uint8).tobytes() == sha256_of(photographs / record.path)


def _kill_builds(tmp_path: Path, photographs: Path, times: int) -> None:
    chance, kept, folder = random.Random(0), set[str](), tmp_path / "gallery"
    acknowledged = 0
    everything = {record.path for record in list_images(photographs)}
    for attempt in range(times):
        said = kill_at_random(
            _start(photographs, folder, "build", attempt), chance, lines=1 + attempt % 3, at_most=0.08
        )
        kept |= {path for kind, paths in said if kind == "done" for path in paths}
        acknowledged += sum(kind == "done" for kind, _ in said)
        _check(folder, photographs, at_least=kept)
        if kept == everything:
            kept, folder = set(), tmp_path / f"gallery{attempt}"
    assert acknowledged > 0  # else the kills came before the first commit
    child = _start(photographs, folder, "build", 0)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    _check(folder, photographs, at_least=everything, allowed=[everything])
    assert Manifest.load(folder).complete


def _kill_changes(tmp_path: Path, photographs: Path, times: int) -> None:
    """Each run takes up what the last one left, removes images, adds them again, and merges, until it is killed."""
    chance, folder = random.Random(1), tmp_path / "gallery"
    unfinished = finished = 0
    for attempt in range(times):
        child = _start(photographs, folder, "change", attempt)
        said = kill_at_random(child, chance, lines=2 + attempt % 3, at_most=0.15)  # the gallery is complete by then
        steps = [(kind, set(paths)) for kind, paths in said if kind != "ready"]
        done = [paths for kind, paths in steps if kind == "done"]
        last_kind, last = steps[-1]  # perhaps only begun
        _check(folder, photographs, at_least=set(), allowed=[done[-1], last])
        finished += len(done) - 1
        unfinished += last_kind == "begin"
    assert finished > 0  # else the kills came before anything changed
    assert unfinished > 0  # else they all came between two changes


def test_killing_a_build_at_any_moment_loses_nothing_acknowledged(tmp_path: Path, photographs: Path) -> None:
    _kill_builds(tmp_path, photographs, times=12)


def test_killing_removals_additions_and_merges_loses_nothing_acknowledged(tmp_path: Path, photographs: Path) -> None:
    _kill_changes(tmp_path, photographs, times=8)


@pytest.mark.slow
def test_killing_builds_many_times_loses_nothing_acknowledged(tmp_path: Path, photographs: Path) -> None:
    _kill_builds(tmp_path, photographs, times=200)


@pytest.mark.slow
def test_killing_changes_many_times_loses_nothing_acknowledged(tmp_path: Path, photographs: Path) -> None:
    _kill_changes(tmp_path, photographs, times=200)


def test_a_second_writer_is_refused_with_the_process_that_writes(tmp_path: Path, photographs: Path) -> None:
    child = _start(photographs, tmp_path / "gallery", "change", 0)
    assert child.stdout is not None
    assert [json.loads(child.stdout.readline())[0] for _ in range(2)] == ["ready", "done"]
    with (
        pytest.raises(GalleryLockedError, match=rf"process {child.pid} is writing"),
        opened_for_writing(tmp_path / "gallery"),
    ):
        pass
    assert len(newest_snapshot(tmp_path / "gallery")) > 0  # a reader does not wait
    child.kill()
    child.communicate()
    with opened_for_writing(tmp_path / "gallery"):
        pass  # nothing stale is left
