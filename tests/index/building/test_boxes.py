"""Galleries of boxes: what is cut out and read, how often, what is passed over, and what other commands make of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from colours import Colours
from commands import distcam, fails
from PIL import Image

from distcam.encoders import Encoder, Inference
from distcam.errors import InputError
from distcam.images import Box, BoxSource, Transform, list_items, read_image
from distcam.index import Gallery
from distcam.index.building import opened
from distcam.remarks import DistcamWarning
from distcam.retrieval import Retriever, write_report
from distcam.retrieval.report import photograph_of

pytestmark = pytest.mark.usefixtures("own_state")

HALVES = {"left": Box(0, 0, 40, 48), "right": Box(40, 0, 80, 48)}
SHADES = {"red": (220, 40, 30), "blue": (20, 60, 210), "green": (30, 200, 70), "grey": (90, 110, 100)}


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(Colours(), transform=Transform(16), architecture="colours")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two photographs of two plain halves, with a line for each half; the lines of a file do not stand together."""
    pairs = {"one.png": ("red", "blue"), "two.png": ("green", "grey")}
    for name, shades in pairs.items():
        photo = Image.new("RGB", (80, 48))
        for shade, box in zip(shades, HALVES.values(), strict=True):
            photo.paste(SHADES[shade], tuple(map(int, box)))
        photo.save(tmp_path / name)
    rows = ["path,label,x1,y1,x2,y2,camera"]
    for place, (side, box) in enumerate(HALVES.items()):
        rows += [
            f"{name},{shades[place]},{','.join(f'{edge:g}' for edge in box)},{side}" for name, shades in pairs.items()
        ]
    (tmp_path / "items.csv").write_text("\n".join(rows))
    return tmp_path / "items.csv"


def _paths(gallery: Gallery) -> list[str]:
    return [record.path for record in gallery.records(gallery.ids)]


def test_every_box_of_a_table_is_an_image_and_is_encoded_as_its_crop(table: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(table, encoder, out=table.parent / "g")
    assert _paths(gallery) == [
        *("one.png#xywh=0,0,40,48", "one.png#xywh=40,0,40,48"),
        *("two.png#xywh=0,0,40,48", "two.png#xywh=40,0,40,48"),
    ]
    records = gallery.records(gallery.ids)
    assert [record.label for record in records] == ["red", "blue", "green", "grey"]
    assert [record.columns for record in records] == [{"camera": side} for side in ("left", "right") * 2]
    crops = [Image.new("RGB", (40, 48), SHADES[str(record.label)]) for record in records]
    expected = Inference(encoder, device="cpu").encode_images(crops).embedding.numpy()
    np.testing.assert_array_equal(gallery.embeddings(gallery.ids), expected)


def test_a_file_is_read_and_decoded_once_for_all_its_boxes(
    table: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(opened, "read_image", lambda data: decoded.append(data) or read_image(data))
    gallery = Gallery.build(table, encoder, out=table.parent / "g", workers=4)
    assert len(gallery) == 4
    assert sorted(decoded) == sorted((table.parent / name).read_bytes() for name in ("one.png", "two.png"))


def test_the_margin_is_kept_and_holds_for_what_is_added(table: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(table, encoder, out=table.parent / "g", box_margin=0.25)
    assert gallery.item(0).name == "one.png#xywh=0,0,50,60"
    other = table.parent / "more.csv"
    other.write_text('path,bbox\none.png,"[8, 8, 40, 24]"\none.png,"[50, 8, 70, 40]"')
    with pytest.warns(DistcamWarning, match=r"read as edges .* 2 of 2 fit .* and 1 as a corner and the size"):
        report = Gallery.open(table.parent / "g").add(other, encoder)
    assert report.added == 2
    again = Gallery.open(table.parent / "g")
    assert _paths(again)[-2:] == ["one.png#xywh=8,8,32,16", "one.png#xywh=50,8,20,32"]
    seen = Inference(encoder, device="cpu").encode_images([again.item(int(again.ids[-1]))]).embedding.numpy()
    np.testing.assert_array_equal(again.embeddings(again.ids[-1:]), seen)
    assert again.item(int(again.ids[-1])).name == "one.png#xywh=45,0,30,48"
    assert again.info()["boxes"] == {"count": 6, "files": 2, "margin": 0.25}


def test_a_build_that_is_done_again_reads_nothing(
    table: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery.build(table, encoder, out=table.parent / "g")
    monkeypatch.setattr(opened, "read_image", lambda _data: pytest.fail("decoded again"))
    assert gallery.add(table, encoder).unchanged == 4


def test_boxes_that_no_image_has_are_listed_and_refused_when_strict(table: Path, encoder: Encoder) -> None:
    with table.open("a") as file:
        file.write("\none.png,x,100,0,120,20,a\none.png,x,9,9,5,20,a\none.png,x,0,0,40,48,b\none.png,x,1,1,4,30,a")
        file.write("\none.png,x,,,,,a")
    with pytest.warns(DistcamWarning) as said:
        gallery = Gallery.build(table, encoder, out=table.parent / "g")
    assert len(gallery) == 4
    reasons = {item.path: item.reason for item in gallery.skipped}
    assert any("lies outside of its image, which is 80x48" in reason for reason in reasons.values())
    assert "less than 8x8 pixels" in reasons["one.png#xywh=1,1,3,29"]
    assert any("1 of 9 lines of items.csv cannot be used" in str(each.message) for each in said)
    assert any("2 boxes or annotations of" in str(each.message) for each in said)
    with pytest.raises(InputError, match=r"in line 2 already|cannot be used|lie outside"):
        list_items(table, strict=True)


def test_relative_boxes_are_said_to_be_so_and_give_the_same_gallery(table: Path, encoder: Encoder) -> None:
    shares = table.parent / "shares.csv"
    shares.write_text("path,x,y,w,h\none.png,0,0,0.5,1\none.png,0.5,0,.5,1")
    with pytest.warns(DistcamWarning, match="read as shares of their image, not as pixels"):
        gallery = Gallery.build(shares, encoder, out=table.parent / "g")
    assert _paths(gallery) == ["one.png#xywh=0,0,40,48", "one.png#xywh=40,0,40,48"]
    said = list_items(shares, boxes=BoxSource(format="relative"), strict=True)
    assert [record.box for record in said] == list(HALVES.values())
    with pytest.raises(InputError, match="such as xyxy"):
        BoxSource(format="xyxy-percent")


def test_boxes_none_takes_whole_images(table: Path, encoder: Encoder) -> None:
    with pytest.warns(DistcamWarning, match="already|NOT cut out"):
        gallery = Gallery.build(table, encoder, out=table.parent / "g", boxes="none")
    assert _paths(gallery) == ["one.png", "two.png"]
    assert gallery.info()["boxes"] is None
    with pytest.warns(DistcamWarning, match="boxes are added beside the whole images of this gallery; --boxes none"):
        gallery.add(table, encoder)
    with pytest.raises(InputError, match="whole images are added beside the boxes"):
        Gallery.build(table, encoder, out=table.parent / "b").add(table.parent, encoder, strict=True)
    with pytest.raises(InputError, match="a margin is for boxes"):
        Gallery.build(table.parent, encoder, out=table.parent / "h", box_margin=0.1)


def test_a_region_finds_the_crop_and_a_crop_finds_the_whole_image(table: Path, encoder: Encoder) -> None:
    crops = Retriever(Gallery.build(table, encoder, out=table.parent / "g"), encoder, device="cpu")
    found = crops.query(table.parent / "one.png", region=HALVES["right"], k=1)
    assert (found[0].label, found[0].box) == ("blue", HALVES["right"])
    wholes = Retriever(Gallery.build(table.parent, encoder, out=table.parent / "h"), encoder, device="cpu")
    item = crops.gallery.item(int(crops.gallery.ids[2]))
    assert crops.gallery.records([crops.gallery.ids[2]])[0].label == "green"
    assert wholes.query(item, k=1)[0].path == "two.png"


def test_an_explanation_shows_the_map_inside_the_whole_photograph(table: Path, encoder: Encoder) -> None:
    retriever = Retriever(Gallery.build(table, encoder, out=table.parent / "g"), encoder, device="cpu")
    stored = retriever.query_stored(0, k=2)
    assert stored.query.image.size == (40, 48)
    explanation = stored.explain()
    photograph = photograph_of(stored[0])
    assert photograph is not None
    assert photograph.image.size == (80, 48)
    assert photograph.box == photograph.place == stored[0].box
    drawn = photograph.around(Image.new("RGB", (40, 48), (250, 250, 250)))
    assert drawn.getpixel((int(photograph.box.left) + 20, 24)) == (250, 250, 250)
    write_report(table.parent / "why.html", [explanation])
    page = (table.parent / "why.html").read_text()
    data = json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    assert data["images"]["gallery 1"]["clip"] == [0.5, 0.0, 1.0, 1.0]


def test_commands_build_query_and_remove_boxes(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery, encoder = table.parent / "g", ["--encoder", "conv4", "--weights", "random", "--image-size", "32"]
    built = distcam("index", "build", table, "--out", gallery, *encoder, "--box-margin", 0.1)
    assert "4 of them are boxes of 2 files, each 10% wider on every side" in built
    answer = json.loads(distcam("query", gallery, "--id", 0, "-k", 1, "--json"))
    assert "#xywh=" in answer[0]["matches"][0]["path"]
    distcam("query", gallery, "--id", 0, "-k", 2, "--explain", table.parent / "why.png")
    every = json.loads(distcam("query", gallery, table, "-k", 1, "--json"))  # each box finds itself, margin and all
    assert [round(each["matches"][0]["distance"], 5) for each in every] == [0.0] * 4
    (one,) = json.loads(distcam("query", gallery, f"{table.parent}/two.png#xywh=40,0,40,48", "-k", 1, "--json"))
    assert one["matches"][0]["path"] == "two.png#xywh=40,0,40,48"
    assert "1 removed; 3 images left" in distcam("index", "remove", gallery, "one.png#xywh=0,0,40,48")
    assert "2 removed; 1 image left" in distcam("index", "remove", gallery, "two.png")
    whole = ("index", "build", table.parent, "--out", table.parent / "h", *encoder)
    assert "there are none" in fails(monkeypatch, capsys, *whole, "--box-format", "xywh")
