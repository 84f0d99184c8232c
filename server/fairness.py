"""Turns: whoever asks for much waits for himself, not for others to wait for him."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["FairSlots", "Place", "asking_client"]

asking_client: ContextVar[str] = ContextVar("distcam_client", default="")  # set for each request by the guard

_HALF_LIFE_S = 20.0  # after which half of what a client has had is forgotten
_HEAVY_S = 2.0  # of recent work; who has had more shares all places but one with others like him
_MOST_CLIENTS = 10_000


@dataclass(frozen=True)
class Place:
    """A place that somebody has.

    Attributes:
        client: who.
        is_heavy: whether the last place was not to be had.
        since: seconds of the clock.
    """

    client: str
    is_heavy: bool
    since: float


@dataclass(frozen=True)
class _Turn:
    given: asyncio.Future[Place]
    is_heavy: bool


class FairSlots:
    """Places for work that only so many may do at once.

    The client who has had least of late comes next. One client never has all places; work that is known to be heavy,
    or asked for by clients who have had much of late, never has the last one: what is light finds a place soon.

    Args:
        count: places.
        clock: seconds; tests put their own in its place.
    """

    def __init__(self, count: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free = count
        self._most = max(1, count - 1)
        self._held: Counter[str] = Counter()
        self._heavy = 0
        self._had: OrderedDict[str, tuple[float, float]] = OrderedDict()  # seconds of work, when that was so
        self._waiting: OrderedDict[str, deque[_Turn]] = OrderedDict()

    @property
    def held(self) -> int:
        """Places that are taken."""
        return self._held.total()

    @asynccontextmanager
    async def taken(self, *, is_heavy: bool = False) -> AsyncIterator[None]:
        """While one of the places is this client's."""
        place = await self.take(is_heavy=is_heavy)
        try:
            yield
        finally:
            self.leave(place)

    async def take(self, *, is_heavy: bool = False) -> Place:
        """Wait for a place, for `leave`."""
        client = asking_client.get()
        turn = _Turn(asyncio.get_running_loop().create_future(), is_heavy)
        self._waiting.setdefault(client, deque()).append(turn)
        self._give()
        try:
            return await turn.given
        except asyncio.CancelledError:
            if turn.given.done() and not turn.given.cancelled():  # it was given a place in the same moment
                self.leave(turn.given.result())
            else:
                self._forget(client, turn)
            raise

    def leave(self, place: Place) -> None:
        """Give a place back; called in the event loop."""
        now = self._clock()
        self._free += 1
        self._heavy -= place.is_heavy
        self._held[place.client] -= 1
        if not self._held[place.client]:
            del self._held[place.client]
        self._had[place.client] = (self._work_of(place.client, now) + now - place.since, now)
        self._had.move_to_end(place.client)
        if len(self._had) > _MOST_CLIENTS:
            self._had.popitem(last=False)
        self._give()

    def _work_of(self, client: str, now: float) -> float:
        seconds, when = self._had.get(client, (0.0, now))
        return float(seconds * 0.5 ** ((now - when) / _HALF_LIFE_S))

    def _give(self) -> None:
        now = self._clock()
        while self._free:
            best: tuple[float, str, bool] | None = None
            for client, turns in self._waiting.items():
                work = self._work_of(client, now)
                is_heavy = turns[0].is_heavy or work > _HEAVY_S
                may_have = self._held[client] < self._most and (not is_heavy or self._heavy < self._most)
                if may_have and (best is None or work < best[0]):
                    best = work, client, is_heavy
            if best is None:
                return
            self._give_to(best[1], Place(best[1], best[2], now))

    def _give_to(self, client: str, place: Place) -> None:
        turn = self._waiting[client].popleft()
        self._waiting.move_to_end(client)
        if not self._waiting[client]:
            del self._waiting[client]
        if not turn.given.done():
            self._free -= 1
            self._heavy += place.is_heavy
            self._held[client] += 1
            turn.given.set_result(place)

    def _forget(self, client: str, turn: _Turn) -> None:
        waiting = self._waiting.get(client)
        if waiting is not None and turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[client]
