"""The atlas and pairs by the API: the library's own, behind the same door as everything else."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from serving import served

from distcam.retrieval import Retriever

pytestmark = pytest.mark.filterwarnings("ignore:what lines are measured against:distcam.remarks.DistcamWarning")


@pytest.fixture(scope="module")
def client(small_gallery):
    with served(small_gallery.folder) as client:
        yield client


def floats(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_points_and_scores_are_the_librarys(client, small_gallery):
    expected = small_gallery.atlas()
    answer = client.get("/api/v1/atlas").json()
    assert answer["ids"] == expected.ids.tolist()
    assert np.array_equal(floats(answer["points"]).reshape(-1, 2), expected.points)
    assert answer["outliers"] is None
    assert answer["columns"][0]["name"] == "label"
    scored = client.get("/api/v1/atlas", params={"outliers": True}).json()
    assert floats(scored["outliers"]) == pytest.approx(expected.outliers)


def test_the_read_token_opens_the_points_and_the_page_asks_for_it(small_gallery):
    with served(small_gallery.folder, read_token="a-token-to-read-with") as client:
        assert client.get("/atlas").status_code == 200
        assert client.get("/api/v1/atlas").status_code == 401
        assert client.post("/api/v1/explain", json={"id": 0, "other": 1}).status_code == 401
        bearer = {"Authorization": "Bearer a-token-to-read-with"}
        assert client.get("/api/v1/atlas", headers=bearer).status_code == 200


def test_of_a_pair_the_maps_and_lines_are_those_of_the_one_match(client, small_gallery):
    retriever, far = Retriever(small_gallery.folder), int(small_gallery.ids[-1])
    answer = client.post("/api/v1/explain", json={"id": 0, "other": far})
    assert answer.status_code == 200, answer.text
    (reference,) = answer.json()["references"]
    assert reference["id"] == far
    (path,) = (record.path for record in small_gallery.records([far]))
    expected = retriever.query_stored(0, where=f'path="{path}"').explain()
    assert reference["query_map"]["values"] == pytest.approx(expected.query_maps[0].flatten().tolist(), rel=1e-4)
    assert reference["distance"] == pytest.approx(expected.references[0].distance)


def test_a_pair_is_of_two_images_of_the_gallery_and_takes_no_filter(client):
    assert client.post("/api/v1/explain", json={"id": 0, "other": 999}).status_code == 404
    both = client.post("/api/v1/explain", json={"id": 0, "other": 1, "where": "label=cat"})
    assert both.status_code == 422
    assert "leave `where` out" in both.json()["detail"]
    assert client.post("/api/v1/explain", json={"id": 3, "other": 3}).status_code == 400
    lines = client.post("/api/v1/lines", json={"id": 0, "other": 5})
    assert lines.status_code == 200, lines.text
