"""Boxes from CSV, CUB-200-2011 and ILSVRC, in miniature trees, and what is refused."""

from __future__ import annotations

import doctest
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image

import distcam.images.boxes.fitting as box_fitting
from distcam.errors import InputError
from distcam.images import Box, list_images
from distcam.images.boxes.fitting import LabelledBox
from distcam.images.boxes.formats import read_boxes, read_synsets
from distcam.images.boxes.joined import boxed_images
from distcam.remarks import DistcamWarning

XML = """<annotation><folder>val</folder><filename>{name}</filename>
<size><width>{width}</width><height>40</height><depth>3</depth></size>
<object><name>n01440764</name><bndbox><xmin>10</xmin><ymin>4</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object>
<object><name>n02102040</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>5</xmax><ymax>8</ymax></bndbox></object>
</annotation>"""


def picture(path: Path, size: tuple[int, int] = (60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def cub(root: Path) -> Path:
    for number, name in enumerate(("001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Auklet/c.jpg"), start=1):
        picture(root / "images" / name)
        for file, line in (
            ("images.txt", name),
            ("bounding_boxes.txt", f"{number}.0 2.0 10.0 20.5"),
            ("image_class_labels.txt", "2" if number == 3 else "1"),
            ("train_test_split.txt", "1" if number == 2 else "0"),
        ):
            with (root / file).open("a") as lines:
                lines.write(f"{number} {line}\n")
    (root / "classes.txt").write_text("1 001.Albatross\n2 002.Auklet\n")
    return root


def test_a_csv_with_several_boxes_of_an_image(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        picture(tmp_path / name)
    table = tmp_path / "boxes.csv"
    table.write_text("path,label,x1,y1,x2,y2\ncat/a.png,cat,1,2,3,4\ncat/a.png,dog,5,6.5,7,8\ndog/c.png,,0,0,9,9\n")
    with pytest.warns(DistcamWarning, match=r"2 of 3 images have a box \(cat/b.png has none\)"):
        boxed = boxed_images(list_images(tmp_path), read_boxes(table))
    assert [image.path for image in boxed] == ["cat/a.png", "dog/c.png"]
    assert boxed.without_boxes == 1
    first, last = boxed
    assert first.labels == ("cat", "dog")
    assert first.boxes_of("cat", 60, 40) == [Box(1, 2, 3, 4)]
    assert first.boxes_of("dog", 60, 40) == [Box(5, 6.5, 7, 8)]
    assert last.boxes_of("dog", 60, 40) == [Box(0, 0, 9, 9)]  # a box without a class is of the image's own
    assert boxed.labels == ("cat", "dog")


def test_paths_may_be_relative_to_the_tables_folder_though_the_listing_starts_below(tmp_path: Path) -> None:
    picture(tmp_path / "query/cat/a.png")
    (tmp_path / "boxes.csv").write_text("path,x1,y1,x2,y2\nquery/cat/a.png,1,2,3,4\n")
    boxed = boxed_images(list_images(tmp_path / "query"), read_boxes(tmp_path / "boxes.csv"))
    assert [(image.path, image.label) for image in boxed] == [("cat/a.png", "cat")]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/boxes.csv").write_text("path,x1,y1,x2,y2\ncat/a.png,1,2,3,4\n")
    again = boxed_images(list_images(tmp_path / "query"), read_boxes(tmp_path / "elsewhere/boxes.csv"))
    assert again.images == boxed.images


@pytest.mark.parametrize(("split", "expected"), [("train", ["b"]), ("test", ["a", "c"]), ("all", ["a", "b", "c"])])
def test_cub_by_split(tmp_path: Path, split: str, expected: list[str]) -> None:
    folder = cub(tmp_path / "CUB_200_2011")
    with pytest.warns(DistcamWarning) if split != "all" else nullcontext():
        boxed = boxed_images(list_images(folder / "images"), read_boxes(folder, split=split))
    assert [image.file.stem for image in boxed] == expected
    if split == "test":
        assert boxed.images[1].boxes == (LabelledBox(Box(3, 2, 13, 22.5), "002.Auklet"),)


def test_ilsvrc_with_a_folder_for_each_synset(tmp_path: Path) -> None:
    picture(tmp_path / "val/n02102040/one.JPEG")
    (tmp_path / "xml/val").mkdir(parents=True)
    (tmp_path / "xml/val/one.xml").write_text(XML.format(name="one", width=120))
    with pytest.warns(DistcamWarning, match=r"1 annotations of .* other proportions; .*annotated as 120x40"):
        (image,) = boxed_images(list_images(tmp_path / "val"), read_boxes(tmp_path / "xml"))
    assert image.label == "n02102040"
    assert image.labels == ("n02102040", "n01440764")
    # annotated at 120 × 40, the file has 60 × 40: half as wide
    assert image.boxes_of("n01440764", 60, 40) == [Box(5, 4, 15, 20)]


def test_ilsvrc_in_one_folder_with_a_list_of_synsets(tmp_path: Path) -> None:
    for number in (1, 2):
        picture(tmp_path / f"val/ILSVRC2012_val_{number:08d}.JPEG")
        (tmp_path / f"ILSVRC2012_val_{number:08d}.xml").write_text(XML.format(name=number, width=60))
    for content in (
        "n01440764\nn02102040\n",
        "ILSVRC2012_val_00000001.JPEG n01440764\nILSVRC2012_val_00000002.JPEG n02102040\n",
    ):
        (tmp_path / "synsets.txt").write_text(content)
        labels = read_synsets(tmp_path / "synsets.txt")
        boxed = boxed_images(list_images(tmp_path / "val"), read_boxes(tmp_path), labels=labels)
        assert [image.label for image in boxed] == ["n01440764", "n02102040"]
    with pytest.raises(InputError, match=r"2 images have boxes in .* and no class, .*put them"):
        boxed_images(list_images(tmp_path / "val"), read_boxes(tmp_path))


def test_one_xml_file_is_a_table_of_one_image(tmp_path: Path) -> None:
    picture(tmp_path / "n01440764/one.png")
    (tmp_path / "one.xml").write_text(XML.format(name="one", width=60))
    assert (
        len(
            boxed_images(
                list_images(tmp_path / "n01440764/one.png"),
                read_boxes(tmp_path / "one.xml"),
                labels={"one": "n01440764"},
            )
        )
        == 1
    )


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "has a document type or entities"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "has a document type or entities"),
        ("<annotation>", "no sound XML"),
        ("<html></html>", r"expected <annotation>.*got <html>"),
        (XML.format(name="x", width="wide"), "expected whole numbers as <size>"),
    ],
)
def test_xml_that_is_no_annotation_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "one.xml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_boxes(tmp_path)


def test_hidden_encodings_and_huge_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.xml").write_bytes(BOMB.encode("utf-16"))
    with pytest.raises(InputError, match="no UTF-8 text"):
        read_boxes(tmp_path / "one.xml")
    (tmp_path / "one.xml").write_bytes(
        BOMB.replace("<!DOC", '<?xml version="1.0" encoding="cp037"?><!DOC').encode("cp037")
    )
    with pytest.raises(InputError, match="no UTF-8 text"):
        read_boxes(tmp_path / "one.xml")
    (tmp_path / "one.xml").write_text(f"<annotation>{' ' * 1_000_000}</annotation>")
    with pytest.raises(InputError, match="more than 1,000,000 bytes"):
        read_boxes(tmp_path / "one.xml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,x1,y1,x2,y2\n", "expected the columns path, x1"),
        ("path,x1,y1,x_2,y2\n", "did you mean 'x_2'"),
        ("path,x1,y1,x2,y2\na.png,1,2,3\n", r"line 2: expected 5 cells; got 4"),
        ("path,x1,y1,x2,y2\na.png,1,2,3,inf\n", "line 2: expected four numbers"),
        ("path,x1,y1,x2,y2\na.png,3,2,1,4\n", "line 2: the box .* is empty"),
        ("path,x1,y1,x2,y2\n,1,2,3,4\n", "line 2: expected a path; got an empty cell"),
    ],
)
def test_a_broken_table_says_where(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "boxes.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_boxes(tmp_path / "boxes.csv")


def test_what_fits_no_image_names_both_sides(tmp_path: Path) -> None:
    picture(tmp_path / "cat/a.png")
    (tmp_path / "boxes.csv").write_text("path,x1,y1,x2,y2\ncat/z.png,1,2,3,4\n")
    with pytest.raises(InputError, match=r"has boxes for .*cat/z\.png, …, but the images are .*cat/a\.png"):
        boxed_images(list_images(tmp_path), read_boxes(tmp_path / "boxes.csv"))
    with pytest.raises(InputError, match="no such file or folder"):
        read_boxes(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match="found neither"):
        read_boxes(tmp_path / "cat")


def test_broken_cub_tables_are_refused(tmp_path: Path) -> None:
    folder = cub(tmp_path / "cub")
    with pytest.raises(InputError, match="split='val' is not known"):
        read_boxes(folder, split="val")  # type: ignore[arg-type]
    for boxes, reason in (
        ("1 1 2 3\n2 1 1 1 1\n3 1 1 1 1\n", r"image 1 of bounding_boxes.txt \(x, y, width, height\): expected four"),
        ("1 1 1 -1 1\n2 1 1 1 1\n3 1 1 1 1\n", "image 1 of .*: the box .* is empty"),
        ("2 1 1 1 1\n3 1 1 1 1\n", "image 1: has no line"),
    ):
        (folder / "bounding_boxes.txt").write_text(boxes)
        with pytest.warns(DistcamWarning, match=f"1 boxes or annotations .* left out, the first: .*{reason}"):
            assert len(read_boxes(folder)) == 2
        with pytest.raises(InputError, match=reason):
            read_boxes(folder, strict=True)
    (folder / "bounding_boxes.txt").write_text("one 1 1 1 1\n")
    with pytest.raises(InputError, match="line 1: expected a number and a value"):
        read_boxes(folder)
    (folder / "synsets.txt").write_text("n01440764\nfish\n")
    with pytest.raises(InputError, match="line 2: expected `IMAGE n01751748`"):
        read_synsets(folder / "synsets.txt")


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(box_fitting).failed == 0
