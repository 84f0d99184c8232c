"""An assessment as one HTML file: every number with its protocol, curves, and the failures as images.

The page holds no script and loads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from math import log10
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ImageError
from ..explain.drawing.page import write_html
from ..images import read_image
from ..images.inline import to_data_uri
from .assessment import Assessment
from .results import MOST_CAMERAS, camera_grid

_HEIGHT = 144  # of an image in pixels


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
    counts = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in evaluation.counts.items())
    made_by = {name: value for name, value in assessment.about.items() if name not in ("fingerprint", "trained_on")}
    features = ", ".join(f"{name} {value}" for name, value in made_by.items()) or "as given"
    decisions = [f"distance: {evaluation.metric}", *evaluation.protocol.describe(), *assessment.refinement.describe()]
    ranks = range(1, evaluation.cmc.size + 1)
    charts = [_curve("CMC: share of queries answered within rank", ranks, evaluation.cmc.tolist())]
    if found is not None:
        rates = found.false_accept_rate.tolist(), found.true_accept_rate.tolist()
        charts.append(_curve("ROC: true by false accepts (logarithmic)", *rates, logarithmic=True))
        edges = found.histogram_edges
        shares = (np.append(edges, found.equal_error_threshold) - edges[0]) / (float(edges[-1] - edges[0]) or 1.0)
        sides = (("--bad", found.impostor_histogram), ("--good", found.genuine_histogram))
        bars = [(colour, zip(shares, shares[1:-1], n / max(1, n.max()), strict=False)) for colour, n in sides]
        name, ends = "Distances: genuine (green), impostor (orange)", (f"{edges[0]:.3g}", f"{edges[-1]:.3g}")
        charts.append({"title": name, "ends": ends, "points": (), "bars": bars, "threshold": shares[-1]})
    content: dict[str, Any] = {
        "evaluation": evaluation,
        "before": assessment.before,
        "protocol": [*decisions, f"features: {features}", f"counts: {counts}", *assessment.data.notes],
        "charts": charts,
        "failures": assessment.failures(n_failures),
        "promotions": assessment.promotions(n_promotions),
        "uri": uri,
        "cameras": rows,
        "columns": columns,
        "most": MOST_CAMERAS,
    }
    about = f"{assessment.data.format} · {assessment.data.root}"
    return write_html(path, "report.html", package=__package__, title=title, notes=[about], **content)


def _curve(title: str, x: Sequence[float], y: Sequence[float], *, logarithmic: bool = False) -> dict[str, Any]:
    """A line through points whose y lies in [0, 1], x ascending; logarithmic x drops what is not positive."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if a > 0 or not logarithmic]
    at = [log10(a) if logarithmic else float(a) for a, _ in points]
    ends = [f"{points[place][0]:.3g}" if points else "" for place in (0, -1)]
    span = (at[-1] - at[0] if points else 0) or 1.0
    places = [((a - at[0]) / span, b) for a, (_, b) in zip(at, points, strict=True)]
    return {"title": title, "ends": ends, "points": places, "bars": ()}
