"""Dependence of answers on the support images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..datasets.episodes import EpisodeManifest, as_names
from ..errors import InputError
from .classifiers import Classifier
from .evaluation import evaluate
from .results import EpisodeResult


class SupportQuality(NamedTuple):
    """Quality of one image as an example of its class.

    Attributes:
        name: the image.
        label: its class.
        recall: share of the queries of its class that were answered right while it was a support image.
        n_queries: how many those were.
    """

    name: str
    label: str
    recall: float
    n_queries: int


def support_quality(result: EpisodeResult, *, least: int = 30) -> list[SupportQuality]:
    """Every image that was support for at least `least` queries, the worst example first.

    The list is for cleaning data: an image at its top is often mislabelled, cropped badly, or untypical. With several
    shots an image shares its successes with its companions.
    """
    episodes = result.episodes
    is_way = episodes.target[:, :, None] == np.arange(episodes.n_way)
    is_right = result.prediction == episodes.target
    asked, right = is_way.sum(1), (is_way & is_right[:, :, None]).sum(1)  # (E, N)
    n = len(episodes.names)
    n_asked, n_right = (
        np.bincount(episodes.support.ravel(), weights=np.repeat(count, episodes.n_shot), minlength=n)
        for count in (asked.ravel(), right.ravel())
    )
    rows = np.flatnonzero(n_asked >= max(least, 1))
    recall = n_right[rows] / n_asked[rows]
    order = np.lexsort((episodes.names[rows], recall))
    return [
        SupportQuality(
            str(episodes.names[rows[i]]), str(episodes.labels[rows[i]]), float(recall[i]), int(n_asked[rows[i]])
        )
        for i in order
    ]


@dataclass(frozen=True, eq=False)
class SupportSensitivity:
    """Accuracy on fixed queries of fixed classes under different supports.

    Attributes:
        classes: the class set.
        accuracy: one per support, (S,).
    """

    classes: tuple[str, ...]
    accuracy: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """Classes, mean, standard deviation, worst and best, JSON-able."""
        return {
            "classes": list(self.classes),
            "n_supports": len(self.accuracy),
            "mean": float(self.accuracy.mean()),
            "standard_deviation": float(self.accuracy.std(ddof=1)),
            "worst": float(self.accuracy.min()),
            "best": float(self.accuracy.max()),
        }


def support_sensitivity(
    features: Tensor | NDArray[np.floating],
    labels: ArrayLike,
    classes: tuple[str, ...],
    classifier: Classifier,
    *,
    n_shot: int = 1,
    n_query: int = 15,
    n_supports: int = 50,
    seed: int = 0,
) -> SupportSensitivity:
    """Redraw the support of one class set, keeping classes and queries.

    Args:
        features: the bank, (n, d).
        labels: class of each row.
        classes: the ways, at least two.
        classifier: what answers.
        n_shot: support images per class.
        n_query: queries per class, drawn once; fewer where a class has not enough images for both.
        n_supports: how many supports, at least two.
        seed: of the draws.

    Raises:
        InputError: a class has no image left for a second support, or is unknown.
    """
    label_of = as_names(labels, "labels")
    if n_supports < 2 or len(set(classes)) < 2:
        raise InputError(f"expected two supports and two classes or more, got {n_supports} and {len(set(classes))}")
    rows = {label: np.flatnonzero(label_of == label) for label in classes}
    smallest = min(rows, key=lambda label: len(rows[label]))
    n_query = min(n_query, len(rows[smallest]) - n_shot - 1)
    if n_query < 1:
        raise InputError(f"{smallest!r} has {len(rows[smallest])} images, {n_shot + 2} are needed to redraw a support")
    draw = np.random.Generator(np.random.PCG64(seed))
    support = np.empty((n_supports, len(classes), n_shot), np.int64)
    query = []
    for way, label in enumerate(classes):
        shuffled = draw.permutation(rows[label])
        query.append(shuffled[:n_query])
        rest = shuffled[n_query:]
        for number in range(n_supports):
            support[number, way] = draw.choice(rest, n_shot, replace=False)
    episodes = EpisodeManifest(
        np.arange(len(label_of)).astype(str),
        label_of,
        support.astype(np.int32),
        np.tile(np.concatenate(query), (n_supports, 1)).astype(np.int32),
    )
    return SupportSensitivity(tuple(classes), evaluate(features, episodes, classifier).accuracy)
