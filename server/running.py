"""Running the application with uvicorn, and ending it without dropping what is being answered."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InputError
from .refusals import client_key

_GRACE_S = 30  # for requests at work when the server is told to end
_PATIENCE_S = 30.0  # with connections that ask for nothing
_CONNECTIONS, _CLIENT_CONNECTIONS, _SPARE_CONNECTIONS = 1000, 250, 8
_TICKS = 100  # of .1 s, between two times that free memory is given back
_ARENAS = 2  # of malloc; by default each thread soon has one, and what a thread has freed serves no other
_M_ARENA_MAX = -8
_SWITCH_S = 0.0005  # between threads; Python's 5 ms is what the event loop would wait at each step for a busy thread


class _Connection(H11Protocol):
    """A connection that is closed when nothing happens on it, where uvicorn would wait for ever.

    (h11, because it bounds a head that comes in pieces, which httptools does not; the middleware bounds the others.)
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch = self.loop.call_later(_PATIENCE_S, self._look, None, True)
        self._client_key = client_key(self.client[0]) if self.client else ""
        self._counts: Counter[str] = self.config.app.state.traffic.connections  # type: ignore[union-attr]
        self._counts[self._client_key] += 1
        free = _CONNECTIONS - len(self.connections)  # what is left is never all for one
        if self._counts[self._client_key] > min(_CLIENT_CONNECTIONS, max(_SPARE_CONNECTIONS, free // 2)):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        self._counts[self._client_key] -= 1
        if not self._counts[self._client_key]:
            del self._counts[self._client_key]
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is h11.IDLE:
            super().send_400_response(msg)
        else:  # a body that does not parse; its request is being answered already, and one answer is enough
            self.transport.abort()

    def _look(self, last: object, was_idle: bool) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        if is_idle and was_idle and self.cycle is last:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(_PATIENCE_S, self._look, self.cycle, is_idle)


class _Server(uvicorn.Server):
    """Refuses new requests from the moment it is told to end; those at work are finished. Gives free memory back."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS == 0 and (libc := glibc()) is not None:
            await asyncio.to_thread(libc.malloc_trim, 0)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.traffic.is_draining = True  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def glibc() -> ctypes.CDLL | None:
    """The C library, where it is GNU's: its malloc keeps what large uploads needed, unless it is told to let go."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None


def bound_socket(host: str, port: int) -> socket.socket:
    """Listen before anything is loaded, so that a port in use is noticed at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delays on
    try:
        if os.name == "posix":  # elsewhere this option means something else
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Address of the server for a browser on this machine."""
    host, port = bound.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{name}:{port}"


def server_of(app: FastAPI, *, on_ready: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """The server that `run` runs; its `should_exit` ends it."""
    config = uvicorn.Config(
        app,
        log_level="error",  # warnings are about what clients do
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client could name any address as its own
        http=_Connection,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=_GRACE_S,
        ws="none",
        lifespan="on",
    )
    return _Server(config, on_ready)


def run(
    app: FastAPI, bound: socket.socket, *, access_log: bool = False, on_ready: Callable[[], None] = lambda: None
) -> bool:
    """Serve until SIGINT or SIGTERM, then finish what is being answered, and return.

    True if everything has ended; False if threads are still at work after the time for that, which would keep Python
    from ending: a command then calls `os._exit`.

    Args:
        app: what `create_app` returned.
        bound: where to listen.
        access_log: a line of JSON on standard error for every request.
        on_ready: called when requests are answered.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every form that is none
    if access_log:
        log = logging.getLogger("distcam.access")
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(logging.StreamHandler())
        app.state.traffic.log_requests = True
    # uvicorn raises the signals once more when it is done, for whoever was asked before; that is nobody
    switching = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    if (libc := glibc()) is not None and "MALLOC_ARENA_MAX" not in os.environ:
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}

    def ready() -> None:
        gc.collect()
        gc.freeze()  # else each full collection looks at all of torch, and stops every thread for .2 s
        on_ready()

    try:
        server_of(app, on_ready=ready).run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.setswitchinterval(switching)
        gc.unfreeze()
        bound.close()
    return not app.state.service.has_hung_threads
