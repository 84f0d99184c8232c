"""The report of an inspection: every finding with maps on both of its images, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ImageError, InputError
from ..images import Box
from ..remarks import remark
from .report import write_report
from .retriever import Retriever

if TYPE_CHECKING:
    from ..index import Gallery
    from ..index.inspection.findings import Finding, Findings
    from .explanation import Explanation


def write_inspection(
    path: str | PathLike[str],
    retriever: Retriever,
    answers: Sequence[Findings],
    *,
    other: Gallery | None = None,
    most: int = 20,
) -> Path:
    """Write findings as one HTML file: each image with its counterpart, and what on each speaks for the other.

    Of a crop the part that both show is marked and explained.

    Args:
        path: the file to write; an existing one is replaced.
        retriever: of the gallery that was inspected.
        answers: what was found.
        other: the other gallery, of leaks.
        most: findings shown of each answer, the clearest.

    Raises:
        InputError: nothing was found, or none of the images can be shown.
    """
    explained: list[Explanation] = []
    labels: list[str | None] = []
    beside = None if other is None else Retriever(other, retriever.encoder, inference=retriever.inference)
    for answer in answers:
        for item in answer[:most]:
            try:
                explained.append(_explained(item, answer, retriever, beside))
                labels.append(item.images[0].label)
            except ImageError as error:
                remark(f"not shown: {item.says}: {error}")
    if not explained:
        raise InputError(f"{Path(path).name}: there is no finding to show")
    notes = [f"{answer.question}: {len(answer):,} found; {answer.note}" for answer in answers]
    cut = [f"{answer.question} ({len(answer):,})" for answer in answers if len(answer) > most]
    notes += [f"Shown are the {most} clearest of {', '.join(cut)}; the table has all."] if cut else []
    title = f"Findings in {retriever.gallery.folder.name}"
    return write_report(path, explained, title=title, notes=notes, labels=labels)


def _explained(item: Finding, answer: Findings, retriever: Retriever, other: Retriever | None) -> Explanation:
    """The first image of a finding as the query, the last as its match."""
    last = 1 if other is None else -1
    ends = item.images[0], item.images[last]
    own = item.own or (True, True)
    first, second = (retriever if mine or other is None else other for mine in (own[0], own[last]))
    query = first.stored(ends[0].id)
    if item.part is not None:
        width, height = query.whole_size
        left, top, right, bottom = item.part
        query = first.focused(query, Box(left * width, top * height, right * width, bottom * height))
    name = f"{answer.question}: {item.says}"
    for record in item.images:
        name = name.replace(record.path, Path(record.path).name)
    return second.against(replace(query, name=name), ends[1].id).explain()
