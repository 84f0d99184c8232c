"""What went wrong for one query, and what went right by re-ranking: single answers, with their reasons where known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..datasets.reid_records import Protocol, ReidImage

__all__ = ["Answer", "Failure", "Promotion", "causes_of"]

Shared = tuple[tuple[ReidImage, float], ...]


@dataclass(frozen=True)
class Answer:
    """One gallery image as the answer to a query.

    Attributes:
        image: the gallery image.
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
        """Ready for JSON."""
        shared = [{"path": image.path, "share": share} for image, share in self.shared[:5]]
        return {**_named(self.image), "rank": self.rank, "distance": self.distance, "shared_neighbours": shared}


@dataclass(frozen=True)
class Failure:
    """A query that is not answered perfectly.

    Attributes:
        query: the image.
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
        """Ready for JSON."""
        return {
            "query": _named(self.query),
            "average_precision": self.average_precision,
            "n_matches": self.n_matches,
            "wrong": None if self.wrong is None else self.wrong.to_dict(),
            "right": self.right.to_dict(),
            "causes": list(self.causes),
        }


@dataclass(frozen=True)
class Promotion:
    """A right answer that re-ranking brought up, and the shared neighbours that did it (see `Answer.shared`)."""

    query: ReidImage
    match: ReidImage
    rank_before: int
    rank_after: int
    shared: Shared

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "query": _named(self.query),
            "match": _named(self.match),
            "rank_before": self.rank_before,
            "rank_after": self.rank_after,
            "shared_neighbours": [{"path": image.path, "share": share} for image, share in self.shared],
        }


def causes_of(query: ReidImage, wrong: Answer | None, *, n_matches: int, protocol: Protocol) -> tuple[str, ...]:
    """What the labels say about why a query may have failed."""
    causes = []
    if wrong is not None and wrong.image.camera == query.camera is not None:
        causes.append("the wrong answer is from the query's camera")
    if wrong is not None and str(wrong.image.identity) in set(map(str, protocol.distractors)):
        causes.append("the wrong answer is a distractor")
    if n_matches == 1:
        causes.append("there is one match only")
    return tuple(causes)


def _named(image: ReidImage) -> dict[str, Any]:
    return {"path": image.path, "identity": image.identity, "camera": image.camera}
