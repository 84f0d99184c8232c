from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from distcam.errors import CorruptGalleryError, GalleryError, GalleryLockedError, NotAGalleryError
from distcam.index.storage.durable import Storage, WriterLock, file_sha256
from distcam.index.storage.manifest import MANIFEST_NAME, CacheEntry, EncoderEntry, FileEntry, Manifest, Spec


def _entry(name: str, count: int = 1) -> FileEntry:
    return FileEntry(name, count, 10, "ab" * 32)


def _manifest() -> Manifest:
    return Manifest(
        spec=Spec("cosine", 8, 16, (7, 7)),
        encoder=EncoderEntry(
            "f" * 64, "fake/ffffffff", {"layer": "4", "size": [1, 2.5, None]}, _entry("encoder-1.bin")
        ),
        root="/photographs/ä",
        generation=3,
        next_id=12,
        segments=(_entry("segment-1.h5", 5), _entry("segment-2.h5", 7)),
        tombstones=(_entry("tombstone-1.u64", 2),),
        skipped=_entry("skipped-1.jsonl"),
        prototype_cache=CacheEntry(_entry("prototypes-1.h5"), 3),
        index_cache=CacheEntry(_entry("index-1.faiss"), 2, "cd" * 32),
    )


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    Storage().write(target, b"old")
    with suppress(KeyboardInterrupt), Storage().replacing(target) as aside:
        aside.write_bytes(b"half of the ne")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    Storage().write(target, b"new")
    assert target.read_bytes() == b"new"


def test_what_the_file_system_refuses_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Storage, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "sync", full)
    with pytest.raises(GalleryError, match=r"file: cannot be written \(No space left on device\); is the disk full"):
        Storage().write(tmp_path / "file", b"much")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(GalleryError, match="cannot be made"):
        Storage().make_folder(tmp_path / "file" / "gallery")


def test_missing_parents_are_made_and_their_names_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(Storage, "sync_folder", lambda self, folder: synced.append(folder))
    Storage().make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    Storage().make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    Storage().remove(tmp_path / "nothing")


def test_a_checksum_is_sha256_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "other")


def test_the_lock_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with (
        WriterLock(tmp_path),
        pytest.raises(GalleryLockedError, match=f"process {os.getpid()} is writing"),
        WriterLock(tmp_path),
    ):
        pass
    with WriterLock(tmp_path):
        pass


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from distcam.index.storage.durable import WriterLock\n"
        "with WriterLock(Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    with WriterLock(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_the_lock_file_is_no_way_to_write_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(GalleryError, match="cannot be changed"), WriterLock(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    _manifest().save(tmp_path, Storage())
    assert Manifest.load(tmp_path) == _manifest()


def test_a_folder_without_manifest_is_no_gallery(tmp_path: Path) -> None:
    with pytest.raises(NotAGalleryError, match=r"holds no manifest\.json; a gallery is a folder"):
        Manifest.load(tmp_path)
    with pytest.raises(NotAGalleryError, match="not found"):
        Manifest.load(tmp_path / "nothing")
    (tmp_path / MANIFEST_NAME).write_text('{"short_name": "a web application", "icons": []}')
    with pytest.raises(NotAGalleryError, match="belongs to something else"):
        Manifest.load(tmp_path)


def test_every_changed_byte_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    _manifest().save(tmp_path, Storage())
    path = tmp_path / MANIFEST_NAME
    sound = path.read_bytes()
    for position in range(0, len(sound), 7):
        if sound[position : position + 1].isspace():
            continue  # layout is no content
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        with pytest.raises(GalleryError):
            Manifest.load(tmp_path)
    path.write_bytes(sound[:-40])
    with pytest.raises(CorruptGalleryError, match=r"manifest\.json: is damaged .*; restore it from a copy"):
        Manifest.load(tmp_path)


def _forge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """A manifest with a wrong entry and a fitting checksum, as an attacker would write it."""
    monkeypatch.setattr("distcam.index.storage.manifest._checksum", lambda content: "same")
    _manifest().save(tmp_path, Storage())
    text = (tmp_path / MANIFEST_NAME).read_text()
    assert old in text
    (tmp_path / MANIFEST_NAME).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"segment-1.h5"', '"../segment-1.h5"', "is not a plain name"),
        ('"segment-1.h5"', '"/etc/passwd"', "is not a plain name"),
        ('"segment-1.h5"', '"a/b.h5"', "is not a plain name"),
        ('"segment-1.h5"', '"..\\\\b.h5"', "is not a plain name"),
        ('"segment-1.h5"', '".lock"', "is not a plain name"),
        ('"segment-1.h5"', '"manifest.json"', "is not a plain name"),
        ('"segment-1.h5"', '"segment-2.h5"', "two entries name the same file"),
        ('"segment-1.h5"', "7", "should be str, is int"),
        ('"generation": 3,\n "next', '"generation": true,\n "next', "should be int, is bool"),
        ('"next_id": 12', '"next_id": -1', "out of range"),
        ('"next_id": 12', '"next_id": 1e5', "should be int, is float"),
        ('"metric": "cosine"', '"metric": "manhattan"', "should be one of cosine, l2, l1, dot"),
        ('"pooled_dim": 16', '"pooled_dim": 99999999', "outside 1"),
        ('"embedding_is_pooled": false', '"embedding_is_pooled": true', "their lengths differ"),
        ('"count": 5', '"count": -5', "negative size"),
        ("abababab", "ABABABAB", "is not a SHA-256"),
        ('"root":', '"boot":', "does not have the expected fields"),
        ('"segments": [', '"segments": {}, "x": [', "should be a list"),
    ],
)
def test_a_forged_manifest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    _forge(tmp_path, monkeypatch, old, new)
    with pytest.raises(CorruptGalleryError, match=message):
        Manifest.load(tmp_path)


def test_a_newer_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forge(tmp_path, monkeypatch, '"version": 1', '"version": 2')
    with pytest.raises(GalleryError, match="format version 2, this distcam reads version 1; upgrade"):
        Manifest.load(tmp_path)


def test_a_manifest_of_nested_lists_is_damaged_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text("[" * 100_000)
    with pytest.raises(CorruptGalleryError):
        Manifest.load(tmp_path)
