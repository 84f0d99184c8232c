"""What follows a commit never turns what is done into an error: caches, merges, an index that needs more images."""

from __future__ import annotations

import errno
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import distcam

from distcam import DistcamWarning
from distcam.cli import main
from distcam.errors import CorruptGalleryError, GalleryError
from distcam.files import Storage
from distcam.index import Gallery, verify_gallery
from distcam.index.storage import cache as caches
from distcam.index.storage.writer import CommitLimits, GalleryWriter


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def gallery(small_gallery, tmp_path: Path) -> Gallery:
    shutil.copytree(small_gallery.folder, tmp_path / "g")
    return Gallery.open(tmp_path / "g")


# --- An index that there are too few images for -----------------------------------------------------------------------


def _exact(gallery: Gallery) -> bool:
    """Whether every image finds itself."""
    queries = gallery.embeddings(gallery.ids)
    return all(hits.distances[0] < 1e-6 for hits in gallery.search(queries, 1)) if len(queries) else True


CHANGES: dict[str, Callable[[Gallery, Path, object], object]] = {
    "remove": lambda gallery, more, encoder: gallery.remove(where="path~'*/0001.jpg'"),
    "add": lambda gallery, more, encoder: gallery.add(more, encoder, labels="none"),
    "compact": lambda gallery, more, encoder: gallery.compact(),
    "sync": lambda gallery, more, encoder: gallery.sync(more, encoder),
    "calibrate": lambda gallery, more, encoder: gallery.save_caches(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("left", [0, 3])
def test_a_tuned_gallery_that_has_shrunk_is_searched_exactly_and_can_be_changed(
    gallery: Gallery, more: Path, small_encoder, left: int, change: str
) -> None:
    gallery.tune(candidates=["IVF8,Flat"], recall=0.1, queries=5)
    paths = [record.path for record in gallery.records(gallery.ids)]
    with pytest.warns(DistcamWarning, match="searched exactly for now.*an inverted file of 8 lists needs.*index tune"):
        assert gallery.remove(paths=paths[left:]) == len(paths) - left
    assert len(gallery.search(np.ones((1, gallery.spec.embedding_dim), np.float32), 5)[0].ids) == left
    with pytest.warns(DistcamWarning, match="searched exactly for now"):
        CHANGES[change](gallery, more, small_encoder)
    for opened in (gallery, Gallery.open(gallery.folder)):
        assert _exact(opened)
    assert verify_gallery(gallery.folder).problems == ()


@pytest.mark.parametrize("factory", ["IVF1024,Flat", "IVF4,PQ4", "PQ4x4", "OPQ4,IVF4,PQ4x4", "IVF64,SQfp16"])
def test_a_build_with_an_index_for_more_images_is_searched_exactly(
    photos: Path, small_encoder, tmp_path: Path, factory: str
) -> None:
    with pytest.warns(DistcamWarning, match=f"no index {factory} can be made of 24 images"):
        gallery = Gallery.build(photos, small_encoder, out=tmp_path / "new", index=factory)
    assert _exact(gallery)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _exact(Gallery.open(gallery.folder))  # whoever only asks need not hear it
    assert gallery.manifest.index == factory


def test_an_index_is_made_as_soon_as_there_are_enough_images(
    photos: Path, small_encoder, more: Path, tmp_path: Path
) -> None:
    with pytest.warns(DistcamWarning, match="searched exactly for now"):
        gallery = Gallery.build(photos, small_encoder, out=tmp_path / "new", index="IVF26,Flat")
    assert gallery.searcher.description["factory"] == "Flat"
    gallery.add(more, small_encoder, labels="none")
    assert gallery.searcher.description["factory"] == "IVF26,Flat"


# --- A disk that fills up ---------------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Kinds of files that there is no room for."""
    kinds: set[str] = set()
    sync = Storage.sync

    def refuse(self: Storage, path: Path) -> None:
        if path.name.split("-")[0] in kinds:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(self, path)

    monkeypatch.setattr(Storage, "sync", refuse)
    yield kinds
    kinds.clear()


@pytest.mark.parametrize("kind", ["prototypes", "index", "skipped"])
def test_an_add_is_done_though_what_follows_has_no_room(
    gallery: Gallery, more: Path, small_encoder, full: set[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.tune(candidates=["IVF2,SQfp16"], recall=0.1, queries=5)
    monkeypatch.setattr(caches, "small_change", lambda count: 0)  # else the index file stays as it is
    (more / "broken.jpg").write_bytes(b"no picture")
    full.add(kind)
    with pytest.warns(DistcamWarning, match="what was asked for is done and kept.*No space left"):
        report = gallery.add(more, small_encoder, labels="none")
    assert (report.added, len(gallery)) == (3, 27)
    full.clear()
    assert verify_gallery(gallery.folder).problems == ()
    assert _exact(Gallery.open(gallery.folder))


@pytest.mark.parametrize("command", ["remove", "add"])
@pytest.mark.parametrize("strict", [False, True])
def test_the_command_ends_with_status_0_and_a_note(
    gallery: Gallery,
    more: Path,
    full: set[str],
    command: str,
    strict: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full.add("prototypes")
    arguments = {"remove": ["--where", "path~'*0001*'"], "add": [str(more), *(["--strict"] if strict else [])]}[command]
    monkeypatch.setattr(sys, "argv", ["distcam", "index", command, str(gallery.folder), *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    assert stopped.value.code == 0, said.err
    assert "note: " in said.err
    assert "what was asked for is done and kept" in said.err
    assert len(Gallery.open(gallery.folder)) == {"remove": 20, "add": 27}[command]


def test_a_merge_that_finds_no_room_does_not_end_the_build(photos: Path, small_encoder, tmp_path: Path) -> None:
    merge = GalleryWriter._merge

    def refuse(self: GalleryWriter, entries: object) -> None:
        raise GalleryError("no space left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GalleryWriter, "_merge", refuse)
        patch.setattr("distcam.index.storage.writer.CommitLimits", lambda: CommitLimits(images=1, files=3))
        with pytest.warns(DistcamWarning, match="the number of its files could not be brought up to date"):
            gallery = Gallery.build(photos, small_encoder, out=tmp_path / "new", batch_size=1)
    assert len(gallery) == 24
    assert gallery.manifest.complete
    assert GalleryWriter._merge is merge


def test_caches_that_are_asked_for_are_an_error_when_there_is_no_room(gallery: Gallery, full: set[str]) -> None:
    gallery.remove(where="path~'*0001*'")
    store = caches.load_prototypes(gallery.snapshot)
    assert store is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(gallery.manifest), "is_fresh", lambda self, cache: False)
        full.add("prototypes")
        with pytest.raises(GalleryError, match="No space left"):
            gallery.save_caches()


# --- What an open gallery misses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["missing", "cut", "a folder", "a link"])
def test_a_copy_of_the_encoder_that_is_not_there_is_damage_with_a_remedy(gallery: Gallery, what: str) -> None:
    entry = gallery.manifest.encoder.file
    assert entry is not None
    path = gallery.folder / entry.name
    data = path.read_bytes()
    path.unlink()
    if what == "cut":
        path.write_bytes(data[:100])
    elif what == "a folder":
        path.mkdir()
    elif what == "a link":
        (gallery.folder.parent / "elsewhere").write_bytes(data)
        path.symlink_to(gallery.folder.parent / "elsewhere")
    with pytest.raises(CorruptGalleryError, match=f"{path.name}.*`distcam index restore COPY GALLERY`"):
        assert gallery.encoder_path is None


def test_a_list_of_what_was_skipped_that_is_not_there_is_damage_with_a_remedy(
    gallery: Gallery, more: Path, small_encoder
) -> None:
    (more / "broken.jpg").write_bytes(b"no picture")
    gallery.add(more, small_encoder, labels="none")
    next(gallery.folder.glob("skipped*")).unlink()
    with pytest.raises(CorruptGalleryError, match=r"skipped.*is missing; restore it from a copy"):
        assert gallery.skipped
    assert distcam("index", "verify", gallery.folder, status=1)
