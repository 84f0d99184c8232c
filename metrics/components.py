"""Connected components of masks, and the peak of a map; identical to `scipy.ndimage.label` and several times faster."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError

STACK = 32  # masks labelled at once: more of 224×224 leave the processor's cache and get slower


def largest_component(mask: Bool[Tensor, "h w"]) -> NDArray[np.bool_]:
    """The largest 8-connected region of a mask, as a mask; empty if the mask is."""
    region = np.zeros(tuple(mask.shape), dtype=bool)
    runs = _Runs(np.asarray(mask.detach().cpu())[None])
    for own in runs.largest():
        for row, start, stop in zip(runs.row[own], runs.start[own], runs.stop[own], strict=True):
            region[row, start:stop] = True
    return region


def labelled(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The 8-connected regions of a mask by number: 0 outside, then 1, 2, … in reading order of their first pixels.

    >>> labelled(np.array([[True, False, True], [True, False, False], [False, False, True]]))
    array([[1, 0, 2],
           [1, 0, 0],
           [0, 0, 3]])
    """
    numbers = np.zeros(mask.shape, np.intp)
    runs = _Runs(mask[None])
    _, number = np.unique(runs.component, return_inverse=True)  # a component is called after its first run
    for own, row, start, stop in zip(number, runs.row, runs.start, runs.stop, strict=True):
        numbers[row, start:stop] = own + 1
    return numbers


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
    parts = [_Runs(masks[first : first + STACK]).components(first) for first in range(0, len(masks), STACK)]
    if not parts:
        return Components(np.empty(0, np.intp), np.empty((0, 4)), np.empty(0, np.intp))
    return Components(
        np.concatenate([part.mask for part in parts]),
        np.concatenate([part.box for part in parts]),
        np.concatenate([part.size for part in parts]),
    )


def peak(heat_map: Float[Tensor, "h w"]) -> tuple[int, int]:
    """Row and column of the map's maximum; of equal ones the first in reading order."""
    values = finite_array(heat_map)
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return int(row), int(column)


class _Runs:
    """The horizontal runs of a stack of masks, and which of them touch."""

    def __init__(self, masks: NDArray[np.bool_]) -> None:
        self.n, rows, columns = masks.shape
        padded = np.zeros((self.n, rows + 1, columns + 2), dtype=bool)
        padded[:, :rows, 1:-1] = masks
        flat = padded.reshape(-1)
        edges = np.flatnonzero(flat[1:] != flat[:-1])  # lines begin and end with 0, so starts and stops take turns
        line, self.start = np.divmod(edges[::2], columns + 2)
        self.stop = edges[1::2] % (columns + 2)
        self.image, self.row = np.divmod(line, rows + 1)
        self.component = _connected(len(line), *self._touching(line, columns))

    def _touching(self, line: NDArray[np.intp], columns: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Pairs of runs in neighbouring lines that share a side or a corner."""
        width = columns + 2  # one number per place: runs of the next line that may touch are an interval of numbers
        begin, end = line * width + self.start, line * width + self.stop
        first = np.searchsorted(end, begin + width, side="left")  # ends at this run's start or later, one line down
        last = np.searchsorted(begin, end + width, side="right")  # starts at this run's end or earlier
        count = np.maximum(last - first, 0)
        upper = np.repeat(np.arange(len(line)), count)
        lower = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count) + np.repeat(first, count)
        return upper, lower

    def components(self, first_mask: int) -> Components:
        """Boxes and sizes of all regions; masks are numbered from `first_mask`."""
        order = np.argsort(self.component, kind="stable")
        own = self.component[order]
        begin = np.flatnonzero(np.diff(own, prepend=-1))
        if not len(begin):
            return Components(np.empty(0, np.intp), np.empty((0, 4)), np.empty(0, np.intp))
        left, right = np.minimum.reduceat(self.start[order], begin), np.maximum.reduceat(self.stop[order], begin)
        rows = self.row[order]
        box = np.stack([left, np.minimum.reduceat(rows, begin), right, np.maximum.reduceat(rows, begin) + 1], 1)
        size = np.add.reduceat((self.stop - self.start)[order], begin)
        return Components(self.image[own[begin]] + first_mask, box.astype(np.float64), size)

    def largest(self) -> list[NDArray[np.intp]]:
        """For each mask the indices of the runs of its largest component; the first one of several, none if empty."""
        size = np.bincount(self.component, weights=self.stop - self.start, minlength=len(self.component))
        best: list[NDArray[np.intp]] = []
        bounds = np.searchsorted(self.image, np.arange(self.n + 1))
        for first, last in pairwise(bounds):
            own = self.component[first:last]
            best.append(first + np.flatnonzero(own == own[size[own].argmax()]) if last > first else own)
        return best


def _connected(n: int, a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each of n nodes the smallest node it is joined with by the edges a-b: hooking and pointer jumping."""
    parent = np.arange(n)
    while True:
        root_a, root_b = parent[a], parent[b]
        low, high = np.minimum(root_a, root_b), np.maximum(root_a, root_b)
        apart = low != high
        if not apart.any():
            return parent
        np.minimum.at(parent, high[apart], low[apart])
        while not np.array_equal(parent, jumped := parent[parent]):
            parent = jumped


def finite_array(maps: Tensor) -> NDArray[Any]:
    """The map on the CPU as float32 or float64; maps that are not finite are refused."""
    values = maps.detach().cpu()
    array: NDArray[Any] = (values if values.dtype.itemsize >= 4 else values.float()).numpy()
    if not np.isfinite(array).all():
        raise InputError("a map holds NaN or infinite values; no box or peak can be found in it")
    return array
