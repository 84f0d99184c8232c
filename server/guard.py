"""What stands before every request: host, origin, rates, sizes, time; and the headers of every answer.

Pure ASGI: the body is counted while it comes in, so that what is too large is refused before it is stored anywhere.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse

from .fairness import asking_client
from .limits import RateLimit, client_key
from .metrics import Metrics
from .refusals import Refusal
from .settings import Settings

__all__ = ["Guard", "Traffic", "refusal_response"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)
_access = logging.getLogger("distcam.access")

API = "/api/v1/"
FORM_BYTES = 64 << 10  # what a form adds to a picture: boundaries, headers, columns
JSON_BYTES = 1 << 20
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": _PAGE_POLICY,
}


_OPEN_PATHS = {"/", "/favicon.ico", "/health", "/ready"}  # without a read token
_CLOSING = {413, 431}
_OVERFULL = 4  # times the concurrency, for clients that have less than their share of it
_MOST_HEADERS, _HEAD_BYTES = 100, 32 << 10
COOKIE = "distcam_reader"


def cookie_of(token: str) -> str:
    """What a browser keeps in place of the read token: other servers of the same host are sent it too."""
    return hmac.new(token.encode(), b"distcam reader", "sha256").hexdigest()


def _is_equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("latin-1", "replace"), expected.encode())


def _require_plain_head(scope: Scope) -> None:
    """Refuse a head that means one thing to a proxy and another to this server, or that is larger than any browser's.

    Raises:
        Refusal: 400, two ways to tell where the body ends; 431, too many headers.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if len(headers) > _MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > _HEAD_BYTES:
        raise Refusal(431, f"more than {_MOST_HEADERS} headers, or {_HEAD_BYTES:,} bytes of them", reason="head")
    names = [name for name, _ in headers]
    has_coding = b"transfer-encoding" in names
    if has_coding and (b"content-length" in names or scope.get("http_version") == "1.0"):
        raise Refusal(400, "Content-Length and Transfer-Encoding in one request", reason="framing")


def refusal_response(refusal: Refusal) -> JSONResponse:
    """The answer to a request that is refused; a lone surrogate in a message must not break its encoding."""
    detail = refusal.detail.encode("utf-8", "replace").decode()
    return JSONResponse({"detail": detail}, refusal.status, headers=refusal.headers)


@dataclass
class Traffic:
    """What goes through a server at the moment, and whether it still takes more.

    Attributes:
        is_draining: the server is about to end: new requests are refused, those at work are finished.
        at_work: requests of the API that are being answered, by client.
        log_requests: write a line of JSON to the log for every request.
    """

    is_draining: bool = False
    at_work: Counter[str] = field(default_factory=Counter)
    log_requests: bool = False

    @contextmanager
    def of(self, client: str) -> Iterator[None]:
        """While a request of a client is being answered."""
        self.at_work[client] += 1
        try:
            yield
        finally:
            self.at_work[client] -= 1
            if not self.at_work[client]:
                del self.at_work[client]


class Guard:
    """The middleware around the whole application."""

    def __init__(self, app: Application, *, settings: Settings, metrics: Metrics, traffic: Traffic) -> None:
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
        start, status, must_close = time.perf_counter(), 0, False
        is_api = scope["path"].startswith(API)

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store" if is_api else "no-cache")
                if self._traffic.is_draining or status in _CLOSING or must_close:  # the rest is not waited for
                    headers["Connection"] = "close"
            await send(message)

        try:
            self._admit(scope)
            with self._admitted(scope) if is_api else nullcontext():
                async with asyncio.timeout(self._settings.time_limit_s):
                    await self._app(scope, self._counted(scope, receive), send_guarded)
        except Refusal as refusal:
            must_close = refusal.reason == "framing"  # what follows may be a second request that a proxy never saw
            self._metrics.refused.labels(refusal.reason).inc()
            await refusal_response(refusal)(scope, receive, send_guarded)
        except TimeoutError:
            if status:  # the client does not take its answer; uvicorn hangs up on answers that are not finished
                return
            self._metrics.refused.labels("time").inc()
            late = Refusal(503, "this took too long; ask again, for less", reason="time", retry_after=5)
            await refusal_response(late)(scope, receive, send_guarded)
        except Exception:
            _log.exception("a request to %s failed", route_of(scope))
            if status:
                raise
            failure = Refusal(500, "the server failed; its log says how", reason="failure")
            await refusal_response(failure)(scope, receive, send_guarded)
        finally:
            self._note(scope, status or 500, time.perf_counter() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count the request, and log it if asked to; never what was searched for, nor a token."""
        route = route_of(scope)
        self._metrics.answered(route, status, seconds)
        if self._traffic.log_requests:
            client = (scope.get("client") or ("unknown",))[0]
            line = {"client": client, "method": scope["method"], "route": route, "status": status}
            _access.info(json.dumps(line | {"ms": round(1000 * seconds, 1)}))

    # --- What must hold before anybody looks at the request ----------------------------------------------------------

    def _admit(self, scope: Scope) -> None:
        _require_plain_head(scope)
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not is_own_name(host, self._settings.allowed_hosts):
            raise Refusal(400, "the Host header names another server; see --allow-host", reason="host")
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and origin is not None and not _is_same(origin, host):
            raise Refusal(403, "requests from pages of other servers are not answered", reason="origin")
        limit = self._limit(scope)
        if (length := headers.get("content-length", "0")).isdecimal() and int(length[:20]) > limit:
            raise Refusal(413, _too_large(limit), reason="bytes")
        if self._settings.read_token is not None and scope["path"] not in _OPEN_PATHS:
            self._require_reader(scope, headers)

    def _require_reader(self, scope: Scope, headers: Headers) -> None:
        """The page and its scripts are for everybody; what they ask for is for whoever has a token.

        Raises:
            Refusal: 401, the token is missing or wrong.
        """
        if scope["path"].startswith("/static/"):
            return
        settings = self._settings
        assert settings.read_token is not None
        kind, _, given = headers.get("authorization", "").partition(" ")
        tokens = [token for token in (settings.read_token, settings.token) if token is not None]
        if kind.lower() == "bearer" and any(_is_equal(given.strip(), token) for token in tokens):
            return
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if not _is_equal(cookie, cookie_of(settings.read_token)):
            raise Refusal(401, "this server asks for its read token: `Authorization: Bearer TOKEN`", reason="token")

    def _admitted(self, scope: Scope) -> AbstractContextManager[None]:
        """A place among the requests at work."""
        traffic, settings = self._traffic, self._settings
        if traffic.is_draining:
            raise Refusal(503, "the server is shutting down; ask again", reason="draining", retry_after=5)
        client = client_key((scope.get("client") or ("unknown", 0))[0])
        asking_client.set(client)
        if wait := self._rate.wait_for(client):
            raise Refusal(429, f"more than {settings.rate:g} requests a second", reason="rate", retry_after=wait)
        total, own = traffic.at_work.total(), traffic.at_work[client]
        share = settings.concurrency // len(traffic.at_work.keys() | {client})  # who has less is let in all the same
        if total >= settings.concurrency and (own >= share or total >= _OVERFULL * settings.concurrency):
            raise Refusal(429, f"{total} requests are at work already", reason="concurrency", retry_after=1)
        if own >= settings.client_concurrency:
            raise Refusal(429, f"{own} of your requests are at work already", reason="concurrency", retry_after=1)
        return traffic.of(client)

    def _limit(self, scope: Scope) -> int:
        is_form = Headers(scope=scope).get("content-type", "").lower().startswith("multipart/form-data")
        return self._settings.max_upload_bytes + FORM_BYTES if is_form else JSON_BYTES

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """The body as it comes in, up to the limit."""
        limit, received = self._limit(scope), 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                self._metrics.refused.labels("bytes").inc()
                raise HTTPException(413, _too_large(limit))  # FastAPI takes anything else for a malformed body
            return message

        return receive_counted


def route_of(scope: Scope) -> str:
    """The pattern that the request's path fits, so that there are as many as routes, whatever clients ask for."""
    return str(getattr(scope.get("route"), "path", "other"))


def is_own_name(host: str, allowed: Iterable[str]) -> bool:
    """Whether a Host header may name this server.

    An address or `localhost` always may; any other name only if it was allowed: with a name of his own that suddenly
    means 127.0.0.1, a stranger's page would otherwise be let in (DNS rebinding).

    >>> is_own_name("127.0.0.1:8000", ()), is_own_name("[::1]:8000", ()), is_own_name("evil.example", ())
    (True, True, False)
    """
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name == "localhost" or name in allowed:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same(origin: str, host: str) -> bool:
    return origin.partition("://")[2].lower() == host.lower()


def _too_large(limit: int) -> str:
    return f"the request is too large: more than {limit:,} bytes"
