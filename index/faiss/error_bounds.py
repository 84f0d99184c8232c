"""How far FAISS's float32 numbers may be from the truth: bounded, not guessed.

Rounding follows the standard bound for an inner product of d terms in any order of summation,
|computed − exact| ≤ (d + 16)·2⁻²⁴·‖x‖‖y‖; half precision the largest error measured while storing. With these bounds
the exact layer knows when `Flat` and `SQfp16` have named every neighbour, ties included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..search import SearchSpec, Vectors, lengths_of

__all__ = ["Errors", "Ruler"]

_UNIT_ROUNDOFF = 2.0**-24  # of float32
_TINY = 1e-30  # products below float32's normal range may vanish
_OVERFLOW = 1e37  # squares up to here leave float32 room for its sums


@dataclass(frozen=True)
class Errors:
    """Bounds over everything stored: `distortion` = largest ‖stored − true‖₂, `radius` = largest ‖true‖₂."""

    distortion: float = 0.0
    radius: float = 0.0

    def including(self, vectors: Vectors, stored: Vectors) -> Errors:
        """The bounds with these vectors and what the index made of them."""
        radius = float(lengths_of(vectors).max())
        distortion = 0.0 if stored is vectors else float(lengths_of(stored - vectors).max()) * (1 + 1e-6)
        return Errors(max(self.distortion, distortion), max(self.radius, radius))

    def in_half_precision(self, dim: int) -> Errors:
        """The bounds once the stored vectors are rounded to half precision, none of whose numbers overflows."""
        rounding = 2.0**-11 * self.radius + math.sqrt(dim) * 2.0**-25  # of normal numbers, and of the smallest
        return Errors(self.distortion + rounding * (1 + 1e-6), self.radius)


class Ruler:
    """Reads FAISS's numbers of one search: products for cosine and dot, squares for l2, sums for l1.

    >>> import numpy as np
    >>> ruler = Ruler(SearchSpec(8, "l2"), Errors(radius=1.0), np.ones((1, 8), np.float32))
    >>> 1.999 < ruler.floor(4.0) < 2.0, 4.0 < ruler.cut(4.0) < 4.001
    (True, True)
    """

    def __init__(self, spec: SearchSpec, errors: Errors, queries: Vectors, *, rounding: float = 0.0) -> None:
        self.metric = spec.metric
        self.rounding = max(rounding, (spec.dim + 16) * _UNIT_ROUNDOFF)
        self.distortion = errors.distortion
        self.error = 0.0  # of l1 it is relative: there are only subtractions, and sums of positive terms
        self.is_blind = False
        if spec.metric != "l1":
            length = 1 + 1e-6 if spec.metric == "cosine" else float(lengths_of(queries).max())
            reach = (length + errors.radius) ** 2
            self.is_blind = reach > _OVERFLOW
            if spec.metric == "l2":  # squares come, in batches, as ‖x‖² + ‖y‖² − 2x·y
                self.error = self.rounding * reach + _TINY
            else:
                self.error = length * (self.rounding * errors.radius + errors.distortion) + _TINY

    def floor(self, last: float) -> float:
        """Least true distance of a vector that FAISS put behind one it computed as `last`; −inf: unknown."""
        if self.is_blind:
            return -math.inf
        match self.metric:
            case "cosine":
                return 1 - last - self.error
            case "dot":
                return -last - self.error
            case "l2":
                return math.sqrt(max(last - self.error, 0)) - self.distortion
            case _:
                return last * (1 - self.rounding)

    def cut(self, kth: float) -> float:
        """FAISS's number behind which nothing can be nearer than the vector that it computed as `kth`."""
        match self.metric:
            case "cosine" | "dot":
                return kth - 2 * self.error
            case "l2":
                return (math.sqrt(max(kth, 0) + self.error) + 2 * self.distortion) ** 2 + self.error
            case _:
                return kth * (1 + 4 * self.rounding)
