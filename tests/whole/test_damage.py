"""Whatever happens to a file of a gallery, nothing is answered wrongly: damage is noticed, named, and mended.

A gallery with every kind of file (segments, tombstones, skip list, encoder, prototypes, FAISS index) is damaged at
random places: bits are flipped, files are cut, lengthened, filled with zeros, swapped. After each damage the gallery
either refuses to open, or answers exactly as before.
"""

from __future__ import annotations

import errno
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from distcam.encoders import Encoder
from distcam.errors import DistcamError, GalleryError
from distcam.files import Storage
from distcam.index import Gallery, verify_gallery
from distcam.index.backends import opened_for_writing
from distcam.index.storage.manifest import MANIFEST_NAME, Manifest

Damage = Callable[[bytearray, random.Random], bytearray]


@pytest.fixture(scope="module")
def whole(photos: Path, small_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A gallery of 23 images that has had a removal, a broken image, and an approximate index."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    folder = tmp_path_factory.mktemp("damage")
    images = folder / "images"
    shutil.copytree(photos, images)
    (images / "broken.jpg").write_bytes(b"no picture")
    gallery = Gallery.build(images, small_encoder, out=folder / "gallery", precision="fp32", index="IVF2,SQfp16")
    gallery.remove(paths=[gallery.records(gallery.ids[:1])[0].path])
    files = {entry.name.split("-")[0] for entry in gallery.manifest.files()}
    assert files == {"segment", "tombstone", "skipped", "encoder", "prototypes", "index"}
    yield folder / "gallery"
    patch.undo()


def _flip_a_bit(data: bytearray, chance: random.Random) -> bytearray:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def _cut(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


def _lengthen(data: bytearray, chance: random.Random) -> bytearray:
    return data + chance.randbytes(chance.randrange(1, 100))


def _zero_a_page(data: bytearray, chance: random.Random) -> bytearray:
    start = chance.randrange(len(data))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    return data


def _fill_with_noise(data: bytearray, chance: random.Random) -> bytearray:
    return bytearray(chance.randbytes(len(data)))


DAMAGES: tuple[Damage, ...] = (_flip_a_bit, _flip_a_bit, _flip_a_bit, _cut, _lengthen, _zero_a_page, _fill_with_noise)


def _answers(gallery: Gallery, queries: np.ndarray) -> list[tuple[list[int], list[float]]]:
    hits = gallery.search(queries, k=5)
    return [(hit.ids.tolist(), hit.distances.tolist()) for hit in hits]


def _damage_at_random(whole: Path, tmp_path: Path, times: int) -> None:
    truth = Gallery.open(whole, verify=True)
    queries = truth.embeddings(truth.ids[:3]) + np.float32(0.01)
    expected, records = _answers(truth, queries), truth.records(truth.ids)
    prototypes = truth.prototypes.all_embeddings().tolist()
    names = [MANIFEST_NAME, *(entry.name for entry in truth.manifest.files())]
    chance, noticed = random.Random(0), 0
    for attempt in range(times):
        folder = tmp_path / str(attempt)
        shutil.copytree(whole, folder)
        name, damage = names[attempt % len(names)], chance.choice(DAMAGES)
        before = (folder / name).read_bytes()
        after = bytes(damage(bytearray(before), chance))
        (folder / name).write_bytes(after)
        what = f"{damage.__name__} of {name}, attempt {attempt}"
        try:
            opened = Gallery.open(folder, verify=True)
            assert _answers(opened, queries) == expected, what
            assert opened.records(opened.ids) == records, what
            assert opened.prototypes.all_embeddings().tolist() == prototypes, what
            if opened.encoder_path is not None:
                assert opened.encoder_path.read_bytes() == (whole / opened.encoder_path.name).read_bytes(), what
            assert opened.skipped == truth.skipped, what
        except DistcamError as refused:
            if name not in str(refused):
                raise
        if after == before:
            shutil.rmtree(folder)
            continue
        if name == MANIFEST_NAME:  # nothing else says what a gallery is: it has to come from a copy
            with pytest.raises(GalleryError, match=MANIFEST_NAME):
                verify_gallery(folder, repair=True)
        else:
            report = verify_gallery(folder)
            assert [problem.file for problem in report.problems] == [name], what
            assert verify_gallery(folder, repair=True).is_sound, what
            _check_what_is_left(Gallery.open(folder, verify=True), truth, name)
        noticed += 1
        shutil.rmtree(folder)
    assert noticed > times / 2


def _check_what_is_left(mended: Gallery, truth: Gallery, name: str) -> None:
    """All that the damaged file did not hold, unchanged; caches are there again after the next change."""
    kept = np.intersect1d(mended.ids, truth.ids)
    if not name.startswith("segment"):
        assert kept.tolist() == truth.ids.tolist()
    if not name.startswith("tombstone"):
        assert kept.tolist() == mended.ids.tolist()
    if len(kept):
        assert mended.records(kept) == truth.records(kept)
        assert np.array_equal(mended.embeddings(kept), truth.embeddings(kept))
        nearest = mended.search(truth.embeddings(kept[:1]), k=1)[0]
        assert nearest.distances[0] == pytest.approx(0, abs=1e-6)


def test_damage_anywhere_is_noticed_named_and_mended(whole: Path, tmp_path: Path) -> None:
    _damage_at_random(whole, tmp_path, times=14)


@pytest.mark.slow
def test_much_damage_anywhere_is_noticed_named_and_mended(whole: Path, tmp_path: Path) -> None:
    _damage_at_random(whole, tmp_path, times=1400)


def test_what_a_damaged_segment_held_comes_back_with_the_next_build(
    whole: Path, small_encoder: Encoder, tmp_path: Path
) -> None:
    folder = tmp_path / "gallery"
    shutil.copytree(whole, folder)
    path = folder / Manifest.load(folder).segments[0].name
    path.write_bytes(path.read_bytes()[:-7])
    verify_gallery(folder, repair=True)
    images = Manifest.load(folder).root
    gallery = Gallery.build(images, small_encoder, out=folder, precision="fp32", index="IVF2,SQfp16")
    assert len(gallery) == 24  # the one that was removed is among the images again
    assert verify_gallery(folder).is_sound


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
@pytest.mark.parametrize("room", [0, 500, 3_000, 10_000])
def test_a_full_disk_is_said_in_one_line_and_nothing_is_lost(
    whole: Path, photos: Path, small_encoder: Encoder, tmp_path: Path, room: int
) -> None:
    """HDF5 by itself would take the process down when it ends."""
    import resource

    folder = tmp_path / "gallery"
    shutil.copytree(whole, folder)
    gallery = Gallery.open(folder, verify=True)
    before, ids = gallery.manifest, gallery.ids.tolist()
    more = shutil.copytree(photos, tmp_path / "more")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(GalleryError, match="is the disk full or write-protected"):
            gallery.add(more, small_encoder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Gallery.open(folder, verify=True).ids.tolist() == ids
    assert verify_gallery(folder).is_sound
    with opened_for_writing(folder) as writer:
        assert writer.manifest == before
    assert not list(folder.glob("*.tmp"))
    assert gallery.add(more, small_encoder).added == len(list(more.rglob("*.jpg")))


def test_a_read_only_folder_is_searched_and_not_changed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a mounted image: every attempt to write is refused by the system."""
    folder = tmp_path / "gallery"
    shutil.copytree(whole, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as read_only:
        for name in ("sync", "rename", "make_folder"):
            read_only.setattr(Storage, name, refuse)
        gallery = Gallery.open(folder, verify=True)
        assert len(gallery.search(gallery.embeddings(gallery.ids[:1]), k=3)[0].ids) == 3
        with pytest.raises(GalleryError, match="is the disk full or write-protected"):
            gallery.remove(where="label!=nothing")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".tmp"} == before
    assert len(Gallery.open(folder, verify=True)) == len(gallery)
