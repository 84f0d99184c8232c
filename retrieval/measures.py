"""Standard errors of measures by resampling, and the agreement of clusterings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["bootstrap_errors"]

Values = NDArray[np.float64]


def bootstrap_errors(values: Values, groups: NDArray[Any], *, resamples: int, seed: int) -> Values:
    """Standard errors of the means of the columns of (n, m) values when whole groups are drawn again.

    A group is a query, or all queries of a class: queries of one class succeed and fail together, and another set of
    test classes would give another number. NaN with a single group. Neither the order of rows nor the names of groups
    change the draws.
    """
    _, group = np.unique(groups, return_inverse=True)
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < 2:
        return np.full(values.shape[1], np.nan)
    sums = np.column_stack(
        [np.bincount(group), *(np.bincount(group, weights=column, minlength=n_groups) for column in values.T)]
    ).astype(np.float64)
    sums = sums[np.lexsort(np.round(sums, 9).T)]  # sums of the same values in another order differ in their last bits
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for row in range(resamples):
        times = np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups)
        totals = times @ sums
        means[row] = totals[1:] / totals[0]
    errors: Values = means.std(axis=0, ddof=1)
    return errors
