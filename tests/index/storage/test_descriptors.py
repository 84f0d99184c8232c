"""Few files stay open, however many a gallery has; when there are none left, the error says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from distcam.errors import CorruptGalleryError, DistcamError, GalleryError, ImageError, TooManyFilesError
from distcam.files import Storage
from distcam.images import list_images
from distcam.index import Gallery, verify_gallery
from distcam.index.building.ingest import Encoded, ingest, read_offer
from distcam.index.storage import descriptors
from distcam.index.storage.descriptors import OpenFile
from distcam.index.storage.manifest import EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.snapshot import Snapshot
from distcam.index.storage.writer import CommitLimits, GalleryWriter

resource = pytest.importorskip("resource", reason="this system has no limits to set")

WHOLE_LIFE = """
import resource, sys
from functools import partial
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import numpy as np
from distcam import Encoder, Gallery
from distcam.index import verify_gallery
from distcam.index.storage import writer

limits = partial(writer.CommitLimits, images=1, files=int(sys.argv[2]))
writer.CommitLimits = limits  # one commit per image
folder, photos = Path(sys.argv[1]), sys.argv[3]
encoder = Encoder.load("conv4", weights="random")
encoder.transform = encoder.transform.adapted(size=16)

class Stop(Exception):
    pass

def stop(done, total):
    if done == 60:
        raise Stop

try:
    Gallery.build(photos, encoder, out=folder, batch_size=1, progress=stop)
except Stop:
    pass
else:
    raise AssertionError("was not stopped")
gallery = Gallery.build(photos, encoder, out=folder, batch_size=1)
assert len(gallery) == 80 and gallery.report.unchanged == 60, gallery.report
if int(sys.argv[2]) > 1000:
    assert len(gallery.manifest.segments) == 80  # as galleries were before files were merged on the way
assert [int(hits.ids[0]) for hits in gallery.search(gallery.embeddings(gallery.ids), 1)] == list(range(80))
assert verify_gallery(folder).problems == ()
assert verify_gallery(folder, repair=True).problems == ()
assert gallery.add(photos, encoder, batch_size=1).unchanged == 80
assert gallery.remove(where="path~'*7.png'") == 8
assert gallery.sync(photos).counts["added"] == 8
gallery.compact()
assert len(gallery.manifest.segments) == 1
assert len(Gallery.open(folder).records(gallery.ids)) == 80
print("done")
"""


@pytest.mark.parametrize(
    "files",
    [pytest.param(16, id="merged on the way"), pytest.param(100_000, id="never merged", marks=pytest.mark.slow)],
)
def test_a_gallery_of_many_commits_lives_under_a_limit_of_64_files(tmp_path: Path, files: int) -> None:
    from PIL import Image

    chance = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(80):
        Image.fromarray(chance.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / f"photos/{number:03}.png")
    command = [sys.executable, "-W", "error", "-c", WHOLE_LIFE, tmp_path / "g", str(files), tmp_path / "photos"]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert child.stdout.endswith("done\n"), child.stderr


# --- How often rows are written ---------------------------------------------------------------------------------------

SPEC = Spec("l2", embedding_dim=2, pooled_dim=2, embedding_is_pooled=True)


def _rows(first: int, count: int = 1) -> tuple[Entries, RowVectors]:
    pooled = np.full((count, 2), first, np.float32)
    entries = Entries(
        ids=np.zeros(count, np.uint64),
        paths=[f"{number}.jpg" for number in range(first, first + count)],
        sha256=np.zeros((count, 32), np.uint8),
        size=np.zeros(count, np.uint64),
        mtime_ns=np.zeros(count, np.int64),
        columns={"label": ["a"] * count},
    )
    return entries, RowVectors(pooled, pooled)


def _writer(folder: Path, **limits: int) -> GalleryWriter:
    folder.mkdir(exist_ok=True)
    manifest = Manifest(SPEC, EncoderEntry("f" * 64, "fake"), root="/photos")
    return GalleryWriter(folder, manifest, on_disk=None, limits=CommitLimits(**limits))


@pytest.mark.parametrize("sizes", [[1] * 100, [1, 7] * 20, [30, 1, 1, 1] * 10], ids=["alike", "mixed", "levels"])
def test_a_long_build_keeps_few_files_and_writes_no_row_often(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _writer(tmp_path / "g", images=1, files=4, segment_images=2048)
    written = 0
    write = writer._write_segment

    def counted(entries: Entries, vectors: Iterator[RowVectors]) -> object:
        nonlocal written
        written += len(entries)
        return write(entries, vectors)

    monkeypatch.setattr(writer, "_write_segment", counted)
    most = total = 0
    for size in sizes:
        writer.append(*_rows(total, size))
        writer.merge_small(newest=True)
        total += size
        most = max(most, len(writer.manifest.segments))
    levels = 1 + int(np.log(total) / np.log(4))
    assert most <= 4 * levels
    assert written <= total * (1 + levels)
    snapshot = Snapshot(tmp_path / "g", writer.manifest)
    assert sorted(snapshot.all_paths()) == sorted(f"{number}.jpg" for number in range(total))


def test_merging_leaves_images_alone_that_wait_for_a_commit(tmp_path: Path) -> None:
    writer = _writer(tmp_path / "g", images=2, files=2)
    for number in range(9):
        writer.append(*_rows(number))
        writer.merge_small(newest=True)
    writer.commit()
    assert len(Snapshot(tmp_path / "g", writer.manifest)) == 9


# --- No descriptor left -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the process had used up what it may open, with no file of a gallery among it that could be closed."""
    monkeypatch.setattr(descriptors, "_held", deque())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    held = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    writer = _writer(tmp_path / "g", images=1)
    for number in range(3):
        writer.append(*_rows(number))
    writer.remove([0])
    writer.commit(complete=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"a photograph")
    return tmp_path / "g"


def _stream(offers):
    for offer in offers:
        read_offer(offer)
        yield Encoded([offer], _rows(0)[1], [])


@pytest.mark.parametrize(
    "work",
    [
        Gallery.open,
        verify_gallery,
        lambda folder: verify_gallery(folder, repair=True),
        lambda folder: Storage().write(folder / "file", b"data"),
        lambda folder: list_images(folder.parent / "photos").problems,
        lambda folder: OpenFile(folder / "manifest.json", remedy="-"),
    ],
    ids=["open", "verify", "repair", "write", "list", "read"],
)
def test_without_descriptors_the_error_names_the_cure_and_nothing_is_called_damaged(
    gallery: Path, work, no_descriptors: None
) -> None:
    with pytest.raises(DistcamError, match=r"too many files open.*`ulimit -n 4096`") as caught:
        work(gallery)
    assert not isinstance(caught.value, CorruptGalleryError)


def test_an_image_that_cannot_be_opened_for_want_of_descriptors_ends_the_build_instead_of_being_passed_over(
    gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.load(gallery)
    writer = GalleryWriter(gallery, manifest, on_disk=manifest)

    def refuse(self: Path) -> bytes:
        raise OSError(24, "Too many open files", str(self))

    listing = list_images(gallery.parent / "photos")

    def stream(offers):
        for offer in offers:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Path, "read_bytes", refuse)
                try:
                    read_offer(offer)
                except ImageError as error:
                    yield Encoded([], None, [(offer, error)])

    with pytest.raises(TooManyFilesError, match="`ulimit -n 4096`"):
        ingest(writer, listing, stream)


# --- What is read -----------------------------------------------------------------------------------------------------


def test_files_that_were_not_read_lately_are_closed_and_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distcam.index.storage.descriptors._most_held", lambda: 3)
    files = []
    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 8)
        files.append(OpenFile(tmp_path / str(number), remedy="-"))
    assert sum(file._descriptor is not None for file in files) <= 4
    for number, file in [*enumerate(files)] * 2:
        buffer = bytearray(4)
        file.read([(2, buffer, 4)])
        assert buffer == bytes([number]) * 4
    closed = next(number for number, file in enumerate(files) if file._descriptor is None)
    (tmp_path / str(closed)).unlink()
    with pytest.raises(GalleryError, match=r"was removed while the gallery was open.*open the gallery again"):
        files[closed].read([(0, bytearray(1), 1)])
