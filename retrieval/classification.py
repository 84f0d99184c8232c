"""Answers: the class of an image by its neighbours, by class prototypes, or both; confidence, rejection, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor

from ..encoders import Inference
from ..encoders.inference import Failure, ImageSource
from ..errors import GalleryError, InputError
from ..images.given.arrays import is_array
from ..index import Gallery, PrototypeStore
from ..index.rejection import class_scores
from ..index.search import Hits, Ids
from ..metrics.distances import Vectors
from ..metrics.prediction import By, Calibration, ClassEvidence, Codes, Floats, Votes, weighted_softmax
from ..remarks import counted, remark, remark_on_skipped
from .matches import Matches
from .queries import Ranked, given_images, name_of, source_of
from .ranking import Query, StoredEncoding

if TYPE_CHECKING:
    from ..progress import Progress
    from .explanation import Explanation
    from .retriever import Retriever

MOST_PROBES = 2000  # images that a calibration asks for
LABELLED = "label~*"


@dataclass(frozen=True, eq=False)
class ClassSpace:
    """Labelled vectors that are searched, and what is needed to judge each without itself.

    Attributes:
        search: the k nearest of raw vectors among the labelled.
        ids: of the labelled, ascending.
        codes: their class numbers, in the order of `store.labels`.
        raw: embeddings of ids.
    """

    search: Callable[[Vectors, int], list[Hits]]
    ids: Ids
    codes: Codes
    raw: Callable[[Ids], Vectors]
    store: PrototypeStore

    @classmethod
    def of(cls, gallery: Gallery, *, strict: bool = False) -> ClassSpace:
        """The labelled images of a gallery; InputError where there is none, a remark where some have no label."""
        store = gallery.prototypes
        if not store.labels:
            what = "is empty" if not len(gallery) else f"has no labels ({counted(len(gallery), 'image')})"
            raise InputError(
                f"{gallery.folder} {what}, so there are no classes; `distcam index add --labels` gives some"
            )
        where = None
        if (bare := len(gallery) - int(store.counts.sum())) > 0:
            remark(f"{bare:,} of {len(gallery):,} gallery images have no label and speak for no class", strict=strict)
            where = LABELLED
        if len(store.labels) == 1:
            only = store.labels[0]
            remark(f"the gallery has one class, {only!r}: every image is given to it, or rejected", strict=strict)
        number = {label: code for code, label in enumerate(store.labels)}
        column = gallery.snapshot.column("label")
        codes = np.array([*(number.get(value, -1) for value in column.values), -1], np.int64)[column.codes]
        ids, kept = gallery.ids[codes >= 0], codes[codes >= 0]
        return cls(lambda v, k: gallery.search(v, k, where=where), ids, kept, gallery.embeddings, store)

    def evidence(self, vectors: Vectors, hits: Sequence[Hits], k: int) -> ClassEvidence:
        """What raw vectors (m, d) and their neighbours say; of neighbours the first k."""
        neighbours, distances = np.full((len(hits), k), -1, np.int64), np.full((len(hits), k), np.inf)
        for row, found in enumerate(hits):
            places = np.searchsorted(self.ids, found.ids[:k])
            neighbours[row, : len(places)] = self.codes[places]
            distances[row, : len(places)] = found.distances[:k]
        return ClassEvidence(neighbours, distances, self.store.distances(vectors))

    def calibrated(self, k: int, *, by: By, weighting: Votes, seed: int = 0, strict: bool = False) -> Calibration:
        """The calibration on the labelled images themselves, each without itself, at most `MOST_PROBES` of them."""
        if k > len(self.ids):
            remark(f"k = {k}, and there are {counted(len(self.ids), 'labelled image')}: all vote", strict=strict)
        of_pairs = np.flatnonzero(self.store.counts[self.codes] > 1)  # alone in its class nothing could name it
        places = np.sort(np.random.default_rng(seed).permutation(of_pairs)[:MOST_PROBES])
        codes, ids = self.codes[places], self.ids[places]
        if not len(places) or len(self.store) < 2:
            lacking = "no class with two images" if not len(places) else "one class alone"
            nothing = ClassEvidence(np.empty((0, k), np.int64), np.empty((0, k)), np.empty((0, len(self.store))))
            bare = Calibration.fit(nothing, codes[:0], by=by, weighting=weighting, source=lacking)
            remark(str(bare), strict=strict)
            return bare
        vectors, others = self.raw(ids), []
        for own, found in zip(ids, self.search(vectors, k + 1), strict=True):
            kept = found.ids != own
            others.append(Hits(found.ids[kept], found.distances[kept]))
        own = self.store.distances(vectors, [self.store.labels[code] for code in codes])
        evidence = self.evidence(vectors, others, k)._replace(prototypes=own)
        source = f"{len(places):,} of the {len(self.ids):,} labelled images, each without itself"
        return Calibration.fit(evidence, codes, by=by, weighting=weighting, source=source)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one image.

    Attributes:
        name: of the image.
        label: its class; None if it was rejected, or if the image could not be used.
        best: the most probable class, rejected or not; None only of an image that could not be used.
        confidence: calibrated probability of `best` among the gallery's classes, in [0, 1]; NaN without one.
        probabilities: of all `classes`, (c,).
        decided_by: `rank:1` (the nearest voting neighbour of the class) or `label:CAT` (its prototype).
        matches: the neighbours.
        is_known: whether it is as near as was asked for; None if nothing was.
        problem: why the image could not be used.
        calibration: of the confidence.
    """

    name: str
    label: str | None = None
    best: str | None = None
    confidence: float = float("nan")
    probabilities: Floats = field(default_factory=lambda: np.empty(0), repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)
    decided_by: str = ""
    matches: Matches | None = field(default=None, repr=False)
    is_known: bool | None = None
    problem: str | None = None
    calibration: Calibration | None = field(default=None, repr=False)

    def explain(self, **options: Any) -> Explanation:
        """The maps against the neighbour or the prototype that decided; `options` as of `Matches.explain`."""
        if self.matches is None:
            raise InputError(f"{self.name} has no answer to explain: {self.problem}")
        return self.matches.explain(**{"against": self.decided_by, **options})

    def top(self, n: int = 5) -> list[tuple[str, float]]:
        """The n most probable classes."""
        order = np.argsort(-self.probabilities, kind="stable")[:n]
        return [(self.classes[place], float(self.probabilities[place])) for place in order]

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-able values, with the five most probable classes."""
        first = self.matches[0] if self.matches else None
        second, share = [*self.top(2), (None, None), (None, None)][1]
        return {
            "path": self.name,
            "label": self.label,
            "confidence": None if self.best is None else self.confidence,
            "best": self.best,
            "second": second,
            "second_confidence": share,
            "is_known": self.is_known,
            "nearest": None if first is None else first.path,
            "distance": None if first is None else first.distance,
            "decided_by": self.decided_by or None,
            "problem": self.problem,
            "probabilities": dict(self.top()),
        }


class GalleryClassifier:
    """A gallery's classes and their calibration: the answers of one `Retriever.classify` after another.

    Raises:
        InputError: k < 1, no labels, an unknown `by` or `weighting`; with `strict` what is else remarked on.
    """

    def __init__(self, gallery: Gallery, k: int, *, by: By, weighting: Votes, strict: bool = False) -> None:
        check_choices(k, by, weighting)
        self.space = ClassSpace.of(gallery, strict=strict)
        self.k, self.where = k, LABELLED if len(self.space.ids) < len(gallery) else None
        self.calibration = self.space.calibrated(k, by=by, weighting=weighting, strict=strict)

    def answers(self, vectors: Vectors, rankings: Sequence[Matches], limit: float | None) -> Iterator[Prediction]:
        """The answer for each raw vector (m, d) and its ranking; `limit` is the largest of `class_scores`."""
        hits = [Hits(ranking.ids, np.array([match.distance for match in ranking])) for ranking in rankings]
        evidence, classes = self.space.evidence(vectors, hits, self.k), self.space.store.labels
        logits, weights = self.calibration.logits(evidence), self.calibration.weights
        near = None if limit is None else class_scores(evidence.prototypes) <= limit
        for row, (ranking, shares) in enumerate(zip(rankings, weighted_softmax(logits, weights), strict=True)):
            best, second = int(shares.argmax()), int(np.argsort(-shares, kind="stable")[min(1, len(shares) - 1)])
            margins = [w * (part[row, best] - part[row, second]) for w, part in zip(weights, logits, strict=True)]
            of_class = np.flatnonzero(evidence.neighbours[row] == best)
            by_vote = len(of_class) and (self.calibration.by == "knn" or (len(margins) > 1 and margins[0] > margins[1]))
            is_known = ranking.is_known if near is None else bool(near[row])
            yield Prediction(
                ranking.query.name,
                None if is_known is False else classes[best],
                classes[best],
                float(shares[best]),
                shares,
                classes,
                f"rank:{of_class[0] + 1}" if by_vote else f"label:{classes[best]}",
                ranking,
                is_known,
                calibration=self.calibration,
            )


def check_choices(k: int, by: str, weighting: str) -> None:
    """Refuse what is no way to classify."""
    for name, value, known in (("by", by, get_args(By)), ("weighting", weighting, get_args(Votes))):
        if value not in known:
            raise InputError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, got {value!r}")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")


class Classed(TypedDict, total=False):
    """Options of a classification.

    Attributes:
        k: neighbours that vote, by default 5; those without a label do not.
        by: "knn", "prototypes" (the nearest class mean), or "both", each as far as the gallery's own images trust it.
        weighting: of votes: "uniform", or "distance" (the nearer the more).
        reject: no class beyond the gallery's own threshold, see `Rejection.class_threshold`.
        max_distance: the same with a threshold of yours, in units of the gallery's metric.
        strict: refuse what is else remarked on.
        progress: called with the number of images done and the number in all.
    """

    k: int
    by: By
    weighting: Votes
    reject: bool
    max_distance: float | None
    strict: bool
    progress: Progress | None


def classified(
    retriever: Retriever,
    images: Any,
    *,
    k: int = 5,
    by: By = "both",
    weighting: Votes = "distance",
    reject: bool = False,
    max_distance: float | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> list[Prediction]:
    """The answers for images, in their order; see `Retriever.classify`."""
    inference, manifest = retriever.inference, retriever.gallery.manifest
    width = retriever.gallery.spec.embedding_dim
    sources = given_images(images, width=width, margin=manifest.box_margin)
    if not sources:
        raise InputError("no images were given")
    if not isinstance(inference, Inference):
        raise GalleryError("a retriever with an inference of its own classifies no streams of images; make one without")
    state = (manifest.gallery_id, manifest.generation, k, by, weighting, strict)
    rejection = retriever.require_threshold(reject=reject, max_distance=max_distance)
    if retriever.kept_classifier is None or retriever.kept_classifier[0] != state:
        made = GalleryClassifier(retriever.gallery, k, by=by, weighting=weighting, strict=strict)
        retriever.kept_classifier = (state, made)
    classifier = retriever.kept_classifier[1]
    limit = None if rejection is None or len(classifier.space.store) < 3 else rejection.class_threshold
    names = [name_of(image, place) for place, image in enumerate(sources)]
    judged: Ranked = {"k": k, "where": classifier.where, "max_distance": max_distance}
    judged["reject"] = reject and limit is None
    found: dict[int, Prediction] = {}
    for queries, failures in _queries(inference, names, sources, width):
        if queries:
            vectors = torch.cat([query.encoding.embedding for query in queries.values()]).numpy()
            rankings = retriever.rank(list(queries.values()), **judged)
            found.update(zip(queries, classifier.answers(vectors, rankings, limit), strict=True))
        found |= {bad.item: Prediction(names[bad.item], problem=bad.error.reason) for bad in failures}
        if progress is not None:
            progress(len(found), len(sources))
    skipped = {names[place]: str(each.problem) for place, each in sorted(found.items()) if each.problem is not None}
    remark_on_skipped(skipped, len(sources), "they have no class", strict=strict)
    return [found[place] for place in range(len(sources))]


def _queries(
    inference: Inference, names: Sequence[str], sources: list[Any], width: int
) -> Iterator[tuple[dict[int, Query], Sequence[Failure[int]]]]:
    """Batches of queries by their places, the vectors first, and the images that cannot be used."""
    vectors = {n: source_of(each, width) for n, each in enumerate(sources) if is_array(each) and each.ndim == 1}
    yield {place: Query(names[place], None, vector) for place, vector in vectors.items()}, []

    def read(place: int) -> Tensor:
        sources[place] = source_of(sources[place], width)  # kept for the explanation: a URL is fetched once
        return inference.read(sources[place])

    rest = [place for place in range(len(sources)) if place not in vectors]
    for batch in inference.stream(rest, load=read, maps=False):
        queries = {}
        for row, place in enumerate(batch.items):
            encoding, source = batch.encoding, sources[place]
            assert encoding is not None, "there are items"
            pooled, vector = encoding.pooled[row, None].cpu(), encoding.embedding[row, None].cpu()
            queries[place] = Query(names[place], source, _slim(inference, source, pooled, vector))
        yield queries, batch.failures


def _slim(inference: Inference, image: ImageSource, pooled: Tensor, embedding: Tensor) -> StoredEncoding:
    """An encoding without its feature map, which another pass makes where it is explained."""

    def fetch() -> tuple[Tensor, Tensor | None]:
        encoding = inference.encode_images([image])
        return encoding.feature_map, encoding.constant

    return StoredEncoding(pooled, embedding, fetch)
