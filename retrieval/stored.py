"""Queries that no picture was sent for: an image that the gallery holds, or nothing but a vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..errors import InputError

__all__ = ["BareVector", "StoredEncoding"]


@dataclass(frozen=True, eq=False)
class StoredEncoding:
    """An `Encoding` of one image whose vectors are read from a gallery; its feature map is fetched when asked for.

    Attributes:
        pooled: as stored.
        embedding: as stored.
    """

    pooled: Float[Tensor, "1 k"]
    embedding: Float[Tensor, "1 d"]
    _fetch: Callable[[], Tensor] = field(repr=False)

    @cached_property
    def feature_map(self) -> Float[Tensor, "1 k h w"]:
        """From the gallery if it keeps maps, else of the file, which is encoded once more.

        Raises:
            ImageError: the gallery keeps no maps, and the file is gone or damaged.
        """
        return self._fetch()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its feature map: where it would be fetched from is not known elsewhere."""
        return _with_map, (self.pooled, self.embedding, self.feature_map)


def _with_map(pooled: Tensor, embedding: Tensor, feature_map: Tensor) -> StoredEncoding:
    return StoredEncoding(pooled, embedding, _Kept(feature_map))


@dataclass(frozen=True)
class _Kept:
    feature_map: Tensor

    def __call__(self) -> Tensor:
        return self.feature_map


@dataclass(frozen=True, eq=False)
class BareVector:
    """An embedding from elsewhere: it can be searched for, but there is no picture to explain."""

    embedding: Float[Tensor, "1 d"]

    @property
    def pooled(self) -> Tensor:
        """Not known.

        Raises:
            InputError: always.
        """
        raise InputError("a bare vector has neither pooled features nor a feature map; query with a picture to explain")

    feature_map = pooled
