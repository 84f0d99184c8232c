"""Correspondence: the similarity of a query and a match, divided among all pairs of positions.

With response maps R of the query and S of the match (see `fold`), whose means over positions are the two embeddings e
and f, every similarity that is a product splits exactly, without any approximation:

    e · f = Σ_ij Σ_xy R_ij · S_xy / (N N')      and the cosine the same, divided by |e| |f|

A share belongs to a pair of positions: (i, j) on the query, (x, y) on the match. Summed over one image the shares are
the `dot` map on the other. What a head adds as a bias is part of R and S at every position, so nothing is left over.

Source: Stylianou, Souvenir and Pless, Visualizing Deep Similarity Networks, 2019; Zhu et al., 2019. The form with
folded heads is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError, ShapeError
from ..inputs import METRICS, Metric, at_least_float32, refuse_non_finite
from .dist_cam import length


class PositionPair(NamedTuple):
    """A position of the query's map, one of the match's map, both as (row, column), and their share of the total."""

    query: tuple[int, int]
    match: tuple[int, int]
    share: float


@dataclass(frozen=True, eq=False)
class Correspondence:
    """The contribution of each pair of positions to the similarity of two images."""

    shares: Float[Tensor, "h w u v"]  # signed; row, column on the query, row, column on the match; their sum is `total`
    total: float  # of the two embeddings: the cosine, the dot product, or minus the *squared* l2 distance
    metric: Metric

    @property
    def residual(self) -> float:
        """The sum of the shares minus the similarity: nothing but rounding."""
        return float(self.shares.double().sum()) - self.total

    def on_match(self, point: tuple[int, int] | None = None) -> Float[Tensor, "u v"]:
        """The match's map for one position (row, column) of the query, or summed over all of them."""
        return self.shares.sum((0, 1)) if point is None else self.shares[_position(point, self.shares.shape[:2])]

    def on_query(self, point: tuple[int, int] | None = None) -> Float[Tensor, "h w"]:
        """The query's map for one position (row, column) of the match, or summed over all of them."""
        shares = self.shares.movedim((2, 3), (0, 1))
        return shares.sum((0, 1)) if point is None else shares[_position(point, shares.shape[:2])]

    def mutual_pairs(self, limit: int = 10) -> list[PositionPair]:
        """Pairs of positions that are each other's best (of equals the first), with a positive share; largest first."""
        flat = self.shares.flatten(2).flatten(0, 1)
        partner, back = flat.argmax(1), flat.argmax(0)
        own = torch.arange(len(flat), device=flat.device)
        best = flat[own, partner]
        mutual = own[(back[partner] == own) & (best > 0)]
        ranked = mutual[best[mutual].argsort(descending=True, stable=True)][:limit]
        columns, match_columns = self.shares.shape[1], self.shares.shape[3]
        return [
            PositionPair(divmod(int(i), columns), divmod(int(partner[i]), match_columns), float(best[i]))
            for i in ranked
        ]


def correspondence(
    query_map: Float[Tensor, "d h w"], match_map: Float[Tensor, "d u v"], *, metric: Metric = "cosine"
) -> Correspondence:
    """The similarity of two images, divided among all pairs of their positions.

    The maps are response maps (see `fold`) of the same channels, whose means are the embeddings; their resolutions may
    differ. The metric "l2" divides minus the squared distance; "l1" does not divide, and is an InputError.

    >>> query = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])       # one row: channel 0 on the left, 1 on the right
    >>> found = correspondence(query, query.flip(-1), metric="dot")
    >>> found.on_match((0, 0)).tolist(), found.total, found.residual
    ([[0.0, 1.0]], 2.0, 0.0)
    """
    shares = pairwise_shares(query_map, match_map, metric=metric)
    one, other = (maps.double().mean((-2, -1)) for maps in (query_map, match_map))
    if metric == "l2":
        total = -(one - other).square().sum()
    else:
        total = one @ other / (length(one) * length(other) if metric == "cosine" else 1)
    return Correspondence(shares, float(total), metric)


def pairwise_shares(
    query_map: Float[Tensor, "*#b d h w"], match_map: Float[Tensor, "*b d u v"], *, metric: Metric = "cosine"
) -> Float[Tensor, "*b h w u v"]:
    """The share of each pair of positions, in the similarity's unit; a leading batch is one of pairs of images.

    A batch of one query meets each match of its batch.

    cosine, dot: `R_ij · S_xy / (N N')`, for the cosine divided by the lengths of both embeddings (0 if one is 0). l2:
    `(2 R_ij · S_xy - R_ij · e - S_xy · f) / (N N')`, which sums to minus the squared distance; the distance itself is a
    root and l1 a sum of magnitudes, of which no part belongs to a pair.
    """
    if metric not in METRICS:
        raise InputError(f"metric={metric!r} is not known; choose one of {', '.join(METRICS)}")
    if metric == "l1":
        raise InputError(
            "an L1 distance is a sum of magnitudes and does not divide among pairs of positions; "
            "cosine and dot divide exactly, l2 as its square"
        )
    lead = match_map.shape[:-3]
    if query_map.shape[-3] != match_map.shape[-3] or query_map.shape[:-3] not in (lead, (1,) * len(lead)):
        raise ShapeError(
            f"two maps of one space have the same leading shape (…, channels); got {tuple(query_map.shape)} "
            f"and {tuple(match_map.shape)}"
        )
    flat = []
    for name, given in (("the query's map", query_map), ("the match's map", match_map)):
        refuse_non_finite(name, given)
        if 0 in given.shape[-2:]:
            raise ShapeError(f"{name} has no positions; its shape is {tuple(given.shape)}")
        flat.append(at_least_float32(name, given).flatten(-2))
    one, other = flat
    e, f, pairs = one.mean(-1, keepdim=True), other.mean(-1, keepdim=True), one.shape[-1] * other.shape[-1]
    shares = (one.mT @ other) / pairs
    if metric == "cosine":
        shares = shares / (length(e.mT) * length(f.mT))
    elif metric == "l2":
        shares = 2 * shares - (one.mT @ e) / pairs - (other.mT @ f).mT / pairs
    return shares.reshape(*shares.shape[:-2], *query_map.shape[-2:], *match_map.shape[-2:])


def _position(point: tuple[int, int], shape: tuple[int, ...]) -> tuple[int, int]:
    row, column = point
    if not (0 <= row < shape[0] and 0 <= column < shape[1]):
        raise InputError(f"position (row, column) = {(row, column)} lies outside a map of {shape[0]}×{shape[1]}")
    return row, column
