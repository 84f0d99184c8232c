"""Boxes from the files of annotation tools and detectors: COCO, MegaDetector, YOLO, Pascal VOC, Labelme, CVAT."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...errors import InputError
from ...remarks import remark
from ..tables import lines_of, text_of
from .fitting import SHARES, Annotation, BoxTable, LabelledBox, Order, Size, absolute, as_float, box_of

MAX_XML = 1_000_000  # bytes of an image's annotation; ILSVRC's largest has 20,000
MAX_FILE = 1_000_000_000  # of a whole data set's, and of Labelme's, which may hold its image
MAX_BROKEN = 20  # files in a row that are no annotations; the folder is one of something else
_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError)  # of JSON that is built otherwise


class _Found:
    """The boxes of a file, as they come."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.problems: list[str] = []
        self.boxes: dict[str, list[LabelledBox]] = {}
        self.sizes: dict[str, Size] = {}  # of the images that they were drawn on; (0, 0) where the file does not say

    def name(self, name: str, size: Size) -> str:
        """The key of an image, which may turn out to have no box."""
        key = absolute(self.source.parent / name.replace("\\", "/"))
        self.boxes.setdefault(key, [])
        self.sizes[key] = size
        return key

    def add(self, key: str, numbers: Iterable[object], where: str, *, order: Order = "xyxy", **said: Any) -> None:
        """A box, or a problem if it is none; `said` are its `label` and `confidence`."""
        label, confidence = said.get("label"), said.get("confidence")
        try:
            box = box_of([str(number) for number in numbers], where, order=order)
        except InputError as error:
            self.problems.append(str(error))
        else:
            sure = None if confidence is None else float(confidence)
            self.boxes.setdefault(key, []).append(LabelledBox(box, None if label is None else str(label), sure))

    def table(self, **more: Any) -> BoxTable:
        """All of them."""
        sizes = {key: size for key, size in self.sizes.items() if min(size) > 0}
        found = {key: Annotation(tuple(own), sizes.get(key)) for key, own in self.boxes.items()}
        return BoxTable(self.source, found, problems=tuple(self.problems), **more)


def read_file(path: Path) -> BoxTable:
    """The boxes of one file of XML or JSON."""
    is_xml = path.suffix.lower() == ".xml"
    content: Any = _xml(path, MAX_FILE) if is_xml else _json(path)
    try:
        if is_xml:
            return _cvat(path, content) if content.tag == "annotations" else _of_folder(path, [path], _voc)
        if isinstance(content, dict) and "shapes" in content:
            return _of_folder(path, [path], _labelme)
        if isinstance(content, dict) and "annotations" in content:
            return _coco(path, content)
        if isinstance(content, dict) and any("detections" in each or "failure" in each for each in content["images"]):
            return _megadetector(path, content)
    except InputError:
        raise
    except _WRONG as error:
        raise InputError(f"{path}: is not built as COCO, MegaDetector, CVAT or Labelme write it ({error!r})") from None
    hint = "; a list of results names images by number, which nothing here has names for" * isinstance(content, list)
    raise InputError(f"{path}: expected JSON of COCO, MegaDetector or Labelme, found neither{hint}")


def read_folder(folder: Path) -> BoxTable:
    """The boxes of a folder with one file for each image."""
    for suffix, read in ((".xml", _voc), (".json", _labelme), (".txt", _yolo)):
        files = [file for file in sorted(folder.rglob(f"*{suffix}")) if file.stem not in ("classes", "train", "val")]
        if files:
            table = _of_folder(folder, files, read)
            return _with_names(table) if suffix == ".txt" and any(table.boxes) else table
    raise InputError(
        f"{folder}: expected CUB's bounding_boxes.txt, ILSVRC's *.xml, Labelme's *.json or YOLO's *.txt in it, found "
        "neither"
    )


def _of_folder(folder: Path, files: Sequence[Path], read: Callable[[Path, _Found], Size]) -> BoxTable:
    found = _Found(folder)
    for file in files:
        if file.stem in found.sizes:
            raise InputError(f"{file}: a second annotation of {file.stem}; name one folder of annotations")
        try:
            found.sizes[file.stem] = read(file, found)
            found.boxes.setdefault(file.stem, [])
        except (InputError, *_WRONG) as error:
            found.problems.append(str(error) if isinstance(error, InputError) else f"{file}: {error}")
            found.boxes.pop(file.stem, None)
            if not found.sizes and len(found.problems) >= MAX_BROKEN:
                raise InputError(f"{found.problems[0]}; and so on for {MAX_BROKEN} files") from None
    return found.table(is_by_stem=True)


def _voc(path: Path, found: _Found) -> Size:
    """Add the boxes of ILSVRC's and Pascal VOC's XML; the size of the image they were drawn on."""
    root = _xml(path, MAX_XML)
    if root.tag != "annotation":
        raise InputError(f"{path}: expected <annotation> as ILSVRC and Pascal VOC write it, got <{root.tag}>")
    sides = [root.findtext(f"size/{name}") for name in ("width", "height")]
    try:
        width, height = (0, 0) if None in sides else (int(side or "") for side in sides)
    except ValueError:
        raise InputError(f"{path}: expected whole numbers as <size>, got {sides}") from None
    for number, item in enumerate(root.iterfind("object"), start=1):
        corners = [item.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        label = (item.findtext("name") or "").strip() or None
        found.add(path.stem, corners, f"{path}, object {number}", label=label)
    return width, height


def _labelme(path: Path, found: _Found) -> Size:
    """Add the boxes around Labelme's shapes; the size of the image they were drawn on."""
    content = _json(path)
    try:
        for number, shape in enumerate(content["shapes"], start=1):
            points = [(float(x), float(y)) for x, y in shape["points"]]
            kind, where = shape.get("shape_type", "polygon"), f"{path}, shape {number}"
            if kind == "circle":
                (x, y), edge = points
                radius = math.dist((x, y), edge)
                points = [(x - radius, y - radius), (x + radius, y + radius)]
            elif kind not in ("rectangle", "polygon", "mask"):
                found.problems.append(f"{where}: a {kind} has no box")
                continue
            found.add(path.stem, _around(points), where, label=shape.get("label"))
        return int(content.get("imageWidth") or 0), int(content.get("imageHeight") or 0)
    except _WRONG as error:
        raise InputError(f"{path}: is not built as Labelme writes it ({error!r})") from None


def _yolo(path: Path, found: _Found) -> Size:
    """Add YOLO's boxes: class, middle and size as shares of the image, perhaps a confidence; or class and polygon."""
    limit_size(path, MAX_XML)
    for number, line in lines_of(path):
        words, where = line.split(), f"{path}, line {number}"
        if len(words) in (5, 6):
            confidence = words[5] if len(words) == 6 else None
            found.add(path.stem, words[1:5], where, order="cxcywh", label=words[0], confidence=confidence)
        elif len(words) >= 7:
            numbers = [as_float(word) for word in words[1 : len(words) - (len(words) - 1) % 2]]
            found.add(path.stem, _around(zip(numbers[::2], numbers[1::2], strict=True)), where, label=words[0])
        else:
            found.problems.append(f"{where}: expected a class and four numbers, got {line!r}")
    return SHARES


def _with_names(table: BoxTable) -> BoxTable:
    """YOLO's boxes with the names of their classes, from `classes.txt` or `data.yaml` in the folder or above it."""
    names: list[str] = []
    for folder in (table.source, table.source.parent, table.source.parent.parent):
        if (file := folder / "classes.txt").is_file():
            names = [line.strip() for line in text_of(file).splitlines()]
        elif (file := folder / "data.yaml").is_file() and (known := re.search(r"names:(.*)", text_of(file), re.DOTALL)):
            listed = re.match(r"\s*\[(.*?)\]", known[1], re.DOTALL)
            lines = listed[1].split(",") if listed else re.findall(r"^\s+(?:\d+:|-)(.*)$", known[1], re.MULTILINE)
            names = [each.strip().strip("'\"") for each in lines]
        if names:
            break
    else:
        remark(f"{table.source}: no classes.txt or data.yaml is near it, so classes are called by their numbers")
        return table

    def named(box: LabelledBox) -> LabelledBox:
        number = int(box.label) if box.label is not None and box.label.isdigit() else len(names)
        return box._replace(label=names[number]) if number < len(names) else box

    stems = {stem: each._replace(boxes=tuple(map(named, each.boxes))) for stem, each in table.annotations.items()}
    return replace(table, annotations=stems)


def _coco(path: Path, content: Any) -> BoxTable:
    found = _Found(path)
    keys = {
        each["id"]: found.name(each["file_name"], (int(each.get("width") or 0), int(each.get("height") or 0)))
        for each in content["images"]
    }
    names = {each["id"]: each["name"] for each in content.get("categories", ())}
    for number, each in enumerate(content["annotations"], start=1):
        where = f"{path}, annotation {each.get('id', number)}"
        if each.get("iscrowd"):
            found.problems.append(f"{where}: marks a crowd, not an object")
        elif each.get("image_id") not in keys:
            found.problems.append(f"{where}: its image {each.get('image_id')} is not in the list of images")
        else:
            label, numbers = names.get(each.get("category_id")), each.get("bbox") or ()
            key, confidence = keys[each["image_id"]], each.get("score")
            found.add(key, numbers, where, order="xywh", label=label, confidence=confidence)
    return found.table()


def _megadetector(path: Path, content: Any) -> BoxTable:
    found = _Found(path)
    kinds = content.get("detection_categories", {})
    for image in content["images"]:
        key = found.name(image["file"], SHARES)
        for number, each in enumerate(image.get("detections") or (), start=1):
            where, kind = f"{path}, {image['file']}, detection {number}", str(each.get("category"))
            said = {"label": kinds.get(kind, kind), "confidence": each["conf"]}
            found.add(key, each["bbox"], where, order="xywh", **said)
        if image.get("failure"):
            found.problems.append(f"{path}, {image['file']}: {image['failure']}")
    return found.table(label_column="detection")


def _cvat(path: Path, root: ElementTree.Element) -> BoxTable:
    found = _Found(path)
    images = root.findall("image")
    if not images:
        raise InputError(f"{path}: has no <image>; export it as `CVAT for images`")
    for image in images:
        try:
            size = int(image.get("width", "")), int(image.get("height", ""))
            key = found.name(image.attrib["name"], size)
        except (KeyError, ValueError):
            raise InputError(f"{path}: expected <image> with name, width and height, as CVAT writes it") from None
        for number, item in enumerate(image, start=1):
            where = f"{path}, {image.attrib['name']}, object {number}"
            corners: Sequence[object] = [item.get(side, "") for side in ("xtl", "ytl", "xbr", "ybr")]
            if item.tag in ("polygon", "polyline", "points"):
                pairs = [point.split(",") for point in item.get("points", "").split(";") if point.count(",") == 1]
                corners = _around([(as_float(x), as_float(y)) for x, y in pairs])
            elif item.tag != "box":
                found.problems.append(f"{where}: a <{item.tag}> has no box")
                continue
            if as_float(item.get("rotation", "0")):
                found.problems.append(f"{where}: is turned by {item.get('rotation')} degrees, so it is no upright box")
                continue
            found.add(key, corners, where, label=item.get("label"))
    return found.table()


def _around(points: Iterable[tuple[float, float]]) -> list[float]:
    """The edges of the box around some points; none where there are none."""
    pairs = list(points)
    if not pairs:
        return []
    (left, top), (right, bottom) = (tuple(map(pick, zip(*pairs, strict=True))) for pick in (min, max))
    return [left, top, right, bottom]


def _xml(path: Path, limit: int) -> ElementTree.Element:
    try:
        text = _content(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text (byte {error.start})") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: has a document type or entities, which annotations never need; refused")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: no sound XML ({error})") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_content(path, MAX_FILE))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no sound JSON ({error})") from error


def _content(path: Path, limit: int) -> bytes:
    limit_size(path, limit)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def limit_size(path: Path, limit: int) -> None:
    """Refuse a file that is larger than any of its kind."""
    try:
        if path.stat().st_size > limit:
            raise InputError(f"{path}: has more than {limit:,} bytes; no file of boxes is that large")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
