"""One table of what several variants and seeds of a recipe came to."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .tables import plain

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """The metrics of several variants, seed by seed.

    Attributes:
        name: the recipe's.
        seeds: of the runs, in order.
        values: by variant and metric, one value per seed.
        seconds: by variant, the mean of a run.
        data: by variant, images and classes of the parts of the data.
        seen_as: what images became, and the precision of the arithmetic; several where variants differ.
    """

    name: str
    seeds: tuple[int, ...]
    values: Mapping[str, Mapping[str, tuple[float, ...]]]
    seconds: Mapping[str, float]
    data: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    seen_as: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that some variant has, in the order of the first."""
        return tuple(dict.fromkeys(metric for own in self.values.values() for metric in own))

    def cell(self, variant: str, metric: str) -> str:
        """Mean and standard deviation over the seeds (n - 1), as a table shows them; the mean alone for one seed."""
        values = self.values[variant].get(metric, ())
        if not values or not all(map(math.isfinite, values)):
            return "–" if not values else "nan"
        mean = f"{statistics.fmean(values):.3f}"
        return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"

    def rows(self) -> list[list[str]]:
        """The table: a header with the variants, one row per metric, and the seconds of a run."""
        header = ["", *(variant or self.name for variant in self.values)]
        body = [[metric, *(self.cell(variant, metric) for variant in self.values)] for metric in self.metrics]
        return [header, *body, ["seconds", *(f"{seconds:.0f}" for seconds in self.seconds.values())]]

    def markdown(self) -> str:
        """The table for a document."""
        header, *body = self.rows()
        rule = ["---"] + ["---:"] * (len(header) - 1)
        return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *body))

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        result: dict[str, Any] = plain(dataclasses.asdict(self))
        return result
