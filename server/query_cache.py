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

_OBJECT_BYTES = 2048  # of one query's tensors and Python objects, beside the numbers: measured, 1.75 KB


@dataclass
class CachedQuery:
    """The encoding of an uploaded query (a batch of one), its width and height upright, and when it was last used."""

    encoding: Encoding
    size: tuple[int, int]
    used: float

    @property
    def nbytes(self) -> int:
        """Memory that goes with the query, in bytes: whole storages, however little of one its tensors show."""
        parts = (self.encoding.feature_map, self.encoding.pooled, self.encoding.embedding)
        storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
        return sum(storages.values()) + _OBJECT_BYTES


class QueryCache:
    """Queries by unguessable tokens, bounded in bytes and in age; the least recently used leave first. Thread-safe."""

    def __init__(self, *, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._queries: OrderedDict[str, CachedQuery] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._queries)

    def put(self, encoding: Encoding, size: tuple[int, int]) -> str:
        """Remember a query; its token. It is copied, so that the rest of its batch is let go."""
        parts = (encoding.feature_map, encoding.pooled, encoding.embedding)
        query = CachedQuery(Encoding(*(part.clone() for part in parts)), size, self._clock())
        token = secrets.token_urlsafe(18)
        with self._lock:
            self._queries[token] = query
            self.nbytes += query.nbytes
            self._evict()
        return token

    def get(self, token: str) -> CachedQuery:
        """The query of a token."""
        with self._lock:
            self._evict()
            if token not in self._queries:
                raise ApiError(410, "this query is not kept any more; send the image again", reason="token")
            query = self._queries[token]
            query.used = self._clock()
            self._queries.move_to_end(token)
            return query

    def _evict(self) -> None:
        oldest = self._clock() - self._max_age_s
        while self._queries:
            token, query = next(iter(self._queries.items()))
            if self.nbytes <= self._max_bytes and query.used >= oldest:
                return
            del self._queries[token]
            self.nbytes -= query.nbytes
