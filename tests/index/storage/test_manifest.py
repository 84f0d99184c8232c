from __future__ import annotations

from pathlib import Path

import pytest

from distcam.errors import CorruptGalleryError, GalleryError, NotAGalleryError
from distcam.files import Storage
from distcam.index import Gallery, restore_gallery, verify_gallery
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


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    _manifest().save(tmp_path, Storage())
    assert Manifest.load(tmp_path) == _manifest()


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "", "loop/x"])
def test_what_can_be_no_path_is_no_gallery(path: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-copy"
    for refused in (Gallery.open, verify_gallery, lambda folder: restore_gallery(folder, elsewhere)):
        with pytest.raises(NotAGalleryError, match="a gallery is a folder written by"):
            refused(tmp_path / path)
    assert not elsewhere.exists()


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
