"""What version 0.1.0 wrote still opens, and answers as it did: a gallery, an encoder, a run, vectors, an export.

`fixtures/version_0_1_0.zip` was written by that version: 18 drawn images, a gallery of them with two removed and one
added, and what the command line printed.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import distcam

from distcam import DistcamWarning
from distcam.encoders import Encoder
from distcam.index import Gallery
from distcam.index.backends import verify_gallery
from distcam.retrieval import Retriever

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "version_0_1_0.zip"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "v0.1.0"


def test_its_gallery_is_sound_and_answers_as_it_did(old: Path) -> None:
    assert verify_gallery(old / "photos.gallery").is_sound
    expected = json.loads((old / "query.json").read_text())[0]["matches"]
    matches = Retriever(Gallery.open(old / "photos.gallery")).query(old / "images" / "square" / "2.png", k=5)
    assert [match.path for match in matches] == [match["path"] for match in expected]
    np.testing.assert_allclose(
        [match.distance for match in matches], [match["distance"] for match in expected], atol=1e-6
    )


def test_its_gallery_takes_new_images_and_gives_old_ones_back(old: Path) -> None:
    gallery = Gallery.open(old / "photos.gallery")
    encoder = Encoder.load(str(old / "encoder.safetensors"))
    gallery.add(str(old / "images"), encoder)
    assert len(gallery) == 17 + 18  # its recorded folder is elsewhere, so these are other files
    gallery.remove(where="label=cross")
    gallery.compact()
    assert len(gallery) == 12 + 12
    assert verify_gallery(old / "photos.gallery").is_sound


@pytest.mark.parametrize("name", ["encoder.safetensors", "run/seed-0/encoder.safetensors"])
def test_its_encoders_load_with_the_fingerprint_they_had(old: Path, name: str) -> None:
    loaded = Encoder.load(str(old / name))
    known = json.loads((old / "photos.gallery" / "manifest.json").read_text())["encoder"]
    assert (loaded.fingerprint == known["fingerprint"]) == (name == "encoder.safetensors")


def test_its_vectors_are_evaluated_to_the_same_recall(old: Path) -> None:
    expected = json.loads((old / "evaluate.json").read_text())
    scores = json.loads(distcam("evaluate", old / "images.h5", "--json", "--no-nmi"))["scores"]
    assert {name: score["value"] for name, score in scores.items()} == pytest.approx(
        {name: score["value"] for name, score in expected["scores"].items() if name != "NMI"}  # other starts
    )


def test_its_export_is_imported(old: Path) -> None:
    pytest.importorskip("pyarrow", reason="reads parquet: pip install 'distcam[parquet]'")
    with pytest.warns(DistcamWarning, match="brings no copy of"):  # as exports do today
        distcam("index", "import", old / "photos.export", "--out", old / "back.gallery")
    assert len(Gallery.open(old / "back.gallery")) == len(Gallery.open(old / "photos.gallery")) == 17


def test_its_recipe_still_trains(old: Path) -> None:
    distcam("train", old / "recipe.toml", "--out", old / "again")
    assert (old / "again" / "seed-0" / "encoder.safetensors").is_file()
