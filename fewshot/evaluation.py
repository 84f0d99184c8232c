"""Accuracy of a classifier on stored episodes: per episode, per class, per pair of classes, and against another result.

Features come from a bank, one row per item, so the network runs once per image however many episodes follow.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..datasets.episodes import EpisodeManifest
from ..errors import InputError, ShapeError
from ..metrics.intervals import Intervals, Z, intervals, required_episodes
from .classifiers import Classifier, Prototypes

__all__ = ["Comparison", "EpisodeResult", "compare", "evaluate"]

_BYTES_AT_A_TIME = {"cpu": 2 << 20, "cuda": 256 << 20}  # one core's cache; enough to fill a GPU


@dataclass(frozen=True, eq=False)
class EpisodeResult:
    """What a classifier answered, query by query; every figure below follows from it without the network.

    Attributes:
        episodes: the manifest that was run.
        classifier: name, settings, and `setting`: inductive or transductive.
        prediction: winning way of each query, in 0…N−1, (E, M). A tie is lost: where the true way's logit is no larger
            than another's, up to rounding, that other way wins.
        margin: logit of the true way minus the best other logit, (E, M), in the classifier's unit; 0 is a tie, and
            wrong as everything below.
        encoder: what made the features, for instance an encoder's `short_name`.
    """

    episodes: EpisodeManifest
    classifier: dict[str, Any]
    prediction: NDArray[np.int16]
    margin: NDArray[np.float32]
    encoder: str = ""

    def __post_init__(self) -> None:
        expected = self.episodes.query.shape
        if self.prediction.shape != expected or self.margin.shape != expected:
            raise ShapeError(
                f"expected prediction and margin of shape {expected}, one per query of the manifest, "
                f"got {self.prediction.shape} and {self.margin.shape}"
            )
        if self.prediction.min() < 0 or self.prediction.max() >= self.episodes.n_way:
            raise InputError(f"predictions must be ways in 0…{self.episodes.n_way - 1}")

    @property
    def is_transductive(self) -> bool:
        """Whether answers may depend on other queries or other test data."""
        return bool(self.classifier["setting"] == "transductive")

    @cached_property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of right answers in each episode, (E,), in [0, 1]."""
        share: NDArray[np.float64] = (self.prediction == self.episodes.target).mean(1, dtype=np.float64)
        return share

    @property
    def mean_accuracy(self) -> float:
        """Mean over episodes, in [0, 1]."""
        return float(self.accuracy.mean())

    def intervals(self, *, seed: int = 0) -> Intervals:
        """Usual, bootstrap and class-jackknife interval of the mean accuracy; `seed` is the bootstrap's."""
        return intervals(self.accuracy, self.episodes.ways, seed=seed)

    def required_episodes(self, *, half_width: float) -> int:
        """Episodes after which the usual interval would be at most ±`half_width` (0.002: ±0.2 points)."""
        return required_episodes(float(self.accuracy.std(ddof=1)), half_width=half_width)

    @cached_property
    def _query_class(self) -> NDArray[np.int64]:
        return self.episodes.class_of[self.episodes.query]

    def per_class_accuracy(self) -> dict[str, float]:
        """Share of right answers among all queries of each class; NaN for a class without queries."""
        n_classes = len(self.episodes.class_names)
        asked = np.bincount(self._query_class.ravel(), minlength=n_classes)
        right = self._query_class[self.prediction == self.episodes.target]
        with np.errstate(invalid="ignore"):
            share = np.bincount(right, minlength=n_classes) / asked
        return dict(zip(self.episodes.class_names.tolist(), share.tolist(), strict=True))

    def meetings(self) -> NDArray[np.int64]:
        """How many queries of class i were asked in episodes that held class j, (C, C)."""
        n_classes, ways = len(self.episodes.class_names), self.episodes.ways
        asked = (self.episodes.target[:, :, None] == np.arange(self.episodes.n_way)).sum(1)
        pair = ways[:, :, None] * n_classes + ways[:, None, :]
        weight = np.broadcast_to(asked[:, :, None], pair.shape)
        count = np.bincount(pair.ravel(), weights=weight.ravel(), minlength=n_classes**2)
        return count.astype(np.int64).reshape(n_classes, n_classes)

    def confusion(self) -> Float[np.ndarray, "c c"]:
        """Share of the queries of class i that class j won, among those asked while j was there; NaN if they never met.

        Rows are true classes, columns winning ones, both in the order of `episodes.class_names`. Counting by meetings
        makes pairs comparable although episodes draw them unequally often; the rows do not sum to 1. The diagonal is
        the per-class accuracy.
        """
        n_classes = len(self.episodes.class_names)
        winner = np.take_along_axis(self.episodes.ways, self.prediction.astype(np.int64), axis=1)
        won = np.bincount((self._query_class * n_classes + winner).ravel(), minlength=n_classes**2)
        with np.errstate(invalid="ignore"):
            return won.reshape(n_classes, n_classes) / self.meetings()

    def hardest_pairs(self, n: int = 10) -> list[tuple[str, str, float]]:
        """The n off-diagonal entries of `confusion` that are largest: (true class, winning class, share)."""
        share = np.nan_to_num(self.confusion(), nan=-1.0)
        np.fill_diagonal(share, -1.0)
        order = np.argsort(-share, axis=None, kind="stable")[:n]
        names = self.episodes.class_names.tolist()
        pairs = [divmod(int(i), len(names)) for i in order if share.flat[i] >= 0]
        return [(names[i], names[j], float(share[i, j])) for i, j in pairs]

    def to_dict(self) -> dict[str, Any]:
        """Settings, mean accuracy and intervals, JSON-able."""
        return {
            "episodes": self.episodes.describe(),
            "classifier": self.classifier,
            "encoder": self.encoder,
            "accuracy": self.mean_accuracy,
            "intervals": _intervals_to_dict(self.intervals()),
        }

    def table(self) -> str:
        """The result as plain text, in percent: what was run, how, and the three intervals with their questions."""
        episodes = self.episodes
        queries = f"{episodes.n_query} queries per class{'' if episodes.is_balanced else ' on average'}"
        lines = [
            f"{episodes.n_way}-way {episodes.n_shot}-shot, {queries}, {episodes.n_episodes} episodes of "
            f"{len(episodes.class_names)} classes, manifest {episodes.content_hash[:12]}",
            f"{self.classifier['name']} ({self.classifier['setting']})" + (f", {self.encoder}" * bool(self.encoder)),
            *_interval_lines(self.intervals(), "accuracy"),
        ]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write answers and manifest as one HDF5 file, a `ResultFile` of one method."""
        from .results import ResultFile

        ResultFile((self,)).save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EpisodeResult:
        """Read the result of a file that holds one method.

        Raises:
            InputError: the file is missing, holds something else, or several methods.
        """
        from .results import ResultFile

        return ResultFile.load(path)[None]


def evaluate(
    features: Tensor | NDArray[np.floating],
    episodes: EpisodeManifest,
    classifier: Classifier | None = None,
    *,
    names: ArrayLike | Sequence[object] | None = None,
    encoder: str = "",
) -> EpisodeResult:
    """What `classifier` answers on every episode.

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
            prediction[part], margin[part] = _decide(logits, target[part])
    if not torch.isfinite(margin).all():
        raise InputError("the logits are not finite: the features are too large for their precision; scale them down")
    return EpisodeResult(episodes, classifier.describe(), prediction.numpy(), margin.numpy(), encoder)


def _decide(logits: Float[Tensor, "b m n"], target: Int[Tensor, "b m"]) -> tuple[Tensor, Tensor]:
    """Winning way and margin of each query; the order of the ways does not help the true one.

    Logits of equal references may differ by where they stand in a product, so a margin within the rounding of the
    episode's largest logit is a tie.
    """
    true = target[:, :, None]
    best, other = logits.scatter(2, true, -torch.inf).max(2)
    margin = logits.gather(2, true)[:, :, 0] - best
    rounding = 8 * torch.finfo(logits.dtype).eps * logits.abs().amax((1, 2))[:, None]
    margin = torch.where(margin.abs() <= rounding, 0.0, margin)
    return torch.where(margin > 0, target, other).to(torch.int16), margin


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two results on the same episodes, episode by episode; positive differences favour the first.

    Attributes:
        first: one result.
        second: the other, with the same manifest.
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
        """How many times more episodes an unpaired comparison needs for the same interval; inf for no difference."""
        unpaired = self.first.accuracy.var() + self.second.accuracy.var()
        paired = self.difference.var()
        return float(unpaired / paired) if paired > 0 else math.inf

    def required_episodes(self, *, difference: float, is_detected: float = 0.8) -> int:
        """Episodes after which a true difference of this size is found at the two-sided 5 % level.

        Args:
            difference: size of the mean difference, 0.01 for one point.
            is_detected: how often it would be found, in [0.5, 1): the power of the test.
        """
        if not 0.5 <= is_detected < 1:
            raise InputError(f"the power must be in [0.5, 1), got {is_detected}")
        shrink = Z / (Z + NormalDist().inv_cdf(is_detected))
        return required_episodes(float(self.difference.std(ddof=1)), half_width=abs(difference) * shrink)

    def to_dict(self) -> dict[str, Any]:
        """Both settings, the mean difference and its intervals, JSON-able."""
        return {
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
            "difference": self.mean_difference,
            "intervals": _intervals_to_dict(self.intervals()),
        }

    def table(self) -> str:
        """The comparison as plain text, in percentage points."""
        lines = []
        for result in (self.first, self.second):
            described = f"{result.classifier['name']} ({result.classifier['setting']})"
            lines.append(
                f"{100 * result.mean_accuracy:7.2f}  {described}" + f", {result.encoder}" * bool(result.encoder)
            )
        if self.first.is_transductive != self.second.is_transductive:
            lines.append(
                "         one of them is transductive: it sees all queries of an episode, the other one at a time"
            )
        return "\n".join([*lines, *_interval_lines(self.intervals(), "difference")])


def compare(first: EpisodeResult, second: EpisodeResult) -> Comparison:
    """The paired comparison of two results.

    Raises:
        InputError: the results are of different manifests.
    """
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
    bad = (~torch.isfinite(bank)).any(1).nonzero()
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(bank)} feature rows hold NaN or infinite values, the first is "
            f"{str(episodes.names[int(bad[0])])!r}; extract them again"
        )
    return bank


def _intervals_to_dict(found: Intervals) -> dict[str, Any]:
    return {each.kind: {"low": each.low, "high": each.high, "question": each.question} for each in found}


def _interval_lines(found: Intervals, what: str) -> list[str]:
    width = max(len(each.kind) for each in found)
    lines = [f"{what} {100 * found.usual.mean:.2f} ± {100 * found.usual.half_width:.2f}"]
    lines += [
        f"  {each.kind:{width}}  {100 * each.low:6.2f} … {100 * each.high:6.2f}  {each.question}" for each in found
    ]
    if found.class_jackknife is None:
        lines.append(
            "  class jackknife: does not exist, some class is in every episode; nothing is known of other classes"
        )
    return lines
