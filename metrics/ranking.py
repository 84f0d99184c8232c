"""What a ranking is worth, from the distances of its right answers alone; no ranking is ever sorted out in full.

One rule for equal distances, which no order of images can change. Images at one distance are one step of the ranking:

- the *rank* of a right answer counts the wrong ones at its distance first;
- the *precision* at a right answer is the share of right ones among all images that are not farther: the step is taken
  whole, as scikit-learn does.

So an encoder that maps everything to one point finds nothing first, and its average precision is the share of right
answers in the gallery, in whatever order its files are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["TIES", "RankMeasures", "count_not_farther", "expected_single_shot_cmc", "rank_measures"]

TIES = "wrong answers first; the average precision takes the whole tie at once"
"""The rule in the words that reports print."""

_COUNT_UP_TO = 64
"""Matches of one query up to which counting beats sorting the row (measured: 5 µs a match against 260 µs a row)."""


class RankMeasures(NamedTuple):
    """One value per query; NaN (and 0 for counts and ranks) where nothing is relevant.

    Attributes:
        n_relevant: R, the number of relevant gallery images.
        first_rank: rank of the first of them, from 1, behind every wrong answer at the same distance.
        r_precision: share of the relevant images that have a rank of at most R, in [0, 1].
        map_at_r: sum of the precisions at those of them, over R, in [0, 1].
        average_precision: mean of the precisions at all relevant ones, in (0, 1].
        ap_trapezoid: the same with the mean of the precision before and at each, one by one in the order of ranks: the
            original Market-1501 code.
        inverse_penalty: R / rank of the last relevant one; its mean is mINP.
    """

    n_relevant: NDArray[np.intp]
    first_rank: NDArray[np.intp]
    r_precision: NDArray[np.float64]
    map_at_r: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    ap_trapezoid: NDArray[np.float64]
    inverse_penalty: NDArray[np.float64]


def rank_measures(query: ArrayLike, distance: ArrayLike, not_farther: ArrayLike, *, n_queries: int) -> RankMeasures:
    """Every measure of every query, from its relevant images' distances and how many images are not farther than each.

    Args:
        query: which query each relevant image belongs to, in 0…n_queries − 1, in any order.
        distance: of the relevant image.
        not_farther: number of images that count, right and wrong, whose distance is at most this one.
        n_queries: how many queries there are, with relevant images or without.

    Source: MAP@R as in Musgrave et al. 2020, arXiv:2003.08505, §3.2; trapezoid as in Zheng et al. 2015 (Market-1501);
    INP as in Ye et al. 2021, arXiv:2001.04193.

    >>> found = rank_measures([0, 0, 0], [0.2, 0.3, 0.5], [2, 3, 5], n_queries=1)  # wrong, right, right, wrong, right
    >>> [round(float(values[0]), 4) for values in found]
    [3.0, 2.0, 0.6667, 0.3889, 0.5889, 0.4611, 0.6]
    >>> found = rank_measures([0, 0], [0.1, 0.3], [2, 3], n_queries=1)  # right at .1 and .3, wrong at .1
    >>> round(float(found.average_precision[0]), 3)
    0.583
    """
    query, distance, not_farther = np.asarray(query, np.intp), np.asarray(distance), np.asarray(not_farther)
    order = np.lexsort((distance, query))
    query, distance, not_farther = query[order], distance[order], not_farther[order]
    index = np.arange(query.size)
    is_first = np.concatenate([[True], query[1:] != query[:-1]])[: query.size]
    starts = np.flatnonzero(is_first)
    number = np.diff(np.append(starts, query.size))
    nth = index - np.repeat(starts, number) + 1  # k
    ends_tie = np.concatenate([is_first[1:] | (distance[1:] != distance[:-1]), [True]])[: query.size]
    tie_end = np.flatnonzero(ends_tie)
    right = nth[tie_end][np.searchsorted(tie_end, index)]  # right ones not farther: k at the end of the tie
    rank = not_farther - right + nth  # r_k, wrong answers of a tie first
    precision = right / not_farther
    is_within = rank <= np.repeat(number, number)
    before = np.where(rank > 1, (nth - 1) / np.maximum(rank - 1, 1), 1.0)

    def spread(values: NDArray[Any], fill: float = np.nan) -> NDArray[Any]:
        every = np.full(n_queries, fill, values.dtype)
        every[query[starts]] = values
        return every

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        return spread(np.add.reduceat(values.astype(np.float64), starts) / number if starts.size else np.empty(0))

    return RankMeasures(
        n_relevant=spread(number, 0),
        first_rank=spread(rank[starts], 0),
        r_precision=mean(is_within),
        map_at_r=mean(precision * is_within),
        average_precision=mean(precision),
        ap_trapezoid=mean((before + nth / rank) / 2),
        inverse_penalty=spread(number / rank[starts + number - 1]),
    )


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
