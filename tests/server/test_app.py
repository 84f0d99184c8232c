"""The command and a real server: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import httpx
import pytest
from commands import distcam, fails
from serving import image_bytes, running, upload

from distcam.server import ServerSettings, create_app
from distcam.server.app import bound_socket, glibc, server_of, url_of


def started(gallery, *options, environment=()):
    """`distcam serve` in a process of its own, and its address, once it answers."""
    command = [sys.executable, "-m", "distcam", "serve", str(gallery.folder), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **dict(environment)}
    )
    line = process.stdout.readline()
    assert "images at http://127.0.0.1:" in line, line + process.stderr.read()
    return process, line.split(" at ")[1].split(",")[0]


def ask_until_it_ends(url, end, *, size):
    """Three clients that search until they are refused; `end` is called once some have their answers."""
    answers = []

    def ask():
        with httpx.Client(base_url=url, timeout=30) as client:
            for seed in range(1000):
                try:
                    answers.append(client.post("/api/v1/search", files=upload(image_bytes(size, seed=seed))))
                except httpx.TransportError:  # the connection was closed between two requests
                    return
                if answers[-1].status_code != 200:
                    return

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(answers) < 6:
        time.sleep(0.02)
    end()
    for thread in threads:
        thread.join(10)
    assert all(answer.status_code in (200, 503) for answer in answers)
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 503)


def test_a_server_that_is_told_to_end_finishes_what_it_answers(small_gallery):
    app = create_app(ServerSettings(small_gallery.folder, rate=0))
    bound, is_ready = bound_socket("127.0.0.1", 0), threading.Event()
    server = server_of(app, on_ready=is_ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    assert is_ready.wait(30)
    ask_until_it_ends(url_of(bound), lambda: server.handle_exit(signal.SIGTERM, None), size=(200, 200))
    thread.join(20)
    bound.close()
    assert not thread.is_alive()


@pytest.mark.slow
def test_sigterm_lets_requests_at_work_finish_and_ends_cleanly(small_gallery):
    process, url = started(small_gallery)
    ask_until_it_ends(url, lambda: process.send_signal(signal.SIGTERM), size=(900, 900))
    _out, errors = process.communicate(timeout=40)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.slow
def test_ctrl_c_ends_it_and_a_new_token_is_shown_once(small_gallery, tmp_path):
    process, url = started(small_gallery, "--writable", "--uploads", str(tmp_path), "--access-log")
    token = process.stdout.readline().rsplit(" ", 1)[1].strip()
    assert len(token) >= 32
    bearer = {"Authorization": f"Bearer {token}"}
    assert httpx.delete(f"{url}/api/v1/images/99", headers=bearer).status_code == 404
    assert httpx.delete(f"{url}/api/v1/images/99").status_code == 401
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=40)
    assert (process.returncode, out) == (0, "")
    assert '"status": 404' in errors
    assert token not in errors
    assert "Traceback" not in errors


def test_a_body_that_never_ends_is_refused_while_it_comes_in(small_gallery):
    with running(small_gallery.folder, max_upload_bytes=100_000) as url:
        host, port = url.removeprefix("http://").split(":")
        head = (
            "POST /api/v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        sent = 0
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head.encode() + f"{len(part):x}\r\n".encode() + part + b"\r\n")
            connection.setblocking(False)
            answer = b""
            while not answer and sent < 50_000_000:
                try:
                    sent += connection.send(b"2710\r\n" + bytes(10_000) + b"\r\n")
                except BlockingIOError:
                    time.sleep(0.01)
                except OSError:  # it hung up, which may come before its answer was read
                    break
                try:
                    answer = connection.recv(1000)
                except BlockingIOError:
                    continue
        assert answer.startswith(b"HTTP/1.1 413") or not answer
        assert sent < 20_000_000


def connected(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def test_connections_on_which_nothing_happens_are_hung_up_on(small_gallery, monkeypatch, caplog):
    monkeypatch.setattr("distcam.server.app._PATIENCE_S", 0.2)
    refused_at_once = b"POST /api/v1/images HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with running(small_gallery.folder) as url:
        for start in (b"", b"GET /health HTTP/1.1\r\nHost: local"):
            with connected(url) as connection:
                connection.sendall(start)
                assert connection.recv(100) == b""
        with connected(url) as connection:  # goes on sending what nobody wants
            connection.sendall(refused_at_once)
            assert b" 403 " in connection.recv(100)
            chunks = 0
            with suppress(OSError):  # reset, or a broken pipe
                while chunks < 200:
                    connection.sendall(b"5\r\nhello\r\n")
                    chunks += 1
                    time.sleep(0.02)
            assert chunks < 200
        with connected(url) as connection:  # a body that does not parse
            connection.sendall(refused_at_once.replace(b"images", b"search") + b"no number\r\n")
            with suppress(ConnectionResetError):
                assert b" 200 " not in connection.recv(100)
        assert httpx.get(f"{url}/health").status_code == 200
    assert not caplog.records


def test_one_client_cannot_have_all_connections(small_gallery, monkeypatch):
    monkeypatch.setattr("distcam.server.app._CLIENT_CONNECTIONS", 2)
    with ExitStack() as stack:
        url = stack.enter_context(running(small_gallery.folder))
        connections = [stack.enter_context(connected(url)) for _ in range(3)]
        stack.enter_context(suppress(ConnectionResetError))
        assert connections[-1].recv(100) == b""


def test_some_clients_together_cannot_have_all_connections(small_gallery, monkeypatch):
    monkeypatch.setattr("distcam.server.app._CONNECTIONS", 40)
    monkeypatch.setattr("distcam.server.app._SPARE_CONNECTIONS", 1)
    with ExitStack() as stack:
        url = stack.enter_context(running(small_gallery.folder))
        host, port = url.removeprefix("http://").split(":")
        for client in range(2, 6):
            for _ in range(40):
                own = (f"127.0.0.{client}", 0)
                stack.enter_context(socket.create_connection((host, int(port)), timeout=5, source_address=own))
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_refused_body_without_end_is_cut(small_gallery):
    head = "POST /api/v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    with running(small_gallery.folder) as url, connected(url) as connection:
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
        sent = 0
        with suppress(OSError):  # reset, or a broken pipe
            while sent < 64 << 20:
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
                sent += 65536
        assert sent < 64 << 20


def test_many_clients_at_once_share_forward_passes(small_gallery):
    served = running(small_gallery.folder, concurrency=64, window_ms=100)
    with served as url, httpx.Client(base_url=url, timeout=30) as client:
        pictures = [image_bytes((40 + seed, 50), seed=seed) for seed in range(12)]
        alone = [client.post("/api/v1/search", files=upload(data)).json()["matches"] for data in pictures]
        together: list = [None] * len(pictures)

        def ask(i):
            together[i] = httpx.post(f"{url}/api/v1/search", files=upload(pictures[i]), timeout=30).json()["matches"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(pictures))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one, other in zip(alone, together, strict=True):
            assert [match["id"] for match in one] == [match["id"] for match in other]
        passes = float(client.get("/metrics").text.split("distcam_batch_images_count ")[1].split()[0])
        assert passes < 2 * len(pictures)


def test_answers_are_sent_at_once(small_gallery):
    with running(small_gallery.folder) as url, httpx.Client(base_url=url) as client:
        seconds = []
        for _ in range(15):
            start = time.perf_counter()
            assert client.post("/api/v1/search/stored", json={"id": 1, "k": 3}).status_code == 200
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 0.035  # Nagle's algorithm would wait 40 ms for an acknowledgement


def test_what_the_command_refuses(small_gallery, monkeypatch, capsys, tmp_path):
    gallery = small_gallery.folder
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in fails(monkeypatch, capsys, "serve", gallery, "--port", port)
    assert "--writable" in fails(monkeypatch, capsys, "serve", gallery, "--uploads", tmp_path)
    assert "holds no manifest.json" in fails(monkeypatch, capsys, "serve", tmp_path, "--port", 0)
    short = tmp_path / "token"
    short.write_text("short")
    writable = ("serve", gallery, "--port", 0, "--writable")
    assert "at least 16" in fails(monkeypatch, capsys, *writable, "--token-file", short)
    assert "expected a file with the token" in fails(monkeypatch, capsys, *writable, "--token-file", tmp_path / "no")
    monkeypatch.setenv("DISTCAM_TOKEN", "also-short")
    assert "at least 16" in fails(monkeypatch, capsys, *writable)
    assert "distcam serve photos.gallery" in distcam("serve", "--help")


def test_a_missing_extra_names_the_command_that_installs_it(small_gallery, monkeypatch, capsys):
    for module in [name for name in sys.modules if name.startswith(("distcam.server.", "fastapi"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'distcam[serve]'" in fails(monkeypatch, capsys, "serve", small_gallery.folder, "--port", 0)


def test_free_memory_is_given_back_while_the_server_runs(small_gallery, monkeypatch):
    was_asked = threading.Event()
    library = SimpleNamespace(malloc_trim=lambda spare: was_asked.set() if spare == 0 else None)
    monkeypatch.setattr("distcam.server.app.glibc", lambda: library)
    monkeypatch.setattr("distcam.server.app._TICKS", 1)
    with running(small_gallery.folder):
        assert was_asked.wait(10)


@pytest.mark.skipif(sys.platform != "linux", reason="only there the C library may be GNU's")
def test_the_c_library_is_asked_only_where_it_is_gnus(monkeypatch):
    library = glibc()
    assert library is None or library.malloc_trim(0) in (0, 1)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert glibc() is None


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")])
def test_addresses_are_shown_as_a_browser_takes_them(host, shown):
    with bound_socket(host, 0) as bound:
        assert url_of(bound) == f"http://{shown}:{bound.getsockname()[1]}"
