"""Vectors evaluated on retrieval: R@k, MAP@R, R-precision, mAP and NMI, exact, in memory bounded by a block."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, ShapeError
from ..metrics.distances import SearchSpec, check_vectors, cluster, comparable, normalised_mutual_information
from ..metrics.intervals import bootstrap_means
from ..metrics.ranking import BLOCK_BYTES, Pairing, RankMeasures, Rows, measure_rankings
from ..progress import Progress
from .results import Evaluation, Origin, Protocol, Score

_Labels = Sequence[Hashable] | NDArray[Any]


def evaluate_embeddings(
    queries: ArrayLike,
    query_labels: _Labels,
    *,
    gallery: ArrayLike | None = None,
    gallery_labels: _Labels | None = None,
    own: ArrayLike | None = None,
    protocol: Protocol | None = None,
    origin: Origin | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
) -> Evaluation:
    """Every measure, from vectors.

    Args:
        queries: (q, d), raw; the metric is applied here.
        query_labels: of each query; None for none.
        gallery: (g, d); left out, every query searches all other queries.
        gallery_labels: of each gallery image; an image without a label is relevant to no query.
        own: the gallery row of each query's own image, −1 where it is not in the gallery; default nowhere.
        protocol: the decisions.
        origin: where the vectors come from, for the report.
        block_bytes: memory for a block of distances.
        progress: called with the number of queries done and the number in all.

    Raises:
        InputError: no query has a relevant image; vectors that are not finite, or zero with the cosine.
        ShapeError: counts that do not fit.

    >>> vectors, protocol = [[1, 0], [2, 1], [0, 1], [1, 3]], Protocol(clusters=False)
    >>> result = evaluate_embeddings(vectors, ["a", "a", "b", "b"], protocol=protocol)
    >>> result["R@1"], result["MAP@R"]
    (1.0, 1.0)
    """
    protocol = protocol or Protocol()
    array = np.asarray(queries)
    spec = SearchSpec(array.shape[-1] if array.ndim == 2 else 1, protocol.metric)
    asked = comparable(spec, *check_vectors(spec, array, what="queries"))
    if gallery is None:
        if gallery_labels is not None or own is not None:
            raise InputError("gallery_labels and own belong to a gallery; give one, or leave them out")
        searched, gallery_labels, rows = asked, query_labels, np.arange(len(asked))
    else:
        searched = comparable(spec, *check_vectors(spec, gallery, what="gallery vectors"))
        rows = np.full(len(asked), -1) if own is None else np.asarray(own, np.intp)
    if gallery_labels is None:
        raise InputError("expected gallery_labels with the gallery")
    _check_counts(len(asked), len(searched), query_labels, gallery_labels, rows)
    codes, gallery_codes = _codes(query_labels, gallery_labels)
    pairing = Pairing(codes, gallery_codes, rows)
    per_query = measure_rankings(asked, searched, pairing, spec=spec, block_bytes=block_bytes, progress=progress)
    counts = _counts(per_query, codes, gallery_codes) | {"gallery_is_queries": int(gallery is None)}
    if not counts["queries_scored"]:
        raise InputError(
            f"none of {len(asked)} queries has another image of its class to be found; check labels, split, and roles"
        )
    scores = _scores(per_query, codes, protocol)
    if protocol.clusters:
        known = codes[codes >= 0]
        clusters = cluster(asked[codes >= 0], len(np.unique(known)), seed=protocol.seed)
        scores["NMI"] = Score(normalised_mutual_information(known, clusters))
    return Evaluation(scores, protocol, counts, origin or Origin(), per_query)


def _check_counts(
    n_queries: int, n_gallery: int, query_labels: _Labels, gallery_labels: _Labels, own: NDArray[np.intp]
) -> None:
    for name, labels, number in (("query", query_labels, n_queries), ("gallery", gallery_labels, n_gallery)):
        if len(labels) != number:
            raise ShapeError(f"expected one label for each of {number} {name} vectors, got {len(labels)}")
    if own.shape != (n_queries,):
        raise ShapeError(f"expected own to hold one gallery row for each of {n_queries} queries, got {own.shape}")
    if own.size and not (own.min() >= -1 and own.max() < n_gallery):
        raise InputError(f"expected own to hold rows of the gallery's {n_gallery}, or −1; got {own.min()}…{own.max()}")


def _codes(query_labels: _Labels, gallery_labels: _Labels) -> tuple[Rows, Rows]:
    """Class numbers of both, the same for equal labels; −1 for None."""
    number: dict[Hashable, int] = {}
    sides = [labels.tolist() if isinstance(labels, np.ndarray) else labels for labels in (query_labels, gallery_labels)]
    coded = [
        np.array([-1 if label is None else number.setdefault(label, len(number)) for label in side], np.intp)
        for side in sides
    ]
    return coded[0], coded[1]


def _counts(per_query: RankMeasures, codes: Rows, gallery_codes: Rows) -> dict[str, int]:
    has_label, is_scored = codes >= 0, per_query.n_relevant > 0
    return {
        "queries": len(codes),
        "queries_scored": int(is_scored.sum()),
        "queries_without_relevant": int((has_label & ~is_scored).sum()),
        "queries_without_label": int((~has_label).sum()),
        "classes": len(np.unique(codes[is_scored])),
        "gallery": len(gallery_codes),
        "gallery_without_label": int((gallery_codes < 0).sum()),
        "largest_class": int(per_query.n_relevant.max(initial=0)),
    }


def _scores(per_query: RankMeasures, codes: Rows, protocol: Protocol) -> dict[str, Score]:
    is_scored = per_query.n_relevant > 0
    columns = {f"R@{k}": (per_query.first_rank <= k).astype(np.float64) for k in protocol.recall_at}
    columns |= {
        "MAP@R": per_query.map_at_r,
        "R-precision": per_query.r_precision,
        "mAP": per_query.average_precision,
    }
    values = np.column_stack([column[is_scored] for column in columns.values()])
    groups = (np.arange(len(values)), codes[is_scored])
    errors = [
        bootstrap_means(values, own, samples=protocol.resamples, seed=protocol.seed).std(axis=0, ddof=1)
        if len(np.unique(own)) > 1
        else np.full(len(columns), np.nan)
        for own in groups
    ]
    means = [math.fsum(column) / len(values) for column in values.T.tolist()]  # the same in every order of the queries
    found = zip(columns, means, *errors, strict=True)
    return {name: Score(mean, _known(query), _known(of_class)) for name, mean, query, of_class in found}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
