from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import Colours
from PIL import Image
from torch import nn

from distcam.encoders import Encoder, Inference, Linear
from distcam.errors import (
    CorruptGalleryError,
    FingerprintMismatchError,
    GalleryError,
    GalleryExistsError,
    ImageError,
    InputError,
)
from distcam.images import Transform, list_images
from distcam.index import Gallery, Skipped, encode_to_file, read_encodings
from distcam.index.building import build as building
from distcam.index.building import ingest, opened
from distcam.index.storage.writer import CommitLimits, GalleryWriter
from distcam.remarks import DistcamWarning
from distcam.retrieval import Retriever

pytestmark = pytest.mark.usefixtures("own_state")


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(Colours(), transform=Transform(16), architecture="colours")


def _paint(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images of three classes."""
    folder = tmp_path / "photos"
    for number in range(12):
        _paint(folder / "abc"[number % 3] / f"{number:02}.png", number)
    return folder


def _paths(gallery: Gallery) -> list[str]:
    return [record.path for record in gallery.records(gallery.ids)]


# --- Building ---------------------------------------------------------------------------------------------------------


def test_a_gallery_holds_what_the_encoder_says_of_each_image(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    calls: list[tuple[int, int]] = []
    gallery = Gallery.build(
        photos, encoder, out=tmp_path / "g", batch_size=5, precision="fp32", progress=lambda *done: calls.append(done)
    )
    records = gallery.records(gallery.ids)
    assert [(record.path, record.label) for record in records] == [
        (record.path, record.label) for record in list_images(photos)
    ]
    expected = Inference(encoder, precision="fp32").encode_images([gallery.file(record) for record in records])
    np.testing.assert_allclose(gallery.embeddings(gallery.ids), expected.embedding.numpy(), rtol=1e-5, atol=1e-6)
    assert gallery.spec.embedding_is_pooled
    assert gallery.manifest.complete
    assert calls[-1] == (12, 12)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert gallery.report is not None
    assert str(gallery.report) == "12 added, 0 replaced, 0 unchanged, 0 skipped"
    assert gallery.verify().is_sound
    assert Gallery.open(tmp_path / "g").search(gallery.embeddings([3]), 1)[0].ids.tolist() == [3]


def test_stored_checksum_size_and_time_are_those_of_the_file(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    import hashlib

    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    file = gallery.file(4)
    sha256, size, mtime_ns = gallery.snapshot.file_state(4)
    assert sha256 == hashlib.sha256(file.read_bytes()).digest()
    assert (size, mtime_ns) == (file.stat().st_size, file.stat().st_mtime_ns)


def test_maps_and_head_are_kept_when_asked_for(tmp_path: Path, photos: Path) -> None:
    torch.manual_seed(0)
    encoder = Encoder(Colours(), transform=Transform(16), head=Linear(6, 4))
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g", metric="l1", store_maps=True, precision="fp32")
    assert (gallery.spec.embedding_dim, gallery.spec.pooled_dim, gallery.spec.map_shape) == (4, 6, (16, 16))
    expected = Inference(encoder, precision="fp32").encode_images([gallery.file(7)])
    np.testing.assert_allclose(gallery.maps([7]), expected.feature_map.numpy(), atol=2e-3)
    np.testing.assert_allclose(gallery.maps([7]).mean((2, 3)), gallery.pooled([7]), rtol=1e-3)


def test_an_encoder_that_can_be_saved_is_copied_and_one_that_cannot_is_not(
    tmp_path: Path, photos: Path, encoder: Encoder
) -> None:
    conv4 = Encoder.load("conv4", weights="random", transform=Transform(32))
    gallery = Gallery.build(photos, conv4, out=tmp_path / "conv4")
    assert gallery.encoder_path is not None
    own = Encoder.load(gallery.encoder_path)
    assert own.fingerprint == conv4.fingerprint
    gallery.check_encoder(own)
    assert Gallery.build(photos, encoder, out=tmp_path / "custom").encoder_path is None
    path = gallery.encoder_path
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptGalleryError, match="checksum"):
        _ = Gallery.open(tmp_path / "conv4").encoder_path


def test_columns_of_a_table_become_columns_of_the_gallery(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,label,camera\nphotos/a/00.png,x,7\nphotos/b/01.png,,8\n")
    with pytest.warns(DistcamWarning, match="1 of 2 images in table.csv have no label, such as photos/b/01.png"):
        gallery = Gallery.build(table, encoder, out=tmp_path / "g")
    with pytest.raises(InputError, match="1 of 2 images"):
        Gallery.build(table, encoder, out=tmp_path / "h", strict=True)
    first, second = gallery.records(gallery.ids)
    assert (first.path, first.label, first.columns) == ("photos/a/00.png", "x", {"camera": "7"})
    assert second.label is None
    assert gallery.ids_where("camera>7").tolist() == [1]


def test_files_that_cannot_be_used_are_listed_with_reasons(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    (photos / "a" / "broken.jpg").write_bytes(b"<html>")
    (photos / "a" / "gone.jpg").symlink_to(photos / "nothing")
    Image.new("RGB", (16, 16), (124, 116, 104)).save(photos / "b" / "grey.png")
    zero = Encoder(Colours(), transform=Transform(16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    Image.new("RGB", (16, 16)).save(photos / "b" / "black.png")  # all channels 0: no direction
    gallery = Gallery.build(photos, zero, out=tmp_path / "g")
    reasons = {item.path: item.reason for item in gallery.skipped}
    assert reasons["a/broken.jpg"].startswith("expected") or "web page" in reasons["a/broken.jpg"]
    assert reasons["a/gone.jpg"] == "a broken link"
    assert reasons["b/black.png"] == "its embedding is zero, which no cosine compares"
    assert len(gallery) == 13
    assert Gallery.open(tmp_path / "g").skipped == gallery.skipped
    assert gallery.info()["skipped"] == 3
    _paint(photos / "a" / "broken.jpg", 99)
    report = gallery.add(photos, zero)
    assert (report.added, len(report.skipped)) == (1, 2)
    assert "a/broken.jpg" not in {item.path for item in gallery.skipped}


def test_a_zero_embedding_is_fine_without_cosine(tmp_path: Path, photos: Path) -> None:
    zero = Encoder(Colours(), transform=Transform(16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    Image.new("RGB", (16, 16)).save(photos / "b" / "black.png")
    assert len(Gallery.build(photos, zero, out=tmp_path / "g", metric="l2")) == 13


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path, photos: Path) -> None:
    class Overflow(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = images.mean((1, 2, 3), keepdim=True) > 0.0
            return torch.where(bright, images / 0.0, images)

    listing = list_images(photos)
    encoder = Encoder(Overflow(), transform=Transform(16, fit="crop", mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0)))
    means = [
        float(encoder.transform.normalise(encoder.transform(Image.open(listing.file(record))).float()[None]).mean())
        for record in listing
    ]
    assert 0 < sum(mean > 0 for mean in means) < 12
    for out, store_maps in (("g", False), ("maps", True)):
        gallery = Gallery.build(photos, encoder, out=tmp_path / out, metric="l2", store_maps=store_maps)
        assert {item.reason for item in gallery.skipped} == {"its vectors are not finite"}
        assert len(gallery) == sum(mean <= 0 for mean in means)
        assert gallery.verify().is_sound


def test_strict_stops_at_the_first_bad_file_and_keeps_what_came_before(
    tmp_path: Path, photos: Path, encoder: Encoder
) -> None:
    (photos / "b" / "00.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"b/00\.jpg"):
        Gallery.build(photos, encoder, out=tmp_path / "g", batch_size=2, strict=True)
    assert _paths(Gallery.open(tmp_path / "g")) == ["a/00.png", "a/03.png", "a/06.png", "a/09.png"]
    (photos / "b" / "00.jpg").unlink()
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g", strict=True)
    assert len(gallery) == 12
    assert gallery.report is not None
    assert (gallery.report.added, gallery.report.unchanged) == (8, 4)


def test_no_gallery_comes_of_no_usable_image(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of 1 images could be used \(x.jpg: .*\); no gallery was written"):
        Gallery.build(tmp_path / "photos", encoder, out=tmp_path / "g")
    _paint(tmp_path / "photos" / "x.jpg", 0)
    assert len(Gallery.build(tmp_path / "photos", encoder, out=tmp_path / "g")) == 1  # what is left is no obstacle


def test_building_does_not_change_the_encoder(tmp_path: Path, photos: Path) -> None:
    encoder = Encoder.load("conv4", weights="random", transform=Transform(32)).train()
    before = encoder.fingerprint
    Gallery.build(photos, encoder, out=tmp_path / "g")
    assert encoder.training
    assert encoder.fingerprint == before
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_a_named_pipe_does_not_stop_the_build(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    gallery = Gallery.build([photos / "a" / "00.png", tmp_path / "pipe.jpg"], encoder, out=tmp_path / "g")
    assert [item.reason for item in gallery.skipped] == ["not a regular file"]


def test_a_file_too_large_is_refused_unread(
    tmp_path: Path, photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distcam.index.building import ingest as module

    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1 << 20)
    with (photos / "a" / "huge.png").open("wb") as file:
        file.truncate(3 << 20)
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    assert gallery.skipped == (Skipped("a/huge.png", "3 MiB, more than 1"),)


# --- Where a gallery may be built -------------------------------------------------------------------------------------


def test_a_complete_gallery_is_not_built_again_by_accident(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    Gallery.build(photos, encoder, out=tmp_path / "g")
    with pytest.raises(GalleryExistsError, match="add to it with `distcam index add`, or replace it with --overwrite"):
        Gallery.build(photos, encoder, out=tmp_path / "g")
    _paint(photos / "a" / "new.png", 50)
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g", overwrite=True, metric="l2")
    assert (len(gallery), gallery.metric) == (13, "l2")
    assert len(list((tmp_path / "g").glob("segment-*"))) == 1


def test_a_gallery_being_overwritten_stays_readable_until_the_first_commit(
    tmp_path: Path, photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    Gallery.build(photos, encoder, out=tmp_path / "g")

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Inference, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Gallery.build(photos, encoder, out=tmp_path / "g", overwrite=True)
    assert len(Gallery.open(tmp_path / "g", verify=True)) == 12


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    for overwrite in (False, True):
        with pytest.raises(GalleryExistsError, match="holds other files, such as a; choose another --out"):
            Gallery.build(photos, encoder, out=photos, overwrite=overwrite)
    (tmp_path / "file").touch()
    with pytest.raises(GalleryExistsError, match="is a file"):
        Gallery.build(photos, encoder, out=tmp_path / "file")
    web = tmp_path / "web"
    web.mkdir()
    (web / "manifest.json").write_text("{}")
    with pytest.raises(GalleryExistsError, match=r"such as manifest\.json"):
        Gallery.build(photos, encoder, out=web, overwrite=True)
    assert sorted(path.name for path in web.iterdir()) == ["manifest.json"]


def test_wrong_settings_are_refused_before_anything_is_written(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    with pytest.raises(InputError, match="expected a metric out of cosine, l2, l1, dot, got 'cosin'"):
        Gallery.build(photos, encoder, out=tmp_path / "g", metric="cosin")  # type: ignore[arg-type]
    with pytest.raises(InputError):
        Gallery.build(photos, encoder, out=tmp_path / "g", index="nonsense")
    with pytest.raises(InputError, match="labels belong to the listing"):
        Gallery.build(list_images(photos), encoder, out=tmp_path / "g", labels="none")
    assert not (tmp_path / "g" / "manifest.json").exists()


# --- Interrupted and continued ----------------------------------------------------------------------------------------


def _interrupt_after(monkeypatch: pytest.MonkeyPatch, batches: int, error: type[BaseException]) -> None:
    """The next stream ends with an exception after some batches, as Ctrl-C would end it."""
    stream = Inference.stream

    def interrupted(self: Inference, *arguments: Any, **options: Any) -> Iterator[Any]:
        monkeypatch.setattr(Inference, "stream", stream)
        for number, batch in enumerate(stream(self, *arguments, **options)):
            if number == batches:
                raise error
            yield batch

    monkeypatch.setattr(Inference, "stream", interrupted)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_keeps_what_is_encoded_and_goes_on_from_there(
    tmp_path: Path, photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    _interrupt_after(monkeypatch, 2, error)
    with pytest.raises(error):
        Gallery.build(photos, encoder, out=tmp_path / "g", batch_size=3)
    half = Gallery.open(tmp_path / "g", verify=True)
    assert len(half) == 6
    assert half.info()["complete"] is False
    encoded: list[Path] = []
    read = ingest.read_offer
    monkeypatch.setattr(opened, "read_offer", lambda offer: encoded.append(offer.file) or read(offer))
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    assert len(encoded) == 6
    assert gallery.report is not None
    assert (gallery.report.added, gallery.report.unchanged) == (6, 6)
    assert _paths(gallery) == [record.path for record in list_images(photos)]
    assert gallery.manifest.complete
    assert gallery.verify().is_sound


def test_an_unfinished_gallery_is_continued_with_the_same_encoder_and_settings_only(
    tmp_path: Path, photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt_after(monkeypatch, 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        Gallery.build(photos, encoder, out=tmp_path / "g", batch_size=3)
    other = Encoder(Colours(), transform=Transform(24), architecture="colours")
    with pytest.raises(
        FingerprintMismatchError, match=rf"{encoder.short_name}, the encoder given is {other.short_name}"
    ):
        Gallery.build(photos, other, out=tmp_path / "g")
    with pytest.raises(GalleryExistsError, match="metric cosine, given l1; continue with the same settings"):
        Gallery.build(photos, encoder, out=tmp_path / "g", metric="l1")
    with pytest.raises(GalleryExistsError, match="stored maps False, given True"):
        Gallery.build(photos, encoder, out=tmp_path / "g", store_maps=True)
    with pytest.raises(GalleryExistsError, match="images under"):
        Gallery.build(photos / "a", encoder, out=tmp_path / "g")
    assert len(Gallery.build(photos, other, out=tmp_path / "g", overwrite=True)) == 12


@pytest.mark.parametrize("moment", ["before the manifest", "after the manifest"])
def test_an_interruption_within_a_commit_leaves_no_image_twice_and_none_out(
    tmp_path: Path, photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from distcam.index.storage.manifest import Manifest

    save: Callable[..., None] = Manifest.save

    def interrupted(self: Manifest, *arguments: Any) -> None:
        monkeypatch.setattr(Manifest, "save", save)
        if moment == "after the manifest":
            save(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Gallery.build(photos, encoder, out=tmp_path / "g")
    assert len(Gallery.open(tmp_path / "g", verify=True)) == 12
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    assert _paths(gallery) == [record.path for record in list_images(photos)]
    assert gallery.verify().problems == ()


def test_commits_come_by_number_size_and_time(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    listing = list_images(photos)
    row_bytes = 6 * 4
    for number, (limits, segments) in enumerate(
        [
            (CommitLimits(images=4), 3),
            (CommitLimits(vector_bytes=6 * row_bytes), 2),
            (CommitLimits(seconds=0), 6),
            (CommitLimits(), 1),
        ]
    ):
        with building.opened_for_building(
            tmp_path / str(number), listing, encoder, metric="cosine", limits=limits
        ) as writer:
            building.add_images(writer, listing, encoder, settings=building.InferenceOptions(batch_size=2))
            assert len(writer.manifest.segments) == segments


def test_memory_holds_a_commit_not_the_gallery(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _paint(tmp_path / "photos" / "0.png", 0)
    data = (tmp_path / "photos" / "0.png").read_bytes()
    for number in range(1, 120):
        (tmp_path / "photos" / f"{number}.png").write_bytes(data)
    most = 0
    append = GalleryWriter.append

    def watched(self: GalleryWriter, *arguments: Any, **options: Any) -> None:
        nonlocal most
        most = max(most, sum(len(entries) for entries, _ in self._state.pending))
        append(self, *arguments, **options)

    monkeypatch.setattr(GalleryWriter, "append", watched)
    listing = list_images(tmp_path / "photos")
    with building.opened_for_building(
        tmp_path / "g", listing, encoder, metric="l2", limits=CommitLimits(images=20)
    ) as writer:
        building.add_images(writer, listing, encoder, settings=building.InferenceOptions(batch_size=8))
    assert len(Gallery.open(tmp_path / "g")) == 120
    assert most < 20


# --- Adding -----------------------------------------------------------------------------------------------------------


def test_adding_takes_what_is_new_replaces_what_changed_and_leaves_the_rest(
    tmp_path: Path, photos: Path, encoder: Encoder
) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    old = gallery.embeddings([0]).copy()
    _paint(photos / "d" / "new.png", 77)
    _paint(photos / "a" / "00.png", 78)
    touched = photos / "b" / "01.png"
    os.utime(touched, (time.time() + 5, time.time() + 5))  # another time, the same contents
    report = gallery.add(photos, encoder)
    assert (report.added, report.replaced, report.unchanged, report.skipped) == (1, 1, 11, ())
    assert len(gallery) == 13
    assert 0 not in gallery.ids
    (place,) = gallery.ids_where("path=a/00.png")
    assert not np.array_equal(gallery.embeddings([place]), old)
    assert gallery.prototypes.labels == ("a", "b", "c", "d")
    assert gallery.prototypes.counts.tolist() == [4, 4, 4, 1]
    assert gallery.verify().problems == ()
    before = gallery.manifest
    assert gallery.add(photos, encoder).unchanged == 13
    assert gallery.manifest == before  # nothing to do, nothing written


def test_files_from_elsewhere_are_known_by_their_absolute_path(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    other = _paint(tmp_path / "elsewhere" / "x" / "1.png", 60)
    assert gallery.add(tmp_path / "elsewhere", encoder).added == 1
    assert gallery.add([other, photos / "a" / "00.png"], encoder).unchanged == 2
    record = gallery.records(gallery.ids[-1:])[0]
    assert record.path == other.as_posix()
    assert gallery.file(record) == other
    assert gallery.remove(paths=[other]) == 1


def test_a_new_label_replaces_and_no_label_changes_nothing(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nphotos/a/00.png,zebra\nphotos/a/03.png,a\n")
    report = gallery.add(table, encoder)
    assert (report.replaced, report.unchanged) == (1, 1)
    assert "zebra" in gallery.labels
    assert gallery.prototypes.count("zebra") == 1
    assert gallery.add(photos, encoder, labels="none").unchanged == 12
    assert "zebra" in gallery.labels


def test_an_encoder_of_another_fingerprint_adds_nothing(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    with pytest.raises(FingerprintMismatchError):
        gallery.add(photos, Encoder(Colours(), transform=Transform(24)))


def test_two_objects_of_one_gallery_see_each_others_changes_when_they_write(
    tmp_path: Path, photos: Path, encoder: Encoder
) -> None:
    one = Gallery.build(photos, encoder, out=tmp_path / "g")
    other = Gallery.open(tmp_path / "g")
    assert other.prototypes.total == 12
    one.remove(where="label=a")
    assert len(other) == 12  # a reader keeps its generation
    other.remove(where="label=b")
    assert other.labels == ("c",)
    assert other.prototypes.counts.tolist() == [4]


# --- One file ---------------------------------------------------------------------------------------------------------


def test_encodings_in_one_file_are_read_as_arrays(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    report = encode_to_file(photos, encoder, tmp_path / "e.h5", store_maps=True, precision="fp32")
    assert report.added == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.h5", "photos"]
    encodings = read_encodings(tmp_path / "e.h5")
    assert len(encodings) == 12
    assert encodings.labels == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    files = [encodings.file_of(record) for record in encodings.records]
    expected = Inference(encoder, precision="fp32").encode_images(files)
    np.testing.assert_allclose(encodings.pooled, expected.pooled.numpy(), rtol=1e-5, atol=1e-6)
    assert encodings.embeddings is encodings.pooled
    np.testing.assert_allclose(encodings.maps(slice(3, 5)), expected.feature_map[3:5].numpy(), atol=2e-3)
    assert encodings.encoder["fingerprint"] == encoder.fingerprint
    assert encodings.root == photos
    with pytest.raises(InputError, match="no column 'camera'"):
        encodings.column("camera")


def test_an_interrupted_file_goes_on_and_appears_only_when_whole(
    tmp_path: Path, photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt_after(monkeypatch, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        encode_to_file(photos, encoder, tmp_path / "e.h5", batch_size=3)
    assert not (tmp_path / "e.h5").exists()
    (photos / "a" / "00.png").unlink()  # encoded already, and not asked for any more
    report = encode_to_file(photos, encoder, tmp_path / "e.h5")
    assert (report.added, report.unchanged) == (6, 5)
    assert [record.path for record in read_encodings(tmp_path / "e.h5").records] == [
        record.path for record in list_images(photos)
    ]
    assert not (tmp_path / "e.h5.partial").exists()
    with pytest.raises(GalleryExistsError, match="is there already"):
        encode_to_file(photos, encoder, tmp_path / "e.h5")
    assert encode_to_file(photos, encoder, tmp_path / "e.h5", overwrite=True).added == 11


def test_a_file_of_something_else_is_refused(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    with pytest.raises(CorruptGalleryError, match="does not say what it is"):
        read_encodings(gallery.folder / gallery.manifest.segments[0].name)
    with pytest.raises(InputError, match="no such file; write it again with `distcam encode`"):
        read_encodings(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(CorruptGalleryError, match="cannot be read as HDF5"):
        read_encodings(tmp_path / "text.h5")


def test_reading_a_gallery_or_a_file_imports_no_torch(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    Gallery.build(photos, encoder, out=tmp_path / "g")
    encode_to_file(photos, encoder, tmp_path / "e.h5")
    code = (
        "import sys; from distcam.index import Gallery, read_encodings, verify_gallery\n"
        "g = Gallery.open(sys.argv[1]); g.search(g.embeddings([0]), 3); g.prototypes; g.remove(where='label=a')\n"
        "read_encodings(sys.argv[2]); g.verify(); assert 'torch' not in sys.modules"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "g"), str(tmp_path / "e.h5")]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_write_protected_gallery_can_be_searched_but_not_changed(
    tmp_path: Path, photos: Path, encoder: Encoder
) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    (tmp_path / "g").chmod(0o555)
    (tmp_path / "g" / ".lock").chmod(0o444)
    try:
        reader = Gallery.open(tmp_path / "g")
        assert len(reader.search(reader.embeddings([0]), 3)[0].ids) == 3
        if os.geteuid() != 0:  # root may write anywhere
            with pytest.raises(GalleryError, match="write-protected"):
                gallery.remove(where="label=a")
    finally:
        (tmp_path / "g").chmod(0o755)


def test_a_gallery_remembers_its_precision(photos: Path, small_encoder: Encoder, tmp_path: Path) -> None:
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", precision="fp32")
    assert gallery.info()["precision"] == "fp32"
    assert Retriever(gallery, small_encoder).inference.precision == "fp32"
