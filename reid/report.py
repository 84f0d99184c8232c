"""An assessment as one HTML file: every number with its protocol, curves, and the failures as images.

The page holds no script and loads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from math import log10
from pathlib import Path
from typing import Any, NamedTuple

from ..datasets.reid_records import ReidImage
from ..errors import ImageError
from ..explain.drawing.page import write_html
from ..explain.drawing.rendering import to_data_uri
from ..images import read_image
from .assessment import Assessment, Failure, Promotion, Shared
from .results import MOST_CAMERAS, camera_grid
from .verification import Verification

_HEIGHT = 144  # of an image in pixels
_SHOWN_NEIGHBOURS = 5


def write_report(
    path: str | os.PathLike[str],
    assessment: Assessment,
    *,
    title: str = "Re-identification",
    n_failures: int = 20,
    n_promotions: int = 10,
) -> Path:
    """Write an assessment as one HTML file that needs nothing else: no network, no script, no further file.

    Its images are read now; those that are gone leave a grey box.
    """

    @cache
    def uri(path: str) -> str | None:
        try:
            image = read_image(assessment.data.root / path)
        except ImageError:
            return None
        image.thumbnail((2 * _HEIGHT, _HEIGHT))
        return to_data_uri(image, "jpeg")

    evaluation, found = assessment.evaluation, assessment.evaluation.verification
    columns, rows = camera_grid(evaluation.camera_pairs)
    has_table = 0 < max(len(rows), len(columns)) <= MOST_CAMERAS
    counts = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in evaluation.counts.items())
    made_by = {name: value for name, value in assessment.about.items() if name not in ("fingerprint", "trained_on")}
    features = ", ".join(f"{name} {value}" for name, value in made_by.items()) or "as given"
    decisions = [*evaluation.protocol.describe(), *assessment.refinement.describe()]
    notes = [f"features: {features}", f"counts: {counts}", *assessment.data.notes]
    ranks = range(1, evaluation.cmc.size + 1)
    charts = [_curve("CMC: share of queries answered within rank", ranks, evaluation.cmc.tolist())]
    if found is not None:
        rates = found.false_accept_rate.tolist(), found.true_accept_rate.tolist()
        charts.append(_curve("ROC: true by false accepts (logarithmic)", *rates, logarithmic=True))
        charts.append(_histogram("Distances: genuine (green), impostor (orange)", found))
    content: dict[str, Any] = {
        "scores": _scores(assessment),
        "points": evaluation.point_lines("TAR") + evaluation.point_lines("DIR"),
        "protocol": [f"distance: {evaluation.metric}", *decisions, *notes],
        "charts": charts,
        "failures": [_failure(failure) for failure in assessment.failures(n_failures)],
        "promotions": [_promotion(promotion) for promotion in assessment.promotions(n_promotions)],
        "uri": uri,
        "cameras": rows if has_table else None,
        "columns": columns if has_table else (),
        "no_table": f"{len(rows)} query cameras by {len(columns)} gallery cameras: no table; see the JSON.",
    }
    about = f"{assessment.data.format} · {assessment.data.root}"
    return write_html(path, "report.html", package=__package__, title=title, notes=[about], **content)


def _scores(assessment: Assessment) -> dict[str, float]:
    evaluation, before = assessment.evaluation, assessment.before
    values = {f"rank-{k}": evaluation.rank(k) for k in (1, 5, 10) if k <= evaluation.cmc.size}
    values |= {"mAP (step)": evaluation.map_step, "mAP (trapezoid)": evaluation.map_trapezoid, "mINP": evaluation.minp}
    if evaluation.verification is not None:
        values["equal error"] = evaluation.verification.equal_error_rate
    if before is not None:
        values |= {"rank-1 before re-ranking": before.rank(1), "mAP (step) before": before.map_step}
    if evaluation.single_gallery_shot is not None:
        values["rank-1, single gallery shot"] = float(evaluation.single_gallery_shot[0])
    return values


class _Chart(NamedTuple):
    """A small chart: its title, the ends of its x axis, and paths with their style."""

    title: str
    ends: tuple[str, str]
    paths: list[tuple[str, str]]
    width: int = 340
    height: int = 220
    left: int = 34
    top: int = 24
    right: int = 323
    bottom: int = 186

    def x(self, share: float) -> float:
        """A place on the x axis, from 0 to 1, in pixels."""
        return self.left + (self.right - self.left) * share

    def y(self, share: float) -> float:
        """A place on the y axis, from 0 to 1, in pixels."""
        return self.bottom - (self.bottom - self.top) * share


def _curve(title: str, x: Sequence[float], y: Sequence[float], *, logarithmic: bool = False) -> _Chart:
    """A line through points whose y lies in [0, 1], x ascending; logarithmic x drops what is not positive."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if a > 0 or not logarithmic]
    if not points:
        return _Chart(title, ("", ""), [])
    chart = _Chart(title, (f"{points[0][0]:.3g}", f"{points[-1][0]:.3g}"), [])
    at = [log10(a) if logarithmic else float(a) for a, _ in points]
    span = (at[-1] - at[0]) or 1.0
    places = [f"{chart.x((a - at[0]) / span):.1f} {chart.y(b):.1f}" for a, (_, b) in zip(at, points, strict=True)]
    chart.paths.append((f"M{'L'.join(places)}", "fill: none; stroke: var(--accent); stroke-width: 2"))
    return chart


def _histogram(title: str, found: Verification) -> _Chart:
    """Distances of genuine and impostor pairs, each scaled to its own highest bar, and the equal-error threshold."""
    edges = found.histogram_edges
    chart = _Chart(title, (f"{edges[0]:.3g}", f"{edges[-1]:.3g}"), [])
    shares = (edges - edges[0]) / (float(edges[-1] - edges[0]) or 1.0)
    for counts, colour in ((found.impostor_histogram, "--bad"), (found.genuine_histogram, "--good")):
        bars = "".join(
            f"M{chart.x(low):.1f} {chart.bottom}V{chart.y(share):.1f}H{chart.x(high):.1f}V{chart.bottom}Z"
            for low, high, share in zip(shares, shares[1:], counts / max(1, int(counts.max())), strict=False)
        )
        chart.paths.append((bars, f"fill: var({colour}); opacity: .55"))
    at = chart.x(float((found.equal_error_threshold - edges[0]) / (float(edges[-1] - edges[0]) or 1.0)))
    chart.paths.append((f"M{at:.1f} {chart.top}V{chart.bottom}", "stroke: var(--ink); stroke-dasharray: 4 3"))
    return chart


def _figure(image: ReidImage, caption: str, style: str) -> dict[str, Any]:
    return {"image": image, "caption": caption, "style": style, "name": Path(image.path).name}


def _neighbours(shared: Shared, most: int) -> Iterable[dict[str, Any]]:
    return (_figure(image, f"shared: {100 * share:.0f} %", "small") for image, share in shared[:most])


def _failure(failure: Failure) -> tuple[str, list[dict[str, Any]]]:
    """A heading, and the query with its first wrong and its first right answer."""
    shown = [_figure(failure.query, "query", "query")]
    for answer, name, style in ((failure.wrong, "first wrong", "wrong"), (failure.right, "first right", "right")):
        if answer is not None:
            shown.append(_figure(answer.image, f"{name}: rank {answer.rank}, {answer.distance:.4g}", style))
            shown += _neighbours(answer.shared, 3)
    plural = "match" if failure.n_matches == 1 else "matches"
    head = f"AP {100 * failure.average_precision:.1f}, {failure.n_matches} {plural}"
    return " · ".join(filter(None, (head, "; ".join(failure.causes)))), shown


def _promotion(promotion: Promotion) -> tuple[str, list[dict[str, Any]]]:
    """A heading, and the query with a right answer that re-ranking brought up."""
    heading = f"from rank {promotion.rank_before} to {promotion.rank_after} by the neighbours they share"
    shown = [_figure(promotion.query, "query", "query"), _figure(promotion.match, "brought up", "right")]
    return heading, [*shown, *_neighbours(promotion.shared, _SHOWN_NEIGHBOURS)]
