"""Images with masks in folders, in tables, or drawn; names of classes; and folders that masks are written to."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import Storage
from ..images import Listing, list_images
from ..images.joining import FactsByName, Join, spelled
from ..images.listing import quiet_listing
from ..images.masks import VOID, Mask, MaskFolder
from ..images.splits import split_column, split_name
from ..images.tables import lines_of, rows_of

if TYPE_CHECKING:
    from ..synthetic.scene_set import SceneSet


@dataclass(frozen=True)
class MaskIds:
    """Numbers of the classes in the mask files of a data set.

    Attributes:
        first: the number of the first class; the others follow. What lies below it is background.
        void: the number that stands for no decision.
        numbers: those of the classes, if they do not follow one another; others below the last are no decision either.
    """

    first: int = 1
    void: int = VOID
    numbers: tuple[int, ...] | None = None

    def renumbered(self, values: Mask, n_classes: int, file: Path) -> Mask:
        """The mask in this package's numbers; InputError for one that is neither background nor a class nor void."""
        table = np.full(256, -1, dtype=np.int16)
        table[: self.first] = 0
        numbers = self.numbers or range(self.first, self.first + n_classes)
        if self.numbers is not None:
            table[self.first : max(numbers)] = VOID
        table[list(numbers)] = np.arange(1, n_classes + 1)
        table[self.void] = VOID
        found = table[values]
        if found.min(initial=0) < 0:
            unknown = int(values[found < 0][0])
            background = f"0 to {self.first - 1} for the background, " if self.first else ""
            raise InputError(
                f"{file}: the mask holds the class number {unknown}, which stands for nothing; expected {background}"
                f"{min(numbers)} to {max(numbers)} for the {n_classes} classes, and {self.void} for void"
            )
        mask: Mask = found.astype(np.uint8)
        return mask


def palette() -> list[int]:
    """VOC's 256 colours as 768 numbers: the bits of a class's number spread over red, green and blue.

    >>> palette()[:12]
    [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    colours: list[int] = np.hstack([np.packbits(bits[:, channel::3], axis=1) for channel in range(3)]).ravel().tolist()
    return colours


def palette_image(mask: Mask) -> Image.Image:
    """The mask as an image in VOC's colours, whose pixels are the class numbers."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.putpalette(palette())
    return image


def overlay_mask(image: Image.Image, mask: Mask, *, opacity: float = 0.55) -> Image.Image:
    """The image with the classes in VOC's colours laid over it; the background stays clear, void is white."""
    colours = np.asarray(palette_image(mask).convert("RGB"), dtype=float)
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    share = np.where(mask > 0, opacity, 0.0)[:, :, None]
    return Image.fromarray(np.rint(pixels * (1 - share) + colours * share).astype(np.uint8))


class VocFolder:
    """A folder that masks are written to, one by one; a run that was stopped goes on where it was.

    `SegmentationClass/NAME.png` are palette images (0 background, c + 1 class c, 255 void),
    `ImageSets/Segmentation/SPLIT.txt` holds a NAME per line and is written last, `JPEGImages/NAME.jpg` the images, if
    asked for, `classes.txt` the classes' names from 1 on, and `settings.json` the settings of the masks.

    Args:
        folder: new, empty, or one that was begun with the same settings.
        class_names: of the foreground.
        settings: what the masks are made with, as JSON can hold it.

    Raises:
        InputError: the folder holds something else, or masks made with other settings.
    """

    def __init__(
        self, folder: str | Path, class_names: Sequence[str], *, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.class_names = tuple(class_names)
        self._storage = Storage()
        own = {"classes": list(self.class_names), **(settings or {})}
        note = self.folder / "settings.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; choose a folder for the masks")
        if note.is_file():
            try:
                before = json.loads(note.read_text(encoding="utf-8"))
            except ValueError:
                before = None
            if before != json.loads(json.dumps(own)):
                made = f"masks made with other settings (see {note.name})"
                raise InputError(f"{note.parent} holds {made}; remove it or choose another")
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is taken by something else; choose another folder for the masks")
        self._write("classes.txt", "".join(f"{name}\n" for name in self.class_names).encode())
        self._write("settings.json", (json.dumps(own, indent=2) + "\n").encode())

    @property
    def masks(self) -> Path:
        """Folder of the masks."""
        return self.folder / "SegmentationClass"

    def mask_file(self, name: str) -> Path:
        """Path of an image's mask."""
        return self.masks / f"{name}.png"

    def has(self, name: str) -> bool:
        """True if the image's mask is written already."""
        return self.mask_file(name).is_file()

    def write(self, name: str, mask: Mask, *, image: Path | None = None) -> None:
        """Write one mask, and copy its image if there is one; InputError for a number that is no class."""
        wrong = mask[(mask > len(self.class_names)) & (mask != VOID)]
        if wrong.size:
            raise InputError(f"{name}: the mask holds {wrong[0]}; expected 0 to {len(self.class_names)}, or {VOID}")
        if image is not None:
            target = self.folder / "JPEGImages" / f"{name}{image.suffix.lower()}"
            self._storage.make_folder(target.parent)
            with self._storage.replacing(target) as aside:
                shutil.copyfile(image, aside)
        buffer = io.BytesIO()
        palette_image(mask).save(buffer, "PNG", optimize=True)
        self._write(f"SegmentationClass/{name}.png", buffer.getvalue())

    def read(self, name: str) -> Mask:
        """A mask that was written."""
        with Image.open(self.mask_file(name)) as image:
            return np.asarray(image).astype(np.uint8, copy=True)

    def finish(self, split: str, names: Sequence[str]) -> None:
        """Write the list of a split; InputError where one of its masks is missing."""
        missing = next((name for name in names if not self.has(name)), None)
        if missing is not None:
            raise InputError(f"{self.folder} has no mask of {missing}, so the list of {split} would be wrong")
        self._write(f"ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in names).encode())

    def _write(self, path: str, data: bytes) -> None:
        target = self.folder / path
        self._storage.make_folder(target.parent)
        self._storage.write(target, data)


@dataclass(frozen=True)
class Entry:
    """One image: a name for files and messages, its file, and what is known about it."""

    name: str
    image: Path
    mask: Path | None = None
    shown: tuple[int, ...] | None = None


Found = tuple[list[Entry], tuple[str, ...]]  # the images, and the names of the classes


def read_names(file: str | Path | Sequence[str]) -> tuple[str, ...]:
    """The names of the classes, one per line, in the order of their numbers; a first line `background` is left out."""
    if not isinstance(file, str | Path):
        return tuple(file)
    names = tuple(name for _, name in lines_of(Path(file)))
    names = names[1:] if names[:1] == ("background",) else names
    if not names:
        raise InputError(f"{file}: expected the classes' names, one per line; it is empty")
    return names


def in_folder(
    images: str | Path, masks: str | Path | None, names: str | Path | Sequence[str], labels: str | Path | None
) -> Found:
    """A folder, pattern, or table of images, and a folder with `NAME.png` for each that has a mask."""
    listing = list_images(images, labels="none")
    names = read_names(names)
    folder = None if masks is None else MaskFolder.given(masks)
    if folder is not None:
        fit = folder.join(record.path for record in listing)
        fit.tell(what="a mask", images="images", lines=f"masks in {masks}")
    shown = _labels_of_table(labels, names, listing) if labels is not None else {}
    entries = []
    for record in listing:
        mask = None if folder is None else folder.file(record.path)
        mask = mask if mask is not None and mask.is_file() else None
        entries.append(Entry(_stem(record.path), listing.file(record), mask, shown.get(record.path)))
    return entries, names


def in_table(table: str | Path, names: str | Path | Sequence[str] | None, split: str | None) -> Found:
    """A CSV with the column `path`, and `mask`, `labels` (names between semicolons) or one 0/1 column per class."""
    listing = list_images(table, labels="column")
    columns = [name for name in listing.column_names if name.lower() not in ("mask", "split", "labels")]
    if names is None:
        records = list(listing)
        names = [name for name in columns if all(record.columns[name] in ("0", "1") for record in records)]
    else:
        names = read_names(names)
    if not names:
        raise InputError(f"{table}: nothing says which classes there are; add 0/1 columns, or give their names")
    named = Join()
    entries = []
    column = split_column([record.columns for record in listing], listing.column_names)
    meant = None if split is None else split_name(split)
    for record in listing:
        cell = record.columns.get(column or "", "")
        if split is None or cell == split or (meant is not None and split_name(cell) == meant):
            file, mask = None, record.columns.get("mask")
            if mask:
                named_file = listing.root / spelled(listing.root, mask)
                file = named_file if named_file.is_file() else None
                named.add(record.path, None if file is None else mask)
            shown = _shown_in(record.columns, names, f"{table}: {record.path}")
            entries.append(Entry(_stem(record.path), listing.file(record), file, shown))
    if not entries:
        raise InputError(f"{table}: no row has {split!r} in the column split")
    named.fit([]).tell(what="a mask that is there", images=f"masks named in {Path(table).name}", lines="")
    return entries, tuple(names)


def splits_of_table(table: str | Path) -> tuple[str, ...]:
    """Values of the column of splits, in order of appearance; none where there is no such column."""
    listing = quiet_listing(table, labels="none")
    column = split_column([record.columns for record in listing], listing.column_names)
    return () if column is None else tuple(dict.fromkeys(record.columns[column] for record in listing))


def in_scenes(scenes: SceneSet, split: str) -> Found:
    """Drawn scenes of one split; a scene shows the classes of all its objects."""
    number = {label: c for c, label in enumerate(scenes.labels)}
    entries = []
    for record in scenes.of_split(split):
        mask = scenes.mask_file(record)
        if not mask.is_file():
            raise InputError(f"{scenes.folder} holds no masks; write the scenes with masks=True")
        shown = tuple(sorted({number[label] for label, _ in record.boxes}))
        entries.append(Entry(Path(record.path).with_suffix("").as_posix(), scenes.file(record), mask, shown))
    return entries, tuple(scenes.labels)


def _stem(path: str) -> str:
    """The path without its suffix; of a file outside the listing's root its name alone."""
    relative = Path(path)
    return (Path(relative.name) if relative.is_absolute() else relative).with_suffix("").as_posix()


def _labels_of_table(table: str | Path, names: Sequence[str], listing: Listing) -> dict[str, tuple[int, ...]]:
    """By path of the listing, the classes that a table says; says what fits on one side only."""
    file = Path(table)
    found_rows = rows_of(file, needed=("path", "labels"), once=lambda row: row["path"])
    rows = FactsByName({row["path"]: row for _, row in found_rows})
    join = Join()
    found: dict[str, tuple[int, ...]] = {}
    for record in listing:
        key = rows.key(record.path)
        shown = None if key is None else _shown_in(rows[key], names, f"{table}: {key}")
        join.add(record.path, key, is_empty=shown is None)
        if shown is not None:
            found[record.path] = shown
    fit = join.fit(rows, is_there=lambda name: (listing.root / name).exists())
    fit.tell(what="labels", images="images", lines=f"lines of {file.name}")
    return found


def _shown_in(cells: Mapping[str, str], names: Sequence[str], where: str) -> tuple[int, ...] | None:
    """The classes that a row speaks of; None if it says nothing."""
    if cells.get("labels"):
        shown = [name for name in map(str.strip, cells["labels"].split(";")) if name]
    elif all(name in cells for name in names):
        wrong = next((name for name in names if cells[name] not in ("0", "1")), None)
        if wrong is not None:
            raise InputError(f"{where}: expected 0 or 1 in the column {wrong!r}, got {cells[wrong]!r}")
        shown = [name for name in names if cells[name] == "1"]
    else:
        return None
    unknown = next((name for name in shown if name not in names), None)
    if unknown is not None:
        raise InputError(f"{where}: the label {unknown!r} is none of the {len(names)} classes {', '.join(names[:8])}")
    return tuple(sorted({names.index(name) for name in shown}))
