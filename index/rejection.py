"""Rejection: the largest distance of a match, and how that threshold is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Distances = NDArray[np.float64]


@dataclass(frozen=True)
class Rejection:
    """A rejection threshold and what it did to the probes it was chosen on.

    Attributes:
        threshold: nearest images at most this far are matches, in the units of the gallery's metric.
        target: the false alarm rate asked for, in (0, 1).
        false_alarm_rate: share of the unknown probes that were accepted, at most `target`.
        identification_rate: share of the known probes whose nearest image was of their class and near enough.
        closed_set_rate: the same without a threshold: what rejection costs is the difference.
        n_known, n_unknown: numbers of probes.
        is_resolved: there were enough unknown probes (1 / target) to tell the target from zero.
        source: what the probes were.
        generation: of the gallery at that time.
    """

    threshold: float
    target: float
    false_alarm_rate: float
    identification_rate: float
    closed_set_rate: float
    n_known: int
    n_unknown: int
    is_resolved: bool
    source: str
    generation: int

    def __str__(self) -> str:
        """One sentence."""
        return (
            f"matches are at most {self.threshold:.4g} away: {self.false_alarm_rate:.2%} of {self.n_unknown} unknown "
            f"probes pass, {self.identification_rate:.2%} of {self.n_known} known ones are identified "
            f"({self.closed_set_rate:.2%} without a threshold); from {self.source}"
        )


class NearestOfBothKinds(NamedTuple):
    """Distances (p,) of the nearest image of a probe's own class and of the nearest other one; inf if there is none."""

    same: Distances
    other: Distances


def choose_threshold(nearest: NearestOfBothKinds, *, target: float, source: str, generation: int) -> Rejection:
    """The largest threshold that at most `target` of the unknown probes pass.

    A tie between a probe's own class and another counts as a wrong answer.

    >>> nearest = NearestOfBothKinds(np.array([0.1, 0.2, 0.5]), np.array([0.3, 0.4, 0.45]))
    >>> choose_threshold(nearest, target=0.4, source="an example", generation=1).threshold
    0.3
    """
    if not 0 < target < 1:
        raise InputError(f"the false alarm rate must lie in (0, 1), got {target}")
    known, alarms = nearest.same < np.inf, np.sort(nearest.other[nearest.other < np.inf])
    n_known, n_unknown = int(known.sum()), len(alarms)
    if not n_known or not n_unknown:
        raise InputError(
            f"calibration needs probes of classes that are in the gallery twice, and at least two classes; "
            f"{n_known} probes have an image of their class to find, {n_unknown} an image of another to be taken for"
        )
    is_first = known & (nearest.same < nearest.other)
    candidates = np.unique(np.concatenate([nearest.same[is_first], alarms]))
    passing = np.searchsorted(alarms, candidates, side="right") / n_unknown
    allowed = np.flatnonzero(passing <= target)
    if not len(allowed):
        raise InputError(
            f"no threshold keeps false alarms at {target:.2%}: already at the smallest distance, {candidates[0]:.4g}, "
            f"{passing[0]:.2%} of the unknown probes pass; ask for more, or look for images under two labels"
        )
    best = int(allowed[-1])
    threshold = float(candidates[best])
    return Rejection(
        threshold=threshold,
        target=target,
        false_alarm_rate=float(passing[best]),
        identification_rate=float((is_first & (nearest.same <= threshold)).sum() / n_known),
        closed_set_rate=float(is_first.sum() / n_known),
        n_known=n_known,
        n_unknown=n_unknown,
        is_resolved=n_unknown * target >= 1,
        source=source,
        generation=generation,
    )
