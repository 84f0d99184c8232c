"""A data set and its features, assessed under a stated protocol, with each mistake and what re-ranking mended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from ..datasets.reid_records import ReidData, ReidImage, ReidProtocol
from ..encoders.trained_on import Overlap
from ..errors import InputError
from ..metrics import Metric
from .distances import DistanceSource, FeatureDistances, Floats
from .evaluation import FALSE_ACCEPT_RATES, evaluate_distances
from .features import Features
from .line_verification import VerifiedDistances
from .policies import Flags, Matching, labels_of, remark_on_placeholders
from .refinement import Refinement, refined
from .reranking import Reranking, rerank_features
from .results import ReidEvaluation

Shared = tuple[tuple[ReidImage, float], ...]


@dataclass(frozen=True)
class Answer:
    """One gallery image as the answer to a query.

    Attributes:
        rank: among all that count, from 1; wrong answers come first where distances tie.
        distance: what was ranked by.
        shared: after re-ranking, the images that query and answer have in common as neighbours, and each one's part of
            the overlap, summing to 1; empty without overlap or re-ranking.
    """

    image: ReidImage
    rank: int
    distance: float
    shared: Shared = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        shared = [{"path": image.path, "share": share} for image, share in self.shared[:5]]
        return {**_named(self.image), "rank": self.rank, "distance": self.distance, "shared_neighbours": shared}


@dataclass(frozen=True)
class FailedQuery:
    """A query that is not answered perfectly.

    Attributes:
        average_precision: step AP.
        n_matches: right answers in the gallery.
        wrong: the first wrong answer; None if there is none.
        right: the first right one.
        causes: what the labels say about the wrong answer, in words.
    """

    query: ReidImage
    average_precision: float
    n_matches: int
    wrong: Answer | None
    right: Answer
    causes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        answers = {"wrong": None if self.wrong is None else self.wrong.to_dict(), "right": self.right.to_dict()}
        numbers = {"average_precision": self.average_precision, "n_matches": self.n_matches}
        return {"query": _named(self.query), **numbers, **answers, "causes": list(self.causes)}


@dataclass(frozen=True)
class Promotion:
    """A right answer that re-ranking brought up, and the shared neighbours that did it (see `Answer.shared`)."""

    query: ReidImage
    match: ReidImage
    rank_before: int
    rank_after: int
    shared: Shared

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        ranks = {"rank_before": self.rank_before, "rank_after": self.rank_after}
        shared = [{"path": image.path, "share": share} for image, share in self.shared]
        return {"query": _named(self.query), "match": _named(self.match), **ranks, "shared_neighbours": shared}


def _named(image: ReidImage) -> dict[str, Any]:
    return {"path": image.path, "identity": image.identity, "camera": image.camera}


@dataclass(frozen=True, eq=False)
class Assessment:
    """An evaluation together with the images it is about; `print` it, `to_dict` it, or `write_report` it.

    Attributes:
        queries: the images that asked.
        gallery: the images that answered, without what the protocol ignores.
        evaluation: every measure.
        before: the same without re-ranking; None if nothing was re-ranked.
        refinement: what was done before.
        about: what made the features.
    """

    data: ReidData
    queries: tuple[ReidImage, ...]
    gallery: tuple[ReidImage, ...]
    evaluation: ReidEvaluation
    before: ReidEvaluation | None
    refinement: Refinement
    about: dict[str, Any]
    _source: DistanceSource = field(repr=False)
    _not_reranked: DistanceSource = field(repr=False)

    @property
    def reranking(self) -> Reranking | None:
        """The re-ranked distances, which can explain themselves."""
        return self._source if isinstance(self._source, Reranking) else None

    def failures(self, n: int = 20) -> tuple[FailedQuery, ...]:
        """The queries with the lowest average precision below 1, worst first; those without a match are no failures."""
        per_query = self.evaluation.per_query
        mated = np.flatnonzero((per_query.n_matches > 0) & (per_query.ap_step < 1))
        worst = mated[np.argsort(per_query.ap_step[mated], kind="stable")][:n]
        return tuple(self._failure(int(query)) for query in worst)

    def promotions(self, n: int = 20) -> tuple[Promotion, ...]:
        """Queries whose first match gained most ranks by re-ranking, and which shared neighbours brought it up."""
        if self.before is None or self.reranking is None:
            return ()
        gain = self.before.per_query.first_rank - self.evaluation.per_query.first_rank
        risen = np.flatnonzero(gain > 0)
        best = risen[np.argsort(-gain[risen], kind="stable")][:n]
        found = []
        for query in best.tolist():
            distance, right, wrong = self._answers(query, self._source)
            place = _nearest(distance, right)
            before = self._answers(query, self._not_reranked)[0]
            ranks = [_rank_of(place, table, right, wrong, is_right=True) for table in (before, distance)]
            shared = self._shared(query, place, self.reranking)
            found.append(Promotion(self.queries[query], self.gallery[place], ranks[0], ranks[1], shared))
        return tuple(found)

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        result = {
            "data": {"format": self.data.format, "root": str(self.data.root), "notes": list(self.data.notes)},
            "features": self.about,
            "refinement": self.refinement.describe(),
            **self.evaluation.to_dict(per_query=per_query),
        }
        if per_query:
            result["query_paths"] = [image.path for image in self.queries]
        if self.before is not None:
            names = ("map_step", "map_trapezoid", "minp")
            plain = {name: getattr(self.before, name) for name in names} | {"rank_1": self.before.rank(1)}
            result["before_reranking"] = plain
            result["promotions"] = [promotion.to_dict() for promotion in self.promotions()]
        result["failures"] = [failure.to_dict() for failure in self.failures()]
        return result

    def __str__(self) -> str:
        """The evaluation's table, what the features are, and what was done to them."""
        lines = [str(self.evaluation), *self.refinement.describe()]
        if left_out := self.evaluation.counts["queries_left_out"]:
            lines.append(f"left out: {left_out:,} queries that are junk or distractors by the protocol")
        if self.before is not None:
            rank_1, precision = 100 * self.before.rank(1), 100 * self.before.map_step
            lines.append(f"before re-ranking: rank-1 {rank_1:.2f}, mAP (step) {precision:.2f}")
        lines += [f"{name}: {value}" for name, value in self.about.items() if name not in ("fingerprint", "trained_on")]
        if overlap := Overlap.from_dict(self.about.get("trained_on")):
            lines.append(f"training: {overlap}")
        return "\n".join([*lines, f"data: {self.data.format}, {self.data.root}", *self.data.notes])

    @cached_property
    def _matching(self) -> Matching:
        return Matching(labels_of(self.queries), labels_of(self.gallery), protocol=self.evaluation.protocol)

    def _answers(self, query: int, source: DistanceSource) -> tuple[Floats, Flags, Flags]:
        """Distances of a query to the gallery, which of them are right, and which are wrong; others do not count."""
        matches, ignored = self._matching.relations(query)
        right = np.zeros(len(self.gallery), np.bool_)
        right[self._matching.columns[matches]] = True
        wrong = np.zeros(len(self.gallery), np.bool_)
        wrong[self._matching.columns] = True
        wrong[self._matching.columns[ignored]] = False
        return source.rows(query, query + 1)[0], right, wrong & ~right

    def _answer(self, query: int, place: int, *, is_right: bool) -> Answer:
        distance, right, wrong = self._answers(query, self._source)
        shared = () if self.reranking is None else self._shared(query, place, self.reranking)
        rank = _rank_of(place, distance, right, wrong, is_right=is_right)
        return Answer(self.gallery[place], rank, float(distance[place]), shared)

    def _failure(self, query: int) -> FailedQuery:
        distance, right, wrong = self._answers(query, self._source)
        n_matches, image = int(right.sum()), self.queries[query]
        first_wrong = self._answer(query, _nearest(distance, wrong), is_right=False) if wrong.any() else None
        causes = []
        taken = None if first_wrong is None else first_wrong.image
        if taken is not None and taken.camera == image.camera is not None:
            causes.append("the wrong answer is from the query's camera")
        if taken is not None and str(taken.identity) in map(str, self.evaluation.protocol.distractors):
            causes.append("the wrong answer is a distractor")
        if n_matches == 1:
            causes.append("there is one match only")
        first_right = self._answer(query, _nearest(distance, right), is_right=True)
        precision = float(self.evaluation.per_query.ap_step[query])
        return FailedQuery(image, precision, n_matches, first_wrong, first_right, tuple(causes))

    def _shared(self, query: int, place: int, reranking: Reranking) -> Shared:
        found = reranking.shared_neighbours(query, place)
        images = (*self.queries, *self.gallery)
        shares: dict[str, float] = {}  # an image that asks and answers is one neighbour, not two
        for i, share in zip(found.index, found.share, strict=True):
            shares[images[i].path] = shares.get(images[i].path, 0.0) + float(share)
        named = {images[i].path: images[i] for i in found.index}
        return tuple((named[path], share) for path, share in sorted(shares.items(), key=lambda item: -item[1]))


def _nearest(distance: Floats, allowed: Flags) -> int:
    return int(np.flatnonzero(allowed)[np.argmin(distance[allowed])])


def _rank_of(place: int, distance: Floats, right: Flags, wrong: Flags, *, is_right: bool) -> int:
    """Among everything that counts; where distances tie, wrong answers come first."""
    nearer = distance < distance[place]
    if is_right:
        return int(1 + (nearer & right).sum() + ((distance <= distance[place]) & wrong).sum())
    return int(1 + (nearer & (right | wrong)).sum())


def assess(
    data: ReidData,
    features: Features,
    *,
    metric: Metric = "cosine",
    protocol: ReidProtocol | None = None,
    refinement: Refinement | None = None,
    max_rank: int = 50,
    false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
    single_gallery_shot: bool = False,
    device: str | None = None,
    verified: Callable[..., VerifiedDistances] | None = None,
) -> Assessment:
    """Evaluate a data set's queries against its gallery.

    What the protocol ignores (junk) leaves the gallery first, so that it plays no part in statistics, expansion or
    neighbourhoods either. Queries that are junk or distractors by the protocol ask for nobody; they are left out and
    counted (`queries_left_out`), and so are images that could not be read. Identities that look like placeholders, such
    as `unknown`, are remarked on.

    Args:
        data: which images, and who is on them.
        features: their vectors.
        metric: how vectors are compared. Multi-query and expansion make unit vectors of both sides.
        protocol: the decisions; the data set's own if left out.
        refinement: what is done before, if anything.
        max_rank: length of the CMC.
        false_accept_rates: targets of TAR@FAR and DIR@FAR.
        single_gallery_shot: also the CMC with one gallery image per identity, in expectation.
        device: where re-ranking looks for neighbours, see `rerank_features`.
        verified: from distances, images, data and protocol to `VerifiedDistances`, if the first are sorted anew.

    Raises:
        InputError: features are missing or not finite, or the protocol does not fit the labels.
    """
    rule, steps = protocol or data.protocol, refinement or Refinement()
    junk, distractors = ({str(name) for name in names} for names in (rule.junk, rule.distractors))
    ignored = junk | distractors if rule.distractor_policy == "ignore" else junk
    data = data.without(features.skipped)
    remark_on_placeholders(data, rule)
    asking, whole = data.queries, data.gallery
    queries = tuple(image for image in asking if str(image.identity) not in junk | distractors)
    gallery = tuple(image for image in whole if str(image.identity) not in ignored)
    if not queries or not gallery:
        raise InputError(f"nothing to evaluate: {len(queries)} queries, {len(gallery)} gallery images that count")
    sides = refined(data, features, (queries, gallery), protocol=rule, steps=steps)
    plain = FeatureDistances(*sides, metric=metric)
    source: DistanceSource = plain
    if steps.reranking is not None:
        k1, k2, share = steps.reranking
        if metric not in ("cosine", "l2"):
            raise InputError(f"re-ranking knows the metrics cosine and l2, got {metric!r}")
        source = rerank_features(*sides, k1=k1, k2=k2, original_share=share, metric=metric, device=device)
    elif verified is not None:
        source = verified(plain, (queries, gallery), data, protocol=rule)
    measured = partial(
        evaluate_distances, query=labels_of(queries), gallery=labels_of(gallery), protocol=rule, max_rank=max_rank
    )
    name = metric if source is plain else f"{metric}, re-ranked"
    shot = single_gallery_shot
    evaluation = measured(source, metric=name, false_accept_rates=false_accept_rates, single_gallery_shot=shot)
    counts = {
        "gallery": len(whole),
        "queries_left_out": len(asking) - len(queries),
        "gallery_junk": sum(str(image.identity) in junk for image in whole),
        "gallery_distractors": sum(str(image.identity) in distractors for image in whole),
    }
    before = None if source is plain else measured(plain, metric=metric, false_accept_rates=false_accept_rates)
    evaluation = replace(evaluation, counts=evaluation.counts | counts)
    about = dict(features.about) | ({"verified": source.summary} if isinstance(source, VerifiedDistances) else {})
    return Assessment(data, queries, gallery, evaluation, before, steps, about, _source=source, _not_reranked=plain)
