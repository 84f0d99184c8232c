"""Re-identification evaluated in one pass: every measure from the same distances, under one stated protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..datasets.reid_records import Protocol
from ..errors import InputError, ShapeError
from ..metrics.ranking import count_not_farther, expected_single_shot_cmc, rank_measures
from .distances import BLOCK_BYTES, DistanceSource, FeatureDistances, MatrixDistances, Metric, blocks
from .policies import Labels, Matching
from .results import CameraPair, Evaluation, QueryResults
from .verification import PairTally, identification

__all__ = ["evaluate_distances", "evaluate_features"]

FloatArray = NDArray[np.floating[Any]]
FALSE_ACCEPT_RATES = (1e-4, 1e-3, 1e-2, 1e-1)
_SHOT_ELEMENTS = 1 << 22


def evaluate_features(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    *,
    query: Labels,
    gallery: Labels,
    metric: Metric = "cosine",
    protocol: Protocol | None = None,
    max_rank: int = 50,
    false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
    single_gallery_shot: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Evaluation:
    """Every measure of a re-identification system, from its feature vectors.

    Distances exist a block at a time; features are not copied (beyond widening them to float32).

    Args:
        query_features: (queries, dimensions); need not be normalised.
        gallery_features: (gallery images, dimensions).
        query: who is on each query image, and which camera took it.
        gallery: the same for the gallery.
        metric: `"cosine"`, `"l2"`, `"l1"` or `"dot"`.
        protocol: the decisions; default `Protocol()`.
        max_rank: length of the CMC.
        false_accept_rates: targets of TAR@FAR and DIR@FAR; with none, statistics of pairs and probes are left out.
        single_gallery_shot: also the CUHK03-style CMC with one random gallery image per identity, in expectation.
        block_bytes: size of a block of distances.

    Raises:
        InputError: features, labels or options that cannot give a meaningful number (see `Protocol`).
        ShapeError: counts that do not fit.
    """
    source = FeatureDistances(query_features, gallery_features, metric=metric)
    options = _Options(metric, max_rank, tuple(false_accept_rates), single_gallery_shot, block_bytes)
    return _evaluate(source, _match(source, query, gallery, protocol), options)


def evaluate_distances(
    distances: ArrayLike | DistanceSource,
    *,
    query: Labels,
    gallery: Labels,
    metric: str = "as given",
    protocol: Protocol | None = None,
    max_rank: int = 50,
    false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
    single_gallery_shot: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Evaluation:
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
    options = _Options(metric, max_rank, tuple(false_accept_rates), single_gallery_shot, block_bytes)
    return _evaluate(source, _match(source, query, gallery, protocol), options)


@dataclass(frozen=True)
class _Options:
    metric: str
    max_rank: int
    false_accept_rates: tuple[float, ...]
    single_gallery_shot: bool
    block_bytes: int

    def __post_init__(self) -> None:
        if self.max_rank < 1:
            raise InputError(f"max_rank must be at least 1, got {self.max_rank}")
        if self.block_bytes < 1:
            raise InputError(f"block_bytes must be positive, got {self.block_bytes}")
        for rate in self.false_accept_rates:
            if not 0 < rate <= 1:
                raise InputError(f"false_accept_rates must lie in (0, 1], got {rate}")


def _match(source: DistanceSource, query: Labels, gallery: Labels, protocol: Protocol | None) -> Matching:
    for name, labels, number in (("query", query, source.shape[0]), ("gallery", gallery, source.shape[1])):
        if len(labels) != number:
            raise ShapeError(f"{len(labels)} {name} labels for {number} rows of {name} features or distances")
    return Matching.of(query, gallery, protocol=protocol or Protocol())


def _evaluate(source: DistanceSource, matching: Matching, options: _Options) -> Evaluation:
    n_queries = source.shape[0]
    _check_matches(matching, n_queries)
    tally = None
    if options.false_accept_rates:
        bounds = source.bounds or _bounds_of_matches(source, matching)
        tally = PairTally(n_queries * matching.columns.size, bounds=bounds, dtype=source.dtype)
    one_pass = _Pass(matching, n_queries, tally=tally)
    shot = _SingleShot(matching, options.max_rank) if options.single_gallery_shot else None
    for queries, block in blocks(source, block_bytes=options.block_bytes):
        one_pass.add(queries, block.take(matching.columns, axis=1), shot=shot)
    return _result(one_pass, options, shot=shot)


def _check_matches(matching: Matching, n_queries: int) -> None:
    """Refuse what would be an average over nothing, with the usual cause."""
    without = [query for query in range(n_queries) if not matching.relations(query)[0].size]
    if len(without) == n_queries:
        one = "there is only one camera" if len(matching.camera_names) == 1 else "check identities and cameras"
        raise InputError(
            f"none of the {n_queries} queries has a match in the gallery under same_camera="
            f"{matching.protocol.same_camera!r}: {one}; same_camera='keep' lets matches come from the query's camera"
        )
    if without and matching.protocol.no_match == "refuse":
        raise InputError(f"{len(without)} of {n_queries} queries have no match in the gallery, first: {without[0]}")


def _bounds_of_matches(source: DistanceSource, matching: Matching) -> tuple[float, float]:
    """Where thresholds are worth having: outside the matches' distances no more and no fewer of them are accepted."""
    nearest, farthest = np.inf, -np.inf
    for query in range(source.shape[0]):
        matches, _ = matching.relations(query)
        if matches.size:
            distances = source.rows(query, query + 1)[0, matching.columns[matches]]
            nearest, farthest = min(nearest, float(distances.min())), max(farthest, float(distances.max()))
    return nearest, farthest


class _Pass:
    """The one pass over the distances: ranks, counts and tallies each block, and keeps a few numbers per query."""

    def __init__(self, matching: Matching, n_queries: int, *, tally: PairTally | None) -> None:
        self.matching, self.tally = matching, tally
        self.per_query = QueryResults(
            n_matches=np.zeros(n_queries, np.intp),
            first_rank=np.zeros(n_queries, np.intp),
            ap_step=np.zeros(n_queries),
            ap_trapezoid=np.zeros(n_queries),
            inverse_penalty=np.zeros(n_queries),
            match_distance=np.full(n_queries, np.nan),
            wrong_distance=np.full(n_queries, np.nan),
        )
        self.pairs_ignored = 0
        self._n_cameras = len(matching.camera_names)
        self.by_camera: list[tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.float64]]] = []
        # the slice of camera c is at c + 1: the first one holds the images without a camera
        self._slices = [matching.camera_slice(camera) for camera in range(-1, self._n_cameras)]

    def add(self, queries: NDArray[np.intp], rows: FloatArray, *, shot: _SingleShot | None) -> None:
        """Take in some queries; `rows` holds their distances to the columns and is overwritten."""
        relations = [self.matching.relations(query) for query in queries.tolist()]
        genuine = [row[matches] for row, (matches, _) in zip(rows, relations, strict=True)]
        ignored = [row[unseen] for row, (_, unseen) in zip(rows, relations, strict=True)]
        distance = np.concatenate(genuine)
        if self.tally is not None:
            self.tally.add(rows, genuine=distance, ignored=np.concatenate(ignored))
        self.pairs_ignored += sum(map(len, ignored))
        for row, (_, unseen) in zip(rows, relations, strict=True):
            row[unseen] = np.inf  # behind everything that is counted
        matches = [found for found, _ in relations]
        self._rank(queries, rows, matches=matches, distance=distance)
        for row, query, found in zip(rows, queries.tolist(), matches, strict=True):
            if shot is not None and found.size:
                shot.add(row, query, found)
            row[found] = np.inf
        nearest = rows.min(axis=1)
        self.per_query.wrong_distance[queries] = np.where(np.isinf(nearest), np.nan, nearest)

    def _rank(
        self, queries: NDArray[np.intp], rows: FloatArray, *, matches: list[NDArray[np.intp]], distance: FloatArray
    ) -> None:
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
        known = (camera >= 0) & (self.matching.query_camera[queries[at]] >= 0)
        self._rank_by_camera(queries, at[known], camera[known], distance=distance[known], not_farther=own[known])

    def _rank_by_camera(
        self,
        queries: NDArray[np.intp],
        at: NDArray[np.intp],
        camera: NDArray[np.intp],
        *,
        distance: FloatArray,
        not_farther: NDArray[np.intp],
    ) -> None:
        """Each query against one gallery camera at a time: the pair, whether rank 1 is right, and the AP."""
        n_cameras = self._n_cameras
        found = rank_measures(at * n_cameras + camera, distance, not_farther, n_queries=len(queries) * n_cameras)
        group = np.flatnonzero(found.n_relevant)
        query, camera = np.divmod(group, max(1, n_cameras))
        pair = self.matching.query_camera[queries[query]] * n_cameras + camera
        self.by_camera.append((pair, found.first_rank[group] == 1, found.average_precision[group]))


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

    def add(self, row: FloatArray, query: int, matches: NDArray[np.intp]) -> None:
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


def _result(one_pass: _Pass, options: _Options, *, shot: _SingleShot | None) -> Evaluation:
    per_query, matching = one_pass.per_query, one_pass.matching
    protocol = matching.protocol
    mated = per_query.n_matches > 0
    n_mated = int(mated.sum())
    n_scored = mated.size if protocol.no_match == "zero" else n_mated
    first = per_query.first_rank[mated]
    alarms = per_query.wrong_distance[slice(None) if protocol.false_alarms == "left_out" else ~mated]
    return Evaluation(
        protocol=protocol,
        metric=options.metric,
        counts=matching.counts
        | {
            "queries_without_match": mated.size - n_mated,
            "queries_scored": n_scored,
            "pairs_ignored": one_pass.pairs_ignored,
        },
        cmc=np.cumsum(np.bincount(first, minlength=options.max_rank + 1)[1 : options.max_rank + 1]) / n_scored,
        map_step=math.fsum(per_query.ap_step) / n_scored,
        map_trapezoid=math.fsum(per_query.ap_trapezoid) / n_scored,
        minp=math.fsum(per_query.inverse_penalty) / n_scored,
        single_gallery_shot=None if shot is None else shot.cmc(n_scored),
        camera_pairs=_camera_pairs(matching, one_pass.by_camera),
        verification=one_pass.tally.finish(options.false_accept_rates) if one_pass.tally else None,
        identification=None
        if not one_pass.tally
        else identification(
            per_query.match_distance[per_query.first_rank == 1],
            alarms[~np.isnan(alarms)],
            n_mated=n_mated,
            targets=options.false_accept_rates,
        ),
        per_query=per_query,
    )


def _camera_pairs(
    matching: Matching, found: list[tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.float64]]]
) -> tuple[CameraPair, ...]:
    pair, is_first, precision = (np.concatenate(column) for column in zip(*found, strict=True))
    names, pairs = matching.camera_names, []
    for at in np.unique(pair).tolist():
        own, cameras = pair == at, (names[at // len(names)], names[at % len(names)])
        n_queries = int(own.sum())
        rank_1, map_step = int(is_first[own].sum()) / n_queries, math.fsum(precision[own]) / n_queries
        pairs.append(CameraPair(*cameras, n_queries, rank_1, map_step))
    return tuple(pairs)
