"""The queue to the network, whose requests share forward passes; slots and threads that clients share fairly."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..deadlines import finish_by
from .refusals import ApiError

asking_client: ContextVar[str] = ContextVar("distcam_client", default="")  # set for each request by the middleware

T = TypeVar("T")
R = TypeVar("R")
_HALF_LIFE_S = 20.0
_HEAVY_S = 2.0
_MOST_CLIENTS = 10_000


@dataclass(frozen=True)
class Done(Generic[R]):
    """The result of one item, the seconds it waited, and those its batch took."""

    result: R
    queue_s: float
    work_s: float


@dataclass(eq=False)
class _QueuedWork(Generic[T, R]):
    item: T
    since: float
    future: asyncio.Future[Done[R]]


class Batcher(Generic[T, R]):
    """A bounded queue whose items are worked on in batches, by one thread; it belongs to the running event loop.

    Items whose request is cancelled leave the queue. An exception of the work reaches every request of its batch.
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
        self._waiting: deque[_QueuedWork[T, R]] = deque()
        self._on_their_way = 0
        self._is_closing = False
        self._news = asyncio.Event()  # something arrived, left, or the end has come
        self._runner = asyncio.get_running_loop().create_task(self._run())

    def __len__(self) -> int:
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
        waiting: _QueuedWork[T, R] = _QueuedWork(item, time.perf_counter(), asyncio.get_running_loop().create_future())
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
                        while 0 < len(self._waiting) < self._max_batch and self._on_their_way and not self._is_closing:
                            await self._next_news()
            if batch := [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]:
                await self._process(batch)

    async def _next_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def _process(self, batch: list[_QueuedWork[T, R]]) -> None:
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


class Ledger:
    """Seconds of work done for each client; half of them are forgotten every 20 seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # seconds, and when that was so

    def of(self, client: str) -> float:
        """Seconds of recent work."""
        now = self.clock()
        seconds, when = self._spent.get(client, (0.0, now))
        return float(seconds * 0.5 ** ((now - when) / _HALF_LIFE_S))

    def charge(self, client: str, seconds: float) -> None:
        """Add work that was done for a client."""
        self._spent[client] = (self.of(client) + seconds, self.clock())
        self._spent.move_to_end(client)
        if len(self._spent) > _MOST_CLIENTS:
            self._spent.popitem(last=False)


def take_one(counts: Counter[str], client: str) -> None:
    """Count one less for a client, and forget the client at 0."""
    counts[client] -= 1
    if not counts[client]:
        del counts[client]


@dataclass(frozen=True)
class Slot:
    """A slot that a client holds since a time of the clock; `is_heavy` if the client had had much work by then."""

    client: str
    is_heavy: bool
    since: float


class FairSlots:
    """Slots for work of which only so much may go on at once.

    The client with the least recent work comes next. One client never has all slots, and clients with more than two
    seconds of recent work share all but one: light work finds a slot soon. Several `FairSlots` may share a ledger.
    """

    def __init__(self, count: int, ledger: Ledger) -> None:
        self._ledger = ledger
        self._free = count
        self._most = max(1, count - 1)
        self._held: Counter[str] = Counter()
        self._heavy = 0
        self._waiting: OrderedDict[str, deque[asyncio.Future[Slot]]] = OrderedDict()

    @property
    def held(self) -> int:
        """Slots in use."""
        return self._held.total()

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Hold a slot."""
        slot = await self.take()
        try:
            yield
        finally:
            self.leave(slot)

    async def take(self) -> Slot:
        """Wait for a slot; `leave` gives it back."""
        client = asking_client.get()
        turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._hand_out()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given a slot in the same moment
                self.leave(turn.result())
            raise

    def leave(self, slot: Slot) -> None:
        """Give a slot back; called in the event loop."""
        self._free += 1
        self._heavy -= slot.is_heavy
        take_one(self._held, slot.client)
        self._ledger.charge(slot.client, self._ledger.clock() - slot.since)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free:
            spent = {client: self._ledger.of(client) for client in self._waiting if self._held[client] < self._most}
            if self._heavy >= self._most:
                spent = {client: seconds for client, seconds in spent.items() if seconds <= _HEAVY_S}
            if not spent:
                return
            client = min(spent, key=spent.__getitem__)
            is_heavy = spent[client] > _HEAVY_S
            turns = self._waiting[client]
            turn = turns.popleft()
            self._waiting.move_to_end(client)
            if not turns:
                del self._waiting[client]
            if not turn.done():
                self._free -= 1
                self._heavy += is_heavy
                self._held[client] += 1
                turn.set_result(Slot(client, is_heavy, self._ledger.clock()))


class Threads:
    """Threads for one kind of work, whose clients take turns."""

    def __init__(self, count: int, name: str, ledger: Ledger) -> None:
        import faiss

        # One query is searched fastest by one thread, and several are searched side by side anyway.
        self.pool = ThreadPoolExecutor(count, f"distcam-{name}", initializer=faiss.omp_set_num_threads, initargs=(1,))
        self.slots = FairSlots(count, ledger)

    async def run(self, work: Callable[[], T], *, seconds: float) -> T:
        """Do some work when it is this client's turn; not for ever."""
        loop, slot = asyncio.get_running_loop(), await self.slots.take()

        def timed() -> T:
            try:
                with finish_by(time.monotonic() + seconds):
                    return work()
            finally:  # not before, though nobody may wait for it any more: until now it had a thread
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self.slots.leave, slot)

        return await asyncio.shield(loop.run_in_executor(self.pool, timed))
