"""Scores of different kinds, each turned into a probability of "the same", and averaged.

Source: Cermak et al., WildFusion: individual animal identification with calibrated similarity fusion, 2024; logistic
calibration: Platt, 1999.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
NULL_SHARES = (0.5, 0.9, 0.99)
USUAL_NULL = (8, 11, 16)  # inliers of 100 lines on unrelated photographs, MobileNetV2; where nothing was measured


@dataclass(frozen=True)
class Logistic:
    """The probability 1 / (1 + exp(-(slope · score + intercept)))."""

    slope: float
    intercept: float

    def __call__(self, scores: ArrayLike) -> Floats:
        """Probabilities of scores, in [0, 1]."""
        return np.asarray(1 / (1 + np.exp(-np.clip(self.slope * np.asarray(scores) + self.intercept, -60, 60))))

    @classmethod
    def fit(cls, scores: ArrayLike, is_same: ArrayLike, *, ridge: float = 1e-3) -> Logistic:
        """The calibration of highest likelihood, held finite by a small ridge on the slope of standardised scores.

        A slope below 0 would say that higher scores speak against; it is set to 0, so that the score says nothing.

        >>> found = Logistic.fit([0.0, 1.0, 2.0, 3.0], [False, True, False, True])
        >>> bool(found(3.0) > found(0.0))
        True
        """
        from sklearn.linear_model import LogisticRegression

        values, target = np.asarray(scores, float), np.asarray(is_same, bool)
        if target.all() or not target.any():
            return cls(0.0, 20.0 if target.any() else -20.0)
        middle, spread = values.mean(), values.std() or 1.0
        standard = (values[:, None] - middle) / spread
        model = LogisticRegression(C=1 / (ridge * len(values)), tol=1e-8).fit(standard, target)
        slope = max(0.0, float(model.coef_[0, 0] / spread))
        return cls(slope, float(model.intercept_[0] - slope * middle))


@dataclass(frozen=True)
class LineScale:
    """Scale of a gallery's lines: everything that they are measured against."""

    layer: str  # of the backbone, from which fine maps are read; "" is the last map
    mean: tuple[float, ...]  # of the fine map's channels, over images and places
    null: tuple[int, int, int]  # inliers on unrelated pairs: median, 90 % and 99 % quantile
    pairs: int  # how many pairs were measured; 0: the usual quantiles are taken
    similarity: tuple[float, float]  # mean and standard deviation over pairs of gallery images

    @property
    def is_measured(self) -> bool:
        """False of a gallery that keeps fine maps whose scale nobody has asked for yet."""
        return bool(self.mean)

    @classmethod
    def unmeasured(cls, layer: str) -> LineScale:
        """The scale of a gallery of which only the layer is settled."""
        return cls(layer, (), USUAL_NULL, 0, (0.0, 1.0))


@dataclass(frozen=True)
class Fusion:
    """Calibrations of the two scores of a pair, and what they were fitted on."""

    similarity: Logistic  # of the similarity in standard deviations above the mean of `LineScale.similarity`.
    inliers: Logistic  # of the logarithm of (inliers + 1) / (median on unrelated pairs + 1)
    source: str  # the pairs

    def __call__(self, similarities: ArrayLike, inliers: ArrayLike, scale: LineScale) -> Floats:
        """The mean of the two probabilities of "the same" for each pair, in [0, 1]."""
        scores = fusion_scores(similarities, inliers, scale)
        return np.asarray((self.similarity(scores[0]) + self.inliers(scores[1])) / 2)


USUAL_FUSION = Fusion(Logistic(0.1, -2.8), Logistic(0.91, -3.3), "the usual pairs")


@dataclass(frozen=True)
class VerifyGain:
    """A look at the gallery's own labelled images: what sorting the first `k` anew by lines would have done."""

    fusion: Fusion  # fitted on the other half of the images
    k: int
    queries: int  # that asked, each without itself
    before: float  # share whose first match is of their class
    after: float  # the same when sorted anew
    low: float  # end of the paired 95 % interval of the difference
    high: float  # the other end
    generation: int  # of the gallery

    @property
    def helps(self) -> bool | None:
        """True or False where the interval leaves 0 out, else None."""
        return None if self.low <= 0 <= self.high else self.low > 0

    def __str__(self) -> str:
        """One sentence."""
        words = {True: "helps", False: "does harm", None: "is not seen to help"}[self.helps]
        return (
            f"sorting the first {self.k} anew by lines {words} here: R@1 {self.before:.3f} → {self.after:.3f}, "
            f"difference {self.after - self.before:+.3f} [{self.low:+.3f}, {self.high:+.3f}] on {self.queries:,} "
            "images of its own, each without itself"
        )


def fusion_scores(similarities: ArrayLike, inliers: ArrayLike, scale: LineScale) -> tuple[Floats, Floats]:
    """Inputs of `Fusion`: standardised similarities and the logarithms of inliers over their usual number."""
    mean, deviation = scale.similarity
    above = (np.asarray(similarities, float) - mean) / (deviation or 1.0)
    return above, np.log((np.asarray(inliers, float) + 1) / (scale.null[0] + 1))


def fit_fusion(similarity: Any, inliers: Any, is_same: Any, *, scale: LineScale, source: str) -> Fusion:
    """Both calibrations from the same labelled pairs."""
    above, excess = fusion_scores(similarity, inliers, scale)
    return Fusion(Logistic.fit(above, is_same), Logistic.fit(excess, is_same), source)
