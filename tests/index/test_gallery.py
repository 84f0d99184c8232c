from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from search_answers import assert_same

from distcam.encoders import Encoder
from distcam.errors import CorruptGalleryError, FingerprintMismatchError, InputError, NotAGalleryError, ShapeError
from distcam.files import Storage
from distcam.index import Gallery, verify_gallery
from distcam.index.backends import opened_for_writing
from distcam.index.storage import cache as caches
from distcam.index.storage.cache import GalleryCache
from distcam.index.storage.manifest import EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors, pack_maps
from distcam.index.storage.writer import CommitLimits, GalleryWriter

pytestmark = pytest.mark.usefixtures("own_state")

LABELS = ["cat", "cat", "dog", None, "dog", "owl"]
VECTORS = np.array([[3, 4], [6, 8], [1, 0], [0, 2], [-1, 0], [1, 1]], np.float32)
POOLED = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 0, 1], [2, 2, 2], [0, 0, 1]], np.float32)


def _entries(paths: list[str], labels: list[str | None], **columns: list[str | None]) -> Entries:
    n = len(paths)
    zeros = np.zeros(n, np.uint64)
    sha256 = np.zeros((n, 32), np.uint8)
    return Entries(zeros, paths, sha256, zeros, zeros.astype(np.int64), {"label": labels, **columns})


def _make(folder: Path, *, metric: Any = "cosine", index: str = "auto", maps: bool = False) -> Gallery:
    """Six images in three segments, ids 0 to 5."""
    spec = Spec(metric, embedding_dim=2, pooled_dim=3, map_shape=(1, 2) if maps else None)
    manifest = Manifest(
        spec, EncoderEntry("f" * 64, "fake/ffffffff"), root="/photos", index=index, gallery_id=folder.name
    )
    Storage().make_folder(folder)
    writer = GalleryWriter(folder, manifest, on_disk=None, limits=CommitLimits(images=2))
    for start in range(0, 6, 2):
        rows = slice(start, start + 2)
        paths = [f"{number}.jpg" for number in range(6)][rows]
        camera: list[str | None] = [str(number) for number in range(6)]
        packed = pack_maps(np.repeat(POOLED[rows, :, None, None], 2, axis=3)) if maps else ()
        writer.append(
            _entries(paths, LABELS[rows], camera=camera[rows]), RowVectors(POOLED[rows], VECTORS[rows], *packed)
        )
    writer.commit(complete=True)
    return Gallery.open(folder)


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return _make(tmp_path / "gallery")


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_a_gallery_says_what_is_in_it(gallery: Gallery) -> None:
    assert len(gallery) == 6
    assert gallery.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert gallery.labels == ("cat", "dog", "owl")
    assert gallery.column_names == ("path", "label", "camera")
    record, other = gallery.records([2, 3])
    assert record.to_dict() == {"id": 2, "path": "2.jpg", "label": "dog", "columns": {"camera": "2"}}
    assert other.label is None
    assert gallery.file(record) == Path("/photos/2.jpg")
    assert gallery.file(3) == Path("/photos/3.jpg")
    assert repr(gallery) == f"Gallery({str(gallery.folder)!r}, 6 images, fake/ffffffff)"


@pytest.mark.parametrize("ids", [[-1], [0.5], ["0"], [True], [2**64], [2**70], None, 5])
@pytest.mark.parametrize("ask", ["records", "pooled", "embeddings", "ranking_vectors"])
def test_what_is_no_id_is_refused_and_not_rounded(gallery: Gallery, ids: Any, ask: str) -> None:
    with pytest.raises((InputError, ShapeError), match=r"expected (ids from 0|a list of ids)"):
        getattr(gallery, ask)(ids)


@pytest.mark.parametrize("k", [2.5, "3", None, 0, -1])
def test_a_number_of_matches_is_a_whole_number(gallery: Gallery, k: Any) -> None:
    with pytest.raises(InputError, match="expected k of at least 1"):
        gallery.search(VECTORS[:1], k)


def test_a_gallery_opened_by_a_relative_path_stays_where_it_is(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(gallery.folder.parent)
    opened = Gallery.open(gallery.folder.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    gallery.remove(where="label=owl")
    assert opened.refresh()
    assert opened.verify().problems == ()
    for other in (opened, pickle.loads(pickle.dumps(opened)), copy.deepcopy(opened)):
        assert other.folder == gallery.folder
        assert len(other) == len(gallery) < 6
    opened.compact()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_vectors_come_raw_and_in_the_order_asked_for(gallery: Gallery) -> None:
    np.testing.assert_array_equal(gallery.embeddings([5, 0, 5]), VECTORS[[5, 0, 5]])
    np.testing.assert_array_equal(gallery.pooled(np.array([3, 1], np.uint64)), POOLED[[3, 1]])
    np.testing.assert_allclose(gallery.ranking_vectors([0, 1]), [[0.6, 0.8], [0.6, 0.8]], rtol=1e-6, atol=1e-7)
    assert gallery.pooled([]).shape == (0, 3)


def test_ranking_vectors_are_raw_unless_the_metric_is_cosine(tmp_path: Path) -> None:
    np.testing.assert_array_equal(_make(tmp_path / "g", metric="l2").ranking_vectors([1]), VECTORS[[1]])


def test_an_id_that_is_not_there_is_named(gallery: Gallery) -> None:
    with pytest.raises(InputError, match="no image with id 17"):
        gallery.pooled([1, 17])


def test_maps_come_back_if_they_are_kept(tmp_path: Path, gallery: Gallery) -> None:
    maps = _make(tmp_path / "maps", maps=True).maps([4, 0])
    np.testing.assert_allclose(maps, np.repeat(POOLED[[4, 0], :, None, None], 2, axis=3), rtol=1e-3)
    with pytest.raises(InputError, match="keeps no feature maps; build it with --store-maps"):
        gallery.maps([0])


def test_info_is_json_and_needs_neither_torch_nor_faiss(gallery: Gallery) -> None:
    code = (
        "import json, sys; from distcam.index import Gallery; info = Gallery.open(sys.argv[1]).info()\n"
        "print(json.dumps(info)); assert not {'torch', 'faiss', 'torchvision'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(gallery.folder)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    info = json.loads(ran.stdout)
    assert info == gallery.info()
    assert (info["images"], info["classes"], info["segments"], info["metric"]) == (6, 3, 3, "cosine")
    assert info["complete"] is True


def test_the_nearest_come_first_and_equals_in_the_order_of_ids(gallery: Gallery) -> None:
    (hits,) = gallery.search(np.array([[30, 40]], np.float32), k=3)
    assert hits.ids.tolist() == [0, 1, 5]  # 0 and 1 have the same direction
    np.testing.assert_allclose(hits.distances, [0, 0, 1 - 1.4 / np.sqrt(2)], atol=1e-6)


def test_a_search_among_some(gallery: Gallery) -> None:
    (hits,) = gallery.search(np.array([[3, 4]], np.float32), k=5, where="label=dog or camera>4")
    assert hits.ids.tolist() == [5, 2, 4]
    assert gallery.ids_where("path~[13].jpg").tolist() == [1, 3]
    (none,) = gallery.search(np.array([[3, 4]], np.float32), k=5, where="label=cow")
    assert none.ids.tolist() == []
    with pytest.raises(InputError, match="did you mean 'camera'"):
        gallery.ids_where("camra=1")


def test_a_gallery_answers_its_first_searches_by_a_scan_and_the_others_alike(gallery: Gallery) -> None:
    query = gallery.embeddings(gallery.ids[2:4])
    some = gallery.ids[1::2]
    cache = gallery._cache
    first = [gallery.search(query, 5), cache.answer(query, 2, allowed=some)]
    assert cache._search is None
    held = gallery.searcher
    assert cache._search is held
    assert_same(first[0], held.search(query, 5))
    assert_same(first[1], held.search(query, 2, allowed=some))


def test_prototypes_come_from_the_labels(gallery: Gallery) -> None:
    assert gallery.prototypes.labels == ("cat", "dog", "owl")
    np.testing.assert_allclose(gallery.prototypes.pooled("cat"), POOLED[:2].mean(0))
    assert gallery.prototypes.total == 6


def test_another_encoder_is_refused_with_both_names(gallery: Gallery) -> None:
    other = Encoder.load("conv4", weights="random")
    with pytest.raises(FingerprintMismatchError, match=f"with fake/ffffffff, the encoder given is {other.short_name}"):
        gallery.check_encoder(other)
    assert gallery.encoder_path is None


def test_images_that_moved_are_found_under_another_root(gallery: Gallery, tmp_path: Path) -> None:
    assert Gallery.open(gallery.folder, root=tmp_path).file(0) == tmp_path / "0.jpg"


def test_a_folder_that_is_no_gallery_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAGalleryError, match="a gallery is a folder written by `distcam index build`"):
        Gallery.open(tmp_path)


# --- Changing ---------------------------------------------------------------------------------------------------------


def test_removing_by_filter_and_by_path(gallery: Gallery) -> None:
    assert gallery.prototypes.count("cat") == 2
    assert gallery.search(VECTORS[:1], 1)[0].ids.tolist() == [0]
    assert gallery.remove(where="label=dog") == 2
    assert gallery.remove(paths=["0.jpg", "/photos/5.jpg"]) == 2
    assert gallery.ids.tolist() == [1, 3]
    assert gallery.prototypes.labels == ("cat",)
    assert gallery.search(VECTORS[:1], 9)[0].ids.tolist() == [1, 3]
    again = Gallery.open(gallery.folder)
    assert again.ids.tolist() == [1, 3]
    assert again.prototypes.counts.tolist() == [1]
    assert again.remove(where="label=dog") == 0


def test_a_path_that_is_not_there_removes_nothing(gallery: Gallery) -> None:
    with pytest.raises(InputError, match=r"x\.jpg, y\.jpg; nothing was removed"):
        gallery.remove(paths=["0.jpg", "x.jpg", "y.jpg"])
    with pytest.raises(InputError, match="either paths or a filter"):
        gallery.remove()
    assert len(gallery) == 6


def test_everything_can_leave(gallery: Gallery) -> None:
    assert gallery.remove(where="path~*") == 6
    gallery.compact()
    assert len(gallery) == 0
    assert gallery.search(VECTORS[:1], 3)[0].ids.tolist() == []
    assert gallery.prototypes.total == 0
    assert gallery.labels == ()
    assert gallery.verify().is_sound
    assert not list(gallery.folder.glob("segment-*"))


def test_compacting_keeps_ids_vectors_and_order_and_gives_room_back(gallery: Gallery) -> None:
    gallery.remove(where="camera in 1,4")
    size = sum(path.stat().st_size for path in gallery.folder.iterdir())
    gallery.compact()
    assert sum(path.stat().st_size for path in gallery.folder.iterdir()) < size
    assert gallery.ids.tolist() == [0, 2, 3, 5]
    np.testing.assert_array_equal(gallery.embeddings(gallery.ids), VECTORS[[0, 2, 3, 5]])
    assert [record.label for record in gallery.records(gallery.ids)] == ["cat", "dog", None, "owl"]
    info = gallery.info()
    assert (info["segments"], info["removed_rows"], info["prototypes_cached"]) == (1, 0, True)
    before = sorted(path.name for path in gallery.folder.iterdir())
    gallery.compact()  # nothing left to do
    assert sorted(path.name for path in gallery.folder.iterdir()) == before


def test_ids_are_never_given_out_again(gallery: Gallery) -> None:
    gallery.remove(where="camera>=4")
    gallery.compact()
    with opened_for_writing(gallery.folder) as writer:
        writer.append(_entries(["new.jpg"], ["cat"]), RowVectors(POOLED[:1], VECTORS[:1]))
        writer.commit()
    assert Gallery.open(gallery.folder).ids.tolist() == [0, 1, 2, 3, 6]


def test_an_open_reader_keeps_its_generation_while_files_are_merged_away(gallery: Gallery) -> None:
    reader = Gallery.open(gallery.folder)
    gallery.remove(where="label=cat")
    gallery.compact()
    np.testing.assert_array_equal(reader.embeddings(reader.ids), VECTORS)
    assert reader.records([0])[0].label == "cat"


def test_a_reader_that_races_a_compaction_opens_the_newer_generation(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = gallery.manifest
    gallery.compact()
    load, answers = Manifest.load, [stale]
    monkeypatch.setattr(Manifest, "load", lambda folder: answers.pop() if answers else load(folder))
    assert len(Gallery.open(gallery.folder)) == 6
    assert not answers


def test_many_small_segments_are_merged(tmp_path: Path) -> None:
    gallery = _make(tmp_path / "g")
    limits = CommitLimits(images=1, files=4, segment_images=5)
    with opened_for_writing(gallery.folder, limits=limits) as writer:
        for number in range(6, 15):
            writer.append(_entries([f"{number}.jpg"], ["new"]), RowVectors(POOLED[:1] + number, VECTORS[:1]))
        writer.merge_small()
        assert [entry.count for entry in writer.manifest.segments] == [2, 2, 2, 5, 4]
    gallery = Gallery.open(gallery.folder, verify=True)
    assert gallery.ids.tolist() == list(range(15))
    np.testing.assert_array_equal(gallery.pooled([14]), POOLED[:1] + 14)


def test_leftovers_of_a_killed_writer_are_swept_and_strangers_stay(gallery: Gallery) -> None:
    zeros = "0" * 32
    leftovers = [
        f"segment-{zeros}.h5",
        f"segment-{zeros}.h5.tmp",
        f"tombstone-{zeros}.u64.tmp",
        "manifest.json.tmp",
        f"encoder-{zeros}.safetensors.tmp.safetensors",
        f".encoder-{zeros}.safetensors.tmp.safetensors.123.tmp",
    ]
    strangers = ["notes.txt", "segment-of-mine.h5", "other.tmp", f"segment-{zeros}.h5.damaged"]
    for name in [*leftovers, *strangers]:
        (gallery.folder / name).write_bytes(b"x")
    Gallery.open(gallery.folder)
    assert (gallery.folder / leftovers[0]).exists()  # readers sweep nothing
    gallery.remove(where="camera=1")
    left = {path.name for path in gallery.folder.iterdir()}
    assert not left & set(leftovers)
    assert set(strangers) <= left


class ChangingAGallery(RuleBasedStateMachine):
    """Whatever is added, removed, compacted and reopened, the gallery is what a dictionary would be."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        folder = Path(self.temporary.name) / "gallery"
        folder.mkdir()
        manifest = Manifest(Spec("l2", 2, 3), EncoderEntry("f" * 64, "fake"), root="/photos")
        GalleryWriter(folder, manifest, on_disk=None).commit(complete=True)
        self.gallery = Gallery.open(folder)
        self.model: dict[int, tuple[str, str | None, float]] = {}
        self.next_id = 0

    @rule(labels=st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=4), value=st.integers(1, 9))
    def add(self, labels: list[str | None], value: int) -> None:
        paths = [f"{self.next_id + place}.jpg" for place in range(len(labels))]
        rows = RowVectors(np.full((len(labels), 3), value, np.float32), np.full((len(labels), 2), value, np.float32))
        with self.gallery._writing() as writer:
            writer.append(_entries(paths, labels), rows)
            writer.commit()
        for path, label in zip(paths, labels, strict=True):
            self.model[self.next_id] = (path, label, float(value))
            self.next_id += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.sampled_from(sorted(self.model)), max_size=3))
        assert self.gallery.remove(paths=[self.model[id_][0] for id_ in gone]) == len(gone)
        for id_ in gone:
            del self.model[id_]

    @rule()
    def compact(self) -> None:
        self.gallery.compact()

    @rule()
    def reopen(self) -> None:
        self.gallery = Gallery.open(self.gallery.folder, verify=True)

    @invariant()
    def is_the_model(self) -> None:
        ids = sorted(self.model)
        assert self.gallery.ids.tolist() == ids
        found = [(record.path, record.label) for record in self.gallery.records(ids)]
        assert found == [self.model[id_][:2] for id_ in ids]
        assert self.gallery.embeddings(ids)[:, 0].tolist() == [self.model[id_][2] for id_ in ids]
        counts = {label: 0 for _, label, _ in self.model.values() if label}
        for _, label, _ in self.model.values():
            counts |= {label: counts[label] + 1} if label else {}
        prototypes = self.gallery.prototypes
        assert dict(zip(prototypes.labels, prototypes.counts.tolist(), strict=True)) == counts
        (hits,) = self.gallery.search(np.array([[5, 5]], np.float32), 3)
        nearest = sorted(ids, key=lambda id_: (abs(self.model[id_][2] - 5), id_))
        assert hits.ids.tolist() == nearest[:3]

    def teardown(self) -> None:
        assert verify_gallery(self.gallery.folder).is_sound
        self.temporary.cleanup()


TestChangingAGallery = ChangingAGallery.TestCase
TestChangingAGallery.settings = settings(max_examples=8, stateful_step_count=12, deadline=None)


# --- Damage and repair ------------------------------------------------------------------------------------------------


def _only(folder: Path, pattern: str, which: int = 0) -> Path:
    return sorted(folder.glob(pattern))[which]


def _flip(path: Path, position: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_damaged_segment_is_named_on_opening_and_on_verifying(gallery: Gallery) -> None:
    path = gallery.folder / gallery.manifest.segments[1].name
    _flip(path)
    with pytest.raises(CorruptGalleryError, match=f"{path.name}: its checksum does not fit the manifest; restore"):
        Gallery.open(gallery.folder)
    report = verify_gallery(gallery.folder)
    assert not report.is_sound
    assert [problem.file for problem in report.problems] == [path.name]
    assert "PROBLEM" in str(report)
    json.dumps(report.to_dict())


def test_checksums_can_be_left_to_verify(gallery: Gallery) -> None:
    _flip(gallery.folder / gallery.manifest.segments[1].name)
    assert len(Gallery.open(gallery.folder, verify=False)) == 6


def test_a_missing_segment_is_named(gallery: Gallery) -> None:
    path = gallery.folder / gallery.manifest.segments[1].name
    path.unlink()
    with pytest.raises(CorruptGalleryError, match=f"{path.name}: is missing; restore it from a copy"):
        Gallery.open(gallery.folder)


def test_repairing_sets_damaged_segments_aside_and_asks_for_their_images_again(gallery: Gallery) -> None:
    path = gallery.folder / gallery.manifest.segments[1].name
    _flip(path)
    report = verify_gallery(gallery.folder, repair=True)
    assert report.is_sound
    assert "repaired: " + path.name in str(report)
    repaired = Gallery.open(gallery.folder, verify=True)
    assert repaired.ids.tolist() == [0, 1, 4, 5]
    assert not repaired.manifest.complete  # building again continues it
    assert path.with_name(path.name + ".damaged").exists()
    assert verify_gallery(gallery.folder).problems == ()


def test_repairing_a_lost_tombstone_brings_images_back_but_none_twice(gallery: Gallery) -> None:
    with opened_for_writing(gallery.folder) as writer:
        writer.append(_entries(["0.jpg"], ["cat"]), RowVectors(POOLED[:1], VECTORS[:1]), replaces=[0])
        writer.remove([3])
        writer.commit()
    _only(gallery.folder, "tombstone-*").unlink()
    assert verify_gallery(gallery.folder, repair=True).is_sound
    assert Gallery.open(gallery.folder).ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert verify_gallery(gallery.folder).problems == ()


def test_vectors_that_cannot_be_compared_are_found(tmp_path: Path) -> None:
    for number, bad in enumerate([np.array([[np.nan, 1]], np.float32), np.zeros((1, 2), np.float32)]):
        gallery = _make(tmp_path / str(number))
        with opened_for_writing(gallery.folder) as writer:
            writer.append(_entries(["bad.jpg"], [None]), RowVectors(POOLED[:1], bad))
            writer.commit()
        (problem,) = verify_gallery(gallery.folder).problems
        assert problem.problem in (
            "holds vectors that are not finite",
            "holds a zero embedding, which no cosine compares",
        )


def test_an_image_that_is_there_twice_is_found_and_the_newer_stays(gallery: Gallery) -> None:
    with opened_for_writing(gallery.folder) as writer:
        writer.append(_entries(["2.jpg"], ["dog"]), RowVectors(POOLED[:1], VECTORS[:1]))
        writer.commit()
    (problem,) = verify_gallery(gallery.folder).problems
    assert (problem.file, problem.problem) == ("2.jpg", "is in the gallery twice")
    assert gallery.verify(repair=True).is_sound
    assert gallery.ids.tolist() == [0, 1, 3, 4, 5, 6]


def test_segments_that_claim_the_same_id_are_found(gallery: Gallery) -> None:
    manifest = gallery.manifest
    twin = gallery.folder / f"segment-{'1' * 32}.h5"
    twin.write_bytes((gallery.folder / manifest.segments[0].name).read_bytes())
    copy = dataclasses.replace(manifest.segments[0], name=twin.name)
    dataclasses.replace(manifest, segments=(*manifest.segments, copy)).save(gallery.folder, Storage())
    with pytest.raises(CorruptGalleryError, match="an id occurs twice"):
        Gallery.open(gallery.folder)
    (problem,) = verify_gallery(gallery.folder).problems
    assert (problem.file, problem.problem) == (twin.name, "holds an id that occurs twice")
    assert verify_gallery(gallery.folder, repair=True).is_sound
    assert len(Gallery.open(gallery.folder)) == 6


# --- Caches -----------------------------------------------------------------------------------------------------------


def _cached(tmp_path: Path) -> Gallery:
    """A gallery whose index is worth a file."""
    gallery = _make(tmp_path / "cached", index="HNSW8")
    gallery.remove(where="camera=5")
    assert gallery.info()["index_cached"]
    assert gallery.info()["prototypes_cached"]
    return gallery


def _forbid_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: GalleryCache) -> Any:
        raise AssertionError("the index was built")

    monkeypatch.setattr(GalleryCache, "_new_search", refuse)


def test_a_cached_index_is_read_instead_of_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _cached(tmp_path).folder
    _forbid_building(monkeypatch)
    assert Gallery.open(folder).search(VECTORS[:1], 2)[0].ids.tolist() == [0, 1]
    assert verify_gallery(folder).problems == ()


def test_an_index_of_another_user_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _cached(tmp_path).folder
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other user"))
    other = Gallery.open(folder)
    assert caches.load_index_bytes(other.snapshot) is None
    assert other.search(VECTORS[:1], 2)[0].ids.tolist() == [0, 1]


@pytest.mark.parametrize("damage", ["flipped", "missing", "cut", "swapped"])
def test_a_bad_cache_is_computed_again_without_an_error(tmp_path: Path, damage: str) -> None:
    gallery = _cached(tmp_path)
    for kind in ("index-*", "prototypes-*"):
        path = _only(gallery.folder, kind)
        if damage == "missing":
            path.unlink()
        elif damage == "flipped":
            _flip(path)
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-10])
        else:
            path.write_bytes(bytes(path.stat().st_size))
    again = Gallery.open(gallery.folder, verify=True)
    assert again.search(VECTORS[:1], 2)[0].ids.tolist() == [0, 1]
    assert again.prototypes.counts.tolist() == [2, 2]
    assert len(verify_gallery(gallery.folder).problems) == 2
    assert gallery.verify(repair=True).is_sound
    gallery.compact()
    assert gallery.info()["index_cached"]
    assert verify_gallery(gallery.folder).problems == ()


def test_an_index_of_another_generation_is_brought_to_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = _cached(tmp_path)
    with opened_for_writing(gallery.folder) as writer:  # a writer that renews no caches, like one that was killed
        writer.remove([0])
        writer.commit()
        writer.append(_entries(["6.jpg"], [None]), RowVectors(POOLED[:1], VECTORS[:1]))
        writer.commit()
    stale = Gallery.open(gallery.folder)
    _forbid_building(monkeypatch)
    assert caches.load_prototypes(stale.snapshot) is None
    assert stale.info()["index_cached"]
    assert [hits.ids.tolist() for hits in stale.search(VECTORS[:1], 2)] == [[1, 6]]
    assert verify_gallery(gallery.folder).problems == ()
    assert stale.prototypes.count("cat") == 1


def test_a_genuine_index_of_another_gallery_is_not_read(tmp_path: Path) -> None:
    one, other = _cached(tmp_path), _make(tmp_path / "other", index="HNSW8")
    other.remove(where="camera=0")
    source, target = _only(one.folder, "index-*"), _only(other.folder, "index-*")
    target.write_bytes(source.read_bytes())
    entry = dataclasses.replace(one.manifest.index_cache.file, name=target.name)  # type: ignore[union-attr]
    cache = dataclasses.replace(one.manifest.index_cache, file=entry, generation=other.manifest.generation)  # type: ignore[type-var]
    dataclasses.replace(other.manifest, index_cache=cache).save(other.folder, Storage())
    assert caches.load_index_bytes(Gallery.open(other.folder).snapshot) is None


def test_the_secret_is_readable_by_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    secret = caches.user_secret()
    path = tmp_path / "state" / "distcam" / "key"
    assert secret == path.read_bytes() == caches.user_secret()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert caches.user_secret() is None  # others may have read it


def test_without_a_place_for_the_secret_no_index_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    gallery = _make(tmp_path / "g", index="HNSW8")
    gallery.remove(where="camera=5")
    assert gallery.search(VECTORS[:1], 2)[0].ids.tolist() == [0, 1]
    assert caches.load_index_bytes(gallery.snapshot) is None
