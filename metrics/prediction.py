"""Classes from labelled neighbours and from prototypes, and confidence that means what it says.

A share of votes and a distance are no probabilities. One weight for each, of highest likelihood on answers whose truth
is known, makes them so (an inverse temperature); the expected calibration error says how well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

By = Literal["knn", "prototypes", "both"]
Votes = Literal["uniform", "distance"]
Codes = NDArray[np.int64]
Floats = NDArray[np.float64]

LEAST = 20  # answers, below which two halves of them say nothing of a calibration


class ClassEvidence(NamedTuple):
    """What m images say of c classes: k neighbours each, nearest first, and the distances of the prototypes."""

    neighbours: Codes  # (m, k), class numbers; -1 where there is no neighbour
    distances: Floats  # (m, k); inf where there is none
    prototypes: Floats  # (m, c)

    def rows(self, places: NDArray[np.intp]) -> ClassEvidence:
        """Some of the images."""
        return ClassEvidence(self.neighbours[places], self.distances[places], self.prototypes[places])


@dataclass(frozen=True)
class Calibration:
    """The way from evidence to probabilities, and how far they were right where the truth is known.

    Attributes:
        by: what decides: neighbours, prototypes, or the weighted sum of both logits.
        weighting: of neighbours: `uniform`, or `distance`, exp(−(d − d₁)/spread) with d₁ that of the nearest.
        spread: the median of the last neighbour's distance minus the first's.
        weights: of the logits of neighbours, of prototypes, or of both.
        error: expected calibration error, each half of the answers under the weights of the other half; NaN where there
            were too few.
        accuracy: share of these answers that were right.
        n: how many there were.
        source: what they were, or what was lacking.
    """

    by: By
    weighting: Votes
    spread: float
    weights: tuple[float, ...]
    source: str
    n: int = 0
    error: float = math.nan
    accuracy: float = math.nan

    def __str__(self) -> str:
        """One sentence."""
        if not self.n:
            return f"confidence is not calibrated: there is {self.source}"
        error = "too few to say how well" if math.isnan(self.error) else f"expected calibration error {self.error:.3f}"
        return f"confidence is calibrated on {self.source}: accuracy {self.accuracy:.1%}, {error}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return {name: None if value != value else value for name, value in asdict(self).items()}

    @classmethod
    def fit(cls, evidence: ClassEvidence, truth: Codes, *, by: By, weighting: Votes, source: str) -> Calibration:
        """The calibration of highest likelihood on images whose class numbers (m,) are known."""
        found, n = cls._fitted(evidence, truth, by, weighting, source), len(truth)
        if not n:
            return found
        error, right = math.nan, found.probabilities(evidence).argmax(1) == truth
        if n >= LEAST:
            crossed = np.empty(evidence.prototypes.shape)
            halves = np.array_split(np.random.default_rng(0).permutation(n), 2)
            for mine, others in (halves, halves[::-1]):
                other = cls._fitted(evidence.rows(others), truth[others], by, weighting, source)
                crossed[mine] = other.probabilities(evidence.rows(mine))
            error = expected_calibration_error(crossed, truth)
        return replace(found, n=n, error=error, accuracy=float(right.mean()))

    @classmethod
    def _fitted(cls, evidence: ClassEvidence, truth: Codes, by: By, weighting: Votes, source: str) -> Calibration:
        """The same without its errors."""
        far = np.where(evidence.neighbours < 0, -np.inf, evidence.distances).max(1, initial=-np.inf)
        reach = far - evidence.distances.min(1, initial=np.inf)
        reach = reach[np.isfinite(reach)]
        spread = max(float(np.median(reach)) if len(reach) else 0.0, 1e-9)
        found = cls(by, weighting, spread, (), source)
        return replace(found, weights=fit_weights(found.logits(evidence), truth))

    def logits(self, evidence: ClassEvidence) -> list[Floats]:
        """Logits (m, c) before they are weighted, of neighbours and of prototypes, as far as they decide."""
        votes = [] if self.by == "prototypes" else [self._votes(evidence)]
        return [*votes, *([] if self.by == "knn" else [-evidence.prototypes])]

    def _votes(self, evidence: ClassEvidence) -> Floats:
        """Logarithms of the shares of votes; one vote more is divided among all classes (Laplace's rule)."""
        m, c = evidence.prototypes.shape
        nearest = evidence.distances.min(1, keepdims=True, initial=np.inf)
        behind = evidence.distances - np.where(nearest < np.inf, nearest, 0)
        weights = np.exp(-behind / self.spread) if self.weighting == "distance" else np.isfinite(behind)
        votes = np.full((m, c + 1), 1 / c)  # the last column is that of no class
        np.add.at(votes, (np.arange(m)[:, None], evidence.neighbours), weights)
        shares: Floats = votes[:, :c] / votes[:, :c].sum(1, keepdims=True)
        return np.log(shares)

    def probabilities(self, evidence: ClassEvidence) -> Floats:
        """Probabilities (m, c) of the classes; rows sum to 1."""
        return weighted_softmax(self.logits(evidence), self.weights)


def weighted_softmax(logits: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Probabilities (m, c) of a weighted sum of logits (m, c)."""
    from scipy.special import softmax

    return np.asarray(softmax(sum(w * each for w, each in zip(weights, logits, strict=True)), axis=1), np.float64)


def fit_weights(logits: Sequence[Floats], truth: Codes) -> tuple[float, ...]:
    """The weights of logits (m, c) under which the true classes (m,) are most likely; 1 for each without a truth.

    The truth counts 1 − 1/(m + 2), as in Platt 1999: where all m answers are right, confidence stays below 1.

    Source: Guo et al. 2017, arXiv:1706.04599, §4.2 (temperature scaling), here with one temperature per logit.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    if not len(truth):
        return (1.0,) * len(logits)
    sizes = [float(np.std(each)) or 1.0 for each in logits]
    parts, rows = np.stack([each / size for each, size in zip(logits, sizes, strict=True)]), np.arange(len(truth))
    doubt, n_classes = 1 / (len(truth) + 2), parts.shape[2]  # that the next answer is wrong where all were right
    target = np.full(parts.shape[1:], doubt / max(1, n_classes - 1))
    target[rows, truth] = 1 - doubt

    def loss(exponents: Floats) -> tuple[float, Floats]:
        weights = np.exp(exponents)
        logs = log_softmax(np.tensordot(weights, parts, 1), axis=1)
        slopes = (parts * (np.exp(logs) - target)).sum((1, 2))
        return float(-(target * logs).sum() / len(truth)), weights * slopes / len(truth)

    found = minimize(loss, np.zeros(len(parts)), jac=True, method="L-BFGS-B", bounds=[(-5, 5)] * len(parts))
    return tuple(float(weight) for weight in np.exp(found.x) / sizes)


def expected_calibration_error(probabilities: Floats, truth: Codes, *, bins: int = 15) -> float:
    """Mean difference of confidence and accuracy over bins of equal width, weighted by their sizes, in [0, 1].

    Args:
        probabilities: of m images for c classes, (m, c); confidence is a row's largest.
        truth: class numbers, (m,).
        bins: of the confidence.

    Source: Guo et al. 2017, arXiv:1706.04599, Eq. 3.

    >>> expected_calibration_error(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))
    0.25
    """
    if not len(truth):
        raise InputError("a calibration error needs at least one answer, got none")
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))
