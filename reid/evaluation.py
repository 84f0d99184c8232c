"""Re-identification evaluated in one pass: every measure from the same distances, under one stated protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..datasets.reid_records import ReidProtocol
from ..errors import InputError, ShapeError
from ..metrics import Metric
from ..metrics.ranking import count_not_farther, expected_single_shot_cmc, rank_measures
from .distances import BLOCK_BYTES, DistanceSource, FeatureDistances, Floats, MatrixDistances, blocks
from .policies import Labels, Matching
from .results import CameraPair, QueryResults, ReidEvaluation
from .verification import PairTally, identification

FALSE_ACCEPT_RATES = (1e-4, 1e-3, 1e-2, 1e-1)
_SHOT_ELEMENTS = 1 << 22


def evaluate_features(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    *,
    query: Labels,
    gallery: Labels,
    metric: Metric = "cosine",
    protocol: ReidProtocol | None = None,
    max_rank: int = 50,
    false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
    single_gallery_shot: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> ReidEvaluation:
    """Every measure of a re-identification system, from its feature vectors.

    Distances exist a block at a time; features are not copied (beyond widening them to float32).

    Args:
        query_features: (queries, dimensions); need not be normalised.
        gallery_features: (gallery images, dimensions).
        query: who is on each query image, and which camera took it.
        gallery: the same for the gallery.
        metric: `"cosine"`, `"l2"`, `"l1"` or `"dot"`.
        protocol: the decisions; default `ReidProtocol()`.
        max_rank: length of the CMC.
        false_accept_rates: targets of TAR@FAR and DIR@FAR; with none, statistics of pairs and probes are left out.
        single_gallery_shot: also the CUHK03-style CMC with one random gallery image per identity, in expectation.
        block_bytes: size of a block of distances.

    Raises:
        InputError: features, labels or options that cannot give a meaningful number (see `ReidProtocol`).
        ShapeError: counts that do not fit.
    """
    return evaluate_distances(
        FeatureDistances(query_features, gallery_features, metric=metric),
        query=query,
        gallery=gallery,
        metric=metric,
        protocol=protocol,
        max_rank=max_rank,
        false_accept_rates=false_accept_rates,
        single_gallery_shot=single_gallery_shot,
        block_bytes=block_bytes,
    )


def evaluate_distances(
    distances: ArrayLike | DistanceSource,
    *,
    query: Labels,
    gallery: Labels,
    metric: str = "as given",
    protocol: ReidProtocol | None = None,
    max_rank: int = 50,
    false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
    single_gallery_shot: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> ReidEvaluation:
    """Every measure of a re-identification system, from a (queries × gallery) table of distances, smaller is nearer.

    Or from a source of rows, such as a `Reranking`. The table may be memory-mapped: it is read in blocks (and its
    matches once before, to see how far they reach). `metric` is only a name for the report; all else is as in
    `evaluate_features`.

    >>> result = evaluate_distances(
    ...     [[0.1, 0.2, 0.3, 0.4, 0.5]],
    ...     query=Labels([1], cameras=[0]),
    ...     gallery=Labels([9, 1, 1, 8, 1], cameras=[1, 1, 2, 1, 3]),
    ... )
    >>> result.rank(1), result.rank(2), round(result.map_step, 6), round(result.map_trapezoid, 6), result.minp
    (0.0, 1.0, 0.588889, 0.461111, 0.6)
    """
    source = distances if isinstance(distances, DistanceSource) else MatrixDistances(distances)
    if max_rank < 1:
        raise InputError(f"max_rank must be at least 1, got {max_rank}")
    if block_bytes < 1:
        raise InputError(f"block_bytes must be positive, got {block_bytes}")
    for rate in false_accept_rates:
        if not 0 < rate <= 1:
            raise InputError(f"false_accept_rates must lie in (0, 1], got {rate}")
    for name, labels, number in (("query", query, source.shape[0]), ("gallery", gallery, source.shape[1])):
        if len(labels) != number:
            raise ShapeError(f"{len(labels)} {name} labels for {number} rows of {name} features or distances")
    matching = Matching(query, gallery, protocol=protocol or ReidProtocol())
    without = [number for number in range(len(query)) if not matching.relations(number)[0].size]
    if len(without) == len(query):
        one = "there is only one camera" if len(matching.camera_names) == 1 else "check identities and cameras"
        raise InputError(
            f"none of the {len(query)} queries has a match in the gallery under same_camera="
            f"{matching.protocol.same_camera!r}: {one}; same_camera='keep' lets matches come from the query's camera"
        )
    if without and matching.protocol.no_match == "refuse":
        raise InputError(f"{len(without)} of {len(query)} queries have no match in the gallery, first: {without[0]}")
    tally = None
    if false_accept_rates:
        bounds = source.bounds
        if bounds is None:  # a threshold outside of the range of the matches' distances accepts all of them, or none
            rows = (source.rows(at, at + 1)[0, matching.columns[matching.relations(at)[0]]] for at in range(len(query)))
            ends = [(float(row.min()), float(row.max())) for row in rows if row.size]
            bounds = min(low for low, _ in ends), max(high for _, high in ends)
        tally = PairTally(len(query) * matching.columns.size, bounds=bounds, dtype=source.dtype)
    shot = _SingleShot(matching, max_rank) if single_gallery_shot else None
    one_pass = _Pass(matching, len(query), tally=tally, shot=shot)
    for queries, block in blocks(source, block_bytes=block_bytes):
        one_pass.add(queries, block.take(matching.columns, axis=1))
    return one_pass.result(metric, max_rank=max_rank, targets=tuple(false_accept_rates))


class _Pass:
    """The one pass over the distances: ranks, counts and tallies each block, and keeps a few numbers per query."""

    def __init__(self, matching: Matching, count: int, *, tally: PairTally | None, shot: _SingleShot | None) -> None:
        self.matching, self.tally, self.shot = matching, tally, shot
        self.per_query = QueryResults(  # counts and ranks, means, distances
            *np.zeros((2, count), np.intp), *np.zeros((3, count)), *np.full((2, count), np.nan)
        )
        self.pairs_ignored = 0
        self._n_cameras = len(matching.camera_names)
        self.by_camera: list[tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.float64]]] = []
        # the columns of camera c are at c + 1: the first slice holds the images without a camera
        edges = np.searchsorted(matching.gallery_camera, range(-1, self._n_cameras + 1)).tolist()
        self._slices = [slice(*ends) for ends in pairwise(edges)]

    def add(self, queries: NDArray[np.intp], rows: Floats) -> None:
        """Take in some queries; `rows` holds their distances to the columns and is overwritten."""
        relations = [self.matching.relations(query) for query in queries.tolist()]
        matches = [found for found, _ in relations]
        distance = np.concatenate([row[found] for row, found in zip(rows, matches, strict=True)])
        ignored = np.concatenate([row[unseen] for row, (_, unseen) in zip(rows, relations, strict=True)])
        if self.tally is not None:
            self.tally.add(rows, genuine=distance, ignored=ignored)
        self.pairs_ignored += ignored.size
        for row, (_, unseen) in zip(rows, relations, strict=True):
            row[unseen] = np.inf  # behind everything that is counted
        at = np.repeat(np.arange(len(rows)), [found.size for found in matches])
        camera = self.matching.gallery_camera[np.concatenate(matches)]
        counted = [
            count_not_farther(row, row[found], [self._slices[c + 1] for c in self.matching.gallery_camera[found]])
            for row, found in zip(rows, matches, strict=True)
        ]
        whole, own = (np.concatenate(counts) for counts in zip(*counted, strict=True))
        found, table = rank_measures(at, distance, whole, n_queries=len(rows)), self.per_query
        table.n_matches[queries], table.first_rank[queries] = found.n_relevant, found.first_rank
        table.ap_step[queries] = np.nan_to_num(found.average_precision)
        table.ap_trapezoid[queries] = np.nan_to_num(found.ap_trapezoid)
        table.inverse_penalty[queries] = np.nan_to_num(found.inverse_penalty)
        np.fmin.at(table.match_distance, queries[at], distance)
        # each query against one gallery camera at a time
        known, n_cameras = (camera >= 0) & (self.matching.query_camera[queries[at]] >= 0), self._n_cameras
        group = at[known] * n_cameras + camera[known]
        found = rank_measures(group, distance[known], own[known], n_queries=len(queries) * n_cameras)
        ranked = np.flatnonzero(found.n_relevant)
        query, camera = np.divmod(ranked, max(1, n_cameras))
        pair = self.matching.query_camera[queries[query]] * n_cameras + camera
        self.by_camera.append((pair, found.first_rank[ranked] == 1, found.average_precision[ranked]))
        for row, number, own_matches in zip(rows, queries.tolist(), matches, strict=True):
            if self.shot is not None and own_matches.size:
                self.shot.add(row, number, own_matches)
            row[own_matches] = np.inf
        nearest = rows.min(axis=1)
        table.wrong_distance[queries] = np.where(np.isinf(nearest), np.nan, nearest)

    def result(self, metric: str, *, max_rank: int, targets: tuple[float, ...]) -> ReidEvaluation:
        """The means of everything taken in."""
        per_query, protocol = self.per_query, self.matching.protocol
        mated = per_query.n_matches > 0
        n_mated = int(mated.sum())
        n_scored = mated.size if protocol.no_match == "zero" else n_mated
        first = np.bincount(per_query.first_rank[mated], minlength=max_rank + 1)
        alarms = per_query.wrong_distance[slice(None) if protocol.false_alarms == "left_out" else ~mated]
        counts = {
            "queries_without_match": mated.size - n_mated,
            "queries_scored": n_scored,
            "pairs_ignored": self.pairs_ignored,
        }
        identified = per_query.match_distance[per_query.first_rank == 1]
        pair, is_first, precision = (np.concatenate(column) for column in zip(*self.by_camera, strict=True))
        names, pairs = self.matching.camera_names, []
        for at in np.unique(pair).tolist():
            own, cameras = pair == at, (names[at // len(names)], names[at % len(names)])
            n_queries = int(own.sum())
            rank_1, map_step = int(is_first[own].sum()) / n_queries, math.fsum(precision[own]) / n_queries
            pairs.append(CameraPair(*cameras, n_queries, rank_1, map_step))
        return ReidEvaluation(
            protocol=protocol,
            metric=metric,
            counts=self.matching.counts | counts,
            cmc=np.cumsum(first[1 : max_rank + 1]) / n_scored,
            map_step=math.fsum(per_query.ap_step) / n_scored,
            map_trapezoid=math.fsum(per_query.ap_trapezoid) / n_scored,
            minp=math.fsum(per_query.inverse_penalty) / n_scored,
            single_gallery_shot=None if self.shot is None else self.shot.cmc(n_scored),
            camera_pairs=tuple(pairs),
            verification=self.tally.finish(targets) if self.tally else None,
            identification=identification(identified, alarms[~np.isnan(alarms)], n_mated=n_mated, targets=targets)
            if self.tally
            else None,
            per_query=per_query,
        )


class _SingleShot:
    """Expected single-gallery-shot CMC, collected query by query; a distractor image is an identity of its own."""

    def __init__(self, matching: Matching, n_ranks: int) -> None:
        identity = matching.gallery_identity.copy()
        alone = np.flatnonzero(matching.is_distractor)
        identity[alone] = identity.max() + 1 + np.arange(alone.size)
        self._order = np.argsort(identity, kind="stable")
        self._starts = np.flatnonzero(np.diff(identity[self._order], prepend=-1))
        self._n_ranks = n_ranks
        self._waiting: list[NDArray[np.float64]] = []
        self._of_query: list[int] = []
        self._sums: dict[int, tuple[NDArray[np.float64], int]] = {}

    def add(self, row: Floats, query: int, matches: NDArray[np.intp]) -> None:
        """Take in one query; gallery images that it must not meet are infinitely far."""
        present = np.isfinite(row)
        present[matches] = False
        present = present[self._order]
        number = np.maximum(np.add.reduceat(present, self._starts, dtype=np.int64), 1)
        ordered = row[self._order]
        for distance in row[matches]:
            nearer = np.add.reduceat(present & (ordered <= distance), self._starts, dtype=np.int64)
            self._waiting.append(nearer / number)
            self._of_query.append(query)
            if len(self._waiting) * self._starts.size >= _SHOT_ELEMENTS:
                self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        chances = expected_single_shot_cmc(np.array(self._waiting), n_ranks=self._n_ranks)
        for query, chance in zip(self._of_query, chances, strict=True):
            total, number = self._sums.get(query, (np.zeros(self._n_ranks), 0))
            self._sums[query] = total + chance, number + 1
        self._waiting, self._of_query = [], []

    def cmc(self, n_queries: int) -> NDArray[np.float64]:
        """Mean over the queries' mean over their matches."""
        self._flush()
        expected = [total / number for total, number in self._sums.values()]
        return np.asarray(np.sum(expected, axis=0) / n_queries, np.float64)
