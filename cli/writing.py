"""Files written by `query` and `classify`: explanations, and answers as tables."""

from __future__ import annotations

import csv as tables
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import InputError
from ..files import write_text
from ..remarks import counted
from . import library
from .console import err, print_json, progress_bar, say

if TYPE_CHECKING:
    from ..retrieval import Prediction

DRAWINGS = (".png", ".jpg", ".jpeg")
_EXPLANATION = re.compile(r"\d{3,}-.*\.(png|npz)|\..*")  # a file that an earlier query may have written


def require_place(target: Path, queries: int) -> None:
    """Nothing, if the explanations may go there: one file for one query, a report, a folder of explanations or none."""
    if target.suffix.lower() in (*DRAWINGS, ".npz") and queries > 1:
        raise InputError(f"{target.name} holds one query and there are {queries}; give --explain a folder or OUT.html")
    if target.suffix or not target.is_dir():
        return
    other = next((entry for entry in sorted(target.iterdir()) if not _EXPLANATION.fullmatch(entry.name)), None)
    if other is not None:
        raise InputError(f"{target} holds something else than explanations, such as {other.name}; give a new folder")


def write_explanations(
    results: Sequence[library.retrieval.Matches | Prediction],
    target: Path,
    style: dict[str, Any] | None = None,
    point: tuple[float, float] | None = None,
    *,
    lines: bool = False,
    **options: Any,
) -> Path:
    """Explain every query, and write that as the target's ending says; the target."""
    explanations, look = [], library.explain.DrawStyle(**(style or {}))
    with progress_bar("explaining") as progress:
        for result in results:
            explanations.append(result.explain(**options))
            progress(len(explanations), len(results))
    if target.suffix.lower() == ".html":
        return library.retrieval.write_report(target, explanations, lines=lines)
    if target.suffix:
        return explanations[0].save(target, look, lines=lines)
    target.mkdir(parents=True, exist_ok=True)
    for number, (matches, explanation) in enumerate(zip(results, explanations, strict=True), start=1):
        query = explanation.matches.query  # a text is named by its beginning, without what file systems refuse
        path = query.source if isinstance(query.source, str | Path) else query.name
        stem = Path(path).stem if query.has_image else re.sub(r"[^\w-]+", "-", query.name)[:40].strip("-")
        name = f"{number:03d}-{stem}"
        explanation.save(target / f"{name}.png", look, lines=lines)
        explanation.save(target / f"{name}.npz")
        if point is None or not isinstance(matches, library.retrieval.Matches):
            continue
        for match in matches:
            pairs = matches.correspondence(match.rank, space=options["space"])
            pairs.save(target / f"{name}-rank{match.rank}-point.png", point)
            err.print(  # standard output may hold JSON
                f"{name}, rank {match.rank}: the shares of all pairs of places sum to {pairs.parts.total:.6f}, "
                f"residual {pairs.parts.residual:.1e}",
                soft_wrap=True,
            )
    return target


def write_answers(
    answers: Sequence[dict[str, Any]], about: dict[str, Any], calibration: str, *, csv: Path | None, as_json: bool
) -> None:
    """Answers as a table, as JSON, or a line each; an exit status of 1 if an image could not be used."""
    if csv is not None:
        lines = io.StringIO()
        names = [name for name in answers[0] if name != "probabilities"]
        writer = tables.DictWriter(lines, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(answers)
        write_text(csv, lines.getvalue())
    if as_json:
        print_json({**about, "answers": answers})
    else:
        for each in answers if csv is None else ():
            sure = "" if each["confidence"] is None else f" {each['confidence']:.3f}, by {each['decided_by']}"
            rejected = f"no class (nearest: {each['best']})" if each["best"] else f"not used: {each['problem']}"
            say(f"{each['path']}: {each['label'] or rejected}{sure}")
        say(calibration)
        classes = Counter(each["label"] or ("rejected" if each["best"] else "not used") for each in answers)
        said = ", ".join(f"{count} {label}" for label, count in classes.most_common(10))
        say(f"{counted(len(answers), 'image')}: {said}{', …' if len(classes) > 10 else ''}")
    if any(each["problem"] for each in answers):
        raise typer.Exit(1)
