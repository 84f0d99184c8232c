"""The explanations that `distcam query --explain` writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .console import err, progress_bar

if TYPE_CHECKING:
    from ..retrieval import Matches

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
    results: list[Matches],
    target: Path,
    style: dict[str, Any],
    point: tuple[float, float] | None,
    *,
    lines: bool,
    **options: Any,
) -> Path:
    """Explain every query, and write that as the target's ending says; the target."""
    from ..explain import DrawStyle
    from ..retrieval import write_report

    explanations = []
    with progress_bar("explaining") as progress:
        for matches in results:
            explanations.append(matches.explain(**options))
            progress(len(explanations), len(results))
    if target.suffix.lower() == ".html":
        return write_report(target, explanations, lines=lines)
    if target.suffix:
        return explanations[0].save(target, DrawStyle(**style), lines=lines)
    target.mkdir(parents=True, exist_ok=True)
    for number, (matches, explanation) in enumerate(zip(results, explanations, strict=True), start=1):
        query = matches.query  # a text is named by its beginning, without what file systems refuse
        path = query.source if isinstance(query.source, str | Path) else query.name
        stem = Path(path).stem if query.has_image else re.sub(r"[^\w-]+", "-", query.name)[:40].strip("-")
        name = f"{number:03d}-{stem}"
        explanation.save(target / f"{name}.png", DrawStyle(**style), lines=lines)
        explanation.save(target / f"{name}.npz")
        for match in matches if point is not None else ():
            pairs = matches.correspondence(match.rank, space=options["space"])
            pairs.save(target / f"{name}-rank{match.rank}-point.png", point)
            err.print(  # standard output may hold JSON
                f"{name}, rank {match.rank}: the shares of all pairs of places sum to {pairs.parts.total:.6f}, "
                f"residual {pairs.parts.residual:.1e}",
                soft_wrap=True,
            )
    return target
