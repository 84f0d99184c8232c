"""What a ranking is worth, from the ranks of its right answers alone; no ranking is ever sorted out in full.

Ties never depend on the order of the gallery: at equal distance wrong answers come first. Only step AP, following
scikit-learn, gives every right answer of a tie the precision behind the whole tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RankStatistics", "count_not_farther", "expected_single_shot_cmc", "rank_statistics"]

_COUNT_UP_TO = 64
"""Matches of one query up to which counting beats sorting the row (measured: 5 µs a match against 260 µs a row)."""


@dataclass(frozen=True, eq=False)
class RankStatistics:
    """One value per query (or per query and camera): all in (0, 1] but `first_rank`, which starts at 1.

    Attributes:
        group: which query.
        first_rank: rank of the first match, behind every wrong answer at the same distance.
        ap_step: mean over the matches of k / r_k, the average precision of most papers since 2018.
        ap_trapezoid: the same with the mean of the precision before and at each match: the original Market-1501 code.
        inverse_penalty: matches / rank of the last match; its mean is mINP.
    """

    group: NDArray[np.intp]
    first_rank: NDArray[np.intp]
    ap_step: NDArray[np.float64]
    ap_trapezoid: NDArray[np.float64]
    inverse_penalty: NDArray[np.float64]


def rank_statistics(group: ArrayLike, distance: ArrayLike, not_farther: ArrayLike) -> RankStatistics:
    """Statistics of each group, from its matches' distances and how many gallery images are not farther than each.

    Args:
        group: which query each match belongs to.
        distance: of the match.
        not_farther: number of images that count, right and wrong, whose distance is at most this one.

    Source: trapezoid as in Zheng et al. 2015 (Market-1501); INP as in Ye et al. 2021, arXiv:2001.04193.

    >>> stats = rank_statistics([0, 0, 0], [0.2, 0.3, 0.5], [2, 3, 5])  # ranking: wrong, right, right, wrong, right
    >>> round(float(stats.ap_step[0]), 6), round(float(stats.ap_trapezoid[0]), 6), float(stats.inverse_penalty[0])
    (0.588889, 0.461111, 0.6)
    """
    group, distance, not_farther = np.asarray(group, np.intp), np.asarray(distance), np.asarray(not_farther)
    order = np.lexsort((distance, group))
    group, distance, not_farther = group[order], distance[order], not_farther[order]
    index = np.arange(group.size)
    is_first = np.concatenate([[True], group[1:] != group[:-1]])[: group.size]
    starts = np.flatnonzero(is_first)
    number = np.diff(np.append(starts, group.size))
    nth = index - np.repeat(starts, number) + 1  # k
    ends_tie = np.concatenate([is_first[1:] | (distance[1:] != distance[:-1]), [True]])[: group.size]
    tie_end = np.flatnonzero(ends_tie)
    right = nth[tie_end][np.searchsorted(tie_end, index)]  # matches not farther: k at the end of the tie
    rank = not_farther - right + nth  # r_k, wrong answers of a tie first
    before = np.where(rank > 1, (nth - 1) / np.maximum(rank - 1, 1), 1.0)
    ends = starts + number - 1
    return RankStatistics(
        group=group[starts],
        first_rank=rank[starts],
        ap_step=_group_mean(right / not_farther, starts, number),
        ap_trapezoid=_group_mean((before + nth / rank) / 2, starts, number),
        inverse_penalty=number / rank[ends],
    )


def _group_mean(values: NDArray[Any], starts: NDArray[np.intp], number: NDArray[np.intp]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.add.reduceat(values, starts) / number if starts.size else np.empty(0)
    return mean


def count_not_farther(
    row: NDArray[Any], distances: NDArray[Any], parts: list[slice]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each distance, how many of the row are not farther: in the whole row, and in the part given for it."""
    if len(distances) <= _COUNT_UP_TO:
        whole, part = np.empty(len(distances), np.intp), np.empty(len(distances), np.intp)
        for i, distance in enumerate(distances):
            nearer = row <= distance
            whole[i], part[i] = np.count_nonzero(nearer), np.count_nonzero(nearer[parts[i]])
        return whole, part
    whole = np.searchsorted(np.sort(row), distances, side="right")
    ordered = {(at.start, at.stop): np.sort(row[at]) for at in parts}
    part = np.array(
        [np.searchsorted(ordered[at.start, at.stop], d, side="right") for at, d in zip(parts, distances, strict=True)]
    )
    return whole, part


def expected_single_shot_cmc(ahead: NDArray[np.float64], *, n_ranks: int) -> NDArray[np.float64]:
    """Chance, in [0, 1], that a match has rank 1, at most 2, … when each identity shows one image drawn at random.

    The drawn image of another identity is ahead with the probability that is the share of its images that are not
    farther; the number ahead is a sum of independent coin tosses, so its distribution is exact: no draws are needed.

    Args:
        ahead: (matches, identities) those probabilities.
        n_ranks: how many ranks.

    >>> expected_single_shot_cmc(np.array([[0.5, 1.0]]), n_ranks=3)  # one is always ahead, one every other time
    array([[0. , 0.5, 1. ]])
    """
    exactly = np.zeros((n_ranks, len(ahead)))  # probability that 0, 1, … identities are ahead
    exactly[0] = 1
    for chance in np.ascontiguousarray(ahead.T):
        moved = exactly * chance
        exactly -= moved
        exactly[1:] += moved[:-1]
    return np.minimum(np.cumsum(exactly, axis=0), 1.0).T
