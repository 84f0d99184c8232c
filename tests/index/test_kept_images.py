"""Galleries of what was no file: their images lie in the gallery's own folder, and leave with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distcam import Encoder, Gallery, Retriever
from distcam.errors import GalleryExistsError, InputError

pytestmark = pytest.mark.usefixtures("own_state")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3)).astype(np.uint8)
LABELS = ["a", "a", "b", "b"]


def test_a_gallery_of_arrays_is_that_of_their_files_and_can_be_moved(tmp_path: Path, small_encoder: Encoder) -> None:
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    of_files = Gallery.build(sorted(tmp_path.glob("*.png")), small_encoder, out=tmp_path / "f", labels=LABELS)
    gallery = Gallery.build((PIXELS, LABELS), small_encoder, out=tmp_path / "g")
    np.testing.assert_array_equal(gallery.embeddings(gallery.ids), of_files.embeddings(of_files.ids))
    assert [record.label for record in gallery.records(gallery.ids)] == LABELS
    assert [record.columns for record in gallery.records(gallery.ids)] == [{"source": str(n)} for n in range(4)]
    assert gallery.root == tmp_path / "g" / "images"
    shutil.move(tmp_path / "g", tmp_path / "moved")
    moved = Gallery.open(tmp_path / "moved")
    assert [moved.file(number).is_file() for number in range(4)] == [True] * 4
    (match,) = Retriever(moved, small_encoder).query(PIXELS[2], k=1)
    assert (match.id, match.file.parent) == (2, tmp_path / "moved" / "images")


def test_more_images_are_added_and_known_ones_are_known(tmp_path: Path, small_encoder: Encoder) -> None:
    gallery = Gallery.build(list(PIXELS[:3]), small_encoder, out=tmp_path / "g")
    report = gallery.add(list(PIXELS[1:]), small_encoder)
    assert (report.added, report.replaced, report.unchanged) == (1, 2, 0)  # `source` says another place of two
    assert len(list((tmp_path / "g" / "images").iterdir())) == len(gallery) == 4
    rebuilt = Gallery.build(list(PIXELS[:2]), small_encoder, out=tmp_path / "g", overwrite=True)
    assert len(rebuilt) == 2


def test_nothing_is_written_beside_files_of_the_user(tmp_path: Path, small_encoder: Encoder) -> None:
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "mine" / "images" / "holiday.png").touch()
    with pytest.raises(GalleryExistsError, match="holds other files, such as images"):
        Gallery.build(list(PIXELS), small_encoder, out=tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine" / "images").iterdir()] == ["holiday.png"]


@pytest.mark.parametrize("source", [5, [1, 2], {"filename": ["a.png"]}])
def test_what_holds_no_images_is_refused_before_anything_is_written(
    tmp_path: Path, small_encoder: Encoder, source: Any
) -> None:
    with pytest.raises(InputError, match="expected a"):
        Gallery.build(source, small_encoder, out=tmp_path / "g")
    assert not (tmp_path / "g").exists()
