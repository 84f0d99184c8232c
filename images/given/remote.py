"""Images by URL: http and https without a way into private networks, and whatever else fsspec opens, such as `s3://`."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TypeVar
from urllib.parse import quote, urljoin, urlsplit

from ...errors import ImageError, MissingExtraError

T = TypeVar("T")
PRIVATE_VARIABLE = "DISTCAM_PRIVATE_URLS"  # "allow" lets the user's own URLs, and theirs alone, lead into one's network
MAX_BYTES = 100 << 20
_SECONDS = 20.0  # for a connection, and for each answer of the server
_SECONDS_IN_ALL = 120.0
_REDIRECTS = 5


def is_url(text: object) -> bool:
    """True of `https://…`, `s3://…` and the like.

    >>> is_url("https://host/a.jpg"), is_url("photos/a.jpg")
    (True, False)
    """
    return isinstance(text, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text) is not None


def fetched(source: T) -> T | bytes:
    """The bytes behind a URL, see `fetch`; anything else as it is."""
    return fetch(source) if isinstance(source, str) and is_url(source) else source


def fetch(
    url: str, *, max_bytes: int = MAX_BYTES, seconds: float = _SECONDS_IN_ALL, is_strangers: bool = False
) -> bytes:
    """The bytes behind a URL.

    Of http and https every address that a host has must be one of the public internet, and the connection goes to the
    address that was looked at; redirects are followed five times under the same rule. The environment variable
    `DISTCAM_PRIVATE_URLS=allow` lets URLs that begin at a private address stay among such; a public one never leads
    there. No proxy is used. A stranger's URL (`is_strangers`) is of http or https, and that variable is not for it.

    Raises:
        ImageError: no answer, none in time, more than `max_bytes`, or an address that is refused.
        MissingExtraError: a URL for fsspec, or for one of its own parts, that is not installed.
    """
    if urlsplit(url).scheme.lower() not in ("http", "https"):
        if is_strangers:
            raise ImageError(url, "expected a URL of http or https")
        return _open_with_fsspec(url, max_bytes)
    deadline, at = time.monotonic() + seconds, url
    is_private_allowed = not is_strangers and os.environ.get(PRIVATE_VARIABLE, "") == "allow"
    try:
        for _ in range(_REDIRECTS + 1):
            address, is_private = _looked_up(at)
            if is_private and not is_private_allowed:
                remedy = f"; {PRIVATE_VARIABLE}=allow in the environment permits it" * (at == url and not is_strangers)
                via = "" if at == url else f"redirected to {at}: "
                raise ImageError(url, f"{via}{address[0]} is an address of a private network, or none at all{remedy}")
            is_private_allowed = is_private_allowed and is_private
            with closing(_connected(at, address, deadline)) as connection, closing(_asked(connection, at)) as answer:
                if answer.status in (301, 302, 303, 307, 308) and (target := answer.getheader("Location")):
                    at = urljoin(at, target)
                    continue
                if answer.status != 200:
                    raise ImageError(url, f"the server answered {answer.status} {answer.reason}")
                return _read(answer, url, max_bytes, deadline)
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(url, f"cannot be fetched: {error or type(error).__name__}") from error
    raise ImageError(url, f"more than {_REDIRECTS} redirects")


def is_public(address: str) -> bool:
    """True of addresses that any host of the internet may have."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return parsed.is_global and not parsed.is_multicast


def _looked_up(url: str) -> tuple[tuple[str, int], bool]:
    """The address of a URL's host, and whether it, or any other that the host has, is private."""
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} is no address of http or https")
    port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)]
    private = [address for address in found if not is_public(address)]
    return ([*private, *found][0], port), bool(private)


def _connected(url: str, address: tuple[str, int], deadline: float) -> HTTPConnection:
    parts, patience = urlsplit(url), min(_SECONDS, max(deadline - time.monotonic(), 0.1))
    stream, host = socket.create_connection(address, timeout=patience), parts.hostname or ""
    kind: type[HTTPConnection] = HTTPConnection
    if parts.scheme.lower() == "https":
        stream, kind = ssl.create_default_context().wrap_socket(stream, server_hostname=host), HTTPSConnection
    connection = kind(host, address[1])
    connection.sock = stream  # so that the host is not looked up a second time, with another answer
    return connection


def _asked(connection: HTTPConnection, url: str) -> HTTPResponse:
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", quote(path, safe="!#$%&'()*+,/:;=?@[]~"))
    return connection.getresponse()


def _read(answer: HTTPResponse, url: str, max_bytes: int, deadline: float) -> bytes:
    content, size = bytearray(), int(answer.getheader("Content-Length") or 0)
    while max(size, len(content)) <= max_bytes and (part := answer.read1(1 << 16)):
        content += part
        if time.monotonic() > deadline:
            raise ImageError(url, "not there in time")
    if max(size, len(content)) > max_bytes:
        raise ImageError(url, f"more than {max_bytes >> 20} MiB")
    if len(content) < size:
        raise ImageError(url, f"ended after {len(content):,} of {size:,} bytes")
    return bytes(content)


def _open_with_fsspec(url: str, max_bytes: int) -> bytes:
    scheme = urlsplit(url).scheme
    try:
        import fsspec

        with fsspec.open(url, "rb") as stream:
            content: bytes = stream.read(max_bytes + 1)
    except ImportError as error:
        needs = f"{scheme}:// needs fsspec and its part for {scheme}: pip install 'distcam[remote]'"
        raise MissingExtraError(f"{needs} ({error})") from error
    except Exception as error:  # each of fsspec's parts raises errors of its own
        raise ImageError(url, f"cannot be fetched: {str(error) or type(error).__name__}") from error
    if len(content) > max_bytes:
        raise ImageError(url, f"more than {max_bytes >> 20} MiB")
    return content
