"""Sizes, scales and ranks of raw maps, before they are looked at or measured. Nothing happens unasked."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ..errors import InputError, ShapeError


def upsample(maps: Float[Tensor, "*b h w"], size: int | tuple[int, int]) -> Float[Tensor, "*b _h _w"]:
    """The maps resized bilinearly to `size` = (rows, columns); raw values stay raw.

    Pixels are areas with the value at their centre (`align_corners=False`), so a map of 7×7 cells lies exactly over the
    224×224 pixels it was computed from, and nothing exceeds the map's own range.

    >>> upsample(torch.tensor([[0.0, 4.0]]), (1, 4))
    tensor([[0., 1., 3., 4.]])
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows < 1 or columns < 1:
        raise InputError(f"a map cannot be resized to {rows}×{columns}; both sides are 1 or more")
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise ShapeError(f"maps have shape (…, rows, columns), none of these two 0; got {tuple(maps.shape)}")
    images = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = functional.interpolate(images, (rows, columns), mode="bilinear", align_corners=False)
    return resized.reshape(*maps.shape[:-2], rows, columns)


def normalise(maps: Float[Tensor, "*b h w"], *, shared: bool = False, centred: bool = False) -> Float[Tensor, "*b h w"]:
    """The maps scaled to [0, 1] by minimum and maximum: each by its own, or a set by one scale.

    `shared=True` takes minimum and maximum over the last leading dimension too, so that the maps of all matches of a
    query can be compared by eye. A constant map (see `is_constant`) has no shape to show and becomes zeros, never NaN.

    `centred=True` is for signed maps and diverging colours: 0 becomes 0.5, and the largest magnitude 0 or 1. A map that
    is 0 everywhere becomes 0.5.

    >>> normalise(torch.tensor([[[1.0, 3.0]], [[2.0, 5.0]]])).tolist()
    [[[0.0, 1.0]], [[0.0, 1.0]]]
    >>> normalise(torch.tensor([[[1.0, 3.0]], [[2.0, 5.0]]]), shared=True).tolist()
    [[[0.0, 0.5]], [[0.25, 1.0]]]
    >>> normalise(torch.tensor([[-1.0, 0.0, 2.0]]), centred=True).tolist()
    [[0.25, 0.5, 1.0]]
    """
    low, span, is_flat = _range(maps, shared=shared)
    if centred:
        magnitude = torch.maximum(low.abs(), (low + span).abs())
        return (0.5 + maps / torch.where(magnitude > 0, 2 * magnitude, 1.0)).clamp(0, 1)
    return torch.where(is_flat, 0.0, ((maps - low) / torch.where(is_flat, 1.0, span)).clamp(0, 1))


def is_constant(maps: Float[Tensor, "*b h w"]) -> Bool[Tensor, "*b"]:
    """True where a map's values differ by no more than rounding (8 units in the last place), so it explains nothing."""
    return _range(maps, shared=False)[2].squeeze((-2, -1))


def rectify(maps: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """The maps with negative values set to 0, the ReLU of Grad-CAM: keeps what speaks for the match only."""
    return maps.clamp(min=0)


def spearman(one: Float[Tensor, "*b h w"], other: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b"]:
    """Rank correlation of two maps, in [-1, 1]: 1 if they order the positions alike. Tied values share a mean rank.

    Where a map is constant the coefficient is not defined: here two constant maps agree (1.0), a constant and another
    one are unrelated (0.0).

    >>> spearman(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 1.0, 9.0]]))
    tensor(0.5000)
    """
    if one.shape != other.shape:
        raise ShapeError(f"two maps to be compared have one shape; got {tuple(one.shape)} and {tuple(other.shape)}")
    a, b = (_centred_ranks(maps.flatten(-2)) for maps in (one, other))
    length_a, length_b = a.norm(dim=-1), b.norm(dim=-1)
    product = length_a * length_b
    correlation = (a * b).sum(-1) / torch.where(product > 0, product, 1.0)
    both_flat = (length_a == 0) & (length_b == 0)
    return torch.where(both_flat, 1.0, correlation.clamp(-1, 1)).to(torch.promote_types(one.dtype, torch.float32))


def _range(maps: Tensor, *, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Minimum, maximum minus minimum, and whether that is nothing but rounding."""
    if maps.ndim < 2 + shared or 0 in maps.shape[-2:]:
        raise ShapeError(f"maps have shape ({'…, n' if shared else '…'}, rows, columns); got {tuple(maps.shape)}")
    over = (-3, -2, -1) if shared else (-2, -1)
    low, high = maps.amin(over, keepdim=True), maps.amax(over, keepdim=True)
    rounding = 8 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    return low, high - low, high - low <= rounding


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks along the last dimension minus their mean, ties averaged; float64 where the device has it."""
    rows = values.detach().reshape(-1, values.shape[-1]).contiguous()
    ordered = rows.sort(-1).values
    below = torch.searchsorted(ordered, rows, right=False)
    up_to = torch.searchsorted(ordered, rows, right=True)
    doubled = below + up_to - rows.shape[-1]  # twice the centred rank: whole numbers, exact in either float
    return doubled.to(torch.float32 if values.device.type == "mps" else torch.float64).reshape(values.shape)
