"""A gallery that follows a folder: what is encoded, what is carried over, what leaves, and what must not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import Colours
from commands import distcam, fails
from PIL import Image

from distcam import DistcamWarning
from distcam.encoders import Encoder
from distcam.errors import FingerprintMismatchError, GalleryLockedError, ImageError, InputError
from distcam.images import Transform
from distcam.index import Gallery, SyncReport, verify_gallery, watch_folder
from distcam.index.backends import opened_for_writing
from distcam.index.building import ingest, opened

pytestmark = pytest.mark.usefixtures("own_state")


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(Colours(), transform=Transform(16), architecture="colours")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all images that a sync encodes."""
    paths: list[str] = []
    read = ingest.read_offer
    monkeypatch.setattr(opened, "read_offer", lambda offer: paths.append(offer.path) or read(offer))
    return paths


def _paint(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight images of two classes."""
    folder = tmp_path / "photos"
    for number in range(8):
        _paint(folder / "ab"[number % 2] / f"{number:02}.png", number)
    return folder


@pytest.fixture
def gallery(tmp_path: Path, photos: Path, encoder: Encoder) -> Gallery:
    return Gallery.build(photos, encoder, out=tmp_path / "g", store_maps=True)


def _held(gallery: Gallery) -> dict[str, str | None]:
    return {record.path: record.label for record in gallery.records(gallery.ids)}


def _id(gallery: Gallery, path: str) -> int:
    return int(gallery.ids_where(f"path={path}")[0])


def _is_right(gallery: Gallery, encoder: Encoder, tmp_path: Path) -> None:
    """The gallery is sound and holds what one built anew would hold."""
    assert gallery.verify().problems == ()
    fresh = Gallery.build(gallery.root, encoder, out=tmp_path / f"fresh{time.monotonic_ns()}", store_maps=True)
    assert sorted(_held(gallery)) == sorted(_held(fresh))
    for path in _held(fresh):
        mine, theirs = _id(gallery, path), _id(fresh, path)
        np.testing.assert_array_equal(gallery.pooled([mine]), fresh.pooled([theirs]))
        np.testing.assert_array_equal(gallery.maps([mine]), fresh.maps([theirs]))
    assert gallery.prototypes.total == len(gallery)


# --- What a sync does -------------------------------------------------------------------------------------------------


def test_every_kind_of_change_is_told_apart_by_contents(
    tmp_path: Path, photos: Path, gallery: Gallery, encoder: Encoder, encoded: list[str]
) -> None:
    _paint(photos / "c" / "new.png", 50)  # added
    _paint(photos / "a" / "00.png", 51)  # changed
    (photos / "a" / "02.png").rename(photos / "b" / "moved.png")  # moved to another folder and class
    shutil.copy(photos / "a" / "04.png", photos / "c" / "copy.png")  # duplicated
    (photos / "b" / "01.png").unlink()  # removed
    os.utime(photos / "b" / "03.png", (1, 1))  # another time, the same contents
    report = gallery.sync(photos, encoder)
    assert {(change.kind, change.path, change.origin) for change in report.changes} == {
        ("added", "c/new.png", None),
        ("changed", "a/00.png", None),
        ("moved", "b/moved.png", "a/02.png"),
        ("duplicated", "c/copy.png", "a/04.png"),
        ("removed", "b/01.png", None),
    }
    assert (report.unchanged, report.skipped, report.images) == (5, (), 9)
    assert sorted(encoded) == ["a/00.png", "c/new.png"]
    assert _held(gallery) == {
        "a/00.png": "a", "a/04.png": "a", "a/06.png": "a", "b/moved.png": "b", "b/03.png": "b", "b/05.png": "b",
        "b/07.png": "b", "c/new.png": "c", "c/copy.png": "c",
    }  # fmt: skip
    _is_right(gallery, encoder, tmp_path)
    manifest = gallery.manifest
    assert gallery.sync(photos, encoder).changes == ()
    assert gallery.manifest == manifest  # nothing to do, nothing written
    assert str(report).startswith("1 added, 1 changed, 1 moved, 1 duplicated, 1 removed, 5 unchanged; 9 images")


def test_a_moved_image_keeps_its_columns_and_a_label_that_did_not_come_from_its_folder(
    tmp_path: Path, photos: Path, encoder: Encoder, encoded: list[str]
) -> None:
    table = tmp_path / "photos" / "table.csv"
    table.write_text("path,label,camera\na/00.png,zebra,7\na/02.png,a,8\n")
    gallery = Gallery.build(table, encoder, out=tmp_path / "g")
    (photos / "a").rename(photos / "elsewhere")
    report = gallery.sync(photos, encoder)
    assert report.counts["moved"] == 2
    assert {(r.path, r.label, *r.columns.items()) for r in gallery.records(gallery.ids) if r.columns} == {
        ("elsewhere/00.png", "zebra", ("camera", "7")),
        ("elsewhere/02.png", "elsewhere", ("camera", "8")),
    }
    assert not {"elsewhere/00.png", "elsewhere/02.png"} & set(encoded)
    _paint(photos / "elsewhere" / "00.png", 60)
    gallery.sync(photos, encoder)
    (record,) = gallery.records(gallery.ids_where("camera=7"))
    assert (record.path, record.label) == ("elsewhere/00.png", "zebra")  # encoded again, but still from camera 7


def test_labels_are_changed_only_when_they_are_given(
    tmp_path: Path, photos: Path, gallery: Gallery, encoder: Encoder, encoded: list[str]
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nphotos/a/00.png,zebra\nphotos/a/02.png,a\n")
    old = gallery.pooled([_id(gallery, "a/00.png")])
    with pytest.warns(DistcamWarning, match="2 of 8 images have a label"):
        report = gallery.sync(photos, encoder, labels=table)
    assert [(change.kind, change.path) for change in report.changes] == [("relabelled", "a/00.png")]
    assert _held(gallery)["a/00.png"] == "zebra"
    np.testing.assert_array_equal(gallery.pooled([_id(gallery, "a/00.png")]), old)
    assert gallery.sync(photos, encoder).changes == ()
    assert gallery.sync(photos, encoder, labels="folder").counts["relabelled"] == 1
    assert not encoded
    bare = Gallery.build(photos, encoder, out=tmp_path / "bare", labels="none")
    _paint(photos / "a" / "new.png", 70)
    bare.sync(photos, encoder)
    assert set(_held(bare).values()) == {None}  # a gallery without labels gets none


def test_images_of_other_folders_are_left_alone_and_a_part_can_be_synced(
    tmp_path: Path, photos: Path, gallery: Gallery, encoder: Encoder
) -> None:
    other = _paint(tmp_path / "photos2" / "x.png", 40)  # a name that begins like the folder's
    gallery.add([other], encoder)
    other.unlink()
    (photos / "b" / "01.png").unlink()
    _paint(photos / "a" / "new.png", 41)
    report = gallery.sync(photos / "a", encoder)
    assert [(change.kind, change.path) for change in report.changes] == [("added", "a/new.png")]
    assert _held(gallery)["a/new.png"] == "a"  # as if all had been synced
    assert {"b/01.png", other.as_posix()} < set(_held(gallery))
    gallery.sync(tmp_path / "photos2", encoder, force=True)
    assert other.as_posix() not in _held(gallery)
    gallery.sync(tmp_path, encoder)  # a folder above the root
    assert "b/01.png" not in _held(gallery)
    assert len(gallery) == 8


def test_swapped_files_are_carried_over_and_doubles_are_encoded_once(
    tmp_path: Path, photos: Path, gallery: Gallery, encoder: Encoder, encoded: list[str]
) -> None:
    one, two = photos / "a" / "00.png", photos / "b" / "01.png"
    one.rename(photos / "aside")
    two.rename(one)
    (photos / "aside").rename(two)
    data = _paint(photos / "c" / "x.png", 80).read_bytes()
    for name in ("y", "z"):
        (photos / "c" / f"{name}.png").write_bytes(data)
    report = gallery.sync(photos, encoder, checksum=True)
    assert (report.counts["changed"], report.counts["added"], report.counts["duplicated"]) == (2, 1, 2)
    assert encoded == ["c/x.png"]
    _is_right(gallery, encoder, tmp_path)


def test_a_change_that_size_and_time_hide_is_found_by_checksums(
    tmp_path: Path, photos: Path, gallery: Gallery, encoder: Encoder
) -> None:
    file = photos / "a" / "00.png"
    status, size = file.stat(), file.stat().st_size
    _paint(file, 90)
    file.write_bytes(file.read_bytes().ljust(size, b"\0")[:size] if file.stat().st_size <= size else b"")
    if not file.stat().st_size:
        pytest.skip("the new image does not fit into the old one's size")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert gallery.sync(photos, encoder).changes == ()
    assert gallery.sync(photos, encoder, checksum=True).counts["changed"] == 1
    _is_right(gallery, encoder, tmp_path)


def test_broken_files_are_listed_and_do_not_push_out_what_was_there(
    tmp_path: Path, photos: Path, gallery: Gallery, encoder: Encoder, encoded: list[str]
) -> None:
    old = gallery.pooled([_id(gallery, "a/00.png")])
    (photos / "a" / "00.png").write_bytes(b"half a picture")
    (photos / "a" / "new.png").write_bytes(b"<html>")
    (photos / "a" / "new2.png").write_bytes(b"<html>")
    (photos / "b" / "link.png").symlink_to(photos / "nowhere")
    dry = gallery.sync(photos, encoder, dry_run=True)
    report = gallery.sync(photos, encoder)
    paths = ["a/00.png", "a/new.png", "a/new2.png", "b/link.png"]
    assert sorted(item.path for item in report.skipped) == sorted(item.path for item in dry.skipped) == paths
    assert {item.path: item.reason for item in dry.skipped} == {item.path: item.reason for item in report.skipped}
    assert report.changes == dry.changes == ()
    assert sorted(item.path for item in gallery.skipped) == paths
    np.testing.assert_array_equal(gallery.pooled([_id(gallery, "a/00.png")]), old)
    manifest = gallery.manifest
    encoded.clear()
    assert len(gallery.sync(photos, encoder).skipped) == 4
    assert gallery.manifest == manifest
    assert encoded == []  # known to be broken: decoded once more, without an encoder
    with pytest.raises(ImageError, match=r"link\.png: a broken link"):
        gallery.sync(photos, encoder, strict=True)
    for name in ("00", "new", "new2"):
        _paint(photos / "a" / f"{name}.png", 30)
    (photos / "b" / "link.png").unlink()
    assert gallery.sync(photos, encoder, strict=True).skipped == ()
    assert gallery.skipped == ()
    _is_right(gallery, encoder, tmp_path)


def test_a_folder_that_was_moved_as_a_whole_is_synced_where_it_is_now(
    tmp_path: Path, photos: Path, gallery: Gallery, encoded: list[str]
) -> None:
    photos.rename(tmp_path / "elsewhere")
    moved = Gallery.open(tmp_path / "g", root=tmp_path / "elsewhere")
    assert moved.sync(tmp_path / "elsewhere").changes == ()
    assert moved.sync(tmp_path / "elsewhere").unchanged == 8
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")  # another name of the same folder
    assert moved.sync(tmp_path / "link").unchanged == 8
    assert not encoded


def test_a_gallery_may_lie_in_the_folder_it_follows(photos: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(photos, encoder, out=photos / "g")
    watch = watch_folder(gallery, photos, encoder, settle=0.0)
    next(watch)
    _paint(photos / "a" / "new.png", 50)
    report = next(watch)
    assert isinstance(report, SyncReport)
    assert [(change.kind, change.path) for change in report.changes] == [("added", "a/new.png")]
    watch.close()


# --- What a sync refuses ----------------------------------------------------------------------------------------------


def test_an_empty_unmounted_or_half_empty_folder_does_not_empty_the_gallery(
    tmp_path: Path, photos: Path, gallery: Gallery, encoder: Encoder
) -> None:
    for number in range(0, 8, 2):
        (photos / "a" / f"{number:02}.png").unlink()
    (photos / "b" / "01.png").unlink()
    with pytest.raises(
        InputError, match=r"5 of 8 images under .* are gone, more than 50%; nothing was changed.*--force"
    ):
        gallery.sync(photos, encoder)
    assert len(gallery) == 8
    assert gallery.sync(photos, encoder, keep_missing=True).missing == (
        "a/00.png", "a/02.png", "a/04.png", "a/06.png", "b/01.png",
    )  # fmt: skip
    dry = gallery.sync(photos, encoder, dry_run=True)
    assert dry.refusal is not None
    assert dry.images == 3
    assert len(gallery) == 8
    assert gallery.sync(photos, encoder, max_vanishing=0.7).counts["removed"] == 5
    shutil.rmtree(photos / "b")
    with pytest.raises(InputError, match="3 of 3 images"):
        gallery.sync(photos, encoder)
    shutil.rmtree(photos)
    with pytest.raises(InputError, match="is no folder; is its disk mounted"):
        gallery.sync(photos, encoder, force=True)
    photos.mkdir()
    assert gallery.sync(photos, encoder, force=True).counts["removed"] == 3
    assert len(gallery) == 0
    assert gallery.verify().is_sound
    _paint(photos / "a" / "new.png", 1)
    assert gallery.sync(photos, encoder).counts["added"] == 1


@pytest.mark.parametrize("function", ["stat", "scandir"])
def test_what_cannot_be_looked_at_is_not_taken_for_gone(
    photos: Path, gallery: Gallery, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    look = getattr(os, function)

    def failing(path: Any, **options: Any) -> Any:
        if (Path(path).parent if function == "stat" else Path(path)) == photos / "a":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(os, function, failing)  # files that cannot be looked at, and a folder that cannot be read
    report = gallery.sync(photos, encoder, force=True)
    reasons = ["permission denied"] * 4 if function == "stat" else ["folder cannot be read: Permission denied"]
    assert [item.reason for item in report.skipped] == reasons
    assert report.changes == ()
    assert len(gallery) == 8


def test_another_encoder_another_writer_and_no_encoder_are_refused(
    tmp_path: Path, photos: Path, gallery: Gallery, encoder: Encoder
) -> None:
    with pytest.raises(FingerprintMismatchError):
        gallery.sync(photos, Encoder(Colours(), transform=Transform(24)))
    gallery.sync(photos)  # nothing new: no encoder is asked for
    _paint(photos / "a" / "new.png", 200)
    with pytest.raises(InputError, match="keeps no encoder for new images; pass --encoder CHECKPOINT"):
        gallery.sync(photos)
    with opened_for_writing(tmp_path / "g"), pytest.raises(GalleryLockedError):
        gallery.sync(photos, encoder)
    with pytest.raises(InputError, match="expected a share from 0 to 1"):
        gallery.sync(photos, encoder, max_vanishing=50)


def test_a_sync_without_new_images_imports_no_torch(tmp_path: Path, photos: Path, gallery: Gallery) -> None:
    (photos / "a" / "00.png").rename(photos / "a" / "zero.png")
    (photos / "b" / "01.png").unlink()
    code = (
        "import sys; from distcam.index import Gallery\n"
        "print(Gallery.open(sys.argv[1]).sync(sys.argv[2])); assert 'torch' not in sys.modules"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "g"), str(photos)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "1 moved, 1 removed, 6 unchanged; 7 images\n"


# --- Interruptions ----------------------------------------------------------------------------------------------------


def test_an_interrupted_sync_keeps_what_is_encoded_and_the_next_one_completes_it(
    tmp_path: Path, photos: Path, gallery: Gallery, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        _paint(photos / "n" / f"{number}.png", 100 + number)
    (photos / "a" / "00.png").rename(photos / "a" / "zero.png")
    (photos / "b" / "01.png").unlink()
    read = ingest.read_offer

    def interrupted(offer: ingest.Offer) -> bytes:
        if offer.path == "n/4.png":
            raise KeyboardInterrupt
        return read(offer)

    monkeypatch.setattr(opened, "read_offer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gallery.sync(photos, encoder, batch_size=2, workers=0)
    assert Gallery.open(tmp_path / "g", verify=True).verify().is_sound
    assert {"n/0.png", "n/3.png", "a/zero.png", "b/01.png"} < set(_held(gallery))
    monkeypatch.setattr(opened, "read_offer", read)
    report = gallery.sync(photos, encoder)
    assert (report.counts["added"], report.counts["moved"], report.counts["removed"]) == (2, 0, 1)
    _is_right(gallery, encoder, tmp_path)


# --- Watching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [None, 0.05])
def test_a_watch_follows_changes_and_waits_for_files_that_are_being_written(
    photos: Path, gallery: Gallery, encoder: Encoder, every: float | None
) -> None:
    if every is None:
        pytest.importorskip("watchfiles", reason="needs pip install 'distcam[sync]'")
    watch = watch_folder(gallery, photos, encoder, every=every, settle=0.3)
    first = next(watch)
    assert isinstance(first, SyncReport)
    assert first.changes == ()
    _paint(photos / "c" / "new.png", 50)
    written = time.time()
    report = next(watch)
    assert isinstance(report, SyncReport)
    assert report.counts["added"] == 1
    assert time.time() - written >= 0.3
    (photos / "c" / "new.png").unlink()
    report = next(watch)
    assert isinstance(report, SyncReport)
    assert [(change.kind, change.path) for change in report.changes] == [("removed", "c/new.png")]
    watch.close()


def test_a_watch_says_once_that_a_folder_is_gone_and_goes_on_when_it_is_back(
    tmp_path: Path, photos: Path, gallery: Gallery, encoder: Encoder
) -> None:
    watch = watch_folder(gallery, photos, encoder, every=0.02, settle=0.0)
    next(watch)
    photos.rename(tmp_path / "unmounted")
    outcome = next(watch)
    assert isinstance(outcome, InputError)
    assert "is its disk mounted" in str(outcome)
    (tmp_path / "unmounted").rename(photos)
    _paint(photos / "a" / "new.png", 3)
    outcome = next(watch)
    assert isinstance(outcome, SyncReport)
    assert len(gallery) == 9
    with pytest.raises(InputError, match="is no folder"):
        next(watch_folder(gallery, tmp_path / "nothing", encoder))


# --- Command line -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conv4_gallery(tmp_path_factory: pytest.TempPathFactory, photos_of_scenes: Path) -> Path:
    out = tmp_path_factory.mktemp("cli") / "g"
    Gallery.build(
        photos_of_scenes, Encoder.load("conv4", weights="random", transform=Transform(32, fit="squash")), out=out
    )
    return out


@pytest.fixture(scope="module")
def photos_of_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        _paint(folder / "ab"[number % 2] / f"{number}.png", number)
    return folder


def test_the_command_shows_plans_and_changes(
    conv4_gallery: Path, photos_of_scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    _paint(photos_of_scenes / "a" / "new.png", 9)
    (photos_of_scenes / "a" / "0.png").rename(photos_of_scenes / "a" / "zero.png")
    text = distcam("index", "sync", conv4_gallery, photos_of_scenes, "--dry-run")
    assert "moved      a/zero.png  (from a/0.png)" in text
    assert "would be: 1 added, 1 moved, 5 unchanged; 7 images" in text
    value = json.loads(distcam("index", "sync", conv4_gallery, photos_of_scenes, "--json"))
    assert (value["counts"]["added"], value["counts"]["moved"], value["images"]) == (1, 1, 7)
    assert "0 unchanged" not in distcam("index", "sync", conv4_gallery, photos_of_scenes)
    error = fails(monkeypatch, capsys, "index", "sync", tmp_path / "nothing", photos_of_scenes)
    assert "a gallery is a folder written by `distcam index build`" in error
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "0 unchanged; 7 images" in distcam("index", "sync", conv4_gallery, empty)  # none of its images lie there
    assert "--watch does things" in fails(
        monkeypatch, capsys, "index", "sync", conv4_gallery, photos_of_scenes, "--watch", "--dry-run"
    )


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_watching_command_ends_cleanly(conv4_gallery: Path, photos_of_scenes: Path, ended_by: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "distcam", "index", "sync", str(conv4_gallery), str(photos_of_scenes), "--watch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit a deaf one
    )  # fmt: skip
    assert child.stdout is not None
    assert "unchanged" in child.stdout.readline()
    child.send_signal(ended_by)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 0, errors
    assert errors == "stopped watching; everything encoded so far is kept\n"
    assert verify_gallery(conv4_gallery).is_sound


@pytest.fixture
def boxed(tmp_path: Path, encoder: Encoder) -> Gallery:
    """Three boxes of two images, as a file of boxes says."""
    for number, name in enumerate(("one", "two")):
        _paint(tmp_path / "photos" / f"{name}.png", number)
    table = tmp_path / "boxes.csv"
    table.write_text("path,label,x1,y1,x2,y2\none.png,a,0,0,10,10\none.png,b,10,0,24,20\ntwo.png,a,2,2,20,18\n")
    return Gallery.build(tmp_path / "photos", encoder, out=tmp_path / "g", boxes=table)


def test_boxes_follow_their_files(boxed: Gallery, encoder: Encoder, encoded: list[str]) -> None:
    photos = boxed.root
    assert boxed.sync(photos, encoder).unchanged == 3
    before = {record.path: boxed.embeddings([record.id]).tolist() for record in boxed.records(boxed.ids)}
    (photos / "one.png").rename(photos / "moved.png")
    shutil.copy(photos / "two.png", photos / "copy.png")
    _paint(photos / "new.png", 9)
    report = boxed.sync(photos, encoder)
    assert {(change.kind, change.path) for change in report.changes} == {
        ("moved", "moved.png#xywh=0,0,10,10"),
        ("moved", "moved.png#xywh=10,0,14,20"),
        ("duplicated", "copy.png#xywh=2,2,18,16"),
    }
    assert encoded == []
    assert [item.path for item in report.skipped] == ["new.png"]
    assert "sync with --boxes" in report.skipped[0].reason
    after = {record.path: boxed.embeddings([record.id]).tolist() for record in boxed.records(boxed.ids)}
    assert after["moved.png#xywh=10,0,14,20"] == before["one.png#xywh=10,0,14,20"]
    _paint(photos / "moved.png", 5)
    report = boxed.sync(photos, encoder)
    assert [change.kind for change in report.changes] == ["changed", "changed"]
    assert len(encoded) == 1  # read once for both boxes
    (photos / "moved.png").unlink()
    assert boxed.sync(photos, encoder).counts["removed"] == 2
    assert len(boxed) == 2


def test_a_file_of_boxes_says_which_there_should_be(boxed: Gallery, encoder: Encoder) -> None:
    table = boxed.root.parent / "boxes.csv"
    table.write_text("path,label,x1,y1,x2,y2\none.png,a,0,0,10,10\none.png,c,0,4,24,20\ntwo.png,a,2,2,20,18\n")
    report = boxed.sync(boxed.root, encoder, boxes=table)
    assert {(change.kind, change.path) for change in report.changes} == {
        ("added", "one.png#xywh=0,4,24,16"),
        ("removed", "one.png#xywh=10,0,14,20"),
    }
    assert report.unchanged == 2
    assert {record.label for record in boxed.records(boxed.ids)} == {"a", "c"}
    dry = boxed.sync(boxed.root, encoder, boxes=table, dry_run=True)
    assert dry.changes == ()


def test_a_changed_image_that_its_boxes_do_not_fit_any_more_is_listed(boxed: Gallery, encoder: Encoder) -> None:
    Image.new("RGB", (12, 12)).save(boxed.root / "one.png")
    report = boxed.sync(boxed.root, encoder)
    assert [item.path for item in report.skipped] == ["one.png#xywh=10,0,14,20"]
    assert "less than 8x8 pixels of the image, which is 12x12" in report.skipped[0].reason
