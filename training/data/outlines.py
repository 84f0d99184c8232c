"""Where the objects are: the outlines of a data set's images as rasters of the network's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ...errors import ImageError, InputError
from ...images import Transform
from ...remarks import counted, remark
from ..engine.step import Regions
from .annotations import Annotation, Annotations, RegionSettings, raster_of

__all__ = ["Labels", "Outlines", "RegionTable"]

Labels = Int[Tensor, " n"] | Float[Tensor, "n c"]


@dataclass(frozen=True, eq=False)
class RegionTable:
    """The outlined objects of a data set, ordered by image.

    Attributes:
        image: the position of the image in the data set.
        label: the class index of the object.
        is_box: True for boxes, False for masks.
        raster: 1 on the object, in the pixels of the network's input.
    """

    image: Int[Tensor, " r"]
    label: Int[Tensor, " r"]
    is_box: Bool[Tensor, " r"]
    raster: UInt8[Tensor, "r h w"]

    def of(self, index: Int[Tensor, " b"]) -> Regions:
        """The regions of a batch of images."""
        first = torch.searchsorted(self.image, index)
        count = torch.searchsorted(self.image, index, right=True) - first
        row = torch.repeat_interleave(torch.arange(len(index)), count)
        before = torch.cumsum(count, 0) - count
        own = torch.arange(len(row)) - before[row] + first[row]
        return Regions(row, self.label[own], self.is_box[own], self.raster[own].float())

    def subset(self, index: Int[Tensor, " m"]) -> RegionTable:
        """The regions of some images, which are numbered anew."""
        chosen = self.of(index)
        return RegionTable(chosen.row, chosen.label, chosen.is_box, chosen.raster.to(torch.uint8))


@dataclass(frozen=True)
class Outlines:
    """Makes the regions of some images; outlines of one class in one image become one region."""

    class_names: Sequence[str]
    labels: Labels
    files: Sequence[Path]
    transform: Transform

    def table(self, annotations: Annotations, settings: RegionSettings, *, strict: bool) -> RegionTable | None:
        """The regions of the images that the settings choose; what cannot be used is left out and said."""
        if settings.kind == "none":
            return None
        usable = self._usable(annotations, settings)
        if not usable:
            plural = "masks" if settings.kind == "mask" else "boxes"
            raise InputError(f"{plural} are asked for, but none of the {len(self.files)} images has one")
        rasters: dict[tuple[int, int], Tensor] = {}
        problems: list[str] = []
        for i in sorted(_chosen(usable, self.labels, settings, count=len(self.files))):
            for number, annotation in usable[i]:
                try:
                    raster = raster_of(annotation, self.files[i], self.transform, kind=settings.kind)
                except (ImageError, InputError) as error:
                    problems.append(str(error))
                    continue
                if raster is not None:
                    rasters[i, number] = torch.maximum(raster, rasters.get((i, number), raster))
        if problems and not rasters:
            raise InputError(f"none of {counted(len(problems), 'outline')} can be used: {problems[0]}")
        if problems:
            are = "outline cannot be used and is" if len(problems) == 1 else "outlines cannot be used and are"
            remark(f"{len(problems)} {are} left out: {'; '.join(problems[:5])}", strict=strict)
        keys = torch.tensor(list(rasters), dtype=torch.long).view(-1, 2)
        blank = torch.zeros(0, self.transform.height, self.transform.width, dtype=torch.uint8)
        stacked = torch.stack(list(rasters.values())) if rasters else blank
        is_box = torch.full((len(keys),), settings.kind == "box")
        return RegionTable(keys[:, 0].contiguous(), keys[:, 1].contiguous(), is_box, stacked)

    def _usable(self, annotations: Annotations, settings: RegionSettings) -> dict[int, list[tuple[int, Annotation]]]:
        """Class and outline by image."""
        usable: dict[int, list[tuple[int, Annotation]]] = {}
        for i, file in enumerate(self.files):
            for each in annotations.get(file, ()):
                number = _class_of(each, self.labels[i], self.class_names, file)
                if number is not None and getattr(each, settings.kind) is not None:
                    usable.setdefault(i, []).append((number, each))
        return usable


def _class_of(annotation: Annotation, label: Tensor, class_names: Sequence[str], file: Path) -> int | None:
    """The class index of an outlined object; None if the image's labels do not speak of it."""
    shown = label.nonzero()[:, 0].tolist() if label.ndim else [int(label)]
    if annotation.label is None:
        if len(shown) != 1:
            raise InputError(f"{file}: an outline without a label, in an image that shows {len(shown)} classes")
        return int(shown[0])
    number = class_names.index(annotation.label) if annotation.label in class_names else -1
    return number if number in shown else None


def _chosen(usable: Mapping[int, object], labels: Labels, settings: RegionSettings, *, count: int) -> list[int]:
    """The images whose regions are used: classes take turns, so that each has its part."""
    generator = np.random.default_rng([0x2E6, settings.seed])
    first = labels.argmax(1) if labels.ndim == 2 else labels
    of_class: dict[int, list[int]] = {}
    for i in generator.permutation(sorted(usable)).tolist():
        of_class.setdefault(int(first[i]), []).append(i)
    order = generator.permutation(sorted(of_class)).tolist()
    rounds = max(map(len, of_class.values()))
    dealt = [of_class[c][turn] for turn in range(rounds) for c in order if turn < len(of_class[c])]
    return dealt[: max(round(settings.share * count), 1)]
