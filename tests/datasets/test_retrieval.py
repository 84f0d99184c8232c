"""Benchmarks read from miniature trees in the layouts of their archives."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from distcam.datasets.retrieval import LAYOUTS
from distcam.errors import InputError
from distcam.images import dataset_layouts, load_dataset
from distcam.remarks import DistcamWarning
from distcam.synthetic.miniatures import write_miniature


def touch(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.fixture
def cub(tmp_path):
    """Images of the classes 1, 100, 101 and 200, as CUB_200_2011.tgz unpacks."""
    root = tmp_path / "CUB_200_2011"
    names = {
        1: "001.Black_footed_Albatross",
        100: "100.Brown_Pelican",
        101: "101.White_Pelican",
        200: "200.Yellowthroat",
    }
    images = [(i, number, f"{names[number]}/bird_{i}.jpg") for i, number in enumerate([1, 1, 100, 101, 200, 200], 1)]
    touch(root, *(f"images/{path}" for _, _, path in images))
    (root / "images.txt").write_text("".join(f"{i} {path}\n" for i, _, path in images))
    (root / "image_class_labels.txt").write_text("".join(f"{i} {number}\n" for i, number, _ in images))
    (root / "classes.txt").write_text("".join(f"{number} {name}\n" for number, name in names.items()))
    (root / "train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i, _, _ in images))
    return root


@pytest.fixture
def sop(tmp_path):
    write_miniature("sop", tmp_path)
    return tmp_path / "Stanford_Online_Products"


@pytest.fixture
def inshop(tmp_path):
    write_miniature("inshop", tmp_path)
    return tmp_path / "In-shop Clothes Retrieval Benchmark"


CARS = {1: "AM General Hummer SUV 2000", 98: "Dodge Ram C/V Cargo Van", 99: "Dodge Viper", 196: "smart fortwo 2012"}
NAMES = [CARS.get(number, f"Car {number}") for number in range(1, 197)]


@pytest.fixture
def cars_tables(tmp_path):
    write_miniature("cars", tmp_path)
    return tmp_path / "stanford_cars"


def annotations(images, key):
    """A MATLAB struct array as `scipy.io.savemat` writes it."""
    table = np.zeros(len(images), dtype=[(key, object), ("bbox_x1", object), ("class", object)])
    for row, (path, number) in zip(table, images, strict=True):
        row[key], row["bbox_x1"], row["class"] = path, 10, np.uint8(number)
    return table


# --- benchmarks -------------------------------------------------------------------------------------------------------


def test_cub_is_split_by_class_and_not_by_its_split_file(cub):
    train, test = load_dataset(cub, split="train"), load_dataset(cub, split="test")
    assert (train.layout, train.title) == ("cub", "CUB-200-2011")
    assert {record.label for record in train.records} == {"001.Black_footed_Albatross", "100.Brown_Pelican"}
    assert {record.label for record in test.records} == {"101.White_Pelican", "200.Yellowthroat"}
    assert test.records[0].path == "images/101.White_Pelican/bird_4.jpg"
    assert (test.shared_classes, test.has_gallery) == (0, False)
    assert len(load_dataset(cub)) == 6


def test_the_folder_around_the_unpacked_archive_will_do(cub, sop):
    assert load_dataset(cub.parent, layout="cub").root == cub
    assert load_dataset(sop.parent, layout="sop").root == sop


def test_sop_reads_both_lists(sop):
    whole = load_dataset(sop)
    assert (whole.layout, whole.splits) == ("sop", ("train", "test"))
    assert [record.label for record in whole.records] == [str(number) for number in range(1, 9) for _ in range(4)]
    assert [record.split for record in whole.records] == ["train"] * 16 + ["test"] * 16


def test_inshop_has_queries_and_a_gallery(inshop):
    test = load_dataset(inshop, split="test")
    assert (test.layout, test.has_gallery) == ("inshop", True)
    assert [record.role for record in test.records] == ["query", "gallery"] * 8
    assert test.records[0].path == "Img/img/WOMEN/Dresses/id_00000005/01_1_front.jpg"
    assert {record.role for record in load_dataset(inshop, split="train").records} == {"both"}


def test_inshop_with_its_images_beside_the_list(inshop):
    (inshop / "Img" / "img").rename(inshop / "img")
    (inshop / "Eval" / "list_eval_partition.txt").rename(inshop / "list_eval_partition.txt")
    assert len(load_dataset(inshop)) == 32


def test_inshop_in_its_high_resolution(inshop):
    folder = next(path for path in inshop.rglob("img") if path.is_dir())
    folder.rename(folder.with_name("img_highres"))
    assert all("img_highres/" in record.path for record in load_dataset(inshop).records)


@pytest.mark.parametrize("place", ["", "lists"])
def test_dogs_are_split_by_their_lists(tmp_path, place):
    write_miniature("dogs", tmp_path)
    root = tmp_path / "stanford_dogs"
    (root / place).mkdir(exist_ok=True)
    for file in root.glob("*.mat"):
        file.rename(root / place / file.name)
    found = load_dataset(root)
    assert (found.layout, found.splits) == ("dogs", ("train", "test"))
    labels = [f"n{number:08d}-dog" for number in range(1, 9) for _ in range(4)]
    assert [record.label for record in found.records] == labels * 2
    assert all(record.split in record.path for record in found.records)


def test_cars_from_tables_are_split_by_class(cars_tables):
    train, test = (load_dataset(cars_tables, split=split) for split in ("train", "test"))
    assert test.layout == "cars"
    assert [(record.path, record.label) for record in test.records[:3]] == [
        ("car_data/car_data/test/Car C-V 99/0991.jpg", "Car C/V 99"),
        ("car_data/car_data/test/Car C-V 99/0992.jpg", "Car C/V 99"),
        ("car_data/car_data/train/Car C-V 99/0991.jpg", "Car C/V 99"),
    ]
    labels = [{record.label for record in part.records} for part in (train, test)]
    assert labels == [{f"Car C/V {n}" for n in range(first, first + 4)} for first in (95, 99)]


def test_cars_from_the_one_matlab_file(tmp_path):
    io = pytest.importorskip("scipy.io")
    images = [("car_ims/000001.jpg", 1), ("car_ims/000002.jpg", 98), ("car_ims/000003.jpg", 99)]
    touch(tmp_path, *(path for path, _ in images))
    names = np.array(NAMES, object)
    content = {"annotations": annotations(images, "relative_im_path"), "class_names": names}
    io.savemat(tmp_path / "cars_annos.mat", content)
    assert [tuple(record[:3]) for record in load_dataset(tmp_path).records] == [
        ("car_ims/000001.jpg", CARS[1], "train"),
        ("car_ims/000002.jpg", CARS[98], "train"),
        ("car_ims/000003.jpg", CARS[99], "test"),
    ]


@pytest.mark.parametrize("place", ["", "devkit"])
def test_cars_from_the_development_kit(tmp_path, place):
    io = pytest.importorskip("scipy.io")
    (tmp_path / "devkit").mkdir()
    touch(tmp_path, "cars_train/00001.jpg", "cars_test/00001.jpg")
    io.savemat(tmp_path / "devkit" / "cars_meta.mat", {"class_names": np.array(NAMES, object)})
    io.savemat(tmp_path / "devkit" / "cars_train_annos.mat", {"annotations": annotations([("00001.jpg", 99)], "fname")})
    io.savemat(
        tmp_path / place / "cars_test_annos_withlabels.mat", {"annotations": annotations([("00001.jpg", 1)], "fname")}
    )
    assert [tuple(record[:3]) for record in load_dataset(tmp_path).records] == [
        ("cars_test/00001.jpg", CARS[1], "train"),
        ("cars_train/00001.jpg", CARS[99], "test"),
    ]


def test_a_damaged_matlab_file_is_an_error_of_one_line(tmp_path):
    pytest.importorskip("scipy.io")
    (tmp_path / "cars_annos.mat").write_bytes(b"not MATLAB" * 50)
    with pytest.raises(InputError, match=r"cars_annos\.mat: expected a MATLAB file with 'class_names'"):
        load_dataset(tmp_path)


# --- official counts --------------------------------------------------------------------------------------------------


def test_the_counts_are_the_published_ones():
    assert LAYOUTS["cub"].counts == {"train": ("train", 5864, 100), "test": ("test", 5924, 100)}
    assert sum(images for _, images, _ in LAYOUTS["cub"].counts.values()) == 11_788
    assert sum(images for _, images, _ in LAYOUTS["cars"].counts.values()) == 16_185
    assert sum(images for _, images, _ in LAYOUTS["sop"].counts.values()) == 120_053
    assert sum(images for _, images, _ in LAYOUTS["inshop"].counts.values()) == 52_712


def test_an_incomplete_copy_is_named_and_refused_when_strict(cub, inshop):
    assert load_dataset(cub, split="test").problems == (
        "test: expected 5,924 images of 100 classes, got 3 images of 2 classes",
    )
    assert len(load_dataset(cub).problems) == 2
    with pytest.raises(InputError, match=r"not the official CUB-200-2011: test: expected 5,924 images"):
        load_dataset(cub, split="test", strict=True)
    assert [problem.split(":")[0] for problem in load_dataset(inshop, split="test").problems] == ["query", "gallery"]


def test_a_complete_copy_has_no_problems(cub, monkeypatch):
    from dataclasses import replace

    small = replace(LAYOUTS["cub"], counts={"train": ("train", 3, 2), "test": ("test", 3, 2)})
    monkeypatch.setitem(LAYOUTS, "cub", small)
    assert load_dataset(cub, strict=True).problems == ()


def test_missing_images_are_left_out_and_named(cub):
    (cub / "images" / "200.Yellowthroat" / "bird_6.jpg").unlink()
    test = load_dataset(cub, split="test")
    assert len(test) == 2
    assert test.problems[0] == "1 of 3 images are missing, such as images/200.Yellowthroat/bird_6.jpg"


def test_a_list_without_its_images_is_refused(sop):
    for file in sop.rglob("*.JPG"):
        file.unlink()
    with pytest.raises(InputError, match=r"none of 32 images is there, such as chair_final/1_1\.JPG"):
        load_dataset(sop)


@pytest.mark.parametrize("halves", [(), ("cars_train/cars_train/00001.jpg", "cars_test/cars_test/00001.jpg")])
def test_cars_lists_without_their_images_say_which_files_make_a_usable_copy(tmp_path, halves):
    io = pytest.importorskip("scipy.io")
    images = [("car_ims/000001.jpg", 1), ("car_ims/000003.jpg", 99)]
    touch(tmp_path, "README.txt", *halves)
    content = {"annotations": annotations(images, "relative_im_path"), "class_names": np.array(NAMES, object)}
    io.savemat(tmp_path / "cars_annos.mat", content)
    with pytest.raises(
        InputError, match=r"car_ims/ is not in this copy; a usable one has car_ims/ .* or car_data/ .*cars"
    ):
        load_dataset(tmp_path)


def test_of_several_packings_of_cars_the_one_with_images_is_read(tmp_path):
    io = pytest.importorskip("scipy.io")
    names = np.array(NAMES, object)
    whole = {"annotations": annotations([("car_ims/000001.jpg", 1)], "relative_im_path"), "class_names": names}
    touch(tmp_path, "devkit/x", "cars_train/cars_train/00001.jpg", "cars_test/cars_test/00001.jpg")
    io.savemat(tmp_path / "cars_annos.mat", whole)
    io.savemat(tmp_path / "devkit" / "cars_meta.mat", {"class_names": names})
    for half, number in (("train", 1), ("test", 99)):
        rows = annotations([("00001.jpg", number)], "fname")
        place = "devkit/cars_train_annos.mat" if half == "train" else "cars_test_annos_withlabels.mat"
        io.savemat(tmp_path / place, {"annotations": rows})
    paths = [record.path for record in load_dataset(tmp_path).records]
    assert paths == ["cars_train/cars_train/00001.jpg", "cars_test/cars_test/00001.jpg"]


@pytest.mark.parametrize(
    ("fixture", "folder", "hint"),
    [("cub", "images", "images/ is not in this copy; a usable one has images/ with a folder for each class"),
     ("sop", "chair_final", "chair_final/ is not in this copy"),
     ("inshop", "Img", "is not in this copy; a usable one has img/ or img_highres/, perhaps in Img/")],
)  # fmt: skip
def test_lists_without_the_folder_of_images_name_the_folder(fixture, folder, hint, request):
    root = request.getfixturevalue(fixture)
    for place in (path for path in list(root.iterdir()) if path.is_dir() and path.name not in ("Eval", "Anno")):
        shutil.rmtree(place)
    with pytest.raises(InputError, match=re.escape(hint)):
        load_dataset(root)


# --- folders and tables -----------------------------------------------------------------------------------------------


def test_a_folder_of_classes_has_one_split(tmp_path):
    touch(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "cover.jpg")
    found = load_dataset(tmp_path)
    assert (found.layout, found.splits) == ("folder", ("all",))
    assert [record.label for record in found.records] == ["cat", "cat", "dog"]
    assert found.problems == ("1 images lie outside of class folders and are left out, such as cover.jpg",)


def test_folders_of_splits_and_of_roles(tmp_path):
    touch(
        tmp_path,
        "a/train/cat/1.jpg",
        "a/test/dog/1.jpg",
        "a/test/cat/1.jpg",
        "b/query/cat/1.jpg",
        "b/gallery/cat/x/2.jpg",
    )
    splits = load_dataset(tmp_path / "a", split="test")
    assert [(record.label, record.split) for record in splits.records] == [("cat", "test"), ("dog", "test")]
    assert splits.shared_classes == 1
    roles = load_dataset(tmp_path / "b")
    assert sorted((record.label, record.role) for record in roles.records) == [("cat", "gallery"), ("cat", "query")]


def test_a_table_with_the_columns_of_open_metric_learning(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    table = tmp_path / "df.csv"
    table.write_text(
        "label,path,split,is_query,is_gallery,category,x_1,x_2,y_1,y_2\n"
        "0,1.jpg,train,,,shoes,,,,\n"
        "1,2.jpg,validation,True,True,shoes,5,9,1,2\n"
        "1,3.jpg,validation,1.0,False,shoes,,,,\n"
        "1,4.jpg,validation,False,True,shoes,,,,\n"
    )
    uncut = r"the boxes of 1 images \(columns x_1, y_1, x_2, y_2\) are kept as columns and NOT cut out"
    with pytest.warns(DistcamWarning, match=uncut):
        found = load_dataset(table)
    assert [(record.split, record.role) for record in found.records] == [
        ("train", "both"), ("validation", "both"), ("validation", "query"), ("validation", "gallery"),
    ]  # fmt: skip
    assert len(found.problems) == 1
    with pytest.warns(DistcamWarning, match=uncut):
        listed = list(load_dataset(table, split="validation").listing())
    assert listed[1].columns == {"split": "validation", "role": "query"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (",1.jpg,True,True", r"a label for every image; 1 of 1 have none, such as 1\.jpg"),
        ("a,1.jpg,False,False", r"1\.jpg is neither query nor gallery"),
        ("a,1.jpg,perhaps,True", "expected True or False in the column is_query, got 'perhaps'"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, line, message):
    touch(tmp_path, "1.jpg")
    (tmp_path / "t.csv").write_text(f"label,path,is_query,is_gallery\n{line}\n")
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "t.csv")


# --- listings and errors ----------------------------------------------------------------------------------------------


def test_a_data_set_becomes_a_listing(inshop):
    dataset = load_dataset(inshop, split="test")
    listing = dataset.listing()
    assert len(listing) == len(list(listing)) == 16
    assert listing.column_names == ("split", "role")
    assert listing.has_labels
    assert all(listing.file(record).exists() for record in listing)


def test_what_is_not_there_is_named(tmp_path, cub):
    with pytest.raises(InputError, match="nothing is there"):
        load_dataset(tmp_path / "none")
    with pytest.raises(InputError, match="no split 'validation'; there are train, test"):
        load_dataset(cub, split="validation")
    with pytest.raises(InputError, match=r"no Stanford Online Products; expected Ebay_train\.txt and Ebay_test\.txt"):
        load_dataset(cub, layout="sop")
    with pytest.raises(
        InputError,
        match="expected a layout out of auto, cub, cars, sop, inshop, dogs, ilsvrc, cub-classification, folder, csv",
    ):
        load_dataset(cub, layout="imagenet")
    with pytest.raises(InputError, match="expected a folder, got a file"):
        load_dataset(cub / "images.txt", layout="cub")
    touch(tmp_path, "flat/1.jpg")
    with pytest.raises(InputError, match="a sub-folder for each class"):
        load_dataset(tmp_path / "flat")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.txt", "1\n", r"images\.txt line 1: expected image path; got '1'"),
        ("image_class_labels.txt", "1 one\n", "expected a whole number, got 'one'"),
        ("image_class_labels.txt", "1 7\n", "image 1 has no class in image_class_labels.txt"),
        ("classes.txt", b"1 \xff\n", r"classes\.txt: expected UTF-8"),
    ],
)
def test_malformed_lists_are_refused(cub, file, content, message):
    (cub / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        load_dataset(cub)


def test_an_unknown_status_and_an_unknown_class_are_refused(inshop, cars_tables):
    (inshop / "Eval" / "list_eval_partition.txt").write_text("1\nheader\nimg/1.jpg id_1 probe\n")
    with pytest.raises(InputError, match="expected train, query or gallery, got 'probe'"):
        load_dataset(inshop)
    (cars_tables / "anno_test.csv").write_text("1.jpg,1,2,3,4,197\n")
    with pytest.raises(InputError, match=r"expected a class from 1 to 196, got 197 for 1\.jpg"):
        load_dataset(cars_tables)


def test_every_layout_has_a_name():
    assert dataset_layouts() == (
        "cub",
        "cars",
        "sop",
        "inshop",
        "dogs",
        "ilsvrc",
        "cub-classification",
        "folder",
        "csv",
    )


@pytest.mark.parametrize(
    ("there", "lacking"),
    [
        (("images.txt", "image_class_labels.txt"), "looks like CUB-200-2011, but has no classes.txt"),
        (("Ebay_test.txt",), "looks like Stanford Online Products, but has no Ebay_train.txt"),
        (("devkit/cars_train_annos.mat",), "looks like Cars196, but has no cars_test_annos_withlabels.mat"),
    ],
)
def test_half_of_a_benchmarks_lists_is_said_and_refused_when_strict(
    there: tuple[str, ...], lacking: str, tmp_path: Path
) -> None:
    for name in (*there, "images/a/1.jpg", "images/b/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = load_dataset(tmp_path)
    assert found.layout == "folder"
    assert any(lacking in problem for problem in found.problems)
    assert any("all 2 images are of the one class 'images'" in problem for problem in found.problems)
    with pytest.raises(InputError, match="looks like"):
        load_dataset(tmp_path, strict=True)


def test_lists_that_name_no_image_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "list_eval_partition.txt").write_text("0\nimage_name item_id evaluation_status\n")
    with pytest.raises(InputError, match="the lists of In-Shop Clothes Retrieval name no image"):
        load_dataset(tmp_path)


def test_rows_without_a_label_are_listed_and_passed_over_and_refused_where_it_is_strict(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "t.csv").write_text("path,label\n1.jpg,ant\n2.jpg,\n3.jpg,bee\n")
    dataset = load_dataset(tmp_path / "t.csv")
    assert [record.path for record in dataset.records] == ["1.jpg", "3.jpg"]
    assert dataset.problems == ("1 of 3 images have no label and are left out, such as 2.jpg",)
    with pytest.raises(InputError, match="1 of 3 images have no label"):
        load_dataset(tmp_path / "t.csv", strict=True)
