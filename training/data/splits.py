"""The table `[data]` of a recipe: which images, how they are divided, and which of them say where the object is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BeforeValidator

from ...datasets.cifar import CIFAR, read_cifar
from ...datasets.registry import benchmark_listing, named_benchmark
from ...errors import InputError
from ...files import content_digest
from ...images import ImageRecord, Listing, Transform
from ...images.geometry import DEFAULT_FIT
from ...images.listing import quiet_listing
from ...images.masks import MaskFolder
from ...progress import Progress
from ...remarks import Skipped, remark
from ..recipes.tables import Table
from .batches import DataPart, RunData
from .dividing import SplitSettings, divided, settled, shown_classes
from .outlines import Outline, RegionSettings, boxes_from, outlines_of
from .training_set import MEMORY_LIMIT, Cache, TrainingSet, say_left_out

if TYPE_CHECKING:
    from ...synthetic.blueprint import Blueprint

DATA_VARIABLE = "DISTCAM_DATA"  # the environment variable that says where `photographs` lie


class ScenePart(Table):
    """The scenes of one split."""

    per_class: int  # how many of each class
    classes: Literal["base", "novel"] = "base"  # "base" or "novel"
    # "any"; "own": class i always stands before the i-th background (counted round); "other": before any but that; or a
    # list of names
    backgrounds: Literal["any", "own", "other"] | tuple[str, ...] = "any"
    two_objects: float = 0.0  # share of the scenes with a second object


def _part(value: object) -> object:
    return ScenePart(per_class=value) if isinstance(value, int) else value


class ScenesSettings(Table):
    """Procedural scenes, drawn once into a folder of their own."""

    # by name; a number stands for that many scenes of each base class before any background
    splits: Mapping[str, Annotated[ScenePart, BeforeValidator(_part)]]
    classes: int = 12  # base classes
    novel_classes: int = 0  # further classes, which share no object with them
    size: int = 64  # side of the images in pixels
    seed: int = 0  # of classes and images; not that of the training

    def _check(self) -> None:
        if self.classes < 2 or self.novel_classes < 0:
            raise InputError(f"expected two classes or more, got {self.classes} and {self.novel_classes} novel ones")
        novel = [name for name, part in self.splits.items() if part.classes == "novel"]
        if novel and not self.novel_classes:
            raise InputError(f"the split {novel[0]!r} shows novel classes; set novel_classes to how many there are")


class DataSettings(Table):
    """The images; one of `images`, `photographs`, and `scenes`."""

    # a folder, pattern, or CSV table, relative to the recipe's folder; or a data set as it is downloaded, with the
    # literature's division: "cub:FOLDER", cars, sop, inshop, dogs, ilsvrc, cifar10, cifar100, "voc:DIR#trainaug"
    images: str = ""
    photographs: str = ""  # the same, relative to the folder that the environment variable DISTCAM_DATA names
    scenes: ScenesSettings | None = None  # procedural scenes
    size: int | tuple[int, int] = 64  # side of the network's input in pixels, or height and width
    fit: Literal["crop", "squash", "pad"] = DEFAULT_FIT  # how an image gets that shape; see `Transform`
    resize: int | None = None  # fit = "crop": pixels of the shorter side before the middle is cut out; see `Transform`
    labels: str = ""  # "folder", "split", "none", or a table, as in `list_images`
    label_columns: tuple[str, ...] = ()  # 0/1 columns of a table, one per class, for images that show several
    multi_label: bool = False  # scenes: an image shows the classes of all its objects
    boxes: str = ""  # a table or folder of boxes beside the images, as `read_boxes` takes them
    # a folder of masks beside the images, with their names and the suffix .png; a column `mask` does too
    masks: str = ""
    # which training images come with an outline. Other parts use all outlines there are, to measure maps.
    regions: RegionSettings = RegionSettings()
    split: SplitSettings = SplitSettings()  # how images are divided; scenes are divided by their own table
    cache: Cache = "auto"  # whether decoded images stay in memory; see `Cache`
    # stop where an image cannot be read, or anything else would be left out or assumed with a remark
    strict: bool = False

    def _check(self) -> None:
        named = [name for name in ("images", "photographs", "scenes") if getattr(self, name)]
        if len(named) != 1:
            raise InputError(f"expected one of images, photographs, scenes; got {' and '.join(named) or 'none'}")

    def source(self, folder: Path) -> tuple[str, Path]:
        """The path that `images` or `photographs` gives, and the folder it starts from; `folder` is the recipe's."""
        if not self.photographs:
            return self.images, folder
        place = os.environ.get(DATA_VARIABLE)
        if not place or not Path(place).is_dir():
            raise InputError(
                f"this recipe needs photographs: set the environment variable {DATA_VARIABLE} to the folder that holds "
                f"them; it is {place or 'not set'}"
            )
        return self.photographs, Path(place)


def settled_parts(settings: DataSettings, *, folder: Path) -> tuple[SplitSettings, dict[str, DataPart]]:
    """The division with nothing left open, and sizes and classes of the parts as listed, without a word.

    No image is opened, and scenes have no parts before a run.
    """
    if settings.scenes is not None:
        return settings.split, {}
    if (archive := _archive(settings, folder)) is not None:
        images, names = read_cifar(archive[1], archive[0])
        own = {part: DataPart(len(of.labels), frozenset(names[c] for c in of.labels)) for part, of in images.items()}
        return settings.split, own
    listing, place = _listed(settings, folder)
    split, parts = _divided(listing, settings, place, quiet=True)
    columns = settings.label_columns
    return split, {
        name: DataPart(len(own), frozenset(columns or (label for record in own for label in shown_classes(record))))
        for name, own in parts.items()
    }


def load_splits(
    settings: DataSettings,
    transform: Transform,
    *,
    folder: Path,
    cache: Path,
    keeps_training: bool = True,
    progress: Progress | None = None,
) -> RunData:
    """The images by split, listed once; "train" is always there, and other splits of its classes number them alike.

    Files that cannot be read are left out and named, all at once. Scenes are drawn into `cache`. The pixels of "train"
    stay in memory as `settings.cache` says, or, where `keeps_training` is False, never.
    """
    if settings.scenes is not None:
        return RunData(_drawn_splits(settings, settings.scenes, transform, cache, progress), split=settings.split)
    if (archive := _archive(settings, folder)) is not None:
        return RunData(_archived_sets(*archive, transform), split=settings.split)
    listing, place = _listed(settings, folder, quiet=False)
    _, base = settings.source(folder)
    if not settings.split.column:
        for sentence in listing.remarks:
            remark(sentence, strict=settings.strict)
    outlines = outlines_of(listing)
    if settings.boxes:
        outlines |= boxes_from(base / settings.boxes, listing)
    if settings.masks:
        masks = MaskFolder.given(base / settings.masks)
        masks.join(record.path for record in listing).tell(what="a mask", lines=f"masks in {base / settings.masks}")
        files = {listing.file(record): masks.file(record.path) for record in listing}
        outlines |= {file: [Outline(mask=mask)] for file, mask in files.items() if mask.is_file()}
    known_kind: Literal["mask", "box"] = "mask" if any(own[0].mask for own in outlines.values()) else "box"
    split, parts = _divided(listing, settings, place)
    known = _class_names(parts["train"], settings)
    sets: dict[str, TrainingSet] = {}
    left_out: list[Skipped] = []
    for name, records in parts.items():
        has_outlines = not outlines.keys().isdisjoint(listing.file(record) for record in records)
        measured = RegionSettings(kind=known_kind if has_outlines else "none", share=1.0)
        sets[name] = TrainingSet.from_listing(
            listing,
            transform,
            records=records,
            label_columns=settings.label_columns,
            class_names=known if set(_class_names(records, settings)) <= set(known) else None,
            outlines=outlines,
            regions=settings.regions if name == "train" else measured,
            cache=settings.cache if name != "train" or keeps_training else "none",
            strict=settings.strict,
            left_out=left_out,
            progress=progress,
        )
    say_left_out(left_out, of=sum(map(len, parts.values())), strict=settings.strict)
    return RunData(sets, split=split)


def _drawn_splits(
    settings: DataSettings, scenes: ScenesSettings, transform: Transform, cache: Path, progress: Progress | None
) -> dict[str, TrainingSet]:
    from ...synthetic.blueprint import blueprints
    from ...synthetic.scene_set import SceneSet, write_scenes

    if "train" not in scenes.splits:
        raise InputError(f"[data.scenes.splits] needs a split 'train'; got {', '.join(scenes.splits) or 'none'}")
    classes = blueprints(scenes.classes + scenes.novel_classes, seed=scenes.seed)
    common = {key: value for key, value in scenes.to_dict().items() if key != "splits"}
    sets: dict[str, TrainingSet] = {}
    for name, part in scenes.splits.items():
        own = classes[: scenes.classes] if part.classes == "base" else classes[scenes.classes :]
        known = json.dumps([name, part.to_dict(), common], sort_keys=True)  # everything that the images depend on
        target = cache / f"{name}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"
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
            regions=settings.regions if name == "train" else RegionSettings(kind="mask", share=1.0),
        )
    return sets


def _backgrounds(part: ScenePart, classes: Sequence[Blueprint]) -> dict[str, tuple[str, ...]] | None:
    from ...synthetic.painter import BACKGROUNDS

    if part.backgrounds == "any":
        return None
    own = {blueprint.name: BACKGROUNDS[number % len(BACKGROUNDS)] for number, blueprint in enumerate(classes)}
    if isinstance(part.backgrounds, tuple):
        return dict.fromkeys(own, part.backgrounds)
    is_own = part.backgrounds == "own"
    return {name: tuple(each for each in BACKGROUNDS if (each == place) == is_own) for name, place in own.items()}


def _archive(settings: DataSettings, folder: Path) -> tuple[str, Path] | None:
    """Name and folder of a data set without a file for each image; None if the images are files."""
    name, base = settings.source(folder)
    named = named_benchmark(name, base)
    if named is None or named[0] not in CIFAR:
        return None
    if settings.split != SplitSettings():
        raise InputError(f"[data.split] is not used by {named[0]}, whose files are divided into train and test")
    return named[:2]


def _archived_sets(kind: str, folder: Path, transform: Transform) -> dict[str, TrainingSet]:
    """Training and test images of CIFAR, in memory."""
    parts, names = read_cifar(folder, kind)
    needed = sum(len(part.labels) for part in parts.values()) * 3 * transform.height * transform.width
    if needed > MEMORY_LIMIT:
        raise InputError(
            f"{kind} at {transform.width} x {transform.height} pixels takes {needed / 1024**3:.1f} GiB of memory; "
            "choose a smaller data.size, or write the images into folders, which are read when they are needed"
        )
    sets = {}
    for name, part in parts.items():
        pixels = torch.stack([transform(Image.fromarray(image)) for image in part.images])
        digests = [content_digest(image.tobytes()) for image in part.images]
        sets[name] = TrainingSet.from_pixels(
            pixels,
            torch.tensor(part.labels),
            transform=transform,
            class_names=names,
            digests=np.array(digests, np.int64),
        )
    return sets


def _listed(settings: DataSettings, folder: Path, *, quiet: bool = True) -> tuple[Listing, Path]:
    """The images, and the folder or table that they are listed in."""
    name, base = settings.source(folder)
    if (named := named_benchmark(name, base)) is not None:
        return benchmark_listing(*named, strict=settings.strict, quiet=quiet), named[1]
    labels = settings.labels or ("column" if settings.label_columns else None)  # then no label is missed
    return quiet_listing(base / name, labels, strict=settings.strict), base / name


def _divided(
    listing: Listing, settings: DataSettings, place: Path, *, quiet: bool = False
) -> tuple[SplitSettings, dict[str, list[ImageRecord]]]:
    """The settled division, and the records of every part; those without a label are left out of all but "train"."""
    records = list(listing)
    split = settled(settings.split, records, where=place, strict=settings.strict, quiet=quiet)
    parts = divided(records, split, where=place, strict=settings.strict, quiet=quiet)
    if settings.label_columns or "labels" in listing.column_names:
        return split, parts
    for name in [name for name in parts if name != "train"]:
        labelled = [record for record in parts[name] if record.label is not None]
        if lost := len(parts[name]) - len(labelled):
            first = next(record.path for record in parts[name] if record.label is None)
            if not quiet:
                said = f"{place}: {lost} images of the part {name} have no label and are left out, such as {first}"
                remark(said, strict=settings.strict)
            parts[name] = labelled
    return split, {name: own for name, own in parts.items() if own}


def _class_names(records: Sequence[ImageRecord], settings: DataSettings) -> tuple[str, ...]:
    return tuple(settings.label_columns) or tuple(sorted({label for each in records for label in shown_classes(each)}))
