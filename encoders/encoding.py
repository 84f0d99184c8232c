"""Encoding of a batch of images: the map, the pooled vector, and the embedding; and the map that explains the latter.

Pooling and head are folded into the feature map, so that a map explains the very vector that is searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from .heads import GAP, Affine, GeM, Pooling, affine_of


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


@dataclass(frozen=True, eq=False)
class Response:
    """A map whose mean over rows and columns is the embedding."""

    map: Float[Tensor, "b d h w"]
    is_exact: bool  # else of first order around the pooled vector, as the head is not affine
    constant: Float[Tensor, "b d"] | None = None  # what comes from no place, see `Encoding`; in the map everywhere


def fold(
    feature_map: Float[Tensor, "b k h w"],
    *,
    pooling: Pooling,
    head: nn.Module,
    weights: Float[Tensor, "*n h w"] | None = None,
    constant: Float[Tensor, "b k"] | None = None,
) -> Response:
    """The response map of an encoder: pooled by a plain mean it gives the encoder's embedding.

    GAP changes nothing. GeM becomes `Q^p q^(1-p)`, with q the pooled value: each position keeps its share of the p-th
    powers. An affine head (linear, batch-norm neck, a sequence of them) is applied to every position as in evaluation
    mode, its bias included. Of any other head the tangent at the pooled vector is applied, `is_exact` is False, and the
    mean is still the embedding.

    Args:
        feature_map: what the pooling gets, after its activation.
        pooling: `GAP` or `GeM`.
        head: any module from (b, k) to (b, d); one that is not affine has to be in evaluation mode.
        weights: of a region's positions (`region_weights`, mean 1), (h, w) for all images or (b, h, w). The mean of the
            map is then the embedding of the region, and the map is 0 outside.
        constant: of the encoding; behind a head that is not affine none is told.

    A pooling that cannot be written as a mean, and a head in training mode that is not affine, are refused.

    >>> from distcam.encoders.heads import Linear
    >>> head = Linear(2, 1)
    >>> _ = nn.init.constant_(head.weight, 2.0), nn.init.constant_(head.bias, 1.0)
    >>> fold(torch.tensor([[[[0.0, 4.0]], [[2.0, 0.0]]]]), pooling=GAP(), head=head).map    # mean 7 = 2·(2 + 1) + 1
    tensor([[[[5., 9.]]]])
    """
    weights = None if weights is None else weights.to(feature_map)
    if weights is not None and weights.ndim == 3:
        weights = weights[:, None]
    response = feature_map  # with the pooled vector as its (weighted) mean
    if isinstance(pooling, GeM):
        pooled: Tensor = pooling(feature_map, weights)[..., None, None]
        share = feature_map.clamp(min=pooling.eps) / pooled  # the ratio first: x^p alone can leave float32
        response = pooled * share.pow(pooling.p)
    elif not isinstance(pooling, GAP):
        raise InputError(f"{type(pooling).__name__} cannot be folded into a map; only GAP and GeM can")
    affine = affine_of(head)
    folded = _tangent_map(response, head, weights) if affine is None else _at_every_position(response, affine)
    if constant is not None:
        at_one = constant.to(response)[..., None, None]
        constant = None if affine is None else _at_every_position(at_one, affine)[..., 0, 0]
    return Response(folded if weights is None else weights * folded, affine is not None, constant)


def border_mean(response_map: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d"]:
    """Mean over the outermost positions of each map, which see background in most photographs; of a tiny map, all."""
    is_border = torch.ones(response_map.shape[-2:], dtype=torch.bool, device=response_map.device)
    if min(is_border.shape) > 2:
        is_border[1:-1, 1:-1] = False
    return response_map[..., is_border].mean(-1)


def _at_every_position(response: Tensor, affine: Affine) -> Tensor:
    """The affine map along the channels, without a transposed copy of the map."""
    flat = response.flatten(-2)
    if affine.weight is not None:
        flat = affine.weight.to(flat) @ flat
    elif affine.diagonal is not None:
        flat = flat * affine.diagonal.to(flat)[:, None]
    if affine.bias is not None:
        flat = flat + affine.bias.to(flat)[:, None]
    return flat.reshape(*flat.shape[:-1], *response.shape[-2:])


def _tangent_map(response: Tensor, head: nn.Module, weights: Tensor | None) -> Tensor:
    """head(F) + J(F) (R - F) at every position, with F the mean of R and J the Jacobian, which is never formed."""
    if head.training:
        raise InputError(f"{type(head).__name__} is in training mode and not affine; call .eval() before folding it")
    flat = response.flatten(-2)
    pooled = (response if weights is None else response * weights).mean((-2, -1))
    value, pull = torch.func.vjp(head, pooled)[:2]  # v → Jᵀ v
    push = torch.func.vjp(lambda v: pull(v)[0], torch.zeros_like(value))[1]  # its transpose, x → J x
    change: Tensor = torch.func.vmap(lambda x: push(x)[0], in_dims=-1, out_dims=-1)(flat - pooled[..., None])
    maps: Tensor = value[..., None] + change
    return maps.reshape(*maps.shape[:-1], *response.shape[-2:])
