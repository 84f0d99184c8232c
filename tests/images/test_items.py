"""Items: names of boxes, and what is read of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcam.errors import ImageError
from distcam.images import Box, image_size, read_image
from distcam.images.items import item_of, split_item, widened
from distcam.images.opening import read_item


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    levels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("name", ["a.jpg", "a#1.jpg", "a.jpg#xywh=1,2,3", "#xywh=1,2,3,4", "a.jpg#xywh=-1,2,3,4"])
def test_a_name_without_a_whole_fragment_is_a_file(name: str) -> None:
    assert split_item(name) == (name, None)


def test_an_item_is_split_into_what_it_was_made_of() -> None:
    box = Box(3, 4, 30, 40)
    assert split_item(item_of("a#1/b.jpg", box)) == ("a#1/b.jpg", box)
    assert item_of("b.jpg", None) == "b.jpg"


def test_a_box_is_cut_out_of_its_image_when_it_is_read(photo: Path) -> None:
    item = item_of(photo, Box(5, 6, 25, 36))
    whole = np.asarray(read_image(photo))
    np.testing.assert_array_equal(np.asarray(read_image(item)), whole[6:36, 5:25])
    assert image_size(item) == (20, 30)


def test_a_margin_ends_at_the_edge_of_the_image(photo: Path) -> None:
    whole = np.asarray(read_image(photo))
    seen = read_item(photo.parent, "photo.png#xywh=2,10,20,20", margin=0.25)
    np.testing.assert_array_equal(np.asarray(seen), whole[5:35, 0:27])
    assert widened(photo, 0.25) == photo


def test_a_box_of_an_image_that_exif_turns_is_one_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (60, 40), (200, 0, 0)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg#xywh=0,40,40,20").size == (40, 20)
    with pytest.raises(ImageError, match="which is 40x60"):
        read_image(tmp_path / "turned.jpg#xywh=44,0,16,40")


def test_a_file_that_is_not_there_is_named_with_its_box(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"xywh.*no such file"):
        read_image(tmp_path / "no.jpg#xywh=0,0,10,10")
