"""The middleware around every request: access, rates, sizes, time, HEAD, and the headers of every answer."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .queues import asking_client, take_one
from .refusals import ApiError, client_key, require_access
from .service import Metrics
from .settings import ServerSettings

_log = logging.getLogger(__name__)
_access = logging.getLogger("distcam.access")

API = "/api/v1/"
FORM_BYTES = 64 << 10  # what a form adds to an image: boundaries, headers, columns
JSON_BYTES = 1 << 20
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
}
_CLOSING = {413, 431}
_OVERFULL = 4  # times the concurrency, for clients that have less than their share of it
_MOST_CLIENTS = 10_000


class RateLimit:
    """Token buckets by client; each holds up to twice what comes in a second, and a rate of 0 sets no limit."""

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when

    def wait_for(self, client: str) -> int:
        """0 if a request may pass, else the whole seconds until one may."""
        if not self._rate:
            return 0
        now, full = self._clock(), max(1.0, 2 * self._rate)
        tokens, since = self._buckets.pop(client, (full, now))
        tokens = min(full, tokens + (now - since) * self._rate)
        may_pass = tokens >= 1
        self._buckets[client] = (tokens - may_pass, now)
        if len(self._buckets) > _MOST_CLIENTS:  # the one that has been quiet for longest has a full bucket, or nearly
            self._buckets.popitem(last=False)
        return 0 if may_pass else math.ceil((1 - tokens) / self._rate)


@dataclass
class Traffic:
    """Requests of the API at work and open connections, by client."""

    is_draining: bool = False  # about to end: new requests are refused, those at work are finished
    at_work: Counter[str] = field(default_factory=Counter)
    connections: Counter[str] = field(default_factory=Counter)
    log_requests: bool = False

    @contextmanager
    def of(self, client: str) -> Iterator[None]:
        """Count a request of a client while it is being answered."""
        self.at_work[client] += 1
        try:
            yield
        finally:
            take_one(self.at_work, client)


class Middleware:
    """The middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, metrics: Metrics, traffic: Traffic) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._rate = RateLimit(settings.rate)
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:  # there are no web sockets
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, headers = time.perf_counter(), Headers(scope=scope)
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        limit = self._settings.max_upload_bytes + FORM_BYTES if is_form else JSON_BYTES
        exchange = _Exchange(scope, headers, receive, send, limit=limit, traffic=self._traffic)
        try:
            require_access(scope, headers, self._settings)
            if (length := headers.get("content-length", "0")).isdecimal() and int(length[:20]) > exchange.limit:
                raise ApiError(413, _too_large(exchange.limit), reason="bytes")
            with self._admitted(scope):
                async with asyncio.timeout(self._settings.time_limit_s):
                    await self._app(scope, exchange.receive, exchange.send)
        except Exception as raised:
            error = self._error_of(raised, exchange)
            if error is not None:
                self._metrics.refused.labels(error.reason).inc()
                await error.response()(scope, receive, exchange.send)
        finally:
            self._note(exchange, time.perf_counter() - start)

    def _error_of(self, error: Exception, exchange: _Exchange) -> ApiError | None:
        """The answer to an error; None where another answer has begun, which uvicorn then cuts off."""
        if isinstance(error, ApiError):
            exchange.must_close |= error.reason == "framing"  # a second request may follow that a proxy never saw
            return error
        if isinstance(error, TimeoutError):
            late = ApiError(503, "this took too long; ask again, for less", reason="time", retry_after=5)
            return None if exchange.status else late
        _log.error("a request to %s failed", route_of(exchange.scope), exc_info=error)
        if exchange.status:
            raise error
        return ApiError(500, "the server failed; its log says how", reason="failure")

    def _note(self, exchange: _Exchange, seconds: float) -> None:
        """Count the request, and log it if asked to; never what was searched for, nor a token."""
        scope, status = exchange.scope, exchange.status or 500
        route = route_of(scope)
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.latency.labels(route).observe(seconds)
        if self._traffic.log_requests:
            client = (scope.get("client") or ("unknown",))[0]
            line = {"client": client, "method": exchange.method, "route": route, "status": status}
            _access.info(json.dumps(line | {"ms": round(1000 * seconds, 1)}))

    @contextmanager
    def _admitted(self, scope: Scope) -> Iterator[None]:
        """Hold a place among the requests at work; what is not the API needs none."""
        if not scope["path"].startswith(API):
            yield
            return
        traffic, settings = self._traffic, self._settings
        if traffic.is_draining:
            raise ApiError(503, "the server is shutting down; ask again", reason="draining", retry_after=5)
        client = client_key((scope.get("client") or ("unknown", 0))[0])
        asking_client.set(client)
        if wait := self._rate.wait_for(client):
            raise ApiError(429, f"more than {settings.rate:g} requests a second", reason="rate", retry_after=wait)
        total, own = traffic.at_work.total(), traffic.at_work[client]
        share = settings.concurrency // len(traffic.at_work.keys() | {client})  # who has less is let in all the same
        if total >= settings.concurrency and (own >= share or total >= _OVERFULL * settings.concurrency):
            raise ApiError(429, f"{total} requests are at work already", reason="concurrency", retry_after=1)
        if own >= settings.client_concurrency:
            raise ApiError(429, f"{own} of your requests are at work already", reason="concurrency", retry_after=1)
        with traffic.of(client):
            yield


class _Exchange:
    """One request and its answer, on their way through: bytes are counted, headers added."""

    def __init__(
        self, scope: Scope, headers: Headers, receive: Receive, send: Send, *, limit: int, traffic: Traffic
    ) -> None:
        self.scope = scope
        self.limit = limit
        self.status = 0  # until the answer begins
        self.must_close = False  # hang up afterwards
        self._receive = receive
        self._send = send
        self._traffic = traffic
        self._received = 0
        self._is_endless = "transfer-encoding" in headers  # until its end has come
        self.method = scope["method"]
        if self.method == "HEAD":  # is answered by the routes of GET
            scope["method"] = "GET"

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self._is_endless &= message.get("more_body", False)
        if self._received > self.limit:
            raise HTTPException(413, _too_large(self.limit))  # FastAPI takes anything else for a malformed body
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.update(_HEADERS)
            is_api = self.scope["path"].startswith(API)
            headers.setdefault("Cache-Control", "no-store" if is_api else "no-cache")
            is_unread = self._is_endless or self.status in _CLOSING  # the rest is not waited for
            if self._traffic.is_draining or is_unread or self.must_close:
                headers["Connection"] = "close"
        elif self.method == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)


def route_of(scope: Scope) -> str:
    """The pattern that the request's path fits, so that there are as many as routes, whatever clients ask for."""
    return str(getattr(scope.get("route"), "path", "other"))


def _too_large(limit: int) -> str:
    return f"the request is too large: more than {limit:,} bytes"
