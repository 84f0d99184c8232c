"""An assessment as one HTML file: every number with its protocol, curves, and the failures as pictures.

The page holds no script and loads nothing. All text from outside (paths, identities, cameras) is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from pathlib import Path

from ..datasets.reid_records import ReidImage
from ..errors import ImageError
from ..explain.drawing.rendering import to_data_uri
from ..files import write_text
from ..images import read_image
from .assessment import Answer, Assessment, Failure, Promotion
from .charts import camera_table, curve, histogram

__all__ = ["write_report"]

_HEIGHT = 144  # of a picture in pixels
_SHOWN_NEIGHBOURS = 5
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6879; --line: #dfe3ea; --paper: #f6f7f9; --card: #fff;
  --good: #1b7f5c; --bad: #b4532a; --accent: #3b5bdb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --soft: #9aa5b5; --line: #333b48; --paper: #14181f;
  --card: #1d232c; --good: #4cc79a; --bad: #f0a06c; --accent: #8ea6ff; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: auto; padding: 28px 24px 60px; }
h1 { font-size: 25px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 34px 0 8px; }
.soft, figcaption { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.scores, .row { display: flex; flex-wrap: wrap; gap: 12px; }
.score, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.score b { display: block; font-size: 22px; }
.card { margin: 10px 0; } .card h3 { font-size: 14px; margin: 0 0 8px; font-weight: 600; overflow-wrap: anywhere; }
figcaption { margin-top: 5px; }
figure { margin: 0; max-width: 190px; } figure img { height: 144px; border-radius: 6px; display: block;
  max-width: 190px; object-fit: contain; }
.right img { outline: 3px solid var(--good); } .wrong img { outline: 3px solid var(--bad); }
.query img { outline: 3px solid var(--accent); } .small img { height: 84px; } .small { max-width: 110px; }
.gone { height: 144px; width: 72px; background: #8884; border-radius: 6px; }
table { border-collapse: collapse; } td, th { padding: 3px 9px; text-align: right; border: 1px solid var(--line); }
ul { margin: 4px 0; padding-left: 20px; }
svg { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; } svg .axis { stroke: var(--line); fill: none; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    path: str | os.PathLike[str],
    assessment: Assessment,
    *,
    title: str = "Re-identification",
    n_failures: int = 20,
    n_promotions: int = 10,
) -> Path:
    """Write an assessment as one HTML file that needs nothing else: no network, no script, no further file.

    Args:
        path: the file; an existing one is replaced.
        assessment: what `assess` returned. Its pictures are read now; those that are gone leave a grey box.
        title: the page's heading.
        n_failures: queries in the failure gallery.
        n_promotions: matches that re-ranking brought up.
    """
    figure = _figures(assessment)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(assessment.data.format)} · {escape(str(assessment.data.root))}</p>',
        _scores(assessment),
        "<h2>Protocol</h2>",
        _list([*_protocol_lines(assessment), *assessment.data.notes]),
        "<h2>Curves</h2>",
        _curves(assessment),
        "<h2>Camera by camera</h2>",
        camera_table(assessment.evaluation.camera_pairs),
        _failures(assessment.failures(n_failures), figure),
        _promotions(assessment.promotions(n_promotions), figure),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )
    return write_text(path, page)


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _protocol_lines(assessment: Assessment) -> list[str]:
    evaluation = assessment.evaluation
    counts = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in evaluation.counts.items())
    about = ", ".join(
        f"{name} {value}" for name, value in assessment.about.items() if name not in ("fingerprint", "trained_on")
    )
    steps = [*evaluation.protocol.describe(), *assessment.refinement.describe()]
    return [f"distance: {evaluation.metric}", *steps, f"features: {about or 'as given'}", f"counts: {counts}"]


def _scores(assessment: Assessment) -> str:
    evaluation, before = assessment.evaluation, assessment.before
    values = {f"rank-{k}": evaluation.rank(k) for k in (1, 5, 10) if k <= evaluation.cmc.size}
    values |= {"mAP (step)": evaluation.map_step, "mAP (trapezoid)": evaluation.map_trapezoid, "mINP": evaluation.minp}
    if evaluation.verification is not None:
        values["equal error"] = evaluation.verification.equal_error_rate
    if before is not None:
        values |= {"rank-1 before re-ranking": before.rank(1), "mAP (step) before": before.map_step}
    if evaluation.single_gallery_shot is not None:
        values["rank-1, single gallery shot"] = float(evaluation.single_gallery_shot[0])
    cards = [f'<div class="score"><b>{100 * value:.2f}</b>{escape(name)}</div>' for name, value in values.items()]
    points = []
    if evaluation.verification is not None:
        points += [("TAR", point) for point in evaluation.verification.operating_points]
    if evaluation.identification is not None:
        points += [("DIR", point) for point in evaluation.identification.operating_points]
    lines = [
        f"{name}@FAR {point.target:g}: {100 * point.true_accept_rate:.2f}"
        + ("" if point.threshold is None else f", distance up to {point.threshold:.4g}")
        + ("" if point.is_resolved else " (too few impostors to resolve this rate)")
        for name, point in points
    ]
    return f'<div class="scores">{"".join(cards)}</div>{_list(lines)}'


def _curves(assessment: Assessment) -> str:
    evaluation = assessment.evaluation
    ranks = list(range(1, evaluation.cmc.size + 1))
    parts = [curve("CMC: share of queries answered within rank", ranks, evaluation.cmc.tolist())]
    found = evaluation.verification
    if found is not None:
        rates = found.false_accept_rate.tolist(), found.true_accept_rate.tolist()
        parts.append(curve("ROC: true by false accepts (logarithmic)", *rates, logarithmic=True))
        parts.append(histogram("Distances: genuine (green), impostor (orange)", found))
    return f'<div class="row">{"".join(parts)}</div>'


Figure = Callable[[ReidImage, str, str], str]


def _figures(assessment: Assessment) -> Figure:
    """A function from an image, a caption and a style to a `<figure>`; each file is read once."""

    @cache
    def picture(path: str) -> str | None:
        try:
            image = read_image(assessment.data.root / path)
        except ImageError:
            return None
        image.thumbnail((2 * _HEIGHT, _HEIGHT))
        return to_data_uri(image, "jpeg")

    def figure(image: ReidImage, caption: str, style: str) -> str:
        source = picture(image.path)
        shown = '<div class="gone"></div>' if source is None else f'<img src="{source}" alt="">'
        who = f"{image.identity} · camera {'?' if image.camera is None else image.camera}"
        text = f"{escape(caption)}<br>{escape(who)}<br>{escape(Path(image.path).name)}"
        return f'<figure class="{style}">{shown}<figcaption>{text}</figcaption></figure>'

    return figure


def _failures(failures: tuple[Failure, ...], figure: Figure) -> str:
    cards = []
    for failure in failures:
        shown = [figure(failure.query, "query", "query")]
        for answer, name, style in ((failure.wrong, "first wrong", "wrong"), (failure.right, "first right", "right")):
            if answer is not None:
                shown.append(figure(answer.image, f"{name}: rank {answer.rank}, {answer.distance:.4g}", style))
                shown += _neighbours(answer, figure)
        causes = "; ".join(failure.causes)
        plural = "match" if failure.n_matches == 1 else "matches"
        head = f"AP {100 * failure.average_precision:.1f}, {failure.n_matches} {plural}"
        heading = escape(f"{head} · {causes}" if causes else head)
        cards.append(f'<div class="card"><h3>{heading}</h3><div class="row">{"".join(shown)}</div></div>')
    return "<h2>Failures, lowest average precision first</h2>" + ("".join(cards) or "<p>None.</p>")


def _neighbours(answer: Answer, figure: Figure) -> list[str]:
    shared = answer.shared[:3]
    return [figure(image, f"shared: {100 * share:.0f} %", "small") for image, share in shared]


def _promotions(promotions: tuple[Promotion, ...], figure: Figure) -> str:
    cards = []
    for promotion in promotions:
        shown = [figure(promotion.query, "query", "query"), figure(promotion.match, "brought up", "right")]
        for image, share in promotion.shared[:_SHOWN_NEIGHBOURS]:
            shown.append(figure(image, f"shared: {100 * share:.0f} %", "small"))
        heading = f"from rank {promotion.rank_before} to {promotion.rank_after} by the neighbours they share"
        cards.append(f'<div class="card"><h3>{escape(heading)}</h3><div class="row">{"".join(shown)}</div></div>')
    return "<h2>What re-ranking brought up, and which neighbours did it</h2>" + "".join(cards) if cards else ""
