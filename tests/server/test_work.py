"""Work that is forced on a server: decoders are ended, filters give up, and meanwhile everybody else is answered."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import torch
from costly_images import with_scans
from serving import image_bytes, running, served

from distcam.images import Transform, read_image
from distcam.server.queues import FairSlots, Ledger, asking_client
from distcam.server.refusals import ApiError
from distcam.server.uploads import Decoders


def children() -> set[int]:
    """Processes that this one started and that are not gone."""
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid="], capture_output=True, text=True).stdout
    return {int(pid) for pid in listed.split() if Path(f"/proc/{pid}").exists()}


def with_decoders(test, count=2, **options):
    """Run a test with decoders of its own; afterwards none of their processes is left."""
    before = children()

    async def main():
        decoders = Decoders(count, **{"seconds": 10.0, "max_pixels": 1_000_000, "ledger": Ledger(), **options})
        try:
            return await test(decoders)
        finally:
            await decoders.close()

    try:
        return asyncio.run(main())
    finally:
        assert children() <= before


@pytest.fixture
def endless(monkeypatch, tmp_path):
    """What a decoder that does not end looks like from outside: the file `b"sleep"` keeps it busy for ever."""
    (tmp_path / "sitecustomize.py").write_text(
        "import distcam.images.decoder as d\nplain = d.image_size\n"
        "def image_size(data):\n"
        "    while data.endswith(b'sleep'): pass\n"
        "    if data.endswith(b'crash'): import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if data.endswith(b'memory'): bytearray(1 << 40)\n"
        "    return plain(data)\n"
        "d.image_size = image_size\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("distcam.server.uploads._START", "import sys; sys.path[:] = {path!r}; import sitecustomize; "
                        "from {package}.images.decoder import main; main(nice={nice})")  # fmt: skip


def refusal(error: BaseException) -> tuple[int, str]:
    assert isinstance(error, ApiError)
    return error.status, error.reason


FITTING = Transform(32)


# --- Decoding ---------------------------------------------------------------------------------------------------------


def test_an_upload_is_decoded_as_it_would_be_here():
    async def test(decoders):
        for transform in (Transform(32), Transform((20, 30), fit="crop", interpolation="bicubic", channels="bgr")):
            size, pixels = await decoders.decode(data, transform)
            assert size == (70, 50)
            assert torch.equal(pixels, transform(read_image(data)))

    data = image_bytes((70, 50))

    with_decoders(test)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (image_bytes((1100, 1000)), (413, "pixels")),
        (image_bytes()[:300], (415, "damaged")),
        (with_scans(12_000), (415, "damaged")),
        (b"sleep", (413, "work")),
        (b"memory", (413, "work")),
        (b"crash", (415, "damaged")),
    ],
    ids=["too large", "cut off", "scans", "endless", "memory", "crash"],
)
def test_what_cannot_be_decoded_is_refused_and_the_next_is_decoded(data, answer, endless):
    async def test(decoders):
        with pytest.raises(ApiError) as refused:
            await decoders.decode(data, FITTING)
        assert refusal(refused.value) == answer
        assert (await decoders.decode(image_bytes((70, 50)), FITTING))[0] == (70, 50)

    with_decoders(test, count=1, seconds=0.5)


def test_a_decoder_whose_client_has_left_is_ended(endless):
    async def test(decoders):
        before = children()
        task = asyncio.create_task(decoders.decode(b"sleep", FITTING))
        while not (started := children() - before):
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await decoders.decode(image_bytes((70, 50)), FITTING))[0] == (70, 50)
        assert not started & children()

    with_decoders(test, count=1, seconds=600)


def test_one_client_leaves_a_decoder_to_others(endless):
    async def as_client(name, work):
        asking_client.set(name)
        return await work

    async def test(decoders):
        greedy = [asyncio.create_task(as_client("a", decoders.decode(b"sleep", FITTING))) for _ in range(5)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(60):
            size, _pixels = await as_client("b", decoders.decode(image_bytes((70, 50)), FITTING))
            assert size == (70, 50)
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)

    with_decoders(test, count=2, seconds=600)


def test_the_decoding_process_does_not_import_torch():
    code = "import sys, distcam.images.decoder; assert not {'torch', 'fastapi', 'faiss'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def turns(asked, *, count=1, seconds=None, cancelled=()):
    """The order in which clients get their slots; each keeps his for `seconds` of the clock."""
    order, now = [], [0.0]

    async def ask(slots, client):
        asking_client.set(client)
        async with slots.taken():
            order.append(client)
            now[0] += (seconds or {}).get(client, 0.0)
            await asyncio.sleep(0)

    async def main():
        ledger = Ledger(clock=lambda: now[0])
        for client in "AB":
            ledger.charge(client, 1000.0)
        slots = FairSlots(count, ledger)
        tasks = [asyncio.create_task(ask(slots, client)) for client in asked]
        await asyncio.sleep(0)
        for number in cancelled:
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots.held == 0

    asyncio.run(main())
    return "".join(order)


def test_clients_take_turns_and_whoever_leaves_is_passed_over():
    assert turns("aaaabbc", cancelled=[3]) == "aabcab"  # the first came when nobody waited


def test_who_has_had_least_comes_next():
    assert turns("aaabbb", seconds={"a": 1.0, "b": 0.1}) == "abbbaa"


def test_clients_who_cost_much_leave_a_slot_to_others():
    order = turns("AABBc", count=2)
    assert order.index("c") == 1
    assert sorted(order) == sorted("AABBc")


# --- Filters and searches ---------------------------------------------------------------------------------------------


def test_a_filter_that_takes_too_long_is_given_up(small_gallery):
    with served(small_gallery.folder, work_limit_s=0.001) as client:
        live = client.app.state.service.live
        reading = live.reading

        def slowly():
            time.sleep(0.01)
            return reading()

        live.reading = slowly
        response = client.get("/api/v1/images", params={"where": "label~'a*' or path~'*b'"})
        assert response.status_code == 400
        assert "too long" in response.json()["detail"]
        assert client.get("/api/v1/images").status_code == 200


def test_health_and_others_are_answered_while_one_client_has_slow_searches(small_gallery):
    go_on = threading.Event()
    with running(small_gallery.folder) as url, httpx.Client(base_url=url, timeout=30) as client:
        service = served_service(url)
        tasks = [block(service, go_on, "greedy") for _ in range(8)]
        try:
            assert client.get("/health").json()["images"] == 24
            assert client.get("/ready").status_code == 200
            assert client.post("/api/v1/search/stored", json={"id": 1}).status_code == 200
        finally:
            go_on.set()
        for task in tasks:
            task.result(30)


_SERVICES = []


@pytest.fixture(autouse=True)
def _remembered(monkeypatch):
    """Every server's service and event loop, so that a test can put work into it from outside."""
    from distcam.server.service import Service

    start = Service.start

    async def remembering(self):
        await start(self)
        _SERVICES.append((self, asyncio.get_running_loop()))

    monkeypatch.setattr(Service, "start", remembering)
    yield
    _SERVICES.clear()


def served_service(_url):
    return _SERVICES[-1]


def block(service, go_on, client):
    """A search of a client's that takes until `go_on`."""
    own, loop = service

    async def ask():
        asking_client.set(client)
        await own.read(lambda _retriever: go_on.wait(60))

    return asyncio.run_coroutine_threadsafe(ask(), loop)


# --- The end ----------------------------------------------------------------------------------------------------------

HANGING = """
import sys, threading
from pathlib import Path
from distcam.server import service
service._LAST_S = 0.3
import distcam.server.app as running
running._GRACE_S = 1
import distcam.server.routes.gallery as showing
showing._counts = lambda *_: threading.Event().wait()  # GET /labels never ends
from distcam.cli.app import app
sys.argv = ["distcam", "serve", sys.argv[1], "--port", "0", "--threads", "1"]
app()
"""


def test_a_server_ends_beside_a_thread_that_does_not(small_gallery, monkeypatch, caplog):
    monkeypatch.setattr("distcam.server.service._LAST_S", 0.1)
    go_on = threading.Event()
    try:
        with running(small_gallery.folder) as url:
            service, _loop = served_service(url)
            task = block((service, _loop), go_on, "greedy")
            while not service._busy_threads:
                time.sleep(0.01)
        assert service.has_hung_threads
        assert "1 threads are still at work" in caplog.text
        assert task.cancelled()
    finally:
        go_on.set()


@pytest.mark.slow  # starts a process with all of torch
def test_sigterm_ends_a_server_whose_threads_do_not(small_gallery, tmp_path):
    command = [sys.executable, "-c", HANGING, str(small_gallery.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        url = line.split(" at ")[1].split(",")[0]
        threads = [threading.Thread(target=ask_for_labels, args=(url,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        assert httpx.get(f"{url}/health", timeout=20).status_code == 200
        process.send_signal(signal.SIGTERM)
        _out, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "left behind" in errors
        for thread in threads:
            thread.join(20)
    finally:
        process.kill()
        process.communicate()


def ask_for_labels(url):
    with suppress(httpx.TransportError):
        httpx.get(f"{url}/api/v1/labels", timeout=60)
