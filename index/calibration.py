"""Calibrating a gallery: which distances known and unknown probes meet in it.

Two kinds of probe settle a rejection threshold. A *known* one has its class in the gallery: it is identified when its
nearest image is of that class and near enough. An *unknown* one has not: whatever is near enough is a false alarm. Each
labelled probe serves as both, once as it is and once with its class left out, so a gallery can be calibrated on itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from ..errors import ShapeError
from ..images.labelling import twins
from ..remarks import remark
from .rejection import NearestOfBothKinds
from .search import Ids, SearchSpec, Vectors, check_vectors, comparable, distances_to
from .storage.snapshot import Snapshot

Codes = NDArray[np.int64]
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class Probes:
    """Labelled vectors to calibrate on.

    Attributes:
        vectors: (p, d), in `comparable` form.
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
    _remark_on_spelling(snapshot.column("label").values, labels)
    return Probes(_ranking_form(snapshot, embeddings), _codes(snapshot, "label", labels), groups=coded)


def _remark_on_spelling(known: Sequence[str], labels: Sequence[str | None]) -> None:
    """Say which classes of probes the gallery has under another spelling, for they count as unknown to it."""
    own = set(known)
    strange = dict.fromkeys(label for label in labels if label is not None and label not in own)
    found = [(first, name) for first, name in twins([*known, *strange]) if name in strange and first in own]
    if found:
        count = sum(label == found[0][1] for label in labels)
        remark(
            f"{len(found):,} classes of the probes differ from the gallery's in their spelling alone, such as "
            f"{found[0][1]!r} ({count:,} images) and {found[0][0]!r}; they count as unknown to the gallery",
            stacklevel=4,
        )


def _codes(snapshot: Snapshot, column: str, values: Sequence[str | None]) -> Codes:
    known = {value: code for code, value in enumerate(snapshot.column(column).values)}
    return np.array([-1 if value is None else known.get(value, -1) for value in values], np.int64)


def _ranking_form(snapshot: Snapshot, embeddings: npt.ArrayLike) -> Vectors:
    spec = snapshot.search_spec
    return comparable(spec, *check_vectors(spec, embeddings, what="probes"))


def nearest_of_both_kinds(snapshot: Snapshot, probes: Probes, *, column: str | None = None) -> NearestOfBothKinds:
    """The two distances of each probe, exact in float64, in one pass over the gallery.

    Images of a probe's class that share its group are passed over: they say nothing about it being found elsewhere. An
    image without a class counts as one of another.

    Args:
        snapshot: the gallery.
        probes: who asks.
        column: the gallery's column that `probes.groups` are the codes of.
    """
    spec = snapshot.search_spec
    same, other = (np.full(len(probes.labels), np.inf) for _ in range(2))
    for ids, vectors, labels, groups in _blocks(snapshot, column):
        rough = _rough_distances(spec, probes.vectors, vectors)
        is_own = (labels == probes.labels[:, None]) & (labels >= 0)
        is_passed_over = np.zeros_like(is_own)
        if probes.ids is not None:
            is_passed_over |= ids == probes.ids[:, None]
        if groups is not None and probes.groups is not None:
            is_passed_over |= groups == probes.groups[:, None]
        for best, is_of_kind in ((same, is_own & ~is_passed_over), (other, ~is_own)):
            rows = np.flatnonzero(is_of_kind.any(1))
            nearest = np.where(is_of_kind[rows], rough[rows], np.inf).argmin(1)
            exact = distances_to(spec, probes.vectors[rows], vectors[nearest])  # a search would report these
            best[rows] = np.minimum(best[rows], exact)
    return NearestOfBothKinds(same, other)


def _blocks(snapshot: Snapshot, column: str | None) -> Iterator[tuple[Ids, Vectors, Codes, Codes | None]]:
    """Ids, vectors in `comparable` form, class codes and group codes, a block at a time."""
    labels = snapshot.column("label").codes.astype(np.int64)
    groups = None if column is None else snapshot.column(column).codes.astype(np.int64)
    spec, start = snapshot.search_spec, 0
    for ids, vectors in snapshot.blocks(block_bytes=_BLOCK_BYTES):
        here = slice(start, start + len(ids))
        yield ids, comparable(spec, vectors.embedding), labels[here], None if groups is None else groups[here]
        start = here.stop


def _rough_distances(spec: SearchSpec, probes: Vectors, vectors: Vectors) -> NDArray[np.floating]:
    """Distances (p, n) in the order of the true ones but for rounding: one matrix product, but for l1."""
    if spec.metric == "l1":
        return np.stack([distances_to(spec, probe, vectors) for probe in probes])
    product = probes.astype(np.float64) @ vectors.astype(np.float64).T
    if spec.metric != "l2":
        return -product
    squared: NDArray[np.float64] = np.vecdot(vectors, vectors, dtype=np.float64) - 2 * product
    return squared
