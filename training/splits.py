"""The table `[data]` of a recipe: which images, how they are divided, and which of them say where the object is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import InputError
from ..images import ImageRecord, Listing, Transform, list_images
from ..images.transform import DEFAULT_FIT
from .annotations import Annotation, RegionSettings, annotations_of, boxes_from
from .data import Cache, TrainingSet
from .tables import plain

if TYPE_CHECKING:
    from ..images.scenes import Blueprint

__all__ = ["DATA_VARIABLE", "DataSettings", "ScenePart", "ScenesSettings", "SplitSettings", "load_splits"]

DATA_VARIABLE = "DISTCAM_DATA"  # the environment variable that says where `photographs` lie

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ScenePart:
    """The scenes of one split.

    Attributes:
        per_class: how many of each class.
        classes: "base" or "novel".
        backgrounds: "any"; "own": class i always stands before the i-th background (counted round); "other": before any
            but that; or a list of names.
        two_objects: share of the scenes with a second object.
    """

    per_class: int
    classes: Literal["base", "novel"] = "base"
    backgrounds: Literal["any", "own", "other"] | tuple[str, ...] = "any"
    two_objects: float = 0.0


@dataclass(frozen=True)
class ScenesSettings:
    """Procedural scenes, drawn once into a folder of their own.

    Attributes:
        splits: by name; a number stands for that many scenes of each base class before any background.
        classes: base classes.
        novel_classes: further classes, which share no object with them.
        size: side of the pictures in pixels.
        seed: of classes and pictures; not that of the training.
    """

    splits: Mapping[str, ScenePart | int]
    classes: int = 12
    novel_classes: int = 0
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        parts = {name: ScenePart(part) if isinstance(part, int) else part for name, part in self.splits.items()}
        object.__setattr__(self, "splits", parts)
        if self.classes < 2 or self.novel_classes < 0:
            raise InputError(f"expected two classes or more, got {self.classes} and {self.novel_classes} novel ones")
        novel = [name for name, part in parts.items() if part.classes == "novel"]
        if novel and not self.novel_classes:
            raise InputError(f"the split {novel[0]!r} shows novel classes; set novel_classes to how many there are")


@dataclass(frozen=True)
class SplitSettings:
    """How a folder or table is divided.

    Attributes:
        parts: by name. Without a column: shares of every class's images, which add up to 1 at most. With a column: the
            values that make up each part.
        column: of a table, such as `split`; empty for a division by chance.
        novel: share of the classes that become a part "novel" of their own, which no training sees.
        seed: of the division.
    """

    parts: Mapping[str, float | str] = field(default_factory=lambda: {"train": 0.7, "test": 0.3})
    column: str = ""
    novel: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        values = list(self.parts.values())
        if "train" not in self.parts:
            raise InputError(f"expected a part 'train', got {', '.join(self.parts) or 'none'}")
        if self.column:
            if not all(isinstance(value, str) for value in values):
                raise InputError(f'parts of the column {self.column!r} are named by its values, such as train = "a"')
        elif not all(isinstance(value, float) and value > 0 for value in values) or sum(map(float, values)) > 1 + 1e-9:
            raise InputError(f"expected shares above 0 that add up to 1 at most, got {dict(self.parts)}")
        if not 0 <= self.novel < 1:
            raise InputError(f"expected a share of novel classes in [0, 1), got {self.novel}")


@dataclass(frozen=True)
class DataSettings:
    """Which images; one of `images`, `photographs`, and `scenes`.

    Attributes:
        images: a folder, pattern, or CSV table, relative to the recipe's folder.
        photographs: the same, relative to the folder that the environment variable DISTCAM_DATA names.
        scenes: procedural scenes.
        size: side of the network's input in pixels, or height and width.
        fit: how an image gets that shape; see `Transform`.
        labels: "folder", "none", or a table, as in `list_images`.
        label_columns: 0/1 columns of a table, one per class, for images that show several.
        multi_label: scenes: an image shows the classes of all its objects.
        boxes: a table or folder of boxes beside the images, as `read_boxes` takes them.
        masks: a folder of masks beside the images, with their names and the suffix .png; a column `mask` does too.
        regions: which training images come with an outline. Other parts use all outlines there are, to measure maps.
        split: how images are divided; scenes are divided by their own table.
        cache: "memory", "none", or "auto": decoded images stay in memory up to 2 GiB.
    """

    images: str = ""
    photographs: str = ""
    scenes: ScenesSettings | None = None
    size: int | tuple[int, int] = 64
    fit: Literal["crop", "squash", "pad"] = DEFAULT_FIT
    labels: str = ""
    label_columns: tuple[str, ...] = ()
    multi_label: bool = False
    boxes: str = ""
    masks: str = ""
    regions: RegionSettings = field(default_factory=RegionSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    cache: Cache = "auto"

    def __post_init__(self) -> None:
        named = [name for name in ("images", "photographs", "scenes") if getattr(self, name)]
        if len(named) != 1:
            raise InputError(f"expected one of images, photographs, scenes; got {' and '.join(named) or 'none'}")

    def source(self, folder: Path) -> tuple[str, Path]:
        """What `images` or `photographs` names, and the folder it is relative to; `folder` is the recipe's.

        Raises:
            InputError: photographs, and the environment variable names no folder.
        """
        return (self.photographs, _photographs_folder()) if self.photographs else (self.images, folder)


def load_splits(
    settings: DataSettings, transform: Transform, *, folder: Path, cache: Path, progress: Progress | None = None
) -> dict[str, TrainingSet]:
    """The images by split; "train" is always there, and other splits of its classes number them alike.

    Args:
        settings: the recipe's `[data]`.
        transform: the encoder's.
        folder: what relative paths start from.
        cache: where scenes are drawn, once for all runs with the same scenes.
        progress: called with (images drawn or decoded, images in all), anew for each split.

    Raises:
        InputError: images that are not there, or a split without images.
        ImageError: a file that cannot be read.
    """
    if settings.scenes is not None:
        return _scene_splits(settings, settings.scenes, transform, cache, progress)
    return _listed_splits(settings, transform, folder, progress)


# --- scenes -----------------------------------------------------------------------------------------------------------


def _scene_splits(
    settings: DataSettings, scenes: ScenesSettings, transform: Transform, cache: Path, progress: Progress | None
) -> dict[str, TrainingSet]:
    from ..images.scenes import SceneSet, blueprints, write_scenes

    if "train" not in scenes.splits:
        raise InputError(f"[data.scenes.splits] needs a split 'train'; got {', '.join(scenes.splits) or 'none'}")
    classes = blueprints(scenes.classes + scenes.novel_classes, seed=scenes.seed)
    sets: dict[str, TrainingSet] = {}
    for name, part in scenes.splits.items():
        assert isinstance(part, ScenePart)
        own = classes[: scenes.classes] if part.classes == "base" else classes[scenes.classes :]
        target = cache / f"{name}-{_digest(name, plain(part), plain(scenes))}"
        if not (target / "scenes.csv").is_file():
            write_scenes(
                target,
                classes=own,
                splits={name: part.per_class},
                size=scenes.size,
                two_object_share=part.two_objects,
                backgrounds=_backgrounds(part, own),
                seed=scenes.seed,
                masks=len(own) <= 255,
                progress=progress,
            )
        sets[name] = TrainingSet.from_scenes(
            SceneSet.read(target),
            name,
            transform,
            is_multi_label=settings.multi_label,
            regions=settings.regions if name == "train" else RegionSettings("mask", share=1.0),
        )
    return sets


def _digest(*values: object) -> str:
    """Eight digits that change with anything the pictures depend on."""
    known = [*values[:2], {k: v for k, v in values[2].items() if k != "splits"}]  # type: ignore[attr-defined]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


def _backgrounds(part: ScenePart, classes: Sequence[Blueprint]) -> dict[str, tuple[str, ...]] | None:
    from ..images.scenes import BACKGROUNDS

    if part.backgrounds == "any":
        return None
    chosen: dict[str, tuple[str, ...]] = {}
    for number, blueprint in enumerate(classes):
        own = BACKGROUNDS[number % len(BACKGROUNDS)]
        if isinstance(part.backgrounds, tuple):
            chosen[blueprint.name] = part.backgrounds
        else:
            others = tuple(name for name in BACKGROUNDS if name != own)
            chosen[blueprint.name] = (own,) if part.backgrounds == "own" else others
    return chosen


# --- folders and tables -----------------------------------------------------------------------------------------------


def _listed_splits(
    settings: DataSettings, transform: Transform, folder: Path, progress: Progress | None
) -> dict[str, TrainingSet]:
    name, base = settings.source(folder)
    listing = list_images(base / name, labels=settings.labels or None)
    annotations = annotations_of(listing)
    if settings.boxes:
        annotations |= boxes_from(base / settings.boxes, listing)
    if settings.masks:
        annotations |= _beside(listing, base / settings.masks)
    outlined = {kind for kind in ("mask", "box") for own in annotations.values() if getattr(own[0], kind) is not None}
    parts = _divided(list(listing), settings)
    known = _class_names(parts["train"], settings)
    sets: dict[str, TrainingSet] = {}
    for name, records in parts.items():
        files = {listing.file(record) for record in records}
        is_disjoint = not settings.label_columns and set(known).isdisjoint(_class_names(records, settings))
        has_outlines = not files.isdisjoint(annotations)
        measured = RegionSettings("mask" if "mask" in outlined else "box" if has_outlines else "none", share=1.0)
        sets[name] = TrainingSet.from_listing(
            listing,
            transform,
            records=records,
            label_columns=settings.label_columns,
            class_names=None if is_disjoint else known,
            annotations=annotations,
            regions=settings.regions if name == "train" else measured,
            cache=settings.cache,
            progress=progress,
        )
    return sets


def _photographs_folder() -> Path:
    place = os.environ.get(DATA_VARIABLE)
    if not place or not Path(place).is_dir():
        raise InputError(
            f"this recipe needs photographs: set the environment variable {DATA_VARIABLE} to the folder that holds "
            f"them; it is {place or 'not set'}"
        )
    return Path(place)


def _beside(listing: Listing, folder: Path) -> dict[Path, list[Annotation]]:
    """Masks named like their images, for those images that have one."""
    if not folder.is_dir():
        raise InputError(f"expected a folder of masks, and nothing is at {folder}")
    found: dict[Path, list[Annotation]] = {}
    for record in listing:
        mask = (folder / record.path).with_suffix(".png")
        if mask.is_file():
            found[listing.file(record)] = [Annotation(mask=mask)]
    return found


def _class_names(records: Sequence[ImageRecord], settings: DataSettings) -> tuple[str, ...]:
    return tuple(settings.label_columns) or tuple(sorted({label for record in records for label in _shown(record)}))


def _shown(record: ImageRecord) -> tuple[str, ...]:
    if "labels" in record.columns:
        return tuple(name for name in map(str.strip, record.columns["labels"].split(";")) if name)
    return () if record.label is None else (record.label,)


def _divided(records: Sequence[ImageRecord], settings: DataSettings) -> dict[str, list[ImageRecord]]:
    """The records of every part, in the order of the listing."""
    split = settings.split
    generator = np.random.default_rng([0x59C, split.seed])
    novel = _novel_classes(records, split.novel, generator)
    parts: dict[str, list[ImageRecord]] = {name: [] for name in split.parts}
    aside = [record for record in records if not novel.isdisjoint(_shown(record))]
    rest = [record for record in records if novel.isdisjoint(_shown(record))]
    if split.column:
        part_of = {value: name for name, value in split.parts.items()}
        for record in rest:
            if split.column not in record.columns:
                raise InputError(f"{record.path}: the table has no column {split.column!r} to divide it by")
            if record.columns[split.column] in part_of:
                parts[part_of[record.columns[split.column]]].append(record)
    else:
        for record, name in zip(rest, _by_chance(rest, split, generator), strict=True):
            if name is not None:
                parts[name].append(record)
    if novel:
        parts["novel"] = aside
    empty = next((name for name, own in parts.items() if not own), None)
    if empty is not None:
        raise InputError(f"the part {empty!r} of the data has no images; {len(records)} were divided")
    return parts


def _novel_classes(records: Sequence[ImageRecord], share: float, generator: np.random.Generator) -> set[str]:
    if not share:
        return set()
    names = sorted({label for record in records for label in _shown(record)})
    count = min(max(round(share * len(names)), 1), len(names))
    return {names[number] for number in generator.permutation(len(names))[:count]}


def _by_chance(
    records: Sequence[ImageRecord], split: SplitSettings, generator: np.random.Generator
) -> list[str | None]:
    """The part of every record: each class is divided in the same shares, an image of several classes by its first."""
    of_class: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        of_class.setdefault(next(iter(_shown(record)), ""), []).append(number)
    chosen: list[str | None] = [None] * len(records)
    names, ends = list(split.parts), np.cumsum([float(share) for share in split.parts.values()])
    for _, members in sorted(of_class.items()):
        order = generator.permutation(members)
        for name, part in zip(names, np.split(order, np.rint(ends * len(order)).astype(int)), strict=False):
            for number in part.tolist():
                chosen[number] = name
    return chosen
