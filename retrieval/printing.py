"""Rankings as they are printed, by whoever has one: a library call, or a command that asked a server."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_ranking(ranking: dict[str, Any], console: Console, *, where: str | None = None) -> None:
    """Print a ranking, as `Matches.to_dict` gives it, as a table."""
    matches, most, nearest = ranking["matches"], ranking.get("max_distance"), ranking["prototype"]
    among = "" if where is None else f" among {where}"
    title = Text(f"{ranking['query']}: {len(matches)} nearest by {ranking['metric']}{among}")  # may hold [brackets]
    table = Table(title=title, title_justify="left")
    judged = () if most is None else ("distance",)  # what the threshold is about
    lines = () if "verify" not in ranking else ("alike",)  # places, by which the first were sorted
    for column in ("rank", "similarity", *judged, *lines):
        table.add_column(column, justify="right")
    for column in ("label", "path"):
        table.add_column(column, overflow="fold")
    if most is not None:
        table.add_column("match")
    for match in matches:
        accepted = match.get("is_accepted")
        judgement = () if accepted is None else ("yes" if accepted else "too far",)
        names = Text(match["label"] or "–"), Text(match["path"])
        away = () if most is None else (f"{match['distance']:.4f}",)
        alike = () if "verify" not in ranking else (str(match.get("inliers", "–")),)
        table.add_row(str(match["rank"]), f"{match['similarity']:.4f}", *away, *alike, *names, *judgement)
    console.print(table)
    if most is not None:
        accepted = sum(match.get("is_accepted") is True for match in matches)
        verdict = f"{accepted} within distance {most:.4g}"
        if not accepted:
            found = f"the nearest image is {matches[0]['distance']:.4g} away" if matches else "no image was searched"
            verdict = f"no match: {found}, at most {most:.4g} was allowed"
        console.print(Text(verdict))
    if nearest is not None:
        near = f"similarity {nearest['similarity']:.4f}, distance {nearest['distance']:.4f}"
        console.print(Text(f"nearest class prototype: {nearest['label']} ({near})"))
