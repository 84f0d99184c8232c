"""Texts sent to the server: alone, joined with an image, explained, and refused."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from serving import image_bytes, served
from wordy import TinyTower

from distcam import Encoder


@pytest.fixture
def client(small_gallery, small_encoder, monkeypatch):
    encoder = deepcopy(small_encoder)
    encoder.text = TinyTower(torch.from_numpy(small_gallery.embeddings(small_gallery.ids)))
    monkeypatch.setattr(Encoder, "load", lambda *_, **__: encoder)
    with served(small_gallery.folder) as client:
        yield client


def test_a_text_ranks_and_is_explained_on_the_matches(client) -> None:
    assert client.get("/api/v1/gallery").json()["has_text"] is True
    found = client.post("/api/v1/search", params={"text": "image 5", "k": 3}).json()
    assert found["matches"][0]["id"] == 5
    assert found["query"] == {"token": None, "id": None, "name": "image 5", "size": None, "box": None}
    explained = client.post("/api/v1/explain", json={"text": "image 5", "k": 3}).json()
    assert [len(each["match_map"]["values"]) for each in explained["references"]] == [16] * 3
    assert explained["query"] == {"size": None, "view": None}


def test_a_text_is_joined_with_an_image(client, small_gallery) -> None:
    upload = {"image": ("probe.jpg", image_bytes(), "image/jpeg")}
    alone = client.post("/api/v1/search", files=upload).json()
    joined = client.post("/api/v1/search", params={"text": "image 5", "text_weight": 0.9}, files=upload).json()
    assert alone["matches"][0]["id"] != joined["matches"][0]["id"] == 5
    token = joined["query"]["token"]
    again = client.post("/api/v1/explain", json={"token": token, "text": "image 5", "text_weight": 0.9}).json()
    assert [each["id"] for each in again["references"]] == [each["id"] for each in joined["matches"]]
    stored = client.post("/api/v1/search/stored", json={"id": 5, "text": "image 5", "include_self": True}).json()
    np.testing.assert_allclose(stored["matches"][0]["distance"], 0, atol=1e-6)


def test_what_names_no_query_is_refused(client, small_gallery) -> None:
    assert client.post("/api/v1/search").status_code == 422
    edges = {"left": 0, "top": 0, "right": 9, "bottom": 9}
    assert client.post("/api/v1/search", params={"text": "image 5", **edges}).status_code == 422
    assert client.post("/api/v1/explain", json={"k": 3}).status_code == 422


def test_an_encoder_without_a_text_tower_says_so(small_gallery) -> None:
    with served(small_gallery.folder) as client:
        assert client.get("/api/v1/gallery").json()["has_text"] is False
        refused = client.post("/api/v1/search", params={"text": "a red mug"})
        assert refused.status_code in (400, 422)
        assert "no text tower" in refused.json()["detail"]
