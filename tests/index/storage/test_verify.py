from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from distcam.encoders import Encoder
from distcam.errors import CorruptGalleryError, InputError, NotAGalleryError
from distcam.files import Storage
from distcam.index import Gallery, VerifyReport, verify_gallery
from distcam.index.backends import opened_for_writing
from distcam.index.storage import verify as checks
from distcam.index.storage.manifest import EncoderEntry, FileEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.writer import CommitLimits, GalleryWriter

pytestmark = pytest.mark.usefixtures("own_state")


def _append(writer: GalleryWriter, *numbers: int) -> None:
    """Images `<number>.jpg`, whose vectors hold the number plus one."""
    n, zeros = len(numbers), np.zeros(len(numbers), np.uint64)
    labels: list[str | None] = ["cat"] * n
    paths = [f"{number}.jpg" for number in numbers]
    entries = Entries(zeros, paths, np.zeros((n, 32), np.uint8), zeros, zeros.astype(np.int64), {"label": labels})
    value = np.array(numbers, np.float32)[:, None] + 1
    writer.append(entries, RowVectors(value.repeat(3, axis=1), value.repeat(2, axis=1)))


def _make(folder: Path, *, images: int = 6) -> Path:
    """Images in segments of two, with ids from 0."""
    Storage().make_folder(folder)
    manifest = Manifest(Spec("l2", 2, 3), EncoderEntry("f" * 64, "fake"), root="/photos")
    writer = GalleryWriter(folder, manifest, on_disk=None, limits=CommitLimits(images=2))
    for start in range(0, images, 2):
        _append(writer, *range(start, min(start + 2, images)))
    writer.commit(complete=True)
    return folder


def _vouch_for(folder: Path, entry: FileEntry, **changes: object) -> None:
    """Let the manifest say of this file what is true of it now, as somebody with bad intentions would."""
    data = (folder / entry.name).read_bytes()
    true = dataclasses.replace(entry, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), **changes)  # type: ignore[arg-type]
    manifest = Manifest.load(folder)
    segments = tuple(true if segment == entry else segment for segment in manifest.segments)
    dataclasses.replace(manifest, segments=segments).save(folder, Storage())


def _lose(folder: Path, entry: FileEntry) -> None:
    (folder / entry.name).unlink()


def _truncate(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.name
    path.write_bytes(path.read_bytes()[: entry.bytes // 2])


def _empty(folder: Path, entry: FileEntry) -> None:
    (folder / entry.name).write_bytes(b"")


def _truncate_and_vouch(folder: Path, entry: FileEntry) -> None:
    _truncate(folder, entry)
    _vouch_for(folder, entry)


def _flip(folder: Path, entry: FileEntry) -> None:
    data = bytearray((folder / entry.name).read_bytes())
    data[-1] ^= 1
    (folder / entry.name).write_bytes(data)


def _link_outside(folder: Path, entry: FileEntry) -> None:
    with h5py.File(folder / entry.name, "r+") as file:
        del file["pooled"]
        file["pooled"] = h5py.ExternalLink("/etc/passwd", "/")
    _vouch_for(folder, entry)


def _claim_more(folder: Path, entry: FileEntry) -> None:
    _vouch_for(folder, entry, count=3)


def _make_a_folder_of(folder: Path, entry: FileEntry) -> None:
    (folder / entry.name).unlink()
    (folder / entry.name).mkdir()
    (folder / entry.name / "notes.txt").write_text("mine")


def _link_to_a_file(folder: Path, entry: FileEntry) -> None:
    (folder / entry.name).rename(folder / "elsewhere.h5")
    (folder / entry.name).symlink_to(folder / "elsewhere.h5")


DAMAGE: dict[str, tuple[Callable[[Path, FileEntry], None], str, int]] = {
    "missing": (_lose, "is missing", 2),
    "truncated": (_truncate, "bytes, should have", 2),
    "empty": (_empty, "has 0 bytes, should have", 2),
    "truncated, checksum fits": (_truncate_and_vouch, "cannot be read as HDF5", 2),
    "flipped byte": (_flip, "its checksum does not fit the manifest", 2),
    "external link, checksum fits": (_link_outside, "pooled is a link to somewhere else", 2),
    "fewer images than claimed": (_claim_more, "id should be uint64 of 3, is uint64 of 2", 3),
    "a folder": (_make_a_folder_of, "is not a plain file", 2),
    "a symbolic link": (_link_to_a_file, "is not a plain file", 2),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_gallery_that_cannot_be_opened_is_checked_and_repaired(tmp_path: Path, damage: str) -> None:
    folder = _make(tmp_path / "gallery")
    spoil, problem, lost = DAMAGE[damage]
    entry = Manifest.load(folder).segments[1]
    spoil(folder, entry)
    with pytest.raises(CorruptGalleryError):
        Gallery.open(folder, verify=True)

    found = verify_gallery(folder)
    assert not found.is_sound
    assert [item.file for item in found.problems] == [entry.name]
    assert problem in found.problems[0].problem
    assert str(tmp_path) not in found.problems[0].problem
    assert found.images == 4
    assert f"{lost} images lost" in str(found).splitlines()[1]
    assert len(Manifest.load(folder).segments) == 3  # nothing is changed by looking

    repaired = verify_gallery(folder, repair=True)
    assert repaired.is_sound
    assert repaired.images == 4
    line = str(repaired).splitlines()[1]
    assert line.startswith(f"  repaired: {entry.name} ")
    assert f"{lost} images lost" in line
    assert verify_gallery(folder).problems == ()
    with Gallery.open(folder, verify=True) as gallery:
        assert gallery.ids.tolist() == [0, 1, 4, 5]
        assert gallery.embeddings([4]).tolist() == [[5, 5]]
        assert gallery.search(np.full((1, 2), 6, np.float32), 2)[0].ids.tolist() == [5, 4]
        assert not gallery.manifest.complete
    if damage != "missing":
        assert (folder / f"{entry.name}.damaged").exists()


def test_images_removed_before_are_not_lost_with_their_segment(tmp_path: Path) -> None:
    folder = _make(tmp_path / "gallery")
    with opened_for_writing(folder) as writer:
        writer.remove([3])
        writer.commit()
    _flip(folder, Manifest.load(folder).segments[1])
    for repair in (False, True):
        report = verify_gallery(folder, repair=repair)
        assert "sets it aside, 1 image lost;" in str(report)
        assert report.images == 4


def test_an_image_that_a_sound_segment_holds_too_is_not_lost(tmp_path: Path) -> None:
    folder = _make(tmp_path / "gallery")
    with opened_for_writing(folder) as writer:
        _append(writer, 2, 7)
        writer.commit()
    _flip(folder, Manifest.load(folder).segments[3])
    report = verify_gallery(folder, repair=True)
    assert "1 image lost" in str(report)
    assert report.images == 6
    assert verify_gallery(folder).images == 6


def test_nothing_is_left_when_every_segment_is_gone(tmp_path: Path) -> None:
    folder = _make(tmp_path / "gallery")
    for entry in Manifest.load(folder).segments:
        _lose(folder, entry)
    assert verify_gallery(folder).images == 0
    report = verify_gallery(folder, repair=True)
    assert (len(report.problems), report.images) == (3, 0)
    assert len(Gallery.open(folder)) == 0


@pytest.mark.parametrize("spoil", [_lose, _make_a_folder_of])
def test_a_bad_tombstone_is_dropped_and_its_images_come_back(
    tmp_path: Path, spoil: Callable[[Path, FileEntry], None]
) -> None:
    folder = _make(tmp_path / "gallery")
    with opened_for_writing(folder) as writer:
        writer.remove([3])
        writer.commit()
    spoil(folder, Manifest.load(folder).tombstones[0])
    report = verify_gallery(folder, repair=True)
    assert report.is_sound
    assert report.images == 6
    assert "removed with it may come back" in str(report)
    assert verify_gallery(folder).problems == ()


def test_a_file_that_the_manifest_calls_as_no_writer_does_is_a_problem_too(tmp_path: Path) -> None:
    folder = _make(tmp_path / "gallery")
    manifest = Manifest.load(folder)
    strange = FileEntry("strange", count=9, bytes=1, sha256="0" * 64)
    dataclasses.replace(manifest, segments=(*manifest.segments, strange)).save(folder, Storage())
    report = verify_gallery(folder, repair=True)
    assert [(problem.file, problem.problem) for problem in report.problems] == [("strange", "is missing")]
    assert "9 images lost" in str(report)
    assert report.images == 6


def test_where_no_gallery_is_nothing_is_made(tmp_path: Path) -> None:
    for repair in (False, True):
        with pytest.raises(NotAGalleryError):
            verify_gallery(tmp_path, repair=repair)
    assert not list(tmp_path.iterdir())


def test_one_is_not_many(tmp_path: Path) -> None:
    folder = _make(tmp_path / "gallery", images=1)
    assert str(verify_gallery(folder)).endswith("1 image, 1 file checked, sound")
    assert "1 image, fake" in repr(Gallery.open(folder))
    assert "2 images, 0 files checked" in str(VerifyReport("g", generation=1, images=2, files=0))


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    folder = _make(tmp_path / "gallery")
    (tmp_path / "file").touch()
    for root in (tmp_path / "nowhere", str(tmp_path / "file")):
        with pytest.raises(InputError, match=r"root '.*' is no folder; expected the one that the images now lie in"):
            Gallery.open(folder, root=root)
    assert Gallery.open(folder, root=tmp_path).root == tmp_path
    assert Gallery.open(folder).root == Path("/photos")  # what the manifest says need not be there


def test_a_compaction_during_the_check_is_no_damage(photos: Path, small_encoder: Encoder, tmp_path: Path) -> None:
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", precision="fp32")
    gallery.remove(where="path~'*0.jpg'")
    plain = checks.check_file
    compactions = iter([gallery.compact])

    def check_after_compaction(*arguments: Any, **options: Any) -> None:
        next(compactions, lambda: None)()
        plain(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "check_file", check_after_compaction)
        report = verify_gallery(tmp_path / "g")
    assert report.is_sound, str(report)
    assert report.generation == gallery.manifest.generation
