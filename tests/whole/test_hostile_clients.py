"""What strangers send: no answer is a 5xx, nothing is opened that they name, nothing large is kept or decoded."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from serving import BEARER, TOKEN, image_bytes, served, upload


@pytest.fixture(scope="module")
def client(small_gallery):
    with served(small_gallery.folder, max_upload_bytes=300_000, max_pixels=1_000_000) as client:
        yield client


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *, depth=8, colour=0, rows=b"", extra=b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved(image, kind, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def with_text(length) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * length, zip=True)
    return image_bytes(kind="PNG", pnginfo=info)


JPEG, PNG, WEBP = (image_bytes(kind=kind) for kind in ("JPEG", "PNG", "WEBP"))
GREY16 = saved(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16), "PNG")
FRAMES = [Image.new("RGB", (32, 32), (i, 0, 0)) for i in range(20)]
HUGE_EXIF = JPEG[:2] + b"\xff\xe1\xff\xfd" + b"Exif\0\0" + b"\xff" * 65525 + JPEG[2:]

HOSTILE = {
    # name: (bytes, statuses that are right)
    "nothing": (b"", {415}),
    "one byte": (b"\xff", {415}),
    "only a magic": (b"\xff\xd8\xff", {415}),
    "zeros": (bytes(1000), {415}),
    "text": (b"hello", {415}),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', {415}),
    "html": (b"<!doctype html><script>alert(1)</script>", {415}),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run", {415}),
    "pdf": (b"%PDF-1.4\n", {415}),
    "gif": (saved(FRAMES[0], "GIF"), {415}),
    "tiff": (saved(FRAMES[0], "TIFF"), {415}),
    "bmp": (saved(FRAMES[0], "BMP"), {415}),
    "pickle": (b"cos\nsystem\n(S'touch /tmp/owned'\ntR.", {415}),
    "zip bomb of pixels": (png(30_000, 30_000, rows=bytes(1000)), {413}),
    "more pixels than fit in memory": (png(2**31 - 1, 2**31 - 1), {413, 415}),
    "no pixels": (png(0, 0), {415}),
    "wide and flat": (png(1_000_000, 1, rows=bytes(1000)), {415}),
    "one pixel": (saved(Image.new("RGB", (1, 1)), "PNG"), {415}),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], {415}),
    "truncated png": (PNG[: len(PNG) // 2], {415}),
    "truncated webp": (WEBP[: len(WEBP) // 2], {415}),
    "png without data": (b"\x89PNG\r\n\x1a\n", {415}),
    "bad checksum": (PNG[:40] + b"\0\0\0\0" + PNG[44:], {415, 200}),
    "text bomb": (with_text(4 << 20), {415, 200}),
    "bad profile": (png(32, 32, extra=png_chunk(b"iCCP", b"x" * 100), rows=bytes(33 * 32)), {415, 200}),
    "huge exif": (HUGE_EXIF, {415, 200}),
    "jpeg with html behind": (JPEG + b"<script>alert(1)</script>", {200}),
    "jpeg and zip": (JPEG + b"PK\x03\x04" + bytes(100), {200}),
    "html in a jpeg's comment": (JPEG[:2] + b"\xff\xfe\x00\x1b<script>alert(1)</script>" + JPEG[2:], {200, 415}),
    "16 bits": (GREY16, {200}),
    "cmyk": (saved(Image.new("CMYK", (32, 32), (10, 20, 30, 40)), "JPEG"), {200}),
    "palette with transparency": (saved(Image.new("P", (32, 32)), "PNG", transparency=0), {200}),
    "one bit": (saved(Image.new("1", (32, 32)), "PNG"), {200, 400}),
    "grey": (saved(Image.new("L", (32, 32), 7), "JPEG"), {200}),
    "transparent": (saved(Image.new("RGBA", (32, 32), (9, 9, 9, 0)), "PNG"), {200}),
    "animated webp": (saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), {200}),
    "animated png": (saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), {200}),
    "multi-picture jpeg": (saved(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:3]), {200}),
    "progressive": (image_bytes(progressive=True), {200}),
    "lossless webp": (image_bytes(kind="WEBP", lossless=True), {200}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_image_breaks_the_server(client, name):
    data, right = HOSTILE[name]
    start = time.perf_counter()
    response = client.post("/api/v1/search", files=upload(data, name="x.jpg"))
    assert response.status_code in right, response.text
    assert time.perf_counter() - start < 5
    assert b"<script>" not in response.content


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([JPEG, PNG, WEBP]), st.data())
def test_no_damage_breaks_the_server(client, data, draws):
    damaged = bytearray(data)
    for _ in range(draws.draw(st.integers(1, 8))):
        damaged[draws.draw(st.integers(0, len(damaged) - 1))] = draws.draw(st.integers(0, 255))
    assert client.post("/api/v1/search", files=upload(bytes(damaged))).status_code in (200, 400, 413, 415)


# --- Sizes ------------------------------------------------------------------------------------------------------------


def test_what_is_too_large_is_refused_by_its_length(client):
    response = client.post("/api/v1/search", files=upload(JPEG + bytes(400_000)))
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert client.post("/api/v1/search/vector", content=b"[" + b"1," * 600_000).status_code == 413


def test_a_body_without_length_is_counted_while_it_comes_in(client):
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield bytes(10_000)

    response = client.post(
        "/api/v1/search", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert response.status_code == 413


def test_lying_about_the_length_does_not_help(client):
    for length in ("-1", "1e9", "9" * 500, "abc"):
        response = client.post("/api/v1/search/vector", content=b'{"vector":[1]}', headers={"Content-Length": length})
        assert response.status_code in (400, 413, 422)


# --- Words ------------------------------------------------------------------------------------------------------------

WORDS = [
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://169.254.169.254/",
    "<script>alert(1)</script>",
    "a\r\nSet-Cookie: x=1",
    "a\x00b",
    "%00",
    "{{7*7}}",
    "' or '1'='1",
    "x" * 3000,
    "\u202e",
    "𝔘",
    "NaN",
    "1e999",
    "-1",
    str(2**64),
    str(10**400),
]


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_no_word_leads_anywhere(client, word):
    for response in (
        client.post(
            "/api/v1/search", params={"k": 1}, files=upload(JPEG, name=word.replace("\x00", "").strip() or "x")
        ),
        client.get("/api/v1/images", params={"where": word}),
        client.get("/api/v1/images", params={"where": f"path={word!r}"}),
        client.get("/api/v1/images", params={"offset": word}),
        client.get("/api/v1/labels", params={"prefix": word}),
        client.get(f"/api/v1/images/{httpx_quote(word)}"),
        client.get(f"/api/v1/images/{httpx_quote(word)}/picture"),
        client.get(f"/static/{httpx_quote(word)}"),
        client.get("/api/v1/images/1/picture", params={"side": word}),
        client.get("/api/v1/images/1/picture", headers={"If-None-Match": word.encode("utf-8", "replace")}),
        client.post("/api/v1/explain", json={"token": word}),
        client.post("/api/v1/explain", json={"id": 1, "against": word}),
        client.post("/api/v1/explain", json={"id": 1, "versus": word, "against": "rank:1"}),
        client.post("/api/v1/explain", json={"id": 1, "weighting": word}),
        client.post("/api/v1/search/stored", json={"id": word}),
        client.post("/api/v1/search/vector", json={"vector": [word]}),
        client.get("/api/v1/gallery", headers={"Host": word.encode("utf-8", "replace")}),
    ):
        assert response.status_code < 500, (response.url, response.text)
        assert "root:" not in response.text
        assert "set-cookie" not in response.headers
        if "<script>" in response.text:  # a sentence may repeat a word, as JSON that no browser takes for a page
            assert response.headers["content-type"] == "application/json"


def httpx_quote(word):
    from urllib.parse import quote

    return quote(word, safe="/.")


@pytest.mark.parametrize(
    "path",
    ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "....//app.py", "..\\app.py", "/etc/passwd", "%2fetc%2fpasswd"],
)
def test_static_files_are_only_the_pages(client, path):
    assert client.get(f"/static/{path}").status_code == 404


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_numbers_that_are_none_and_vectors_that_do_not_fit(client, small_gallery):
    d = small_gallery.spec.embedding_dim
    for text in (
        '{"vector": [NaN]}',
        '{"vector": [Infinity]}',
        '{"vector": [1e999]}',
        json.dumps({"vector": [1e39] * d}),  # finite, but not in float32
        json.dumps({"vector": [0.0] * d}),  # no direction
        json.dumps({"vector": [1.0] * (d + 1)}),
        json.dumps({"vector": []}),
        json.dumps({"vector": "x"}),
        json.dumps({"vector": [[1.0] * d]}),
        json.dumps({"vector": [1.0] * d, "k": 10**30}),
        json.dumps({"vector": [1.0] * d, "k": 1.5}),
        '{"vector": [1], "max_distance": NaN}',
        '{"vector": [' + "1" * 5000 + "]}",
        "[" * 100_000,
        '{"a":' * 50_000,
        "{",
        "null",
        "",
        '"\\ud800"',
        '{"vector": [1], "where": "\\ud800"}',
        '{"vector": [1], "\\ud800": 1}',
    ):
        response = client.post(
            "/api/v1/search/vector", content=text.encode(), headers={"Content-Type": "application/json"}
        )
        assert response.status_code in (400, 422), (text[:50], response.text)
        assert set(response.json()) == {"detail"}
    extreme = client.post("/api/v1/search/vector", json={"vector": [1e-30] * d, "max_distance": -1e308})
    assert extreme.status_code == 200
    assert not client.post(
        "/api/v1/search/vector", content=b"\xff\xfe", headers={"Content-Type": "application/json"}
    ).is_success


@pytest.mark.parametrize(
    "box",
    [[0, 0, 0, 0], [9, 9, 1, 1], [-1e308, -1e308, 1e308, 1e308], [1e-300, 0, 2e-300, 64], [0, 0, 1e-7, 1e-7], [64] * 4],
)
def test_boxes_of_any_kind(client, box):
    for response in (
        client.post("/api/v1/search/stored", json={"id": 1, "box": box}),
        client.post("/api/v1/explain", json={"id": 1, "box": box}),
    ):
        assert response.status_code in (200, 400), response.text


def test_explanations_with_extreme_softness(client):
    for tau in (0, 1e-300, 1e6):
        assert client.post("/api/v1/explain", json={"id": 1, "tau": tau}).status_code == 200
    for tau in ("NaN", "-1", "1e7", "Infinity"):
        response = client.post(
            "/api/v1/explain", content=f'{{"id": 1, "tau": {tau}}}', headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 422


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="label path=!<>~()',\"\\in and or not *[]?\x00é", max_size=60))
def test_no_filter_breaks_the_server(client, text):
    response = client.get("/api/v1/images", params={"where": text})
    assert response.status_code in (200, 400, 422), response.text


def test_forms_that_are_none(client):
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for content, headers in (
        (b"", form),
        (b"--x--\r\n", form),
        (b"garbage", form),
        (b"--x\r\n\r\n\r\n--x--", form),
        (b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nhello\r\n--x--\r\n', form),
        (b"", {"Content-Type": "multipart/form-data"}),
        (b"x=1", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"\xff\xd8\xff", {"Content-Type": "image/jpeg"}),
        (b"{}", {"Content-Type": "application/json"}),
        (b"", {"Content-Type": "\u00ff/;;=".encode("latin-1")}),
    ):
        response = client.post("/api/v1/search", content=content, headers=headers)
        assert response.status_code in (400, 415, 422), (content, response.text)
    many = [("image", ("a", b"x", "image/png"))] * 1500
    assert client.post("/api/v1/search", files=many).status_code in (400, 413, 415)


def test_hostile_images_are_not_added_either(photos, small_encoder, tmp_path):
    from distcam.index import Gallery

    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", precision="fp32")
    with served(gallery.folder, token=TOKEN, uploads=tmp_path / "uploads", max_pixels=1_000_000) as client:
        for name, (data, right) in HOSTILE.items():
            if 200 in right or len(data) > 200_000:
                continue
            response = client.post("/api/v1/images", files=upload(data), headers=BEARER)
            assert response.status_code in right, (name, response.text)
        assert client.get("/health").json()["images"] == 24
    assert not (tmp_path / "uploads").exists()  # nothing was written before it was checked
