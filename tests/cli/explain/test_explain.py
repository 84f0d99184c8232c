"""`distcam explain` and the options of `distcam query` that say what to explain, from a temporary folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from commands import distcam, fails
from PIL import Image
from typer.testing import CliRunner

from distcam.cli.app import app
from distcam.encoders.backbones.networks import find_class, load_network
from distcam.errors import InputError, WeightsError
from distcam.explain import ClassScore, PixelScore, explain_image
from distcam.images import Box, read_image
from distcam.images.loading import pixel_limit, set_pixel_limit

CLASSIFIER = ["--encoder", "resnet18", "--weights", "random", "--image-size", "64", "--fit", "squash"]
SEGMENTER = ["--encoder", "lraspp_mobilenet_v3_large", "--weights", "random", "--image-size", "64", "--fit", "squash"]
ENCODER = ["--encoder", "conv4", "--weights", "random", "--image-size", "64", "--fit", "squash"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture of 96×64 pixels with some structure."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    file = tmp_path_factory.mktemp("picture") / "a [b].png"
    Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC).save(file)
    return file


@pytest.fixture(scope="module")
def gallery(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli-explain") / "photos.gallery"
    distcam("index", "build", photos, "--out", out, *ENCODER)
    return out


# ------------------------------------------------------------------------------------------------------------- classes


def test_a_class_is_explained_by_several_methods_as_in_python(picture, tmp_path):
    out = tmp_path / "deep" / "maps.npz"
    printed = distcam(
        "explain",
        picture,
        *CLASSIFIER,
        "--target",
        "class:tabby",
        "--method",
        "hirescam,Grad-CAM",
        "--out",
        out,
        "--json",
    )
    (found,) = json.loads(printed)
    assert found["target"] == "281 tabby"
    assert [maps["method"] for maps in found["maps"]] == ["hirescam", "gradcam"]
    network = load_network("resnet18", weights="random")
    transform = network.transform.adapted(size=64, fit="squash")
    pixels = transform.normalise(transform(read_image(picture))[None])
    expected = explain_image(network.model, pixels, target=ClassScore(281), method="hirescam", layer="layer4")
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["maps_hirescam"], expected.maps[:, 0].numpy())
        assert arrays["scores"] == pytest.approx(expected.scores.item())
        assert arrays["views"].tolist() == [[0, 0, 96, 64]]


def test_pictures_and_methods_make_a_sheet_or_a_page(picture, photos, tmp_path):
    other = next(photos.rglob("*.jpg"))
    sizes = []
    for methods in ("hirescam", "hirescam,caam,eigencam"):
        out = tmp_path / "why.png"
        options = ["--target", "class", "--scale", "shared", "--style", "overlay", "--colours", "viridis"]
        text = distcam("explain", picture, other, *CLASSIFIER, *options, "--method", methods, "--out", out)
        assert "a [b].png" in text
        with Image.open(out) as image:
            sizes.append(image.size)
    assert sizes[1][0] > sizes[0][0]
    distcam("explain", picture, *CLASSIFIER, "--target", "class:5", "--out", tmp_path / "why.html")
    page = (tmp_path / "why.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize("style", ["contour", "box"])
def test_maps_are_drawn_as_lines_and_boxes(picture, tmp_path, style):
    out = tmp_path / "why.png"
    distcam("explain", picture, *CLASSIFIER, "--target", "class:5", "--style", style, "--out", out)
    assert out.stat().st_size > 1000


def test_options_reach_the_methods_that_take_them(picture):
    arguments = ["explain", picture, *CLASSIFIER, "--target", "class:5", "--layer", "layer2", "--json"]
    windows = [
        json.loads(distcam(*arguments, "--method", "segxrescam", "--option", f"window={n}", "--option", "relu=false"))
        for n in (1, 99)
    ]
    hires, grad = (
        json.loads(distcam(*arguments, "--method", m, "--option", "relu=false")) for m in ("hirescam", "gradcam")
    )
    for found, expected in zip(windows, (hires, grad), strict=True):
        assert found[0]["maps"][0]["highest"] == pytest.approx(expected[0]["maps"][0]["highest"], rel=1e-4)
        assert found[0]["maps"][0]["lowest"] < 0


def test_several_layers_stand_beside_one_another(picture, tmp_path):
    figure, arrays = tmp_path / "levels.png", tmp_path / "levels.npz"
    asked = ["explain", picture, *CLASSIFIER, "--target", "class:5", "--method", "hirescam,gradcam"]
    shown = json.loads(distcam(*asked, "--layer", "layer2,layer4", "--out", figure, "--json"))
    expected = [("hirescam", "layer2"), ("hirescam", "layer4"), ("gradcam", "layer2"), ("gradcam", "layer4")]
    assert [(each["method"], each["layer"]) for each in shown[0]["maps"]] == expected
    distcam(*asked, "--layer", "layer2,layer4", "--out", arrays)
    with np.load(arrays) as written:
        sides = {name: written[f"maps_{name}"].shape[-1] for name in ("gradcam@layer2", "gradcam@layer4")}
    assert sides["gradcam@layer2"] == 4 * sides["gradcam@layer4"]
    with Image.open(figure) as image:
        assert image.width > 4 * image.height  # the image and four maps


def test_a_constant_map_is_a_warning_and_no_nan(picture, tmp_path):
    network = load_network("lraspp_mobilenet_v3_large", weights="random")
    transform = network.transform.adapted(size=64, fit="squash")
    with torch.no_grad():
        predicted = network.model(transform.normalise(transform(read_image(picture))[None]))["out"].argmax(1)
    absent = next(number for number in range(21) if not bool((predicted == number).any()))
    options = ["--target", f"segment:{absent}@predicted", "--out", str(tmp_path / "x.png"), "--json"]
    result = CliRunner().invoke(app, ["explain", str(picture), *SEGMENTER, *options])
    assert "constant and explains nothing" in result.stderr
    (found,) = json.loads(result.stdout)
    assert found["score"] == 0
    assert found["maps"][0]["is_constant"]
    assert found["maps"][0]["lowest"] == found["maps"][0]["highest"] == 0


def test_classes_are_found_by_number_or_any_spelling():
    names = ["tabby", "Egyptian cat", "crane", "CD player", "crane"]
    for asked, number in (("3", 3), ("cd_player", 3), ("EGYPTIAN-CAT", 1), (" tabby ", 0)):
        assert find_class(asked, names, 5) == number
    for asked, message in (
        ("crane", r"2 classes are called 'crane'; give one of the numbers \[2, 4\]"),
        ("cat", "no class 'cat'; nearest: 'Egyptian cat'"),
        ("taby", "nearest: 'tabby'"),
        ("5", "class 5 does not exist; there are 5, from 0 to 4"),
    ):
        with pytest.raises(InputError, match=message):
            find_class(asked, names, 5)
    with pytest.raises(InputError, match="not known"):
        find_class("tabby", [], 5)


def test_weights_from_a_file_say_how_many_classes_there_are_and_a_list_names_them(picture, tmp_path):
    network = load_network("resnet18", weights="random", n_classes=3, seed=4)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in network.model.state_dict().items()}},
        tmp_path / "w.pth",
    )
    (tmp_path / "names.txt").write_text("left\nright\nnone of these\n")
    loaded = load_network("resnet18", weights=tmp_path / "w.pth")
    assert (loaded.n_classes, loaded.classes) == (3, ())
    arguments = ["explain", picture, "--encoder", "resnet18", "--weights", tmp_path / "w.pth", "--image-size", "64"]
    found = json.loads(
        distcam(*arguments, "--target", "class:None of these", "--classes", tmp_path / "names.txt", "--json")
    )
    assert found[0]["target"] == "2 none of these"
    with pytest.raises(InputError, match="2 names of classes were given, but resnet18 with these weights has 3"):
        load_network("resnet18", weights=tmp_path / "w.pth", classes=["a", "b"])
    with pytest.raises(WeightsError, match="hardly a name in it fits"):
        load_network("resnet50", weights=tmp_path / "w.pth")


# ------------------------------------------------------------------------------------------------------------ segments


def test_places_on_the_picture_are_pixels_of_the_network(picture, tmp_path):
    network = load_network("lraspp_mobilenet_v3_large", weights="random")
    transform = network.transform.adapted(size=64, fit="squash")  # a picture of 96×64 is squashed to 64×64
    pixels = transform.normalise(transform(read_image(picture))[None])
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[10:30, 20:40] = True
    drawn = np.zeros((64, 96), dtype=np.uint8)
    drawn[10:30, 30:60] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    for place, where in (
        ("all", "all"),
        ("box:30,10,60,30", Box(20, 10, 40, 30)),
        (f"mask:{tmp_path / 'mask.png'}", mask),
        ("point:31,12", (12, 20)),
    ):
        printed = distcam("explain", picture, *SEGMENTER, "--target", f"segment:cat@{place}", "--json")
        (found,) = json.loads(printed)
        expected = explain_image(network.model, pixels, target=PixelScore(8, where), layer=network.layer)
        assert found["score"] == pytest.approx(expected.scores.item(), rel=1e-4)
        assert found["maps"][0]["highest"] == pytest.approx(float(expected.maps.max()), rel=1e-3)
    for place in ("predicted", "component", "component:50,20"):
        distcam("explain", picture, *SEGMENTER, "--target", f"segment:8@{place}", "--method", "layercam")


def test_every_method_explains_a_segment(picture, tmp_path):
    fast = "cam,caam,gradcam,gradcam++,xgradcam,layercam,hirescam,segxrescam,eigencam,fullgrad,distcam"
    distcam("explain", picture, *SEGMENTER, "--target", "segment:3@all", "--method", fast, "--out", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        maps = {name: arrays[name] for name in arrays.files if name.startswith("maps_")}
    assert len(maps) == 11
    assert all(np.isfinite(each).all() for each in maps.values())


# ------------------------------------------------------------------------------------------------------------- matches


@pytest.mark.slow
def test_faithfulness_stands_beside_the_class_agnostic_map_and_a_random_order(picture):
    given = ("explain", picture, *ENCODER, "--target", f"match:{picture}", "--method", "distcam,hirescam")
    (found,) = json.loads(distcam(*given, "--faithfulness", "--json"))
    assert list(found["faithfulness"]) == ["distcam", "hirescam", "caam", "random"]
    assert found["faithfulness"]["random"].keys() == {"insertion_minus_deletion", "road"}
    assert "ROAD" in distcam(*given, "--faithfulness")
    assert "faithfulness" not in json.loads(distcam(*given, "--json"))[0]


def test_a_picture_is_explained_against_another_one(photos, tmp_path):
    one, other = sorted(photos.rglob("*.jpg"))[:2]
    arguments = ["explain", one, *ENCODER, "--target", f"match:{other}", "--method", "distcam,gradcam", "--json"]
    (found,) = json.loads(distcam(*arguments, "--option", "weighting=dot", "--out", tmp_path / "x.npz"))
    assert found["score"] <= 1
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["maps_distcam"].sum() == pytest.approx(found["score"], abs=1e-5)
    (by_distance,) = json.loads(distcam(*arguments, "--metric", "l2"))
    assert by_distance["score"] < 0


def test_a_pair_is_explained_on_both_images(photos, tmp_path):
    one, other = sorted(photos.rglob("*.jpg"))[:2]
    arguments = ["explain", one, *ENCODER, "--target", f"match:{other}", "--both", "--lines"]
    (found,) = json.loads(distcam(*arguments, "--json", "--out", tmp_path / "x.npz"))
    assert found["match"] == str(other)
    assert "Lines: " in found["words"][-1]
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["reference_maps"].shape == arrays["query_maps"].shape
    for name in ("why.html", "why.png"):
        assert f"written: {tmp_path / name}" in distcam(*arguments, "--out", tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_a_picture_is_explained_against_a_prototype_of_a_gallery(gallery, photos):
    file = next(photos.rglob("*.jpg"))
    arguments = ["explain", file, "--gallery", gallery, "--json"]
    (nearest,) = json.loads(distcam(*arguments, "--target", "prototype"))
    label = nearest["target"].removeprefix("prototype of ")
    (named,) = json.loads(distcam(*arguments, "--target", f"prototype:{label}", "--option", "weighting=dot_centered"))
    assert named["score"] == pytest.approx(nearest["score"])


# --------------------------------------------------------------------------------------------------------------- query


def test_a_query_for_a_region_with_a_contrast_and_a_point(gallery, photos, tmp_path):
    file = next(photos.rglob("*.jpg"))
    label = file.parent.name
    arguments = ["query", gallery, file, "-k", 2, "--region", "5,5,50,40"]
    distcam(*arguments, "--explain", tmp_path / "maps", "--against", f"label:{label}", "--versus", "rank:2")
    with np.load(next((tmp_path / "maps").glob("*.npz"))) as arrays:
        assert arrays["references"].tolist() == [f"prototype of {label}"]
        assert arrays["region_weights"].shape == (4, 4)
    options = ["--explain", str(tmp_path / "points"), "--point", "10,20", "--scale", "shared", "--json"]
    result = CliRunner().invoke(app, [*map(str, arguments), *options])
    assert result.stderr.count("residual") == 2
    assert len(json.loads(result.stdout)[0]["matches"]) == 2
    assert len(list((tmp_path / "points").glob("*-point.png"))) == 2
    distcam(*arguments[:-2], "--region", f"mask:{file}", "--explain", tmp_path / "why.html", "--versus", label)
    assert (tmp_path / "why.html").is_file()


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*CLASSIFIER, "--target", "klass:5"], "--target 'klass:5' is not known; expected class:CAT"),
        ([*CLASSIFIER, "--target", "class:tabi"], "no class 'tabi'; nearest: 'tabby'"),
        (
            [*CLASSIFIER, "--target", "class:5", "--layer", "layer2,layer4", "--faithfulness"],
            "--faithfulness measures the maps of one layer, got 2 of --layer",
        ),
        ([*CLASSIFIER, "--target", "class:5", "--layer", "layer5"], "no layer 'layer5'; nearest: 'layer4', "),
        ([*CLASSIFIER, "--target", "class:5", "--method", "gradcan"], "'gradcan' is not known; nearest: 'gradcam'"),
        ([*CLASSIFIER, "--target", "class:5", "--option", "window=3"], "takes 'window'; they take relu"),
        ([*CLASSIFIER, "--target", "class:5", "--option", "window"], "should be name=value"),
        ([*CLASSIFIER, "--target", "class:5", "--out", "x.pdf"], "--out writes .png, .jpg, .html or .npz, not x.pdf"),
        ([*CLASSIFIER, "--target", "class:5", "--metric", "l2"], "--metric is not used by the target class"),
        ([*CLASSIFIER, "--target", "segment:5"], "needs a torchvision segmenter, and resnet18 is none"),
        (["--encoder", "resnet18", "--target", "class:5"], "--target class needs --encoder NAME and --weights"),
        ([*SEGMENTER, "--target", "segment:"], "needs a value"),
        ([*SEGMENTER, "--target", "segment:cat@box:90,0,200"], "expected x1,y1,x2,y2 in pixels of the image"),
        ([*SEGMENTER, "--target", "segment:cat@box:100,0,200,9"], "lies outside the image"),
        ([*SEGMENTER, "--target", "segment:cat@point:96,2"], "the point (96.0, 2.0) lies outside"),
        ([*SEGMENTER, "--target", "segment:cat@blob"], "the place 'blob' is not known"),
        ([*ENCODER, "--target", "prototype:cat"], "--target prototype needs --gallery"),
        (["--encoder", "vit_b_32", "--weights", "random", "--image-size", "64", "--target", "class"], "224×224 pix"),
        (["--target", "match:x.jpg"], "needs --encoder or --gallery"),
        ([*ENCODER, "--target", "match:nowhere.jpg"], "nowhere.jpg"),
        ([*ENCODER, "--target", "class", "--both"], "--both is for --target match:OTHER.jpg and --encoder"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2(picture, monkeypatch, capsys, arguments, message):
    assert message in fails(monkeypatch, capsys, "explain", picture, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--region", "5,5,1,1"], "the box 5,5,1,1 is empty"),
        (["--region", "500,5,501,9"], "lies outside the image"),
        (["--versus", "rank:2"], "add --explain OUT.html or a folder"),
        (["--explain", "x.html", "--point", "1,2"], "give --explain a folder"),
    ],
)
def test_a_query_that_cannot_be_explained_says_why(gallery, photos, monkeypatch, capsys, arguments, message):
    file = next(photos.rglob("*.jpg"))
    assert message in fails(monkeypatch, capsys, "query", gallery, file, *arguments)


@pytest.mark.parametrize("place", ["point:3,4", "box:1,1,9,9", "component:3,4"])
def test_a_place_on_a_photograph_that_is_not_read_whole_is_refused_not_shifted(
    photos, monkeypatch, capsys, place
) -> None:
    photo = next(photos.rglob("*.jpg"))
    limit = pixel_limit()
    try:
        set_pixel_limit(2000)  # a JPEG of up to four times as many pixels is reduced
        said = fails(monkeypatch, capsys, "explain", photo, *SEGMENTER, "--target", f"segment:3@{place}")
    finally:
        set_pixel_limit(limit)
    assert "64x64" in said or "4096" in said or "4,096" in said


def test_the_help_has_an_example():
    assert "distcam explain cat.jpg" in " ".join(distcam("explain", "--help").split())
