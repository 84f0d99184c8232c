"""Re-identification sets as people have them: folders per identity, other names, Windows paths, bad lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import distcam, fails
from PIL import Image

from distcam.errors import InputError
from distcam.reid import Features, ReidProtocol, assess, audit, encode_data, read_data
from distcam.reid.features import read_features, write_features
from distcam.reid.policies import remark_on_placeholders
from distcam.remarks import DistcamWarning

MARKET = ("bounding_box_train", "query", "bounding_box_test")
VERI = ("image_train", "image_query", "image_test")


def picture(file: Path, value: int = 9) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(value).integers(0, 255, (32, 16, 3), np.uint8)).save(file)
    return file


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "kind", "name"),
    [
        (MARKET, "market", "{:04d}_c{}s1_000151_01.jpg"),
        (MARKET, "duke", "{:04d}_c{}_f0046985.jpg"),
        (VERI, "veri", "{:04d}_c00{}_00016450_0.jpg"),
    ],
)
@pytest.mark.parametrize("inside", ["", "{:04d}/", "{:d}/", "person {:d}/"])
def test_a_folder_for_each_identity_is_looked_into(
    tmp_path: Path, folders: tuple[str, ...], kind: str, name: str, inside: str
) -> None:
    for folder in folders:
        for identity in (2, 5):
            picture(tmp_path / folder / inside.format(identity) / name.format(identity, 1))
            picture(tmp_path / folder / inside.format(identity) / name.format(identity, 2))
    data = read_data(tmp_path)
    assert data.format == kind
    assert [(image.identity, image.camera) for image in data.gallery] == [(2, 0), (2, 1), (5, 0), (5, 1)]
    assert all(data.file(image).is_file() for image in data.images)


@pytest.mark.parametrize("folders", [MARKET, VERI])
@pytest.mark.parametrize("name", ["person02_cam01_frame016.jpg", "2-1.png", "0002_c0s1_000451_03.jpg", "sub/a.jpg"])
def test_other_names_are_shown_with_what_a_name_must_look_like(
    tmp_path: Path, folders: tuple[str, ...], name: str
) -> None:
    for folder in folders:
        picture(tmp_path / folder / name)
    message = f"3 files were passed over, such as {folders[0]}/{name}; a name begins with identity and camera, as 0002"
    with pytest.raises(InputError, match=message):
        read_data(tmp_path)
    for folder in folders:
        picture(tmp_path / folder / "0002_c1s1_000451_03.jpg")
    if "/" not in name:
        with pytest.warns(DistcamWarning, match=f"3 images of .* are passed over, such as {folders[0]}/{name}"):
            assert len(read_data(tmp_path)) == 3


def test_a_folder_that_contradicts_the_name_is_refused(tmp_path: Path) -> None:
    for folder in MARKET:
        picture(tmp_path / folder / "0007/0002_c1s1_000451_03.jpg")
    with pytest.raises(InputError, match="lies in the folder of 0007, and its name says 2"):
        read_data(tmp_path)


def test_one_image_in_the_folder_of_somebody_else_is_left_out_and_named(tmp_path: Path) -> None:
    for folder in MARKET:
        picture(tmp_path / folder / "0002/0002_c1s1_000451_03.jpg")
    picture(tmp_path / MARKET[0] / "0007/0002_c1s1_000452_03.jpg")
    with pytest.warns(DistcamWarning, match="1 images of .* are left out, the first: .* lies in the folder of 0007"):
        assert len(read_data(tmp_path)) == len(MARKET)


@pytest.mark.parametrize("column", ["cam", "cam_id", "Camera ID", "station"])
def test_columns_that_look_like_cameras_and_roles_are_remarked_on(tmp_path: Path, column: str) -> None:
    lines = [f"{number}.png,{number // 2},{number % 2},{('query', 'gallery')[number % 2]}" for number in range(4)]
    (tmp_path / "images.csv").write_text(f"path,identity,{column},part\n" + "\n".join(lines))
    with (
        pytest.warns(DistcamWarning, match=f"no column is taken as the camera; `--option camera={column}` takes"),
        pytest.warns(DistcamWarning, match="no column is taken as the role, .*; `--option role=part` takes 'part'"),
    ):
        assert {image.role for image in read_data(tmp_path / "images.csv").images} == {"test"}
    found = read_data(tmp_path / "images.csv", camera=column, role="part")
    assert [image.role for image in found.images] == ["query", "query", "gallery", "gallery"]


# --- lists and tables -------------------------------------------------------------------------------------------------


def test_lists_with_the_separators_of_windows_are_read(tmp_path: Path) -> None:
    name = "0001_019_07_0303morning_0020_1.jpg"
    for folder in ("train", "test"):
        picture(tmp_path / "msmt" / folder / "0001" / name)
    for part in ("train", "query", "gallery"):
        (tmp_path / "msmt" / f"list_{part}.txt").write_text(f"0001\\{name} 1\r\n")
    data = read_data(tmp_path / "msmt")
    assert all(data.file(image).is_file() for image in data.images)
    lists = tmp_path / "vehicles/train_test_split"
    lists.mkdir(parents=True)
    (lists / "train_list.txt").write_text("image\\0000001 9\n")
    (lists / "test_list_800.txt").write_text(".\\0000002.JPG 1\n0000003 1\n")
    vehicles = read_data(tmp_path / "vehicles", seed=None)
    assert [image.path for image in vehicles.images] == ["image/0000001.jpg", "image/0000002.JPG", "image/0000003.jpg"]
    picture(tmp_path / "a/é.jpg")
    (tmp_path / "t.csv").write_text("path; Identity ;Camera\na\\e\u0301.jpg;x;1\n", encoding="utf-8")
    with pytest.warns(DistcamWarning, match="read with ';'"):
        (image,) = read_data(tmp_path / "t.csv").images
    assert (image.path, image.identity, image.camera) == ("a/é.jpg", "x", "1")


@pytest.mark.parametrize(
    ("line", "reason"),
    [("b.jpg,,1,test", "b.jpg has no identity"), ("b.jpg,x,1,tset", "role 'tset'"), ("b.jpg,x,1,nan", "role 'nan'")],
)
def test_one_bad_line_of_a_table_is_left_out_and_named(tmp_path: Path, line: str, reason: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"path,identity,camera,role\na.jpg,x,1,test\n{line}\n")
    with pytest.warns(DistcamWarning, match=f"1 lines cannot be used and are left out, the first: .*{reason}"):
        assert [image.path for image in read_data(table).images] == ["a.jpg"]


@pytest.mark.parametrize("column", ["individual", "Class", "species", "name"])
def test_a_table_whose_identities_are_called_otherwise_says_how_to_take_them(tmp_path: Path, column: str) -> None:
    (tmp_path / "t.csv").write_text(f"path,{column}\na.jpg,x\n")
    with pytest.raises(InputError, match=f"expected a column identity .*`--option identity={column}` takes that one"):
        read_data(tmp_path / "t.csv")


# --- nobody -----------------------------------------------------------------------------------------------------------


def animals(root: Path, nobody: str = "unknown", camera: str = "2") -> Path:
    lines = ["path,identity,camera,role"]
    for place, (name, seen) in enumerate(
        [("lola", "1"), ("max", "1"), (nobody, "1"), (nobody, "1"), ("lola", "3"), ("max", "3"), (nobody, camera)]
    ):
        picture(root / f"{place}.jpg", place)
        lines.append(f"{place}.jpg,{name},{seen},{'query' if place < 4 else 'gallery'}")
    (root / "animals.csv").write_text("\n".join(lines) + "\n")
    return root / "animals.csv"


def features_of(data: object) -> Features:
    paths = tuple(image.path for image in data.images)  # type: ignore[attr-defined]
    return Features(np.random.default_rng(0).normal(size=(len(paths), 4)), paths)


@pytest.mark.parametrize("nobody", ["unknown", "nan", "None", "NULL", "?", "n/a", "unidentified", "unk", "TBD"])
def test_placeholders_are_remarked_on_until_they_are_declared(tmp_path: Path, nobody: str) -> None:
    data = read_data(animals(tmp_path, nobody))
    found = audit(data)
    assert found.placeholders == {f"identity '{nobody}'": 3}
    assert "1 identities or cameras that look like placeholders" in found.problems
    assert f"identity '{nobody}': 3 images, which count as one" in str(found)
    with pytest.warns(DistcamWarning) as said:
        plain = assess(data, features_of(data))
    assert f"identity '{nobody}' (3 images) look like placeholders" in str(said[0].message)
    assert f"--protocol junk={nobody} leaves such identities out" in str(said[0].message)
    assert plain.evaluation.counts["queries"] == 4
    declared = assess(data, features_of(data), protocol=ReidProtocol(junk=(nobody,)))
    assert (declared.evaluation.counts["queries"], declared.evaluation.counts["queries_left_out"]) == (2, 2)
    assert declared.evaluation.counts["gallery_junk"] == 1
    assert "left out: 2 queries that are junk or distractors" in str(declared)
    wrong = assess(data, features_of(data), protocol=ReidProtocol(distractors=(nobody,)))
    assert (wrong.evaluation.counts["queries"], wrong.evaluation.counts["gallery_distractors"]) == (2, 1)


def test_unknown_cameras_are_remarked_on(tmp_path: Path) -> None:
    found = audit(read_data(animals(tmp_path, "eva", camera="unknown")))
    assert found.placeholders == {"camera 'unknown'": 1}


def test_individuals_and_cameras_that_are_written_in_two_ways_are_remarked_on(tmp_path: Path) -> None:
    rows = [("1", "5"), ("1.0", "6"), ("2", "5"), ("2", "5.0")]
    for number in range(4):
        picture(tmp_path / f"{number}.png", number)
    lines = [f"{number}.png,{name},{camera}" for number, (name, camera) in enumerate(rows)]
    (tmp_path / "images.csv").write_text("path,identity,camera\n" + "\n".join(lines))
    data = read_data(tmp_path / "images.csv")
    with (
        pytest.warns(DistcamWarning, match=r"individuals: 1 labels differ .*, such as '1' \(1 images\) and '1.0'"),
        pytest.warns(DistcamWarning, match="cameras: 1 labels differ .*, such as '5' .* each counts as one camera"),
    ):
        remark_on_placeholders(data, data.protocol)


def test_numbers_are_individuals_unless_they_are_suspicious(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    lines = [f"{n}.jpg,{n % 3},{n % 2}" for n in range(9)]
    table.write_text("path,identity,camera\n" + "\n".join(lines) + "\n")
    assert audit(read_data(table), open_files=False).placeholders == {}
    crowd = [f"x{n}.jpg,0,1" for n in range(30)]
    table.write_text("path,identity,camera\n" + "\n".join([*lines, *crowd]) + "\n")
    assert audit(read_data(table), open_files=False).placeholders == {"identity '0'": 33}
    for folder in MARKET:  # where the format says who 0 and -1 are
        for name in ("0000_c1s1_000151_01.jpg", "-1_c1s1_000151_01.jpg", "0002_c1s1_000151_01.jpg"):
            picture(tmp_path / "market" / folder / name)
    assert audit(read_data(tmp_path / "market"), open_files=False).placeholders == {}


# --- images that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_one_bad_image_is_left_out_and_named(tmp_path: Path, small_encoder: object, flip: bool) -> None:
    data = read_data(animals(tmp_path, "eva"))
    whole = encode_data(data.images, data, small_encoder, flip=flip, precision="fp32")  # type: ignore[arg-type]
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8 no image")
    (tmp_path / "6.jpg").unlink()
    with pytest.warns(DistcamWarning, match=r"2 of 7 images cannot be used and are left out, the first: 1.jpg: "):
        found = encode_data(data.images, data, small_encoder, flip=flip, precision="fp32")  # type: ignore[arg-type]
    assert set(found.skipped) == {"1.jpg", "6.jpg"}
    np.testing.assert_allclose(found.vectors, whole.vectors[[0, 2, 3, 4, 5]], atol=1e-5)
    with pytest.warns(DistcamWarning, match=r"2 of 7 images cannot be used"):
        again = read_features(write_features(tmp_path / "f.h5", found), data)
    for features in (found, again):
        assert assess(data, features).evaluation.counts["queries"] == 3
    with pytest.raises(InputError, match=r"1.jpg.*a score without this image means nothing"):
        encode_data(data.images, data, small_encoder, strict=True)  # type: ignore[arg-type]


def test_the_command_line_goes_on_and_stops_when_strict(tmp_path: Path, small_encoder, monkeypatch, capsys) -> None:
    table = animals(tmp_path, "eva")
    small_encoder.save(tmp_path / "e.safetensors")
    (tmp_path / "1.jpg").write_bytes(b"no image")
    given = ("reid", "evaluate", table, "--encoder", tmp_path / "e.safetensors")
    with pytest.warns(DistcamWarning, match="1 of 7 images cannot be used"):
        assert json.loads(distcam(*given, "--json"))["counts"]["queries"] == 3
    assert "1.jpg: " in fails(monkeypatch, capsys, *given, "--strict")
    unknown = animals(tmp_path / "more", "unknown")
    assert "'unknown' (3 images) look like" in fails(monkeypatch, capsys, *given[:2], unknown, *given[3:], "--strict")
