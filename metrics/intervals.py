"""Bootstraps, and three intervals of a few-shot accuracy with the question that each answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Z = 1.96  # the 97.5 % point of the normal distribution as the field rounds it

_DRAWS_AT_ONCE = 1 << 19

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval around a mean over episodes, in the unit of the values, with the question that it answers.

    `kind` is `usual`, `bootstrap` or `class jackknife`.
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
        """The intervals that exist, from the narrowest question to the widest."""
        yield self.usual
        yield self.bootstrap
        if self.class_jackknife is not None:
            yield self.class_jackknife


def bootstrap_weights(n: int, *, samples: int, seed: int) -> Iterator[Float[Tensor, "s n"]]:
    """The weight of each of n things in every bootstrap sample, float64, rows of sum 1, some samples at a time."""
    import torch

    generator, step = torch.Generator().manual_seed(seed), max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, samples, step):
        drawn = torch.randint(n, (min(step, samples - start), n), generator=generator)
        weights = torch.zeros(drawn.shape, dtype=torch.float64)
        yield weights.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / n, dtype=torch.float64))


def bootstrap_means(values: Values, groups: NDArray[Any], *, samples: int, seed: int) -> Values:
    """Means of the columns of (n, m) values when whole groups are drawn again, (samples, m).

    A group is a query, or all queries of a class, which succeed and fail together. Neither the order of rows nor the
    names of groups change the draws.
    """
    group = np.unique(groups, return_inverse=True)[1]
    sums = np.column_stack([np.bincount(group), *(np.bincount(group, weights=column) for column in values.T)])
    sums = sums[np.lexsort(np.round(sums, 9).T)]  # sums of the same values in another order differ in their last bits
    totals = np.concatenate([part.numpy() @ sums for part in bootstrap_weights(len(sums), samples=samples, seed=seed)])
    means: Values = totals[:, 1:] / totals[:, :1]
    return means


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
    """The middle 95 % of the means of resampled episodes."""
    _check_values(values)
    distinct, count = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), count / len(values), size=n_resamples)
    low, high = np.quantile(draws @ distinct / len(values), [0.025, 0.975])
    question = "The same question, without taking the mean to be normally distributed."
    return Interval("bootstrap", float(values.mean()), float(low), float(high), question)


def class_jackknife_interval(values: Values, ways: NDArray[np.integer]) -> Interval:
    """Mean ± t·SE, SE from leaving out one class at a time, t with C − 1 degrees of freedom.

    Leaving out class c means the episodes without it; no model is run again. SE² = (C−1)/C · Σ_c (θ_−c − mean θ_−)².
    `values` (E,) are one number per episode, `ways` (E, N) its class numbers.

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
    from scipy.stats import t

    mean, half = float(values.mean()), float(t.ppf(0.975, n_classes - 1)) * error
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


def _check_values(values: Values) -> None:
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise InputError(f"an interval needs finite values of at least two episodes, got shape {values.shape}")
