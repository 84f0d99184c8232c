"""Sizes, scales and ranks of raw maps, the connected regions of masks made of them, and the peak.

Regions are identical to those of `scipy.ndimage.label` and several times faster.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
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
    if maps.device.type == "cpu" and maps.dtype == torch.float32 and max(maps.shape[-2:]) <= _FEW:
        down, across = _weights(maps.shape[-2], rows), _weights(maps.shape[-1], columns)
        with torch.autocast("cpu", enabled=False):
            return down @ (maps @ across.T)
    images = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = functional.interpolate(images, (rows, columns), mode="bilinear", align_corners=False)
    return resized.reshape(*maps.shape[:-2], rows, columns)


_FEW = 16  # cells of a side: up to there two matrix products take half the time of interpolation on a CPU


@lru_cache(maxsize=16)
def _weights(cells: int, pixels: int) -> Float[Tensor, "pixels cells"]:
    """How much of each cell of a side is in each of its pixels."""
    with torch.inference_mode(False):  # kept: it may meet gradients later
        each = torch.eye(cells, dtype=torch.float32)[None]
        return functional.interpolate(each, pixels, mode="linear")[0].T.contiguous()


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


STACK = 32  # masks labelled at once: more of 224×224 leave the processor's cache and get slower


def largest_component(mask: Bool[Tensor, "h w"]) -> NDArray[np.bool_]:
    """The largest 8-connected region of a mask, as a mask; of equal ones the first, empty if the mask is."""
    from scipy.ndimage import label

    numbers = label(mask.detach().cpu().numpy(), np.ones((3, 3)))[0]
    return np.asarray(numbers == 1 + np.bincount(numbers.ravel(), minlength=2)[1:].argmax())


class Components(NamedTuple):
    """The 8-connected regions of a stack of masks, mask by mask, each in reading order of its first pixel."""

    mask: NDArray[np.intp]
    box: NDArray[np.float64]
    size: NDArray[np.intp]

    def largest(self) -> Components:
        """The largest region of each mask that has one, in the order of the masks; of equal ones the first."""
        order = np.lexsort((-self.size, self.mask))
        _, first = np.unique(self.mask[order], return_index=True)
        kept = order[first]
        return Components(self.mask[kept], self.box[kept], self.size[kept])


def components(masks: NDArray[np.bool_]) -> Components:
    """All regions of masks (n, rows, columns), found together; a tenth of a millisecond a mask of 224×224.

    >>> components(np.array([[[True, False, True], [True, False, False]]])).box.tolist()
    [[0.0, 0.0, 1.0, 2.0], [2.0, 0.0, 3.0, 1.0]]
    """
    parts = [_regions(masks[first : first + STACK], first) for first in range(0, len(masks), STACK)]
    none = Components(np.empty(0, np.intp), np.empty((0, 4)), np.empty(0, np.intp))
    return Components(*(np.concatenate(column) for column in zip(none, *parts, strict=True)))


def peak(heat_map: Float[Tensor, "h w"]) -> tuple[int, int]:
    """Row and column of the map's maximum; of equal ones the first in reading order."""
    values = finite_array(heat_map)
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return int(row), int(column)


def _regions(masks: NDArray[np.bool_], first_mask: int) -> Components:
    """Boxes and sizes of all regions, from the horizontal runs and which of them touch."""
    n, rows, columns = masks.shape
    width = columns + 2
    padded = np.zeros((n, rows + 1, width), dtype=bool)
    padded[:, :rows, 1:-1] = masks
    flat = padded.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1])  # lines begin and end with 0, so starts and stops take turns
    if not len(edges):
        return Components(np.empty(0, np.intp), np.empty((0, 4)), np.empty(0, np.intp))
    line, start = np.divmod(edges[::2], width)
    stop = edges[1::2] % width
    # Pairs of runs in neighbouring lines that share a side or a corner, by one number per place: runs of the next line
    # that may touch are an interval of numbers.
    begin, end = line * width + start, line * width + stop
    first = np.searchsorted(end, begin + width, side="left")  # ends at this run's start or later, one line down
    last = np.searchsorted(begin, end + width, side="right")  # starts at this run's end or earlier
    count = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(line)), count)
    lower = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count) + np.repeat(first, count)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    touching = coo_array((np.ones(len(upper), bool), (upper, lower)), (len(line), len(line)))
    component = connected_components(touching, directed=False)[1]  # numbered in the order of first runs
    order = np.argsort(component, kind="stable")
    own = np.flatnonzero(np.diff(component[order], prepend=-1))
    image, row = np.divmod(line[order], rows + 1)
    left, right = np.minimum.reduceat(start[order], own), np.maximum.reduceat(stop[order], own)
    box = np.stack([left, np.minimum.reduceat(row, own), right, np.maximum.reduceat(row, own) + 1], 1)
    size = np.add.reduceat((stop - start)[order], own)
    return Components(image[own] + first_mask, box.astype(np.float64), size)


def finite_array(maps: Tensor) -> NDArray[Any]:
    """The map on the CPU as float32 or float64; maps that are not finite are refused."""
    values = maps.detach().cpu()
    array: NDArray[Any] = (values if values.dtype.itemsize >= 4 else values.float()).numpy()
    if not np.isfinite(array).all():
        raise InputError("a map holds NaN or infinite values; no box or peak can be found in it")
    return array
