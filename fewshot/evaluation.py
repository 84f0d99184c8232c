"""Classifiers evaluated on stored episodes, from a bank of features, and two results compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..datasets.episodes import EpisodeManifest, as_names
from ..errors import InputError, ShapeError
from ..metrics.intervals import Intervals, Z, intervals, required_episodes
from .classifiers import Classifier
from .methods import Prototypes
from .results import EpisodeResult, interval_lines, intervals_to_dict

_BYTES_AT_A_TIME = {"cpu": 2 << 20, "cuda": 256 << 20}  # one core's cache; enough to fill a GPU


def evaluate(
    features: Tensor | NDArray[np.floating],
    episodes: EpisodeManifest,
    classifier: Classifier | None = None,
    *,
    names: ArrayLike | Sequence[object] | None = None,
    encoder: str = "",
) -> EpisodeResult:
    """The answers of a classifier to every episode.

    The work is done where `features` lie (a CUDA tensor: on the GPU), in float32 or, for float64 features, in float64.

    Args:
        features: the bank, (n, d), one row per item.
        episodes: which items are support and which are queries.
        classifier: nearest class mean by squared Euclidean distance by default.
        names: names of the rows, where they are not in the manifest's order or more than its items.
        encoder: what made the features; kept in the result.

    Raises:
        ShapeError: the rows are not the manifest's items.
        InputError: a feature is not finite, or an item is missing.
    """
    classifier = Prototypes() if classifier is None else classifier
    bank = classifier.prepare(_bank(features, episodes, names))
    n_way, n_shot = episodes.n_way, episodes.n_shot
    n_support = n_way * n_shot
    rows = np.concatenate([episodes.support.reshape(-1, n_support), episodes.query], axis=1)
    items = torch.from_numpy(rows).to(bank.device)
    target = torch.from_numpy(episodes.target).to(bank.device)
    prediction = torch.empty(target.shape, dtype=torch.int16)
    margin = torch.empty(target.shape, dtype=torch.float32)

    n_items = items.shape[1]
    budget = max(_BYTES_AT_A_TIME.get(bank.device.type, 2 << 20), getattr(classifier, "bytes_at_a_time", 0))
    step = max(1, budget // (n_items * bank.shape[1] * bank.element_size()))
    gathered = bank.new_empty(min(step, len(items)) * n_items, bank.shape[1])
    with torch.no_grad():
        for start in range(0, len(items), step):
            part = slice(start, min(start + step, len(items)))
            vectors = gathered[: (part.stop - start) * n_items]
            torch.index_select(bank, 0, items[part].flatten(), out=vectors)
            vectors = vectors.view(-1, n_items, bank.shape[1])
            support = vectors[:, :n_support].view(-1, n_way, n_shot, bank.shape[1])
            logits = classifier.logits(support, vectors[:, n_support:])
            true = target[part][:, :, None]
            best, other = logits.scatter(2, true, -torch.inf).max(2)
            ahead = logits.gather(2, true)[:, :, 0] - best
            # Logits of equal references may differ by where they stand in a product: within this it is a tie.
            rounding = 8 * torch.finfo(logits.dtype).eps * logits.abs().amax((1, 2))[:, None]
            ahead = torch.where(ahead.abs() <= rounding, 0.0, ahead)
            prediction[part] = torch.where(ahead > 0, target[part], other).to(torch.int16)
            margin[part] = ahead
    if not torch.isfinite(margin).all():
        raise InputError("the logits are not finite: the features are too large for their precision; scale them down")
    return EpisodeResult(episodes, classifier.describe(), prediction.numpy(), margin.numpy(), encoder)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two results on the same episodes, episode by episode; positive differences favour the first.

    Attributes:
        first, second: results of one manifest.
        difference: accuracy of the first minus that of the second in each episode, (E,).
    """

    first: EpisodeResult
    second: EpisodeResult
    difference: NDArray[np.float64]

    @property
    def mean_difference(self) -> float:
        """Mean of the differences, in [−1, 1]."""
        return float(self.difference.mean())

    def intervals(self, *, seed: int = 0) -> Intervals:
        """Usual, bootstrap and class-jackknife interval of the mean difference; `seed` is the bootstrap's."""
        return intervals(self.difference, self.first.episodes.ways, seed=seed)

    @property
    def variance_ratio(self) -> float:
        """Factor by which an unpaired comparison needs more episodes for the same interval; inf for no difference."""
        unpaired = self.first.accuracy.var() + self.second.accuracy.var()
        paired = self.difference.var()
        return float(unpaired / paired) if paired > 0 else math.inf

    def required_episodes(self, *, difference: float, power: float = 0.8) -> int:
        """Episodes after which a true difference of this size is found at the two-sided 5 % level.

        Args:
            difference: size of the mean difference, 0.01 for one point.
            power: how often it would be found, in [0.5, 1).
        """
        if not 0.5 <= power < 1:
            raise InputError(f"the power must be in [0.5, 1), got {power}")
        shrink = Z / (Z + NormalDist().inv_cdf(power))
        return required_episodes(float(self.difference.std(ddof=1)), half_width=abs(difference) * shrink)

    def to_dict(self) -> dict[str, Any]:
        """Both settings, the mean difference and its intervals, JSON-able."""
        return {
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
            "difference": self.mean_difference,
            "intervals": intervals_to_dict(self.intervals()),
        }

    def table(self) -> str:
        """The comparison as plain text, in percentage points."""
        lines = [f"{100 * result.mean_accuracy:7.2f}  {result.described}" for result in (self.first, self.second)]
        if self.first.is_transductive != self.second.is_transductive:
            seen = "one of them is transductive: it sees all queries of an episode, the other one at a time"
            lines.append(f"         {seen}")
        return "\n".join([*lines, *interval_lines(self.intervals(), "difference")])


def compare(first: EpisodeResult, second: EpisodeResult) -> Comparison:
    """The paired comparison of two results; InputError if they are of different manifests."""
    hashes = [result.episodes.content_hash for result in (first, second)]
    if hashes[0] != hashes[1]:
        raise InputError(
            f"the results are of different episodes ({hashes[0][:12]} and {hashes[1][:12]}) and cannot be paired; "
            "evaluate both on one saved manifest"
        )
    return Comparison(first, second, first.accuracy - second.accuracy)


def _bank(
    features: Tensor | NDArray[np.floating], episodes: EpisodeManifest, names: ArrayLike | Sequence[object] | None
) -> Tensor:
    """The feature rows in the manifest's order, finite and in working precision."""
    if isinstance(features, np.ndarray) and not features.flags.writeable:
        features = features.copy()  # torch would warn
    bank = torch.as_tensor(features).detach()
    if bank.ndim != 2 or not bank.is_floating_point():
        raise ShapeError(f"features must be floating-point rows (n, d), got {bank.dtype} of shape {tuple(bank.shape)}")
    n_expected = len(episodes.names) if names is None else len(names)  # type: ignore[arg-type]
    if len(bank) != n_expected:
        raise ShapeError(
            f"{len(bank)} feature rows for {n_expected} names; pass `names` if the rows are not the manifest's items"
        )
    bank = bank if bank.dtype == torch.float64 else bank.float()
    if names is not None:
        bank = bank[torch.from_numpy(episodes.rows_in(names)).to(bank.device)]
    if len(bad := (~torch.isfinite(bank)).any(1).nonzero()):
        raise InputError(
            f"{len(bad)} of {len(bank)} feature rows hold NaN or infinite values, the first is "
            f"{str(episodes.names[int(bad[0])])!r}; extract them again"
        )
    return bank


class SupportQuality(NamedTuple):
    """An image as an example of its class: share of the class's queries answered right while it was support."""

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
    recall, names, labels = n_right[rows] / n_asked[rows], episodes.names[rows], episodes.labels[rows]
    order, number = np.lexsort((names, recall)), n_asked[rows].astype(int)
    columns = (each[order].tolist() for each in (names, labels, recall, number))
    return list(map(SupportQuality, *columns))


@dataclass(frozen=True, eq=False)
class SupportSensitivity:
    """Accuracy on fixed queries of fixed classes under different supports, one per support, (S,)."""

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
