"""One similarity transform that most of a set of point pairs agree on, found exhaustively and without a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LEAST_APART = 2.0  # cells between the two points that define a transform, on both sides
TOLERANCE = 1.5  # cells, on the side where cells are larger
SCALES = (0.5, 2.0)
LARGEST_TURN = math.radians(60)


@dataclass(frozen=True, eq=False)
class SimilarityTransform:
    """`w = a z + b` on points written as complex numbers: scale |a|, rotation arg a, shift b.

    Attributes:
        a: scale and rotation.
        b: the shift, in cells.
        is_inlier: of each pair of points, whether it lies within `TOLERANCE · max(1, |a|)` cells of the transform.
    """

    a: complex
    b: complex
    is_inlier: Bool[Tensor, " n"]

    @property
    def scale(self) -> float:
        """How much larger things are on the second side."""
        return abs(self.a)

    @property
    def degrees(self) -> float:
        """Rotation from the first side to the second, clockwise on an image."""
        return math.degrees(math.atan2(self.a.imag, self.a.real))


def fit_similarity(
    points: Float[Tensor, "n 2"], partners: Float[Tensor, "n 2"], strength: Float[Tensor, " n"]
) -> SimilarityTransform | None:
    """The similarity transform from points to partners with the largest summed strength of inliers.

    Every two pairs that are `LEAST_APART` on both sides define a transform; it counts if its scale lies in `SCALES` and
    its rotation within ±60°. Exchanging the sides gives the inverse with the same inliers. Of equals the first counts.

    Args:
        points: (x, y) in cells; at most some hundred, as all pairs of them are tried.
        partners: theirs.
        strength: at least 0.

    Returns:
        None where no two pairs define a transform.

    >>> points = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    >>> found = fit_similarity(points, torch.tensor([[1.0, 0.0], [5.0, 0.0], [1.0, 4.0], [0.0, 9.0]]), torch.ones(4))
    >>> found.a, found.b, found.is_inlier.tolist()
    ((1+0j), (1+0j), [True, True, True, False])
    """
    first, second = torch.triu_indices(len(points), len(points), 1, device=points.device)
    z, w = (side.to(torch.float64) for side in (points, partners))
    dz, dw = z[second] - z[first], w[second] - w[first]
    lengths = dz.square().sum(1), dw.square().sum(1)
    squared = lengths[0].clamp(min=1e-12)
    a = torch.stack([(dw * dz).sum(1), dw[:, 1] * dz[:, 0] - dw[:, 0] * dz[:, 1]], 1) / squared[:, None]
    size = a.square().sum(1).sqrt()
    is_valid = (torch.minimum(*lengths) >= LEAST_APART**2) & (size >= SCALES[0]) & (size <= SCALES[1])
    is_valid &= a[:, 0] >= size * math.cos(LARGEST_TURN) - 1e-6
    kept = is_valid.nonzero()[:, 0]
    if not len(kept):
        return None
    a, size = a[kept], size[kept]
    b = w[first[kept]] - _turned(a, z[first[kept]])
    is_inlier = _squared_errors(a, b, z, w) <= (TOLERANCE * size.clamp(min=1)).square()[:, None] * (1 + 1e-9)
    best = int((is_inlier.to(torch.float32) @ strength.to(torch.float32)).argmax())
    return SimilarityTransform(complex(*a[best].tolist()), complex(*b[best].tolist()), is_inlier[best])


def _squared_errors(a: Tensor, b: Tensor, z: Tensor, w: Tensor) -> Float[Tensor, "m n"]:
    """|a z + b - w|² of m transforms and n pairs, multiplied out: one matrix product."""
    turned = torch.stack([a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1], a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]], 1)
    ones = torch.ones(len(z), 1, dtype=z.dtype, device=z.device)
    across = torch.stack([(z * w).sum(1), z[:, 0] * w[:, 1] - z[:, 1] * w[:, 0]], 1)
    own = [a.square().sum(1, keepdim=True), b.square().sum(1, keepdim=True), torch.ones_like(a[:, :1])]
    theirs = [z.square().sum(1, keepdim=True), ones, w.square().sum(1, keepdim=True)]
    return torch.cat([*own, 2 * turned, -2 * a, -2 * b], 1) @ torch.cat([*theirs, z, across, w], 1).T


def _turned(a: Tensor, z: Tensor) -> Tensor:
    """The products of complex numbers written as rows (real, imaginary)."""
    return torch.stack([a[:, 0] * z[:, 0] - a[:, 1] * z[:, 1], a[:, 1] * z[:, 0] + a[:, 0] * z[:, 1]], 1)
