"""The table of ways to explain a match, with paired intervals, a recommendation, and a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...errors import InputError
from ...explain import WEIGHTINGS, Tile, rectify
from ...explain.drawing.page import write_page
from ...explain.drawing.panels import sheet
from ...images import Box
from ...index.storage.background import MapChoice
from .results import OF_COMPOSITES, Estimate, LocalisationTable, MeasuredTable

MEASURES = {  # measure: heading of its column
    **OF_COMPOSITES,
    "sensitivity": "sensitivity",
    "insertion_deletion": "insertion - deletion",
}
DEFAULT = "root_ratio"  # what `Matches.explain` and `query --explain` show without options
UNFIT = {"caam", "gradcam_cos"}  # blind to the match, and worst wherever there is one object only


@dataclass(frozen=True, eq=False)
class Example:
    """A composite as it is shown: the image, the class asked for, and the map of each method."""

    image: Image.Image
    label: str
    maps: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ExplanationTable(MeasuredTable):
    """Explanations of several methods, measured on the same composites and images."""

    values: Mapping[str, Mapping[str, Tensor]] = field(repr=False)  # by method and measure one of each composite, image
    is_reduced: bool = False  # the network takes one size only, so photographs are smaller in composites than alone
    boxes: LocalisationTable | None = None
    examples: tuple[Example, ...] = field(default=(), repr=False)

    def estimate(self, method: str, measure: str) -> Estimate:
        """The mean of a measure with its 95 % bootstrap interval over composites."""
        return self._mean(self._of(method, measure))

    def difference(self, one: str, other: str, measure: str = "right_of_two") -> Estimate:
        """One method minus another, paired over composites."""
        return self._mean(self._of(one, measure) - self._of(other, measure))

    def _of(self, method: str, measure: str) -> Tensor:
        for name, known in ((method, self.values), (measure, self.values.get(method, {}))):
            if name not in known:
                raise InputError(f"no {name!r} in this table; it has {', '.join(known)}")
        return self.values[method][measure]

    @property
    def measures(self) -> list[str]:
        """The measures of all methods, in the order of the columns."""
        return [measure for measure in MEASURES if all(measure in own for own in self.values.values())]

    def best(self) -> tuple[str, Estimate | None]:
        """The weighting to be recommended, and its lead over the default in preference; None for the default itself.

        Another replaces the default only where it prefers the right photograph of two more often, with the whole
        paired interval above 0. Weightings that are blind to the match or fail on single objects do not stand.
        """
        rivals = [
            name for name in self.values if name.partition("@")[0] in WEIGHTINGS and name not in {*UNFIT, DEFAULT}
        ]
        leads = {name: lead for name in rivals if (lead := self.difference(name, DEFAULT)).low > 0}
        if not leads:
            return DEFAULT, None
        name = max(leads, key=lambda each: leads[each].value)
        return name, leads[name]

    def choice(self, *, generation: int) -> MapChoice | None:
        """The weighting to be recommended with its numbers, for a gallery to keep; None for the default itself."""
        name, lead = self.best()
        if lead is None:
            return None
        weighting, _, option = name.partition("@")
        key, _, value = option.partition("=")
        return MapChoice(
            weighting=weighting,
            mean=value if key == "mean" else "auto",
            right_of_two=self.estimate(name, "right_of_two").value,
            default_right_of_two=self.estimate(DEFAULT, "right_of_two").value,
            lead_low=lead.low,
            lead_high=lead.high,
            composites=len(self.values[name]["right_of_two"]),
            generation=generation,
        )

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON can hold it."""
        best, lead = self.best()
        return {
            **self._circumstances(),
            "composites": self._counts(),
            "default": DEFAULT,
            "best": best,
            "lead": None if lead is None else lead._asdict(),
            "notes": self.remarks,
            "rows": [
                {"method": name, **{measure: self.estimate(name, measure)._asdict() for measure in self.measures}}
                for name in self.values
            ],
            "boxes": None if self.boxes is None else self.boxes.to_dict(),
        }

    def _counts(self) -> dict[str, int]:
        own = self.values[next(iter(self.values))]
        return {measure: len(own[measure]) for measure in self.measures}

    @property
    def remarks(self) -> list[str]:
        """On how the numbers came about."""
        reduced = "This network takes one size of image only: in composites the photographs are smaller than alone."
        return [reduced] * self.is_reduced

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows as text; values of preference with 95 % intervals."""
        measures = self.measures
        headings = ["map", *(MEASURES[measure] for measure in measures), "right of two, minus default's"]
        columns = (
            {"V2": "max_box_acc_v2", "peak": "peak", "energy in boxes": "energy"} if self.boxes is not None else {}
        )
        boxed = {} if self.boxes is None else {row.method: row for row in self.boxes.rows}
        made = []
        for name in self.values:
            found = [self.estimate(name, measure) for measure in measures]
            own = [str(e) if m == "right_of_two" else f"{e.value:.3f}" for m, e in zip(measures, found, strict=True)]
            lead = "default" if name == DEFAULT else str(self.difference(name, DEFAULT))
            in_boxes = [getattr(boxed[name], key).value if name in boxed else None for key in columns.values()]
            made.append([name, *own, lead, *("–" if v is None else f"{v:.3f}" for v in in_boxes)])
        return [*headings, *columns], made

    @property
    def heading(self) -> str:
        """Under which circumstances the numbers came about."""
        counts = self._counts()
        n = ", ".join(f"{MEASURES[measure]}: {count}" for measure, count in counts.items() if "energy" not in measure)
        return self._heading(f"images or composites ({n})")

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the table and some composites with their maps as one HTML file."""
        names = [name for name in self.values if name not in {"random", "centre", "full"}]
        rows: list[list[Tile | None]] = []
        for size in dict.fromkeys(example.image.size for example in self.examples):
            own = [example for example in self.examples if example.image.size == size]
            rows += sheet(
                [example.image for example in own],
                {name: torch.stack([rectify(example.maps[name]) for example in own]) for name in names},
                views=[Box(0, 0, *size)] * len(own),
                captions=[f"asked for {example.label}" for example in own],
            )
        notes = [self.heading, *self.remarks]
        return write_page(path, rows, title="Explanations compared", notes=notes, table=self.cells(), kind="jpeg")
