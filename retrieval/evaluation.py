"""Vectors evaluated on retrieval: R@k, MAP@R, R-precision, mAP and NMI with their protocol and their errors, exact."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..encoders.trained_on import Overlap
from ..errors import InputError, ShapeError
from ..images.inline import data_frame, fragment
from ..metrics import Metric
from ..metrics.distances import METRICS, SearchSpec, check_vectors, cluster, comparable, normalised_mutual_information
from ..metrics.intervals import bootstrap_means
from ..metrics.ranking import BLOCK_BYTES, TIES, Pairing, RankMeasures, Rows, measure_rankings
from ..progress import Progress

RECALL_AT: Mapping[str, tuple[int, ...]] = {
    "cub": (1, 2, 4, 8),
    "cars": (1, 2, 4, 8),
    "sop": (1, 10, 100, 1000),
    "inshop": (1, 10, 20, 30),
}
"""The k of R@k that papers report on each benchmark; 1, 2, 4, 8 elsewhere."""


@dataclass(frozen=True)
class RetrievalProtocol:
    """The decisions behind an evaluation, printed with every number.

    Attributes:
        metric: which distance ranks.
        recall_at: the k of R@k, ascending.
        clusters: whether to cluster for NMI.
        seed: of the clustering and of the bootstrap.
        resamples: bootstrap resamples behind each standard error.
    """

    metric: Metric = "cosine"
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    clusters: bool = True
    seed: int = 0
    resamples: int = 1000

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(f"expected a metric out of {', '.join(METRICS)}, got {self.metric!r}")
        if not self.recall_at or min(self.recall_at) < 1 or list(self.recall_at) != sorted(set(self.recall_at)):
            raise InputError(f"expected recall_at to be ascending numbers from 1, got {self.recall_at}")
        if self.resamples < 2:
            raise InputError(f"a standard error needs at least 2 resamples, got {self.resamples}")

    def to_dict(self) -> dict[str, Any]:
        """The decisions for JSON, with those that are not options."""
        return {
            **asdict(self),
            "recall_at": list(self.recall_at),
            "own_image": "excluded",
            "ties": TIES,
            "queries_without_relevant_image": "left out",
        }

    def describe(self) -> list[str]:
        """The decisions in words, one line each."""
        clustering = f"k-means (FAISS, 20 iterations, seed {self.seed}) with as many clusters as classes"
        return [
            f"distance {self.metric}, exact; equal distances: {TIES}",
            "a query's own image takes no rank; queries without a relevant image are left out of the means",
            "R@k: a relevant image among the first k; R-precision, MAP@R: up to rank R, the number of relevant images; "
            "mAP: over the whole ranking",
            *([f"NMI: {clustering} over the queries, arithmetic normalisation"] if self.clusters else []),
            f"±: standard errors, {self.resamples} bootstrap resamples of the queries / of the classes",
        ]


@dataclass(frozen=True)
class Score:
    """A measure with its standard errors, all in [0, 1]; None where there is no such error.

    Attributes:
        value: the mean over the queries that have a relevant image.
        query_error: had other images of these classes been asked for.
        class_error: had the classes been others; the one that matters for "unseen classes".
    """

    value: float
    query_error: float | None = None
    class_error: float | None = None


@dataclass(frozen=True)
class Origin:
    """The origin of the vectors.

    Attributes:
        dataset: the data set's title, or a file's or folder's name.
        split: which of its splits, None where there is only one kind.
        encoder: short name, as in "resnet50/ab12cd34".
        fingerprint: of the encoder.
        description: the encoder's settings, with its transform.
        precision: of the encoder's arithmetic, "fp32" or "bf16"; None where the vectors do not say it.
        notes: what else a reader of the numbers must know.
        trained_on: how much of what is measured the encoder was trained on; None where that is not known.
    """

    dataset: str | None = None
    split: str | None = None
    encoder: str | None = None
    fingerprint: str | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    precision: str | None = None
    notes: tuple[str, ...] = ()
    trained_on: Overlap | None = None

    def describe(self) -> list[str]:
        """One line for each thing known."""
        lines = []
        if self.dataset is not None:
            lines.append(f"data: {self.dataset}" + ("" if self.split is None else f", split {self.split}"))
        if self.encoder is not None:
            own = [(name, self.description.get(name)) for name in ("layer", "pooling", "head")]
            lines.append(f"encoder: {self.encoder}" + "".join(f", {name} {_short(told)}" for name, told in own if told))
        if "transform" in self.description:
            lines.append(f"transform: {_short(self.description['transform'])}")
        if self.encoder is not None:
            lines.append(f"precision: {self.precision or 'not known'}")
        if self.trained_on:
            lines.append(f"training: {self.trained_on}")
        return [*lines, *(f"note: {note}" for note in self.notes)]


@dataclass(frozen=True, eq=False, repr=False)
class RetrievalEvaluation:
    """The result of one evaluation, with its protocol; `print` it for a table, `to_dict` it for JSON.

    Attributes:
        scores: by name, such as "R@1", "MAP@R", "R-precision", "mAP", "NMI".
        protocol: the decisions.
        counts: queries, those scored and those left out and why, gallery images, classes.
        origin: data, encoder, transform.
        per_query: the values behind the means, in the order of the queries.
    """

    scores: Mapping[str, Score]
    protocol: RetrievalProtocol
    counts: Mapping[str, int]
    origin: Origin
    per_query: RankMeasures = field(repr=False)

    def __post_init__(self) -> None:
        for values in self.per_query:
            values.flags.writeable = False

    def __getitem__(self, name: str) -> float:
        """The value of a score; KeyError names those that there are."""
        if name not in self.scores:
            raise KeyError(f"no score {name!r}; there are {', '.join(self.scores)}")
        return self.scores[name].value

    def table(self) -> str:
        """A plain-text table in percent with everything that the numbers depend on below it."""
        rows, notes = self._cells()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        return "\n".join([*lines, "", *notes])

    def _cells(self) -> tuple[list[list[str]], list[str]]:
        """Headings and rows of the table as text, and what stands below it."""
        rows = [["", "%", "± queries", "± classes"]]
        for name, score in self.scores.items():
            values = (score.value, score.query_error, score.class_error)
            rows.append([name, *("–" if value is None else f"{100 * value:.2f}" for value in values)])
        counts = self.counts
        gallery = "all others" if counts["gallery_is_queries"] else f"{counts['gallery']:,} images"
        counted = (
            f"{counts['queries_scored']:,} of {counts['queries']:,} queries of {counts['classes']:,} classes against "
            f"{gallery}; left out: {counts['queries_without_relevant']:,} without a relevant image, "
            f"{counts['queries_without_label']:,} without a label"
        )
        return rows, [counted, *self.protocol.describe(), *self.origin.describe()]

    __str__ = table

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {100 * score.value:.2f}" for name, score in self.scores.items())
        return f"Evaluation({scores} %; {self.counts['queries_scored']:,} queries)"

    def _repr_html_(self) -> str:
        """HTML for a notebook: the scores, and all that they depend on."""
        cells, notes = self._cells()
        return fragment(self.origin.dataset or "Evaluation", table=(cells[0], cells[1:]), notes=notes)

    def to_pandas(self, *, per_query: bool = False) -> Any:
        """A DataFrame with a row for each score, or for each query, in the order of the queries.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        scores = [{"score": name, **asdict(score)} for name, score in self.scores.items()]
        return data_frame(self.to_dict(per_query=True)["per_query"] if per_query else scores)

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """Everything for JSON; values per query only on request, None where a query has no relevant image."""
        result = {
            "scores": {name: asdict(score) for name, score in self.scores.items()},
            "counts": dict(self.counts),
            "protocol": self.protocol.to_dict(),
            "origin": asdict(self.origin),
        }
        if per_query:
            is_scored = self.per_query.n_relevant > 0
            result["per_query"] = {
                name: [value if scored else None for value, scored in zip(values.tolist(), is_scored, strict=True)]
                for name, values in self.per_query._asdict().items()
            }
        return result


def _short(value: Any) -> str:
    """Settings on one line."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_short(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(_short, value)) if isinstance(value, list | tuple) else str(value)


_Labels = Sequence[Hashable] | NDArray[Any]


def evaluate_embeddings(
    queries: ArrayLike,
    query_labels: _Labels,
    *,
    gallery: ArrayLike | None = None,
    gallery_labels: _Labels | None = None,
    own: ArrayLike | None = None,
    protocol: RetrievalProtocol | None = None,
    origin: Origin | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
) -> RetrievalEvaluation:
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
    protocol = protocol or RetrievalProtocol()
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
    for name, labels, count in (("query", query_labels, len(asked)), ("gallery", gallery_labels, len(searched))):
        if len(labels) != count:
            raise ShapeError(f"expected one label for each of {count} {name} vectors, got {len(labels)}")
    if rows.shape != (len(asked),):
        raise ShapeError(f"expected own to hold one gallery row for each of {len(asked)} queries, got {rows.shape}")
    if rows.size and not (rows.min() >= -1 and rows.max() < len(searched)):
        span = f"{rows.min()}…{rows.max()}"
        raise InputError(f"expected own to hold rows of the gallery's {len(searched)}, or −1; got {span}")
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
    return RetrievalEvaluation(scores, protocol, counts, origin or Origin(), per_query)


def _codes(query_labels: _Labels, gallery_labels: _Labels) -> tuple[Rows, Rows]:
    """Class numbers of both, the same for equal labels; −1 for None."""
    number: dict[Hashable, int] = {}

    def coded(labels: _Labels) -> Rows:
        given = labels.tolist() if isinstance(labels, np.ndarray) else labels
        return np.array([-1 if label is None else number.setdefault(label, len(number)) for label in given], np.intp)

    return coded(query_labels), coded(gallery_labels)


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


def _scores(per_query: RankMeasures, codes: Rows, protocol: RetrievalProtocol) -> dict[str, Score]:
    is_scored = per_query.n_relevant > 0
    columns = {f"R@{k}": (per_query.first_rank <= k).astype(np.float64) for k in protocol.recall_at}
    columns |= {
        "MAP@R": per_query.map_at_r,
        "R-precision": per_query.r_precision,
        "mAP": per_query.average_precision,
    }
    values = np.column_stack([column[is_scored] for column in columns.values()])
    groups = (np.arange(len(values)), codes[is_scored])
    errors: list[list[float | None]] = [[None] * len(columns)] * 2
    for place, own in enumerate(groups):
        if len(np.unique(own)) > 1:
            resampled = bootstrap_means(values, own, samples=protocol.resamples, seed=protocol.seed)
            errors[place] = resampled.std(axis=0, ddof=1).tolist()
    means = [math.fsum(column) / len(values) for column in values.T.tolist()]  # the same in every order of the queries
    return {name: Score(*found) for name, *found in zip(columns, means, *errors, strict=True)}
