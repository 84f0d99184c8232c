"""Measurement of whether verification by lines helps a gallery, on its own labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..explain.verification import parse_verify
from ..metrics.fusion import VerifyGain, fit_fusion
from ..metrics.intervals import bootstrap_interval
from ..remarks import counted
from .lines import inliers_of

if TYPE_CHECKING:
    from ..progress import Progress
    from .retriever import Retriever

_MORE = 4  # so many times K are searched, to have K left when images of the query's own group are passed over


def calibrate_verification(
    retriever: Retriever,
    *,
    verify: int | str = 20,
    exclude_same: str | None = None,
    most: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> VerifyGain:
    """Fit the calibrations on the gallery's labelled images, measure what they change, and keep both in the gallery.

    Each image asks without itself. Half of the classes' pairs fit the calibrations by which the other half is sorted
    anew, and the other way round; what is kept is fitted on all of them.

    Args:
        retriever: the gallery and its encoder.
        verify: how many matches are sorted anew.
        exclude_same: a column such as `camera`: images of the query's class that share its value are passed over.
        most: how many images ask.
        seed: of their draw.
        progress: called with images done and images in all.

    Raises:
        InputError: too few labelled images, or no such column.
    """
    gallery, (method, k) = retriever.gallery, parse_verify(verify)
    records = {record.id: record for record in gallery.records(gallery.ids)}
    own = {number: (record.label, record.columns.get(exclude_same or "")) for number, record in records.items()}
    if exclude_same is not None and not any(exclude_same in record.columns for record in records.values()):
        raise InputError(f"{gallery.folder} has no column {exclude_same!r}")
    known: dict[str, set[Any]] = {}
    for number, (label, group) in own.items():
        if label is not None:
            known.setdefault(label, set()).add(number if exclude_same is None else group)
    asking = [number for number, (label, _) in own.items() if label is not None and len(known[label]) > 1]
    if len({own[number][0] for number in asking}) < 4:
        raise InputError(
            f"{gallery.folder}: images of four classes or more, each with another of its class, are needed; it has "
            f"{counted(len(asking), 'such image')}"
        )
    drawn = np.random.default_rng(seed).permutation(asking)[:most].tolist()
    rows = []
    for done, image in enumerate(drawn, start=1):
        matches, (label, group) = retriever.query_stored(image, k=_MORE * k), own[image]
        places = [
            place
            for place, match in enumerate(matches)
            if exclude_same is None or match.label != label or own[match.id][1] != group
        ][:k]
        asked = matches.reordered([matches[place] for place in places], places, verify="")
        found = [match.similarity for match in asked], inliers_of(asked, len(asked), method)
        rows.append((*found, [match.label == label for match in asked], label))
        if progress is not None:
            progress(done, len(drawn))
    verification = _judged(rows, retriever, k)
    gallery.keep_lines(retriever.lines.scale, verification)
    return verification


def _judged(rows: list[tuple[Any, Any, Any, Any]], retriever: Retriever, k: int) -> VerifyGain:
    """Effect of sorting anew, each half of the classes by the calibration of the other."""
    labels = sorted({row[3] for row in rows})
    is_even = np.array([labels.index(row[3]) % 2 == 0 for row in rows])
    scale, source = retriever.lines.scale, f"{len(rows)} of its own images"
    before, after = np.zeros(len(rows)), np.zeros(len(rows))
    for half in (is_even, ~is_even):
        pairs = [
            np.concatenate([row[part] for row, other in zip(rows, half, strict=True) if not other]) for part in range(3)
        ]
        fusion = fit_fusion(*pairs, scale=scale, source=source)
        for at in np.flatnonzero(half):
            similarity, alike, is_same, _ = rows[at]
            before[at], after[at] = is_same[0], is_same[int(np.argmax(fusion(similarity, alike, scale)))]
    gain = bootstrap_interval(after - before)
    every = fit_fusion(*(np.concatenate([row[part] for row in rows]) for part in range(3)), scale=scale, source=source)
    means = float(before.mean()), float(after.mean()), gain.low, gain.high
    return VerifyGain(every, k, len(rows), *means, retriever.gallery.manifest.generation)
