"""Refusals: the answer to a request that is refused, for every error, and the checks of a head that need no state."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse

from ..deadlines import DeadlineError
from ..errors import DistcamError, ImageError, InputError, UnknownEncoderError
from .schemas import ErrorAnswer
from .settings import ServerSettings

COOKIE = "distcam_reader"
_OPEN_PATHS = {"/", "/atlas", "/favicon.ico", "/health", "/ready"}  # without a read token
_MOST_HEADERS, _HEAD_BYTES = 100, 32 << 10


class ApiError(DistcamError):
    """A request that is answered with a status, one sentence, and perhaps the seconds after which to ask again."""

    def __init__(self, status: int, detail: str, *, reason: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.reason = reason
        self.retry_after = retry_after

    def response(self) -> JSONResponse:
        """The answer; a lone surrogate in a message must not break its encoding."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        detail = self.detail.encode("utf-8", "replace").decode()
        return JSONResponse({"detail": detail}, self.status, headers=headers)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors that a route can give, besides those that every route can."""
    every = (400, 403, 413, 422, 429, 503)
    return {status: {"model": ErrorAnswer} for status in sorted({*every, *statuses})}


def api_error_of(error: DistcamError) -> ApiError:
    """Status and sentence: of a wrong request 400, of a gallery that cannot be used at the moment 503.

    Uploads are judged where they are decoded, so an `ImageError` is about an image of the gallery.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DeadlineError):
        return ApiError(400, str(error), reason="work")
    if isinstance(error, ImageError):
        return ApiError(404, f"the file of this image is gone: {error.reason}", reason="gone")
    if isinstance(error, UnknownEncoderError):
        return ApiError(409, str(error), reason="encoder")
    if isinstance(error, InputError):
        return ApiError(400, str(error), reason="input")
    return ApiError(503, str(error), reason="gallery", retry_after=10)


def require_access(scope: MutableMapping[str, Any], headers: Headers, settings: ServerSettings) -> None:
    """Refuse a request by its head."""
    if len(headers.raw) > _MOST_HEADERS or sum(len(name) + len(value) for name, value in headers.raw) > _HEAD_BYTES:
        raise ApiError(431, f"more than {_MOST_HEADERS} headers, or {_HEAD_BYTES:,} bytes of them", reason="head")
    if "transfer-encoding" in headers and ("content-length" in headers or scope.get("http_version") == "1.0"):
        raise ApiError(400, "Content-Length and Transfer-Encoding in one request", reason="framing")
    host, origin = headers.get("host", ""), headers.get("origin")
    if not is_own_name(host, settings.allowed_hosts):
        raise ApiError(400, "the Host header names another server; see --allow-host", reason="host")
    is_other_page = origin is not None and origin.partition("://")[2].lower() != host.lower()
    if is_other_page and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
        raise ApiError(403, "requests from pages of other servers are not answered", reason="origin")
    is_open = scope["path"] in _OPEN_PATHS or scope["path"].startswith("/static/")
    if settings.read_token is None or is_open or has_bearer(headers, settings.read_token, settings.token):
        return
    if not is_token(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""), cookie_of(settings.read_token)):
        raise ApiError(401, "this server asks for its read token: `Authorization: Bearer TOKEN`", reason="token")


def is_token(given: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def has_bearer(headers: Headers, *tokens: str | None) -> bool:
    """True if the Authorization header carries one of some tokens."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and any(is_token(given.strip(), token) for token in tokens if token is not None)


def cookie_of(token: str) -> str:
    """Cookie in place of the read token: other servers of the same host are sent it too."""
    return hmac.new(token.encode(), b"distcam reader", "sha256").hexdigest()


def is_own_name(host: str, allowed: Iterable[str]) -> bool:
    """True if a Host header may name this server: an address, localhost, or a name allowed (against DNS rebinding).

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


def client_key(host: str) -> str:
    """Key of one client: an IPv4 address, or the 64 bits of an IPv6 address that a provider gives out.

    >>> client_key("192.0.2.7"), client_key("2001:db8::1:2")
    ('192.0.2.7', '2001:db8::/64')
    """
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return host if address.ipv4_mapped is not None else str(ipaddress.ip_network((address, 64), strict=False))
