"""What the tests of the server share: a client without a network, and images to send."""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the server needs pip install 'distcam[serve]'")

with warnings.catch_warnings():  # starlette would rather have another httpx
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

from distcam.server import ServerSettings, create_app

TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@contextmanager
def served(gallery: Path, **options):
    """A client of a gallery in service; `client.app` is the application."""
    app = create_app(ServerSettings(Path(gallery), **{"rate": 0, **options}))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


@contextmanager
def running(gallery: Path, **options):
    """The address of a gallery served by uvicorn on a free port of this machine, in a thread."""
    from distcam.server.app import bound_socket, server_of, url_of

    app = create_app(ServerSettings(Path(gallery), **{"rate": 0, **options}))
    bound, is_ready = bound_socket("127.0.0.1", 0), threading.Event()
    server = server_of(app, on_ready=is_ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        assert is_ready.wait(30)
        yield url_of(bound)
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()


def image_bytes(size=(64, 48), *, seed=0, kind="JPEG", **options) -> bytes:
    """An image of smooth noise as a file's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, kind, **options)
    return stream.getvalue()


def upload(data: bytes, name="picture.jpg", kind="image/jpeg"):
    """The form field of an image."""
    return {"image": (name, data, kind)}


def search(client, data, **options):
    """The answer of the server to an uploaded image."""
    response = client.post("/api/v1/search", params=options, files=upload(data))
    assert response.status_code == 200, response.text
    return response.json()
