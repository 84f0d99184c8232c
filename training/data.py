"""Images to learn from or to measure on: pixels, classes, and where the objects are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ..errors import InputError, ShapeError
from ..images import ImageRecord, Listing, Transform, read_image
from .annotations import Annotation, Annotations, RegionSettings, raster_of
from .step import Regions

if TYPE_CHECKING:
    from ..images.scenes import SceneSet

__all__ = ["MEMORY_LIMIT", "Cache", "RegionTable", "TrainingSet"]

MEMORY_LIMIT = 2 * 1024**3  # bytes of pixels that cache="auto" keeps in memory

Cache = Literal["auto", "memory", "none"]
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


class _Pixels(Protocol):
    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]: ...


@dataclass(frozen=True, eq=False)
class _InMemory:
    pixels: UInt8[Tensor, "n 3 h w"]

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        return self.pixels[index]


@dataclass(frozen=True, eq=False)
class _InFiles:
    files: Sequence[Path]
    transform: Transform

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        return torch.stack([self.transform(read_image(self.files[i])) for i in index.tolist()])


class TrainingSet:
    """Images of one split, in a fixed order, with their labels and perhaps with regions.

    Attributes:
        labels: class indices; or one 0/1 column per class where an image may show several.
        class_names: by class index.
        transform: what made the pixels; `normalise` of it is still to come.
        regions: outlined objects; None if the data set has none.
    """

    def __init__(
        self,
        pixels: _Pixels,
        labels: Labels,
        class_names: Sequence[str],
        *,
        transform: Transform,
        regions: RegionTable | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self._pixels = pixels
        self.labels = labels
        self.class_names = tuple(class_names)
        self.transform = transform
        self.regions = regions
        self._names = names

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        outlined = f", {len(self.regions.image)} regions" if self.regions is not None else ""
        return f"TrainingSet({len(self)} images, {len(self.class_names)} classes{outlined})"

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may show several classes."""
        return self.labels.ndim == 2

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded already."""
        return isinstance(self._pixels, _InMemory)

    def pixels(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Images as the transform makes them, in grey levels; read from their files unless they are in memory.

        Raises:
            ImageError: a file cannot be read; the message names it.
        """
        return self._pixels.read(index)

    def names(self, index: Sequence[int]) -> list[str]:
        """What to call images in a message."""
        return [self._names[i] if self._names else f"image {i}" for i in index]

    def per_class(self) -> Int[Tensor, " c"]:
        """How many images show each class."""
        if self.is_multi_label:
            return (self.labels > 0).sum(0)
        return torch.bincount(self.labels.long(), minlength=len(self.class_names))

    def subset(self, index: Sequence[int] | Int[Tensor, " m"], *, drop_classes: bool = False) -> TrainingSet:
        """Some of the images, in this order; with `drop_classes` also without the classes that none of them shows."""
        chosen = torch.as_tensor(index, dtype=torch.long)
        names = None if self._names is None else [self._names[i] for i in chosen.tolist()]
        pixels: _Pixels
        if isinstance(self._pixels, _InFiles):
            pixels = _InFiles([self._pixels.files[i] for i in chosen.tolist()], self.transform)
        else:
            pixels = _InMemory(self._pixels.read(chosen))
        regions = None if self.regions is None else self.regions.subset(chosen)
        part = TrainingSet(
            pixels, self.labels[chosen], self.class_names, transform=self.transform, regions=regions, names=names
        )
        return part._without_empty_classes() if drop_classes else part

    def _without_empty_classes(self) -> TrainingSet:
        kept = torch.nonzero(self.per_class())[:, 0]
        renumbered = torch.full((len(self.class_names),), -1)
        renumbered[kept] = torch.arange(len(kept))
        labels = self.labels[:, kept] if self.is_multi_label else renumbered[self.labels]
        regions = self.regions
        if regions is not None:
            known = renumbered[regions.label] >= 0
            own = renumbered[regions.label[known]]
            regions = RegionTable(regions.image[known], own, regions.is_box[known], regions.raster[known])
        names = [self.class_names[number] for number in kept.tolist()]
        return TrainingSet(self._pixels, labels, names, transform=self.transform, regions=regions, names=self._names)

    def require_trainable(self) -> None:
        """Nothing, if a classifier can learn from these images.

        Raises:
            InputError: fewer than two classes, or a class that no image shows.
        """
        if len(self.class_names) < 2:
            raise InputError(f"training needs at least two classes, got {len(self.class_names)}")
        empty = [name for name, n in zip(self.class_names, self.per_class().tolist(), strict=True) if n == 0]
        if empty:
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            raise InputError(
                f"expected training images of every class; none shows {', '.join(map(repr, empty[:5]))}{more}"
            )

    @classmethod
    def from_pixels(
        cls,
        pixels: UInt8[Tensor, "n 3 h w"],
        labels: Sequence[str] | Labels,
        *,
        transform: Transform,
        class_names: Sequence[str] | None = None,
        regions: RegionTable | None = None,
    ) -> TrainingSet:
        """Images that are in memory already.

        Args:
            pixels: as `transform` makes them; kept, not copied.
            labels: class names, class indices, or 0/1 columns.
            transform: what made them.
            class_names: by class index; the sorted names if left out.
            regions: outlined objects, ordered by image.

        Raises:
            InputError: lengths or types that do not fit, or a label without a name.
        """
        expected = (len(labels), 3, transform.height, transform.width)
        if pixels.dtype != torch.uint8 or tuple(pixels.shape) != expected:
            raise ShapeError(f"expected uint8 pixels {expected}, got {pixels.dtype} {tuple(pixels.shape)}")
        if isinstance(labels, Tensor):
            count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
            names = tuple(map(str, range(count))) if class_names is None else tuple(class_names)
            if len(names) < count or (labels.ndim == 2 and len(names) != count):
                raise InputError(f"labels for {count} classes came with {len(names)} class names")
            numbers = labels.float() if labels.ndim == 2 else labels.long()
        else:
            names, numbers = _numbered([(label,) for label in labels], class_names, is_multi_label=False)
        return cls(_InMemory(pixels), numbers, names, transform=transform, regions=regions)

    @classmethod
    def from_listing(
        cls,
        listing: Listing,
        transform: Transform,
        *,
        records: Sequence[ImageRecord] | None = None,
        label_columns: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        annotations: Annotations | None = None,
        regions: RegionSettings | None = None,
        cache: Cache = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> TrainingSet:
        """Images of a folder or table, decoded now if they fit into memory.

        An image may show several classes if the table has a column `labels` with names between semicolons, or one 0/1
        column per class, named by `label_columns`. Otherwise every image needs its label.

        Args:
            listing: from `list_images`.
            transform: the encoder's.
            records: some of the listing's records; all if left out.
            label_columns: the 0/1 columns, which are the classes then.
            class_names: by class index; the sorted names if left out.
            annotations: boxes and masks by image file; see `annotations_of` and `boxes_from`.
            regions: which of them to use; none if left out.
            cache: "memory": decode all images now. "none": decode each when it is needed. "auto": memory up to 2 GiB.
            progress: called with (images decoded, images in all).

        Raises:
            ImageError: a file cannot be read.
            InputError: an image without a label, a label without a name, or annotations that do not fit.
        """
        chosen = list(listing) if records is None else list(records)
        files = [listing.file(record) for record in chosen]
        shown = [_labels_of(record, label_columns) for record in chosen]
        is_multi_label = bool(label_columns) or "labels" in listing.column_names
        names, labels = _numbered(shown, class_names or tuple(label_columns) or None, is_multi_label=is_multi_label)
        return cls(
            _decoded(files, transform, cache=cache, progress=progress),
            labels,
            names,
            transform=transform,
            regions=_outlined(files, labels, names, transform, annotations or {}, regions or RegionSettings()),
            names=[record.path for record in chosen],
        )

    @classmethod
    def from_scenes(
        cls,
        scenes: SceneSet,
        split: str,
        transform: Transform,
        *,
        is_multi_label: bool = False,
        class_names: Sequence[str] | None = None,
        regions: RegionSettings | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> TrainingSet:
        """One split of a set of scenes, with the boxes and masks of its objects.

        Args:
            scenes: from `write_scenes` or `SceneSet.read`.
            split: one of its splits.
            transform: the encoder's.
            is_multi_label: whether a scene shows the classes of all its objects, or that of the first one.
            class_names: by class index; the set's own if left out.
            regions: which outlines to use; none if left out.
            progress: called with (scenes decoded, scenes in all).
        """
        records = scenes.of_split(split)
        names = scenes.labels if class_names is None else tuple(class_names)
        shown = [tuple(dict.fromkeys(label for label, _ in record.boxes)) for record in records]
        names, labels = _numbered(
            shown if is_multi_label else [own[:1] for own in shown], names, is_multi_label=is_multi_label
        )
        annotations: dict[Path, list[Annotation]] = {}
        for record, own in zip(records, shown, strict=True):
            mask = scenes.mask_file(record)
            for label in own if is_multi_label else own[:1]:
                value = scenes.labels.index(label) + 1
                box = next(box for name, box in record.boxes if name == label)
                entry = Annotation(label, box, mask if mask.is_file() else None, value)
                annotations.setdefault(scenes.file(record), []).append(entry)
        files = [scenes.file(record) for record in records]
        return cls(
            _decoded(files, transform, cache="auto", progress=progress),
            labels,
            names,
            transform=transform,
            regions=_outlined(files, labels, names, transform, annotations, regions or RegionSettings()),
            names=[record.path for record in records],
        )


# --- labels -----------------------------------------------------------------------------------------------------------


def _labels_of(record: ImageRecord, columns: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes that an image shows, as its record says."""
    if columns:
        for name in columns:
            if record.columns.get(name) not in ("0", "1"):
                raise InputError(
                    f"{record.path}: expected 0 or 1 in the column {name!r}, got {record.columns.get(name)!r}"
                )
        return tuple(name for name in columns if record.columns[name] == "1")
    if "labels" in record.columns:
        return tuple(name for name in map(str.strip, record.columns["labels"].split(";")) if name)
    if record.label is None:
        raise InputError(f"{record.path}: expected a label for every image; sort images into one folder per class, "
                         "or give a table with the columns path and label")  # fmt: skip
    return (record.label,)


def _numbered(
    shown: Sequence[tuple[str, ...]], class_names: Sequence[str] | None, *, is_multi_label: bool
) -> tuple[tuple[str, ...], Labels]:
    """Class names by index, and the labels as indices or as 0/1 columns."""
    names = tuple(sorted({name for own in shown for name in own}) if class_names is None else class_names)
    number = {name: i for i, name in enumerate(names)}
    unknown = next((name for own in shown for name in own if name not in number), None)
    if unknown is not None:
        raise InputError(f"the label {unknown!r} is none of the {len(names)} classes {', '.join(names[:8])}")
    if not is_multi_label:
        return names, torch.tensor([number[own[0]] for own in shown], dtype=torch.long)
    columns = torch.zeros(len(shown), len(names))
    for row, own in enumerate(shown):
        columns[row, [number[name] for name in own]] = 1
    return names, columns


# --- pixels -----------------------------------------------------------------------------------------------------------


def _decoded(
    files: Sequence[Path], transform: Transform, *, cache: Cache, progress: Callable[[int, int], None] | None
) -> _Pixels:
    """The pixels in memory, or files to be read when they are needed."""
    needed = len(files) * 3 * transform.height * transform.width
    if cache == "none" or (cache == "auto" and needed > MEMORY_LIMIT):
        return _InFiles(files, transform)
    pixels = torch.empty(len(files), 3, transform.height, transform.width, dtype=torch.uint8)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        try:
            decoded = threads.map(lambda file: transform(read_image(file)), files)
            for number, image in enumerate(decoded):
                pixels[number] = image
                if progress is not None:
                    progress(number + 1, len(files))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # the first unreadable file ends the matter
    return _InMemory(pixels)


# --- regions ----------------------------------------------------------------------------------------------------------


def _outlined(
    files: Sequence[Path],
    labels: Labels,
    class_names: Sequence[str],
    transform: Transform,
    annotations: Annotations,
    settings: RegionSettings,
) -> RegionTable | None:
    """The regions of the images that the settings choose; outlines of one class in one image become one region."""
    if settings.kind == "none":
        return None
    usable: dict[int, list[tuple[int, Annotation]]] = {}
    for i, file in enumerate(files):
        for each in annotations.get(file, ()):
            number = _class_of(each, labels[i], class_names, file)
            if number is not None and getattr(each, settings.kind) is not None:
                usable.setdefault(i, []).append((number, each))
    if not usable:
        plural = "masks" if settings.kind == "mask" else "boxes"
        raise InputError(f"{plural} are asked for, but none of the {len(files)} images has one")
    rasters: dict[tuple[int, int], Tensor] = {}
    for i in sorted(_chosen(usable, labels, settings, count=len(files))):
        for number, annotation in usable[i]:
            raster = raster_of(annotation, files[i], transform, kind=settings.kind)
            if raster is not None:
                rasters[i, number] = torch.maximum(raster, rasters.get((i, number), raster))
    keys = torch.tensor(list(rasters), dtype=torch.long).view(-1, 2)
    blank = torch.zeros(0, transform.height, transform.width, dtype=torch.uint8)
    stacked = torch.stack(list(rasters.values())) if rasters else blank
    return RegionTable(
        keys[:, 0].contiguous(), keys[:, 1].contiguous(), torch.full((len(keys),), settings.kind == "box"), stacked
    )


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
