"""Findings about a gallery's data: the images of each, what is said of them, and how many are expected to be wrong."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, overload

from ...files import replacing
from ...remarks import counted
from ..storage.segments import Record

Question = Literal["duplicates", "outliers", "mislabels", "leaks", "hard-negatives", "confusions"]
COLUMNS = (
    "question",
    "finding",
    "kind",
    "role",
    "path",
    "label",
    "id",
    "distance",
    "share_wrong",
    "suggestion",
    "part",
)
COPIES_RATE, LABELS_RATE, OUTLIERS_RATE = 0.03, 0.2, 0.05  # expected shares of wrong findings, by default
MOST = 100  # pairs of hard negatives and of classes
_SHOWN = 10


class SharedPart(NamedTuple):
    """The part of an image that another one shows again, as fractions of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Finding:
    """One finding: its images, the first of which is the one to look at, or to keep of copies.

    Attributes:
        kind: `exact`, `near`, `crop`, `outlier`, `label`, `hard negative`, `confusion`.
        images: records of the gallery, of a leak the second from the other gallery.
        says: the finding in words.
        distance: between the first two images, or of the first from its class, in units of the gallery's metric.
        share_wrong: expected share of wrong ones among this finding and all that are clearer; None where nothing is
            claimed to be wrong with an image.
        suggestion: the label that neighbours vote for.
        part: of a crop: what of the first image the second shows.
        own: for each image whether the gallery that was asked about holds it, or the other one; empty: it holds all.
    """

    kind: str
    images: tuple[Record, ...]
    says: str
    distance: float | None = None
    share_wrong: float | None = None
    suggestion: str | None = None
    part: SharedPart | None = None
    own: tuple[bool, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The finding for JSON."""
        rest = {"distance": self.distance, "share_wrong": self.share_wrong, "suggestion": self.suggestion}
        part = None if self.part is None else list(self.part)
        images = [record.to_dict() for record in self.images]
        return {"kind": self.kind, "says": self.says, "images": images, **rest, "part": part}


@dataclass(frozen=True)
class Findings(Sequence[Finding]):
    """The answer to one question about a gallery, the clearest finding first.

    Attributes:
        question: what was asked.
        items: the findings.
        judged: number of images that were looked at.
        note: what the threshold is and what it was calibrated on, in one sentence.
        other: the folder of the other gallery, of leaks.
    """

    question: Question
    items: tuple[Finding, ...]
    judged: int
    note: str
    other: str | None = None

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Finding | Self:
        """One finding, or fewer of them."""
        return replace(self, items=self.items[index]) if isinstance(index, slice) else self.items[index]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.items)

    def __str__(self) -> str:
        """A plain-text summary with the first findings."""
        lines = [f"{self.question}: {counted(len(self), 'finding')} in {counted(self.judged, 'image')}; {self.note}"]
        lines += [f"  {item.says}" for item in self.items[:_SHOWN]]
        return "\n".join([*lines, *([f"  … and {len(self) - _SHOWN:,} more"] if len(self) > _SHOWN else [])])

    @property
    def ids(self) -> list[int]:
        """The images to look at, each once: of copies all but the first, else the first of each finding."""
        copies = self.question == "duplicates"
        return list(dict.fromkeys(r.id for item in self for r in (item.images[1:] if copies else item.images[:1])))

    def to_dict(self) -> dict[str, Any]:
        """The answer for JSON."""
        about = {"question": self.question, "judged": self.judged, "note": self.note, "other": self.other}
        return {**about, "findings": [item.to_dict() for item in self]}

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each image of each finding, with `COLUMNS`."""
        for number, item in enumerate(self, 1):
            first = "keep" if self.question == "duplicates" else "look"
            for place, record in enumerate(item.images):
                role = first if not place else "copy" if first == "keep" else "beside"
                if self.other is not None:
                    role = "here" if item.own[place] else "other"
                part = "" if item.part is None or place else ",".join(f"{edge:.3f}" for edge in item.part)
                row = (self.question, number, item.kind, role, record.path, record.label, record.id)
                rest = (item.distance, item.share_wrong, "" if place else item.suggestion, part)
                yield dict(zip(COLUMNS, (*row, *rest), strict=True))


def write_csv(path: str | os.PathLike[str], answers: Sequence[Findings]) -> Path:
    """Write answers as one table, a row for each image of each finding; an existing file is replaced."""
    with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for answer in answers:
            writer.writerows(answer.rows())
    return Path(path)
