"""Queries that an image of the gallery asks, and bare vectors."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from commands import distcam, fails

from distcam.errors import ImageError, InputError
from distcam.images import Box
from distcam.index import Gallery
from distcam.index.backends import opened_for_writing
from distcam.retrieval import Retriever
from distcam.retrieval.ranking import BareVector, Query


@pytest.fixture(scope="module")
def retriever(small_gallery):
    return Retriever(small_gallery.folder)


@pytest.fixture
def with_maps(photos, small_encoder, tmp_path):
    pictures = tmp_path / "pictures"
    shutil.copytree(photos, pictures)
    return Gallery.build(pictures, small_encoder, out=tmp_path / "maps.gallery", precision="fp32", store_maps=True)


def no_network(*_):
    raise AssertionError("a forward pass was made")


def test_a_stored_image_finds_what_its_file_finds(retriever):
    for image in (0, 7, 23):
        by_file = retriever.query(retriever.gallery.file(image), k=6)
        stored = retriever.query_stored(image, k=6, include_self=True)
        assert stored.ids.tolist() == by_file.ids.tolist()
        np.testing.assert_allclose(
            [match.distance for match in stored], [match.distance for match in by_file], atol=1e-5
        )
        assert stored.query.name == retriever.gallery.records([image])[0].path


def test_an_image_is_no_answer_to_itself_unless_it_is_asked_to_be(retriever):
    n = len(retriever.gallery)
    for image in (3, 12):
        ranked = retriever.query_stored(image, k=n).ids
        assert len(ranked) == n - 1
        assert image not in ranked
        assert retriever.query_stored(image, k=n, include_self=True).ids[0] == image
        assert retriever.query_stored(image, k=2).ids.tolist() == ranked[:2].tolist()


def test_nothing_is_encoded_until_a_map_is_asked_for(retriever, monkeypatch):
    calls = []
    encode = retriever.inference.encode_images
    monkeypatch.setattr(
        retriever.inference, "encode_images", lambda images: calls.append(len(images)) or encode(images)
    )
    matches = retriever.query_stored(5, k=3)
    assert matches.prototype is not None
    assert not calls
    stored = matches.explain()
    assert calls == [1]  # the query's own file, once
    fresh = retriever.query(retriever.gallery.file(5), k=4).explain(against="rank:2")
    torch.testing.assert_close(stored.query_maps[0], fresh.query_maps[0], atol=1e-4, rtol=1e-3)


def test_stored_maps_explain_without_network_and_without_pictures(with_maps, monkeypatch):
    retriever = Retriever(with_maps.folder)
    expected = retriever.query(retriever.gallery.file(5), k=4).explain(against="rank:2").query_maps
    monkeypatch.setattr(retriever.inference, "encode_images", no_network)
    shutil.rmtree(retriever.gallery.root)
    explanation = retriever.query_stored(5, k=3).explain()
    torch.testing.assert_close(explanation.query_maps[:1], expected, atol=1e-3, rtol=1e-2)  # half precision
    assert explanation.reference_maps.shape == explanation.query_maps.shape
    with pytest.raises(ImageError, match="no such file"):
        _ = explanation.query_view


def test_a_region_of_a_stored_image_is_a_region_of_its_file(retriever):
    box = Box(10, 10, 50, 40)
    by_file = retriever.query(retriever.gallery.file(9), k=5, region=box)
    stored = retriever.query_stored(9, k=5, region=box, include_self=True)
    assert stored.ids.tolist() == by_file.ids.tolist()


def test_filters_and_thresholds_are_those_of_a_query(retriever):
    label = retriever.gallery.labels[0]
    matches = retriever.query_stored(20, k=50, where=f"label={label}", max_distance=0.0)
    assert {match.label for match in matches} == {label}
    assert matches.is_known is False
    with pytest.raises(InputError, match="keeps no threshold"):
        retriever.query_stored(0, reject=True)
    with pytest.raises(InputError, match="no image with id 99"):
        retriever.query_stored(99)
    with pytest.raises(InputError, match="at least 1"):
        retriever.query_stored(0, k=0)


def test_a_bare_vector_is_searched_but_not_explained(retriever):
    vector = torch.from_numpy(retriever.gallery.embeddings([4]))
    (matches,) = retriever.rank([Query("a vector", None, BareVector(vector))], k=3)
    assert matches.ids[0] == 4
    with pytest.raises(InputError, match="query with an image to explain"):
        matches.explain()
    with pytest.raises(InputError, match="has no image"):
        _ = matches.query.image


def test_prototypes_follow_a_gallery_that_changes(with_maps):
    retriever = Retriever(with_maps)
    gone = with_maps.labels[0]
    assert gone in retriever.prototype_distances(retriever.stored(23).encoding)
    with_maps.remove(where=f"label={gone}")
    assert gone not in retriever.prototype_distances(retriever.stored(23).encoding)


def test_a_refreshed_gallery_has_what_another_process_changed(with_maps):
    reader = Gallery.open(with_maps.folder)
    assert reader.searcher.count() == 24
    assert not reader.refresh()
    with_maps.remove(where=f"label={with_maps.labels[0]}")
    assert reader.refresh()
    assert len(reader) == reader.searcher.count() == reader.prototypes.total == 18


def test_the_command_asks_by_id(small_gallery, monkeypatch, capsys, tmp_path):
    out = json.loads(distcam("query", small_gallery.folder, "--id", 3, "--id", 4, "-k", 2, "--json"))
    assert [answer["query"] for answer in out] == [record.path for record in small_gallery.records([3, 4])]
    assert all(len(answer["matches"]) == 2 for answer in out)
    assert 3 not in [match["id"] for match in out[0]["matches"]]
    report = tmp_path / "why.html"
    distcam("query", small_gallery.folder, "--id", 3, "--explain", report)
    assert report.stat().st_size > 1000
    assert "no image with id 777" in fails(monkeypatch, capsys, "query", small_gallery.folder, "--id", 777)
    assert "or --id" in fails(monkeypatch, capsys, "query", small_gallery.folder)


def test_a_gallery_without_its_encoder_is_asked_with_its_own_images(small_gallery, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(small_gallery.folder, tmp_path / "g")
    with opened_for_writing(folder) as writer:
        writer.commit(encoder=dataclasses.replace(writer.manifest.encoder, file=None))
    answer = json.loads(distcam("query", folder, "--id", 7, "-k", 3, "--json"))
    known = Retriever(small_gallery.folder).query_stored(7, k=3)
    assert [match["id"] for match in answer[0]["matches"]] == known.ids.tolist()
    assert "--encoder" in fails(monkeypatch, capsys, "query", folder, "--id", 7, "--explain", tmp_path / "why.html")
