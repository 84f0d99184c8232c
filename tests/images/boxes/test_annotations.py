"""The same boxes from every format: the same items, and what is wrong is listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from distcam.errors import InputError
from distcam.images import Box, BoxSource, ImageRecord, list_items
from distcam.remarks import DistcamWarning

SIZES = {"one.png": (100, 60), "two.png": (40, 80)}
BOXES = [
    ("one.png", "cat", Box(10, 6, 40, 48)),
    ("one.png", "dog", Box(50, 30, 100, 60)),
    ("two.png", "cat", Box(4, 8, 32, 72)),
]
WRONG = "two.png"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name, size in SIZES.items():
        Image.new("RGB", size).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def _of(name: str) -> list[tuple[str, Box]]:
    return [(label, box) for file, label, box in BOXES if file == name]


def _coco(folder: Path) -> Path:
    names, numbers = list(SIZES), {"cat": 7, "dog": 9}
    images = [{"id": i, "file_name": f"photos/{name}", "width": SIZES[name][0]} for i, name in enumerate(names)]
    boxes = [
        {"image_id": names.index(name), "category_id": numbers[label], "bbox": [*box[:2], box.width, box.height]}
        for name, label, box in BOXES
    ]
    crowd = {"image_id": 0, "category_id": 7, "bbox": [0, 0, 90, 50], "iscrowd": 1}
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    content = {"images": images, "annotations": [*boxes, crowd], "categories": categories}
    return _write(folder / "coco.json", json.dumps(content))


def _voc(folder: Path) -> Path:
    for name, (width, height) in SIZES.items():
        objects = ""
        for label, box in [*_of(name), *([("bad", Box(9, 9, 3, 3))] if name == WRONG else [])]:
            corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            bounds = "".join(f"<{side}>{edge}</{side}>" for side, edge in corners)
            objects += f"<object><name>{label}</name><bndbox>{bounds}</bndbox></object>"
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        _write(folder / "voc" / f"{Path(name).stem}.xml", f"<annotation>{size}{objects}</annotation>")
    return folder / "voc"


def _labelme(folder: Path) -> Path:
    for name, (width, height) in SIZES.items():
        shapes = [
            {"label": label, "shape_type": "rectangle", "points": [[b.right, b.top], [b.left, b.bottom]]}
            for label, b in _of(name)
        ]
        shapes += [{"label": "bad", "shape_type": "point", "points": [[1, 1]]}] if name == WRONG else []
        content = {"shapes": shapes, "imageWidth": width, "imageHeight": height}
        _write(folder / "labelme" / f"{Path(name).stem}.json", json.dumps(content))
    return folder / "labelme"


def _yolo(folder: Path) -> Path:
    for name, (width, height) in SIZES.items():
        lines = []
        for label, b in _of(name):
            box = b.scaled(1 / width, 1 / height)
            middle = f"{box.center[0]:.6f} {box.center[1]:.6f} {box.width:.6f} {box.height:.6f}"
            corners = (box.left, box.top), (box.right, box.center[1]), (box.left, box.bottom)
            polygon = " ".join(f"{x:.6f} {y:.6f}" for x, y in corners)
            lines.append(f"{['cat', 'dog'].index(label)} {polygon if label == 'dog' else middle}")
        _write(folder / "labels" / f"{Path(name).stem}.txt", "\n".join(lines + (["0 0.5"] if name == WRONG else [])))
    _write(folder / "data.yaml", "path: .\nnames:\n  0: cat\n  1: 'dog'\n")
    return folder / "labels"


def _cvat(folder: Path) -> Path:
    images = ""
    for name, (width, height) in SIZES.items():
        boxes = '<tag label="night"/>' if name == WRONG else ""
        for label, box in _of(name):
            corners = zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)
            sides = " ".join(f'{side}="{edge}"' for side, edge in corners)
            boxes += f'<box label="{label}" {sides}/>'
        images += f'<image name="{name}" width="{width}" height="{height}">{boxes}</image>'
    return _write(folder / "cvat.xml", f"<annotations><version>1.1</version>{images}</annotations>")


def _write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.parametrize("make", [_coco, _voc, _labelme, _yolo, _cvat])
def test_every_format_gives_the_same_items(photos: Path, make: Callable[[Path], Path]) -> None:
    with pytest.warns(DistcamWarning, match="1 boxes or annotations of .* cannot be used"):
        listing = list_items(photos, boxes=make(photos.parent))
    assert list(listing) == [ImageRecord(name, label, {}, box) for name, label, box in BOXES]
    assert len(listing.problems) == 1
    with pytest.raises(InputError, match="cannot be used"):
        list_items(photos, boxes=make(photos.parent), strict=True)


def _detections(folder: Path) -> Path:
    sure, unsure = ([0.1, 0.1, 0.3, 0.7], 0.9), ([0.5, 0.5, 0.5, 0.5], 0.1)
    found = [{"category": "1", "conf": conf, "bbox": box} for box, conf in (sure, unsure)]
    images = [{"file": "one.png", "detections": found}, {"file": "two.png", "detections": []}]
    content = {"images": images, "detection_categories": {"1": "animal"}}
    return _write(folder / "photos" / "md.json", json.dumps(content))


def test_a_detector_gives_columns_and_no_classes(photos: Path) -> None:
    file = _detections(photos.parent)
    with pytest.warns(DistcamWarning) as said:
        (record,) = list_items(photos, boxes=file)
    assert record == ImageRecord("one.png", None, {"detection": "animal", "confidence": "0.9"}, Box(10, 6, 40, 48))
    assert any("1 of 2 boxes of" in str(each.message) and "below 0.2" in str(each.message) for each in said)
    assert any("1 of 2 images have a box (two.png has none)" in str(each.message) for each in said)
    with pytest.warns(DistcamWarning, match="two.png has none"):
        assert len(list_items(photos, boxes=BoxSource(file, confidence=0.05))) == 2


def test_the_class_of_a_box_wins_over_that_of_its_folder_unless_labels_are_asked_for(photos: Path) -> None:
    (photos / "camera1").mkdir()
    for name in SIZES:
        (photos / name).rename(photos / "camera1" / name)
    boxes = photos.parent / "boxes.csv"
    boxes.write_text("path,label,x1,y1,x2,y2\none.png,cat,0,0,30,30\ntwo.png,cat,0,0,30,30")
    boxes = boxes.rename(photos / "camera1" / "boxes.csv")
    with pytest.warns(DistcamWarning, match="the class of 2 boxes is the one that"):
        assert {record.label for record in list_items(photos, boxes=boxes)} == {"cat"}
    assert {record.label for record in list_items(photos, labels="folder", boxes=boxes)} == {"camera1"}


CVAT = '<annotations><image name="one.png" width="9" height="9">{}</image></annotations>'


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.json", "[1, 2]", "expected JSON of COCO"),
        ("a.json", "{", "no sound JSON"),
        ("a.json", '{"images": 3, "annotations": []}', "not built as COCO"),
        ("a.xml", CVAT.format('<box xtl="a"/>'), "expected four numbers as a box"),
        ("a.xml", CVAT.format('<polygon points="a,b"/>'), "not built as .*CVAT"),
        ("one.txt", "0 .5 .5 .2 .2 sure\n", "no such file or folder|expected the columns"),
        ("labels/one.txt", "0 .5 .5 .2 .2 sure\n", "could not convert"),
        ("labels/one.txt", "0 .1 .1 .2 b .3 .3\n", "could not convert"),
        ("a.xml", "<annotations/>", "export it as `CVAT for images`"),
        ("a.xml", "<!DOCTYPE a><annotations/>", "document type"),
        ("a.csv", "path,a\none.png,3", "expected the columns path, x1"),
    ],
)
def test_what_holds_no_boxes_is_refused_in_a_line(photos: Path, name: str, text: str, why: str) -> None:
    file = _write(photos.parent / name, text)
    with pytest.raises(InputError, match=why) as refused:
        list_items(photos, boxes=file.parent if file.parent.name == "labels" else file)
    assert "\n" not in str(refused.value)


def test_a_format_that_says_its_own_order_takes_no_other(photos: Path) -> None:
    with pytest.raises(InputError, match="leave out --box-format"):
        list_items(photos, boxes=BoxSource(_coco(photos.parent), format="xyxy"))


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("x_1,y_1,x_2,y_2", "10,6,40,48"),
        ("Xmin,Ymin,Xmax,Ymax", "10,6,40,48"),
        ("left,top,width,height", "10,6,30,42"),
        ("x,y,w,h", "10,6,30,42"),
        ("cx,cy,w,h", "25,27,30,42"),
        ("bbox", '"[10.0, 6, 30, 42]"'),
    ],
)
def test_columns_of_a_table_are_known_by_their_names(photos: Path, header: str, cells: str) -> None:
    (photos / "t.csv").write_text(f"path,{header},age\none.png,{cells},3\n")
    source = BoxSource(format="xywh") if header == "bbox" else None
    (record,) = list_items(photos / "t.csv", boxes=source)
    assert record == ImageRecord("one.png", None, {"age": "3"}, Box(10, 6, 40, 48))
    assert list_items(photos / "t.csv", boxes=source).column_names == ("age",)


def test_one_column_whose_order_nothing_tells_is_refused_when_strict(photos: Path) -> None:
    (photos / "t.csv").write_text("path,bbox\none.png,10 6 40 48\n")
    with pytest.warns(DistcamWarning, match="nothing in them tells, say --box-format xyxy"):
        (record,) = list_items(photos / "t.csv")
    assert record.box == Box(10, 6, 50, 54)
    with pytest.raises(InputError, match="nothing in them tells"):
        list_items(photos / "t.csv", strict=True)
