"""Adding and removing through the server, and changes that others make while it runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time

import pytest
from serving import BEARER, TOKEN, image_bytes, served, upload

from distcam.encoders import Encoder
from distcam.errors import FingerprintMismatchError, InputError
from distcam.files import WriterLock
from distcam.images import Transform
from distcam.index import Gallery
from distcam.retrieval import Retriever
from distcam.server import ServerSettings, create_app


@pytest.fixture
def gallery(small_gallery, tmp_path):
    shutil.copytree(small_gallery.folder, tmp_path / "a.gallery")
    return Gallery.open(tmp_path / "a.gallery")


@pytest.fixture
def client(gallery):
    with served(gallery.folder, token=TOKEN) as client:
        yield client


def add(client, data, **params):
    return client.post("/api/v1/images", params=params, files=upload(data), headers=BEARER)


def found(client, data, k=100):
    return client.post("/api/v1/search", params={"k": k}, files=upload(data)).json()["matches"]


def test_an_added_image_is_found_at_once_explained_and_shown(client, gallery):
    data = image_bytes((90, 60), seed=1)
    response = client.post(
        "/api/v1/images",
        params={"label": "<b>new</b>"},
        files=upload(data, name="../../etc/passwd"),
        data={"columns": json.dumps({"camera": "3"})},
        headers=BEARER,
    )
    assert response.status_code == 201, response.text
    answer = response.json()
    assert (answer["id"], answer["label"], answer["columns"]) == (24, "<b>new</b>", {"camera": "3"})
    assert response.headers["location"] == "/api/v1/images/24"
    nearest = found(client, data)[0]
    assert (nearest["id"], nearest["has_picture"]) == (24, True)
    assert nearest["distance"] < 1e-6
    assert client.get("/api/v1/images/24/picture").status_code == 200
    assert client.post("/api/v1/explain", json={"id": 24, "against": "label:<b>new</b>"}).status_code == 200
    assert client.get("/api/v1/images", params={"where": "camera=3"}).json()["total"] == 1
    assert client.get("/health").json()["images"] == 25


def test_an_image_is_kept_as_it_came_under_a_name_of_its_contents(client, gallery):
    data = image_bytes(kind="PNG", seed=2)
    add(client, data)
    digest = hashlib.sha256(data).hexdigest()
    folder = gallery.folder.with_name(f"{gallery.folder.name}.uploads")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files == [folder / digest[:2] / f"{digest}.png"]  # the client said .jpg
    assert files[0].read_bytes() == data
    assert str(folder.parent) not in client.get("/api/v1/images/24").text


def test_the_same_image_twice_is_a_conflict_and_changes_nothing(client):
    data = image_bytes(seed=3)
    assert add(client, data, label="a").status_code == 201
    again = add(client, data, label="b")
    assert (again.status_code, again.json()["detail"]) == (409, "the gallery has this image already, as image 24")
    assert client.get("/api/v1/images/24").json()["label"] == "a"
    client.delete("/api/v1/images/24", headers=BEARER)
    assert add(client, data, label="b").json()["id"] == 25  # an id is never given out again


def test_a_removed_image_never_comes_back(client, gallery):
    record = gallery.records([5])[0]
    data = gallery.file(record).read_bytes()
    assert found(client, data)[0]["id"] == 5
    assert client.delete("/api/v1/images/5", headers=BEARER).status_code == 204
    assert 5 not in [match["id"] for match in found(client, data)]
    assert 5 not in [image["id"] for image in client.get("/api/v1/images").json()["images"]]
    for path in ("/api/v1/images/5", "/api/v1/images/5/picture"):
        assert client.get(path).status_code == 404
    assert client.post("/api/v1/search/stored", json={"id": 5}).status_code == 404
    assert client.delete("/api/v1/images/5", headers=BEARER).status_code == 404
    assert gallery.file(record).is_file()  # the user's own file stays


def test_who_has_no_token_changes_nothing_and_is_told_before_he_uploads(client, gallery):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": "é"}):
        headers = {name: value.encode("latin-1") for name, value in headers.items()}
        for response in (
            client.post("/api/v1/images", content=b"not even a form", headers=headers),
            client.delete("/api/v1/images/1", headers=headers),
        ):
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/health").json()["images"] == 24
    with served(gallery.folder) as reader:
        for response in (add(reader, image_bytes()), reader.delete("/api/v1/images/1", headers=BEARER)):
            assert response.status_code == 403
            assert "--writable" in response.json()["detail"]


def test_labels_and_columns_are_short_and_printable(client):
    for params, columns in (
        ({"label": ""}, "{}"),
        ({"label": "x" * 201}, "{}"),
        ({"label": "a\x00b"}, "{}"),
        ({"label": "\u202egpj.exe"}, "{}"),
        ({"label": "two\u2028lines"}, "{}"),
        ({}, "[]"),
        ({}, "{"),
        ({}, '{"a": 1}'),
        ({}, '{"path": "x"}'),
        ({}, '{"label": "x"}'),
        ({}, '{"": "x"}'),
        ({}, json.dumps({str(i): "x" for i in range(33)})),
        ({}, "[" * 15000),
        ({}, '{"a": "\\ud800"}'),
    ):
        response = client.post(
            "/api/v1/images", params=params, files=upload(image_bytes()), data={"columns": columns}, headers=BEARER
        )
        assert response.status_code == 422, (params, columns[:20], response.text)
    assert client.get("/health").json()["images"] == 24


def test_what_another_process_changes_is_seen_by_the_next_query(client, gallery, small_encoder, tmp_path):
    data = gallery.file(3).read_bytes()
    assert found(client, data)[0]["id"] == 3
    other = Gallery.open(gallery.folder)
    other.remove(paths=[gallery.records([3])[0].path])
    assert 3 not in [match["id"] for match in found(client, data)]
    new = tmp_path / "new.png"
    new.write_bytes(image_bytes(kind="PNG", seed=9))
    other.add([new], small_encoder)
    assert found(client, new.read_bytes())[0]["id"] == 24
    other.compact()
    assert found(client, new.read_bytes())[0]["id"] == 24
    assert client.get("/health").json() == {
        "status": "ok",
        "images": 24,
        "generation": other.manifest.generation,
    }


def test_another_encoder_under_the_gallery_is_refused_until_the_right_one_is_back(gallery, small_encoder):
    pictures = gallery.root
    stranger = Encoder.load("conv4", weights="random", seed=5, transform=Transform(size=64, fit="squash"))
    with served(gallery.folder) as client:
        Gallery.build(pictures, stranger, out=gallery.folder, precision="fp32", overwrite=True)
        for _ in range(2):
            response = client.post("/api/v1/search", files=upload(image_bytes()))
            assert response.status_code == 503
            assert "built anew with conv4/" in response.json()["detail"]
        assert client.get("/ready").status_code == 503
        Gallery.build(pictures, small_encoder, out=gallery.folder, precision="fp32", overwrite=True)
        assert client.post("/api/v1/search", files=upload(image_bytes())).status_code == 200


def test_a_gallery_built_anew_by_the_same_encoder_is_another_gallery(gallery, small_encoder, tmp_path):
    pictures = tmp_path / "others"
    for number in range(24):  # the ids are the same, and mean other images
        (pictures / "new").mkdir(parents=True, exist_ok=True)
        (pictures / "new" / f"{number:02}.png").write_bytes(image_bytes(kind="PNG", seed=number))
    with served(gallery.folder) as client:
        assert client.post("/api/v1/search/stored", json={"id": 7}).json()["matches"][0]["label"] != "new"
        Gallery.build(pictures, small_encoder, out=gallery.folder, precision="fp32", overwrite=True)
        data = (pictures / "new" / "07.png").read_bytes()
        answer = client.post("/api/v1/search", params={"k": 1}, files=upload(data)).json()
        assert (answer["matches"][0]["id"], answer["matches"][0]["has_picture"]) == (7, True)
        assert answer["matches"][0]["distance"] < 1e-6
        assert [entry["label"] for entry in answer["prototypes"]] == ["new"]


def test_a_damaged_gallery_is_refused_not_answered_wrongly(gallery):
    with served(gallery.folder) as client:
        manifest = gallery.folder / "manifest.json"
        good = manifest.read_bytes()
        manifest.write_bytes(good[:-20])
        response = client.get("/api/v1/gallery")
        assert response.status_code == 503
        assert response.headers["retry-after"]
        manifest.write_bytes(good)
        assert client.get("/api/v1/gallery").status_code == 200


def test_a_file_that_is_cut_off_below_the_server_is_noticed_by_the_next_request_and_by_ready(gallery):
    with served(gallery.folder) as client:
        assert client.get("/ready").status_code == 200
        segment = next(gallery.folder.glob("segment-*.h5"))
        whole = segment.read_bytes()
        os.truncate(segment, len(whole) // 2)
        assert client.post("/api/v1/search/stored", json={"id": 1}).status_code == 503
        assert client.get("/ready").status_code == 503
        segment.write_bytes(whole)
        time.sleep(1.1)
        assert client.get("/ready").status_code == 200
        assert client.post("/api/v1/search/stored", json={"id": 1}).status_code == 200


def test_while_somebody_else_writes_adding_is_refused_and_searching_is_not(client, gallery):
    with WriterLock(gallery.folder):
        response = add(client, image_bytes(seed=4))
        assert response.status_code == 503
        assert "is writing" in response.json()["detail"]
        assert found(client, image_bytes(seed=4))
    assert add(client, image_bytes(seed=4)).status_code == 201


def test_searching_beside_changes_gives_no_error_and_no_removed_image(client):
    problems, stop = [], threading.Event()
    gone: set[int] = set()

    def ask():
        data = image_bytes(seed=50)
        while not stop.is_set():
            before = set(gone)
            response = client.post("/api/v1/search", params={"k": 50}, files=upload(data))
            if response.status_code != 200:
                problems.append(response.text)
            elif before & {match["id"] for match in response.json()["matches"]}:
                problems.append("a removed image came back")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for seed in range(60, 63):
        new = add(client, image_bytes(seed=seed)).json()["id"]
        if seed % 2:
            assert client.delete(f"/api/v1/images/{new}", headers=BEARER).status_code == 204
            gone.add(new)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems


def test_the_caches_are_renewed_when_a_server_that_wrote_ends(gallery):
    with served(gallery.folder, token=TOKEN) as client:
        add(client, image_bytes(seed=7))
        assert not Gallery.open(gallery.folder).info()["prototypes_cached"]
    after = Gallery.open(gallery.folder)
    assert after.info()["prototypes_cached"]
    assert not after.verify().problems


def test_what_cannot_be_served_is_said_before_it_starts(gallery, tmp_path):
    stranger = Encoder.load("conv4", weights="random", seed=5, transform=Transform(size=64, fit="squash"))
    stranger.save(tmp_path / "stranger.safetensors")
    with pytest.raises(FingerprintMismatchError, match="leave --encoder out"):
        create_app(ServerSettings(gallery.folder, encoder=tmp_path / "stranger.safetensors"))
    with pytest.raises(InputError, match="at least 16"):
        ServerSettings(gallery.folder, token="short")
    for wrong in ({"max_batch": 0}, {"rate": float("nan")}, {"window_ms": float("inf")}, {"time_limit_s": 0}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must be at least"):
            ServerSettings(gallery.folder, **wrong)
    assert TOKEN not in repr(ServerSettings(gallery.folder, token=TOKEN))


# ------------------------------------------------------------------------------------------------ kept maps of matches


def forward_passes(client) -> int:
    lines = client.get("/metrics").text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("distcam_batch_images_sum"))))


def explained(client, **asked):
    answer = client.post("/api/v1/explain", json={"id": 4, "k": 3, **asked})
    assert answer.status_code == 200, answer.text
    return [reference["match_map"]["values"] for reference in answer.json()["references"]]


def test_another_weighting_of_the_same_matches_needs_no_forward_pass(client):
    maps = explained(client)
    before = forward_passes(client)
    assert explained(client) == maps
    assert explained(client, weighting="dist") != maps
    assert forward_passes(client) == before
    assert "distcam_match_bytes 0.0" not in client.get("/metrics").text


def test_a_server_may_keep_no_maps(gallery):
    with served(gallery.folder, match_bytes=0) as client:
        maps, before = explained(client), forward_passes(client)
        assert explained(client) == maps
        assert forward_passes(client) == before + 4  # three matches and the query
        assert "distcam_match_bytes 0.0" in client.get("/metrics").text


def test_kept_maps_are_those_of_the_files_and_of_the_gallery_as_they_are_now(photos, small_encoder, tmp_path):
    shutil.copytree(photos, tmp_path / "pictures")
    gallery = Gallery.build(tmp_path / "pictures", small_encoder, out=tmp_path / "g", precision="fp32")

    def fresh() -> list[list[float]]:
        with Gallery.open(gallery.folder) as now:
            maps = Retriever(now, small_encoder, device="cpu").query_stored(4, k=3).explain().reference_maps
        return maps.flatten(1).tolist()

    with served(gallery.folder, token=TOKEN) as client:
        maps = explained(client)
        assert maps == [pytest.approx(one, rel=1e-3, abs=1e-4) for one in fresh()]
        ranked = client.post("/api/v1/search/stored", json={"id": 4, "k": 3}).json()["matches"]
        file = gallery.file(ranked[1]["id"])
        file.write_bytes(image_bytes((64, 64), seed=9, kind="PNG"))
        changed = explained(client)
        assert [one == other for one, other in zip(changed, maps, strict=True)] == [True, False, True]
        assert changed == [pytest.approx(one, rel=1e-3, abs=1e-4) for one in fresh()]
        assert client.delete(f"/api/v1/images/{ranked[0]['id']}", headers=BEARER).status_code == 204
        assert explained(client) == [pytest.approx(one, rel=1e-3, abs=1e-4) for one in fresh()]
        with Gallery.open(gallery.folder) as other:
            other.remove(paths=[ranked[1]["path"]])
        assert explained(client) == [pytest.approx(one, rel=1e-3, abs=1e-4) for one in fresh()]
        file.unlink()
        added = add(client, image_bytes((64, 64), seed=5)).json()
        assert len(explained(client, id=added["id"])) == 3
