"""Uploads, untrusted: told by their content, and decoded in processes that can be ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from ..errors import ImageError
from ..images import image_size
from ..images.decoder import ANSWER, DONE, MEMORY, REQUEST, TOO_LARGE
from ..images.geometry import Fitting
from .queues import FairSlots, Ledger
from .refusals import ApiError

UPLOAD_TYPES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
# With the parent's path, so that the same distcam is found however this process came to it.
_START = "import sys; sys.path[:] = {path!r}; from {package}.images.decoder import main; main(nice={nice})"
_PACKAGE = __name__.rpartition(".server")[0]
_PATIENCE = 4.0  # times the processor's seconds, for a machine that is busy, or cannot count them
_ENDING_S = 2.0
_SLOW_PIXELS, _SLOW_BYTES = 25_000_000, 4 << 20
_NICE, _NICEST = 10, 19  # search and network come first
_PIPE_BYTES = 1 << 20  # the most that Linux gives everybody


def upload_suffix(data: bytes) -> str:
    """`.jpg`, `.png` or `.webp`, by content, or 415: names and headers are whatever the client likes."""
    if data.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    what = "nothing" if not data else "something else"
    raise ApiError(415, f"expected an image as JPEG, PNG or WebP, got {what}", reason="type")


class Decoders:
    """A few decoding processes, started when they are first needed, and again after one had to be ended.

    Images that take long have a process of their own, of the lowest priority. When a request is given up, by its client
    or its time limit, the process that works for it is ended.
    """

    def __init__(self, count: int, *, seconds: float, max_pixels: int, ledger: Ledger) -> None:
        self._seconds = seconds
        self._max_pixels = max_pixels
        self._ordinary = _Lane(count, _NICE, ledger)
        self._slow = _Lane(1, _NICEST, ledger)

    async def decode(self, data: bytes, fitting: Fitting) -> tuple[tuple[int, int], Tensor]:
        """Width and height of an upright image, and the network's pixels of it."""
        is_slow = await asyncio.to_thread(_is_slow, data)
        lane = self._slow if is_slow else self._ordinary
        async with lane.process() as process:
            stop = threading.Event()
            ask = partial(process.ask, data, fitting, self._max_pixels, self._seconds, stop)
            work = asyncio.get_running_loop().run_in_executor(lane.threads, ask)
            try:
                async with asyncio.timeout(_PATIENCE * self._seconds):
                    return await asyncio.shield(work)
            except TimeoutError:
                raise _too_long() from None
            finally:
                if not work.done():
                    work.cancel()
                    process.end(stop)

    async def close(self) -> None:
        """End all processes, whatever they are at, and start no more."""
        for lane in (self._ordinary, self._slow):
            for process in lane.processes:
                process.end()
            await asyncio.to_thread(lane.threads.shutdown)


class _Lane:
    def __init__(self, count: int, nice: int, ledger: Ledger) -> None:
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="distcam-decode")
        self.processes = tuple(_Process(nice) for _ in range(count))
        self._slots = FairSlots(count, ledger)
        self._idle = list(self.processes)

    @asynccontextmanager
    async def process(self) -> AsyncIterator[_Process]:
        async with self._slots.taken():
            process = self._idle.pop()
            try:
                yield process
            finally:
                self._idle.append(process)


def _is_slow(data: bytes) -> bool:
    """True if an image takes long, by its size and header: more pixels than most phones make, scans counted."""
    if len(data) > _SLOW_BYTES:
        return True
    try:
        width, height = image_size(data)
    except ImageError:
        return False
    is_progressive = data.find(b"\xff\xc2", 0, 1 << 16) >= 0
    return width * height * (3 if is_progressive else 1) > _SLOW_PIXELS


def _too_long() -> ApiError:
    return ApiError(413, "decoding the image takes too long; save it anew, or smaller", reason="work")


class _Process:
    """One decoding process; asked by one thread at a time, ended by any."""

    def __init__(self, nice: int) -> None:
        self._nice = nice
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._asking = threading.Lock()

    def ask(
        self, data: bytes, fitting: Fitting, max_pixels: int, seconds: float, stop: threading.Event
    ) -> tuple[tuple[int, int], Tensor]:
        """Size and pixels that the process makes of a file."""
        with self._asking:  # whoever was given up may still be on its way out
            process = self._running(stop)
            sink, source = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
            options = json.dumps(fitting.to_dict()).encode()
            try:
                sink.write(REQUEST.pack(len(data), len(options), max_pixels, seconds) + options)
                sink.write(data)
                sink.flush()
                outcome, width, height, length = ANSWER.unpack(_exactly(source, ANSWER.size))
                payload = _exactly(source, length)
            except (OSError, ValueError, EOFError):  # ended by its limits, by us, or by what it decoded
                with self._lock:
                    if self._process is process:
                        self._process = None
                if (status := _let_go(process)) > 0:
                    broken = "the server cannot decode images; its log says why"
                    raise ApiError(503, broken, reason="failure", retry_after=60) from None
                if status in (-signal.SIGKILL, -getattr(signal, "SIGXCPU", signal.SIGKILL)):
                    raise _too_long() from None
                raise ApiError(415, "not a usable image: its decoder failed", reason="damaged") from None
        if outcome == DONE:
            pixels = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
            return (width, height), pixels.view(3, fitting.height, fitting.width)
        if outcome == TOO_LARGE:
            raise ApiError(413, f"the image is too large: more than {max_pixels:,} pixels", reason="pixels")
        if outcome == MEMORY:
            raise ApiError(413, "decoding the image takes too much memory; save it smaller", reason="work")
        raise ApiError(415, f"not a usable image: {payload.decode()}", reason="damaged")

    def _running(self, stop: threading.Event) -> subprocess.Popen[bytes]:
        with self._lock:
            if stop.is_set():
                raise _too_long()
            if self._process is None:
                path = [entry or str(Path.cwd()) for entry in sys.path]
                threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}  # each reserves memory
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START.format(path=path, package=_PACKAGE, nice=self._nice)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pipesize=_PIPE_BYTES,
                    env={**os.environ, **threads},
                )
            return self._process

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


def _exactly(source: IO[bytes], length: int) -> bytes:
    data = source.read(length)
    if len(data) < length:
        raise EOFError
    return data
