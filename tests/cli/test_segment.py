"""`distcam segment`: a whole way at a tiny size, what comes out of it, and its messages."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from commands import distcam, fails
from PIL import Image
from segment_recipe import RECIPE

from distcam.datasets.masked_images import VocFolder
from distcam.remarks import DistcamWarning


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a comparison of two variants, and what the command said."""
    folder = tmp_path_factory.mktemp("segment")
    (folder / "tiny.toml").write_text(RECIPE)
    out = folder / "runs"
    said = distcam("segment", "train", folder / "tiny.toml", "--variant", "all", "--seeds", "0,1", "--out", out)
    return out, said


@pytest.fixture(scope="module")
def scenes(run):
    return next((run[0] / "scenes").iterdir())


def model(run):
    return run[0] / "masks" / "seed-0"


def test_training_ends_in_one_table_and_a_folder_per_run(run) -> None:
    out, said = run
    assert "tiny: mean ± standard deviation over 2 seeds" in said
    assert "test.mean_iou" in said
    for name in ("cues", "masks"):
        assert (out / name / "seed-1" / "segmenter.safetensors").is_file()
    content = json.loads((out / "comparison.json").read_text())
    assert set(content["values"]) == {"cues", "masks"}
    assert content["values"]["masks"]["masks.coverage"] == [1.0, 1.0]


def test_a_network_writes_masks_in_vocs_layout_and_is_measured(run, scenes, tmp_path) -> None:
    said = distcam("segment", "infer", model(run), scenes, "--out", tmp_path / "out", "--show")
    assert "pixel accuracy" in said
    assert "4 masks:" in said
    listed = (tmp_path / "out" / "ImageSets" / "Segmentation" / "all.txt").read_text().split()
    assert len(listed) == 4
    for name in listed:
        with Image.open(tmp_path / "out" / "SegmentationClass" / f"{name}.png") as mask:
            assert (mask.mode, mask.size) == ("P", (32, 32))
        assert (tmp_path / "out" / "overlays" / f"{name}.jpg").is_file()
    again = json.loads(distcam("segment", "infer", model(run), scenes, "--out", tmp_path / "out", "--json"))
    assert again["masks"] == 4
    score = json.loads(distcam("segment", "evaluate", tmp_path / "out", scenes, "--json"))
    assert score == again["score"]
    own = json.loads(distcam("segment", "evaluate", model(run), scenes, "--json"))
    assert own["confusion"] == score["confusion"]


def test_class_maps_write_masks_with_a_background_score_and_a_walk(run, scenes, tmp_path) -> None:
    weak = model(run) / "weak"
    common = ["segment", "infer", weak, scenes, "--scales", "1", "--labels", "known", "--json"]
    plain = json.loads(distcam(*common, "--out", tmp_path / "a", "--background", "0.9"))
    walked = json.loads(distcam(*common, "--out", tmp_path / "b", "--refine", "walk", "--no-flip"))
    assert plain["settings"] | {"background": 0.3, "refine": "walk", "flip": False} == walked["settings"]
    data = VocFolder(tmp_path / "a", tuple(plain["score"]["class_names"][1:]), settings=plain["settings"])
    known = (tmp_path / "a" / "ImageSets" / "Segmentation" / "all.txt").read_text().split()
    assert all((data.read(name) <= 2).all() for name in known)


def crf_of_one_class(image, scores, *, settings):
    """In place of the dense CRF: every pixel is of the class that is least likely over all of the image."""
    least = scores.mean((1, 2)).argmin()
    return np.broadcast_to(np.eye(len(scores))[least][:, None, None], scores.shape)


def test_a_crf_behind_a_network_changes_its_masks_and_is_recorded(run, scenes, tmp_path, monkeypatch) -> None:
    common = ["segment", "infer", model(run), scenes, "--json", "--out"]
    plain = json.loads(distcam(*common, tmp_path / "plain"))
    monkeypatch.setattr("distcam.segmentation.pipeline.dense_crf", crf_of_one_class)
    refined = json.loads(distcam(*common, tmp_path / "crf", "--refine", "crf"))
    assert "refine" not in plain["settings"]
    assert refined["settings"]["refine"] == "crf"
    evaluated = json.loads(distcam("segment", "evaluate", model(run), scenes, "--refine", "crf", "--json"))
    assert evaluated["confusion"] == refined["score"]["confusion"] != plain["score"]["confusion"]


def test_refined_masks_of_class_maps_are_measured_as_they_are_written(run, scenes, tmp_path, monkeypatch) -> None:
    weak, common = model(run) / "weak", ("--scales", "1", "--labels", "known", "--json")
    written = json.loads(
        distcam("segment", "infer", weak, scenes, "--out", tmp_path / "a", "--refine", "walk", *common)
    )
    measured = json.loads(distcam("segment", "evaluate", weak, scenes, "--refine", "walk", *common))
    assert measured["confusion"] == written["score"]["confusion"]
    monkeypatch.setattr("distcam.segmentation.pseudo_masks.make.dense_crf", crf_of_one_class)
    best = json.loads(distcam("segment", "evaluate", weak, scenes, "--refine", "crf", *common))
    again = json.loads(
        distcam("segment", "evaluate", weak, scenes, "--refine", "crf", "--background", best["beta"], *common)
    )
    assert again == best


def test_a_crf_that_is_not_installed_is_one_line(run, scenes, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    for place in (model(run), model(run) / "weak"):
        arguments = ("segment", "infer", place, scenes, "--out", tmp_path / place.name, "--refine", "crf")
        assert "pip install 'distcam[crf]'" in fails(monkeypatch, capsys, *arguments)


def test_the_curve_of_the_background_score(run, scenes) -> None:
    weak = model(run) / "weak"
    said = distcam("segment", "evaluate", weak, scenes, "--scales", "1", "--curve")
    assert said.count("← best") == 1
    assert "background score" in said
    content = json.loads(distcam("segment", "evaluate", weak, scenes, "--scales", "1", "--curve", "--json"))
    at_best = json.loads(
        distcam(
            *("segment", "evaluate", weak, scenes, "--scales", "1"),
            *("--background", content["best_beta"], "--json"),
        )
    )
    assert at_best["mean_iou"] == max(content["mean_iou"]) == content["best"]["mean_iou"]
    fixed = distcam("segment", "evaluate", weak, scenes, "--scales", "1", "--background", "0.5", "--labels", "all")
    assert "background score 0.5" in fixed


@pytest.mark.parametrize("part", ["", "weak"])
def test_measured_images_that_the_model_was_trained_on_are_counted(run, scenes, tmp_path, part) -> None:
    own, once = model(run) / part, ("--scales", "1", "--json")
    with pytest.warns(DistcamWarning, match="8 of the 8 images .by content. were trained on"):
        seen = json.loads(distcam("segment", "evaluate", own, scenes, "--split", "train", *once))
    assert (seen["trained_on"]["images"], seen["trained_on"]["of_images"], seen["images"]) == (8, 8, 8)
    new = json.loads(distcam("segment", "evaluate", own, scenes, *once))
    assert (new["trained_on"]["images"], new["trained_on"]["of_images"]) == (0, 4)
    asked = ("segment", "infer", own, scenes, "--split", "train", "--out", tmp_path / "masks", *once)
    with pytest.warns(DistcamWarning, match="were trained on"):
        assert json.loads(distcam(*asked))["trained_on"] == seen["trained_on"]


def test_a_plain_folder_of_pictures_needs_no_labels(run, scenes, tmp_path) -> None:
    pictures = scenes / "test"
    said = distcam("segment", "infer", model(run) / "weak", pictures, "--out", tmp_path / "out", "--scales", "1")
    assert "4 masks:" in said
    names = tmp_path / "names.txt"
    classes = (tmp_path / "out" / "classes.txt").read_text()
    names.write_text(classes)
    folders = [tmp_path / "out" / "SegmentationClass", scenes / "masks" / "test"]
    said = distcam("segment", "evaluate", *folders, "--names", names)
    assert "mean" in said
    assert distcam("segment", "evaluate", *folders) == said  # classes.txt lies beside the masks
    same = json.loads(distcam("segment", "evaluate", folders[1], folders[1], "--names", names, "--json"))
    assert same["mean_iou"] == 1
    given = distcam(
        *("segment", "evaluate", folders[0], pictures, "--masks", scenes / "masks" / "test", "--names", names),
    )
    assert given == said


# --- messages ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_one_line(run, scenes, tmp_path, monkeypatch, capsys) -> None:
    def error(*arguments):
        return fails(monkeypatch, capsys, "segment", *arguments)

    weak = model(run) / "weak"
    assert "holds masks made with other settings" in (
        distcam("segment", "infer", weak, scenes, "--out", tmp_path / "m", "--scales", "1")
        and error("infer", weak, scenes, "--out", tmp_path / "m", "--scales", "2")
    )
    assert "expected --scales as numbers such as 0.5,1,2; got 'one'" in error(
        "infer", weak, scenes, "--out", tmp_path / "n", "--scales", "one"
    )
    assert "nothing says which classes the image shows" in error(
        "infer", weak, scenes / "test", "--out", tmp_path / "n", "--labels", "known"
    )
    assert "--curve is not used by a segmentation network" in error("evaluate", model(run), scenes, "--curve")
    assert "--curve is not used where masks are compared" in error(
        "evaluate", scenes / "masks", scenes / "masks", "--curve"
    )
    assert "expected a folder of masks or a model, and nothing is at" in error(
        "evaluate", tmp_path / "x", scenes / "masks"
    )
    assert "none of the images has a mask to compare with" in error("evaluate", weak, scenes / "test")
    assert "has no mask; expected" in error("evaluate", scenes / "masks" / "test", scenes / "masks" / "train")
    bad = tmp_path / "bad"
    for number, value in enumerate((1, 77)):
        (bad / str(number)).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(bad / str(number) / "a.png")
    assert "a.png: the mask holds the class number 77, which stands for nothing" in error(
        "evaluate", bad / "1", bad / "0"
    )
    (bad / "2").mkdir()
    Image.fromarray(np.ones((5, 4), np.uint8)).save(bad / "2" / "a.png")
    assert "a.png has 4x4 pixels, its mask" in error("evaluate", bad / "2", bad / "0").replace(": has", " has")


def test_a_recipe_with_an_unknown_key_names_the_nearest(tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "r.toml"
    file.write_text(RECIPE.replace('kind = "cross_entropy"', 'kind = "cross_entropi"'))
    assert "unknown kind of loss 'cross_entropi', nearest is 'cross_entropy'" in fails(
        monkeypatch, capsys, "segment", "train", file, "--out", tmp_path / "o"
    )
    file.write_text(RECIPE.replace("[cues]", "[cues]\nbeat = 3"))
    assert "unknown key in [cues] 'beat', nearest is 'beta'" in fails(
        monkeypatch, capsys, "segment", "train", file, "--out", tmp_path / "o"
    )
