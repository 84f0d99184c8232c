"""Boxes that people drew, from the files they come in: ILSVRC's XML, CUB-200-2011's tables, or a plain CSV.

    boxes = read_boxes("boxes.csv")
    images = boxed_images(list_images("photos/"), boxes)

A file of boxes is untrusted: sizes are limited, and XML with a document type or entities is refused before it is
parsed.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple
from xml.etree import ElementTree

from ..errors import InputError
from .geometry import Box
from .listing import Listing

__all__ = ["BoxTable", "BoxedImage", "BoxedImages", "LabelledBox", "boxed_images", "read_boxes", "read_synsets"]

Split = Literal["train", "test", "all"]

MAX_XML = 1_000_000  # bytes; ILSVRC's largest annotation has 20,000
MAX_TABLE = 1_000_000_000
CORNERS = ("x1", "y1", "x2", "y2")


class LabelledBox(NamedTuple):
    """A box and the class it was drawn around; None where the file does not say."""

    box: Box
    label: str | None = None


class Annotation(NamedTuple):
    """The boxes of one image.

    Attributes:
        boxes: in pixels of an image of that size.
        size: (width, height) of the image they were drawn on; None where the file does not say.
    """

    boxes: tuple[LabelledBox, ...]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class BoxTable:
    """Boxes by image.

    Attributes:
        source: the file or folder they come from.
        by_file: absolute path of the image → its boxes.
        by_stem: name of the image without folder and suffix → its boxes, for layouts that name no more.
    """

    source: Path
    by_file: Mapping[str, Annotation] = field(default_factory=dict, repr=False)
    by_stem: Mapping[str, Annotation] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Number of images with boxes."""
        return len(self.by_file) + len(self.by_stem)

    def of(self, file: Path, *, relative: str = "") -> Annotation | None:
        """The boxes of an image: by its absolute path, the listing's own path for it, or its stem.

        Args:
            file: where the image lies.
            relative: what its listing calls it; fits a table whose paths were written relative to the listing's root.
        """
        found = self.by_file.get(_absolute(file)) or self.by_stem.get(file.stem)
        return found or (self.by_file.get(_absolute(self.source.parent / relative)) if relative else None)


@dataclass(frozen=True)
class BoxedImage:
    """An image with its class and its boxes.

    Attributes:
        path: as its listing has it.
        file: where it lies.
        label: its class.
        boxes: all its boxes, of its class and of others.
        size: (width, height) of the image that the boxes were drawn on; None for the file's own.
    """

    path: str
    file: Path
    label: str
    boxes: tuple[LabelledBox, ...]
    size: tuple[int, int] | None = None

    def boxes_of(self, label: str, width: int, height: int) -> list[Box]:
        """The boxes of a class in pixels of the image at this size; boxes without a class are of the image's own.

        Empty if the class is not there.
        """
        across, down = (1.0, 1.0) if self.size is None else (width / self.size[0], height / self.size[1])
        return [box.scaled(across, down) for box, own in self.boxes if (self.label if own is None else own) == label]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that have boxes, the image's own first."""
        others = dict.fromkeys(own for _, own in self.boxes if own not in (None, self.label))
        return (self.label, *(label for label in others if label is not None))


@dataclass(frozen=True)
class BoxedImages:
    """The images of a listing that have a class and boxes of it.

    Attributes:
        images: in the listing's order.
        without_boxes: how many images of the listing have no box, or none of their class.
        without_label: how many have boxes but no class.
    """

    images: tuple[BoxedImage, ...]
    without_boxes: int = 0
    without_label: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[BoxedImage]:
        return iter(self.images)

    @property
    def labels(self) -> tuple[str, ...]:
        """The images' classes, sorted."""
        return tuple(sorted({image.label for image in self.images}))


def boxed_images(listing: Listing, boxes: BoxTable, *, labels: Mapping[str, str] | None = None) -> BoxedImages:
    """The images of a listing that have boxes.

    An image's class is, first found: what `labels` says for its stem, the listing's label, the one class of its boxes.

    Args:
        listing: the images.
        boxes: what `read_boxes` found.
        labels: stem → class, see `read_synsets`; for flat folders, whose listing knows no classes.

    Raises:
        InputError: no image of the listing has boxes of its class.
    """
    found: list[BoxedImage] = []
    without_boxes = without_label = 0
    for record in listing:
        file = listing.file(record)
        annotation = boxes.of(file, relative=record.path)
        if annotation is None or not annotation.boxes:
            without_boxes += 1
            continue
        drawn = {label for _, label in annotation.boxes}
        given = (labels or {}).get(file.stem)
        label = given or (record.label if drawn == {None} or record.label in drawn else None) or _only(drawn)
        if label is None:
            without_label += 1
        elif label not in drawn and None not in drawn:
            without_boxes += 1
        else:
            found.append(BoxedImage(record.path, file, label, annotation.boxes, annotation.size))
    if not found:
        raise InputError(_no_match(listing, boxes, without_label))
    return BoxedImages(tuple(found), without_boxes, without_label)


def _only(labels: set[str | None]) -> str | None:
    return next(iter(labels)) if len(labels) == 1 else None


def _no_match(listing: Listing, boxes: BoxTable, without_label: int) -> str:
    if without_label:
        return (
            f"{without_label} images of {listing.root} have boxes in {boxes.source}, but no class; "
            "put them into a folder for each class, or say which class each has"
        )
    known = next(iter([*boxes.by_file, *boxes.by_stem]), "none at all")
    first = next(iter(listing), None)
    seen = "no image" if first is None else str(listing.file(first))
    return f"{boxes.source} has boxes for {known}, …, but the images are {seen}, …: no image has a box of its class"


def read_boxes(source: str | os.PathLike[str], *, split: Split = "all") -> BoxTable:
    """The boxes of a file or folder; its layout is recognised.

    - **CSV** with a header: `path`, `x1`, `y1`, `x2`, `y2` in pixels (edges: the first pixel is 0 to 1), and perhaps
      `label`; a line for each box. Paths are relative to the file's folder, or to the root of the images' listing.
    - **CUB-200-2011**: a folder with `images.txt`, `bounding_boxes.txt` (x, y, width, height),
      `image_class_labels.txt`, `classes.txt` and `train_test_split.txt`; the images are in its `images/`.
    - **ILSVRC** (and Pascal VOC): a folder of XML files, however deep; an image is found by its name without folder and
      suffix, and boxes are scaled if the image has another size than its annotation says. Corners are taken as edges.

    Args:
        source: the file or folder.
        split: which part of CUB; other layouts have none.

    Raises:
        InputError: nothing known is there, or a line is broken; the message holds file, line, and what is wrong.
    """
    path = Path(source)
    if path.is_dir():
        if (path / "bounding_boxes.txt").is_file():
            return _read_cub(path, split)
        if (first := next(iter(sorted(path.rglob("*.xml"))), None)) is not None:
            return _read_xml_folder(path, first)
        raise InputError(f"{path}: expected CUB's bounding_boxes.txt or ILSVRC's *.xml in it, found neither")
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder of boxes")
    if path.suffix.lower() == ".xml":
        return BoxTable(path, by_stem={path.stem: _read_xml(path)})
    return _read_csv(path)


def read_synsets(path: str | os.PathLike[str]) -> dict[str, str]:
    """ILSVRC's list of the validation images' classes: stem → synset.

    Two forms are known: a line `ILSVRC2012_val_00000001.JPEG n01751748` for each image, or the synsets alone, where
    line i is that of `ILSVRC2012_val_%08d`.

    Raises:
        InputError: a line has neither form.
    """
    classes: dict[str, str] = {}
    for number, line in _lines(Path(path)):
        words = line.split()
        if len(words) not in (1, 2) or not _is_synset(words[-1]):
            raise InputError(f"{path}, line {number}: expected `IMAGE n01751748` or `n01751748`, got {line!r}")
        stem = PurePosixPath(words[0]).stem if len(words) == 2 else f"ILSVRC2012_val_{number:08d}"
        classes[stem] = words[-1]
    return classes


def _is_synset(word: str) -> bool:
    return len(word) == 9 and word[0] == "n" and word[1:].isdecimal()


# --- CSV -------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> BoxTable:
    reader = csv.DictReader(io.StringIO(_text(path, MAX_TABLE), newline=""))
    columns = [name or "" for name in reader.fieldnames or ()]
    for needed in ("path", *CORNERS):
        if needed not in columns:
            nearest = get_close_matches(needed, columns, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise InputError(f"{path}: expected the columns path, x1, y1, x2, y2, got {', '.join(columns)}{hint}")
    boxes: dict[str, list[LabelledBox]] = {}
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not row["path"]:
                raise InputError(f"{where}: the path is empty")
            box = _box([row[corner] for corner in CORNERS], where)
            file = _absolute(path.parent / row["path"])
            boxes.setdefault(file, []).append(LabelledBox(box, row.get("label") or None))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    return BoxTable(path, {file: Annotation(tuple(own)) for file, own in boxes.items()})


def _box(corners: Sequence[str | None], where: str) -> Box:
    """Four numbers as a box that is not empty."""
    try:
        numbers = [float(corner or "") for corner in corners]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: expected four numbers as a box, got {', '.join(map(str, corners))}")
    box = Box(*numbers)
    if box.area <= 0:
        raise InputError(f"{where}: the box {tuple(numbers)} is empty; expected left < right and top < bottom")
    return box


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  (no resolve(): names of links stay as they are)


# --- CUB-200-2011 ----------------------------------------------------------------------------------------------------


def _read_cub(folder: Path, split: Split) -> BoxTable:
    if split not in ("train", "test", "all"):
        raise InputError(f"split={split!r} is not known; choose train, test, or all")
    paths = _numbered(folder / "images.txt")
    corners = _numbered(folder / "bounding_boxes.txt")
    names = _numbered(folder / "classes.txt")
    classes = _numbered(folder / "image_class_labels.txt")
    parts = {} if split == "all" else _numbered(folder / "train_test_split.txt")
    wanted = {"train": "1", "test": "0"}.get(split)
    boxes = {}
    for number, path in paths.items():
        if wanted is not None and parts.get(number) != wanted:
            continue
        where = f"{folder.name}, image {number}"
        if number not in corners or names.get(classes.get(number, "")) is None:
            raise InputError(f"{where}: has no line in bounding_boxes.txt, image_class_labels.txt, or classes.txt")
        left, top, right, bottom = _edges(corners[number], where)
        box = LabelledBox(_box([left, top, right, bottom], where), names[classes[number]])
        boxes[_absolute(folder / "images" / path)] = Annotation((box,))
    return BoxTable(folder, boxes)


def _edges(line: str, where: str) -> tuple[str, str, str, str]:
    """x, y, width, height as left, top, right, bottom."""
    try:
        x, y, width, height = map(float, line.split())
    except ValueError:
        raise InputError(f"{where}: expected x, y, width, height in bounding_boxes.txt, got {line!r}") from None
    return str(x), str(y), str(x + width), str(y + height)


def _numbered(path: Path) -> dict[str, str]:
    """A table of CUB's: a number, a space, the rest of the line."""
    table = {}
    for number, line in _lines(path):
        key, _, value = line.partition(" ")
        if not key.isdecimal() or not value.strip():
            raise InputError(f"{path}, line {number}: expected a number and a value, got {line!r}")
        table[key] = value.strip()
    return table


# --- ILSVRC ----------------------------------------------------------------------------------------------------------


def _read_xml_folder(folder: Path, first: Path) -> BoxTable:
    found: dict[str, Annotation] = {}
    _read_xml(first)  # a folder of other XML is refused before thousands are read
    for file in sorted(folder.rglob("*.xml")):
        if file.stem in found:
            raise InputError(f"{file}: a second annotation of {file.stem}; name one folder of annotations")
        found[file.stem] = _read_xml(file)
    return BoxTable(folder, by_stem=found)


def _read_xml(path: Path) -> Annotation:
    text = _text(path, MAX_XML)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: has a document type or entities, which annotations never need; refused")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: no sound XML ({error})") from error
    if root.tag != "annotation":
        raise InputError(f"{path}: expected <annotation> as ILSVRC and Pascal VOC write it, got <{root.tag}>")
    boxes = []
    for number, item in enumerate(root.iterfind("object"), start=1):
        corners = [item.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        label = (item.findtext("name") or "").strip() or None
        boxes.append(LabelledBox(_box(corners, f"{path}, object {number}"), label))
    return Annotation(tuple(boxes), _size(root, path))


def _size(root: ElementTree.Element, path: Path) -> tuple[int, int] | None:
    given = [root.findtext(f"size/{name}") for name in ("width", "height")]
    if None in given:
        return None
    try:
        width, height = (int(value or "") for value in given)
    except ValueError:
        raise InputError(f"{path}: expected whole numbers as <size>, got {given}") from None
    return (width, height) if width > 0 and height > 0 else None


# --- Files -----------------------------------------------------------------------------------------------------------


def _text(path: Path, limit: int) -> str:
    """A file's text, if it is UTF-8 and not larger than it may be."""
    try:
        if path.stat().st_size > limit:
            raise InputError(f"{path}: has more than {limit:,} bytes; no file of boxes is that large")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, without the empty ones."""
    lines = (line.strip() for line in _text(path, MAX_TABLE).splitlines())
    return ((number, line) for number, line in enumerate(lines, start=1) if line)
