"""A copy of a gallery is put into its place in one step, or nothing is changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import distcam, fails

from distcam.errors import CorruptGalleryError, DistcamError, GalleryExistsError, GalleryLockedError, InputError
from distcam.files import Storage, WriterLock
from distcam.index import Gallery, restore_gallery, verify_gallery
from distcam.index.backends import opened_for_writing
from distcam.index.storage.manifest import BackendEntry, EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.writer import GalleryWriter


def _rows(paths: list[str], value: float) -> tuple[Entries, RowVectors]:
    n = len(paths)
    pooled = np.full((n, 2), value, np.float32)
    entries = Entries(
        ids=np.zeros(n, np.uint64),
        paths=paths,
        sha256=np.zeros((n, 32), np.uint8),
        size=np.zeros(n, np.uint64),
        mtime_ns=np.zeros(n, np.int64),
        columns={"label": ["a"] * n},
    )
    return entries, RowVectors(pooled, pooled)


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    folder = tmp_path / "gallery"
    folder.mkdir()
    manifest = Manifest(Spec("l2", 2, 2, None, True), EncoderEntry("f" * 64, "fake"), root="/photos")
    writer = GalleryWriter(folder, manifest, on_disk=None)
    writer.append(*_rows(["0.jpg", "1.jpg"], 1.0))
    writer.commit(complete=True)
    Gallery.open(folder).save_caches()
    return folder


@pytest.fixture
def backup(gallery: Path, tmp_path: Path) -> Path:
    shutil.copytree(gallery, tmp_path / "backup")
    with opened_for_writing(gallery) as writer:
        writer.remove([1])
        writer.append(*_rows(["2.jpg"], 2.0))
        writer.commit()
        writer.compact()
    return tmp_path / "backup"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _paths(gallery: Gallery) -> list[str]:
    return [record.path for record in gallery.records(gallery.ids)]


def test_a_gallery_is_as_its_copy_and_its_readers_find_that_at_their_next_look(gallery: Path, backup: Path) -> None:
    reader = Gallery.open(gallery)
    found = reader.search(np.zeros((1, 2), np.float32), 5)
    restore_gallery(backup, gallery)
    assert [hits.ids.tolist() for hits in reader.search(np.zeros((1, 2), np.float32), 5)] == [found[0].ids.tolist()]
    assert reader.pooled(reader.ids).tolist() == [[1, 1], [2, 2]]  # files that are gone are read on
    assert reader.refresh()
    assert _paths(reader) == ["0.jpg", "1.jpg"]
    assert verify_gallery(gallery).problems == ()
    named = {entry.name for entry in Manifest.load(gallery).files()}
    assert {path.name for path in gallery.iterdir()} == named | {"manifest.json", ".lock"}


def test_ids_that_were_given_out_since_mean_other_images_afterwards(gallery: Path, backup: Path) -> None:
    reader = Gallery.open(gallery)
    assert _paths(reader) == ["0.jpg", "2.jpg"]
    assert reader.search(np.full((1, 2), 2, np.float32), 1)[0].distances.tolist() == [0]
    restore_gallery(backup, gallery)
    with opened_for_writing(gallery) as writer:
        writer.append(*_rows(["another.jpg"], 9.0))  # has the id that 2.jpg had
        writer.commit()
    reader.refresh()
    hits = reader.search(np.full((1, 2), 9, np.float32), 1)[0]
    assert [record.path for record in reader.records(hits.ids)] == ["another.jpg"]
    assert hits.distances.tolist() == [0]


@pytest.mark.parametrize("damage", ["manifest", "segment", "everything", "nothing is there", "a file under its name"])
def test_a_gallery_in_any_state_is_restored(gallery: Path, backup: Path, damage: str) -> None:
    if damage == "manifest":
        (gallery / "manifest.json").write_bytes(b"damaged")
    elif damage == "segment":
        next(gallery.glob("segment*")).write_bytes(b"damaged")
    elif damage == "everything":
        for path in gallery.iterdir():
            path.unlink()
    elif damage == "nothing is there":
        shutil.rmtree(gallery)
    else:  # what a copy that was broken off leaves
        shutil.copyfile(backup / "manifest.json", gallery / "manifest.json")
        (gallery / Manifest.load(backup).segments[0].name).write_bytes(b"half")
    restore_gallery(backup, gallery)
    assert _paths(Gallery.open(gallery, verify=True)) == ["0.jpg", "1.jpg"]
    assert verify_gallery(gallery).problems == ()


def test_a_name_that_stands_for_two_contents_keeps_both_until_the_step(gallery: Path, backup: Path) -> None:
    old, copied = Manifest.load(gallery), Manifest.load(backup)
    twin = dataclasses.replace(old.segments[0], name=copied.segments[0].name)
    (gallery / old.segments[0].name).rename(gallery / twin.name)
    dataclasses.replace(old, segments=(twin,), prototype_cache=None).save(gallery, Storage())

    class Full(Storage):
        def write(self, target: Path, data: bytes) -> None:
            raise OSError(28, "No space left on device", str(target))

    with pytest.raises(DistcamError, match="no space left"):
        restore_gallery(backup, gallery, storage=Full())
    assert _paths(Gallery.open(gallery, verify=True)) == ["0.jpg", "2.jpg"]
    restore_gallery(backup, gallery)
    assert _paths(Gallery.open(gallery, verify=True)) == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (lambda backup: _flip(next(backup.glob("segment*"))), CorruptGalleryError, "checksum.*nothing was changed"),
        (lambda backup: next(backup.glob("segment*")).unlink(), CorruptGalleryError, "is missing; nothing was changed"),
        (lambda backup: (backup / "manifest.json").unlink(), DistcamError, "holds no manifest"),
        (lambda backup: _flip(backup / "manifest.json"), CorruptGalleryError, "is damaged"),
        (lambda backup: _name(backup, "notes.txt"), CorruptGalleryError, "'notes.txt' that no gallery has"),
        (lambda backup: _in_milvus(backup), InputError, "rows in Milvus"),
    ],
    ids=["segment", "missing", "no manifest", "manifest", "strange name", "Milvus"],
)
def test_a_copy_that_is_not_whole_changes_nothing(gallery: Path, backup: Path, spoil, kind, message: str) -> None:
    spoil(backup)
    before = _contents(gallery)
    with pytest.raises(kind, match=message):
        restore_gallery(backup, gallery)
    assert _contents(gallery) == before


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _name(folder: Path, name: str) -> None:
    manifest = Manifest.load(folder)
    (folder / name).write_bytes((folder / manifest.segments[0].name).read_bytes())
    segment = dataclasses.replace(manifest.segments[0], name=name)
    dataclasses.replace(manifest, segments=(segment,)).save(folder, Storage())


def _in_milvus(folder: Path) -> None:
    manifest = Manifest.load(folder)
    entry = BackendEntry("milvus://127.0.0.1:19530/c", "o")
    dataclasses.replace(manifest, segments=(), backend=entry).save(folder, Storage())


def test_a_damaged_cache_of_a_copy_is_left_out(gallery: Path, backup: Path) -> None:
    _flip(next(backup.glob("prototypes*")))
    restore_gallery(backup, gallery)
    assert Manifest.load(gallery).prototype_cache is None
    assert verify_gallery(gallery).problems == ()


def test_other_folders_and_galleries_that_somebody_writes_to_are_left_alone(
    gallery: Path, backup: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"a")
    with pytest.raises(GalleryExistsError, match=r"is no gallery and holds other files, such as a\.jpg"):
        restore_gallery(backup, tmp_path / "photos")
    with pytest.raises(GalleryExistsError, match="is a file"):
        restore_gallery(backup, tmp_path / "photos" / "a.jpg")
    with pytest.raises(InputError, match="from itself"):
        restore_gallery(gallery, gallery)
    before = sorted(gallery.iterdir())
    for source, folder in [(gallery, gallery / "sub" / "copy"), (gallery, gallery.parent), (gallery, gallery / "..")]:
        with pytest.raises(InputError, match=r"lies in .*a folder outside of it"):
            restore_gallery(source, folder)
    (tmp_path / "link").symlink_to(gallery)
    with pytest.raises(InputError, match="from itself"):
        restore_gallery(gallery, tmp_path / "link")
    with pytest.raises(InputError, match="lies in"):
        restore_gallery(gallery, tmp_path / "link" / "sub")
    assert sorted(gallery.iterdir()) == before
    with WriterLock(gallery), pytest.raises(GalleryLockedError):
        restore_gallery(backup, gallery)


def test_the_command_restores_and_every_message_of_damage_names_it(
    gallery: Path, backup: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _flip(next(gallery.glob("segment*")))
    with pytest.raises(CorruptGalleryError, match="`distcam index restore COPY GALLERY`"):
        Gallery.open(gallery)
    assert distcam("index", "restore", backup, gallery) == f"2 images in {gallery}, as in {backup}\n"
    facts = json.loads(distcam("index", "restore", backup, gallery.parent / "second", "--json"))
    assert facts == {"gallery": str(gallery.parent / "second"), "from": str(backup), "images": 2}
    assert "name the copy first" in fails(monkeypatch, capsys, "index", "restore", gallery, gallery)


def test_a_source_that_is_merged_while_it_is_copied_is_copied_as_it_is_then(gallery: Path, tmp_path: Path) -> None:
    class Merging(Storage):
        is_merged = False

        def replacing(self, target: Path):
            if not self.is_merged:
                self.is_merged = True
                with opened_for_writing(gallery) as writer:
                    writer.append(*_rows(["9.jpg"], 9.0))
                    writer.commit()
                    writer.compact()
            return super().replacing(target)

    with opened_for_writing(gallery) as writer:
        writer.append(*_rows(["8.jpg"], 8.0))  # a second segment, which is merged away before it is copied
        writer.commit()
    restore_gallery(gallery, tmp_path / "copy", storage=Merging())
    assert len(Gallery.open(tmp_path / "copy", verify=True)) == 4
    assert verify_gallery(tmp_path / "copy").problems == ()
