"""Fair sharing between clients: who has cost the server most of late waits longest."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

asking_client: ContextVar[str] = ContextVar("distcam_client", default="")  # set for each request by the middleware

_HALF_LIFE_S = 20.0
_HEAVY_S = 2.0
_MOST_CLIENTS = 10_000


class Ledger:
    """Seconds of work done for each client; half of them are forgotten every 20 seconds.

    Args:
        clock: seconds; tests put their own in its place.
    """

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


@dataclass(frozen=True)
class Slot:
    """A slot that a client holds since a time of the clock; `is_heavy` if the client had had much work by then."""

    client: str
    is_heavy: bool
    since: float


class FairSlots:
    """Slots for work of which only so much may go on at once.

    The client with the least recent work comes next. One client never has all slots, and clients with more than two
    seconds of recent work share all but one: light work finds a slot soon.

    Args:
        count: slots.
        ledger: work of each client, perhaps shared with other slots.
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
        self._held[slot.client] -= 1
        if not self._held[slot.client]:
            del self._held[slot.client]
        self._ledger.charge(slot.client, self._ledger.clock() - slot.since)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and (best := self._next_client()) is not None:
            client, is_heavy = best
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

    def _next_client(self) -> tuple[str, bool] | None:
        """The waiting client with the least recent work among those who may have a slot; and whether it is heavy."""
        best: tuple[float, str] | None = None
        for client in self._waiting:
            spent = self._ledger.of(client)
            may_have = self._held[client] < self._most and (spent <= _HEAVY_S or self._heavy < self._most)
            if may_have and (best is None or spent < best[0]):
                best = spent, client
        return None if best is None else (best[1], best[0] > _HEAVY_S)
