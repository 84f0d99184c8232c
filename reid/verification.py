"""Verification and identification: accept and reject rates by distance, over all pairs and over all probes.

A threshold accepts distances that are at most it. Rates are exact shares of the pairs at their threshold, of which some
are left out where there are too many; only the equal error rate lies between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_EXACT_PAIRS = 1 << 22  # up to so many pairs every distance is a threshold; beyond, `_N_BINS` thresholds
_N_BINS = 1 << 20
_CURVE_POINTS = 512
_HISTOGRAM_BINS = 64


@dataclass(frozen=True)
class OperatingPoint:
    """The largest threshold at which at most `target` of the impostors are accepted.

    Attributes:
        target: the false accept rate asked for, in (0, 1].
        threshold: accept distances up to here; None if even the smallest distance accepts too many.
        true_accept_rate: share of the genuine that is accepted (for identification: and ranked first).
        false_accept_rate: share of the impostors that is accepted, at most `target`.
        is_resolved: whether there are enough impostors (1 / target) to tell the target from zero.
    """

    target: float
    threshold: float | None
    true_accept_rate: float
    false_accept_rate: float
    is_resolved: bool


@dataclass(frozen=True, eq=False)
class Verification:
    """Same or not, over all pairs of a query and a gallery image that the protocol lets meet.

    Attributes:
        n_genuine: pairs of one identity.
        n_impostor: pairs of two identities (junk is none, distractors are).
        equal_error_rate: where false accepts and false rejects are equally frequent, between two thresholds if need be.
        equal_error_threshold: the observed distance next to it.
        operating_points: TAR@FAR.
        thresholds, true_accept_rate, false_accept_rate: the ROC, thinned for drawing, ascending.
        histogram_edges, genuine_histogram, impostor_histogram: counts of pairs per interval of distance.
    """

    n_genuine: int
    n_impostor: int
    equal_error_rate: float
    equal_error_threshold: float
    operating_points: tuple[OperatingPoint, ...]
    thresholds: NDArray[np.float64]
    true_accept_rate: NDArray[np.float64]
    false_accept_rate: NDArray[np.float64]
    histogram_edges: NDArray[np.float64]
    genuine_histogram: NDArray[np.int64]
    impostor_histogram: NDArray[np.int64]


@dataclass(frozen=True)
class Identification:
    """Open-set identification: probes with a match against probes without one.

    Attributes:
        n_mated: probes with a match in the gallery.
        n_unmated: probes whose every alarm is false.
        operating_points: DIR@FAR; a mated probe is identified when a match is first and near enough.
    """

    n_mated: int
    n_unmated: int
    operating_points: tuple[OperatingPoint, ...]


class PairTally:
    """Counts of genuine and impostor pairs by distance, collected block by block in bounded memory.

    Bins are whole multiples of a power of two, so that no pair is on the wrong side of its threshold by rounding.
    """

    def __init__(self, n_pairs: int, *, bounds: tuple[float, float], dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._exact: list[list[NDArray[Any]]] | None = [[], [], []] if n_pairs <= _EXACT_PAIRS else None
        low, high = bounds
        # The power of two by which distances are multiplied so that whole numbers are bins: no finer than the
        # distances' own precision near the bounds, which keeps every product a whole number of 53 bits.
        finest = np.finfo(dtype).nmant - int(np.frexp(max(abs(low), abs(high)))[1])
        self._exponent = min(finest, int(np.floor(np.log2(_N_BINS / (high - low))))) if high > low else finest
        self._low = int(np.floor(np.ldexp(low, self._exponent)))
        self._n_bins = int(np.floor(np.ldexp(high, self._exponent))) - self._low + 2  # the last: beyond the bounds
        self._counts = np.zeros((3, 1 if self._exact is not None else self._n_bins), np.int64)
        self._farthest = -np.inf

    def add(self, everything: NDArray[Any], *, genuine: NDArray[Any], ignored: NDArray[Any]) -> None:
        """Count a block: all its distances, and which of them belong to genuine and to ignored pairs."""
        for kind, values in enumerate((everything.ravel(), genuine, ignored)):
            if self._exact is not None:
                self._exact[kind].append(values.copy())
                continue
            self._farthest = max(self._farthest, float(values.max(initial=-np.inf)))
            for start in range(0, values.size, _EXACT_PAIRS):
                scaled = np.ldexp(values[start : start + _EXACT_PAIRS], self._exponent)  # exact, as is its floor
                np.clip(np.floor(scaled, out=scaled), self._low, self._low + self._n_bins - 1, out=scaled)
                self._counts[kind] += np.bincount(scaled.astype(np.intp) - self._low, minlength=self._n_bins)

    def counts(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Ascending thresholds, and the genuine and the impostor pairs between each and the one before."""
        if self._exact is None:
            everything, genuine, ignored = self._counts
            # the largest number of each bin in the distances' own precision
            edge = np.ldexp(self._low + np.arange(1.0, self._n_bins + 1), -self._exponent)
            end = edge.astype(self._dtype)
            below = np.nextafter(end, self._dtype.type(-np.inf))
            thresholds = np.where(end >= edge, below, end).astype(np.float64)
            thresholds[-1] = max(self._farthest, thresholds[-1])
        else:
            parts = [np.concatenate(kind) for kind in self._exact]
            thresholds = np.unique(parts[0])
            everything, genuine, ignored = (
                np.bincount(np.searchsorted(thresholds, part), minlength=thresholds.size) for part in parts
            )
        impostor = everything - genuine - ignored
        used = np.flatnonzero(genuine + impostor)
        return thresholds[used].astype(np.float64), genuine[used], impostor[used]

    def finish(self, targets: Sequence[float]) -> Verification | None:
        """The rates, or None where there are no genuine or no impostor pairs."""
        thresholds, genuine, impostor = self.counts()
        if not genuine.sum() or not impostor.sum():
            return None
        n_genuine, n_impostor = int(genuine.sum()), int(impostor.sum())
        accepted, wrongly = np.cumsum(genuine) / n_genuine, np.cumsum(impostor) / n_impostor
        # Equal errors: where false accepts meet false rejects on the straight line between two thresholds.
        gap = wrongly - (1 - accepted)  # rises from −1, where nothing is accepted, to 1
        after = int(np.argmax(gap >= 0))
        before_gap, before_rate = (gap[after - 1], wrongly[after - 1]) if after else (-1.0, 0.0)
        rate = before_rate - before_gap / (gap[after] - before_gap) * (wrongly[after] - before_rate)
        nearest = after if after == 0 or gap[after] <= -before_gap else after - 1
        # The curve has about a thousand points at most: evenly in false accepts, and in their logarithm.
        shown = np.arange(accepted.size)
        if accepted.size > _CURVE_POINTS:
            low = wrongly[wrongly > 0][0]
            grid = np.concatenate([np.linspace(0, 1, _CURVE_POINTS), np.geomspace(low, 1, _CURVE_POINTS)])
            shown = np.unique(np.maximum(np.searchsorted(wrongly, grid, side="right") - 1, 0))
        edges = np.histogram_bin_edges(thresholds, _HISTOGRAM_BINS)
        return Verification(
            n_genuine=n_genuine,
            n_impostor=n_impostor,
            equal_error_rate=float(rate),
            equal_error_threshold=float(thresholds[nearest]),
            operating_points=_operating_points(thresholds, accepted, wrongly, targets=targets, n_impostor=n_impostor),
            thresholds=thresholds[shown],
            true_accept_rate=accepted[shown],
            false_accept_rate=wrongly[shown],
            histogram_edges=edges,
            genuine_histogram=np.histogram(thresholds, edges, weights=genuine)[0].astype(np.int64),
            impostor_histogram=np.histogram(thresholds, edges, weights=impostor)[0].astype(np.int64),
        )


def identification(
    identified: NDArray[Any], alarms: NDArray[Any], *, n_mated: int, targets: Sequence[float]
) -> Identification | None:
    """DIR@FAR by distances of matches that rank first and of false alarms; None without probes of both kinds."""
    if not n_mated or not alarms.size:
        return None
    thresholds = np.unique(np.concatenate([identified, alarms]).astype(np.float64))
    found = np.searchsorted(np.sort(identified), thresholds, side="right") / n_mated
    wrongly = np.searchsorted(np.sort(alarms), thresholds, side="right") / alarms.size
    points = _operating_points(thresholds, found, wrongly, targets=targets, n_impostor=alarms.size)
    return Identification(n_mated, int(alarms.size), points)


def _operating_points(
    thresholds: Floats, accepted: Floats, wrongly: Floats, *, targets: Sequence[float], n_impostor: int
) -> tuple[OperatingPoint, ...]:
    points = []
    for target in targets:
        last = int(np.searchsorted(wrongly, target, side="right")) - 1
        at: tuple[float | None, float, float] = (None, 0.0, 0.0)
        if last >= 0:
            at = float(thresholds[last]), float(accepted[last]), float(wrongly[last])
        points.append(OperatingPoint(target, *at, n_impostor * target >= 1))
    return tuple(points)
