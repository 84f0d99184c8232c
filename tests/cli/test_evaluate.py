"""`distcam evaluate` from a temporary folder: what is printed, what is written, and how errors end."""

from __future__ import annotations

import json

import pytest
from commands import distcam, fails

from distcam.cli.evaluate import LayoutName
from distcam.images import dataset_layouts

ENCODER = ["--encoder", "conv4", "--weights", "random", "--image-size", "64", "--fit", "squash"]
QUICK = ["--no-nmi", "--json"]


@pytest.fixture(scope="module")
def encodings(photos, tmp_path_factory):
    """A cache of the photos' encodings, written by the command itself."""
    cache = tmp_path_factory.mktemp("evaluate") / "photos.h5"
    distcam("evaluate", photos, *ENCODER, *QUICK, "--cache", cache)
    return cache


def test_help_has_an_example_and_every_layout_can_be_asked_for():
    assert "distcam evaluate CUB_200_2011/" in " ".join(distcam("evaluate", "--help").split())
    assert LayoutName.__args__ == ("auto", *dataset_layouts())  # written out, so that --help reads no data set code


def test_a_folder_is_evaluated_with_its_protocol(photos, encodings, tmp_path):
    text = distcam("evaluate", photos, *ENCODER, "--cache", encodings, "--out", tmp_path / "results.json")
    for part in ("R@1", "MAP@R", "NMI", "± classes", "24 of 24 queries of 4 classes", "own image", "conv4/", "size=64"):
        assert part in text
    written = json.loads((tmp_path / "results.json").read_text())
    firsts = [rank == 1 for rank in written["per_query"]["first_rank"]]
    assert len(firsts) == 24
    assert written["scores"]["R@1"]["value"] == pytest.approx(sum(firsts) / 24)


def test_json_table_and_file_of_encodings_agree(photos, encodings):
    of_folder = json.loads(distcam("evaluate", photos, *ENCODER, *QUICK, "--cache", encodings))
    of_file = json.loads(distcam("evaluate", encodings, *QUICK))
    assert of_folder["scores"] == of_file["scores"]
    assert "NMI" not in of_folder["scores"]


def test_metric_and_ranks_can_be_chosen(photos, encodings):
    found = json.loads(distcam("evaluate", encodings, *QUICK, "--metric", "l1", "--recall-at", "1,5,10"))
    assert list(found["scores"]) == ["R@1", "R@5", "R@10", "MAP@R", "R-precision", "mAP"]
    assert found["protocol"]["metric"] == "l1"


def test_a_gallery_is_evaluated_and_searched_with_its_own_encoder(photos, small_gallery):
    of_gallery = json.loads(distcam("evaluate", small_gallery.folder, *QUICK))
    assert of_gallery["protocol"]["metric"] == small_gallery.metric
    searched = json.loads(distcam("evaluate", photos, "--gallery", small_gallery.folder, *QUICK))
    assert searched["scores"] == of_gallery["scores"]  # the same images, which do not find themselves


def test_a_benchmark_is_recognised_and_its_test_split_taken(photos, tmp_path):
    files = sorted(photos.rglob("*.jpg"))
    for half, part in (("train", files[::2]), ("test", files[1::2])):
        lines = [f"{i} {sorted(photos.iterdir()).index(file.parent)} 1 {file}" for i, file in enumerate(part)]
        (tmp_path / f"Ebay_{half}.txt").write_text("image_id class_id super_class_id path\n" + "\n".join(lines))
    found = json.loads(distcam("evaluate", tmp_path, *ENCODER, *QUICK))
    assert found["origin"]["dataset"] == "Stanford Online Products"
    assert found["origin"]["split"] == "test"
    assert list(found["scores"])[:4] == ["R@1", "R@10", "R@100", "R@1000"]
    notes = " ".join(found["origin"]["notes"])
    assert "expected 60,502 images of 11,316 classes, got 12 images of 4 classes" in notes
    assert "4 of these classes also occur in other splits" in notes


def test_errors_are_one_line(photos, encodings, small_gallery, tmp_path, monkeypatch, capsys):
    def error(*arguments):
        return fails(monkeypatch, capsys, "evaluate", *arguments)

    assert "say what to evaluate: --encoder" in error(photos)
    assert "resnet18 needs --weights" in error(photos, "--encoder", "resnet18")
    assert "nothing is there" in error(tmp_path / "none", *ENCODER)
    assert "no CUB-200-2011; expected images.txt and" in error(photos, *ENCODER, "--protocol", "cub")
    assert "--encoder, --weights are not used as" in error(encodings, *ENCODER[:4])
    assert "numbers separated by commas" in error(encodings, "--recall-at", "1;5")
    assert "there is no such folder" in error(encodings, "--out", tmp_path / "no" / "results.json")
    assert "leave --encoder out to use the gallery's own" in error(
        photos, "--gallery", small_gallery.folder, *ENCODER[:4]
    )

    (tmp_path / "set.csv").write_text("path,label,split\na.jpg,1,train\nb.jpg,1,validation\n")
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    assert "has the splits train, validation; choose one with --split" in error(tmp_path / "set.csv", *ENCODER)


def test_a_benchmark_without_its_test_images_is_not_measured_on_those_it_trains_on(tmp_path, monkeypatch, capsys):
    lists = {"images": "1 a/1.jpg\n2 a/2.jpg\n3 b/1.jpg\n", "image_class_labels": "1 1\n2 1\n3 101\n"}
    for name, text in {**lists, "classes": "1 a\n101 b\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "images" / "a" / name).touch()
    said = fails(monkeypatch, capsys, "evaluate", tmp_path, "--encoder", "conv4", "--weights", "random")
    assert "none of 1 images is there" in said


def test_queries_without_a_gallery_are_refused_by_the_name_of_the_data(photos, tmp_path, monkeypatch, capsys):
    image = next(file for file in photos.rglob("*") if file.suffix in (".jpg", ".png"))
    (tmp_path / "t.csv").write_text(f"path,label,is_query,is_gallery\n{image},a,1,0\n{tmp_path}/gone.jpg,a,0,1\n")
    said = fails(
        monkeypatch, capsys, "evaluate", tmp_path / "t.csv", "--encoder", "conv4", "--weights", "random", "--no-nmi"
    )
    assert "expected queries and a gallery; all images are query" in said
    assert "1 of 2 images are missing" in said
    assert "encodings.h5" not in said
