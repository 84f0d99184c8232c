"""Every route that reads: answers equal the library's, and what is wrong is said in one sentence."""

from __future__ import annotations

import io
import shutil
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from serving import BEARER, TOKEN, image_bytes, search, served, upload

from distcam.encoders import Encoder
from distcam.explain import WEIGHTINGS
from distcam.images import Box, Transform, image_size, read_image
from distcam.images.given import remote
from distcam.index import Gallery
from distcam.retrieval import Retriever
from distcam.server.answers import image_answer, shown_path, upright_size
from distcam.server.refusals import is_own_name
from distcam.server.routes.search import explain as explain_route


@pytest.fixture(scope="module")
def client(small_gallery):
    with served(small_gallery.folder) as client:
        yield client


@pytest.fixture(scope="module")
def retriever(small_gallery):
    return Retriever(small_gallery.folder)


# --- What it says about itself ----------------------------------------------------------------------------------------


def test_the_gallery_tells_what_is_in_it_and_what_can_be_asked(client, small_gallery):
    answer = client.get("/api/v1/gallery").json()
    assert (answer["images"], answer["classes"], answer["metric"]) == (24, 4, "cosine")
    assert answer["name"] == small_gallery.folder.name
    assert answer["fingerprint"] == small_gallery.manifest.encoder.fingerprint
    assert (answer["writable"], answer["stores_maps"], answer["rejection"]) == (False, False, None)
    assert answer["columns"] == ["path", "label"]
    assert {weighting["name"]: weighting["is_signed"] for weighting in answer["weightings"]}["dot"] is True
    assert answer["limits"] == {"image_bytes": 20 << 20, "pixels": 64_000_000, "k": 100}


def test_an_image_behind_a_url_is_searched_for_as_if_it_were_sent(client, small_gallery, monkeypatch):
    url, data = "https://example.org/a.jpg", image_bytes()
    asked = []
    monkeypatch.setattr("distcam.server.service.fetch", lambda url, **options: asked.append(options) or data)
    found = client.post("/api/v1/search", params={"url": url, "k": 3})
    assert found.json()["matches"] == search(client, data, k=3)["matches"]
    assert found.json()["query"]["name"] == url
    assert client.post("/api/v1/explain", json={"token": found.json()["query"]["token"]}).status_code == 200
    picture = client.post("/api/v1/fetch", params={"url": url})
    assert (picture.content, picture.headers["content-type"]) == (data, "image/jpeg")
    assert asked[0] == {"max_bytes": 20 << 20, "seconds": 10.0, "is_strangers": True}
    monkeypatch.setattr("distcam.server.service.fetch", lambda _url, **_options: b"<html>")
    assert client.post("/api/v1/fetch", params={"url": url}).status_code == 415
    assert client.post("/api/v1/search", params={"url": url}).status_code == 415
    assert client.post("/api/v1/search", params={"url": url}, files=upload(data)).status_code == 422
    with served(small_gallery.folder, urls=False) as closed:
        assert not closed.get("/api/v1/gallery").json()["fetches_urls"]
        for route in ("fetch", "search"):
            assert closed.post(f"/api/v1/{route}", params={"url": url}).status_code == 403


@pytest.mark.parametrize(
    "url", ["http://10.0.0.7/a.jpg", "http://127.0.0.1:8000/a.jpg", "file:///etc/passwd", "s3://b/a"]
)
def test_no_client_leads_the_server_into_a_private_network(client, monkeypatch, url):
    monkeypatch.setenv(remote.PRIVATE_VARIABLE, "allow")  # which is for the user's own URLs
    for route in ("fetch", "search"):
        answer = client.post(f"/api/v1/{route}", params={"url": url})
        assert answer.status_code == 422
        assert remote.PRIVATE_VARIABLE not in answer.json()["detail"]


def test_every_weighting_of_the_library_is_described(client):
    answer = client.get("/api/v1/gallery").json()
    assert [each["name"] for each in answer["weightings"]] == list(WEIGHTINGS)
    assert all(each["description"] for each in answer["weightings"])


def test_labels_and_prototypes_are_counted(client, small_gallery):
    for name in ("labels", "prototypes"):
        answer = client.get(f"/api/v1/{name}").json()
        assert answer["total"] == 4
        assert [entry["label"] for entry in answer[name]] == list(small_gallery.labels)
        assert {entry["images"] for entry in answer[name]} == {6}
    first = small_gallery.labels[0]
    some = client.get("/api/v1/labels", params={"prefix": first[:3].upper(), "limit": 1}).json()
    assert some["labels"][0]["label"] == first


def test_images_are_listed_in_pages_and_filtered(client, small_gallery):
    page = client.get("/api/v1/images", params={"offset": 22, "limit": 5}).json()
    assert [image["id"] for image in page["images"]] == [22, 23]
    assert page["total"] == 24
    label = small_gallery.labels[1]
    fitting = client.get("/api/v1/images", params={"where": f"label={label}"}).json()
    assert fitting["total"] == 6
    assert {image["label"] for image in fitting["images"]} == {label}
    assert client.get("/api/v1/images", params={"offset": 10**15}).json()["images"] == []
    one = client.get("/api/v1/images/7").json()
    assert one == {**small_gallery.records([7])[0].to_dict(), "has_picture": True}


def test_an_image_is_made_anew_upright_and_can_be_cached(client, small_gallery):
    response = client.get("/api/v1/images/3/picture", params={"side": 32})
    assert response.headers["content-type"] == "image/jpeg"
    picture = Image.open(io.BytesIO(response.content))
    assert max(picture.size) == 32
    assert not picture.getexif()
    again = client.get(
        "/api/v1/images/3/picture", params={"side": 32}, headers={"If-None-Match": response.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/api/v1/images/3/picture").headers["etag"] != response.headers["etag"]


def test_an_image_in_a_browser_is_asked_for_again_before_it_is_shown(photos, small_encoder, tmp_path):
    file = tmp_path / "pictures" / "a.jpg"
    file.parent.mkdir()
    file.write_bytes(image_bytes(seed=1))
    gallery = Gallery.build(file.parent, small_encoder, out=tmp_path / "g", precision="fp32")
    with served(gallery.folder, token=TOKEN) as client:
        first = client.get("/api/v1/images/0/picture")
        assert "no-cache" in first.headers["cache-control"]
        known = {"If-None-Match": first.headers["etag"]}
        assert client.get("/api/v1/images/0/picture", headers=known).status_code == 304
        file.write_bytes(image_bytes((40, 40), seed=2))
        replaced = client.get("/api/v1/images/0/picture", headers=known)
        assert (replaced.status_code, replaced.content != first.content) == (200, True)
        client.delete("/api/v1/images/0", headers=BEARER)
        known = {"If-None-Match": replaced.headers["etag"]}
        assert client.get("/api/v1/images/0/picture", headers=known).status_code == 404


def test_health_readiness_and_metrics(client):
    search(client, image_bytes(seed=1))
    assert client.get("/health").json() == {"status": "ok", "images": 24, "generation": 1}
    assert client.get("/ready").status_code == 200
    client.get("/api/v1/images/99")
    text = client.get("/metrics").text
    for line in (
        "distcam_gallery_images 24.0",
        'distcam_requests_total{route="/api/v1/images/{id}",status="404"} ',
        "distcam_batch_images_bucket",
        'distcam_step_seconds_count{step="search"}',
        'distcam_refused_total{reason="id"}',
        "distcam_queue_images 0.0",
    ):
        assert line in text
    assert "/images/99" not in text  # clients must not make up series


# --- Searching --------------------------------------------------------------------------------------------------------


def test_an_image_finds_what_the_library_finds(client, retriever):
    data = image_bytes((100, 70), seed=3)
    answer = search(client, data, k=5)
    expected = retriever.query(data, k=5)
    assert [match["id"] for match in answer["matches"]] == expected.ids.tolist()
    for ours, theirs in zip(answer["matches"], expected, strict=True):
        assert ours["distance"] == pytest.approx(theirs.distance, abs=1e-6)
        assert ours["similarity"] == pytest.approx(1 - theirs.distance, abs=1e-6)
        assert (ours["rank"], ours["path"], ours["label"]) == (theirs.rank, theirs.path, theirs.label)
        assert (ours["has_picture"], ours["is_accepted"]) == (True, None)
    nearest = retriever.prototype_distances(expected.query.encoding)
    assert [entry["label"] for entry in answer["prototypes"]] == list(nearest)
    assert answer["query"]["size"] == [100, 70]
    assert (answer["max_distance"], answer["is_known"]) == (None, None)
    assert answer["timings_ms"]["total"] >= answer["timings_ms"]["search"] > 0


def test_a_box_searches_for_a_part_of_the_image(client, retriever):
    data = image_bytes((80, 80), seed=4)
    box = {"left": 5, "top": 10, "right": 60, "bottom": 50}
    answer = search(client, data, k=6, **box)
    expected = retriever.query(data, k=6, region=Box(5, 10, 60, 50))
    assert [match["id"] for match in answer["matches"]] == expected.ids.tolist()
    assert answer["query"]["box"] == [5, 10, 60, 50]
    missing = client.post("/api/v1/search", params={"left": 5}, files=upload(data))
    assert (missing.status_code, missing.json()["detail"]) == (422, "a region needs all of left, top, right and bottom")
    outside = client.post(
        "/api/v1/search", params={"left": 500, "top": 0, "right": 600, "bottom": 9}, files=upload(data)
    )
    assert outside.status_code == 400
    assert "outside the image" in outside.json()["detail"]


def test_an_upright_image_is_what_boxes_refer_to(client):
    exif = Image.Exif()
    exif[274] = 6
    assert search(client, image_bytes((100, 60), exif=exif))["query"]["size"] == [60, 100]


def test_a_stored_image_and_a_vector_find_what_the_library_finds(client, retriever):
    for include_self in (False, True):
        asked = {"id": 9, "k": 4, "include_self": include_self}
        answer = client.post("/api/v1/search/stored", json=asked).json()
        expected = retriever.query_stored(9, k=4, include_self=include_self)
        assert [match["id"] for match in answer["matches"]] == expected.ids.tolist()
    assert (answer["query"]["id"], answer["query"]["token"]) == (9, None)
    vector = retriever.gallery.embeddings([11])[0].tolist()
    by_vector = client.post("/api/v1/search/vector", json={"vector": vector, "k": 3}).json()
    assert by_vector["matches"][0]["id"] == 11
    assert by_vector["query"]["token"] is None


def test_a_threshold_says_no_match(client):
    answer = client.post("/api/v1/search/stored", json={"id": 0, "k": 3, "max_distance": 0.0}).json()
    assert answer["is_known"] is False
    assert {match["is_accepted"] for match in answer["matches"]} == {False}
    refused = client.post("/api/v1/search/stored", json={"id": 0, "reject": True})
    assert refused.status_code == 400
    assert "index calibrate" in refused.json()["detail"]


def test_a_filter_keeps_others_out(client, small_gallery):
    label = small_gallery.labels[2]
    answer = search(client, image_bytes(seed=5), k=50, where=f"label={label}")
    assert [match["label"] for match in answer["matches"]] == [label] * 6


# --- Explaining -------------------------------------------------------------------------------------------------------


def maps_of(answer, side):
    return torch.tensor(
        [np.reshape(r[side]["values"], (r[side]["rows"], r[side]["columns"])).tolist() for r in answer["references"]]
    )


@pytest.mark.parametrize("against", ["match", "rank:2", "prototype", "label:LABEL"])
@pytest.mark.parametrize("weighting", ["root_ratio", "dist", "dot_centered"])
def test_explanations_are_those_of_the_library(client, retriever, against, weighting):
    against = against.replace("LABEL", retriever.gallery.labels[3])
    data = image_bytes((90, 60), seed=6)
    token = search(client, data, k=3)["query"]["token"]
    asked = {"token": token, "k": 3, "against": against, "weighting": weighting}
    answer = client.post("/api/v1/explain", json=asked).json()
    expected = retriever.query(data, k=3).explain(against=against, weighting=weighting)
    torch.testing.assert_close(maps_of(answer, "query_map"), expected.query_maps, atol=1e-4, rtol=1e-3)
    if weighting == "dist":
        assert answer["references"][0]["dist_map"] is None
    else:
        torch.testing.assert_close(maps_of(answer, "dist_map"), expected.dist_maps, atol=1e-4, rtol=1e-3)
    assert answer["words"][0] == expected.words[0]
    assert answer["is_signed"] == expected.is_signed
    assert answer["is_rectified"] == (weighting == "root_ratio")
    assert answer["sensitivity"] == pytest.approx(expected.sensitivity, abs=0.05)
    assert answer["query"] == {"size": [90, 60], "view": [0, 0, 90, 60]}
    if expected.reference_maps is None:
        assert {reference["match_map"] for reference in answer["references"]} == {None}
    else:
        torch.testing.assert_close(maps_of(answer, "match_map"), expected.reference_maps, atol=1e-4, rtol=1e-3)
        assert answer["references"][0]["match_size"] == [64, 64]
        assert answer["references"][0]["match_view"] == [0, 0, 64, 64]


def test_an_elongated_upload_is_looked_at_closer_as_by_the_library(photos, tmp_path):
    encoder = Encoder.load("conv4", weights="random", transform=Transform(size=64, fit="pad"))
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g", precision="fp32")
    data = image_bytes((96, 32), seed=6)
    with served(gallery.folder) as client:
        asked = {"token": search(client, data, k=3)["query"]["token"], "k": 3}
        answers = [client.post("/api/v1/explain", json=asked | more).json() for more in ({}, {"detail": "plain"})]
    expected = [Retriever(gallery).query(data, k=3).explain(detail=detail) for detail in ("auto", "plain")]
    for answer, own in zip(answers, expected, strict=True):
        torch.testing.assert_close(maps_of(answer, "query_map"), own.query_maps, atol=1e-4, rtol=1e-3)
    assert [own.query_maps.shape[1:] for own in expected] == [(6, 6), (4, 4)]


def test_an_explanation_of_more_images_than_may_wait_does_not_fill_the_queue(small_gallery):
    with served(small_gallery.folder, queue=2, max_batch=3) as client:
        assert client.post("/api/v1/explain", json={"id": 4, "k": 7}).status_code == 200


def test_a_contrast_names_what_it_is_set_against(client, retriever):
    label = retriever.gallery.labels[1]
    asked = {"id": 4, "k": 2, "against": "rank:1", "versus": f"label:{label}", "both_sides": False}
    answer = client.post("/api/v1/explain", json=asked).json()
    assert answer["versus"] == f"prototype of {label}"
    assert answer["is_signed"] is True
    assert answer["references"][0]["match_map"] is None
    expected = retriever.query_stored(4, k=2).explain(against="rank:1", versus=f"label:{label}")
    torch.testing.assert_close(maps_of(answer, "query_map"), expected.query_maps, atol=1e-4, rtol=1e-3)


def test_a_region_is_explained_with_the_region(client, retriever):
    asked = {"id": 4, "k": 2, "box": [0, 0, 32, 64], "against": "rank:1"}
    values = client.post("/api/v1/explain", json=asked).json()["references"][0]["query_map"]["values"]
    assert np.allclose(np.reshape(values, (4, 4))[:, 2:], 0)  # outside it nothing was searched for


def test_queries_have_to_be_named_once_and_be_known(client):
    for asked in ({}, {"id": 0, "token": "x"}):
        assert client.post("/api/v1/explain", json=asked).status_code == 422
    unknown = client.post("/api/v1/explain", json={"token": "nobody-knows-it"})
    assert (unknown.status_code, unknown.json()["detail"]) == (
        410,
        "this query is not kept any more; send the image again",
    )
    assert client.post("/api/v1/explain", json={"id": 77}).status_code == 404
    assert client.post("/api/v1/explain", json={"id": 0, "against": "label:nobody"}).status_code == 400
    assert client.post("/api/v1/explain", json={"id": 0, "against": "rank:77"}).status_code == 400


def test_images_that_are_gone_leave_the_rest_of_the_answer(photos, small_encoder, tmp_path):
    shutil.copytree(photos, tmp_path / "pictures")
    gallery = Gallery.build(tmp_path / "pictures", small_encoder, out=tmp_path / "g", precision="fp32", store_maps=True)
    shutil.rmtree(tmp_path / "pictures")
    with served(gallery.folder) as client:
        stored = client.post("/api/v1/search/stored", json={"id": 1, "k": 2}).json()
        assert [match["has_picture"] for match in stored["matches"]] == [False, False]
        assert client.get("/api/v1/images/1/picture").status_code == 404
        answer = client.post("/api/v1/explain", json={"id": 1, "k": 2}).json()
        assert answer["query"] == {"size": None, "view": None}
        assert answer["references"][0]["match_size"] is None
        assert answer["references"][0]["match_map"]["rows"] == 4  # the gallery keeps maps
        assert client.post("/api/v1/search/stored", json={"id": 1, "box": [0, 0, 9, 9]}).status_code == 404


# --- Around the routes ------------------------------------------------------------------------------------------------


def test_errors_are_one_sentence_and_never_repeat_what_was_sent(client, small_gallery):
    for method, path, options, status in (
        ("GET", "/api/v1/nothing", {}, 404),
        ("GET", "/api/v1/images/99", {}, 404),
        ("GET", "/api/v1/images/-1", {}, 422),
        ("GET", "/api/v1/images?where=label~~", {}, 400),
        ("POST", "/api/v1/search?k=0", {"files": upload(image_bytes())}, 422),
        ("POST", "/api/v1/search?k=101", {"files": upload(image_bytes())}, 422),
        ("POST", "/api/v1/search", {}, 422),
        ("POST", "/api/v1/search/stored", {"json": {"id": 1, "surprise": 1}}, 422),
        ("POST", "/api/v1/search/vector", {"json": {"vector": [1.0]}}, 400),
        ("PUT", "/api/v1/gallery", {}, 405),
    ):
        response = client.request(method, path, **options)
        assert response.status_code == status, (path, response.text)
        assert list(response.json()) == ["detail"]
        assert "\n" not in response.json()["detail"]
        assert str(small_gallery.folder.parent) not in response.text


def test_every_answer_has_the_headers_that_keep_browsers_safe(client):
    for path in ("/", "/api/v1/gallery", "/api/v1/nothing", "/static/nothing.js", "/health"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    assert client.get("/api/v1/gallery").headers["cache-control"] == "no-store"


def test_only_names_of_its_own_are_answered(client, small_gallery):
    for host in ("evil.example", "127.0.0.1.evil.example", "", "evil.example:8000"):
        response = client.get("/api/v1/gallery", headers={"Host": host})
        assert (response.status_code, "Host header" in response.text) == (400, True)
    for host in ("localhost:8000", "[::1]:8000", "10.0.0.7", "LOCALHOST"):
        assert client.get("/api/v1/gallery", headers={"Host": host}).status_code == 200
    with served(small_gallery.folder, allowed_hosts=frozenset({"photos.example"})) as other:
        assert other.get("/health", headers={"Host": "photos.example:8000"}).status_code == 200
    assert not is_own_name("0x7f.1", ())


def test_pages_of_other_servers_cannot_make_a_browser_ask(client):
    options = {"files": upload(image_bytes())}
    foreign = client.post("/api/v1/search", headers={"Origin": "http://evil.example"}, **options)
    assert foreign.status_code == 403
    own = client.post("/api/v1/search", headers={"Origin": "http://127.0.0.1:8000"}, **options)
    assert own.status_code == 200


def test_too_many_requests_are_told_when_to_come_again(small_gallery):
    with served(small_gallery.folder, rate=1.0) as client:
        answers = [client.get("/api/v1/gallery") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200  # watching is free


def test_no_more_requests_are_at_work_than_allowed(small_gallery):
    with served(small_gallery.folder, concurrency=2) as client:
        traffic = client.app.state.traffic
        with traffic.of("somebody"), traffic.of("somebody else"):
            refused = client.get("/api/v1/gallery")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert client.get("/health").status_code == 200  # watching is free
        assert client.get("/api/v1/gallery").status_code == 200
        assert not traffic.at_work


def test_who_has_less_than_an_equal_share_of_the_places_is_let_in_all_the_same(small_gallery):
    with served(small_gallery.folder, concurrency=4) as client:
        traffic = client.app.state.traffic
        with ExitStack() as stack:
            for _ in range(6):
                stack.enter_context(traffic.of("greedy"))
            assert client.get("/api/v1/gallery").status_code == 200
            for _ in range(2):
                stack.enter_context(traffic.of("testclient"))
            assert client.get("/api/v1/gallery").status_code == 429


def test_one_client_cannot_have_all_places(small_gallery):
    with served(small_gallery.folder, concurrency=8, client_concurrency=1) as client:
        traffic = client.app.state.traffic
        with traffic.of("testclient"):
            refused = client.get("/api/v1/gallery")
            assert (refused.status_code, "of your requests" in refused.text) == (429, True)
        with traffic.of("somebody"):
            assert client.get("/api/v1/gallery").status_code == 200


def test_a_request_that_takes_too_long_is_given_up(small_gallery):
    with served(small_gallery.folder, time_limit_s=0.1) as client:
        inference = client.app.state.service.inference
        client.app.state.service._batcher._work = lambda pixels: (
            __import__("time").sleep(0.3) or [inference(one[None]) for one in pixels]
        )
        response = client.post("/api/v1/search", files=upload(image_bytes()))
        assert response.status_code == 503
        assert "too long" in response.json()["detail"]


def test_a_server_that_ends_refuses_new_requests(small_gallery):
    with served(small_gallery.folder) as client:
        client.app.state.traffic.is_draining = True
        for path in ("/api/v1/gallery", "/ready"):
            response = client.get(path)
            assert response.status_code == 503
            assert response.headers["retry-after"]
            assert response.headers["connection"] == "close"


def test_a_failure_of_the_server_says_nothing_about_itself(small_gallery, monkeypatch, caplog):
    with served(small_gallery.folder) as client:

        async def broken(*_args, **_options):
            raise RuntimeError("secret")

        monkeypatch.setattr(client.app.state.service, "read", broken)
        response = client.get("/api/v1/gallery")
        assert (response.status_code, response.json()) == (500, {"detail": "the server failed; its log says how"})
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "RuntimeError: secret" in caplog.text


def test_sizes_are_read_from_headers_as_they_are_decoded(tmp_path):
    for number, (kind, suffix) in enumerate([("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")]):
        for orientation in (None, 1, 3, 6, 8, 99):
            exif = Image.Exif()
            if orientation is not None:
                exif[274] = orientation
            file = tmp_path / f"{number}-{orientation}.{suffix}"
            file.write_bytes(image_bytes((40, 24), kind=kind, exif=exif))
            assert image_size(file) == image_size(file.read_bytes()) == read_image(file).size, file.name
    assert upright_size(tmp_path / "gone.jpg") is None
    (tmp_path / "text.jpg").write_text("no")
    assert upright_size(tmp_path / "text.jpg") is None


def test_names_that_no_disk_takes_have_no_image(small_gallery):
    record = replace(small_gallery.records([1])[0], path="x" * 5000)
    assert image_answer(small_gallery, record).has_picture is False


def test_errors_call_the_gallery_by_no_place_and_change_no_other_word(small_gallery, tmp_path, monkeypatch):
    shutil.copytree(small_gallery.folder, tmp_path / "g")
    monkeypatch.chdir(tmp_path)
    for folder in ("g", tmp_path / "g"):
        with served(folder) as client:
            refused = client.post("/api/v1/search/stored", json={"id": 0, "reject": True}).json()["detail"]
            assert refused.startswith("the gallery keeps no threshold to reject by; choose one with `distcam index")


def test_a_gallery_whose_encoder_nobody_has_answers_what_needs_none(photos, tmp_path):
    module = Encoder(torch.nn.Conv2d(3, 8, 8, 8), transform=Transform(size=32, fit="squash"))
    gallery = Gallery.build(photos, module, out=tmp_path / "g", precision="fp32")
    with served(gallery.folder, token=TOKEN) as client:
        assert client.get("/api/v1/gallery").json()["images"] == 24
        found = client.post("/api/v1/search/stored", json={"id": 3, "k": 2, "include_self": True}).json()
        assert found["matches"][0]["id"] == 3
        vector = gallery.embeddings([5])[0].tolist()
        assert client.post("/api/v1/search/vector", json={"vector": vector}).json()["matches"][0]["id"] == 5
        for response in (
            client.post("/api/v1/search", files=upload(image_bytes())),
            client.post("/api/v1/images", files=upload(image_bytes()), headers=BEARER),
            client.post("/api/v1/search/stored", json={"id": 3, "box": [0, 0, 9, 9]}),
            client.post("/api/v1/explain", json={"id": 3}),
        ):
            assert (response.status_code, "--encoder" in response.text) == (409, True)
        assert client.delete("/api/v1/images/3", headers=BEARER).status_code == 204
        assert client.post("/api/v1/search/stored", json={"id": 3}).status_code == 404


def test_paths_outside_the_root_do_not_tell_where_they_lie():
    assert shown_path("/srv/secret/place/cat/1.jpg") == "…/cat/1.jpg"
    assert shown_path("cat/1.jpg") == "cat/1.jpg"


def test_the_schema_lists_every_error_a_route_can_give(client):
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    assert {"200", "400", "413", "415", "422", "429", "503"} <= set(paths["/api/v1/search"]["post"]["responses"])
    assert {"201", "401", "403", "409", "415"} <= set(paths["/api/v1/images"]["post"]["responses"])
    assert {"204", "401", "403", "404"} <= set(paths["/api/v1/images/{id}"]["delete"]["responses"])
    assert {"404", "409", "410"} <= set(paths["/api/v1/explain"]["post"]["responses"])
    assert explain_route.__name__ == paths["/api/v1/explain"]["post"]["operationId"]
