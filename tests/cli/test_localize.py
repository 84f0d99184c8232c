"""`distcam localize` from a folder, a table of boxes and references to a table, a CSV and JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from PIL import Image

from distcam.encoders import Encoder
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes


@pytest.fixture(scope="module")
def arguments(small_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("localize")
    classes = blueprints(2)
    write_scenes(
        folder / "set", classes=classes, splits={"gallery": 2, "query": 2}, size=64, two_object_share=0.0, masks=True
    )
    small_encoder.save(folder / "encoder.safetensors")
    return [
        *("localize", str(folder / "set" / "query"), "--boxes", str(folder / "set" / "boxes.csv")),
        *("--references", str(folder / "set" / "gallery"), "--encoder", str(folder / "encoder.safetensors")),
    ]


def test_the_table_and_its_files(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "table.csv"
    code, out, _ = run([*arguments, "--methods", "dist, dist@tau=0", "--out", str(target)], capsys)
    assert code == 0
    assert "| `dist@tau=0` |" in out
    assert "| `random` |" in out
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert [row["method"] for row in rows] == ["dist", "dist@tau=0", "caam", "random", "centre", "full"]
    assert {"max_box_acc", "max_box_acc_low", "max_box_acc_high"} <= set(rows[0])
    assert [path.name for path in target.parent.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("reference", ["prototypes", "nearest"])
def test_a_gallery_in_place_of_references_gives_the_same_table(
    arguments: list[str], reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = arguments[arguments.index("--references") + 1]
    encoder = arguments[arguments.index("--encoder") + 1]
    gallery = str(tmp_path / "gallery")
    assert run(["index", "build", images, "--encoder", encoder, "--out", gallery], capsys)[0] == 0
    asked = ["--methods", "dist,dot", "--reference", reference, "--json"]
    tables = []
    for place in (images, gallery):
        own = [place if each == images else each for each in arguments]
        code, out, _ = run([*own, *asked], capsys)
        assert code == 0
        tables.append(json.loads(out))
    assert tables[0]["references"] == tables[1]["references"] == 4
    for one, other in zip(*(table["rows"] for table in tables), strict=True):
        assert one["energy"]["value"] == pytest.approx(other["energy"]["value"], abs=1e-3)
    code, _, said = run([*own, "--metric", "l2"], capsys)
    assert code == 2
    assert "--metric is not used by a gallery, which has its own" in said


def test_json_and_the_nearest_image(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run([*arguments, "--methods", "dot", "--reference", "nearest", "--json"], capsys)
    assert code == 0
    content = json.loads(out)
    assert content["reference"] == "nearest"
    assert content["images"] == 4


def test_composites_of_the_same_images_join_the_table_and_the_other_numbers_stay(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*arguments, "--methods", "dist,dot_centered"]
    plain, composed = (json.loads(run([*asked, *more, "--json"], capsys)[1]) for more in ([], ["--composites", "3"]))
    assert (plain["composites"], composed["composites"]) == ({}, {"right_of_two": 3, "energy_of_two": 3})
    rows = {row["method"]: row for row in composed["rows"]}
    assert rows["caam"]["right_of_two"]["value"] == 0.5  # blind; of two classes there are no composites of four
    assert rows["caam"]["energy_of_two"]["value"] == pytest.approx(0.5)
    added = {"right_of_two", "energy_of_two"}
    assert plain["rows"] == [{key: row[key] for key in row if key not in added} for row in composed["rows"]]
    code, out, _ = run([*asked, "--composites", "3", "--out", str(tmp_path / "table.csv")], capsys)
    assert code == 0
    assert "3 composites (right of two)" in out
    assert "| right of two | energy on its half |" in out
    written = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [float(row["right_of_two"]) for row in written] == [row["right_of_two"]["value"] for row in rows.values()]
    code, _, said = run([*asked, "--composites", "1"], capsys)
    assert (code, said.count("\n")) == (2, 1)
    assert "--composites 1 should be 2 or more" in said


def test_masks_add_pixel_precision(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    masks = Path(arguments[1]).parent / "masks" / "query"
    code, out, _ = run([*arguments, "--methods", "dist", "--masks", str(masks), "--json"], capsys)
    assert code == 0
    rows = {row["method"]: row for row in json.loads(out)["rows"]}
    shown = np.mean([np.asarray(Image.open(file)) > 0 for file in masks.rglob("*.png")])
    assert rows["full"]["pxap"]["value"] == pytest.approx(shown)  # the whole picture has the objects' share
    assert 0 < rows["dist"]["pxap"]["value"] <= 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "dits"], "no method 'dits', nearest:"),
        (["--methods", "cam"], "`cam` needs the network's own classifier"),
        (["--out", "table.xlsx"], "--out writes FILE.csv"),
        (["--masks", "nowhere"], "expected a folder of masks, and"),
        (["--boxes", "nothing.csv"], "no such file or folder of boxes"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run([*arguments, *more], capsys)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
