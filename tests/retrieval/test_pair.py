"""Two images explained without a gallery are what a gallery of the second one would say."""

from __future__ import annotations

import gc

import pytest
import torch

from distcam import Gallery, Retriever
from distcam.errors import ImageError, InputError
from distcam.images import read_image
from distcam.retrieval import explain_pair


@pytest.fixture(scope="module")
def pair(photos):
    return sorted(photos.rglob("*.jpg"))[3], sorted(photos.rglob("*.jpg"))[8]


@pytest.mark.parametrize("metric", ["cosine", "l2", "l1", "dot"])
def test_a_pair_is_explained_as_by_a_gallery_of_one_image(pair, small_encoder, tmp_path, metric) -> None:
    gallery = Gallery.build([pair[1]], small_encoder, out=tmp_path / "g", precision="fp32", metric=metric)
    expected = Retriever(gallery, small_encoder, precision="fp32").query(pair[0], k=1).explain()
    found = explain_pair(small_encoder, *pair, metric=metric, precision="fp32")
    assert found.matches[0].distance == pytest.approx(expected.matches[0].distance, abs=1e-5)
    torch.testing.assert_close(found.query_maps, expected.query_maps)
    torch.testing.assert_close(found.reference_maps, expected.reference_maps)
    assert found.words == expected.words


def test_a_pair_has_lines_pages_and_panels_and_says_that_their_scale_is_the_usual_one(pair, small_encoder, tmp_path):
    found = explain_pair(small_encoder, *pair)
    assert "unrelated images, usually: 8" in found.lines(0).caption
    for name in ("why.html", "why.png", "why.npz"):
        assert found.save(tmp_path / name, lines=True).stat().st_size > 1000


def test_images_in_memory_are_files_for_as_long_as_they_are_needed(pair, small_encoder) -> None:
    found = explain_pair(small_encoder, read_image(pair[0]), pair[1].read_bytes())
    torch.testing.assert_close(found.query_maps, explain_pair(small_encoder, *pair).query_maps)
    file = found.references[0].match.file
    assert file.is_file()
    del found
    gc.collect()
    assert not file.exists()


@pytest.mark.parametrize("options", [{"mean": "border"}, {"weighting": "dot_centered"}, {"against": "prototype"}])
def test_what_needs_a_gallery_is_refused(pair, small_encoder, options) -> None:
    with pytest.raises(InputError, match=r"a gallery|the gallery's mean|no labels"):
        explain_pair(small_encoder, *pair, **options)


def test_a_file_that_is_gone_is_an_image_error(pair, small_encoder) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.jpg"):
        explain_pair(small_encoder, pair[0], "nowhere.jpg")
