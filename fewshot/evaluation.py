"""Classifiers evaluated on stored episodes, from a bank of features, and two results compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
        return "\n".join([*lines, *interval_lines(self.intervals(), "difference")])


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
