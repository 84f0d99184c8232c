"""The gallery in service: the queue to the network, remembered queries, threads, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from torch import Tensor

from ..encoders import Encoder, Encoding, Inference
from ..encoders.fine import larger
from ..errors import ImageError
from ..explain.places import share_of_view
from ..images.given.remote import fetch
from ..index import Gallery
from ..retrieval import Retriever
from ..retrieval.evidence import LITTLE
from ..retrieval.ranking import UnknownInference
from .live_gallery import LiveGallery
from .queues import Batcher, Done, Ledger, Threads
from .refusals import ApiError
from .settings import ServerSettings
from .uploads import Decoders

_log = logging.getLogger(__name__)

T = TypeVar("T")
_DECODERS = max(2, min(8, os.cpu_count() or 2))  # processes
_SEARCHERS, _THUMBNAILERS, _FETCHERS = 4, 2, 2  # threads
_LOOK_S = 0.25  # that `/health` waits for a look at the gallery
_LAST_S = 3.0  # that threads may still take when the server ends
_OBJECT_BYTES = 2048  # of one kept query's tensors and Python objects, beside the numbers: measured, 1.75 KB
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one server; nothing of them is global."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("distcam_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.latency = Histogram(
            "distcam_request_seconds", "From request to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.refused = Counter("distcam_refused", "Requests refused, by reason.", ["reason"], registry=registry)
        self.batches = Histogram("distcam_batch_images", "Images of a batch.", buckets=_SIZES, registry=registry)
        self.steps = Histogram(
            "distcam_step_seconds", "Parts of the work.", ["step"], buckets=_SECONDS, registry=registry
        )
        self.queue = Gauge("distcam_queue_images", "Images that wait to be encoded.", registry=registry)
        self.images = Gauge("distcam_gallery_images", "Images in the gallery.", registry=registry)
        self.generation = Gauge("distcam_gallery_generation", "Generation of the gallery.", registry=registry)
        self.kept = Gauge("distcam_kept_bytes", "Memory of the queries that can be explained.", registry=registry)
        self.matched = Gauge("distcam_match_bytes", "Memory of the maps of explained matches.", registry=registry)

    def batch_done(self, size: int, seconds: float) -> None:
        """Count a forward pass."""
        self.batches.observe(size)
        self.steps.labels("encode").observe(seconds)

    def gallery_changed(self, images: int, generation: int) -> None:
        """Set the gallery's size and generation."""
        self.images.set(images)
        self.generation.set(generation)


@dataclass
class CachedQuery:
    """The encoding of an uploaded query (a batch of one), its width and height upright, and when it was last used."""

    encoding: Encoding
    size: tuple[int, int]
    used: float
    enlarged: Tensor | None = None  # the pixels of an elongated image for a closer look

    @property
    def nbytes(self) -> int:
        """Memory that goes with the query, in bytes: whole storages, however little of one its tensors show."""
        parts = [*self.encoding.parts(), *([] if self.enlarged is None else [self.enlarged])]
        storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
        return sum(storages.values()) + _OBJECT_BYTES


class EncodingCache:
    """Encodings by keys, bounded in bytes and in age; the least recently used leave first. Thread-safe."""

    def __init__(self, *, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._queries: OrderedDict[Hashable, CachedQuery] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def keep(self, key: Hashable, encoding: Encoding, size: tuple[int, int], *, enlarged: Tensor | None = None) -> None:
        """Remember a batch of one. It is copied, so that the rest of its batch is let go."""
        query = CachedQuery(encoding.changed(Tensor.clone), size, self._clock(), enlarged)
        with self._lock:
            if (before := self._queries.pop(key, None)) is not None:
                self.nbytes -= before.nbytes
            self._queries[key] = query
            self.nbytes += query.nbytes
            self._evict()

    def find(self, key: Hashable) -> CachedQuery | None:
        """The value kept under a key, which counts as used; None if there is none, or no longer."""
        with self._lock:
            self._evict()
            query = self._queries.get(key)
            if query is not None:
                query.used = self._clock()
                self._queries.move_to_end(key)
            return query

    def _evict(self) -> None:
        oldest = self._clock() - self._max_age_s
        while self._queries:
            key, query = next(iter(self._queries.items()))
            if self.nbytes <= self._max_bytes and query.used >= oldest:
                return
            del self._queries[key]
            self.nbytes -= query.nbytes


class QueryCache(EncodingCache):
    """Queries by unguessable tokens."""

    def put(self, encoding: Encoding, size: tuple[int, int], *, enlarged: Tensor | None = None) -> str:
        """Remember a query; its token."""
        token = secrets.token_urlsafe(18)
        self.keep(token, encoding, size, enlarged=enlarged)
        return token

    def get(self, token: str) -> CachedQuery:
        """The query of a token."""
        if (query := self.find(token)) is None:
            raise ApiError(410, "this query is not kept any more; send the image again", reason="token")
        return query


@dataclass(frozen=True)
class EncodedUpload:
    """An uploaded image: (width, height) upright, seconds for decoding and waiting for a decoder, its encoding.

    Of an elongated image the pixels for a closer look as well.
    """

    size: tuple[int, int]
    decode_s: float
    done: Done[Encoding]
    enlarged: Tensor | None = None


class QueuedInference:
    """An `Inference` for threads over the queue that all requests share; files that stay as they were cost one pass."""

    def __init__(self, inference: Inference | UnknownInference, *, at_once: int, kept: EncodingCache) -> None:
        self._at_once = at_once
        self._inference = inference
        self._kept = kept
        self.encoder = inference.encoder
        self.device = inference.device
        self.fine = inference.fine

    def connect(self, encode: Callable[[Tensor], Awaitable[Done[Encoding]]]) -> None:
        """Use the queue of the running event loop."""
        self._encode, self._loop = encode, asyncio.get_running_loop()

    def encode_images(self, images: Sequence[Any]) -> Encoding:
        """Wait in a thread until the images are encoded; one request never fills the queue with all of its images."""
        keys = [self._key(image) for image in images]
        found = [None if key is None else self._kept.find(key) for key in keys]
        done = [None if each is None else each.encoding for each in found]
        missing = [place for place, encoding in enumerate(done) if encoding is None]

        async def all_of(pixels: Sequence[Tensor]) -> list[Done[Encoding]]:
            return await asyncio.gather(*map(self._encode, pixels))

        for start in range(0, len(missing), self._at_once):
            places = missing[start : start + self._at_once]
            pixels = [self._inference.read(images[place]) for place in places]
            results = asyncio.run_coroutine_threadsafe(all_of(pixels), self._loop).result()
            for place, one in zip(places, results, strict=True):
                done[place] = one.result
                if (key := keys[place]) is not None:
                    self._kept.keep(key, one.result, (0, 0))
        return Encoding.cat([encoding for encoding in done if encoding is not None])

    def _key(self, image: Any) -> Hashable | None:
        """A file's path, state, and the layer that is read beside the map; None for what is not a file."""
        try:
            status = os.stat(image) if isinstance(image, str | os.PathLike) else None  # noqa: PTH116
        except (OSError, ValueError):  # reading it says what is wrong
            return None
        state = status and (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return state and (os.fspath(image), *state, self.fine.layer)


class Service:
    """A gallery in service; `start` and `stop` are called by the application, in its event loop."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.queries = QueryCache(max_bytes=settings.kept_bytes, max_age_s=settings.kept_s)
        encoder, self.inference = _encoder_for(settings)
        self.matched = EncodingCache(max_bytes=settings.match_bytes, max_age_s=settings.kept_s)
        at_once = min(settings.max_batch, settings.queue)
        self._queued = QueuedInference(self.inference, at_once=at_once, kept=self.matched)
        self.live = LiveGallery(settings, encoder, self._queued, on_change=self.metrics.gallery_changed)
        self.changing = asyncio.Lock()
        self.has_changed = False
        self.atlas: tuple[Hashable, str] | None = None  # the last that was asked for, with its state, as JSON
        self.has_hung_threads = False
        self._following: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Take up work."""
        settings, ledger = self.settings, Ledger()
        self._decoders = Decoders(
            _DECODERS, seconds=settings.decode_limit_s, max_pixels=settings.max_pixels, ledger=ledger
        )
        self._searchers = Threads(_SEARCHERS, "search", ledger)
        self._thumbnailers = Threads(_THUMBNAILERS, "thumbnail", ledger)
        self._fetchers = Threads(_FETCHERS, "fetch", ledger)
        self._watcher = ThreadPoolExecutor(1, "distcam-watch")
        self._batcher: Batcher[Tensor, Encoding] = Batcher(
            lambda pixels: list(self.inference(torch.stack(pixels)).to("cpu")),
            max_batch=settings.max_batch,
            window_s=settings.window_ms / 1000,
            capacity=settings.queue,
            on_batch=self.metrics.batch_done,
            initialise=lambda: None if settings.threads is None else torch.set_num_threads(settings.threads),
        )
        self._queued.connect(self._batcher.submit)
        self.metrics.queue.set_function(lambda: len(self._batcher))
        self.metrics.kept.set_function(lambda: self.queries.nbytes)
        self.metrics.matched.set_function(lambda: self.matched.nbytes)

    async def stop(self) -> None:
        """Finish what waits, and let go of everything; a thread that does not end by then is left behind."""
        await self._decoders.close()
        for pool in (self._searchers.pool, self._thumbnailers.pool, self._fetchers.pool, self._watcher):
            pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + _LAST_S
        while self._busy_threads and time.monotonic() < end:  # in the loop: a thread may be waiting for it
            await asyncio.sleep(0.01)
        if self._busy_threads:
            self.has_hung_threads = True
            _log.warning("%d threads are still at work, and are left behind", self._busy_threads)
        await self._batcher.close()
        if not self.has_hung_threads:
            self.live.close(save_caches=self.has_changed)

    @property
    def _busy_threads(self) -> int:
        return self._searchers.slots.held + self._thumbnailers.slots.held

    async def known(self) -> tuple[int, int]:
        """Images and generation for `/health`: as they are if that can be told soon, else as they were last."""
        if not self.live.is_fresh:
            if self._following is None or self._following.done():
                self._following = asyncio.get_running_loop().run_in_executor(self._watcher, self.live.follow)
            await asyncio.wait({self._following}, timeout=_LOOK_S)
        return self.live.known

    async def fetch(self, url: str) -> bytes:
        """The file behind a URL that a client sends, from the public internet, no larger than an upload."""
        if not self.settings.urls:
            raise ApiError(403, "this server fetches no URLs; send the image", reason="url")
        most, seconds = self.settings.max_upload_bytes, self.settings.work_limit_s
        work = partial(fetch, url, max_bytes=most, seconds=seconds, is_strangers=True)
        try:
            return await self._fetchers.run(work, seconds=seconds)
        except ImageError as error:
            raise ApiError(422, str(error), reason="url") from error

    async def encode(self, data: bytes) -> EncodedUpload:
        """Decode an upload in one of the decoding processes, then wait for a forward pass."""
        start, transform = time.perf_counter(), self.inference.encoder.transform
        with self._batcher.expecting():
            size, pixels = await self._decoders.decode(data, transform)
        is_elongated = share_of_view(transform, size) < LITTLE
        enlarged = (await self._decoders.decode(data, larger(transform)))[1] if is_elongated else None
        seconds = time.perf_counter() - start
        self.metrics.steps.labels("decode").observe(seconds)
        done = await self._batcher.submit(pixels)
        self.metrics.steps.labels("queue").observe(done.queue_s)
        return EncodedUpload(size, seconds, done, enlarged)

    async def read(self, work: Callable[[Retriever], T], *, step: str = "read") -> T:
        """Do some work on the newest generation, in a thread."""

        def in_thread() -> T:
            start = time.perf_counter()
            with self.live.reading() as retriever:
                result = work(retriever)
            self.metrics.steps.labels(step).observe(time.perf_counter() - start)
            return result

        threads = self._thumbnailers if step == "thumbnail" else self._searchers
        return await threads.run(in_thread, seconds=self.settings.work_limit_s)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do some other work in a thread."""
        return await self._searchers.run(work, seconds=self.settings.work_limit_s)


def _encoder_for(settings: ServerSettings) -> tuple[Encoder, Inference | UnknownInference]:
    """The gallery's encoder, if it keeps one or one is given, in the precision it was used with."""
    with Gallery.open(settings.gallery, root=settings.root, verify=False) as gallery:
        entry, path = gallery.manifest.encoder, settings.encoder or gallery.encoder_path
        if path is None:
            unknown = UnknownInference(entry)
            return unknown.encoder, unknown
        encoder = Encoder.load(path)
        gallery.check_encoder(encoder)
        kept = gallery.manifest.lines
    precision = entry.precision or "auto"
    inference = Inference(encoder, device=settings.device, precision=precision, batch_size=settings.max_batch)
    inference.fine.read("auto" if kept is None else kept.layer)  # of a kept query there is no image to read later
    return encoder, inference
