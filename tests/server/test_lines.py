"""Lines and verified rankings by the API: the library's own, for uploads and for stored images."""

from __future__ import annotations

import pytest
from serving import search, served

from distcam.retrieval import Retriever

pytestmark = pytest.mark.filterwarnings("ignore:what lines are measured against:distcam.remarks.DistcamWarning")


@pytest.fixture(scope="module")
def client(small_gallery):
    with served(small_gallery.folder) as client:
        yield client


@pytest.fixture(scope="module")
def retriever(small_gallery):
    return Retriever(small_gallery.folder)


def test_lines_of_an_upload_and_of_a_stored_image_are_the_librarys(client, retriever, photos):
    file = next(photos.rglob("*.jpg"))
    answer = search(client, file.read_bytes(), k=3)
    found = client.post("/api/v1/lines", json={"token": answer["query"]["token"], "k": 3, "rank": 2})
    assert found.status_code == 200, found.text
    expected = retriever.query(file, k=3).lines(2)
    assert found.json()["caption"] == expected.caption
    assert len(found.json()["lines"]) == len(expected.lines)
    stored = client.post("/api/v1/lines", json={"id": answer["matches"][0]["id"], "rank": 1})
    assert stored.status_code == 200, stored.text
    assert client.post("/api/v1/lines", json={"id": 0, "rank": 99}).status_code == 400


def test_a_search_may_be_verified(client, photos):
    answer = search(client, next(photos.rglob("*.jpg")).read_bytes(), k=4, verify=8)
    assert all(match["inliers"] is not None for match in answer["matches"])
    asked = {"token": answer["query"]["token"], "k": 4, "verify": 8}
    explained = client.post("/api/v1/explain", json=asked).json()["references"]
    assert [each["id"] for each in explained] == [match["id"] for match in answer["matches"]]
    assert all(
        match["inliers"] is None for match in search(client, next(photos.rglob("*.jpg")).read_bytes())["matches"]
    )


def test_the_page_gets_the_script_that_reports_hold(client):
    assert "export function drawLines" in client.get("/static/shared/lines.js").text
