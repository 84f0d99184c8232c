"""A data set and its features, assessed: refined or not, under a stated protocol, with the mistakes at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets.reid_records import Protocol, ReidData, ReidImage
from ..encoders.trained_on import Overlap
from ..errors import InputError
from .distances import DistanceSource, FeatureDistances, Metric
from .evaluation import FALSE_ACCEPT_RATES, evaluate_distances
from .features import Features
from .mistakes import Answer, Failure, Promotion, causes_of
from .placeholders import remark_on_placeholders
from .policies import Matching, labels_of
from .refinement import Refinement, refined
from .reranking.k_reciprocal import Reranking, rerank_features
from .results import Evaluation

__all__ = ["Assessment", "Refinement", "assess", "changed_protocol"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Assessment:
    """An evaluation together with the images it is about; `print` it, `to_dict` it, or `write_report` it.

    Attributes:
        data: the data set.
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
    evaluation: Evaluation
    before: Evaluation | None
    refinement: Refinement
    about: dict[str, Any]
    _source: DistanceSource = field(repr=False)
    _plain: DistanceSource = field(repr=False)

    @property
    def reranking(self) -> Reranking | None:
        """The re-ranked distances, which can explain themselves."""
        return self._source if isinstance(self._source, Reranking) else None

    def failures(self, n: int = 20) -> tuple[Failure, ...]:
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
        return tuple(self._promotion(int(query), self.reranking) for query in best)

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
            before = self.before
            lines.append(
                f"before re-ranking: rank-1 {100 * before.rank(1):.2f}, mAP (step) {100 * before.map_step:.2f}"
            )
        lines += [f"{name}: {value}" for name, value in self.about.items() if name not in ("fingerprint", "trained_on")]
        if overlap := Overlap.from_dict(self.about.get("trained_on")):
            lines.append(f"training: {overlap}")
        return "\n".join([*lines, f"data: {self.data.format}, {self.data.root}", *self.data.notes])

    # --- behind the scenes ---

    @cached_property
    def _matching(self) -> Matching:
        return Matching.of(labels_of(self.queries), labels_of(self.gallery), protocol=self.evaluation.protocol)

    def _answers(self, query: int, source: DistanceSource) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
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

    def _failure(self, query: int) -> Failure:
        distance, right, wrong = self._answers(query, self._source)
        nearest = _nearest(distance, right), _nearest(distance, wrong)
        assert nearest[0] is not None  # a failure has a match
        wrong_answer = None if nearest[1] is None else self._answer(query, nearest[1], is_right=False)
        image = self.queries[query]
        return Failure(
            image,
            average_precision=float(self.evaluation.per_query.ap_step[query]),
            n_matches=int(right.sum()),
            wrong=wrong_answer,
            right=self._answer(query, nearest[0], is_right=True),
            causes=causes_of(image, wrong_answer, n_matches=int(right.sum()), protocol=self.evaluation.protocol),
        )

    def _promotion(self, query: int, reranking: Reranking) -> Promotion:
        distance, right, wrong = self._answers(query, self._source)
        place = _nearest(distance, right)
        assert place is not None  # it has a rank
        plain = self._answers(query, self._plain)[0]
        ranks = [_rank_of(place, table, right, wrong, is_right=True) for table in (plain, distance)]
        shared = self._shared(query, place, reranking)
        return Promotion(self.queries[query], self.gallery[place], ranks[0], ranks[1], shared)

    def _shared(self, query: int, place: int, reranking: Reranking) -> tuple[tuple[ReidImage, float], ...]:
        found = reranking.shared_neighbours(query, place)
        images = (*self.queries, *self.gallery)
        shares: dict[str, float] = {}  # an image that asks and answers is one neighbour, not two
        for i, share in zip(found.index, found.share, strict=True):
            shares[images[i].path] = shares.get(images[i].path, 0.0) + float(share)
        named = {images[i].path: images[i] for i in found.index}
        return tuple((named[path], share) for path, share in sorted(shares.items(), key=lambda item: -item[1]))


def _nearest(distance: Floats, allowed: NDArray[np.bool_]) -> int | None:
    places = np.flatnonzero(allowed)
    return int(places[np.argmin(distance[places])]) if places.size else None


def _rank_of(
    place: int, distance: Floats, right: NDArray[np.bool_], wrong: NDArray[np.bool_], *, is_right: bool
) -> int:
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
    protocol: Protocol | None = None,
    refinement: Refinement | None = None,
    max_rank: int = 50,
    false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
    single_gallery_shot: bool = False,
    device: str | None = None,
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

    Raises:
        InputError: features are missing or not finite, or the protocol does not fit the labels.
    """
    rule, steps = protocol or data.protocol, refinement or Refinement()
    ignored = {str(name) for name in (*rule.junk, *(rule.distractors if rule.distractor_policy == "ignore" else ()))}
    nobody = {str(name) for name in (*rule.junk, *rule.distractors)}
    data = data.without(features.skipped)
    remark_on_placeholders(data, rule)
    asking, whole = data.queries, data.gallery
    queries = tuple(image for image in asking if str(image.identity) not in nobody)
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
    options: dict[str, Any] = {
        "query": labels_of(queries),
        "gallery": labels_of(gallery),
        "protocol": rule,
        "max_rank": max_rank,
        "false_accept_rates": false_accept_rates,
    }
    name = metric if source is plain else f"{metric}, re-ranked"
    evaluation = evaluate_distances(source, metric=name, single_gallery_shot=single_gallery_shot, **options)
    counts = {
        "gallery": len(whole),
        "queries_left_out": len(asking) - len(queries),
        "gallery_junk": sum(str(image.identity) in set(map(str, rule.junk)) for image in whole),
        "gallery_distractors": sum(str(image.identity) in set(map(str, rule.distractors)) for image in whole),
    }
    before = None if source is plain else evaluate_distances(plain, metric=metric, **options)
    return Assessment(
        data,
        queries,
        gallery,
        replace(evaluation, counts=evaluation.counts | counts),
        before,
        steps,
        dict(features.about),
        _source=source,
        _plain=plain,
    )


def changed_protocol(protocol: Protocol, changes: str) -> Protocol:
    """A protocol with some decisions changed by a text such as `same_camera=keep,distractors=0+7`.

    Raises:
        InputError: no such decision (the message names the nearest), or no such choice.

    >>> changed_protocol(Protocol(), "no_match=zero,junk=").junk
    ()
    """
    names = tuple(protocol.to_dict())
    values: dict[str, Any] = {}
    for change in filter(None, (part.strip() for part in changes.split(","))):
        name, equals, value = (part.strip() for part in change.partition("="))
        if name not in names or not equals:
            near = get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise InputError(f"expected NAME=VALUE, got {change!r}; nearest is {near}, there are {', '.join(names)}")
        listed = tuple(int(one) if one.lstrip("-").isdigit() else one for one in value.split("+") if one)
        values[name] = listed if name in ("junk", "distractors") else value
    return replace(protocol, **values)
