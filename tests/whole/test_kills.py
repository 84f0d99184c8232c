"""SIGKILL at random moments while a gallery follows a folder, and while its index is tuned.

The child counts its file operations and dies within three milliseconds after one of them, so that kills fall among them
however busy the machine is. After every kill the gallery opens, is sound, and every vector belongs to its picture; the
next run completes what the last one left. Vectors stand for pictures: they are the checksums of the files.
(`test_crash.py` kills builds, additions, removals and merges.)
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from killing import sha256_of, start

from distcam.files import Storage
from distcam.index import Gallery, verify_gallery
from distcam.index.storage.manifest import EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.writer import GalleryWriter

pytestmark = pytest.mark.usefixtures("own_state")

DYING = """
import json, os, signal, sys, threading
from distcam.files import Storage

operations_left, delay = int(sys.argv.pop()), float(sys.argv.pop())

def counted(operation):
    def counting(*arguments):
        global operations_left
        operations_left -= 1
        if operations_left == 0:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return operation(*arguments)
    return counting

for name in ("sync", "rename", "sync_folder", "remove"):
    setattr(Storage, name, counted(getattr(Storage, name)))
"""

SYNC = (
    DYING
    + """

import types
from pathlib import Path
import numpy as np
import distcam.index.sync.sync as sync
from distcam.index import Gallery
from distcam.index.building.ingest import Encoded, read_offer
from distcam.index.storage.segments import RowVectors
import distcam.index.storage.writer as writer

folder, images = map(Path, sys.argv[1:])
writer.CommitLimits.__init__.__defaults__ = (6, 64 << 20, 30.0, 40, 3)

def stream(writer, encoder, inference):
    def encoded(prepared):
        for start in range(0, len(prepared), 3):
            batch = prepared[start : start + 3]
            for offer in batch:
                read_offer(offer)
            vectors = np.stack([np.frombuffer(offer.sha256, np.uint8).astype(np.float32) for offer in batch])
            yield Encoded(batch, RowVectors(vectors, vectors), [])
    return encoded

build = types.ModuleType("distcam.index.building.build")  # the real one loads torch, which takes seconds
build.encoding_stream, build.InferenceOptions = stream, lambda *_: None
sys.modules[build.__name__] = build
sync.LazyEncoder.__call__ = lambda self: None
gallery = Gallery.open(folder)
gallery.sync(images, force=True)
assert "torch" not in sys.modules
print(json.dumps(["done"]), flush=True)
"""
)

TUNE = (
    DYING
    + """
import random
from distcam.index import Gallery

gallery, chance = Gallery.open(sys.argv[1]), random.Random(int(sys.argv[2]))
while True:
    wanted = chance.choice(["Flat", "SQfp16", "IVF2,Flat", "IVF4,SQfp16", "IVF2,SQ8"])
    gallery.tune(candidates=[wanted], recall=0.5, queries=20, seed=chance.randrange(100))
    print(json.dumps(["done", wanted]), flush=True)
"""
)


def _write(folder: Path, number: int, *, version: int = 0) -> None:
    path = folder / f"class{number % 3}" / f"{number:04}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"picture {number}, version {version}".encode())


def _gallery_of(folder: Path, images: Path) -> Path:
    """A gallery of all that lies in `images`, whose vectors are the files' checksums."""
    Storage().make_folder(folder)
    manifest = Manifest(Spec("l2", 32, 32, None, True), EncoderEntry("f" * 64, "fake"), root=str(images))
    writer = GalleryWriter(folder, manifest, on_disk=None)
    files = sorted(images.rglob("*.jpg"))
    digests = np.frombuffer(b"".join(map(sha256_of, files)), np.uint8).reshape(-1, 32)
    status = [file.stat() for file in files]
    entries = Entries(
        ids=np.zeros(len(files), np.uint64),
        paths=[file.relative_to(images).as_posix() for file in files],
        sha256=digests,
        size=np.array([one.st_size for one in status], np.uint64),
        mtime_ns=np.array([one.st_mtime_ns for one in status], np.int64),
        columns={"label": [file.parent.name for file in files]},
    )
    vectors = digests.astype(np.float32)
    writer.append(entries, RowVectors(vectors, vectors))
    writer.commit(complete=True)
    return folder


def _change(images: Path, chance: random.Random, attempt: int) -> None:
    """Some files go, some come, some move, some are written anew."""
    files = sorted(images.rglob("*.jpg"))
    chosen = chance.sample(files, 12)
    for file in chosen[:4]:
        file.unlink()
    for file in chosen[4:8]:
        file.replace(file.with_name(f"{attempt}-{file.name}"))
    for file in chosen[8:]:
        file.write_bytes(file.read_bytes() + b"!")
    for number in range(4):
        _write(images, 1000 + 10 * attempt + number)


def _state(images: Path) -> dict[str, bytes]:
    return {file.relative_to(images).as_posix(): sha256_of(file) for file in images.rglob("*.jpg")}


def _check(folder: Path) -> dict[str, bytes]:
    """It opens, is sound, and every vector is its picture's; returns the checksums by path."""
    gallery = Gallery.open(folder, verify=True)
    report = verify_gallery(folder)
    assert report.is_sound, str(report)
    assert not report.problems, str(report)
    vectors = gallery.embeddings(gallery.ids)
    assert len(gallery)
    some = np.linspace(0, len(gallery) - 1, 3).astype(int)
    for row, hits in zip(some, gallery.search(vectors[some], k=1), strict=True):
        assert hits.distances.tolist() == [0.0]
        assert np.array_equal(gallery.embeddings(hits.ids)[0], vectors[row])
    paths = [record.path for record in gallery.records(gallery.ids)]
    assert len(set(paths)) == len(paths)
    return {path: vector.astype(np.uint8).tobytes() for path, vector in zip(paths, vectors, strict=True)}


def _killed(code: str, *arguments: object, chance: random.Random, after: int) -> list[list[str]]:
    """Let it run until a moment after so many file operations, 0 means to its end; returns what it said."""
    child = start(code, *arguments, chance.random() * 0.003, after)
    said, errors = child.communicate(timeout=60)
    assert child.returncode in (-9, 0), errors
    return [json.loads(line) for line in said.splitlines()]


def _kill_syncs(tmp_path: Path, times: int) -> None:
    chance, images = random.Random(0), tmp_path / "images"
    for number in range(60):
        _write(images, number)
    folder = _gallery_of(tmp_path / "gallery", images)
    before, finished, partly = _check(folder), 0, 0
    for attempt in range(times):
        _change(images, chance, attempt)
        truth = _state(images)
        said = _killed(SYNC, folder, images, chance=chance, after=0 if attempt % 5 == 4 else chance.randrange(1, 80))
        held = _check(folder)
        for path, digest in held.items():  # nothing that is neither what was nor what is
            assert digest in (before.get(path), truth.get(path)), path
        assert len(held.keys() | truth.keys()) - len(truth) <= len(before)
        unchanged = {path for path, digest in before.items() if truth.get(path) == digest}
        assert unchanged <= held.keys()
        if ["done"] in said:
            assert held == truth
            finished += 1
        elif held not in (before, truth):
            partly += 1
        before = held
    child = start(SYNC, folder, images, 0.0, 0)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert _check(folder) == _state(images)
    assert finished > 0
    assert partly > 0  # else no kill came in the middle


def _kill_tunings(tmp_path: Path, times: int) -> None:
    chance, images = random.Random(1), tmp_path / "images"
    for number in range(300):
        _write(images, number)
    folder = _gallery_of(tmp_path / "gallery", images)
    truth, tuned = _state(images), 0
    for attempt in range(times):
        said = _killed(TUNE, folder, attempt, chance=chance, after=chance.randrange(1, 30))
        assert _check(folder) == truth
        tuned += len(said)
        if said:
            assert Gallery.open(folder).manifest.tuning is not None
    assert tuned > 0
    Gallery.open(folder).tune(candidates=["IVF4,Flat"], recall=0.5, queries=20)
    assert Gallery.open(folder).manifest.index == "IVF4,Flat"
    assert _check(folder) == truth


def test_killing_a_sync_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    _kill_syncs(tmp_path, times=12)


def test_killing_a_tuning_at_any_moment_leaves_a_gallery_that_answers(tmp_path: Path) -> None:
    _kill_tunings(tmp_path, times=6)


@pytest.mark.slow
def test_killing_syncs_many_times_loses_nothing(tmp_path: Path) -> None:
    _kill_syncs(tmp_path, times=200)


@pytest.mark.slow
def test_killing_tunings_many_times_leaves_a_gallery_that_answers(tmp_path: Path) -> None:
    _kill_tunings(tmp_path, times=100)
