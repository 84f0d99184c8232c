"""Requests that arrive together share a forward pass: a small queue between the event loop and one thread.

A batch starts as soon as the network is free. Only an idle network waits, a few milliseconds at most, for images that
are being received or decoded.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from .api_error import ApiError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Done(Generic[R]):
    """The result of one item, the seconds it waited, and those its batch took."""

    result: R
    queue_s: float
    work_s: float


@dataclass(eq=False)
class _Waiting(Generic[T, R]):
    item: T
    since: float
    future: asyncio.Future[Done[R]]


class Batcher(Generic[T, R]):
    """A bounded queue whose items are worked on in batches, by one thread; it belongs to the running event loop.

    Items whose request is cancelled leave the queue. An exception of the work reaches every request of its batch.

    Args:
        work: from a batch of items to one result for each; runs in the thread.
        max_batch: items of one batch.
        window_s: how long an idle queue waits for items on their way.
        capacity: items that may wait.
        on_batch: called with the size of each batch, and the seconds it took.
        initialise: called once in the thread.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Sequence[R]],
        *,
        max_batch: int,
        window_s: float,
        capacity: int,
        on_batch: Callable[[int, float], None] = lambda _size, _seconds: None,
        initialise: Callable[[], None] = lambda: None,
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._window_s = window_s
        self._capacity = capacity
        self._on_batch = on_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="distcam-encode", initializer=initialise)
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._on_their_way = 0
        self._is_closing = False
        self._news = asyncio.Event()  # something arrived, left, or the end has come
        self._runner = asyncio.get_running_loop().create_task(self._run())

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._waiting)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Announce an item: open while it is being made, left right before `submit`."""
        self._on_their_way += 1
        try:
            yield
        finally:
            self._on_their_way -= 1
            self._news.set()

    async def submit(self, item: T) -> Done[R]:
        """The result of one item."""
        if self._is_closing:
            raise ApiError(503, "the server is shutting down; ask again", reason="draining", retry_after=5)
        if len(self._waiting) >= self._capacity:
            full = f"{len(self._waiting)} images wait to be encoded already; ask again"
            raise ApiError(503, full, reason="queue", retry_after=1)
        waiting: _Waiting[T, R] = _Waiting(item, time.perf_counter(), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._news.set()
        try:
            return await waiting.future
        finally:
            with suppress(ValueError):  # it is in a batch already
                self._waiting.remove(waiting)

    async def close(self) -> None:
        """Take no more items, finish those that wait, and end the thread."""
        self._is_closing = True
        self._news.set()
        await self._runner
        self._thread.shutdown(wait=True)

    async def _run(self) -> None:
        while self._waiting or not self._is_closing:
            if not self._waiting:
                await self._next_news()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._window_s):
                        while self._is_worth_waiting:
                            await self._next_news()
            if batch := [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]:
                await self._process(batch)

    @property
    def _is_worth_waiting(self) -> bool:
        """True while more images are on their way, and the batch has room for them."""
        return 0 < len(self._waiting) < self._max_batch and self._on_their_way > 0 and not self._is_closing

    async def _next_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def _process(self, batch: list[_Waiting[T, R]]) -> None:
        start = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._thread, self._work, [waiting.item for waiting in batch])
            seconds = time.perf_counter() - start
            self._on_batch(len(batch), seconds)
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        for waiting, result in pairs:
            if not waiting.future.done():
                waiting.future.set_result(Done(result, start - waiting.since, seconds))
