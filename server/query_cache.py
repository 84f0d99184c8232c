"""Encodings of uploaded queries, cached so that their matches can be explained without another upload."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ..encoders import Encoding
from .api_error import ApiError

__all__ = ["CachedQuery", "QueryCache"]


@dataclass(frozen=True)
class CachedQuery:
    """An encoded query picture, without the picture.

    Attributes:
        encoding: a batch of one, in memory of its own.
        size: width and height of the upright picture.
    """

    encoding: Encoding
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Memory the encoding takes, in bytes."""
        parts = (self.encoding.feature_map, self.encoding.pooled, self.encoding.embedding)
        return sum(part.numel() * part.element_size() for part in parts)


class QueryCache:
    """Queries by unguessable tokens, bounded in bytes and in age; the least recently used leave first. Thread-safe.

    Args:
        max_bytes: of all encodings together; a single one that is larger is not kept.
        max_age_s: since a query was last used.
        clock: seconds; tests put their own in its place.
    """

    def __init__(self, *, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._queries: OrderedDict[str, tuple[CachedQuery, float]] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._queries)

    def put(self, encoding: Encoding, size: tuple[int, int]) -> str:
        """The token under which a query is kept from now on; copied, so that the rest of its batch is let go."""
        parts = (encoding.feature_map, encoding.pooled, encoding.embedding)
        query = CachedQuery(Encoding(*(part.clone() for part in parts)), size)
        token = secrets.token_urlsafe(18)
        with self._lock:
            self._queries[token] = (query, self._clock())
            self.nbytes += query.nbytes
            self._forget()
        return token

    def get(self, token: str) -> CachedQuery:
        """The query of a token.

        Raises:
            ApiError: 410, it is not kept any more, or never was.
        """
        with self._lock:
            self._forget()
            if token not in self._queries:
                raise ApiError(410, "this query is not kept any more; send the picture again", reason="token")
            query, _ = self._queries[token]
            self._queries[token] = (query, self._clock())
            self._queries.move_to_end(token)
            return query

    def _forget(self) -> None:
        oldest = self._clock() - self._max_age_s
        while self._queries:
            token, (query, used) = next(iter(self._queries.items()))
            if self.nbytes <= self._max_bytes and used >= oldest:
                return
            del self._queries[token]
            self.nbytes -= query.nbytes
