"""Search without an index: every stored vector is read once, in single precision, and the nearest are compared exactly.

One such search is many times cheaper than making the index that would answer it; so are the first few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..forking import unforked
from ..metrics.distances import Distances, SearchSpec, Vectors, check_vectors, comparable, lengths_of, together
from .search import Ids, Proposal, Rows, VectorSource

_BLOCK_BYTES = 2 << 20  # stays in the processor's cache
_SQUARES = 1e-20, 1e30  # squared lengths between which single precision is what it seems
_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Scan:
    """The `Engine` of one search among the vectors `ids` that `source` reads; l1 takes one thread, and long."""

    spec: SearchSpec
    ids: Ids
    source: VectorSource

    @property
    def reach(self) -> int:
        """Beyond an eighth of everything, sorting candidates costs more than reading on."""
        return max(len(self.ids) // 8, 1024)

    def everything(self) -> Iterator[tuple[Ids, Vectors]]:
        """All that may be an answer, in batches that fit the processor's cache."""
        for ids, vectors in self._read():
            yield ids, comparable(self.spec, *check_vectors(self.spec, vectors))

    def propose(self, queries: Vectors, k: int, n: int, /) -> Iterator[Proposal]:
        """Of the n candidates for each query, those that may be among its k nearest as far as their scores can tell."""
        nothing = Proposal(self.ids[:0], queries[:0], -np.inf if len(self.ids) else np.inf)
        if not len(self.ids):
            yield from (nothing for _ in queries)
            return
        n = min(n, len(self.ids))
        best, places, radius = self._nearest(queries, n)
        # a sum of d products in any order is off by at most about d·u·|x||y|, and so are the squared lengths
        reach = best.max(axis=1) if self.spec.metric == "l1" else (lengths_of(queries) + radius) ** 2
        slack = (self.spec.dim + 16) * _UNIT_ROUNDOFF * reach + 1e-30
        if slack.max() > 1e30:  # of lengths that single precision cannot square, nothing is known
            yield from (nothing for _ in queries)
            return
        kth = np.partition(best, min(k, n) - 1, axis=1)[:, min(k, n) - 1]
        is_near = best <= (kth + 2 * slack)[:, None]
        floors = best.max(axis=1) - slack if n < len(self.ids) else np.full(len(queries), np.inf)
        if self.spec.metric == "cosine":
            floors += 1
        elif self.spec.metric == "l2":
            floors = np.sqrt(np.maximum(2 * floors + lengths_of(queries) ** 2, 0))
        counts, rows = np.count_nonzero(is_near, axis=1), places[is_near]
        for part, some in together(counts):
            ids = self.ids[rows[some]]
            vectors = self.source(ids) if len(ids) else queries[:0]
            yield Proposal(ids, comparable(self.spec, vectors), floors[part], counts[part])

    def _read(self) -> Iterator[tuple[Ids, Vectors]]:
        step = max(1, _BLOCK_BYTES // (4 * self.spec.dim))
        for start in range(0, len(self.ids), step):
            ids = self.ids[start : start + step]
            yield ids, self.source(ids)

    @np.errstate(over="ignore", invalid="ignore")
    def _nearest(self, queries: Vectors, n: int) -> tuple[Distances, Rows, float]:
        """Scores of about the n nearest to each query, their places in `ids`, (q, n) each, and the largest length."""
        best = np.full((len(queries), n), np.inf, np.float32)
        places = np.zeros((len(queries), n), np.int64)
        towards, start, radius = -queries, 0, 1.0
        for _, vectors in self._read():
            squares = np.vecdot(vectors, vectors)
            if not (squares.min() > _SQUARES[0] and squares.max() < _SQUARES[1]):  # no number, no direction, or far out
                vectors = comparable(self.spec, *check_vectors(self.spec, vectors))
                squares = np.vecdot(vectors, vectors)
            if self.spec.metric == "l1":
                from scipy.spatial.distance import cdist  # its import takes a tenth of a second

                scores = cdist(queries, vectors, "cityblock")
            else:
                with unforked:
                    scores = towards @ vectors.T  # they grow with the distance
            if self.spec.metric == "cosine":
                scores /= np.sqrt(squares)
            else:
                radius = max(radius, float(squares.max()) ** 0.5)
            if self.spec.metric == "l2":
                scores += squares / 2
            both = np.concatenate([best, scores], axis=1)
            nearest = np.argpartition(both, n - 1, axis=1)[:, :n]
            best = np.take_along_axis(both, nearest, axis=1)
            older = np.take_along_axis(places, np.minimum(nearest, n - 1), axis=1)
            places = np.where(nearest < n, older, nearest - n + start)
            start += len(vectors)
        return best.astype(np.float64), places, radius
