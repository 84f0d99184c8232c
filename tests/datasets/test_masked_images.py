"""Masks written in VOC's layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from distcam.datasets.masked_images import VocFolder, overlay_mask, palette
from distcam.errors import GalleryError, InputError
from distcam.segmentation.data import MaskedImages


@pytest.fixture
def written(tmp_path):
    folder = VocFolder(tmp_path / "out", ["cat", "dog"], settings={"beta": 0.3})
    picture = tmp_path / "pets_1.jpg"
    Image.new("RGB", (12, 10)).save(picture)
    mask = np.zeros((10, 12), np.uint8)
    mask[0, :3] = (1, 2, 255)
    folder.write("pets/1", mask, image=picture)
    return folder


def test_what_is_written_is_read_as_voc(written) -> None:
    written.finish("train", ["pets/1"])
    data = MaskedImages.from_voc(written.folder)
    assert (data.class_names, data.names, data.labels(0)) == (("cat", "dog"), ("pets/1",), (0, 1))
    assert np.array_equal(data.mask(0), written.read("pets/1"))
    with Image.open(written.mask_file("pets/1")) as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((0, 0)) == (128, 0, 0)
        assert image.convert("RGB").getpixel((2, 0)) == (224, 224, 192)


def test_the_palette_is_that_of_voc() -> None:
    colours = np.array(palette()).reshape(256, 3)
    assert colours[15].tolist() == [192, 128, 128]  # person
    assert colours[20].tolist() == [0, 64, 128]  # tvmonitor
    assert len({tuple(colour) for colour in colours.tolist()}) == 256


def test_a_stopped_run_goes_on_and_another_one_is_refused(written, tmp_path) -> None:
    again = VocFolder(tmp_path / "out", ["cat", "dog"], settings={"beta": 0.3})
    assert again.has("pets/1")
    assert not again.has("pets/2")
    with pytest.raises(InputError, match=r"holds masks made with other settings \(see settings.json\)"):
        VocFolder(tmp_path / "out", ["cat", "dog"], settings={"beta": 0.4})
    (written.folder / "settings.json").write_text("{")
    with pytest.raises(InputError, match="other settings"):
        VocFolder(tmp_path / "out", ["cat", "dog"], settings={"beta": 0.3})


def test_a_folder_of_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "diary.txt").write_text("dear")
    with pytest.raises(InputError, match="is taken by something else"):
        VocFolder(tmp_path, ["cat"])
    with pytest.raises(InputError, match="is a file; choose a folder"):
        VocFolder(tmp_path / "diary.txt", ["cat"])


def test_a_mask_that_cannot_be_written_leaves_nothing_behind(written, monkeypatch) -> None:
    def full(self, path):
        raise OSError(28, "No space left on device")

    before = sorted(path.name for path in written.folder.rglob("*"))
    monkeypatch.setattr("distcam.files.Storage.sync", full)  # what is written reaches the disk before it gets its name
    with pytest.raises(GalleryError, match=r"2\.png: cannot be written \(No space left"):
        written.write("pets/2", np.zeros((2, 2), np.uint8))
    assert sorted(path.name for path in written.folder.rglob("*")) == before


def test_wrong_numbers_and_missing_masks_are_refused(written) -> None:
    with pytest.raises(InputError, match="pets/3: the mask holds 3; expected 0 to 2, or 255"):
        written.write("pets/3", np.full((2, 2), 3, np.uint8))
    with pytest.raises(InputError, match="has no mask of pets/9, so the list of train would be wrong"):
        written.finish("train", ["pets/1", "pets/9"])
    content = json.loads((written.folder / "settings.json").read_text())
    assert content == {"classes": ["cat", "dog"], "beta": 0.3}


def test_an_overlay_leaves_the_background_clear() -> None:
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    shown = np.asarray(overlay_mask(image, np.uint8([[0, 1]]), opacity=0.5))
    assert shown.tolist() == [[[100, 100, 100], [114, 50, 50]]]
