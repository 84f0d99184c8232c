"""Queries with texts: the ranking, the map on the match, texts joined with images, and encoders that take none."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from wordy import TinyTower

from distcam import Encoder, Gallery, Retriever
from distcam.encoders import Linear
from distcam.errors import InputError
from distcam.images import Transform
from distcam.retrieval import write_report


@pytest.fixture(scope="module")
def retriever(small_gallery, small_encoder):
    encoder = deepcopy(small_encoder)
    encoder.text = TinyTower(torch.from_numpy(small_gallery.embeddings(small_gallery.ids)))
    return Retriever(small_gallery, encoder, precision="fp32")


def picture(photos, index=0):
    return sorted(photos.rglob("*.jpg"))[index]


def test_a_text_ranks_by_its_vector_as_an_image_would(retriever) -> None:
    words, image = retriever.query_text("image 5", k=4), retriever.query_stored(5, k=4, include_self=True)
    assert list(words.ids) == list(image.ids)
    np.testing.assert_allclose([m.distance for m in words], [m.distance for m in image], atol=1e-6)
    several = retriever.query_text(["image 5", "image 7"], k=4, where="label!=none")
    assert [len(each) for each in several] == [4, 4]
    assert list(several[0].ids) == list(words.ids)


@pytest.mark.parametrize("weighting", ["dist", "dot", "caam"])
def test_the_map_on_a_match_is_that_of_an_image_with_the_texts_vector(retriever, weighting) -> None:
    words = retriever.query_text("image 5", k=3).explain(weighting=weighting)
    image = retriever.query_stored(5, k=3, include_self=True).explain(weighting=weighting)
    torch.testing.assert_close(words.reference_maps, image.reference_maps)
    assert words.query_maps.shape == (3, 1, 1)
    assert words.sensitivity is None


def test_the_parts_of_a_texts_similarity_sum_to_it(retriever) -> None:
    explanation = retriever.query_text("image 2", k=3).explain(weighting="dot")
    similarities = [match.similarity for match in explanation.matches]
    assert explanation.reference_maps is not None
    sums = explanation.reference_maps.sum((1, 2))
    shares = sums / sums[0] * similarities[0]  # up to the map's scale
    np.testing.assert_allclose(shares, similarities, atol=1e-5)


def test_text_and_image_are_the_weighted_mean_of_unit_vectors(retriever, photos) -> None:
    files, table = sorted(photos.rglob("*.jpg")), retriever.encoder.text.table
    unit = nn.functional.normalize(table, dim=1)
    joined = retriever.query(files[3], text="image 9", text_weight=0.25, k=len(files))
    expected = 1 - unit @ nn.functional.normalize(0.75 * unit[3] + 0.25 * unit[9], dim=0)
    np.testing.assert_allclose([m.distance for m in joined], expected[[int(m.id) for m in joined]], atol=1e-5)
    stored = retriever.query_stored(3, text="image 9", text_weight=0.25, include_self=True, k=len(files))
    assert list(stored.ids) == list(joined.ids)
    assert joined.query.name.endswith("3.jpg (0.75) with 'image 9' (0.25)")
    assert joined.to_dict()["text_weight"] == 0.25


def test_the_map_of_a_joined_query_has_the_searched_vector_as_its_mean(retriever, photos) -> None:
    from distcam.images import Box
    from distcam.retrieval.evidence import Evidence

    for region in (None, Box(8, 8, 40, 48)):
        matches = retriever.query(picture(photos), region=region, text="image 9", k=2)
        evidence = Evidence(matches, "metric")
        torch.testing.assert_close(evidence.query_response.map.mean((2, 3)), evidence.query_vector)


def test_a_head_takes_texts_to_where_it_takes_images(photos, small_encoder, tmp_path) -> None:
    torch.manual_seed(0)
    encoder = Encoder(small_encoder.backbone, head=Linear(64, 8), transform=Transform(64, fit="squash")).eval()
    with Gallery.build(photos, encoder, out=tmp_path / "g", precision="fp32") as gallery:
        encoder.text = TinyTower(torch.from_numpy(gallery.pooled(gallery.ids)))
        assert Retriever(gallery, encoder, precision="fp32").query_text("image 4", k=1)[0].id == 4


def test_a_text_tower_is_no_part_of_the_fingerprint(small_encoder) -> None:
    encoder = deepcopy(small_encoder)
    encoder.text = TinyTower(torch.eye(64))
    assert encoder.fingerprint == small_encoder.fingerprint


def test_texts_are_drawn_and_reported_on_the_matches_alone(retriever, tmp_path, photos) -> None:
    words = retriever.query_text("image 5", k=2).explain()
    joined = retriever.query(picture(photos), text="image 5", k=2).explain()
    assert joined.show().height > words.show().height  # without the row of the query under its maps
    report = write_report(tmp_path / "why.html", [words, joined]).read_text(encoding="utf-8")
    assert '"query_maps":null' in report
    assert words.save(tmp_path / "why.npz").is_file()


def test_what_no_text_can_answer_is_refused(retriever, small_gallery, small_encoder, photos) -> None:
    with pytest.raises(InputError, match="conv4 has no text tower"):
        Retriever(small_gallery, small_encoder).query_text("a red mug")
    for texts in ("", [], ["image 1", " "]):
        with pytest.raises(InputError, match="expected"):
            retriever.query_text(texts)
    with pytest.raises(InputError, match="no features before the head"):
        retriever.query_text("image 1").explain(space="backbone")
    with pytest.raises(InputError, match="prototype"):
        retriever.query_text("image 1").explain(against="prototype")
    with pytest.raises(InputError, match="text_weight` between 0 and 1"):
        retriever.query(picture(photos), text="image 1", text_weight=1.0)


def test_joining_needs_a_metric_of_directions(photos, small_encoder, tmp_path) -> None:
    encoder = deepcopy(small_encoder)
    with Gallery.build(photos, encoder, out=tmp_path / "g", metric="l2", precision="fp32") as gallery:
        encoder.text = TinyTower(torch.from_numpy(gallery.embeddings(gallery.ids)))
        retriever = Retriever(gallery, encoder, precision="fp32")
        assert retriever.query_text("image 3", k=1)[0].id == 3
        with pytest.raises(InputError, match="build it with metric cosine or dot"):
            retriever.query_stored(3, text="image 1")
