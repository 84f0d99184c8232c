"""Small charts as SVG and tables as HTML, without any script; whatever text they show is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log10

from .results import CameraPair
from .verification import Verification

__all__ = ["camera_table", "curve", "histogram"]

_WIDTH, _HEIGHT, _MARGIN = 340, 220, 34
_MOST_CAMERAS = 24


def _frame(title: str, left: str, right: str, inside: str) -> str:
    bottom, edge = _HEIGHT - _MARGIN, _WIDTH - _MARGIN / 2
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img"><title>{escape(title)}</title>'
        f'<text x="{_MARGIN}" y="16">{escape(title)}</text>'
        f'<path class="axis" d="M{_MARGIN} 24V{bottom}H{edge}"/>'
        f'<text x="{_MARGIN}" y="{bottom + 16}">{escape(left)}</text>'
        f'<text x="{edge}" y="{bottom + 16}" text-anchor="end">{escape(right)}</text>'
        f'<text x="4" y="32">1</text><text x="4" y="{bottom}">0</text>{inside}</svg>'
    )


def curve(title: str, x: Sequence[float], y: Sequence[float], *, logarithmic: bool = False) -> str:
    """A line through points whose y lies in [0, 1], x ascending; logarithmic x drops what is not positive."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if a > 0 or not logarithmic]
    if not points:
        return ""
    scaled = [log10(a) if logarithmic else float(a) for a, _ in points]
    low, span = scaled[0], (scaled[-1] - scaled[0]) or 1.0
    wide, high = _WIDTH - 1.5 * _MARGIN, _HEIGHT - _MARGIN - 24
    places = [
        f"{_MARGIN + wide * (a - low) / span:.1f} {24 + high * (1 - b):.1f}"
        for a, (_, b) in zip(scaled, points, strict=True)
    ]
    line = f'<path d="M{"L".join(places)}" fill="none" stroke="var(--accent)" stroke-width="2"/>'
    return _frame(title, f"{points[0][0]:.3g}", f"{points[-1][0]:.3g}", line)


def histogram(title: str, found: Verification) -> str:
    """Distances of genuine and impostor pairs, each scaled to its own highest bar, and the equal-error threshold."""
    edges = found.histogram_edges
    span = float(edges[-1] - edges[0]) or 1.0
    wide, high = _WIDTH - 1.5 * _MARGIN, _HEIGHT - _MARGIN - 24

    def place(distance: float) -> float:
        return _MARGIN + wide * (distance - float(edges[0])) / span

    bars = []
    for counts, colour in ((found.impostor_histogram, "--bad"), (found.genuine_histogram, "--good")):
        top = max(1, int(counts.max()))
        for i, count in enumerate(counts.tolist()):
            tall = high * count / top
            left, right = place(float(edges[i])), place(float(edges[i + 1]))
            bars.append(
                f'<rect x="{left:.1f}" y="{24 + high - tall:.1f}" width="{right - left:.1f}" height="{tall:.1f}" '
                f'fill="var({colour})" opacity=".55"/>'
            )
    at = place(found.equal_error_threshold)
    bars.append(f'<path d="M{at:.1f} 24V{24 + high:.1f}" stroke="var(--ink)" stroke-dasharray="4 3"/>')
    return _frame(title, f"{edges[0]:.3g}", f"{edges[-1]:.3g}", "".join(bars))


def camera_table(pairs: Sequence[CameraPair]) -> str:
    """Rank-1 and mAP (step) by query camera (rows) and gallery camera (columns); low values stand out."""
    rows = list(dict.fromkeys(pair.query_camera for pair in pairs))
    columns = sorted({pair.gallery_camera for pair in pairs}, key=lambda camera: (isinstance(camera, str), camera))
    if not pairs or max(len(rows), len(columns)) > _MOST_CAMERAS:
        return f"<p>{len(rows)} query cameras by {len(columns)} gallery cameras: no table; see the JSON.</p>"
    cells = {(pair.query_camera, pair.gallery_camera): pair for pair in pairs}
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    body = []
    for row in rows:
        line = [f"<th>{escape(str(row))}</th>"]
        for column in columns:
            pair = cells.get((row, column))
            if pair is None:
                line.append("<td>–</td>")
                continue
            shade = f"color-mix(in srgb, var(--bad) {60 * (1 - pair.rank_1):.0f}%, transparent)"
            value = f"{100 * pair.rank_1:.1f} / {100 * pair.map_step:.1f}"
            line.append(f'<td style="background: {shade}" title="{pair.n_queries} queries">{value}</td>')
        body.append(f"<tr>{''.join(line)}</tr>")
    return f"<table><tr><th>rank-1 / mAP (step)</th>{head}</tr>{''.join(body)}</table>"
