"""Readers of re-identification data sets: file names, lists, tables, and what each refuses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from distcam.datasets.reid_benchmarks import parse_name
from distcam.errors import InputError
from distcam.reid import ReidData, ReidProtocol, read_data
from distcam.reid.policies import labels_of
from distcam.remarks import DistcamWarning


def touch(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    return root


def roles(data: ReidData) -> dict[str, int]:
    return dict(Counter(image.role for image in data.images))


# ---- file names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "identity", "camera"),
    [
        ("-1_c3s2_000001_02.jpg", -1, 2),
        ("0000_c1s1_000151_01.jpg", 0, 0),
        ("1501_c6s4_014323_04.jpg", 1501, 5),
        ("0001_c020_00016450_0.jpg", 1, 19),
        ("0005_c2_f0046985.jpg", 5, 1),
    ],
)
def test_a_file_name_says_who_and_which_camera(name: str, identity: int, camera: int) -> None:
    found = parse_name(name)
    assert found is not None
    assert (found.identity, found.camera) == (identity, camera)


@pytest.mark.parametrize("name", ["Thumbs.db", "readme.txt", "0001.jpg", "0002_c1s1_000451_03.txt", "0001_c0_1.jpg"])
def test_other_files_are_not_taken_for_images(name: str) -> None:
    assert parse_name(name) is None


def test_sequence_and_frame_are_kept() -> None:
    assert parse_name("0002_c1s3_000451_03.jpg") == (2, 0, "3", "000451")
    assert parse_name("0005_c2_f0046985.jpg") == (5, 1, None, "0046985")


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_market_is_recognised_with_its_junk_and_distractors(tmp_path: Path) -> None:
    touch(
        tmp_path / "Market-1501-v15.09.15",
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_test/-1_c1s1_000401_03.jpg",
        "bounding_box_test/0000_c1s1_000151_01.jpg",
        "bounding_box_test/Thumbs.db",
        "query/0001_c1s1_001051_00.jpg",
        "gt_bbox/0001_c1s1_001051_00.jpg",
    )
    data = read_data(tmp_path)  # the only folder inside is looked into
    assert data.format == "market"
    assert roles(data) == {"train": 1, "query": 1, "gallery": 2, "multi_query": 1}
    assert data.ignored == ("bounding_box_test/Thumbs.db",)
    assert (data.protocol.junk, data.protocol.distractors) == ((-1,), (0,))
    assert data.known["gallery images"] == 15_913
    assert [image.identity for image in data.gallery] == [-1, 0]


def test_the_format_of_dukemtmc_has_no_distractors(tmp_path: Path) -> None:
    folders = ("bounding_box_train", "bounding_box_test", "query")
    data = read_data(touch(tmp_path, *(f"{name}/0005_c2_f0046985.jpg" for name in folders)))
    assert (data.format, data.protocol.distractors, data.known["gallery images"]) == ("duke", (), 17_661)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "bounding_box_test/0001_c1s1_000151_01.jpg")
    with pytest.raises(InputError, match="bounding_box_train is missing"):
        read_data(tmp_path)


def test_veri_counts_twenty_cameras_with_three_digits(tmp_path: Path) -> None:
    names = ("image_train/0003_c001_1_0.jpg", "image_query/0001_c020_2_0.jpg", "image_test/0001_c002_00016450_0.jpg")
    data = read_data(touch(tmp_path, *names))
    assert (data.format, data.queries[0].camera, data.gallery[0].time) == ("veri", 19, "00016450")


def test_msmt17_reads_both_versions_from_their_lists(tmp_path: Path) -> None:
    for version, folder in (("v1", "test"), ("v2", "mask_test_v2")):
        root = tmp_path / version
        touch(root, f"{folder}/x", *(["mask_train_v2/x"] if version == "v2" else []))
        line = "0001/0001_019_07_0303morning_0020_1.jpg"
        (root / "list_train.txt").write_text(f"{line} 0\n")
        (root / "list_val.txt").write_text(f"{line} 1\n")
        (root / "list_query.txt").write_text(f"{line} 42 6\n")
        (root / "list_gallery.txt").write_text(f"{line} 0\n\n{line} 42\n")
        data = read_data(root)
        assert (data.format, roles(data)) == ("msmt17", {"train": 2, "query": 1, "gallery": 2})
        query = data.queries[0]
        assert (query.identity, query.camera, query.path) == (42, 6, f"{folder}/{line}")
        assert (query.time, data.images[1].columns) == ("0303morning", {"list": "val"})
        assert not data.has_common_identities
        assert data.protocol == ReidProtocol()  # identity 0 is a person here


def test_a_damaged_list_names_its_line(tmp_path: Path) -> None:
    touch(tmp_path, "list_gallery.txt", "list_query.txt")
    (tmp_path / "list_train.txt").write_text("a/0001_019_07_0303_1.jpg 1\nalone\n")
    with pytest.warns(DistcamWarning, match=r"1 lines .*list_train.txt line 2: expected a path and an identity, got"):
        assert len(read_data(tmp_path)) == 1
    (tmp_path / "list_train.txt").write_text("alone\n")
    with pytest.raises(InputError, match=r"list_train.txt line 1: expected a path and an identity, got 'alone'"):
        read_data(tmp_path)


def test_cuhk03_takes_its_split_from_the_table_of_the_new_protocol(tmp_path: Path) -> None:
    names = np.array([["1_001_1_01.png"], ["1_001_2_06.png"], ["1_002_1_01.png"]], dtype=object)
    for boxes, shift in (("detected", 0), ("labeled", 1)):
        table = {"filelist": names, "labels": [[1], [1], [2 + shift]], "camId": [[1], [2], [1]]}
        table |= {"train_idx": [[3]], "query_idx": [[1]], "gallery_idx": [[2]]}
        savemat(tmp_path / f"cuhk03_new_protocol_config_{boxes}.mat", table)
    data = read_data(tmp_path)
    assert [(image.path, image.identity, image.camera, image.role) for image in data.images] == [
        ("1_002_1_01.png", 2, 0, "train"),
        ("1_001_1_01.png", 1, 0, "query"),
        ("1_001_2_06.png", 1, 1, "gallery"),
    ]
    labeled = read_data(tmp_path, boxes="labeled")
    assert (labeled.images[0].identity, labeled.known["gallery images"]) == (3, 5_328)
    with pytest.raises(InputError, match="boxes detected, labeled, got 'both'"):
        read_data(tmp_path, boxes="both")


def test_a_table_that_points_outside_itself_is_refused(tmp_path: Path) -> None:
    names = np.array([["a.png"]], dtype=object)
    table = {"filelist": names, "labels": [[1]], "camId": [[1]], "train_idx": [[2]], "query_idx": [[1]]}
    file = tmp_path / "cuhk03_new_protocol_config_detected.mat"
    savemat(file, table | {"gallery_idx": [[1]]})
    with pytest.raises(InputError, match="indices from 1 to 1, got 2"):
        read_data(tmp_path)
    file.write_bytes(b"not a table")
    with pytest.raises(InputError, match="expected a MATLAB file with 'filelist'"):
        read_data(tmp_path)


def vehicles(root: Path) -> Path:
    lists = root / "train_test_split"
    lists.mkdir()
    (lists / "train_list.txt").write_text("0000001 9\n")
    lines = [f"{image:07d} {identity}\n" for image, identity in enumerate([1, 1, 1, 2, 2, 2, 2], 2)]
    (lists / "test_list_800.txt").write_text("".join(lines))
    return root


def test_vehicleid_draws_one_gallery_image_per_identity(tmp_path: Path) -> None:
    root = vehicles(tmp_path)
    drawn = [read_data(root, seed=seed) for seed in range(8)]
    for data in drawn:
        assert roles(data) == {"train": 1, "query": 5, "gallery": 2}
        assert {image.identity for image in data.gallery} == {1, 2}
        assert data.protocol.same_camera == "keep"
        assert data.images[0].camera is None
    assert drawn[0].images == read_data(root, seed=0).images
    assert len({tuple(image.path for image in data.gallery) for data in drawn}) > 1
    assert roles(read_data(root, seed=None)) == {"train": 1, "test": 7}
    with pytest.raises(InputError, match=r"test_list_1600.txt; there are lists for 800"):
        read_data(root, test="1600")


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_a_table_names_identity_camera_and_role(tmp_path: Path) -> None:
    table = tmp_path / "images.csv"
    table.write_text(
        "path,split,label,photo_id,view\nb.jpg,test,nyala_1,14,left\na.jpg,train,nyala_2,15,right\nc.jpg,test,nyala_1,,left\n"
    )
    for source in (tmp_path, table):
        data = read_data(source)
        assert [(i.path, i.identity, i.camera, i.role) for i in data.images] == [
            ("a.jpg", "nyala_2", "15", "train"),
            ("b.jpg", "nyala_1", "14", "test"),
            ("c.jpg", "nyala_1", None, "test"),
        ]
        assert data.queries == data.gallery
        assert data.images[1].columns == {"view": "left"}
    assert labels_of(data.queries).cameras.tolist() == ["14", ""]  # type: ignore[union-attr]
    assert read_data(table, camera="view").queries[0].camera == "left"


@pytest.mark.parametrize("above", ["", "images"])
def test_folders_of_splits_are_roles_and_the_folders_in_them_identities(tmp_path: Path, above: str) -> None:
    for place in ("train/ann/1.png", "query/bea/2.png", "gallery/bea/3.png", "gallery/cleo/4.png"):
        file = tmp_path / above / place
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    data = read_data(tmp_path)
    assert [(i.identity, i.camera, i.role, Path(i.path).name) for i in data.images] == [
        ("ann", None, "train", "1.png"),
        ("bea", None, "query", "2.png"),
        ("bea", None, "gallery", "3.png"),
        ("cleo", None, "gallery", "4.png"),
    ]
    assert all(data.file(image).is_file() for image in data.images)
    assert "roles from the folders of the splits: gallery, query, train" in data.notes[0]
    assert "same_camera=keep" in data.notes[1]
    (tmp_path / above / "stray.png").write_bytes(b"")
    with pytest.warns(DistcamWarning, match=r"stray\.png"):
        assert len(read_data(tmp_path)) == 4


def test_folders_of_test_images_are_query_and_gallery_at_once(tmp_path: Path) -> None:
    for place in ("train/ann/1.png", "test/bea/2.png", "val/bea/3.png"):
        (tmp_path / place).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place)
    data = read_data(tmp_path, format="folder")
    assert {image.path for image in data.queries} == {image.path for image in data.gallery}
    assert {image.role for image in data.images} == {"train", "test"}


def test_tables_that_do_not_say_who_is_on_an_image_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "images.csv"
    table.write_text("path,camera\na.jpg,1\n")
    with pytest.raises(InputError, match="expected a column identity or label or pid; there are camera"):
        read_data(table)
    table.write_text("path,identity,split\na.jpg,,test\n")
    with pytest.raises(InputError, match=r"a\.jpg has no identity"):
        read_data(table)
    table.write_text("path,identity,split\na.jpg,x,tset\n")
    with pytest.raises(InputError, match=r"a\.jpg has the role 'tset'; there are train, query"):
        read_data(table)
    with pytest.raises(InputError, match="no column 'cam'; there are identity, split"):
        read_data(table, camera="cam")


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder or table"):
        read_data(tmp_path / "none")
    with pytest.raises(InputError, match="of no known format; looked for bounding_box_test"):
        read_data(tmp_path)
    with pytest.raises(InputError, match="format must be auto or one of market, duke"):
        read_data(tmp_path, format="markt")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "images.csv").write_text("path,identity\na.png,1\n")
    with pytest.raises(InputError, match="the csv format has no option boxes"):
        read_data(tmp_path, boxes="detected")
    with pytest.raises(InputError, match="role must be one of"):
        read_data(tmp_path).of("probe")  # type: ignore[arg-type]


@pytest.mark.data
def test_the_antelopes_have_the_documented_sizes(real_data: Path) -> None:
    data = read_data(real_data / "nyala")
    assert roles(data) == {"train": 483, "test": 729}
    assert len({image.identity for image in data.queries}) == 58
