"""P-values under nulls fitted to the gallery's own bulk, and the expected share of wrong findings.

Fits look at what findings, up to a third of the images, do not move.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import false_discovery_control

Values = NDArray[np.float64]


def smallest_p(logs: Values, bulk: Values) -> Values:
    """P-values of logarithms of smallest distances: P(d ≤ x) = 1 − exp(−(x / scale)^shape), the law of a minimum.

    Shape, the intrinsic dimension of the images, and scale are fitted to the quantiles at 40 and 80 % of `bulk`.
    """
    low, high = np.quantile(bulk, [0.4, 0.8])
    at_low, at_high = np.log(-np.log([0.6, 0.2]))
    shape = (at_high - at_low) / max(high - low, 1e-9)
    p: Values = -np.expm1(-np.exp(np.minimum(shape * (logs - high) + at_high, 50.0)))
    return p


def largest_p(values: Values) -> Values:
    """P-values of large numbers under the normal law of their median and their quantile at 16 %."""
    low, median = np.quantile(values, [0.1587, 0.5])
    p: Values = ndtr((median - values) / max(median - low, 1e-9))
    return p


def tail_p(values: Values, null: Values) -> Values:
    """P-values of large numbers under a null sample, whose largest twentieth is taken for exponential."""
    start = np.quantile(null, 0.95)
    excess = max(float(np.mean(null[null >= start] - start)), 1e-9)
    beyond = 0.05 * np.exp(-np.maximum(values - start, 0) / excess)
    inside = 1 - np.searchsorted(np.sort(null), values) / len(null)
    return np.where(values > start, beyond, np.maximum(inside, 0.05))


def shares_wrong(p: Values) -> Values:
    """Expected share of wrong ones among each and all that are clearer: p times their number over those found.

    Source: Benjamini and Hochberg 1995, whose step-up procedure keeps the share below a rate.

    >>> shares_wrong(np.array([0.001, 0.9, 0.02, 0.5]))
    array([0.004     , 0.9       , 0.04      , 0.66666667])
    """
    return np.asarray(false_discovery_control(p)) if len(p) else p
