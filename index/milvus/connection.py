"""The address of a gallery's rows in Milvus, one text without secrets; and the connection to it.

    milvus://HOST:19530/COLLECTION            milvus+tls://HOST:443/COLLECTION        milvus://HOST/DATABASE/COLLECTION
    milvus+lite:///path/file.db               path/file.db                            ?consistency=bounded at the end

The token, `DISTCAM_MILVUS_TOKEN=TOKEN@HOST`, goes to that host only: a gallery from elsewhere may name any server.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from weakref import WeakValueDictionary, finalize

from ...errors import GalleryError, InputError, MissingExtraError

TOKEN_VARIABLE = "DISTCAM_MILVUS_TOKEN"
CA_VARIABLE = "DISTCAM_MILVUS_CA"
FORMS = "milvus://HOST:19530/COLLECTION, milvus+tls://HOST:443/COLLECTION, or milvus+lite:///path/file.db"
_DEFAULT_PORT = 19530
_CONNECT_S = 10.0
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
Consistency = Literal["Strong", "Bounded"]


@dataclass(frozen=True)
class Address:
    """A collection of a Milvus server, or of a file of milvus-lite."""

    collection: str  # with `_pooled` appended, that of the pooled vectors
    host: str = ""  # of a server; empty for a file
    port: int = _DEFAULT_PORT
    tls: bool = False
    database: str = ""
    file: str = ""  # of milvus-lite, absolute
    consistency: Consistency = "Strong"  # how new the data must be that a search sees; strong reads wait for a tick

    @classmethod
    def parse(cls, text: str) -> Self:
        """The address in a text.

        >>> str(Address.parse("milvus://10.0.0.7/photos"))
        'milvus://10.0.0.7:19530/photos'
        """
        if "://" not in text:
            text = f"milvus+lite://{quote(Path(text).absolute().as_posix())}"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise InputError(f"backend {text!r}: {error}; expected {FORMS}") from error
        if parts.username is not None or parts.password is not None:
            raise InputError(f"a backend's address is stored; put the token into {TOKEN_VARIABLE}=TOKEN@HOST instead")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        consistency = options.pop("consistency", "strong").capitalize()
        if consistency not in ("Strong", "Bounded"):
            raise InputError(f"backend {text!r}: consistency is strong or bounded, not {consistency.lower()}")
        if parts.scheme == "milvus+lite":
            collection = options.pop("collection", "gallery")
            address = cls(collection, file=unquote(parts.path), consistency=consistency)  # type: ignore[arg-type]
            is_complete = not parts.netloc and address.file.startswith("/") and address.file.endswith(".db")
        elif parts.scheme in ("milvus", "milvus+tls"):
            *database, collection = parts.path.strip("/").split("/")
            address = cls(
                collection,
                host=(parts.hostname or ""),
                port=port or _DEFAULT_PORT,
                tls=parts.scheme.endswith("tls"),
                database="/".join(database),
                consistency=consistency,  # type: ignore[arg-type]
            )
            is_complete = bool(address.host) and len(database) < 2
        else:
            raise InputError(f"backend {text!r} is of no known kind; expected {FORMS}")
        names = [address.collection, *([address.database] if address.database else [])]
        if not is_complete or options or parts.fragment or not all(map(_NAME.fullmatch, names)):
            raise InputError(f"backend {text!r} is incomplete, or holds what no address has; expected {FORMS}")
        return address

    def __str__(self) -> str:
        options = [] if self.consistency == "Strong" else ["consistency=bounded"]
        if self.file:
            options += [] if self.collection == "gallery" else [f"collection={self.collection}"]
            place = f"milvus+lite://{quote(self.file)}"
        else:
            host = f"[{self.host}]" if ":" in self.host else self.host
            path = f"{self.database}/{self.collection}" if self.database else self.collection
            place = f"milvus{'+tls' if self.tls else ''}://{host}:{self.port}/{path}"
        return place + ("?" + "&".join(options) if options else "")

    def token(self) -> str:
        """The token for this host out of the environment; empty when there is none."""
        token, at, host = os.environ.get(TOKEN_VARIABLE, "").rpartition("@")
        if not at and host:
            raise InputError(f"expected {TOKEN_VARIABLE}=TOKEN@HOST, so that no gallery can send the token elsewhere")
        return token if self.host and host in (self.host, f"{self.host}:{self.port}") else ""


class Connection:
    """One connection to a server or file, shared by everything in this process that uses it."""

    def __init__(self, address: Address) -> None:
        self.name = str(address)
        try:
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException
        except ImportError as error:
            raise MissingExtraError("galleries in Milvus need: pip install 'distcam[milvus]'") from error
        if address.file and find_spec("milvus_lite") is None:
            raise MissingExtraError(f"{address}: a file of Milvus needs: pip install milvus-lite")
        for name in ("pymilvus", "milvus_lite"):  # they log a traceback for each refused call, which we raise
            logging.getLogger(name).setLevel(logging.CRITICAL)
        target: dict[str, Any] = {"uri": address.file}
        if not address.file:
            host = f"[{address.host}]" if ":" in address.host else address.host
            target = {"uri": f"{'https' if address.tls else 'http'}://{host}:{address.port}", "timeout": _CONNECT_S}
            target |= {"token": address.token(), "db_name": address.database}
            if address.tls and (authority := os.environ.get(CA_VARIABLE)):
                target["server_pem_path"] = authority
        try:
            self.client: Any = MilvusClient(**target)
        except (MilvusException, OSError) as error:
            hint = "does another process use the file?" if address.file else "is the server there, and the token right?"
            raise GalleryError(f"{address}: cannot be opened ({_sentence(error)}); {hint}") from error
        finalize(self, self.client.close)

    @contextmanager
    def speaking(self) -> Iterator[Any]:
        """The client; what goes wrong becomes a `GalleryError` of one sentence."""
        from pymilvus.exceptions import MilvusException

        try:
            yield self.client
        except (MilvusException, OSError) as error:
            raise GalleryError(f"{self.name}: {_sentence(error)}") from error


_OPEN: WeakValueDictionary[tuple[str, ...], Connection] = WeakValueDictionary()
_OPENING = threading.Lock()


def connected(address: Address) -> Connection:
    """The connection to an address, opened when nobody holds one."""
    token = address.token()
    place = (address.host, str(address.port), str(address.tls), address.database, address.file, token)
    with _OPENING:
        connection = _OPEN.get(place)
        if connection is None:
            _OPEN[place] = connection = Connection(address)
    return connection


def _sentence(error: Exception) -> str:
    text = str(getattr(error, "message", "") or error)
    return " ".join(text.split())[:300] or type(error).__name__
