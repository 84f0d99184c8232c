"""Ranking measures, from the distances of the right answers alone; no ranking is ever sorted out in full.

One rule for equal distances, which no order of images can change: the *rank* of a right answer counts the wrong ones at
its distance first; the *precision* at a right answer is the share of right ones among all images that are not farther,
as in scikit-learn. An encoder that maps everything to one point finds nothing first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..progress import Progress
from .distances import Distances, SearchSpec, Vectors, distances_to, lengths_of, together

BLOCK_BYTES = 16 << 20
"""Size of a block of distances with a sorted copy; one query is the least."""
_TILE = 4096  # gallery rows that are widened to double precision at a time
_AT_ONCE = 1 << 18  # right answers that are measured together
_FEW_RANGES = 16
_OVERFLOW, _TINY = 1e37, 1e-30  # squares up to here, and products from here on, are what they seem in single precision

TIES = "wrong answers first; the average precision takes the whole tie at once"
"""The rule in the words that reports print."""

_COUNT_UP_TO = 64
"""Matches of one query up to which counting beats sorting the row (measured: 5 µs a match against 260 µs a row)."""


class RankMeasures(NamedTuple):
    """One value per query; NaN (and 0 for counts and ranks) where nothing is relevant.

    `ap_trapezoid` is `average_precision` with the mean of the precision before and at each, one by one in the order of
    ranks: the original Market-1501 code.
    """

    n_relevant: NDArray[np.intp]  # R, the number of relevant gallery images
    first_rank: NDArray[np.intp]  # of the first of them, from 1, behind every wrong answer at the same distance
    r_precision: NDArray[np.float64]  # share of the relevant images that have a rank of at most R, in [0, 1]
    map_at_r: NDArray[np.float64]  # sum of the precisions at those of them, over R, in [0, 1]
    average_precision: NDArray[np.float64]  # mean of the precisions at all relevant ones, in (0, 1]
    ap_trapezoid: NDArray[np.float64]
    inverse_penalty: NDArray[np.float64]  # R / rank of the last relevant one; its mean is mINP


def rank_measures(query: ArrayLike, distance: ArrayLike, not_farther: ArrayLike, *, n_queries: int) -> RankMeasures:
    """Every measure of every query, from its relevant images' distances and how many images are not farther than each.

    The relevant images of queries 0…n_queries − 1 may come in any order; `not_farther` counts right and wrong ones.

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
    `ahead` holds those probabilities, (matches, identities).

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


Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Groups:
    """For each query, the ascending columns of the gallery that share its code."""

    order: Rows
    start: Rows
    stop: Rows

    @classmethod
    def of(cls, query: Rows, gallery: Rows) -> Groups:
        """Those of two sides' codes."""
        order = np.argsort(gallery, kind="stable")
        ordered = gallery[order]
        return cls(order, np.searchsorted(ordered, query, "left"), np.searchsorted(ordered, query, "right"))

    def __getitem__(self, query: int) -> Rows:
        return self.order[self.start[query] : self.stop[query]]


class Pairing:
    """The gallery rows relevant to each query: those of its label, except the query's own image.

    Labels are class numbers, −1 for none, which is relevant to nothing; `own` is the gallery row of each query's own
    image, −1 where it is not in the gallery.
    """

    def __init__(self, query_labels: Rows, gallery_labels: Rows, own: Rows) -> None:
        self.own = own
        self._same = Groups.of(query_labels, np.where(gallery_labels < 0, -2, gallery_labels))

    def relevant(self, query: int) -> Rows:
        """Gallery rows, ascending."""
        rows = self._same[query]
        others: Rows = rows[rows != self.own[query]]
        return others


def measure_rankings(
    queries: Vectors,
    gallery: Vectors,
    pairing: Pairing,
    *,
    spec: SearchSpec,
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
) -> RankMeasures:
    """Every measure of every query against all gallery rows but its own image, without sorting the gallery.

    A block of queries meets the gallery in one matrix product in single precision. Its rounding is bounded, so an item
    is surely nearer than a right answer, surely not, or among the few that are too close to tell; these alone are
    compared by their exact distances, each of which hangs on two vectors alone. No order of rows and no size of blocks
    changes a single bit. Queries (q, d) and gallery (g, d) are in `comparable` form.
    """
    scores = _Scores(queries, gallery, spec)
    size = max(1, block_bytes // (2 * scores.dtype.itemsize * max(1, len(gallery))))  # with a sorted copy
    found = [rank_measures([], [], [], n_queries=0)]
    for start in range(0, len(queries), size):
        asked = np.arange(start, min(start + size, len(queries)))
        block, own = scores.block(asked), pairing.own[asked]
        block[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf
        relevant = [pairing.relevant(query) for query in asked.tolist()]
        counts = np.array([len(columns) for columns in relevant])
        for part, _ in together(counts, _AT_ONCE):
            number = np.repeat(np.arange(len(counts[part])), counts[part])
            distances = scores.distances(asked[part][number], np.concatenate(relevant[part]))
            distances = distances[np.lexsort((distances, number))]
            not_farther = scores.count(block[part], asked[part], counts[part], distances)
            found.append(rank_measures(number, distances, not_farther, n_queries=len(counts[part])))
        if progress is not None:
            progress(start + len(asked), len(queries))
    return RankMeasures(*(np.concatenate(column) for column in zip(*found, strict=True)))


class _Scores:
    """Numbers that grow with the distance, from matrix products: each within `slack` of its true value."""

    def __init__(self, queries: Vectors, gallery: Vectors, spec: SearchSpec) -> None:
        self.queries, self.gallery, self.spec = queries, gallery, spec
        lengths = [lengths_of(side) for side in (queries, gallery)]
        reach = (lengths[0] + lengths[1].max(initial=0.0)) ** 2
        is_double = spec.metric == "l1" or reach.max(initial=0.0) > _OVERFLOW
        self.dtype = np.dtype(np.float64 if is_double else np.float32)
        self._halves = [(length**2 / 2).astype(self.dtype) for length in lengths]
        # a sum of d products in any order is off by at most about d·eps/2·|x||y|, and 4|x||y| ≤ (|x| + |y|)²; exact
        # distances are as far off as double precision is
        self.slack = ((spec.dim / 4 + 16) * 2.0**-52 if is_double else (spec.dim / 8 + 8) * 2.0**-23) * reach + _TINY

    def block(self, asked: Rows) -> NDArray[Any]:
        """The scores of some queries, (q, g)."""
        if self.spec.metric == "l1":
            return np.stack([distances_to(self.spec, self.queries[query], self.gallery) for query in asked.tolist()])
        queries = -self.queries[asked].astype(self.dtype)
        scores = np.empty((len(asked), len(self.gallery)), self.dtype)
        for first in range(0, len(self.gallery), _TILE):
            tile = self.gallery[first : first + _TILE].astype(self.dtype, copy=False)
            np.matmul(queries, tile.T, out=scores[:, first : first + _TILE])
        if self.spec.metric != "dot":  # half the squared distance
            scores += self._halves[0][asked, None]
            scores += self._halves[1]
        return scores

    def distances(self, queries: Rows, columns: Rows) -> Distances:
        """The exact distances of pairs, each of which hangs on its two vectors alone."""
        parts = [np.empty(0)]
        for first in range(0, len(columns), _TILE):
            part = slice(first, first + _TILE)
            parts.append(distances_to(self.spec, self.queries, self.gallery[columns[part]], which=queries[part]))
        return np.concatenate(parts)

    def count(self, block: NDArray[Any], asked: Rows, counts: Rows, distances: Distances) -> Rows:
        """The number in each query's row of scores that are not farther than each of its `counts` rising distances."""
        wanted = distances**2 / 2 if self.spec.metric == "l2" else distances
        number = np.repeat(np.arange(len(asked)), counts)
        slack = self.slack[asked][number]
        low = np.nextafter((wanted - slack).astype(self.dtype), self.dtype.type(-np.inf))
        high = np.nextafter((wanted + slack).astype(self.dtype), self.dtype.type(np.inf))
        nearer, not_farther = np.empty(len(distances), np.intp), np.empty(len(distances), np.intp)
        stops = np.cumsum(counts)
        spans = [slice(start, stop) for start, stop in zip((stops - counts).tolist(), stops.tolist(), strict=True)]
        for row, span in zip(np.sort(block, axis=1), spans, strict=True):
            nearer[span] = row.searchsorted(low[span], "left")
            not_farther[span] = row.searchsorted(high[span], "right")
        at = np.flatnonzero(not_farther - nearer > 1)  # every other one is alone within its slack
        if not len(at):
            return not_farther
        number, low, high = number[at], low[at], high[at]
        is_new = (low[1:] > high[:-1]) | (number[1:] != number[:-1])
        starts = np.flatnonzero(np.append(True, is_new))  # of ranges that overlap
        ends = np.append(starts[1:], len(at))
        low, high, sizes = low[starts], high[ends - 1], not_farther[at[ends - 1]] - nearer[at[starts]]
        rows, first = np.unique(number[starts], return_index=True)
        last, before = np.append(first[1:], len(starts)), np.cumsum(sizes) - sizes
        # nearer, and not among the close
        surely = np.repeat(nearer[at[starts]] - before + np.repeat(before[first], last - first), ends - starts)
        totals = np.add.reduceat(sizes, first)
        for part, _ in together(totals, _AT_ONCE):
            ranges = list(zip(rows[part].tolist(), first[part].tolist(), last[part].tolist(), strict=True))
            columns = [_columns_between(block[row], low[a:b], high[a:b]) for row, a, b in ranges]
            exact = self.distances(np.repeat(asked[rows[part]], totals[part]), np.concatenate(columns))
            for (_, a, b), close in zip(ranges, np.split(exact, np.cumsum(totals[part])[:-1]), strict=True):
                these = slice(starts[a], ends[b - 1])
                not_farther[at[these]] = surely[these] + np.sort(close).searchsorted(distances[at[these]], "right")
        return not_farther


def _columns_between(row: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> Rows:
    """The columns of a row whose numbers lie in one of some disjoint, rising ranges, ends included."""
    if len(low) <= _FEW_RANGES:
        return np.flatnonzero(np.logical_or.reduce([(row >= a) & (row <= b) for a, b in zip(low, high, strict=True)]))
    place = np.searchsorted(low, row, "right") - 1
    return np.flatnonzero((place >= 0) & (row <= high[place]))
