"""Boxes that cannot be used, and boxes that were drawn on another image than the file shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcam.errors import InputError
from distcam.images import Box, list_images, read_image
from distcam.images.boxes.fitting import turned
from distcam.images.boxes.formats import read_boxes
from distcam.images.boxes.joined import BoxedImages, boxed_images
from distcam.remarks import DistcamWarning
from distcam.training.data.outlines import Outline, boxes_from, outlines_of

Corners = Sequence[object]
SIZE = (60, 40)


def picture(file: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    """An image whose file holds `size` pixels, and which EXIF turns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", size).save(file, exif=exif)
    return file


def csv(root: Path, boxes: dict[str, Corners], size: object = None) -> Path:
    lines = [f"cat/{name}.jpg,{','.join(map(str, corners))}\n" for name, corners in boxes.items()]
    (root / "boxes.csv").write_text("path,x1,y1,x2,y2\n" + "".join(lines))
    return root / "boxes.csv"


def cub(root: Path, boxes: dict[str, Corners], size: object = None) -> Path:
    folder = root / "cub"
    folder.mkdir()
    (folder / "images").symlink_to(root, target_is_directory=True)

    def sides(corners: Corners) -> str:
        try:
            x1, y1, x2, y2 = map(float, corners)  # type: ignore[arg-type]
            return f"{x1} {y1} {x2 - x1} {y2 - y1}"
        except ValueError:
            return " ".join(map(str, corners))

    numbered = list(enumerate(boxes, 1))
    tables = {
        "images.txt": [f"{n} cat/{name}.jpg" for n, name in numbered],
        "bounding_boxes.txt": [f"{n} {sides(boxes[name])}" for n, name in numbered],
        "image_class_labels.txt": [f"{n} 1" for n, _ in numbered],
        "classes.txt": ["1 cat"],
    }
    for file, lines in tables.items():
        (folder / file).write_text("".join(f"{line}\n" for line in lines))
    return folder


def xml(root: Path, boxes: dict[str, Corners], size: tuple[int, int] | None = None) -> Path:
    folder = root / "xml"
    folder.mkdir()
    for name, corners in boxes.items():
        given = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        inner = "".join(
            f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        )
        (folder / f"{name}.xml").write_text(
            f"<annotation>{given}<object><name>cat</name><bndbox>{inner}</bndbox></object></annotation>"
        )
    return folder


FORMATS: dict[str, Callable[..., Path]] = {"csv": csv, "cub": cub, "xml": xml}


def found(root: Path, source: Path, *, strict: bool = False) -> BoxedImages:
    place = source / "images/cat" if (source / "images").is_dir() else root / "cat"
    return boxed_images(list_images(place, labels="none"), read_boxes(source, strict=strict), strict=strict,
                        labels={file.stem: "cat" for file in (root / "cat").iterdir()})  # fmt: skip


def boxes_in(images: BoxedImages) -> dict[str, tuple[float, ...]]:
    """By image, the box in its pixels."""
    sizes = {image.path: read_image(image.file).size for image in images}
    return {
        image.file.stem: tuple(round(edge, 6) for edge in image.boxes_of("cat", *sizes[image.path])[0])
        for image in images
    }


# --- boxes that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "bad",
    [
        *(
            ("nan",) * 4,
            ("inf", 1, 20, 20),
            ("", "", "", ""),
            ("left", 1, 20, 20),
            (5, 5, 5, 9),
            (9, 5, 5, 9),
            (5, 9, 9, 5),
        ),
        *((70, 5, 90, 9), (-30, 5, -10, 9), (5, 50, 9, 90), (5, 5, 5.2, 5.2)),
    ],
)
def test_one_bad_box_is_left_out_and_named(tmp_path: Path, form: str, bad: Corners) -> None:
    for name in "abc":
        picture(tmp_path / f"cat/{name}.jpg")
    source = FORMATS[form](tmp_path, {"a": (1, 2, 30, 40), "b": bad, "c": (5, 6, 7, 8)})
    with pytest.warns(DistcamWarning) as said:
        images = found(tmp_path, source)
    assert boxes_in(images) == {"a": (1, 2, 30, 40), "c": (5, 6, 7, 8)}
    assert any(re.search(r"left out.*(line [23]|image 2|b\.xml|b\.jpg)", str(one.message)) for one in said)
    with pytest.raises(InputError, match=r"left out|2 of 3 images have a box"):
        found(tmp_path, source, strict=True)


@pytest.mark.parametrize("form", FORMATS)
def test_boxes_of_which_none_can_be_used_are_refused(tmp_path: Path, form: str) -> None:
    picture(tmp_path / "cat/a.jpg")
    with pytest.raises(InputError, match=r"is empty|expected four numbers"):
        read_boxes(FORMATS[form](tmp_path, {"a": (5, 5, 5, 5)}))


@pytest.mark.parametrize("form", FORMATS)
def test_boxes_that_all_lie_outside_are_refused(tmp_path: Path, form: str) -> None:
    picture(tmp_path / "cat/a.jpg")
    source = FORMATS[form](tmp_path, {"a": (200, 200, 400, 400)})
    with (
        pytest.warns(DistcamWarning, match=r"1 boxes of .* lie outside"),
        pytest.raises(InputError, match="no box lies"),
    ):
        found(tmp_path, source)


@pytest.mark.parametrize("content", ["<annotation>", "<html/>", "<!DOCTYPE a><annotation/>", "", "\xff"])
def test_one_bad_annotation_is_left_out_and_named(tmp_path: Path, content: str) -> None:
    for name in "ab":
        picture(tmp_path / f"cat/{name}.jpg")
    folder = xml(tmp_path, {"a": (1, 2, 30, 40)})
    (folder / "b.xml").write_text(content, encoding="latin-1")
    with pytest.warns(DistcamWarning) as said:
        assert list(boxes_in(found(tmp_path, folder))) == ["a"]
    assert re.search(r"1 boxes or annotations .* left out, the first: .*b\.xml", str(said[0].message))
    assert "1 of 2 images have a box (b.jpg has none)" in str(said[1].message)


def test_a_folder_of_other_xml_is_refused_early(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.xml").write_text("<html/>")
    with pytest.raises(InputError, match=r"00.xml: expected <annotation>.*and so on for 20 files"):
        read_boxes(tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_box_that_reaches_beyond_its_image_is_cut_and_named(tmp_path: Path, form: str) -> None:
    for name in "ab":
        picture(tmp_path / f"cat/{name}.jpg")
    source = FORMATS[form](tmp_path, {"a": (1, 2, 61, 41), "b": (-5, 6, 90, 40)})
    with pytest.warns(
        DistcamWarning, match=r"1 boxes of .* reach beyond .* such as \(-5, 6, 90, 40\) of b.jpg \(60x40"
    ):
        assert boxes_in(found(tmp_path, source)) == {"a": (1, 2, 61, 41), "b": (0, 6, 60, 40)}  # the last pixel counts


@pytest.mark.parametrize("form", FORMATS)
def test_shares_are_recognised(tmp_path: Path, form: str) -> None:
    for name in "ab":
        picture(tmp_path / f"cat/{name}.jpg")
    source = FORMATS[form](tmp_path, {"a": (0.1, 0.25, 0.5, 1), "b": (0, 0, 1, 1)})
    with pytest.warns(DistcamWarning, match=r"all 2 boxes of .* lie within 0 … 1, so they are read as shares"):
        assert boxes_in(found(tmp_path, source)) == {"a": (6, 10, 30, 40), "b": (0, 0, 60, 40)}
    with pytest.raises(InputError, match="read as shares"):
        read_boxes(source, strict=True)


@pytest.mark.parametrize(
    "columns", ["xmin,ymin,xmax,ymax", "x_1,y_1,x_2,y_2", "left,top,right,bottom", "x,y,w,h", "X,Y,Width,Height"]
)
def test_columns_of_boxes_have_many_names(tmp_path: Path, columns: str) -> None:
    picture(tmp_path / "cat/a.jpg")
    (tmp_path / "boxes.csv").write_text(f"path,{columns}\ncat\\a.jpg,1,2,3,4\n")
    expected = (1, 2, 4, 6) if columns[:3].lower() == "x,y" else (1, 2, 3, 4)
    assert boxes_in(found(tmp_path, tmp_path / "boxes.csv")) == {"a": expected}


def test_a_european_table_of_boxes(tmp_path: Path) -> None:
    picture(tmp_path / "cat/a.jpg")
    (tmp_path / "boxes.csv").write_text("sep=;\npath;x1;y1;x2;y2\ncat\\a.jpg;1,5;2;3,25;4\n")
    with pytest.warns(DistcamWarning, match="';' between"):
        assert boxes_in(found(tmp_path, tmp_path / "boxes.csv")) == {"a": (1.5, 2, 3.25, 4)}


def test_annotations_that_are_called_otherwise_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"cat/{name}.jpg")
    folder = xml(tmp_path, {"a": (1, 2, 3, 4), "B": (1, 2, 3, 4)})
    message = (
        r"1 of 2 images have a box \(b.jpg has none\); 1 of 2 names in xml fit no image, such as B; B and b differ in"
    )
    with pytest.warns(DistcamWarning, match=message):
        found(tmp_path, folder)


# --- another image than the file shows --------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(60, 40), (120, 80), (30, 20), (59, 39)])
def test_another_resolution_scales_without_a_word(tmp_path: Path, given: tuple[int, int]) -> None:
    picture(tmp_path / "cat/a.jpg")
    corners = (given[0] / 6, given[1] / 4, given[0] / 2, given[1] / 2)
    assert boxes_in(found(tmp_path, xml(tmp_path, {"a": corners}, given)))["a"] == pytest.approx((10, 10, 30, 20))


@pytest.mark.parametrize("scale", [1, 2])
def test_exchanged_sides_do_not_stretch(tmp_path: Path, scale: int) -> None:
    picture(tmp_path / "cat/a.jpg")
    source = xml(tmp_path, {"a": tuple(scale * edge for edge in (10, 10, 50, 30))}, (40 * scale, 60 * scale))
    with pytest.warns(DistcamWarning, match="1 annotations of .* width and height exchanged.*not stretched"):
        assert boxes_in(found(tmp_path, source)) == {"a": (10, 10, 50, 30)}
    with pytest.raises(InputError, match="exchanged"):
        found(tmp_path, source, strict=True)


def test_other_proportions_are_remarked_on(tmp_path: Path) -> None:
    picture(tmp_path / "cat/a.jpg")
    source = xml(tmp_path, {"a": (10, 10, 20, 20)}, (40, 40))
    with pytest.warns(DistcamWarning, match=r"other proportions; .* of a.jpg \(60x40 pixels, annotated as 40x40\)"):
        assert boxes_in(found(tmp_path, source)) == {"a": (15, 10, 30, 20)}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_box_shows_what_it_showed(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((*SIZE[::-1], 3), np.uint8)
    pixels[5:20, 10:50] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(read_image(tmp_path / "a.png"))[..., 0] > 0
    rows, columns = np.flatnonzero(upright.any(1)), np.flatnonzero(upright.any(0))
    expected = Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert turned(Box(10, 5, 50, 20), orientation, SIZE) == expected


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("form", FORMATS)
def test_boxes_of_stored_pixels_turn_with_their_image(tmp_path: Path, form: str, orientation: int) -> None:
    for name in "ab":  # b fits both ways; what a says holds for it
        picture(tmp_path / f"cat/{name}.jpg", SIZE, orientation)
    boxes = {"a": (30, 5, 58, 15), "b": (1, 2, 30, 20)}
    source = FORMATS[form](tmp_path, boxes, SIZE)
    with pytest.warns(DistcamWarning, match="2 images are turned by their EXIF orientation, and .* drawn before"):
        images = boxes_in(found(tmp_path, source))
    assert images == {name: tuple(turned(Box(*corners), orientation, SIZE)) for name, corners in boxes.items()}


@pytest.mark.parametrize("form", FORMATS)
def test_boxes_of_upright_pixels_stay(tmp_path: Path, form: str) -> None:
    for name in "ab":
        picture(tmp_path / f"cat/{name}.jpg", SIZE, 6)  # upright, 40 x 60
    boxes = {"a": (5, 30, 15, 58), "b": (1, 2, 30, 20)}
    assert boxes_in(found(tmp_path, FORMATS[form](tmp_path, boxes, SIZE[::-1]))) == boxes


@pytest.mark.parametrize("orientation", [3, 6])
def test_what_nothing_tells_is_said_to_be_assumed(tmp_path: Path, orientation: int) -> None:
    picture(tmp_path / "cat/a.jpg", SIZE, orientation)
    with pytest.warns(DistcamWarning, match="1 images are turned .* nothing tells whether the boxes"):
        assert boxes_in(found(tmp_path, csv(tmp_path, {"a": (1, 2, 30, 20)}))) == {"a": (1, 2, 30, 20)}


# --- the same for training --------------------------------------------------------------------------------------------


def test_outlines_for_training_are_fitted_alike(tmp_path: Path) -> None:
    for name in "abcd":
        picture(tmp_path / f"cat/{name}.jpg")
    lines = "cat/a.jpg,cat,1,2,30,20\ncat/b.jpg,cat,nan,,,\ncat/c.jpg,cat,70,50,80,60\ncat\\d.jpg,cat,,,,\n"
    table = tmp_path / "t.csv"
    table.write_text(f"path,label,x1,y1,x2,y2\n{lines}")
    with pytest.warns(DistcamWarning, match="NOT cut out"):
        listing = list_images(table)
    expected = {tmp_path / "cat/a.jpg": [Outline(box=Box(1, 2, 30, 20))]}
    with pytest.warns(DistcamWarning) as said:
        assert outlines_of(listing) == expected
    text = " ".join(str(one.message) for one in said)
    assert "1 boxes or annotations" in text
    assert "1 boxes of" in text
    with pytest.warns(DistcamWarning) as said:
        assert boxes_from(table, listing) == {file: [Outline("cat", Box(1, 2, 30, 20))] for file in expected}
    assert "lie outside" in " ".join(str(one.message) for one in said)


# --- tables of boxes that say more, or less, than their corners -------------------------------------------------------


@pytest.mark.parametrize("columns", ["width,height", "image_width,image_height", "ImageWidth,ImageHeight"])
def test_columns_of_sizes_are_those_of_the_image_that_was_drawn_on(tmp_path: Path, columns: str) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"cat/{name}.jpg")
    table = tmp_path / "boxes.csv"
    table.write_text(f"path,{columns},x1,y1,x2,y2\ncat/a.jpg,120,80,2,4,60,40\ncat/b.jpg,60,40,1,2,30,20\n")
    assert boxes_in(found(tmp_path, table)) == {"a": (1, 2, 30, 20), "b": (1, 2, 30, 20)}
    table.write_text(f"path,{columns},x1,y1,x2,y2\ncat/a.jpg,58,36,2,4,60,40\ncat/b.jpg,29,18,1,2,30,20\n")
    assert boxes_in(found(tmp_path, table)) == {"a": (2, 4, 60, 40), "b": (1, 2, 30, 20)}  # the boxes' own


@pytest.mark.parametrize("column", ["class", "Label", "category", "species"])
def test_a_column_that_looks_like_the_boxes_class_is_remarked_on(tmp_path: Path, column: str) -> None:
    picture(tmp_path / "cat/a.jpg")
    (tmp_path / "boxes.csv").write_text(f"path,x1,y1,x2,y2,{column}\ncat/a.jpg,1,2,30,40,dog\n")
    with pytest.warns(DistcamWarning, match=f"there is no column 'label'; '{column}' looks like one"):
        read_boxes(tmp_path / "boxes.csv")


def test_sides_taken_for_corners_are_suspected(tmp_path: Path) -> None:
    picture(tmp_path / "cat/a.jpg")
    with pytest.raises(InputError, match="if the last two are width and height, call the columns x, y, w, h"):
        read_boxes(csv(tmp_path, {"a": (40, 30, 20, 10)}))


@pytest.mark.parametrize(("edge", "said"), [(90, "smaller copy, or in percent, would"), (120, "smaller copy would")])
def test_boxes_that_all_lie_in_one_corner_of_large_images_are_remarked_on(tmp_path: Path, edge: int, said: str) -> None:
    for name in "abcde":
        picture(tmp_path / f"cat/{name}.jpg", (400, 300))
    boxes = {name: (5, 5, edge, 60 + place) for place, name in enumerate("abcde")}
    with pytest.warns(DistcamWarning, match=said):
        found(tmp_path, csv(tmp_path, boxes))
    found(tmp_path, csv(tmp_path, boxes | {"a": (5, 5, 180, 60)}))  # one that goes further says that they are pixels


def test_images_that_share_an_annotation_by_name_are_remarked_on(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "dog/1.jpg", "dog/2.jpg"):
        picture(tmp_path / name)
    folder = xml(tmp_path, {"1": (1, 2, 30, 20), "2": (1, 2, 30, 20)})
    with pytest.warns(DistcamWarning, match=r"1 images share an annotation .*, such as cat/1.jpg and dog/1.jpg"):
        boxed_images(list_images(tmp_path, labels="none"), read_boxes(folder))


def test_annotations_without_any_box_are_called_so(tmp_path: Path) -> None:
    picture(tmp_path / "cat/a.jpg")
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml/a.xml").write_text("<annotation></annotation>")
    with pytest.raises(InputError, match="there is no box in it, in 1 annotations"):
        found(tmp_path, tmp_path / "xml")
