"""The benchmark of explanations: do the maps of an encoder depend on the match, and point to what it is alike in?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...encoders import Encoder, Inference
from ...errors import ImageError, InputError
from ...explain import WEIGHTINGS, Similarity
from ...explain.checks.faithfulness import insertion_deletion
from ...explain.weightings import MEANS
from ...images import Listing
from ...metrics import Metric
from ...metrics.maps import spearman
from ...progress import Progress
from ...remarks import remark
from .classifiers import LinearClassifier
from .composites import FOUR, TWO, Canvas, Grid, draw_composites, pointing, split_off
from .explanation_table import UNFIT, Example, ExplanationTable
from .maps import DEFAULT_METHODS, SHARES, MapMaker
from .references import ObjectImage, ReferenceKind, References, photographs

if TYPE_CHECKING:
    from ...index.reader import GalleryReader

SHOWN = 3  # composites of two, and of four, on the page
THUMBNAIL = 320
AT_ONCE = 8
CROWD = 2000  # of a gallery's images so many are looked at
_GRADIENT = {"gradcam++", "layercam", "hirescam"}  # passes of their own for every question


def default_methods(references: References, reference: ReferenceKind, *, has_classifier: bool) -> list[str]:
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
    return [name for name in own if name.partition("@")[0] in WEIGHTINGS and "tau" not in name and name not in UNFIT]


def benchmark_explanations(
    images: Sequence[ObjectImage],
    encoder: Encoder,
    references: References,
    *,
    composites: int = 40,
    methods: Sequence[str] | None = None,
    reference: ReferenceKind = "prototypes",
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
    first (insertion minus deletion), on `faithful` of them at 22 passes for each method. See `localise` for the rest.
    """
    inference = Inference(encoder, device=device, precision=precision)
    if classifier is not None and methods is None:
        try:
            classifier.for_references(references, strict=True)
        except InputError as error:
            remark(f"no row for `cam`: {error}")
            classifier = None
    if methods is None:
        methods = default_methods(references, reference, has_classifier=classifier is not None)
    generator = torch.Generator().manual_seed(seed)
    maker = MapMaker.of(encoder, methods, references, classifier, generator, reference=reference)
    run = Composing(inference, maker, composites, strict=strict)
    values = run.draw(images, ((1, 1), TWO, FOUR), faithful=faithful, progress=progress)
    return ExplanationTable(
        values=values,
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


class Composing:
    """N composites of each kind drawn from images and turned into measurements of the maps of several methods."""

    def __init__(self, inference: Inference, maker: MapMaker, n: int, *, strict: bool = False) -> None:
        if n < 2:
            raise InputError(f"`composites={n}` should be 2 or more, so that there is an interval")
        self.inference, self.maker, self.n, self.strict = inference, maker, n, strict
        self.references, self.generator = maker.references, maker.generator
        self.canvas = Canvas.of(inference)
        self.values: dict[str, dict[str, list[Tensor]]] = {method.name: {} for method in maker.methods}
        self.examples: list[Example] = []
        self.skipped: list[str] = []
        self.n_faithful = 0
        self.n_shown: dict[Grid, int] = {TWO: 0, FOUR: 0}

    def draw(
        self,
        images: Sequence[ObjectImage],
        grids: Sequence[Grid] = (TWO, FOUR),
        *,
        faithful: int = 0,
        progress: Progress | None = None,
    ) -> dict[str, dict[str, Tensor]]:
        """By method and measure one value of each composite, or single image, of images whose class has references."""
        known = [image for image in images if image.label in self.references.labels]
        drawn = {grid: draw_composites(known, self.n, grid, generator=self.generator) for grid in grids}
        if not drawn[TWO]:
            raise InputError(
                f"composites need images of two classes that have references; there are {len(known)} images"
            )
        total, done = sum(map(len, drawn.values())) + faithful, 0
        for grid, asked in drawn.items():
            for start in range(0, len(asked), AT_ONCE):
                some = asked[start : start + AT_ONCE]
                self._measure(some, grid, faithful=max(0, faithful - self.n_faithful))
                done += len(some)
                if progress is not None:
                    progress(done + self.n_faithful, total)
        if self.skipped:
            remark(f"{len(self.skipped):,} composites have an image that cannot be read, the first: {self.skipped[0]}")
        return {name: {m: torch.cat(parts) for m, parts in own.items()} for name, own in self.values.items()}

    def _measure(self, composites: Sequence[tuple[ObjectImage, ...]], grid: Grid, *, faithful: int) -> None:
        """A batch of composites of one grid, or of single images."""
        used, read = [], []
        for composite in composites:
            try:
                photographs = torch.stack([self.inference.read(photograph.file) for photograph in composite])
            except ImageError as error:
                if self.strict:
                    raise
                self.skipped.append(str(error))
            else:
                used.append(composite)
                read.append(photographs[0] if grid == (1, 1) else self.canvas.pixels(photographs, grid))
        if not read:
            return
        pixels = torch.stack(read)
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


# --- What is asked, and what it is compared with ----------------------------------------------------------------------


def gallery_encoder(gallery: GalleryReader) -> Encoder:
    """The encoder that a gallery keeps."""
    if gallery.encoder_path is None:
        raise InputError(f"{gallery.folder} keeps no encoder, so there are no maps to compare")
    return Encoder.load(gallery.encoder_path)


def from_gallery(
    gallery: GalleryReader, queries: Listing | None, n: int, *, seed: int
) -> tuple[list[ObjectImage], References]:
    """Images to ask with, and a gallery's stored vectors without theirs.

    Without `queries` about n of the gallery's images are held out; prototypes are then those of the other images.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = gallery.ids
    if len(ids) > CROWD:
        ids = np.sort(ids[torch.randperm(len(ids), generator=generator)[:CROWD].numpy()])
    records = [record for record in gallery.records(ids) if record.label is not None]
    known = {ObjectImage(gallery.item(record), str(record.label)): record for record in records}
    asked, kept = split_off(known, n, generator=generator) if queries is None else (photographs(queries), list(known))
    if not kept:
        raise InputError(f"{gallery.folder} has no labels, so it has no classes to point to")
    rows = np.array([known[photograph].id for photograph in kept], np.uint64)
    pooled, embeddings = (torch.from_numpy(read(rows)) for read in (gallery.pooled, gallery.embeddings))
    names, files = [photograph.label for photograph in kept], [photograph.file for photograph in kept]
    given: dict[str, Any] = {"metric": gallery.metric, "border": gallery.background, "files": files}
    return asked, References.of(names, pooled, embeddings, **given)


def from_images(
    images: Listing,
    queries: Listing | None,
    inference: Inference,
    n: int,
    *,
    metric: Metric = "cosine",
    seed: int = 0,
    strict: bool = False,
    progress: Progress | None = None,
) -> tuple[list[ObjectImage], References]:
    """Images to ask with, and the encoded others; without `queries` about n of the images are held out."""
    known, generator = photographs(images), torch.Generator().manual_seed(seed)
    asked, kept = split_off(known, n, generator=generator) if queries is None else (photographs(queries), known)
    return asked, References.encode(kept, inference, metric=metric, strict=strict, progress=progress)
