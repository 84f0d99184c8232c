"""How far a mean accuracy can be trusted: three intervals, each with the question that it answers.

The usual ± says how the mean would move with other episodes of the same classes. It shrinks to nothing as episodes are
added, although the test classes are a small sample themselves. The class jackknife says how the mean would move with
other classes, and is usually several times wider.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = [
    "Interval",
    "Intervals",
    "bootstrap_interval",
    "class_jackknife_interval",
    "intervals",
    "required_episodes",
    "student_t_quantile",
    "usual_interval",
]

Z = 1.96  # the 97.5 % point of the normal distribution as the field rounds it

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval around a mean over episodes, in the unit of the values.

    Attributes:
        kind: `usual`, `bootstrap` or `class jackknife`.
        mean: the mean over episodes.
        low: lower end.
        high: upper end.
        question: what the interval answers, in words.
    """

    kind: str
    mean: float
    low: float
    high: float
    question: str

    @property
    def half_width(self) -> float:
        """Half the distance between the ends: the number after ±."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Intervals:
    """The three intervals of one mean, side by side.

    `class_jackknife` is None where it does not exist: when some class is in every episode, for example when a 5-way
    test has only five classes. Nothing is known about other classes then.
    """

    usual: Interval
    bootstrap: Interval
    class_jackknife: Interval | None

    def __iter__(self) -> Iterator[Interval]:
        """Those that exist, from the narrowest question to the widest."""
        yield self.usual
        yield self.bootstrap
        if self.class_jackknife is not None:
            yield self.class_jackknife


def usual_interval(values: Values) -> Interval:
    """Mean ± 1.96·s/√E over E episodes, s with E − 1: the ± of the papers.

    >>> round(usual_interval(np.array([0.2, 0.4, 0.6])).half_width, 4)
    0.2263
    """
    _check_values(values)
    mean, half = float(values.mean()), Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    question = "Where would the mean be with other episodes of the same classes and images?"
    return Interval("usual", mean, mean - half, mean + half, question)


def bootstrap_interval(values: Values, *, n_resamples: int = 2000, seed: int = 0) -> Interval:
    """The middle 95 % of the means of resampled episodes.

    Accuracies take few different values, so a resample is one multinomial draw of how often each value occurs.
    """
    _check_values(values)
    distinct, count = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), count / len(values), size=n_resamples)
    low, high = np.quantile(draws @ distinct / len(values), [0.025, 0.975])
    question = "The same question, without taking the mean to be normally distributed."
    return Interval("bootstrap", float(values.mean()), float(low), float(high), question)


def class_jackknife_interval(values: Values, ways: NDArray[np.integer]) -> Interval:
    """Mean ± t·SE, SE from leaving out one class at a time, t with C − 1 degrees of freedom.

    Leaving out class c means the episodes without it; no model is run again. SE² = (C−1)/C · Σ_c (θ_−c − mean θ_−)².

    Args:
        values: one number per episode, (E,).
        ways: class numbers of each episode, (E, N).

    Raises:
        InputError: a class is in every episode, so that it cannot be left out.

    Source: Efron & Stein 1981 (delete-one jackknife); the question is that of Lafargue et al. 2024, arXiv:2409.02850.
    """
    _check_values(values)
    _, class_of = np.unique(ways, return_inverse=True)
    class_of = class_of.reshape(ways.shape)
    n_classes = int(class_of.max()) + 1
    n_without = len(values) - np.bincount(class_of.ravel())
    if not n_without.all():
        raise InputError(
            f"every episode holds some one of the {n_classes} classes, so the class jackknife does not exist; "
            "test on more classes than n_way, with more episodes"
        )
    inside = np.bincount(class_of.ravel(), weights=np.repeat(values, ways.shape[1]))
    without = (values.sum() - inside) / n_without
    error = math.sqrt((n_classes - 1) / n_classes * float(np.square(without - without.mean()).sum()))
    mean, half = float(values.mean()), student_t_quantile(0.975, n_classes - 1) * error
    question = "Where would the mean be with other classes of the same kind?"
    return Interval("class jackknife", mean, mean - half, mean + half, question)


def intervals(values: Values, ways: NDArray[np.integer], *, seed: int = 0) -> Intervals:
    """The three intervals of the mean of `values`, (E,), over episodes with classes `ways`, (E, N)."""
    try:
        jackknife = class_jackknife_interval(values, ways)
    except InputError:
        jackknife = None
    return Intervals(usual_interval(values), bootstrap_interval(values, seed=seed), jackknife)


def required_episodes(standard_deviation: float, *, half_width: float) -> int:
    """Episodes after which the usual interval is at most ±`half_width`: ⌈(1.96·s/half_width)²⌉.

    More episodes do not narrow the class jackknife: only more classes do.

    >>> required_episodes(0.10, half_width=0.002)  # the ±0.2 points of 10,000-episode papers
    9604
    """
    if not (standard_deviation >= 0 and half_width > 0 and math.isfinite(standard_deviation)):
        raise InputError(f"expected deviation ≥ 0 and half width > 0, got {standard_deviation} and {half_width}")
    exact = (Z * standard_deviation / half_width) ** 2
    return max(2, math.ceil(exact - 1e-9 * exact))  # 9604.000000000002 is 9604


def student_t_quantile(probability: float, df: int) -> float:
    """The t below which `probability` of Student's distribution lies, for a whole number of degrees of freedom.

    >>> round(student_t_quantile(0.975, 19), 3)
    2.093
    """
    if not 0.5 <= probability < 1 or df < 1:
        raise InputError(f"expected 0.5 ≤ probability < 1 and df ≥ 1, got {probability} and {df}")
    low, high = 0.0, math.pi / 2  # θ = atan(t/√df); the probability grows with it
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < 2 * probability - 1 else (low, middle)
    return math.tan(low) * math.sqrt(df)


def _within(theta: float, df: int) -> float:
    """P(|t| ≤ √df·tan θ), a finite sum. Source: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    odd = df % 2
    term, total = (math.cos(theta) if odd else 1.0), 0.0
    for i in range(1 + odd, df, 2):
        total += term
        term *= i / (i + 1) * math.cos(theta) ** 2
    inside = math.sin(theta) * total
    return 2 / math.pi * (theta + inside) if odd else inside


def _check_values(values: Values) -> None:
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise InputError(f"an interval needs finite values of at least two episodes, got shape {values.shape}")
