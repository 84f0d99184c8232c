"""An index is carried over small changes of its gallery, and written or trained again only when much has changed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_answers import assert_same, true_hits

from distcam.files import Storage
from distcam.index import Gallery, restore_gallery, verify_gallery
from distcam.index.backends import opened_for_writing
from distcam.index.faiss.index_store import IndexStore
from distcam.index.search import Ids, VectorSource
from distcam.index.storage import cache as caches
from distcam.index.storage.cache import GalleryCache
from distcam.index.storage.manifest import Manifest

pytestmark = pytest.mark.usefixtures("own_state")


@pytest.fixture
def gallery(small_gallery, own_state: None, tmp_path: Path) -> Gallery:
    """24 images under an inverted file."""
    del own_state
    shutil.copytree(small_gallery.folder, tmp_path / "g")
    gallery = Gallery.open(tmp_path / "g")
    gallery.tune(candidates=["IVF2,Flat"], recall=1.0, queries=24)
    return gallery


@pytest.fixture
def untrained(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing may be trained, nor prototypes counted anew."""
    del gallery

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("was made anew")

    monkeypatch.setattr(IndexStore, "fill", refuse)
    monkeypatch.setattr(caches, "computed_prototypes", refuse)


def _assert_exact(gallery: Gallery) -> None:
    stored = gallery.embeddings(gallery.ids)
    for query, hits in zip(stored, gallery.search(stored, 5), strict=True):
        expected = true_hits(gallery.metric, query, stored, 5)
        assert_same([hits], [expected._replace(ids=gallery.ids[expected.ids.astype(np.int64)])])


CHANGES: dict[str, Callable[[Gallery, Path, Any], object]] = {
    "add": lambda gallery, more, encoder: gallery.add(more, encoder, labels="none"),
    "remove": lambda gallery, more, encoder: gallery.remove(where="path~'*/0001.jpg'"),
    "sync": lambda gallery, more, encoder: gallery.sync(more, encoder),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("held", [False, True], ids=["opened", "searched before"])
@pytest.mark.usefixtures("untrained")
def test_a_small_change_leaves_the_index_file_and_searches_beside_it(
    gallery: Gallery, more: Path, small_encoder: Any, change: str, held: bool
) -> None:
    before = gallery.manifest
    gallery = Gallery.open(gallery.folder)
    if held:
        _assert_exact(gallery)
    CHANGES[change](gallery, more, small_encoder)
    assert gallery.manifest.index_cache == before.index_cache
    assert gallery.manifest.generation > before.generation
    for opened in (gallery, Gallery.open(gallery.folder)):
        assert opened.info()["index_cached"]
        assert opened.searcher.description["factory"] == "IVF2,Flat"
        assert opened.searcher.is_mapped  # what came is not in it, and made no copy of it necessary
        _assert_exact(opened)
    assert verify_gallery(gallery.folder).problems == ()


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One change is as many as an index may lag behind."""
    monkeypatch.setattr("distcam.index.faiss.index_store.small_change", lambda count: 1)
    monkeypatch.setattr(caches, "small_change", lambda count: 1)
    return


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.usefixtures("strict", "untrained")
def test_past_the_limit_the_index_takes_the_changes_in_and_is_written_untrained(
    gallery: Gallery, more: Path, small_encoder: Any, change: str
) -> None:
    before = gallery.manifest.index_cache
    CHANGES[change](gallery, more, small_encoder)
    after = gallery.manifest.index_cache
    assert after is not None
    assert after != before
    assert gallery.manifest.is_fresh(after)
    opened = Gallery.open(gallery.folder)
    assert opened.searcher.store.tail.ntotal == 0
    _assert_exact(opened)
    assert verify_gallery(gallery.folder).problems == ()


def test_a_gallery_that_has_halved_or_was_mostly_replaced_gets_a_new_index(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []
    fill = IndexStore.fill

    def counting(self: IndexStore, ids: Ids, source: VectorSource, **options: Any) -> None:
        filled.append(len(ids))
        fill(self, ids, source, **options)

    monkeypatch.setattr(IndexStore, "fill", counting)
    for name in ("0001", "0002", "0003", "0004"):
        gallery.remove(where=f"path~'*/{name}.jpg'")
    assert filled == [8]
    _assert_exact(gallery)
    _assert_exact(Gallery.open(gallery.folder))
    assert filled == [8]


def test_a_restored_gallery_keeps_its_index_and_a_foreign_one_does_not_become_ones_own(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.remove(where="path~'*/0001.jpg'")
    restore_gallery(gallery.folder, tmp_path / "copy")
    copy = Gallery.open(tmp_path / "copy")
    assert copy.manifest.gallery_id != gallery.manifest.gallery_id
    with monkeypatch.context() as patch:
        patch.setattr(GalleryCache, "_new_search", lambda self: pytest.fail("was built"))
        _assert_exact(copy)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other user"))
    restore_gallery(gallery.folder, tmp_path / "other")
    other = Gallery.open(tmp_path / "other")
    assert caches.load_index_bytes(other.snapshot) is None
    _assert_exact(other)


def _store_as_before(gallery: Gallery) -> None:
    """The manifest as an earlier version wrote it: an index that belongs to these very images."""
    entry = gallery.manifest.index_cache
    assert entry is not None
    entry = dataclasses.replace(entry, next_id=None)
    entry = dataclasses.replace(entry, tag=caches.index_tag(gallery.manifest, entry, gallery.ids))
    dataclasses.replace(gallery.manifest, index_cache=entry).save(gallery.folder, Storage())


@pytest.mark.usefixtures("untrained")
def test_an_index_of_an_earlier_version_is_read_and_follows_its_first_change(gallery: Gallery) -> None:
    _store_as_before(gallery)
    old = Gallery.open(gallery.folder)
    assert old.searcher.is_mapped
    old = Gallery.open(gallery.folder)
    old.remove(where="path~'*/0001.jpg'")
    entry = old.manifest.index_cache
    assert entry is not None
    assert entry.next_id == old.manifest.next_id
    _assert_exact(Gallery.open(gallery.folder))


def test_an_index_of_an_earlier_version_is_not_brought_over_a_change_it_knows_nothing_of(gallery: Gallery) -> None:
    _store_as_before(gallery)
    with opened_for_writing(gallery.folder) as writer:
        writer.remove([0])
        writer.commit()
    assert not Gallery.open(gallery.folder).info()["index_cached"]
    assert caches.load_index_bytes(Gallery.open(gallery.folder).snapshot) is None
    _assert_exact(Gallery.open(gallery.folder))


def test_an_index_file_that_is_gone_is_written_again_by_the_next_change(gallery: Gallery) -> None:
    entry = gallery.manifest.index_cache
    assert entry is not None
    (gallery.folder / entry.file.name).unlink()
    Gallery.open(gallery.folder).remove(where="path~'*/0001.jpg'")
    assert Gallery.open(gallery.folder).searcher.is_mapped
    assert verify_gallery(gallery.folder).problems == ()


def test_an_automatic_index_is_not_built_for_a_change_before_a_million_images(
    small_gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_gallery.folder, tmp_path / "g")
    monkeypatch.setattr(GalleryCache, "_new_search", lambda self: pytest.fail("was built"))
    assert Gallery.open(tmp_path / "g").remove(where="path~'*/0001.jpg'") == 4
    assert Manifest.load(tmp_path / "g").index_cache is None
