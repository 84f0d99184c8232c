"""Procedural scenes by the hundred, in memory or as a folder of JPEG files: a data set from a seed.

The same seed gives the same pixels; between platforms the rounding of a sine may move one by a grey level.
"""

from __future__ import annotations

import csv
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..errors import InputError
from ..images.geometry import Box
from ..progress import Progress
from .blueprint import Blueprint
from .painter import BACKGROUNDS, check_name
from .scene import Scene, check_scene, draw_scene


def draw_scenes(
    classes: Sequence[Blueprint],
    *,
    per_class: int,
    split: str = "train",
    size: int | tuple[int, int] = 128,
    two_object_share: float = 0.2,
    backgrounds: Mapping[str, Sequence[str]] | None = None,
    clutter: int | None = None,
    seed: int = 0,
) -> Iterator[Scene]:
    """That many scenes of each class, class by class, drawn while being iterated over; see `write_scenes`.

    Scene i of a class depends on (seed, split, class, i) only; with a second object on `classes` too.

    >>> scene = next(draw_scenes(blueprints(60)[40:], per_class=8))
    >>> scene.image.size, scene.label == blueprints(60)[40].name
    ((128, 128), True)
    """
    check_scene(classes[:1], size=size, background=None, clutter=clutter)
    names = [blueprint.name for blueprint in classes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"expected classes with different names, got {twice!r} twice; slice one list of blueprints")
    if per_class < 1:
        raise InputError(f"expected one scene per class or more, got {per_class}")
    if seed < 0:
        raise InputError(f"expected a seed of 0 or more, got {seed}")
    if not 0 <= two_object_share <= 1:
        raise InputError(f"expected two_object_share in [0, 1], got {two_object_share}")
    if two_object_share > 0 and len(names) < 2:
        raise InputError("a second object needs a second class; pass more classes or two_object_share=0")
    allowed = backgrounds or {}
    for label, choices in allowed.items():
        check_name("class in backgrounds", label, names)
        if isinstance(choices, str) or not choices:
            raise InputError(f"expected a list of one or more backgrounds for {label!r}, got {choices!r}")
        for name in choices:
            check_name("background", name, BACKGROUNDS)

    def drawn() -> Iterator[Scene]:
        for label, number in product(range(len(classes)), range(per_class)):
            objects = [classes[label]]
            others = (*classes[label + 1 :], *classes[:label])
            choices = allowed.get(objects[0].name, BACKGROUNDS)
            key = zlib.crc32(f"{split}/{objects[0].name}".encode())
            generator = np.random.default_rng([seed, key, number])
            share, other, ground = generator.random(3)  # three in any case: the rest must not depend on the settings
            if share < two_object_share:
                objects.append(others[int(other * len(others))])
            background = choices[int(ground * len(choices))]
            yield draw_scene(objects, generator=generator, size=size, background=background, clutter=clutter)

    return drawn()


@dataclass(frozen=True)
class SceneRecord:
    """One written scene: its path (posix, relative to the set's folder), and the label and box of every object."""

    path: str
    label: str
    split: str
    background: str
    boxes: tuple[tuple[str, Box], ...]


@dataclass(frozen=True)
class SceneSet:
    """A folder of scenes: `SPLIT/LABEL/NUMBER.jpg`, `scenes.csv`, `boxes.csv` and, when asked for, `masks/…png`.

    Each split's folder is an ordinary folder of images with one sub-folder per class.
    """

    folder: Path
    records: tuple[SceneRecord, ...]

    def __len__(self) -> int:
        return len(self.records)

    @classmethod
    def read(cls, folder: str | Path) -> SceneSet:
        """The set that `write_scenes` left in the folder."""
        root = Path(folder)
        if not (root / "scenes.csv").is_file():
            raise InputError(f"{root} holds no scenes.csv; write a set with write_scenes first")
        boxes: dict[str, list[tuple[str, Box]]] = {}
        try:
            for row in read_rows(root / "boxes.csv"):
                corners = Box(*(float(row[name]) for name in ("x1", "y1", "x2", "y2")))
                boxes.setdefault(row["path"], []).append((row["label"], corners))
            rows = read_rows(root / "scenes.csv")
            return cls(root, tuple(SceneRecord(**row, boxes=tuple(boxes[row["path"]])) for row in rows))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{root} holds damaged tables ({error!r}); remove it and write the set again") from error

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits in the order they were written."""
        return tuple(dict.fromkeys(record.split for record in self.records))

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the order they were drawn; in the masks, class i has the number i + 1."""
        return tuple(dict.fromkeys(record.label for record in self.records))

    def of_split(self, split: str) -> tuple[SceneRecord, ...]:
        """The records of one split."""
        if split not in self.splits:
            raise InputError(f"no split {split!r} in {self.folder}; there are {', '.join(self.splits)}")
        return tuple(record for record in self.records if record.split == split)

    def file(self, record: SceneRecord) -> Path:
        """Path of the scene's image."""
        return self.folder / record.path

    def mask_file(self, record: SceneRecord) -> Path:
        """Path of the scene's mask, if masks were written."""
        return (self.folder / "masks" / record.path).with_suffix(".png")


def write_scenes(
    folder: str | Path,
    *,
    classes: Sequence[Blueprint],
    splits: Mapping[str, int],
    size: int | tuple[int, int] = 128,
    two_object_share: float = 0.2,
    backgrounds: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    quality: int = 90,
    masks: bool = False,
    progress: Progress | None = None,
) -> SceneSet:
    """A new folder of JPEG scenes with their boxes; it appears under its name when it is complete.

    `scenes.csv` has the columns path, label, split, background; `boxes.csv` has path, label, x1, y1, x2, y2, one row
    per object, the labelling one first.

    Args:
        folder: must not exist yet, or be empty.
        classes: whose objects come first, and label the scenes.
        splits: how many scenes of each class each split gets, such as `{"gallery": 12, "query": 4}`.
        size: the side of a square image, or (height, width), in pixels, at least 32.
        two_object_share: how often a scene shows a second object, in [0, 1]; needs two classes unless 0.
        backgrounds: which backgrounds the scenes of a class may have, by its name; a class left out may have any. This
            ties a class to a background, or keeps it off one.
        seed: another seed gives other scenes; not negative.
        quality: of the JPEG files, 1 to 95.
        masks: also write class maps, `masks/SPLIT/LABEL/NUMBER.png`: palette images, 0 background, i + 1 class i.
        progress: called with (scenes written, scenes in all) after each scene.

    Raises:
        InputError: an argument is out of range, the folder is taken, or a split's name is no folder name.
    """
    root, labels = Path(folder), [blueprint.name for blueprint in classes]
    if not splits:
        raise InputError("expected one split or more, such as splits={'train': 40}, got none")
    for name in (*splits, *labels):
        if not re.fullmatch(r"\w[\w-]*", name) or name == "masks":
            raise InputError(f"expected names of letters, digits, - and _ for splits and classes, got {name!r}")
    if not 1 <= quality <= 95:
        raise InputError(f"expected a JPEG quality from 1 to 95, got {quality}")
    if masks and len(labels) > 255:
        raise InputError(f"masks number at most 255 classes, got {len(labels)}; write fewer classes or masks=False")
    options: dict[str, Any] = {"size": size, "two_object_share": two_object_share, "backgrounds": backgrounds}
    drawn = {
        split: draw_scenes(classes, per_class=per_class, split=split, seed=seed, **options)
        for split, per_class in splits.items()
    }
    total = len(classes) * sum(splits.values())
    hues = np.arange(1, 256) * 97 % 256  # distant ones for neighbouring numbers; black for 0
    colours = Image.fromarray(np.stack([hues, hues * 0 + 170, hues * 0 + 235], axis=-1)[None].astype(np.uint8), "HSV")
    palette = bytes(3) + colours.convert("RGB").tobytes()
    records: list[SceneRecord] = []
    with new_folder(root, otherwise=", remove it, or read it with SceneSet.read") as partial:
        for split, scenes in drawn.items():
            for number, scene in enumerate(scenes):
                path = f"{split}/{scene.label}/{number % splits[split]:04d}.jpg"
                file = partial / path
                file.parent.mkdir(parents=True, exist_ok=True)
                scene.image.save(file, format="JPEG", quality=quality, subsampling=0)  # else small parts would smear
                if masks:
                    save_numbers(scene.class_map(labels), (partial / "masks" / path).with_suffix(".png"), palette)
                records.append(SceneRecord(path, scene.label, split, scene.background, scene.boxes))
                if progress is not None:
                    progress(len(records), total)
        boxes = ((record.path, label, *box) for record in records for label, box in record.boxes)
        write_rows(partial / "boxes.csv", ("path", "label", "x1", "y1", "x2", "y2"), boxes)
        listed = ((record.path, record.label, record.split, record.background) for record in records)
        write_rows(partial / "scenes.csv", ("path", "label", "split", "background"), listed)
    return SceneSet(root, tuple(records))


@contextmanager
def new_folder(folder: Path, *, otherwise: str) -> Iterator[Path]:
    """A hidden folder beside `folder`, which takes that name when the block ends."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is taken; choose another folder{otherwise}")
    partial = folder.absolute().with_name(f".{folder.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if folder.exists():
        folder.rmdir()  # empty, as checked above; not every system replaces a folder by another
    partial.replace(folder)


def write_rows(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file with a header."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a file that `write_rows` wrote."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def save_numbers(numbers: UInt8[np.ndarray, "h w"], file: Path, palette: bytes, *, compress_level: int = 6) -> None:
    """A mask whose pixels are numbers, as a PNG in these colours; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers).convert("P")
    image.putpalette(palette)
    image.save(file, compress_level=compress_level)
