"""Labels against neighbours: votes, distances to classes, and their calibration by labels made wrong on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...metrics.distances import SearchSpec, comparable, rough_distances
from .neighbours import Neighbours

if TYPE_CHECKING:
    from ..storage.snapshot import Snapshot

NEAREST = 5  # of a class: the distance to the fifth is the distance to the class
_MEMBERS = 1000  # of a class that distances are measured to, drawn evenly
_BLOCK = 4096
_MADE_WRONG = 2000

Codes = NDArray[np.int32]
Values = NDArray[np.float64]


class LabelVotes(NamedTuple):
    """Of each image's neighbours: share of votes (n,) for its own label, for the winner among the others, and which."""

    own: Values
    other: Values
    winner: Codes

    @classmethod
    def of(cls, neighbours: Neighbours, labels: Codes, copies: NDArray[np.bool_]) -> LabelVotes:
        """Labelled neighbours vote with exp(−3 d / d_k); copies of the image, (n, k), do not: they err together."""
        voters = neighbours.values(labels)
        scale = np.maximum(neighbours.farthest[:, None], 1e-12)
        weight = np.where((voters >= 0) & ~copies, np.exp(-3 * np.minimum(neighbours.distances / scale, 1)), 0)
        weight = weight / np.maximum(weight.sum(1, keepdims=True), 1e-12)
        own = np.where(voters == labels[:, None], weight, 0).sum(1)
        best, winner = np.zeros(len(labels)), np.full(len(labels), -1, np.int32)
        for rank in range(voters.shape[1]):
            candidate = voters[:, rank]
            share = np.where(voters == candidate[:, None], weight, 0).sum(1)
            better = (share > best) & (candidate != labels) & (candidate >= 0)
            best[better], winner[better] = share[better], candidate[better]
        return cls(own, best, winner)


def distances_to_classes(snapshot: Snapshot, labels: Codes, *, places: NDArray[np.int64], codes: Codes) -> Values:
    """Distance of each image at `places` to the fifth nearest image, without itself, of the class in `codes`.

    Of a small class it is the farthest; inf of a class without another image.
    """
    spec = snapshot.search_spec
    spec = SearchSpec(spec.dim, "cosine") if spec.metric == "dot" else spec
    found = np.full(len(places), np.inf)
    order = np.argsort(codes, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        members = np.flatnonzero(labels == codes[rows[0]])
        members = members[np.unique(np.linspace(0, len(members) - 1, min(len(members), _MEMBERS)).astype(int))]
        if codes[rows[0]] < 0 or not len(members):
            continue
        known = comparable(spec, snapshot.embeddings(snapshot.ids[members]))
        for some in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
            asked = comparable(spec, snapshot.embeddings(snapshot.ids[places[some]]))
            distances = rough_distances(spec, asked, known)
            distances[places[some][:, None] == members] = np.inf
            others = np.isfinite(distances).sum(1)
            distances.sort(1)
            kth = distances[np.arange(len(some)), np.clip(others, 1, NEAREST) - 1]
            found[some] = np.where(others > 0, kth, np.inf)
    return found


def share_right(scores: Values, made_wrong: Values, outvoted: NDArray[np.intp]) -> Values:
    """Expected share of right labels among each outvoted image and all that score higher; from the scores of all.

    Below what 95 of 100 labels made wrong on purpose score, nearly all labels are right. Numbers in the two halves of
    their last fifth tell by which factor they thin out, and so how many right ones lie above any score.
    """
    cut = np.quantile(made_wrong, 0.05) if len(made_wrong) else -np.inf
    usual = scores[scores <= cut]
    if not len(usual):
        return np.ones(len(outvoted))
    start = np.quantile(usual, 0.8)
    half = max((cut - start) / 2, 1e-9)
    upper = float((usual > start + half).sum())
    factor = min((upper + 0.5) / (float((usual > start).sum()) - upper + 0.5), 0.95)
    asked = scores[outvoted]
    order = np.argsort(-asked, kind="stable")
    right = upper * factor ** (1 + (asked[order] - cut) / half) / (1 - factor)
    share = np.empty(len(asked))
    share[order] = np.maximum.accumulate(np.minimum(right / np.arange(1, len(asked) + 1), 1))
    return share


def made_wrong(labels: Codes, *, seed: int = 0) -> tuple[NDArray[np.int64], Codes]:
    """Places of labelled images, at most 2,000, and for each another label, drawn among all alike."""
    draw = np.random.default_rng(seed)
    labelled = np.flatnonzero(labels >= 0)
    places = draw.permutation(labelled)[:_MADE_WRONG]
    wrong = draw.choice(np.unique(labels[labelled]), len(places)).astype(np.int32)
    differs = wrong != labels[places]
    return places[differs], wrong[differs]
