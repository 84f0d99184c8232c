"""The benchmark of explanations: do the maps of an encoder depend on the match, and point to what it is alike in?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...encoders import Encoder, Inference
from ...errors import ImageError, InputError
from ...explain import WEIGHTINGS, Similarity, Tile, rectify
from ...explain.checks.faithfulness import insertion_deletion
from ...explain.drawing.page import write_page
from ...explain.drawing.panels import sheet
from ...explain.weightings import MEANS
from ...images import Box
from ...index.storage.map_choice import MapChoice
from ...metrics.maps import spearman
from ...progress import Progress
from ...remarks import remark
from .composites import FOUR, TWO, Canvas, Grid, Photograph, draw_composites, pointing
from .maps import DEFAULT_METHODS, SHARES, MapMaker
from .references import LinearClassifier, Reference, References
from .results import Estimate, LocalisationTable, estimate

MEASURES = {  # measure: heading of its column
    "right_of_two": "right of two",
    "energy_of_two": "energy on its half",
    "right_of_four": "right of four",
    "energy_of_four": "energy on its quarter",
    "sensitivity": "sensitivity",
    "insertion_deletion": "insertion - deletion",
}
DEFAULT = "root_ratio"  # what `Matches.explain` and `query --explain` show without options
SHOWN = 3  # composites of two, and of four, on the page
THUMBNAIL = 320
AT_ONCE = 8
_GRADIENT = {"gradcam++", "layercam", "hirescam"}  # passes of their own for every question
_UNFIT = {"caam", "gradcam_cos"}  # blind to the match, and worst wherever there is one object only


def default_methods(references: References, reference: Reference, *, has_classifier: bool) -> list[str]:
    """All weightings, CAM, SFAM's shares, and torchcam where it is installed."""
    from importlib.util import find_spec

    around = references.surroundings
    chosen = around.settings(is_class=reference == "prototypes")[0].name
    means = [
        mean for mean in MEANS if mean not in ("auto", chosen) and (around.border is not None or mean == "gallery")
    ]
    methods = [m for m in DEFAULT_METHODS if m not in _GRADIENT and (m != "cam" or has_classifier)]
    peers = ["torchcam:GradCAM", "torchcam:LayerCAM"] if find_spec("torchcam") else []
    return [*methods, *(f"root_ratio@mean={mean}" for mean in means), SHARES, *peers]


def weightings_to_choose(references: References) -> list[str]:
    """The rows of which a gallery can keep one: weightings that depend on the match, at their usual softness."""
    own = default_methods(references, "prototypes", has_classifier=False)
    return [name for name in own if name.partition("@")[0] in WEIGHTINGS and "tau" not in name and name not in _UNFIT]


def benchmark_explanations(
    images: Sequence[Photograph],
    encoder: Encoder,
    references: References,
    *,
    composites: int = 40,
    methods: Sequence[str] | None = None,
    reference: Reference = "prototypes",
    classifier: LinearClassifier | None = None,
    faithful: int = 8,
    device: str = "auto",
    precision: str = "auto",
    n_samples: int = 1000,
    seed: int = 0,
    strict: bool = False,
    progress: Progress | None = None,
) -> ExplanationTable:
    """Measure the maps of several methods without any box.

    Photographs of two and of four classes are put into one image, and every method is asked for each of them: the map
    should be higher on the photograph asked for than on the others. Single images say how much a map depends on its
    reference (rank correlation with the map for another class), and how much the similarity hangs on what it shows
    first (insertion minus deletion).

    Args:
        images: with their classes, not among the references.
        encoder: left as it is.
        references: what the images are compared with.
        composites: how many of two, how many of four, and how many single images.
        methods: names as in `parse_methods`; `default_methods` if left out.
        reference: class prototypes, or the nearest image.
        classifier: the network's own, for "cam".
        faithful: single images on which insertion and deletion are measured; 22 passes for each method. 0: none.
        device: see `Inference`.
        precision: see `Inference`.
        n_samples: bootstrap samples for the intervals.
        seed: of the draws.
        strict: stop at the first image that cannot be used.
        progress: called with (images done, images in all).

    Raises:
        InputError: fewer than two classes with a reference.
    """
    if composites < 2:
        raise InputError(f"composites={composites} should be 2 or more, so that there is an interval")
    inference = Inference(encoder, device=device, precision=precision)
    known = [image for image in images if image.label in references.labels]
    if classifier is not None and methods is None:
        classifier = _usable(classifier, references)
    if methods is None:
        methods = default_methods(references, reference, has_classifier=classifier is not None)
    generator = torch.Generator().manual_seed(seed)
    maker = MapMaker.of(encoder, methods, references, classifier, generator, reference=reference)
    run = _Run(inference, maker, references, generator, strict)
    drawn = {grid: draw_composites(known, composites, grid, generator=generator) for grid in ((1, 1), TWO, FOUR)}
    if not drawn[TWO]:
        raise InputError(f"composites need images of two classes that have references; there are {len(known)} images")
    total, done = sum(map(len, drawn.values())) + faithful, 0
    for grid, asked in drawn.items():
        for start in range(0, len(asked), AT_ONCE):
            some = asked[start : start + AT_ONCE]
            run.measure(some, grid, faithful=max(0, faithful - run.n_faithful))
            done += len(some)
            if progress is not None:
                progress(done + run.n_faithful, total)
    if run.skipped:
        remark(f"{len(run.skipped):,} composites have an image that cannot be read, the first: {run.skipped[0]}")
    return ExplanationTable(
        values={name: {m: torch.cat(parts) for m, parts in own.items()} for name, own in run.values.items()},
        encoder=encoder.short_name,
        seen_as=inference.seen_as,
        reference=reference,
        n_references=len(references.classes),
        n_classes=len(references.labels),
        is_reduced=run.canvas.is_reduced,
        examples=tuple(run.examples),
        n_samples=n_samples,
        seed=seed,
    )


def _usable(classifier: LinearClassifier, references: References) -> LinearClassifier | None:
    try:
        classifier.for_references(references)
    except InputError as error:
        remark(f"no row for `cam`: {error}")
        return None
    return classifier


@dataclass(frozen=True, eq=False)
class Example:
    """A composite as it is shown: the image, the class asked for, and the map of each method."""

    image: Image.Image
    label: str
    maps: Mapping[str, Tensor]


class _Run:
    """Composites turned into measurements."""

    def __init__(
        self,
        inference: Inference,
        maker: MapMaker,
        references: References,
        generator: torch.Generator,
        strict: bool,
    ) -> None:
        self.inference, self.maker, self.references = inference, maker, references
        self.generator, self.strict = generator, strict
        self.canvas = Canvas.of(inference)
        self.values: dict[str, dict[str, list[Tensor]]] = {method.name: {} for method in maker.methods}
        self.examples: list[Example] = []
        self.skipped: list[str] = []
        self.n_faithful = 0
        self.n_shown: dict[Grid, int] = {TWO: 0, FOUR: 0}

    def measure(self, composites: Sequence[tuple[Photograph, ...]], grid: Grid, *, faithful: int) -> None:
        """A batch of composites of one grid, or of single images."""
        read = [(composite, pixels) for composite in composites if (pixels := self._read(composite, grid)) is not None]
        if not read:
            return
        used, pixels = [composite for composite, _ in read], torch.stack([pixels for _, pixels in read])
        encoding = self.inference(pixels).to("cpu")
        labels = self.references.labels
        classes = torch.tensor([[labels.index(photograph.label) for photograph in each] for each in used])
        if classes.shape[1] == 1:  # another class, at random
            step = torch.randint(1, len(labels), classes.shape, generator=self.generator)
            classes = torch.cat([classes, (classes + step) % len(labels)], 1)
        files = [each[0].file for each in used]
        asked = self.references.of_classes(encoding.embedding, classes, reference=self.maker.reference, files=files)
        maps = self.maker.maps(encoding, pixels, asked, classes)
        if grid == (1, 1):
            self._singles(maps, pixels, asked, faithful)
            return
        cells, words = self.canvas.cells(grid), {TWO: "two", FOUR: "four"}[grid]
        for name, own in maps.items():
            found = pointing(own, cells)
            self._keep(name, f"right_of_{words}", found.preference.mean(1))
            self._keep(name, f"energy_of_{words}", found.energy.mean(1))
        for row, composite in enumerate(used[: SHOWN - self.n_shown[grid]]):
            self.n_shown[grid] += 1
            levels = pixels[row] if self.inference.transform.channels == "rgb" else pixels[row].flip(0)
            image = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            self.examples += [
                Example(image, photograph.label, {name: own[row, place] for name, own in maps.items()})
                for place, photograph in enumerate(composite)
            ]

    def _read(self, composite: tuple[Photograph, ...], grid: Grid) -> Tensor | None:
        try:
            photographs = torch.stack([self.inference.read(photograph.file) for photograph in composite])
        except ImageError as error:
            if self.strict:
                raise
            self.skipped.append(str(error))
            return None
        return photographs[0] if grid == (1, 1) else self.canvas.pixels(photographs, grid)

    def _singles(self, maps: Mapping[str, Tensor], pixels: Tensor, asked: Tensor, faithful: int) -> None:
        for name, own in maps.items():
            self._keep(name, "sensitivity", spearman(own[:, 0], own[:, 1]).double())
        n = min(faithful, len(pixels))
        if not n:
            return
        self.n_faithful += n
        device = self.inference.device
        images = self.inference.transform.normalise(pixels[:n].to(device))
        target = Similarity(asked[:n, :1].to(device), metric=self.references.metric)
        for name, own in maps.items():
            curves = insertion_deletion(self.inference.encoder, images, own[:n, :1], target=target, steps=10)
            self._keep(name, "insertion_deletion", curves.difference[:, 0])

    def _keep(self, name: str, measure: str, values: Tensor) -> None:
        self.values[name].setdefault(measure, []).append(values)


@dataclass(frozen=True, eq=False)
class ExplanationTable:
    """Explanations of several methods, measured on the same composites and images.

    Attributes:
        values: by method and measure a number for each composite, or single image.
        encoder: its short name.
        seen_as: what images became, and the precision of the arithmetic.
        reference: "prototypes" or "nearest".
        n_references: images behind the prototypes, or to match with.
        n_classes: of the references.
        is_reduced: the network takes one size only, so the photographs of a composite are smaller than single ones.
        boxes: measures that need boxes, where there are any.
        examples: some composites with their maps.
        n_samples: bootstrap samples.
        seed: of the bootstrap and the draws.
    """

    values: Mapping[str, Mapping[str, Tensor]] = field(repr=False)
    encoder: str
    seen_as: str
    reference: str
    n_references: int
    n_classes: int
    is_reduced: bool = False
    boxes: LocalisationTable | None = None
    examples: tuple[Example, ...] = field(default=(), repr=False)
    n_samples: int = 1000
    seed: int = 0

    def estimate(self, method: str, measure: str) -> Estimate:
        """The mean of a measure with its 95 % bootstrap interval over composites."""
        return self._estimate(self._of(method, measure))

    def difference(self, one: str, other: str, measure: str = "right_of_two") -> Estimate:
        """One method minus another, paired over composites."""
        return self._estimate(self._of(one, measure) - self._of(other, measure))

    def _of(self, method: str, measure: str) -> Tensor:
        for name, known in ((method, self.values), (measure, self.values.get(method, {}))):
            if name not in known:
                raise InputError(f"no {name!r} in this table; it has {', '.join(known)}")
        return self.values[method][measure]

    def _estimate(self, values: Tensor) -> Estimate:
        return estimate(lambda w: w @ values.double(), len(values), n_samples=self.n_samples, seed=self.seed)

    @property
    def measures(self) -> list[str]:
        """The measures of all methods, in the order of the columns."""
        return [measure for measure in MEASURES if all(measure in own for own in self.values.values())]

    def best(self) -> tuple[str, Estimate | None]:
        """The weighting to be recommended, and its lead over the default in preference; None for the default itself.

        Another replaces the default only where it prefers the right photograph of two more often, with the whole
        paired interval above 0. Weightings that are blind to the match or fail on single objects do not stand.
        """
        rivals = [name for name in self.values if name.partition("@")[0] in WEIGHTINGS]
        leads = {
            name: lead
            for name in rivals
            if name not in {*_UNFIT, DEFAULT} and (lead := self.difference(name, DEFAULT)).low > 0
        }
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
        rows = [
            {"method": name, **{measure: self.estimate(name, measure)._asdict() for measure in self.measures}}
            for name in self.values
        ]
        best, lead = self.best()
        return {
            "encoder": self.encoder,
            "images_as": self.seen_as,
            "reference": self.reference,
            "references": self.n_references,
            "classes": self.n_classes,
            "composites": self._counts(),
            "default": DEFAULT,
            "best": best,
            "lead": None if lead is None else lead._asdict(),
            "seed": self.seed,
            "bootstrap_samples": self.n_samples,
            "notes": self.notes,
            "rows": rows,
            "boxes": None if self.boxes is None else self.boxes.to_dict(),
        }

    def _counts(self) -> dict[str, int]:
        own = self.values[next(iter(self.values))]
        return {measure: len(own[measure]) for measure in self.measures}

    @property
    def notes(self) -> list[str]:
        """Remarks on how the numbers came about."""
        reduced = "This network takes one size of image only: in composites the photographs are smaller than alone."
        return [reduced] * self.is_reduced

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows as text; values of preference with 95 % intervals."""
        measures = self.measures
        headings = ["map", *(MEASURES[measure] for measure in measures), "right of two, minus default's"]
        columns: dict[str, Callable[[str], object]] = {}
        if self.boxes is not None:
            rows = {row.method: row for row in self.boxes.rows}
            columns = {
                "V2": lambda name: rows[name].max_box_acc_v2.value if name in rows else None,
                "peak": lambda name: rows[name].peak.value if name in rows else None,
                "energy in boxes": lambda name: rows[name].energy.value if name in rows else None,
            }
        made = []
        for name in self.values:
            found = [self.estimate(name, measure) for measure in measures]
            own = [str(e) if m == "right_of_two" else f"{e.value:.3f}" for m, e in zip(measures, found, strict=True)]
            lead = "default" if name == DEFAULT else str(self.difference(name, DEFAULT))
            boxed = [value(name) for value in columns.values()]
            made.append([name, *own, lead, *("–" if v is None else f"{v:.3f}" for v in boxed)])
        return [*headings, *columns], made

    @property
    def heading(self) -> str:
        """Under which circumstances the numbers came about."""
        counts = self._counts()
        n = ", ".join(f"{MEASURES[measure]}: {count}" for measure, count in counts.items() if "energy" not in measure)
        return (
            f"{self.encoder}, {self.seen_as}, {self.reference} of {self.n_references} images in {self.n_classes} "
            f"classes, images or composites ({n}), 95 % bootstrap intervals, seed {self.seed}"
        )

    def table(self) -> str:
        """A Markdown table with a heading line."""
        headings, rows = self.cells()
        lines = [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
        lines += [f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in rows]
        return "\n".join([self.heading, "", *lines, *(f"\n{note}" for note in self.notes)])

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
        notes = [self.heading, *self.notes]
        return write_page(path, rows, title="Explanations compared", notes=notes, table=self.cells(), kind="jpeg")
