"""The mean background by hand, and in a gallery: as its images say, and brought along by every change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from distcam.encoders import Encoder, Inference, Linear
from distcam.encoders.encoding import border_mean, fold
from distcam.errors import CorruptGalleryError
from distcam.images import Transform
from distcam.index import Gallery
from distcam.index.storage.background import Background


def borders(*rows: tuple[float, float]) -> list[np.ndarray]:
    return [np.array(rows, np.float32)]


def after(old: Background | None, came: list[np.ndarray], *, moved: int = 0, left: int = 0) -> tuple[int, list[float]]:
    found = Background.after(old, came, moved=moved, left=left)
    assert found is not None
    return found.images, found.vector.tolist()


def test_the_mean_of_what_came() -> None:
    two = Background.after(None, borders((1, 2), (3, 6)), moved=0, left=0)
    assert (two.images, two.vector.tolist()) == (2, [2, 4])
    assert after(two, borders((5, 1))) == (3, [3, 3])


def test_images_that_leave_take_the_mean_with_them() -> None:
    four = Background.after(None, borders((1, 2), (3, 6), (1, 2), (3, 6)), moved=0, left=0)
    assert after(four, [], left=3) == (1, [2, 4])
    assert after(four, borders((8, 4)), left=2) == (3, [4, 4])
    assert after(four, borders((8, 9)), left=4) == (1, [8, 9])
    assert after(four, [], left=4) == (0, [2, 4])  # an emptied gallery goes on measuring


def test_rows_that_move_count_neither_as_left_nor_as_new() -> None:
    two = Background.after(None, borders((1, 2), (3, 6)), moved=0, left=0)
    assert after(two, [], moved=1, left=1) == (2, [2, 4])


def test_a_gallery_that_began_without_borders_has_no_background() -> None:
    assert Background.after(None, borders((1, 2)), moved=1, left=0) is None
    assert Background.after(None, [], moved=0, left=0) is None


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_gallery_keeps_the_mean_border_of_its_response_maps(photos: Path, tmp_path: Path, metric: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder.load(
        "conv4", weights="random", head=Linear(64, 16).eval(), transform=Transform(size=64, fit="squash")
    )
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g", metric=metric, precision="fp32")
    files = [gallery.file(record) for record in gallery.records(gallery.ids)]
    found = Inference(encoder, precision="fp32").encode_images(files)
    border = border_mean(fold(found.feature_map, pooling=encoder.pooling, head=encoder.head).map)
    if metric == "cosine":
        border = border / found.embedding.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(gallery.background, border.mean(0).numpy(), rtol=1e-4, atol=1e-5)
    vectors = gallery.embeddings(gallery.ids)
    if metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(gallery.prototypes.mean_magnitude(), np.abs(vectors).mean(0), rtol=1e-5, atol=1e-6)


def test_it_follows_add_remove_compact_sync_and_opening_again(
    photos: Path, small_encoder: Encoder, tmp_path: Path
) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    late = sorted(copy.rglob("*.jpg"))[::3]
    for file in late:
        file.rename(file.with_suffix(".later"))
    gallery = Gallery.build(copy, small_encoder, out=tmp_path / "g", precision="fp32")
    for file in late:
        file.with_suffix(".later").rename(file)
    gallery.sync(copy, small_encoder)
    whole = Gallery.build(copy, small_encoder, out=tmp_path / "whole", precision="fp32")
    np.testing.assert_allclose(gallery.background, whole.background, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gallery.prototypes.mean_magnitude(), whole.prototypes.mean_magnitude(), rtol=1e-5)
    late[0].rename(late[0].with_name("renamed.jpg"))
    gallery.sync(copy, small_encoder)
    gallery.remove(paths=[late[1]])
    gallery.compact()
    np.testing.assert_allclose(gallery.background, whole.background, rtol=1e-5, atol=1e-6)
    assert gallery.manifest.background.images == len(gallery) == len(whole) - 1
    assert np.array_equal(Gallery.open(tmp_path / "g").background, gallery.background)


def test_an_export_brings_it_along_and_other_vectors_have_none(small_gallery: Gallery, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="reads parquet: pip install 'distcam[parquet]'")
    from distcam.index.interop.export import export_gallery
    from distcam.index.interop.import_ import import_gallery

    export_gallery(small_gallery, tmp_path / "export")
    back = import_gallery(tmp_path / "export", tmp_path / "back", root=small_gallery.root)
    assert np.array_equal(back.background, small_gallery.background)
    assert back.manifest.background.images == len(small_gallery)
    assert import_gallery(tmp_path / "export", tmp_path / "l2", metric="l2").background is None


def test_a_background_of_another_width_or_of_no_numbers_is_damage(small_gallery: Gallery, tmp_path: Path) -> None:
    from distcam.index.storage.manifest import _checksum

    for mean, why in (("AAAAAA==", "has not the 64 numbers"), ("no!", "damaged"), ("AADAfw==", "not finite")):
        folder = tmp_path / why.replace(" ", "-")
        shutil.copytree(small_gallery.folder, folder)
        content = json.loads((folder / "manifest.json").read_text())
        content["background"]["mean"] = mean
        del content["checksum"]
        (folder / "manifest.json").write_text(json.dumps({**content, "checksum": _checksum(content)}))
        with pytest.raises(CorruptGalleryError, match=why):
            Gallery.open(folder)
