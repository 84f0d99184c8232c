"""Query pictures whose encodings are kept for a while, to explain their matches without sending them again."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ..encoders import Encoding
from .refusals import Refusal

__all__ = ["KeptQueries", "KeptQuery"]


@dataclass(frozen=True)
class KeptQuery:
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


class KeptQueries:
    """Queries under tokens nobody can guess, bounded in bytes and in age; the least recently used leave first.

    Any number of threads may use it.

    Args:
        max_bytes: of all encodings together; a single one that is larger is not kept.
        max_age_s: since a query was last used.
        clock: seconds; tests put their own in its place.
    """

    def __init__(self, *, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._kept: OrderedDict[str, tuple[KeptQuery, float]] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, encoding: Encoding, size: tuple[int, int]) -> str:
        """The token under which a query is kept from now on; copied, so that the rest of its batch is let go."""
        parts = (encoding.feature_map, encoding.pooled, encoding.embedding)
        query = KeptQuery(Encoding(*(part.clone() for part in parts)), size)
        token = secrets.token_urlsafe(18)
        with self._lock:
            self._kept[token] = (query, self._clock())
            self.nbytes += query.nbytes
            self._forget()
        return token

    def get(self, token: str) -> KeptQuery:
        """The query of a token.

        Raises:
            Refusal: 410, it is not kept any more, or never was.
        """
        with self._lock:
            self._forget()
            if token not in self._kept:
                raise Refusal(410, "this query is not kept any more; send the picture again", reason="token")
            query, _ = self._kept[token]
            self._kept[token] = (query, self._clock())
            self._kept.move_to_end(token)
            return query

    def _forget(self) -> None:
        oldest = self._clock() - self._max_age_s
        while self._kept:
            token, (query, used) = next(iter(self._kept.items()))
            if self.nbytes <= self._max_bytes and used >= oldest:
                return
            del self._kept[token]
            self.nbytes -= query.nbytes
