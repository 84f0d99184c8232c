"""Lines: the place on a match that answers each place on a query, from fine features of the same forward pass.

Fine maps A (stride 8) say what lies at a place, the exact shares of the similarity (`pairwise_shares`, last map) say
how much it counts. With F, G the unit vectors of A − μ, μ the gallery's channel mean:

    D = softmax_j(F·G / τ) ∘ softmax_i(F·G / τ)        a place that many others resemble gets little
    P = max(0, shares, enlarged bilinearly on both sides)
    lines = mutual best pairs of D, of strength s = D · P, and one similarity transform with the largest Σ s of inliers

Lines show likeness: a stranger in the same pose has many. How many unrelated images have is measured (`inliers_null`).

Source: dual softmax: Rocco et al., Neighbourhood Consensus Networks, 2018; Sun et al., LoFTR, 2021, Eq. 2. Gate and
exhaustive transform are ours.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ...errors import ShapeError
from ...images.geometry import Box
from ..inputs import Metric
from .correspondence import pairwise_shares

Complexes = NDArray[np.complex128]

TAU = 0.05
STRONGEST = 100
LARGEST_GRID = 64 * 64  # cells; a finer map is averaged two by two, as the work grows with their square
LEAST_APART = 2.0  # cells between the two points that define a transform, on both sides
TOLERANCE = 1.5  # cells, on the side where cells are larger
SCALES = (0.5, 2.0)
LARGEST_TURN = math.radians(60)


@dataclass(frozen=True, eq=False)
class SimilarityTransform:
    """`w = a z + b` on points (cells) written as complex numbers: scale |a|, rotation arg a, shift b."""

    a: complex
    b: complex
    is_inlier: Bool[Tensor, " n"]  # of each pair: it lies within `TOLERANCE · max(1, |a|)` cells of the transform

    @property
    def scale(self) -> float:
        """How much larger things are on the second side."""
        return abs(self.a)

    @property
    def degrees(self) -> float:
        """Rotation from the first side to the second, clockwise on an image."""
        return math.degrees(cmath.phase(self.a))


def fit_similarity(
    points: Float[Tensor, "n 2"], partners: Float[Tensor, "n 2"], strength: Float[Tensor, " n"]
) -> SimilarityTransform | None:
    """The similarity transform from points to partners with the largest summed strength of inliers.

    Every two pairs that are `LEAST_APART` on both sides define a transform; it counts if its scale lies in `SCALES` and
    its rotation within ±60°. Exchanging the sides gives the inverse with the same inliers. Of equals the first counts.
    Points are (x, y) in cells, some hundred at most, as all pairs are tried; None where no two define a transform.

    >>> points = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    >>> found = fit_similarity(points, torch.tensor([[1.0, 0.0], [5.0, 0.0], [1.0, 4.0], [0.0, 9.0]]), torch.ones(4))
    >>> found.a, found.b, found.is_inlier.tolist()
    ((1+0j), (1+0j), [True, True, True, False])
    """
    first, second = _every_two(len(points))
    z, w = (side.double().cpu().numpy() @ (1, 1j) for side in (points, partners))
    dz, dw = z[second] - z[first], w[second] - w[first]
    lengths = _squared(dz), _squared(dw)
    a = dw * dz.conj() / np.maximum(lengths[0], 1e-12)
    size = np.sqrt(_squared(a))
    is_valid = (np.minimum(*lengths) >= LEAST_APART**2) & (size >= SCALES[0]) & (size <= SCALES[1])
    is_valid &= a.real >= size * math.cos(LARGEST_TURN) - 1e-6
    kept = np.flatnonzero(is_valid)
    if not len(kept):
        return None
    a, size = a[kept], size[kept]
    b = w[first[kept]] - a * z[first[kept]]
    limit = (TOLERANCE * np.maximum(size, 1)) ** 2 * (1 + 1e-9)
    is_inlier = _squared_errors(a, b, z, w) <= limit[:, None]
    best = int((is_inlier.astype(np.float32) @ strength.float().cpu().numpy()).argmax())
    return SimilarityTransform(complex(a[best]), complex(b[best]), torch.from_numpy(is_inlier[best]))


@lru_cache(maxsize=4)
def _every_two(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(count, 1)


def _squared(numbers: Complexes) -> NDArray[np.float64]:
    return numbers.real**2 + numbers.imag**2


def _squared_errors(a: Complexes, b: Complexes, z: Complexes, w: Complexes) -> NDArray[np.float64]:
    """|a z + b - w|² of m transforms and n pairs, (m, n), multiplied out: one matrix product."""
    shift, turn = b * a.conj(), w * z.conj()
    own = [_squared(a), _squared(b), np.ones(len(a)), 2 * shift.real, 2 * shift.imag]
    each = [_squared(z), np.ones(len(z)), _squared(w), z.real, z.imag]
    own += [-2 * a.real, -2 * a.imag, -2 * b.real, -2 * b.imag]
    return np.stack(own, 1) @ np.stack([*each, turn.real, turn.imag, w.real, w.imag])


@dataclass(frozen=True, eq=False)
class Places:
    """One image as lines see it: unit vectors of its fine cells, and the map whose mean its embedding is."""

    cells: Float[Tensor, "n c"]  # in reading order
    shape: tuple[int, int]  # rows and columns of the fine map
    response: Float[Tensor, "d h w"]  # see `fold`
    is_seen: Bool[Tensor, " n"]  # of each cell, whether it lies on the image and not on its padding

    @classmethod
    def of(
        cls,
        fine: Float[Tensor, "c h w"],
        response: Float[Tensor, "d u v"],
        mean: Float[Tensor, " c"] | None = None,
        *,
        image: Box | None = None,
    ) -> Places:
        """The places of an image from its fine map, less the gallery's channel mean.

        `image` is where the image lies on the map, in fractions of it; padding around it answers nothing.
        """
        while fine.shape[-2] * fine.shape[-1] > LARGEST_GRID:
            fine = avg_pool2d(fine, 2, ceil_mode=True)
        flat = fine.to(torch.float32).flatten(1).T
        flat = flat if mean is None else flat - mean.to(flat)
        length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        rows, columns = fine.shape[1], fine.shape[2]
        y, x = ((torch.arange(count, device=flat.device) + 0.5) / count for count in (rows, columns))
        box = image or Box(0, 0, 1, 1)
        is_seen = ((y > box.top) & (y < box.bottom))[:, None] & ((x > box.left) & (x < box.right))
        flat = flat * is_seen.reshape(-1, 1)
        return cls(flat / torch.where(length > 0, length, 1.0), (rows, columns), response, is_seen.flatten())


@dataclass(frozen=True, eq=False)
class Lines:
    """Pairs of places that answer one another, strongest first."""

    query: Int[Tensor, "n 2"]  # (row, column) of each line's cell on the query's fine map
    match: Int[Tensor, "n 2"]  # the same on the match's
    strength: Float[Tensor, " n"]  # D · P, at least 0
    transform: SimilarityTransform | None  # what most lines agree on, with its inliers; None where there is none
    query_shape: tuple[int, int]  # rows and columns of the query's fine map
    match_shape: tuple[int, int]  # of the match's

    def __len__(self) -> int:
        return len(self.strength)

    @property
    def is_inlier(self) -> Bool[Tensor, " n"]:
        """Of each line, whether it follows the transform."""
        return torch.zeros(len(self), dtype=torch.bool) if self.transform is None else self.transform.is_inlier

    @property
    def inliers(self) -> int:
        """The number of lines that follow the transform."""
        return int(self.is_inlier.sum())

    def strongest(self, limit: int = 20, *, inliers: bool = True) -> Lines:
        """The strongest lines: those that follow the transform, or of all."""
        chosen = (self.is_inlier if inliers else torch.ones_like(self.is_inlier)).nonzero()[:limit, 0]
        transform = self.transform and replace(self.transform, is_inlier=self.is_inlier[chosen])
        parts = self.query[chosen], self.match[chosen], self.strength[chosen]
        return Lines(*parts, transform, self.query_shape, self.match_shape)


def find_lines(
    query: Places, match: Places, *, tau: float = TAU, strongest: int = STRONGEST, metric: Metric = "cosine"
) -> Lines:
    """The `strongest` lines between two images and the similarity transform that most of their strength agrees on.

    Both sides have the same channels (else a ShapeError); the grids may differ. The work grows with the square of
    `strongest`. `tau` is of the dual softmax, and `metric` "cosine", "dot" or "l2", as the gallery compares.
    """
    (found,) = lines_to_each(query, [match], tau=tau, strongest=strongest, metric=metric)
    return found


def lines_to_each(
    query: Places,
    matches: Sequence[Places],
    *,
    tau: float = TAU,
    strongest: int = STRONGEST,
    metric: Metric = "cosine",
) -> Iterator[Lines]:
    """`find_lines` from one image to each of several, whose response maps have one shape."""
    if not matches:
        return
    responses = torch.stack([match.response for match in matches])
    shares = pairwise_shares(query.response[None], responses, metric=metric).float().cpu().flatten(3).flatten(1, 2)
    own = np.flatnonzero(query.is_seen.numpy(force=True))
    work = torch.empty(len(own) * max(len(match.cells) for match in matches))
    ours, one = query.cells.cpu()[own] / tau, _bilinear(query.response.shape[-2:], query.shape)
    for match, share in zip(matches, shares.numpy(), strict=True):
        if query.cells.shape[1] != match.cells.shape[1]:
            raise ShapeError(
                "two fine maps of one layer have the same channels, "
                f"got {query.cells.shape[1]} and {match.cells.shape[1]}"
            )
        theirs = np.flatnonzero(match.is_seen.numpy(force=True))
        likeness = work[: len(own) * len(theirs)].view(len(own), len(theirs))
        torch.mm(ours, match.cells.cpu()[theirs].T, out=likeness)
        place, partner, sharp = _mutual_best(likeness, (len(query.cells), len(match.cells)))
        place, partner = own[place], theirs[partner]
        other = _bilinear(match.response.shape[-2:], match.shape)
        strength = sharp * np.maximum(((one[place] @ share) * other[partner]).sum(1), 0)
        order = (-strength).argsort(kind="stable")[:strongest]
        order = order[strength[order] > 0]
        sides = (place[order], query.shape), (partner[order], match.shape)
        cells = [torch.from_numpy(np.stack(np.divmod(at, shape[1]), 1)) for at, shape in sides]
        kept = torch.from_numpy(strength[order])
        transform = fit_similarity(cells[0].flip(1).float(), cells[1].flip(1).float(), kept)
        yield Lines(cells[0], cells[1], kept, transform, query.shape, match.shape)


def _mutual_best(
    likeness: Float[Tensor, "n m"], cells: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Cells that are each other's best in D, the first in reading order of equals, and D there; F·G / τ is used up.

    Of so many cells on both sides those that are missing are margins: a likeness of 0 to all, whose e⁰ counts.
    """
    if not likeness.numel():
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0, np.float32)
    raised, margins = likeness.exp_(), [whole - shown for whole, shown in zip(cells, likeness.shape, strict=True)]
    across = (raised.sum(1) + margins[1]).rsqrt_()  # at most e^(1/τ): no overflow down to τ = .012
    down = (raised.sum(0) + margins[0]).rsqrt_()
    root = raised.mul_(across[:, None]).mul_(down).numpy()  # √D; numpy looks for the largest ten times as fast
    answer = root.argmax(1)  # the first of equals
    best = np.take_along_axis(root, answer[:, None], 1)[:, 0]
    is_mutual = best == root.max(0)[answer]
    if margins[1]:  # as good an answer
        is_mutual &= best > across.numpy() / math.sqrt(cells[0])
    if margins[0]:
        is_mutual &= best > down.numpy()[answer] / math.sqrt(cells[1])
    place = np.flatnonzero(is_mutual)
    first = np.unique(answer[place], return_index=True)[1]  # likewise on the other side
    place = place[np.sort(first)]
    return place, answer[place], best[place] ** 2


@lru_cache(maxsize=16)
def _bilinear(coarse: tuple[int, ...], fine: tuple[int, int]) -> NDArray[np.float32]:
    """The weights (n, m) by which each of m coarse positions enters each of n fine ones."""
    each = interpolate(torch.eye(math.prod(coarse)).reshape(1, -1, *coarse), fine, mode="bilinear")[0]
    return each.flatten(1).T.contiguous().numpy()
