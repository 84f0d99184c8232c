"""Encoding of a batch of images: the map, the pooled vector, and the embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, ShapeError


@dataclass(frozen=True, eq=False)
class Encoding:
    """Three views of a batch of b images, from local to global.

    Nothing here is normalised: whether vectors are compared by angle or by distance is the gallery's business.

    Attributes:
        feature_map: the last convolution after its activation; what activation maps are drawn from.
        pooled: the feature map pooled over rows and columns (its mean, for GAP); what a reference must store.
        embedding: the head's output, or `pooled` itself without a head; what is searched.
        constant: of a class token or an attention pooling the part of `pooled` that comes from no place and is in the
            feature map everywhere: where the token starts, MLPs, other tokens, biases. None where there is none.
        fine: the map of an earlier layer with stride 8, where the inference reads one; what lines are drawn from.
    """

    feature_map: Float[Tensor, "b k h w"]
    pooled: Float[Tensor, "b k"]
    embedding: Float[Tensor, "b d"]
    constant: Float[Tensor, "b k"] | None = None
    fine: Float[Tensor, "b c u v"] | None = None

    def __post_init__(self) -> None:
        ranks = (self.feature_map.ndim, self.pooled.ndim, self.embedding.ndim)
        lengths = {len(self.feature_map), len(self.pooled), len(self.embedding)}
        if ranks != (4, 2, 2) or len(lengths) != 1 or self.feature_map.shape[1] != self.pooled.shape[1]:
            shapes = ", ".join(str(tuple(t.shape)) for t in (self.feature_map, self.pooled, self.embedding))
            raise ShapeError(f"expected shapes (b, k, h, w), (b, k), (b, d), got {shapes}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.embedding)

    def __getitem__(self, which: SupportsIndex | slice) -> Encoding:
        """Some of the images; a single index gives a batch of one, so that every shape keeps its meaning."""
        if not isinstance(which, slice):
            index = which.__index__()
            if not -len(self) <= index < len(self):
                raise IndexError(f"image {index} of an encoding of {len(self)} images")
            which = slice(index, index + 1 or None)
        return self.changed(lambda part: part[which])

    def __iter__(self) -> Iterator[Encoding]:
        """The images one by one, each a batch of one."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        b, k, h, w = self.feature_map.shape
        return f"Encoding({b} images, {k} channels of {h}×{w}, embedding {self.embedding.shape[1]}-d)"

    def to(self, device: torch.device | str) -> Encoding:
        """The same values on another device."""
        return self.changed(lambda part: part.to(device))

    def detach(self) -> Encoding:
        """The same values outside the gradient graph."""
        return self.changed(Tensor.detach)

    def parts(self) -> list[Tensor]:
        """The tensors that are there."""
        return [part for part in vars(self).values() if part is not None]

    def changed(self, change: Callable[[Tensor], Tensor]) -> Encoding:
        """Every part, changed alike."""
        changed: dict[str, Any] = {name: part if part is None else change(part) for name, part in vars(self).items()}
        return Encoding(**changed)

    @staticmethod
    def cat(encodings: Sequence[Encoding]) -> Encoding:
        """One encoding of all the images, in order; InputError where there is nothing to join."""
        if not encodings:
            raise InputError("expected at least one encoding to join, got none")
        joined = zip(*(vars(each).values() for each in encodings), strict=True)
        whole: list[Any] = [None if any(part is None for part in parts) else torch.cat(parts) for parts in joined]
        return Encoding(*whole)
