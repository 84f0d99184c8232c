"""Exact statements about maps for pixels: heads of 1×1, decoders without biases, windows, batches, and empty sets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from commands import distcam, fails
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distcam.explain import METHODS, ComponentAt, PixelScore, explain_image
from distcam.images import Box, Transform, read_image
from distcam.segmentation.segmenter.segmenter import build_segmenter

TARGETLESS = {"caam", "eigencam"}  # the same whatever is asked


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(make: type[nn.Module] | object, *arguments: object, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(*arguments).double().eval()


class OneByOne(nn.Module):
    """Features and a 1×1 head with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Decoder(nn.Module):
    """Piecewise linear behind `deep`: convolutions, ReLU, pooling, a skip connection, and both ways to enlarge."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1, bias=bias), nn.LeakyReLU(0.1))
        self.up = nn.Sequential(nn.Conv2d(16, 6, 3, padding=1, bias=bias), nn.ReLU())
        self.head = nn.Conv2d(6, 3, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.deep(self.stem(x))
        wide = nn.functional.interpolate(self.down(deep), scale_factor=2, mode="bilinear", align_corners=False)
        maps = self.head(self.up(torch.cat([deep, wide], 1)))
        return nn.functional.interpolate(maps, scale_factor=2, mode="nearest")


def places(rows: int, columns: int) -> dict[str, object]:
    return {
        "all": "all",
        "predicted": "predicted",
        "component": "component",
        "at a point": ComponentAt(rows // 2, columns // 2),
        "box": Box(1, 2, columns - 3, rows - 1),
        "point": (rows // 3, columns // 2),
        "mask": drawn(rows, columns, seed=9) > 0,
    }


def set_of(pixels: object, logits: Tensor, category: int) -> Tensor:
    """The set as a mask, read off the target's own gradient: 1 where a logit counts."""
    leaf = logits.detach().requires_grad_()
    score = PixelScore(category, pixels).fix(leaf)(leaf)
    return torch.autograd.grad(score.sum(), leaf)[0][:, category]


def mapped(model: nn.Module, images: Tensor, target: PixelScore, method: str, layer: str, **options: object) -> Tensor:
    return explain_image(model, images, target=target, method=method, layer=layer, **options).maps


# -------------------------------------------------------------------------------------------------------- the 1×1 head


@pytest.mark.parametrize("place", places(8, 9))
def test_behind_a_1x1_head_seg_hires_is_the_rectified_logit_on_the_set_and_seg_grad_a_share_of_it_everywhere(place):
    model, images, category = seeded(OneByOne), drawn(2, 3, 8, 9, seed=1), 1
    pixels = places(8, 9)[place]
    logits = model(images).detach()
    chosen = set_of(pixels, logits, category)
    plain = logits[:, category] - model.head.bias[category].detach()
    target = PixelScore(category, pixels)
    hires = mapped(model, images, target, "seg-hires-grad-cam", "features")[:, 0]
    torch.testing.assert_close(hires, (plain * chosen).clamp(min=0))
    coarse = mapped(model, images, target, "seg-grad-cam", "features", relu=False)[:, 0]
    share = chosen.mean((1, 2), keepdim=True)  # |M| / n
    torch.testing.assert_close(coarse, share * plain)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(1, 7), columns=st.integers(1, 7))
def test_the_two_coincide_for_the_whole_image_behind_a_1x1_head(seed: int, rows: int, columns: int):
    model, images = seeded(OneByOne, seed=seed), drawn(1, 3, rows, columns, seed=seed)
    target = PixelScore(torch.tensor([[0, 3]]), "all")
    hires, coarse = (mapped(model, images, target, method, "features") for method in ("seghirescam", "seggradcam"))
    torch.testing.assert_close(hires, coarse)


def test_they_do_not_coincide_for_a_part_of_it():
    model, images = seeded(OneByOne), drawn(1, 3, 8, 8)
    target = PixelScore(0, Box(0, 0, 3, 3))
    hires, coarse = (mapped(model, images, target, name, "features", relu=False) for name in ("hirescam", "gradcam"))
    assert hires[..., 3:, :].eq(0).all()
    assert coarse[..., 3:, :].abs().max() > 0


# -------------------------------------------------------------------------------------------------------- completeness


@pytest.mark.parametrize("layer", ["stem", "deep", "up"])
@pytest.mark.parametrize("place", places(16, 20))
def test_the_signed_map_sums_to_the_score_where_no_layer_behind_it_has_a_bias(layer: str, place: str):
    """Of `stem` only if the convolutions behind it have none either; `deep` has one, whose part is missing."""
    model, images = seeded(Decoder), drawn(2, 3, 8, 10, seed=2)
    if layer == "stem":
        nn.init.zeros_(model.deep[0].bias)
    target = PixelScore(torch.tensor([[0, 2]]), places(16, 20)[place])
    found = explain_image(model, images, target=target, method="seghirescam", layer=layer, relu=False)
    torch.testing.assert_close(found.maps.sum((-2, -1)), found.scores)


def test_with_biases_the_sum_lacks_their_part():
    model, images = seeded(lambda: Decoder(bias=True)), drawn(1, 3, 8, 10, seed=2)
    found = explain_image(model, images, target=PixelScore(0, "all"), method="seghirescam", layer="deep", relu=False)
    lost = found.scores - found.maps.sum((-2, -1))
    layers = [model.down[1], model.up[0], model.head]
    gradients = torch.autograd.grad(model(images)[:, 0].sum(), [layer.bias for layer in layers])
    parts = [(gradient * layer.bias).sum() for gradient, layer in zip(gradients, layers, strict=True)]
    torch.testing.assert_close(lost[0, 0], torch.stack(parts).sum().detach())


@pytest.mark.parametrize("method", ["hirescam", "gradcam", "xgradcam"])
def test_disjoint_sets_add_up(method: str):
    model, images = seeded(Decoder, seed=3), drawn(1, 3, 8, 8, seed=3)
    left, right = Box(0, 0, 5, 16), Box(5, 0, 16, 16)
    parts = [mapped(model, images, PixelScore(1, box), method, "deep", relu=False) for box in (left, right)]
    torch.testing.assert_close(sum(parts), mapped(model, images, PixelScore(1, "all"), method, "deep", relu=False))


# ------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("place", places(16, 20))
def test_seg_xres_with_windows_of_1_is_seg_hires_and_with_one_window_seg_grad(place: str):
    model, images = seeded(Decoder, seed=4), drawn(2, 3, 8, 10, seed=4)
    target = PixelScore(1, places(16, 20)[place])
    for relu in (True, False):
        hires, coarse = (mapped(model, images, target, name, "deep", relu=relu) for name in ("hirescam", "gradcam"))
        for pooling in ("mean", "max"):
            fine = mapped(model, images, target, "seg-xres-cam", "deep", window=1, pooling=pooling, relu=relu)
            torch.testing.assert_close(fine, hires)
        for window in (None, 99):
            whole = mapped(model, images, target, "seg-xres-cam", "deep", window=window, relu=relu)
            torch.testing.assert_close(whole, coarse)


# ------------------------------------------------------------------------------------------------- batches, empty sets


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_with_several_classes_is_its_images_and_classes_one_by_one(method: str):
    model, images = seeded(Decoder, seed=5), drawn(2, 3, 6, 6, seed=5)
    classes = torch.tensor([[0, 2], [1, 0]])
    for pixels in ("predicted", "component", Box(2, 2, 9, 8), (5, 4)):
        together = mapped(model, images, PixelScore(classes, pixels), method, "deep")
        for i in range(2):
            for j in range(2):
                alone = mapped(model, images[i : i + 1], PixelScore(int(classes[i, j]), pixels), method, "deep")
                torch.testing.assert_close(together[i, j], alone[0, 0])


@pytest.mark.parametrize("method", METHODS)
def test_masks_of_their_own_for_each_image_and_class_are_asked_one_by_one(method: str):
    model, images = seeded(Decoder, seed=6), drawn(2, 3, 6, 6, seed=6)
    masks = drawn(2, 2, 12, 12, seed=7) > 0
    classes = torch.tensor([[0, 1]])
    together = mapped(model, images, PixelScore(classes, masks), method, "deep")
    for i in range(2):
        for j in range(2):
            target = PixelScore(j, masks[i, j])
            torch.testing.assert_close(together[i, j], mapped(model, images[i : i + 1], target, method, "deep")[0, 0])


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_set_has_the_score_0_and_a_finite_map_that_is_constant_where_it_depends_on_the_score(method: str):
    model, images = seeded(Decoder, seed=8), drawn(2, 3, 6, 6, seed=8)
    nothing = torch.zeros(12, 12, dtype=torch.bool)
    found = explain_image(model, images, target=PixelScore(0, nothing), method=method, layer="deep")
    assert found.scores.eq(0).all()
    assert found.maps.isfinite().all()
    if method not in TARGETLESS:
        assert found.is_constant.all()
        assert found.maps.eq(0).all()


# ------------------------------------------------------------------------------------------ segmenters of one's own


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory):
    """The files that `distcam segment train` would leave, with random weights."""
    segmenter = build_segmenter(
        "light", ("cat", "dog"), weights="random", transform=Transform(32, fit="squash"), options={"hidden": 8}
    )
    file = tmp_path_factory.mktemp("segmenter") / "segmenter.safetensors"
    segmenter.save(file)
    return segmenter, file


def test_a_segmenter_of_our_own_is_explained_at_every_place_as_in_python(own, photos, tmp_path):
    segmenter, file = own
    picture = sorted(photos.rglob("*.jpg"))[0]
    pixels = segmenter.transform.normalise(segmenter.transform(read_image(picture))[None])
    network = segmenter.network()
    with torch.no_grad():
        predicted = int(network.model(pixels)["out"].argmax(1)[0, 10, 20])
    name = network.classes[predicted]
    wanted = {  # 64 pixels of the picture are 32 of the input
        "all": "all",
        "predicted": "predicted",
        "component": "component",
        "component:41,21": ComponentAt(10, 20),
        "point:41,21": (10, 20),
        "box:10,20,50,60": Box(5, 10, 25, 30),
    }
    for place, pixels_asked in wanted.items():
        out = tmp_path / "maps.npz"
        given = file.parent if place == "all" else file  # by its folder too
        ask = ["explain", picture, "--encoder", given, "--target", f"segment:{name}@{place}", "--out", out, "--json"]
        (told,) = json.loads(distcam(*ask, "--method", "seg-hires-grad-cam,gradcam,caam"))
        assert told["target"].startswith(f"{predicted} {name}")
        with np.load(out) as arrays:
            for method in ("hirescam", "gradcam", "caam"):
                target = PixelScore(predicted, pixels_asked)
                expected = explain_image(network.model, pixels, target=target, method=method, layer=network.layer)
                np.testing.assert_allclose(arrays[f"maps_{method}"][0], expected.maps[0, 0].numpy(), atol=1e-6)


@pytest.mark.slow
def test_every_method_explains_a_segmenter_of_our_own(own, photos):
    picture = sorted(photos.rglob("*.jpg"))[0]
    (told,) = json.loads(
        distcam("explain", picture, "--encoder", own[1], "--target", "segment:dog@all", "--method", "all", "--json")
    )
    assert [maps["method"] for maps in told["maps"]] == list(METHODS)


def test_a_segmenter_of_our_own_brings_weights_and_classes(own, photos, tmp_path, monkeypatch, capsys):
    picture, file = sorted(photos.rglob("*.jpg"))[0], own[1]
    ask = ["explain", picture, "--encoder", file, "--target"]
    assert "leave --weights out" in fails(monkeypatch, capsys, *ask, "segment:cat", "--weights", "random")
    assert "no class 'cow'; nearest" in fails(monkeypatch, capsys, *ask, "segment:cow")
    gone = ["explain", picture, "--encoder", tmp_path / "no.safetensors", "--target", "segment:cat"]
    assert "no.safetensors" in fails(monkeypatch, capsys, *gone)
