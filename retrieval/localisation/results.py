"""The localisation table: per-image scores of every method, estimates with their intervals, and how to show them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...encoders.trained_on import Overlap
from ...errors import InputError
from ...images.inline import data_frame, fragment
from ...metrics.intervals import bootstrap_weights
from ...metrics.localisation import BoxOverlaps, PixelCounts
from ...remarks import counted

FIXED = 0.2  # CAM's threshold; Dist-CAM states none
IOUS = (0.3, 0.5, 0.7)
OF_COMPOSITES = {  # measure: heading of its column
    "right_of_two": "right of two",
    "energy_of_two": "energy on its half",
    "right_of_four": "right of four",
    "energy_of_four": "energy on its quarter",
}


class Estimate(NamedTuple):
    """A mean over images and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Measurements of one method on n images."""

    overlaps: BoxOverlaps
    is_right: Tensor
    peak: Tensor
    energy: Tensor
    sensitivity: Tensor
    two_objects: Tensor
    pixels: PixelCounts | None = None

    @classmethod
    def cat(cls, parts: Sequence[ImageScores]) -> ImageScores:
        """The scores of several batches as one."""
        names = ("is_right", "peak", "energy", "sensitivity", "two_objects")
        pixels = [part.pixels for part in parts if part.pixels is not None]
        return cls(
            overlaps=BoxOverlaps.cat([part.overlaps for part in parts]),
            pixels=PixelCounts.cat(pixels) if pixels else None,
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
        )


@dataclass(frozen=True)
class LocalisationRow:
    """One method's line of the table; errors and accuracies in [0, 1].

    Source: [Dist-CAM] Table 1, Zhou et al. 2016 §3.2; of MaxBoxAccV2: Choe et al., Evaluation for Weakly Supervised
    Object Localization, 2020, §4.
    """

    method: str
    top1_error: Estimate  # wrong class, or IoU below one half at the threshold 0.2
    top1_error_best: Estimate  # the same at the threshold of `max_box_acc`
    gt_known_error: Estimate  # IoU below one half at the threshold 0.2, whatever was predicted
    gt_known_error_best: Estimate  # the same at the best threshold, 1 - `max_box_acc`
    threshold: float  # the best one, chosen on these very images
    max_box_acc: Estimate  # at IoU one half
    max_box_acc_v2: Estimate  # mean over three IoUs of the best accuracy when any region's box may fit any true box
    pxap: Estimate | None  # None without masks
    peak: Estimate  # share of peaks in a box (pointing game)
    energy: Estimate  # mean share of the map's energy in the boxes
    sensitivity: Estimate  # mean rank correlation with the map for another class; 1 is blind to the reference
    two_objects: Estimate | None  # how often the map for a class prefers its object of two; one half is chance


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class MeasuredTable(ABC):
    """Measurements of maps, and under which circumstances they came about."""

    encoder: str  # its short name
    reference: str  # "prototypes" or "nearest"
    n_references: int  # images behind the prototypes, or to match with
    n_classes: int  # of the references
    seen_as: str = ""  # what images became, and the precision of the arithmetic
    n_samples: int = 1000  # of the bootstrap
    seed: int = 0  # of the bootstrap, and of what was random before

    def _estimate(self, statistic: Callable[[Tensor], Tensor], n: int) -> Estimate:
        return estimate(statistic, n, n_samples=self.n_samples, seed=self.seed)

    def _mean(self, values: Tensor) -> Estimate:
        return self._estimate(lambda w: w @ values.double(), len(values))

    def _circumstances(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder,
            "images_as": self.seen_as,
            "reference": self.reference,
            "references": self.n_references,
            "classes": self.n_classes,
            "seed": self.seed,
            "bootstrap_samples": self.n_samples,
        }

    def _heading(self, images: str) -> str:
        return (
            f"{', '.join(filter(None, (self.encoder, self.seen_as)))}, {self.reference} of {self.n_references} images "
            f"in {self.n_classes} classes, {images}, 95 % bootstrap intervals, seed {self.seed}"
        )

    @abstractmethod
    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows as text."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The table as JSON can hold it, its lines under `rows`."""

    @property
    @abstractmethod
    def heading(self) -> str:
        """Under which circumstances the numbers came about."""

    @property
    @abstractmethod
    def remarks(self) -> Sequence[str]:
        """Notes below the table."""

    def table(self) -> str:
        """A Markdown table with a heading line; values with 95 % intervals."""
        headings, rows = self.cells()
        lines = [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
        lines += [f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in rows]
        return "\n".join([self.heading, "", *lines, *(f"\n{note}" for note in self.remarks)])

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each method; of an estimate `…_low` and `…_high` are the ends of its interval.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = []
        for each in self.to_dict()["rows"]:
            row: dict[str, Any] = {}
            for name, value in each.items():
                ends = value if isinstance(value, dict) else {"value": value}
                row |= {name if key == "value" else f"{name}_{key}": end for key, end in ends.items()}
            rows.append(row)
        return data_frame(rows)

    def __repr__(self) -> str:
        methods = [row[0] for row in self.cells()[1]]
        return f"{type(self).__name__}({counted(len(methods), 'method')}: {', '.join(methods)}; {self.encoder})"

    def _repr_html_(self) -> str:
        """HTML for a notebook: the table."""
        return fragment(self.heading, table=self.cells(), notes=self.remarks)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LocalisationTable(MeasuredTable):
    """Weakly supervised localisation of several methods on the same images.

    Attributes:
        scores: per-image measurements by method.
        energy_chance: (n,), share of the area that the boxes cover.
        notes: what a reader should know: left-out images, where a classifier came from.
        composites: by method and measure (`OF_COMPOSITES`) one value of each composite; empty where none were made.
        trained_on: how much of what is measured the encoder was trained on; None where that is not known.
    """

    scores: Mapping[str, ImageScores] = field(repr=False)
    energy_chance: Tensor = field(repr=False)
    notes: tuple[str, ...] = ()
    composites: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)
    trained_on: Overlap | None = None

    def __post_init__(self) -> None:
        for name, scores in self.scores.items():
            if not len(scores.overlaps) == len(scores.is_right) == len(self):
                raise InputError(f"{name} was measured on {len(scores.overlaps)} images, expected {len(self)}")
        if not self.scores or not len(self):
            raise InputError("no image was measured, so there is no table")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.energy_chance)

    @cached_property
    def rows(self) -> tuple[LocalisationRow, ...]:
        """A line for each method, in the order they were asked for."""
        rows = []
        for name, scores in self.scores.items():
            pixels, preference = scores.pixels, scores.two_objects[~scores.two_objects.isnan()].double()
            row = LocalisationRow(
                method=name,
                threshold=scores.overlaps.max_box_acc().threshold,
                pxap=None if pixels is None else self._estimate(pixels.pxap, len(self)),
                two_objects=self._mean(preference) if len(preference) else None,
                **{measure: self._estimate(partial(value, scores), len(self)) for measure, value in MEASURES.items()},
            )
            rows.append(row)
        return tuple(rows)

    @cached_property
    def on_composites(self) -> dict[str, dict[str, Estimate]]:
        """By method and measure the mean over composites; empty where none were made."""
        return {
            name: {measure: self._mean(values) for measure, values in own.items()}
            for name, own in self.composites.items()
        }

    def __getitem__(self, method: str) -> LocalisationRow:
        self._known(method)
        return next(row for row in self.rows if row.method == method)

    def _known(self, method: str) -> ImageScores:
        if method not in self.scores:
            raise InputError(f"no method {method!r} in this table; it has {', '.join(self.scores)}")
        return self.scores[method]

    def difference(self, one: str, other: str, measure: str = "max_box_acc") -> Estimate:
        """Difference of two methods in a measure, with a paired 95 % interval.

        Both are computed on the same bootstrap samples of images, so what is common to them cancels.
        """
        if measure not in MEASURES:
            raise InputError(f"measure={measure!r} is not known; choose one of {', '.join(MEASURES)}")
        statistic, pair = MEASURES[measure], (self._known(one), self._known(other))
        return self._estimate(lambda w: statistic(pair[0], w) - statistic(pair[1], w), len(self))

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON can hold it."""
        return {
            **self._circumstances(),
            "images": len(self),
            "trained_on": None if self.trained_on is None else self.trained_on.to_dict(),
            "energy_chance": float(self.energy_chance.mean()),
            "iou": list(IOUS),
            "composites": self._composed(),
            "notes": list(self.notes),
            "rows": [
                {
                    key: value._asdict() if isinstance(value, Estimate) else value
                    for key, value in {**vars(row), **self.on_composites.get(row.method, {})}.items()
                }
                for row in self.rows
            ],
        }

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows as text, without columns that no method has a value for."""
        columns: dict[str, Callable[[LocalisationRow], object]] = {
            "top-1 error, best": lambda row: row.top1_error_best,
            "GT-known error, .2": lambda row: row.gt_known_error.value,
            "MaxBoxAcc (at)": lambda row: f"{row.max_box_acc} ({row.threshold:.2f})",
            "V2": lambda row: row.max_box_acc_v2.value,
            "PxAP": lambda row: row.pxap and row.pxap.value,
            "peak": lambda row: row.peak.value,
            f"energy ({float(self.energy_chance.mean()):.3f})": lambda row: row.energy.value,
            "sensitivity": lambda row: row.sensitivity.value,
            "two objects": lambda row: row.two_objects and row.two_objects.value,
            **{heading: partial(self._on_composites, measure) for measure, heading in OF_COMPOSITES.items()},
        }
        shown = {name: get for name, get in columns.items() if any(get(row) is not None for row in self.rows)}
        rows = []
        for row in self.rows:
            values = [get(row) for get in shown.values()]
            cells = ["–" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in values]
            rows.append([row.method, *cells])
        return ["map", *shown], rows

    def _composed(self) -> dict[str, int]:
        return {measure: len(values) for own in self.composites.values() for measure, values in own.items()}

    def _on_composites(self, measure: str, row: LocalisationRow) -> float | None:
        found = self.on_composites.get(row.method, {}).get(measure)
        return None if found is None else found.value

    @property
    def heading(self) -> str:
        """Under which circumstances the numbers came about."""
        counts = {OF_COMPOSITES[measure]: n for measure, n in self._composed().items() if "energy" not in measure}
        said = "".join(f", {n} composites ({name})" for name, n in counts.items())
        return self._heading(f"{len(self)} images{said}")

    @property
    def remarks(self) -> Sequence[str]:
        """The notes, and how much the encoder was trained on."""
        return self.notes if not self.trained_on else (*self.notes, f"Training: {self.trained_on}.")


def estimate(statistic: Callable[[Tensor], Tensor], n: int, *, n_samples: int, seed: int) -> Estimate:
    """The statistic on all n images, and its 2.5 and 97.5 percentiles over bootstrap samples; weights sum to 1."""
    value = float(statistic(torch.full((1, n), 1 / n, dtype=torch.float64))[0])
    if not n_samples:
        return Estimate(value, value, value)
    found = [statistic(weights) for weights in bootstrap_weights(n, samples=n_samples, seed=seed)]
    low, high = torch.cat(found).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, low, high)


def _hits(scores: ImageScores) -> Tensor:
    """(n, t), 1 where the largest region's box overlaps a true one by one half."""
    return (scores.overlaps.largest >= 0.5).double()


def _hits_fixed(scores: ImageScores) -> Tensor:
    return (scores.overlaps.at(FIXED) >= 0.5).double()


MEASURES: dict[str, Callable[[ImageScores, Tensor], Tensor]] = {
    "top1_error": lambda scores, weights: 1 - weights @ (_hits_fixed(scores) * scores.is_right),
    "top1_error_best": lambda scores, weights: 1 - (weights @ (_hits(scores) * scores.is_right[:, None])).amax(1),
    "gt_known_error": lambda scores, weights: 1 - weights @ _hits_fixed(scores),
    "gt_known_error_best": lambda scores, weights: 1 - (weights @ _hits(scores)).amax(1),
    "max_box_acc": lambda scores, weights: (weights @ _hits(scores)).amax(1),
    "max_box_acc_v2": lambda scores, weights: torch.stack(
        [(weights @ (scores.overlaps.best >= iou).double()).amax(1) for iou in IOUS]
    ).mean(0),
    "peak": lambda scores, weights: weights @ scores.peak,
    "energy": lambda scores, weights: weights @ scores.energy,
    "sensitivity": lambda scores, weights: weights @ scores.sensitivity,
}
"""Means over images, of which each counts with its weight in each of r samples: (r, n) → (r,)."""
