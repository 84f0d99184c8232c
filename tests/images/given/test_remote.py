"""Images by URL, from servers of this machine that answer well and badly."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from distcam.errors import ImageError, InputError
from distcam.images import list_images
from distcam.images.given import remote
from distcam.images.given.remote import PRIVATE_VARIABLE, fetch, is_public


def image_bytes() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 200, 9)).save(stream, "PNG")
    return stream.getvalue()


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = {"/a.png": image_bytes(), "/a%20b.png?q=1": image_bytes(), "/big": b"0" * 5000, "/short": b""}
        status, content = 200 if self.path in known else 404, known.get(self.path, b"")
        target = {"/to-a": "/a.png", "/loop": "/loop", "/to-file": "file:///etc/passwd"}.get(self.path)
        if self.path.startswith("/to?"):
            target = self.path.removeprefix("/to?")
        self.send_response(status if target is None else 302)
        if target is not None:
            self.send_header("Location", target)
        self.send_header("Content-Length", "9999" if self.path == "/short" else str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRIVATE_VARIABLE, "allow")


def test_an_address_of_a_private_network_is_refused_unless_it_is_asked_for(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (f"{address}/a.png", address.replace("127.0.0.1", "localhost")):
        with pytest.raises(ImageError, match=r"an address of a private network.*; DISTCAM_PRIVATE_URLS=allow"):
            fetch(url)
    monkeypatch.setenv(PRIVATE_VARIABLE, "allow")
    assert fetch(f"{address}/a.png") == image_bytes()


@pytest.mark.usefixtures("allowed")
def test_redirects_and_odd_letters_are_followed(address: str) -> None:
    assert fetch(f"{address}/to-a") == fetch(f"{address}/a b.png?q=1#part") == image_bytes()


@pytest.mark.usefixtures("allowed")
def test_a_public_address_never_leads_into_a_private_network(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = address.rpartition(":")[2]
    monkeypatch.setattr(remote, "is_public", lambda at: at == "127.0.0.1")
    assert fetch(f"{address}/to-a") == image_bytes()
    with pytest.raises(ImageError, match=r"redirected to http://127\.0\.0\.2:.*: 127\.0\.0\.2 is an address of"):
        fetch(f"{address}/to?http://127.0.0.2:{port}/a.png")


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none", "the server answered 404"),
        ("/loop", "more than 5 redirects"),
        ("/to-file", "is no address of http or https"),
        ("/big", "more than 0 MiB"),
        ("/short", "cannot be fetched: IncompleteRead|ended after 0 of 9,999 bytes"),
    ],
)
def test_an_answer_that_is_none_is_refused_with_its_reason(address: str, path: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        fetch(address + path, max_bytes=4000 if path != "/short" else 1 << 20)


def test_a_host_with_a_private_address_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(2, 1, 6, "", (at, 80)) for at in ("93.184.215.14", "10.0.0.7")]
    monkeypatch.setattr(remote.socket, "getaddrinfo", lambda *_args, **_options: found)
    with pytest.raises(ImageError, match=r"10\.0\.0\.7 is an address of a private network"):
        fetch("http://example.org/a.png")


@pytest.mark.parametrize(
    ("address", "expected"),
    [("93.184.215.14", True), ("127.0.0.1", False), ("169.254.169.254", False), ("10.1.2.3", False), ("::1", False),
     ("::ffff:127.0.0.1", False), ("fe80::1%eth0", False), ("2606:4700::1111", True), ("224.0.0.1", False),
     ("0.0.0.0", False), ("100.64.0.1", False)],
)  # fmt: skip
def test_addresses_of_the_internet_are_told_from_others(address: str, expected: bool) -> None:
    assert is_public(address) is expected


@pytest.mark.usefixtures("allowed")
def test_urls_are_images_of_a_listing(address: str, tmp_path: Path) -> None:
    listing = list_images([f"{address}/a.png", f"{address}/none"], keep=tmp_path / "kept")
    (record,) = listing
    assert record.columns == {"source": f"{address}/a.png"}
    assert listing.file(record).read_bytes() == image_bytes()
    assert listing.problems == (f"{address}/none: the server answered 404 Not Found",)
    with pytest.raises(InputError, match=r"none can be used; .*/none: the server answered 404"):
        list_images(f"{address}/none", keep=tmp_path / "kept")


def test_other_schemes_are_opened_by_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/photos/a.png", image_bytes())
    assert fetch("memory://photos/a.png") == image_bytes()
    with pytest.raises(ImageError, match=r"memory://photos/b\.png: cannot be fetched"):
        fetch("memory://photos/b.png")
    with pytest.raises(ImageError, match="more than 0 MiB"):
        fetch("memory://photos/a.png", max_bytes=10)
    with pytest.raises(ImageError, match="cannot be fetched: Protocol not known: nowhere"):
        fetch("nowhere://photos/a.png")


@pytest.mark.usefixtures("allowed")
def test_a_csv_may_hold_urls(address: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "own.png")
    (tmp_path / "t.csv").write_text(f"path,label\n{address}/a.png,green\nown.png,black\n{address}/none,lost\n")
    listing = list_images(tmp_path / "t.csv", keep=tmp_path / "kept")
    assert [(record.label, listing.file(record).is_file()) for record in listing] == [("green", True), ("black", True)]
    assert listing.problems == (f"{address}/none: the server answered 404 Not Found",)
