"""The hostile clients of `soak`, in their own process: `python benchmarks/serving/hostile_clients.py PORT CLIENTS`."""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from PIL import Image

BOUNDARY = "distcam-soak"


def image_file(kind: str = "JPEG", size: tuple[int, int] = (320, 240), seed: int = 0, **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, kind, **options)
    return stream.getvalue()


def form(data: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + data + f"\r\n--{BOUNDARY}--\r\n".encode()


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JSON = {"Content-Type": "application/json"}


def main(port: int, clients: int, only: str | None = None) -> None:
    """From SIGUSR1 until SIGTERM."""
    done: Counter[str] = Counter()
    lock, stop, go_on = threading.Lock(), threading.Event(), threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: go_on.set())
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ways = ways_of(port)
    print("ready", flush=True)
    go_on.wait()
    if only:
        ways = {only: ways[only]}

    def client(number: int) -> None:
        chance = random.Random(number)
        while not stop.is_set():
            for name in chance.sample(sorted(ways), len(ways)):
                if stop.is_set():
                    return
                try:
                    status = ways[name](f"127.0.2.{number + 1}", stop)
                except (OSError, http.client.HTTPException):
                    status = "cut"
                with lock:
                    done[f"{name}: {status}"] += 1

    threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    stop.wait()
    time.sleep(0.5)
    print(json.dumps(done), flush=True)
    os._exit(0)


Way = Callable[[str, threading.Event], object]


def ways_of(port: int) -> dict[str, Way]:
    """Everything that is known to have hurt a server, by name."""
    bombs = {name: form(data) for name, data in bomb_files().items()}
    globs = " or ".join(f"path~'*{i}'" for i in range(200))[:1980].rpartition(" or ")[0]

    def ask(own: str, method: str, path: str, body: bytes | None = None, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=70, source_address=(own, 0))
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def connected(own: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(own, 0))

    def raw(own: str, data: bytes) -> str:
        with connected(own) as connection:
            connection.sendall(data)
            return connection.recv(200).split(b" ", 2)[1].decode() if data else ""

    def upload(name: str) -> Way:
        return lambda own, _stop: ask(own, "POST", "/api/v1/search", bombs[name], **FORM)

    def where(text: str) -> Way:
        from urllib.parse import quote

        return lambda own, _stop: ask(own, "GET", f"/api/v1/images?where={quote(text)}")

    def dripping(head: bytes, drop: bytes, seconds: float = 8.0, count: int = 20) -> Way:
        def drip(own: str, stop: threading.Event) -> str:
            connections = [connected(own) for _ in range(count)]
            end = time.monotonic() + seconds
            try:
                for connection in connections:
                    connection.sendall(head)
                while time.monotonic() < end and not stop.is_set():
                    time.sleep(0.5)
                    for connection in connections:
                        connection.sendall(drop)
            finally:
                for connection in connections:
                    connection.close()
            return "dripped"

        return drip

    def many(own: str, stop: threading.Event) -> str:
        connections = []
        with suppress(OSError):
            for _ in range(300):
                connections.append(connected(own))
        stop.wait(2)
        for connection in connections:
            connection.close()
        return str(len(connections) // 100 * 100)

    def leaving(share: float) -> Way:
        def leave(own: str, _stop: threading.Event) -> str:
            body = bombs["many scans, but not too many"]
            head = f"POST /api/v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            with connected(own) as connection:
                connection.sendall(f"{head}Content-Type: {FORM['Content-Type']}\r\n\r\n".encode())
                connection.sendall(body[: int(share * len(body))])
                time.sleep(0.1)
            return "left"

        return leave

    def endless(own: str, _stop: threading.Event) -> str:
        head = b"POST /api/v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Type: "
        with connected(own) as connection:
            connection.sendall(head + FORM["Content-Type"].encode() + b"\r\n\r\n")
            for _ in range(1600):
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        return "never cut"

    get = b"GET /api/v1/gallery HTTP/1.1\r\nHost: localhost\r\n"
    post = b"POST /api/v1/search/vector HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    both = post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get + b"\r\n"
    return {
        **{f"upload, {name}": upload(name) for name in bombs},
        "where, 180 patterns": where(globs),
        "where, one expensive pattern": where("path~'" + "*a" * 900 + "'"),
        "where, many values": where("label in " + ",".join(str(i) for i in range(400))),
        "where, deep": where("(" * 49 + "label=a" + ")" * 49),
        "where, nonsense": where("path~'" + "[" * 1900),
        "head that drips": dripping(get, b"A: b\r\n"),
        "body that drips": dripping(post + b"Content-Length: 5000\r\n\r\n", b"1"),
        "no request": dripping(b"", b"", 4),
        "head of 70 KB": lambda own, _stop: raw(own, get + b"A: " + b"b" * 70_000 + b"\r\n\r\n"),
        "10,000 headers": lambda own, _stop: raw(own, get + b"A: b\r\n" * 10_000 + b"\r\n"),
        "smuggling": lambda own, _stop: raw(own, both),
        "two lengths": lambda own, _stop: raw(own, post + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
        "another host": lambda own, _stop: raw(own, get.replace(b"localhost", b"evil.example") + b"\r\n"),
        "500 requests in a row": lambda own, _stop: raw(own, (get + b"\r\n") * 500),
        "many connections": many,
        "half an upload": leaving(0.5),
        "leaving while it is decoded": leaving(1.0),
        "body without end": endless,
        "k of a milliard": lambda own, _stop: ask(
            own, "POST", "/api/v1/search/stored", b'{"id": 1, "k": 1000000000}', **JSON
        ),
        "the largest k": lambda own, _stop: ask(own, "POST", "/api/v1/search/stored", b'{"id": 1, "k": 1000}', **JSON),
        "deep JSON": lambda own, _stop: ask(own, "POST", "/api/v1/search/stored", b"[" * 500_000, **JSON),
        "a vector of NaN": lambda own, _stop: ask(own, "POST", "/api/v1/search/vector", b'{"vector": [NaN]}', **JSON),
        "the largest explanation": lambda own, _stop: ask(
            own, "POST", "/api/v1/explain", b'{"id": 1, "k": 100, "both_sides": true}', **JSON
        ),
        "a list of everything": lambda own, _stop: ask(own, "GET", "/api/v1/images?limit=1000&offset=50000"),
        "large thumbnails": lambda own, _stop: ask(own, "GET", "/api/v1/images/3/picture?side=2048"),
        "no such method": lambda own, _stop: ask(own, "BREW", "/api/v1/images"),
    }


def bomb_files() -> dict[str, bytes]:
    """Files that cost a decoder far more than the wire."""
    large = image_file(size=(7900, 7900), progressive=True, quality=30)
    last, end = large.rindex(b"\xff\xda"), large.rindex(b"\xff\xd9")
    scan = large[last:end] if end - last < 2000 else b"\xff\xda\x00\x08\x01\x01\x01\x01\x00" + b"\x00" * 20

    def chunk(kind: bytes, data: bytes = b"") -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width: int, height: int, *extra: bytes) -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        rows = zlib.compress(bytes(min((1 + 3 * width) * height, 200_000_000)), 1)
        return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", rows) + chunk(b"IEND")

    jpeg = image_file()
    return {
        "12,000 scans": large[:end] + scan * 12_000 + large[end:],
        "many scans, but not too many": large[:end] + scan * 85 + large[end:],
        "62 million pixels": png(7900, 7900),
        "more pixels than allowed": png(90_000, 90_000)[:2000],
        "100,000 chunks": png(64, 64, chunk(b"tEXt", b"a\0b") * 100_000),
        "a text of 64 MB": png(64, 64, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20)))),
        "padding": jpeg[:2] + b"\xff" * 2_000_000 + jpeg[2:],
        "half an image": jpeg[: len(jpeg) // 2],
        "no image": b"<svg onload=alert(1)>",
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:4])
