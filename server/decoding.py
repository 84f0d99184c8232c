"""Uploads are decoded in processes of their own, which can be ended: nothing that is sent keeps a decoder for long."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TypeVar, cast

from PIL import Image

from ..errors import ImageError
from ..images import image_size
from ..images.decoder import ANSWER, DONE, MEMORY, REQUEST, TOO_LARGE
from .fairness import FairSlots
from .refusals import Refusal

__all__ = ["Decoders"]

T = TypeVar("T")
# With the parent's path, so that the same distcam is found however this process came to it.
_START = "import sys; sys.path[:] = {path!r}; from {package}.images.decoder import main; main()"
_PACKAGE = __name__.rpartition(".server")[0]
_PATIENCE = 4.0  # times the processor's seconds, for a machine that is busy, or cannot count them
_ENDING_S = 2.0
_LARGE_PIXELS = 25_000_000
_PIPE_BYTES = 1 << 20  # what Linux gives anybody; pixels then pass in fewer, larger pieces


class Decoders:
    """A few decoding processes, started when they are first needed, and again after one had to be ended.

    Clients take turns; one client never has them all, and neither have large pictures (`FairSlots`). When a request is
    given up, by its client or its time limit, the process that works for it is ended.

    Args:
        count: processes.
        seconds: of the processor, for one picture.
        max_pixels: largest picture.
    """

    def __init__(self, count: int, *, seconds: float, max_pixels: int) -> None:
        self._seconds = seconds
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="distcam-decode")
        self._slots = FairSlots(count)
        self._idle = [_Process() for _ in range(count)]
        self._all = tuple(self._idle)

    async def decode(self, data: bytes, then: Callable[[Image.Image], T]) -> T:
        """What `then` makes, in a thread, of the upright RGB picture.

        Raises:
            Refusal: 413, it is too large, or takes too long or too much memory; 415, it is no usable picture.
        """
        is_large = await asyncio.to_thread(_is_large, data)
        async with self._slots.taken(is_heavy=is_large):
            process = self._idle.pop()
            loop = asyncio.get_running_loop()
            stop = threading.Event()
            ask = partial(process.ask, data, self._max_pixels, self._seconds, stop)
            work = loop.run_in_executor(self._threads, lambda: then(ask()))
            try:
                async with asyncio.timeout(_PATIENCE * self._seconds):
                    return await asyncio.shield(work)
            except TimeoutError:
                raise _too_long() from None
            finally:
                if not work.done():
                    work.cancel()
                    process.end(stop)
                self._idle.append(process)

    async def close(self) -> None:
        """End all processes, whatever they are at, and start no more."""
        for process in self._all:
            process.end()
        await asyncio.to_thread(self._threads.shutdown)


def _is_large(data: bytes) -> bool:
    """Whether a picture takes long, as far as its header tells: more pixels than most phones make, scans counted."""
    try:
        width, height = image_size(data)
    except ImageError:
        return False
    is_progressive = data.find(b"\xff\xc2", 0, 1 << 16) >= 0
    return width * height * (3 if is_progressive else 1) > _LARGE_PIXELS


def _too_long() -> Refusal:
    return Refusal(413, "decoding the picture takes too long; save it anew, or smaller", reason="work")


class _Process:
    """One decoding process; asked by one thread at a time, ended by any."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._asking = threading.Lock()

    def ask(self, data: bytes, max_pixels: int, seconds: float, stop: threading.Event) -> Image.Image:
        """The picture that the process makes of a file."""
        with self._asking:  # whoever was given up may still be on its way out
            process = self._running(stop)
            try:
                outcome, width, height, payload = _asked(process, data, max_pixels, seconds)
            except (OSError, ValueError, EOFError):  # ended by its limits, by us, or by what it decoded
                self._forget(process)
                raise _death(_let_go(process)) from None
        if outcome == DONE:
            return Image.frombuffer("RGB", (width, height), payload, "raw", "RGB", 0, 1)
        if outcome == TOO_LARGE:
            raise Refusal(413, f"the picture is too large: more than {max_pixels:,} pixels", reason="pixels")
        if outcome == MEMORY:
            raise Refusal(413, "decoding the picture takes too much memory; save it smaller", reason="work")
        raise Refusal(415, f"not a usable picture: {payload.decode()}", reason="damaged")

    def _running(self, stop: threading.Event) -> subprocess.Popen[bytes]:
        with self._lock:
            if stop.is_set():
                raise _too_long()
            if self._process is None:
                self._process = _started()
            return self._process

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            if self._process is process:
                self._process = None

    def end(self, stop: threading.Event | None = None) -> None:
        """Kill the process, if there is one, and whatever is being asked of it; the next request starts another."""
        with self._lock:
            process, self._process = self._process, None
            if stop is not None:
                stop.set()
        if process is not None:
            process.kill()
            if self._asking.acquire(blocking=False):  # else the thread that reads from it does this
                try:
                    _let_go(process)
                finally:
                    self._asking.release()


def _let_go(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a process that ends, or is killed here."""
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            cast("IO[bytes]", pipe).close()
    try:
        return process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _death(status: int) -> Refusal:
    """What to say of a process that ended without an answer."""
    if status > 0:
        return Refusal(503, "the server cannot decode pictures; its log says why", reason="failure", retry_after=60)
    if status in (-signal.SIGKILL, -getattr(signal, "SIGXCPU", signal.SIGKILL)):
        return _too_long()
    return Refusal(415, "not a usable picture: its decoder failed", reason="damaged")


def _started() -> subprocess.Popen[bytes]:
    path = [entry or str(Path.cwd()) for entry in sys.path]
    code = _START.format(path=path, package=_PACKAGE)
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}  # each reserves address space
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pipesize=_PIPE_BYTES,
        env={**os.environ, **threads},
    )


def _asked(
    process: subprocess.Popen[bytes], data: bytes, max_pixels: int, seconds: float
) -> tuple[int, int, int, bytes]:
    sink, source = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    sink.write(REQUEST.pack(len(data), max_pixels, seconds))
    sink.write(data)
    sink.flush()
    outcome, width, height, length = ANSWER.unpack(_exactly(source, ANSWER.size))
    return outcome, width, height, _exactly(source, length)


def _exactly(source: IO[bytes], length: int) -> bytes:
    data = source.read(length)
    if len(data) < length:
        raise EOFError
    return data
