"""What the routes share: the gallery in service, the queue to the network, kept queries, threads, and numbers."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from ..deadlines import finish_by
from ..encoders import Encoder, Encoding, Inference
from ..index import Gallery
from ..retrieval import Retriever
from ..retrieval.retriever import UnknownInference
from .batching import Batcher, Done
from .decoding import Decoders
from .fairness import FairSlots
from .kept import KeptQueries
from .live import LiveGallery
from .metrics import Metrics
from .settings import Settings

__all__ = ["Read", "Service"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
_DECODERS = max(2, min(8, os.cpu_count() or 2))  # processes
_WORKERS = 4  # threads that search and explain
_LOOK_S = 0.25  # that `/health` waits for a look at the gallery
_LAST_S = 3.0  # that threads may still take when the server ends


@dataclass(frozen=True)
class Read:
    """An upload that was read.

    Attributes:
        size: width and height of the upright picture.
        decode_s: seconds that decoding took, waiting for a decoder included.
        done: its encoding.
    """

    size: tuple[int, int]
    decode_s: float
    done: Done[Encoding]


class QueuedInference:
    """Stands in for an `Inference` where threads need a forward pass: it goes through the same queue as all others."""

    def __init__(self, inference: Inference | UnknownInference, *, at_once: int) -> None:
        self._at_once = at_once
        self._inference = inference
        self.encoder = inference.encoder
        self.device = inference.device
        self._encode: Callable[[Tensor], Awaitable[Done[Encoding]]] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def connect(self, encode: Callable[[Tensor], Awaitable[Done[Encoding]]]) -> None:
        """Give it the queue of the running event loop."""
        self._encode, self._loop = encode, asyncio.get_running_loop()

    def encode_images(self, images: Sequence[Any]) -> Encoding:
        """Wait, in a thread that is not the event loop's, until the images are encoded; one request never fills the
        queue with all of its images.
        """
        encode, loop = self._encode, self._loop
        assert encode is not None
        assert loop is not None

        async def all_of(pixels: Sequence[Tensor]) -> list[Done[Encoding]]:
            return await asyncio.gather(*map(encode, pixels))

        done: list[Done[Encoding]] = []
        for start in range(0, len(images), self._at_once):
            pixels = [self._inference.read(image) for image in images[start : start + self._at_once]]
            done += asyncio.run_coroutine_threadsafe(all_of(pixels), loop).result()
        return Encoding.cat([one.result for one in done])


class Service:
    """A gallery in service; `start` and `stop` are called by the application, in its event loop.

    Raises:
        DistcamError: the gallery or its encoder cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.kept = KeptQueries(max_bytes=settings.kept_bytes, max_age_s=settings.kept_s)
        encoder, self.inference = _encoder_for(settings)
        self._queued = QueuedInference(self.inference, at_once=min(settings.max_batch, settings.queue))
        self.live = LiveGallery(
            settings.gallery,
            encoder,
            self._queued,
            root=settings.root,
            uploads=settings.uploads_folder if settings.is_writable else None,
            on_change=self.metrics.gallery_changed,
        )
        self._following: asyncio.Future[None] | None = None
        self._watcher: ThreadPoolExecutor | None = None
        self.changing = asyncio.Lock()
        self.has_changed = False
        self._batcher: Batcher[Tensor, Encoding] | None = None
        self._decoders: Decoders | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._turns: FairSlots | None = None
        self.has_hung_threads = False

    async def start(self) -> None:
        """Take up work."""
        self._decoders = Decoders(_DECODERS, seconds=self.settings.decode_limit_s, max_pixels=self.settings.max_pixels)
        self._workers = ThreadPoolExecutor(_WORKERS, "distcam-search", initializer=_one_thread_each)
        self._turns = FairSlots(_WORKERS)
        self._watcher = ThreadPoolExecutor(1, "distcam-watch")
        self._batcher = batcher = Batcher(
            self._encode_batch,
            max_batch=self.settings.max_batch,
            window_s=self.settings.window_ms / 1000,
            capacity=self.settings.queue,
            on_batch=self.metrics.batch_done,
            initialise=self._prepare_thread,
        )
        self._queued.connect(batcher.submit)
        self.metrics.watch(lambda: len(batcher), lambda: self.kept.nbytes)

    async def stop(self) -> None:
        """Finish what waits, and let go of everything; a thread that does not end by then is left behind.

        Whoever runs the server looks at `has_hung_threads`: Python would wait for such a thread for ever.
        """
        assert self._batcher is not None
        assert self._decoders is not None
        assert self._turns is not None
        await self._decoders.close()
        for pool in (self._workers, self._watcher):
            assert pool is not None
            pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + _LAST_S
        while self._turns.held and time.monotonic() < end:  # in the loop: a thread may be waiting for it
            await asyncio.sleep(0.01)
        if self._turns.held:
            self.has_hung_threads = True
            _log.warning("%d threads are still at work, and are left behind", self._turns.held)
        await self._batcher.close()
        if not self.has_hung_threads:
            self.live.close(save_caches=self.has_changed)

    async def known(self) -> tuple[int, int]:
        """Images and generation, as they are if that can be told soon, else as they were last; for `/health`.

        The look at the gallery has a thread of its own, and is not waited for while searches are at work.

        Raises:
            Refusal: 503, the gallery cannot be used.
        """
        if self._following is None or self._following.done():
            loop = asyncio.get_running_loop()
            self._following = loop.run_in_executor(self._watcher, self.live.follow)
        await asyncio.wait({self._following}, timeout=_LOOK_S)
        return self.live.known

    # --- Work --------------------------------------------------------------------------------------------------------

    async def encode(self, data: bytes) -> Read:
        """Decode an upload in one of the decoding processes, then wait for a forward pass.

        Raises:
            Refusal: 413 or 415, it is too large, or no usable picture; 503, too many wait.
        """
        assert self._batcher is not None
        assert self._decoders is not None
        start = time.perf_counter()
        with self._batcher.expecting():
            size, pixels = await self._decoders.decode(data, self._seen)
        seconds = time.perf_counter() - start
        self.metrics.steps.labels("decode").observe(seconds)
        done = await self._batcher.submit(pixels)
        self.metrics.steps.labels("queue").observe(done.queue_s)
        return Read(size, seconds, done)

    async def read(self, work: Callable[[Retriever], T], *, step: str = "read") -> T:
        """What some work on the newest generation returns; done in a thread."""

        def in_thread() -> T:
            start = time.perf_counter()
            with self.live.reading() as retriever:
                result = work(retriever)
            self.metrics.steps.labels(step).observe(time.perf_counter() - start)
            return result

        return await self.in_thread(in_thread)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What some other work returns; done in a thread, when it is this client's turn, and not for ever.

        Raises:
            DeadlineError: its filter takes longer than `work_limit_s`.
        """
        assert self._turns is not None

        loop, turns = asyncio.get_running_loop(), self._turns
        place = await turns.take()

        def timed() -> T:
            try:
                with finish_by(time.monotonic() + self.settings.work_limit_s):
                    return work()
            finally:  # not before, though nobody may wait for it any more: until now it had a thread
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(turns.leave, place)

        return await asyncio.shield(loop.run_in_executor(self._workers, timed))

    def _encode_batch(self, pixels: list[Tensor]) -> list[Encoding]:
        return list(self.inference(torch.stack(pixels)).to("cpu"))

    def _seen(self, picture: Image) -> tuple[tuple[int, int], Tensor]:
        return picture.size, self.inference.transform(picture)

    def _prepare_thread(self) -> None:
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)


def _encoder_for(settings: Settings) -> tuple[Encoder, Inference | UnknownInference]:
    """The gallery's encoder, if it keeps one or one is given, in the precision it was used with."""
    with Gallery.open(settings.gallery, root=settings.root, verify=False) as gallery:
        entry, path = gallery.manifest.encoder, settings.encoder or gallery.encoder_path
        if path is None:
            unknown = UnknownInference(entry)
            return unknown.encoder, unknown
        encoder = Encoder.load(path)
        gallery.check_encoder(encoder)
    precision = entry.precision or "auto"
    return encoder, Inference(encoder, device=settings.device, precision=precision, batch_size=settings.max_batch)


def _one_thread_each() -> None:
    """One query is searched fastest by one thread, and several are searched side by side anyway."""
    import faiss

    faiss.omp_set_num_threads(1)
