"""Turns: whoever asks for much waits for himself, not for others to wait for him."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

__all__ = ["FairSlots", "asking_client"]

asking_client: ContextVar[str] = ContextVar("distcam_client", default="")  # set for each request by the guard


class FairSlots:
    """Places for work that only so many may do at once: clients take turns, and one client leaves a place for others.

    Args:
        count: places.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._most = max(1, count - 1)  # of one client
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # whose turn it is comes first

    @property
    def held(self) -> int:
        """Places that are taken."""
        return self._held.total()

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """While one of the places is this client's."""
        client = await self.take()
        try:
            yield
        finally:
            self.leave(client)

    async def take(self) -> str:
        """Wait for a place; the name that `leave` needs."""
        client = asking_client.get()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given a place in the same moment
                self.leave(client)
            else:
                self._forget(client, turn)
            raise
        return client

    def leave(self, client: str) -> None:
        """Give a place back; called in the event loop."""
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        self._give()

    def _give(self) -> None:
        while self._free:
            client = next((name for name in self._waiting if self._held[name] < self._most), None)
            if client is None:
                return
            turn = self._waiting[client].popleft()
            self._waiting.move_to_end(client)
            if not self._waiting[client]:
                del self._waiting[client]
            if not turn.done():
                self._free -= 1
                self._held[client] += 1
                turn.set_result(None)

    def _forget(self, client: str, turn: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(client)
        if waiting is not None and turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[client]
