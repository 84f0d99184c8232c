"""Exact rankings of a gallery by its vectors, without sorting it and in bounded memory.

A block of queries meets the gallery in one matrix product in double precision. Its rounding is bounded, so an item is
surely nearer than a right answer, surely not, or among the few that are too close to tell; these alone are compared by
their exact distances, which hang on the two vectors and on no place in a block: equal vectors tie wherever they stand.
Counting then gives the measures: no ranking is ever made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Progress
from .distances import Distances, SearchSpec, Vectors, distances_to
from .ranking import RankMeasures, rank_measures

__all__ = ["BLOCK_BYTES", "Pairing", "measure_rankings"]

BLOCK_BYTES = 64 << 20
"""Size of a block of distances; one query is the least."""
_TILE = 4096  # gallery rows that are widened to double precision at a time
_AT_ONCE = 1 << 18  # right answers that are measured together
_COUNT_UP_TO = 32  # right answers up to which counting them one by one is cheaper than sorting the row

Rows = NDArray[np.intp]


class Pairing:
    """Which gallery rows are relevant to a query: those of its label, except the query's own image.

    Args:
        query_labels: a class number for each query, −1 for none.
        gallery_labels: the same for the gallery; an item without a class is relevant to nothing.
        own: the gallery row of each query's own image, −1 where it is not in the gallery.
    """

    def __init__(self, query_labels: Rows, gallery_labels: Rows, own: Rows) -> None:
        self.own = own
        self._order = np.argsort(gallery_labels, kind="stable")
        ordered = gallery_labels[self._order]
        self._start = np.searchsorted(ordered, query_labels, "left")
        self._stop = np.where(query_labels < 0, self._start, np.searchsorted(ordered, query_labels, "right"))

    def relevant(self, query: int) -> Rows:
        """Gallery rows, ascending."""
        rows = self._order[self._start[query] : self._stop[query]]
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
    """Every measure of every query against all gallery rows but its own image.

    The order of rows, of the gallery or of the queries, and the size of blocks do not change a single bit.

    Args:
        queries: (q, d), in `comparable` form.
        gallery: (g, d), in `comparable` form.
        pairing: which rows are relevant, and which is the query's own image.
        spec: the metric.
        block_bytes: memory for a block of distances.
        progress: called with the number of queries done and the number in all.
    """
    scores = _Scores(queries, gallery, spec)
    size = max(1, block_bytes // (8 * max(1, len(gallery))))
    found = [rank_measures([], [], [], n_queries=0)]
    counted: list[tuple[Distances, NDArray[np.int64]]] = []
    for start in range(0, len(queries), size):
        stop, pending = min(start + size, len(queries)), 0
        for query, row in enumerate(scores.block(start, stop), start):
            if pairing.own[query] >= 0:
                row[pairing.own[query]] = np.inf
            counted.append(_not_farther(row, query, pairing.relevant(query), scores))
            pending += len(counted[-1][0])
            if query == stop - 1 or pending > _AT_ONCE:
                found.append(_measured(counted))
                counted, pending = [], 0
        if progress is not None:
            progress(stop, len(queries))
    return RankMeasures(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _measured(counted: list[tuple[Distances, NDArray[np.int64]]]) -> RankMeasures:
    """The measures of some queries from what `_not_farther` says of each."""
    number = np.repeat(np.arange(len(counted)), [len(distances) for distances, _ in counted])
    distances, not_farther = (np.concatenate(part) for part in zip(*counted, strict=True))
    return rank_measures(number, distances, not_farther, n_queries=len(counted))


class _Scores:
    """Numbers that grow with the distance, from matrix products: each within `slack` of its true value."""

    def __init__(self, queries: Vectors, gallery: Vectors, spec: SearchSpec) -> None:
        self.queries, self.gallery, self.spec = queries, gallery, spec
        self._halves = [_half_squares(side) for side in (queries, gallery)]
        # a sum of d products in any order is off by at most about d·eps·|x||y|, and 2|x||y| ≤ (|x| + |y|)²
        lengths = [np.sqrt(2 * halves) for halves in self._halves]
        reach = (lengths[0] + lengths[1].max(initial=0.0)) ** 2
        self.slack = (spec.dim + 16) * float(np.finfo(np.float64).eps) * reach

    def block(self, start: int, stop: int) -> Distances:
        """Scores of some queries against the whole gallery."""
        if self.spec.metric == "l1":
            return np.stack([self.distances(query, slice(None)) for query in range(start, stop)])
        queries = self.queries[start:stop].astype(np.float64)
        scores = np.empty((len(queries), len(self.gallery)))
        for first in range(0, len(self.gallery), _TILE):
            tile = self.gallery[first : first + _TILE].astype(np.float64)
            np.matmul(queries, tile.T, out=scores[:, first : first + _TILE])
        np.negative(scores, out=scores)
        if self.spec.metric != "dot":  # half the squared distance
            scores += self._halves[0][start:stop, None]
            scores += self._halves[1]
        return scores

    def distances(self, query: int, rows: Rows | slice) -> Distances:
        """The exact distances, which depend on no other row."""
        vectors = self.gallery[rows]
        parts = [
            distances_to(self.spec, self.queries[query], vectors[first : first + _TILE])
            for first in range(0, len(vectors), _TILE)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def of(self, distances: Distances) -> Distances:
        """The score that belongs to a distance."""
        return distances**2 / 2 if self.spec.metric == "l2" else distances


def _half_squares(vectors: Vectors) -> Distances:
    squares = np.empty(len(vectors))
    for first in range(0, len(vectors), _TILE):
        part = vectors[first : first + _TILE].astype(np.float64)
        squares[first : first + _TILE] = np.vecdot(part, part) / 2
    return squares


def _not_farther(row: Distances, query: int, relevant: Rows, scores: _Scores) -> tuple[Distances, NDArray[np.int64]]:
    """The distances of the relevant columns of one row of scores, ascending, and how many are not farther than each."""
    if not relevant.size:
        return np.empty(0), np.empty(0, np.int64)
    distances = np.sort(scores.distances(query, relevant))
    wanted = scores.of(distances)
    low, high = wanted - scores.slack[query], wanted + scores.slack[query]
    nearer, not_farther = _count(row, low, high)
    if (not_farther - nearer == 1).all():  # each is alone within its slack
        return distances, not_farther
    # those that some right answer cannot be told from: `low` and `high` are sorted alike
    is_close = np.searchsorted(low, row, "right") != np.searchsorted(high, row, "left")
    close = np.sort(scores.distances(query, np.flatnonzero(is_close)))
    sure, _ = _count(row[~is_close], wanted, wanted)
    return distances, sure + np.searchsorted(close, distances, "right")


def _count(row: Distances, low: Distances, high: Distances) -> tuple[NDArray[Any], NDArray[Any]]:
    """How many numbers of the row are below each of `low`, and how many are not above each of `high`."""
    if len(low) <= _COUNT_UP_TO:
        below = [np.count_nonzero(row < bound) for bound in low]
        not_above = [np.count_nonzero(row <= bound) for bound in high]
        return np.array(below, np.int64), np.array(not_above, np.int64)
    ordered = np.sort(row)
    return np.searchsorted(ordered, low, "left"), np.searchsorted(ordered, high, "right")
