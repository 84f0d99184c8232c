"""Who may see what: roots that somebody named, the token for reading, and requests that mean one thing to everybody."""

from __future__ import annotations

import json
import shutil
import socket
from contextlib import suppress
from dataclasses import replace

import pytest
from commands import fails
from serving import BEARER, TOKEN, image_bytes, running, served, upload

from distcam.index import Gallery
from distcam.index.backends import is_root_of_this_user, new_gallery_id

READER = "a-token-to-read-with"


# --- Pictures under a root that somebody named ------------------------------------------------------------------------


@pytest.fixture
def gallery(photos, small_encoder, tmp_path):
    return Gallery.build(photos, small_encoder, out=tmp_path / "own.gallery", precision="fp32")


def as_from_a_stranger(folder, monkeypatch, tmp_path, **changes):
    """The gallery with other entries in its manifest, opened by a user who did not build it."""
    from distcam.index.storage.manifest import Manifest

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    if changes:
        from distcam.files import Storage

        replace(Manifest.load(folder), **changes).save(folder, Storage())


def shown(client, image=1):
    """Whether an image's file is there, in every way that a client can find out."""
    picture = client.get(f"/api/v1/images/{image}/picture").status_code == 200
    record = client.get(f"/api/v1/images/{image}").json()["has_picture"]
    found = client.post("/api/v1/search/stored", json={"id": 2, "k": 24}).json()["matches"]
    answers = {picture, record, *(match["has_picture"] for match in found if match["id"] == image)}
    why = client.post("/api/v1/explain", json={"id": 2, "k": 24, "both_sides": True}).json()
    if "references" in why:  # else the query's own image is not there
        answers |= {each["match_size"] is not None for each in why["references"] if each["id"] == image}
    assert len(answers) == 1, answers
    return picture


def test_images_of_an_own_gallery_are_shown(gallery):
    with served(gallery.folder) as client:
        assert shown(client)


def test_those_of_a_stranger_are_not_until_a_root_is_named(gallery, photos, monkeypatch, tmp_path):
    as_from_a_stranger(gallery.folder, monkeypatch, tmp_path)
    with served(gallery.folder) as client:
        assert not shown(client)
        assert client.post("/api/v1/search", files=upload(image_bytes())).status_code == 200
    with served(gallery.folder, root=photos) as client:
        assert shown(client)
    with served(gallery.folder, root=tmp_path) as client:
        assert not shown(client)


@pytest.mark.parametrize("root", ["/", "/etc", "/home"])
def test_a_root_that_was_changed_afterwards_is_nobodys(gallery, root):
    assert is_root_of_this_user(gallery.manifest)
    assert not is_root_of_this_user(replace(gallery.manifest, root=root))
    assert not is_root_of_this_user(replace(gallery.manifest, gallery_id=""))
    assert not is_root_of_this_user(replace(gallery.manifest, gallery_id=new_gallery_id()))
    assert not is_root_of_this_user(replace(gallery.manifest, gallery_id=new_gallery_id("/somewhere")))


def test_absolute_paths_and_links_out_of_the_root_are_not_followed(small_encoder, tmp_path):
    inside, outside = tmp_path / "photos", tmp_path / "private"
    for folder in (inside, outside):
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.png").write_bytes(image_bytes(seed=number + len(folder.name), kind="PNG"))
    (inside / "link.png").symlink_to(outside / "0.png")
    (inside / "set.csv").write_text(f"path,label\n0.png,a\nlink.png,a\n{outside}/1.png,b\n1.png,b\n")
    gallery = Gallery.build(inside / "set.csv", small_encoder, out=tmp_path / "g", precision="fp32")
    with served(gallery.folder) as client:
        names = {image["path"]: image["has_picture"] for image in client.get("/api/v1/images").json()["images"]}
        assert names == {"0.png": True, "link.png": False, "…/private/1.png": False, "1.png": True}


def test_images_that_were_added_here_are_shown_too(gallery, monkeypatch, tmp_path):
    as_from_a_stranger(gallery.folder, monkeypatch, tmp_path)
    with served(gallery.folder, token=TOKEN, uploads=tmp_path / "uploads") as client:
        new = client.post("/api/v1/images", files=upload(image_bytes(seed=77)), headers=BEARER).json()
        assert client.get(f"/api/v1/images/{new['id']}/picture").status_code == 200
        assert client.get("/api/v1/images/1/picture").status_code == 404


def test_a_copied_and_a_moved_gallery_stay_their_owners(gallery, tmp_path):
    shutil.copytree(gallery.folder, tmp_path / "copy.gallery")
    with served(tmp_path / "copy.gallery") as client:
        assert shown(client)


# --- The token for reading --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(small_gallery):
    with served(small_gallery.folder, read_token=READER, token=TOKEN) as client:
        yield client


PRIVATE = ["/api/v1/gallery", "/api/v1/images", "/api/v1/images/1/picture", "/api/v1/openapi.json", "/metrics", "/no"]


@pytest.mark.parametrize("path", PRIVATE)
def test_without_the_token_nothing_is_told(guarded, path):
    guarded.cookies.clear()
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "distcam_reader=wrong"}, {"Cookie": "\xe4=;;"}):
        answer = guarded.get(path, headers={name: value.encode("latin-1") for name, value in headers.items()})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("token", [READER, TOKEN])
def test_with_a_token_everything_is(guarded, token):
    guarded.cookies.clear()
    headers = {"Authorization": f"Bearer {token}"}
    assert guarded.get("/api/v1/gallery", headers=headers).status_code == 200
    assert guarded.get("/metrics", headers=headers).status_code == 200
    assert guarded.post("/api/v1/search/stored", json={"id": 1}, headers=headers).status_code == 200


def test_reading_is_not_writing(guarded):
    guarded.cookies.clear()
    headers = {"Authorization": f"Bearer {READER}"}
    assert guarded.delete("/api/v1/images/999", headers=headers).status_code == 401


def test_the_page_and_the_health_are_for_everybody(guarded):
    guarded.cookies.clear()
    for path in ("/", "/static/app.js", "/health", "/ready", "/favicon.ico"):
        assert guarded.get(path).status_code == 200


def test_the_page_gets_a_cookie_that_is_not_the_token(guarded):
    guarded.cookies.clear()
    assert guarded.get("/", params={"token": "wrong"}).status_code == 401
    answer = guarded.get("/", params={"token": READER}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert READER not in cookie
    assert guarded.get("/api/v1/gallery").status_code == 200
    guarded.cookies.clear()


def test_a_short_read_token_is_refused(small_gallery, monkeypatch, capsys, tmp_path):
    (tmp_path / "token").write_text("short")
    options = ("serve", small_gallery.folder, "--port", 0, "--read-token-file")
    assert "the read token needs at least 16" in fails(monkeypatch, capsys, *options, tmp_path / "token")
    monkeypatch.setenv("DISTCAM_READ_TOKEN", "short too")
    assert "the read token needs at least 16" in fails(monkeypatch, capsys, *options[:-1])


# --- Requests that mean one thing -------------------------------------------------------------------------------------

SMUGGLED = b"GET /api/v1/gallery HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"0\r\n\r\n" + SMUGGLED
POST, GET = (b"%s HTTP/1.1\r\nHost: localhost\r\n" % what for what in (b"POST /api/v1/search/vector", b"GET /health"))
HEADS = {
    "both": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    "both, the other way": GET + b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    "chunks in HTTP/1.0": POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6",
    "another coding": POST + b"Transfer-Encoding: gzip, chunked",
    "a coding twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "a space before the colon": POST + b"Content-Length : 5",
    "many headers": GET + b"\r\n".join(b"a%d: b" % i for i in range(200)),
    "a long header": GET + b"A: " + b"b" * 40_000,
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_two_meanings_or_of_any_size_end_the_connection(small_gallery, name):
    with running(small_gallery.folder) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(HEADS[name] + b"\r\n\r\n" + BODY)
            answer = b""
            with suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    answer += part
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert answer.split()[1][:2] in (b"40", b"42", b"43", b"50"), answer


ALLOWED = {
    "/api/v1/images": "GET, HEAD, OPTIONS, POST",
    "/api/v1/images/1": "DELETE, GET, HEAD, OPTIONS",
    "/api/v1/images/1/picture": "GET, HEAD, OPTIONS",
    "/api/v1/search": "OPTIONS, POST",
    "/health": "GET, HEAD, OPTIONS",
    "/static/app.js": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize("path", ALLOWED)
def test_every_method_of_a_path_is_listed(guarded, path):
    headers = {"Authorization": f"Bearer {READER}"}
    answer = guarded.request("PATCH", path, headers=headers)
    assert (answer.status_code, answer.headers["allow"]) == (405, ALLOWED[path])
    answer = guarded.request("OPTIONS", path, headers=headers)
    assert (answer.status_code, answer.headers["allow"]) == (204, ALLOWED[path])
    assert "access-control-allow-origin" not in answer.headers
    assert guarded.request("OPTIONS", "/api/v1/nothing", headers=headers).status_code == 404


@pytest.mark.parametrize(
    "path", ["/", "/health", "/metrics", "/static/app.js", "/api/v1/images", "/api/v1/images/1/picture"]
)
def test_head_is_get_without_a_body(guarded, path):
    headers = {"Authorization": f"Bearer {READER}"}
    get, head = guarded.get(path, headers=headers), guarded.head(path, headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "cache-control"):
        assert head.headers[name] == get.headers[name]
    assert path == "/metrics" or head.headers["content-length"] == get.headers["content-length"]


def test_messages_do_not_say_how_the_server_is_written(guarded):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    wrong = (
        guarded.post("/api/v1/search", data={"image": "text"}, headers=headers),
        guarded.post("/api/v1/images", files=upload(image_bytes()), params={"label": "a\u202eb"}, headers=headers),
        guarded.post("/api/v1/images", files=upload(image_bytes()), data={"columns": "[1]"}, headers=headers),
        guarded.post("/api/v1/search/stored", json={"id": 1, "k": 10**9}, headers=headers),
    )
    for answer in wrong:
        assert answer.status_code == 422
        text = json.dumps(answer.json())
        for internal in ("class '", "UploadFile", "\\\\x00", "pydantic", "Traceback", "^["):
            assert internal not in text
