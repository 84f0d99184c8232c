"""Rejection: the largest distance of a match, chosen on known and unknown probes.

A known probe is identified when its nearest image is of its class and near enough; for an unknown one whatever is near
enough is a false alarm. Each labelled probe serves as both, the second time with its class left out of the gallery.
Answers of classes have a threshold of their own, on `class_scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from ..errors import InputError, ShapeError
from ..images.labelling import twins
from ..metrics.distances import Distances, Vectors, check_vectors, comparable, distances_to, rough_distances
from ..remarks import remark

if TYPE_CHECKING:
    from .prototypes import PrototypeStore
    from .search import Ids
    from .storage.snapshot import Snapshot

Codes = NDArray[np.int64]
_BLOCK_BYTES = 16 << 20


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
        class_threshold: the same for answers of `classify`, on `class_scores`; None where the distance decides: by an
            earlier version, with fewer than three classes, with the metric dot, or if none keeps the target.
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
    class_threshold: float | None = None

    def __str__(self) -> str:
        """One sentence."""
        classes = "" if self.class_threshold is None else f"; classes score at most {self.class_threshold:.4g}"
        return (
            f"matches are at most {self.threshold:.4g} away: {self.false_alarm_rate:.2%} of {self.n_unknown} unknown "
            f"probes pass, {self.identification_rate:.2%} of {self.n_known} known ones are identified "
            f"({self.closed_set_rate:.2%} without a threshold); from {self.source}{classes}"
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


def class_scores(distances: Distances) -> Distances:
    """Scores (m,) of the distances to class means (m, c): the nearest, squared, over the second nearest.

    Small where one class is near and no other is. Measured beside eight others in benchmarks/classification.py.

    >>> class_scores(np.array([[0.5, 0.1, 0.4], [0.4, 0.8, 0.4]]))
    array([0.025, 0.4  ])
    """
    nearest, second = np.partition(distances, 1, axis=1)[:, :2].T
    return np.asarray(nearest**2 / np.maximum(second, 1e-12))


# --- Probes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Probes:
    """Labelled vectors to calibrate on, (p, d), in `comparable` form.

    Attributes:
        labels: class codes, (p,), the gallery's; -1 for a class that the gallery does not have.
        ids: the gallery's ids where the probes are its own images, which never meet themselves; None for others.
        groups: codes of what a probe must not share with an image of its class (a camera, a photo), or None.
    """

    vectors: Vectors
    labels: Codes
    ids: Ids | None = None
    groups: Codes | None = None

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.vectors, self.labels, self.ids, self.groups) if part is not None}
        if lengths != {len(self.vectors)}:
            raise ShapeError(f"probes need one label, id and group each, got parts of lengths {sorted(lengths)}")


def own_probes(snapshot: Snapshot, *, most: int, seed: int, column: str | None = None) -> Probes:
    """Labelled images of the gallery itself, at most so many, drawn with `seed`; `column` gives the groups."""
    labels = snapshot.column("label").codes
    labelled = np.flatnonzero(labels >= 0)
    places = np.sort(np.random.default_rng(seed).permutation(labelled)[:most])
    vectors = _ranking_form(snapshot, snapshot.embeddings(snapshot.ids[places]))
    groups = None if column is None else snapshot.column(column).codes[places].astype(np.int64)
    return Probes(vectors, labels[places].astype(np.int64), snapshot.ids[places], groups)


def probes_of(
    snapshot: Snapshot,
    embeddings: npt.ArrayLike,
    labels: Sequence[str | None],
    *,
    column: str | None = None,
    groups: Sequence[str | None] | None = None,
) -> Probes:
    """Raw embeddings (p, d) of other images with their labels, and their values in the gallery's `column`."""
    coded = None if groups is None or column is None else _codes(snapshot, column, groups)
    known = snapshot.column("label").values
    own = set(known)
    strange = dict.fromkeys(label for label in labels if label is not None and label not in own)
    found = [(first, name) for first, name in twins([*known, *strange]) if name in strange and first in own]
    if found:
        count = sum(label == found[0][1] for label in labels)
        remark(
            f"{len(found):,} classes of the probes differ from the gallery's in their spelling alone, such as "
            f"{found[0][1]!r} ({count:,} images) and {found[0][0]!r}; they count as unknown to the gallery",
        )
    return Probes(_ranking_form(snapshot, embeddings), _codes(snapshot, "label", labels), groups=coded)


def _codes(snapshot: Snapshot, column: str, values: Sequence[str | None]) -> Codes:
    known = {value: code for code, value in enumerate(snapshot.column(column).values)}
    return np.array([-1 if value is None else known.get(value, -1) for value in values], np.int64)


def _ranking_form(snapshot: Snapshot, embeddings: npt.ArrayLike) -> Vectors:
    spec = snapshot.search_spec
    return comparable(spec, *check_vectors(spec, embeddings, what="probes"))


def nearest_of_both_kinds(snapshot: Snapshot, probes: Probes, *, column: str | None = None) -> NearestOfBothKinds:
    """The two distances of each probe, exact in float64, in one pass over the gallery.

    Images of a probe's class that share its group, which `column` has, are passed over: they say nothing about it being
    found elsewhere. An image without a class counts as one of another.
    """
    spec, stop = snapshot.search_spec, 0
    same, other = (np.full(len(probes.labels), np.inf) for _ in range(2))
    all_labels = snapshot.column("label").codes.astype(np.int64)
    all_groups = None if column is None else snapshot.column(column).codes.astype(np.int64)
    for ids, raw in snapshot.blocks(block_bytes=_BLOCK_BYTES):
        start, stop = stop, stop + len(ids)
        vectors, labels = comparable(spec, raw.embedding), all_labels[start:stop]
        rough = rough_distances(spec, probes.vectors, vectors)
        is_own = (labels == probes.labels[:, None]) & (labels >= 0)
        is_passed_over = np.zeros_like(is_own)
        if probes.ids is not None:
            is_passed_over |= ids == probes.ids[:, None]
        if all_groups is not None and probes.groups is not None:
            is_passed_over |= all_groups[start:stop] == probes.groups[:, None]
        for best, is_of_kind in ((same, is_own & ~is_passed_over), (other, ~is_own)):
            rows = np.flatnonzero(is_of_kind.any(1))
            nearest = np.where(is_of_kind[rows], rough[rows], np.inf).argmin(1)
            exact = distances_to(spec, probes.vectors, vectors[nearest], which=rows)  # a search would report these
            best[rows] = np.minimum(best[rows], exact)
    return NearestOfBothKinds(same, other)


def class_threshold(store: PrototypeStore, probes: Probes, classes: Sequence[str], *, target: float) -> float | None:
    """The largest of `class_scores` that at most `target` of probes have without their class; None if none does.

    `classes` are the names behind the probes' class codes; see `choose_threshold`.
    """
    if len(store) < 3 or store.metric == "dot":
        return None
    labels = [None if code < 0 else classes[code] for code in probes.labels]
    distances = store.distances(probes.vectors, () if probes.ids is None else labels)
    truth = np.array([store.labels.index(label) if label in store else -1 for label in labels])
    same = np.where(distances.argmin(1) == truth, class_scores(distances), np.inf)
    distances[truth >= 0, truth[truth >= 0]] = np.inf
    nearest = NearestOfBothKinds(same, class_scores(distances))
    with suppress(InputError):
        return choose_threshold(nearest, target=target, source="", generation=0).threshold
    return None
