"""Every method for every kind of target, what has to hold between them, and the result's flags."""

from __future__ import annotations

import doctest

import jaxtyping
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import distcam.explain.engine as engine
from distcam.encoders import Encoder
from distcam.encoders.heads import Linear
from distcam.errors import InputError, ShapeError
from distcam.explain import (
    METHODS,
    WEIGHTINGS,
    ActivationMaps,
    ClassScore,
    PixelScore,
    Similarity,
    capture,
    channel_weights,
    dist_cam,
    explain_image,
    fold,
    normalise,
    upsample,
)
from distcam.explain.methods.full_grad import full_gradient
from distcam.explain.methods.lift_cam import lift_contributions
from distcam.images import Transform


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run-time shape checks off, as for users, so that the library's own messages are seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(net: nn.Module) -> nn.Module:
    """Weights from a fixed seed, statistics as after some training, in float64 and evaluation mode."""
    net = net.double().eval()
    with torch.no_grad():
        for i, (name, values) in enumerate(net.state_dict().items()):
            if values.is_floating_point():
                noise = drawn(*values.shape, seed=i)
                values.copy_(noise.abs() + 0.5 if "var" in name else noise / 3)
    return net


class Classifier(nn.Module):
    """Two convolutions, global average pooling, and a linear layer; without the layer it embeds."""

    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.features = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.head: nn.Module = nn.Linear(6, n_classes) if n_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.stem(x)).mean((-2, -1)))


class Segmenter(nn.Module):
    """A U-Net of two levels, whose last layer is a 1×1 convolution."""

    def __init__(self, n_classes: int = 3, *, bias: bool = True) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1, bias=bias), nn.ReLU())
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, bias=bias)
        self.merge = nn.Sequential(nn.Conv2d(8, 5, 3, padding=1, bias=bias), nn.ReLU())
        self.classify = nn.Conv2d(5, n_classes, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        return self.classify(self.merge(torch.cat([fine, self.up(self.deep(fine))], 1)))


IMAGES = drawn(2, 3, 8, 6, seed=9)
CASES = {
    "class": (Classifier(), "features", ClassScore(torch.tensor([[0, 2], [1, 1]]))),
    "segment": (Segmenter(), "deep", PixelScore(torch.tensor([[0, 2], [1, 1]]), "predicted")),
    "match": (Classifier(0), "features", Similarity(drawn(2, 2, 6, seed=4), "cosine")),
}
CASES = {name: (filled(net), layer, target) for name, (net, layer, target) in CASES.items()}


# ------------------------------------------------------------------------------------------------------ the full table


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_every_kind_of_target(method: str, kind: str) -> None:
    net, layer, target = CASES[kind]
    found = explain_image(net, IMAGES, target=target, method=method, layer=layer)
    size = (8, 6) if method == "fullgrad" else (4, 3)
    assert found.maps.shape == (2, 2, *size)
    assert found.maps.isfinite().all()
    assert len(found) == 2
    assert (found.method, found.target) == (method, target)
    assert found.layer == ("" if method == "fullgrad" else layer)
    torch.testing.assert_close(found.scores, target.fix(net(IMAGES))(net(IMAGES)).detach())


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_images_and_questions_is_answered_one_by_one(method: str, kind: str) -> None:
    net, layer, target = CASES[kind]
    together = explain_image(net, IMAGES, target=target, method=method, layer=layer)
    for image in range(2):
        if isinstance(target, Similarity):
            alone = Similarity(target.references[image, 1], target.metric)
        else:
            given = target.index if isinstance(target, ClassScore) else target.category
            single = given[image, 1:]
            alone = ClassScore(single) if isinstance(target, ClassScore) else PixelScore(single, target.pixels)
        one = explain_image(net, IMAGES[image : image + 1], target=alone, method=method, layer=layer)
        torch.testing.assert_close(together.maps[image, 1], one.maps[0, 0])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_of_dist_cam_goes_through_the_same_door(weighting: str) -> None:
    net, layer, target = CASES["match"]
    mean = functional.normalize(drawn(6), dim=0) / 2
    found = explain_image(net, IMAGES, target=target, method="distcam", layer=layer, weighting=weighting, mean=mean)
    feature_map = net.features(net.stem(IMAGES)).detach()
    expected = dist_cam(feature_map, target.references, metric="cosine", weighting=weighting, mean=mean)
    torch.testing.assert_close(found.maps, expected)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("Seg-HiRes-Grad-CAM", "hirescam"),
        ("Seg-Grad-CAM", "gradcam"),
        ("Seg-XRes-CAM", "segxrescam"),
        ("seg_eigen_cam", "eigencam"),
        ("Grad-CAM++", "gradcam++"),
        ("Layer-CAM", "layercam"),
        ("DIST_CAM", "distcam"),
    ],
)
def test_methods_are_known_by_the_names_of_their_papers(name: str, method: str) -> None:
    net, layer, target = CASES["segment"]
    assert explain_image(net, IMAGES, target=target, method=name, layer=layer).method == method


# ---------------------------------------------------------------------------------- identities: GAP and a linear layer


def test_the_mean_of_cam_is_the_class_score_without_bias() -> None:
    net, layer, target = CASES["class"]
    found = explain_image(net, IMAGES, target=target, method="cam", layer=layer)
    torch.testing.assert_close(found.maps.mean((-2, -1)), found.scores - net.head.bias.detach()[target.index])


def test_cam_is_the_classifiers_weights_on_the_feature_map() -> None:
    net, layer, _ = CASES["class"]
    found = explain_image(net, IMAGES, target=ClassScore(2), method="cam", layer=layer)
    expected = torch.einsum("k,bkhw->bhw", net.head.weight[2], net.features(net.stem(IMAGES)))
    torch.testing.assert_close(found.maps[:, 0], expected.detach())


@pytest.mark.parametrize("kind", ["class", "match"])
def test_behind_average_pooling_hires_cam_is_grad_cam_and_cam(kind: str) -> None:
    net, layer, target = CASES[kind]
    hires, grad, cam = (
        explain_image(net, IMAGES, target=target, method=m, layer=layer).maps for m in ("hirescam", "gradcam", "cam")
    )
    torch.testing.assert_close(hires, grad)
    torch.testing.assert_close(hires, cam.clamp(min=0) / 12)


def test_behind_average_pooling_ablation_and_lift_measure_the_linear_share() -> None:
    net, layer, target = CASES["class"]
    pooled = net.features(net.stem(IMAGES)).mean((-2, -1)).detach()
    with capture(net, layer) as run:
        score = target.fix(run(IMAGES))
        contributions = lift_contributions(run, score).sum((-2, -1))
    torch.testing.assert_close(contributions, net.head.weight.detach()[target.index] * pooled[:, None])
    lift = explain_image(net, IMAGES, target=target, method="liftcam", layer=layer)
    ablation = explain_image(net, IMAGES, target=target, method="ablationcam", layer=layer)
    torch.testing.assert_close(ablation.maps, lift.maps / ablation.scores.abs()[..., None, None])


# ---------------------------------------------------------------------------------------------- identities: similarity


def test_the_dot_map_sums_to_the_cosine_and_the_cosines_grad_cam_to_0() -> None:
    net, layer, target = CASES["match"]
    dot = explain_image(net, IMAGES, target=target, method="distcam", layer=layer, weighting="dot")
    torch.testing.assert_close(dot.maps.sum((-2, -1)), dot.scores)
    grad = explain_image(net, IMAGES, target=target, method="gradcam", layer=layer, relu=False)
    torch.testing.assert_close(grad.maps.sum((-2, -1)), torch.zeros(2, 2, dtype=torch.float64))
    assert grad.maps.abs().max() > 1e-3


def test_autograd_agrees_with_the_closed_form_of_the_cosines_grad_cam() -> None:
    net, layer, target = CASES["match"]
    autograd = explain_image(net, IMAGES, target=target, method="gradcam", layer=layer, relu=False)
    closed = explain_image(net, IMAGES, target=target, method="distcam", layer=layer, weighting="gradcam_cos")
    torch.testing.assert_close(autograd.maps, closed.maps)


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_autograd_agrees_with_the_closed_forms_of_other_metrics(metric: str) -> None:
    net, layer, target = CASES["match"]
    references = target.references
    feature_map = net.features(net.stem(IMAGES)).detach()
    q = feature_map.mean((-2, -1))[:, None]
    weights = references if metric == "dot" else (references - q) / (references - q).norm(dim=-1, keepdim=True)
    target = Similarity(references, metric)
    found = explain_image(net, IMAGES, target=target, method="hirescam", layer=layer, relu=False)
    torch.testing.assert_close(found.maps, torch.einsum("bmk,bkhw->bmhw", weights / 12, feature_map))


@pytest.mark.parametrize("metric", ["cosine", "l2", "l1", "dot"])
def test_a_match_with_itself_is_explained_by_the_class_agnostic_map(metric: str) -> None:
    net, layer, _ = CASES["match"]
    target = Similarity(net(IMAGES).detach()[:, None], metric)
    found = explain_image(net, IMAGES, target=target, method="distcam", layer=layer)
    agnostic = explain_image(net, IMAGES, target=target, method="distcam", layer=layer, weighting="caam")
    torch.testing.assert_close(found.maps, agnostic.maps)
    caam = explain_image(net, IMAGES, target=target, method="caam", layer=layer)
    torch.testing.assert_close(normalise(found.maps), normalise(caam.maps))


def test_dist_cam_of_a_class_takes_the_classifiers_row_as_its_reference() -> None:
    net, layer, target = CASES["class"]
    found = explain_image(net, IMAGES, target=target, method="distcam", layer=layer)
    feature_map = net.features(net.stem(IMAGES)).detach()
    torch.testing.assert_close(found.maps, dist_cam(feature_map, net.head.weight.detach()[target.index]))


@pytest.mark.parametrize("pooling", ["gap", "gem"])
def test_an_encoder_is_explained_in_the_space_that_is_searched(pooling: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder.load(
        "conv4", weights="random", transform=Transform(32), pooling=pooling, head=Linear(64, 7)
    ).eval()
    x = drawn(2, 3, 32, 32).float()
    references = drawn(3, 7).float()
    found = explain_image(encoder, x, target=Similarity(references), method="distcam", weighting="dot")
    assert found.layer == "backbone"
    torch.testing.assert_close(found.maps.sum((-2, -1)), found.scores, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        response = fold(encoder(x).feature_map, pooling=encoder.pooling, head=encoder.head).map
    dist = explain_image(encoder, x, target=Similarity(references), method="distcam", tau=0.1)
    expected = dist_cam(response, references.expand(2, -1, -1), tau=0.1)
    torch.testing.assert_close(dist.maps, expected, rtol=1e-4, atol=1e-6)
    assert channel_weights(response.mean((-2, -1)), references.expand(2, -1, -1)).shape == (2, 3, 7)


# -------------------------------------------------------------------------------------------- identities: segmentation


def test_before_a_1x1_head_seg_hires_shows_the_pixel_set_and_seg_grad_shows_all() -> None:
    net = filled(Segmenter(bias=False))
    mask = torch.zeros(8, 6, dtype=torch.bool)
    mask[2:5, 1:4] = True
    target = PixelScore(1, mask)
    plane = net(IMAGES)[:, 1].detach()
    hires = explain_image(net, IMAGES, target=target, method="seg-hires-cam", layer="merge", relu=False).maps[:, 0]
    torch.testing.assert_close(hires, plane * mask)
    grad = explain_image(net, IMAGES, target=target, method="seg-grad-cam", layer="merge", relu=False).maps[:, 0]
    torch.testing.assert_close(grad, plane * 9 / 48)
    whole = [
        explain_image(net, IMAGES, target=PixelScore(1, "all"), method=m, layer="merge").maps
        for m in ("hirescam", "gradcam")
    ]
    torch.testing.assert_close(*whole)


def test_seg_hires_of_a_decoder_without_biases_sums_to_the_score() -> None:
    net = filled(Segmenter(bias=False))
    found = explain_image(net, IMAGES, target=PixelScore(1, "all"), layer="down", relu=False)
    torch.testing.assert_close(found.maps.sum((-2, -1)), found.scores)


def test_windows_reach_from_seg_hires_to_seg_grad() -> None:
    net, layer, target = CASES["segment"]

    def maps(method: str, **options: object) -> Tensor:
        return explain_image(net, IMAGES, target=target, method=method, layer=layer, **options).maps

    torch.testing.assert_close(maps("segxrescam", window=1), maps("hirescam"))
    torch.testing.assert_close(maps("segxrescam", window=1, pooling="max"), maps("hirescam"))
    torch.testing.assert_close(maps("segxrescam"), maps("gradcam"))


def test_an_empty_set_of_pixels_gives_flagged_maps_of_zeros() -> None:
    net, layer, _ = CASES["segment"]
    nothing = PixelScore(1, torch.zeros(8, 6, dtype=torch.bool))
    for method in ("gradcam", "hirescam", "gradcam++", "xgradcam", "layercam", "ablationcam", "liftcam", "fullgrad"):
        found = explain_image(net, IMAGES, target=nothing, method=method, layer=layer)
        assert found.is_constant.all()
        assert (found.maps == 0).all()


# --------------------------------------------------------------------------------------------------- the slow versions


@pytest.mark.parametrize("kind", CASES)
def test_ablation_cam_is_a_loop_over_channels(kind: str) -> None:
    net, layer, target = CASES[kind]
    feature_map = net.get_submodule(layer)
    score = target.fix(net(IMAGES))
    y = score(net(IMAGES))
    expected = torch.zeros(2, 2, 4, 3, dtype=torch.float64)
    for channel in range(6):
        kept: list[Tensor] = []

        def silence(
            _m: nn.Module, _i: object, out: Tensor, channel: int = channel, kept: list[Tensor] = kept
        ) -> Tensor:
            kept.append(out.detach())
            return torch.cat([out[:, :channel], 0 * out[:, channel : channel + 1], out[:, channel + 1 :]], 1)

        handle = feature_map.register_forward_hook(silence)
        without = score(net(IMAGES))
        handle.remove()
        expected += ((y - without) / y.abs()).detach()[..., None, None] * kept[0][:, None, channel]
    for batch_size in (1, 5, 32):
        found = explain_image(net, IMAGES, target=target, method="ablationcam", layer=layer, batch_size=batch_size)
        torch.testing.assert_close(found.maps, expected.clamp(min=0))


@pytest.mark.parametrize(("kind", "n_images_before"), [("class", 2 + 2 + 1 + 2 * 2), ("segment", 2 + 2 + 1 + 2 * 6)])
def test_ablation_cam_runs_what_lies_before_the_layer_only_where_it_must(kind: str, n_images_before: int) -> None:
    net, layer, target = CASES[kind]
    seen: list[int] = []
    handle = (net.stem if kind == "class" else net.down).register_forward_hook(lambda _m, i, _o: seen.append(len(i[0])))
    explain_image(net, IMAGES, target=target, method="ablationcam", layer=layer, batch_size=4)
    handle.remove()
    assert sum(seen) == n_images_before  # the images, a trial of 2 rows and of 1, then chunks of 4 and 2 for each image


@pytest.mark.parametrize("kind", CASES)
def test_score_cam_is_a_loop_over_channels(kind: str) -> None:
    net, layer, target = CASES[kind]
    with capture(net, layer) as run:
        score = target.fix(run(IMAGES))
        activations = run.activations
    seen = [
        score(net(IMAGES * normalise(upsample(activations[:, channel], (8, 6)))[:, None])).detach()
        for channel in range(6)
    ]
    weights = torch.stack(seen, -1).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    found = explain_image(net, IMAGES, target=target, method="scorecam", layer=layer, batch_size=5)
    torch.testing.assert_close(found.maps, torch.einsum("bmk,bkhw->bmhw", weights, activations).clamp(min=0))


@pytest.mark.parametrize("kind", ["class", "segment"])
def test_full_gradients_are_complete(kind: str) -> None:
    net, _, target = CASES[kind]
    gradient = full_gradient(net, IMAGES, target)
    total = gradient.elsewhere + sum(part.sum((-3, -2, -1)) for part in gradient.maps)
    torch.testing.assert_close(total, gradient.scores)


def test_biases_that_have_no_part_in_the_score_contribute_nothing() -> None:
    class Auxiliary(Classifier):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            main = self.features(self.stem(x))
            return {"aux": self.head(main.mean((-2, -1))), "out": main}

    target = PixelScore(torch.tensor([[0, 2]]), "all")
    gradient = full_gradient(filled(Auxiliary()), IMAGES, target)
    torch.testing.assert_close(sum(part.sum((-3, -2, -1)) for part in gradient.maps), gradient.scores)
    assert (gradient.elsewhere == 0).all()


@pytest.mark.parametrize("norm", ["tokens", "maps"])
def test_layer_norms_keep_both_decompositions_honest(norm: str) -> None:
    class LayerNorm2d(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
            self.norm = LayerNorm2d(5) if norm == "maps" else nn.LayerNorm(5)
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = self.norm(x) if norm == "maps" else self.norm(x.movedim(1, -1)).movedim(-1, 1)
            return self.head(x.mean((-2, -1)))

    net, target = filled(Tokens()), ClassScore(torch.tensor([[0, 2]]))
    with capture(net, "stem") as run:
        score = target.fix(run(IMAGES))
        contributions = lift_contributions(run, score).sum((-3, -2, -1))
        empty = run.replay(torch.arange(2), lambda maps: maps.zero_())
    torch.testing.assert_close(contributions, score(net(IMAGES).detach()) - score(empty))

    gradient = full_gradient(net, IMAGES, target)
    assert [tuple(part.shape[2:]) for part in gradient.maps] == [(3, 8, 6), (5, 8, 6), (5, 8, 6)]
    share = net.norm.bias.detach()[:, None, None] * net.head.weight.detach()[[0, 2], :, None, None] / 48
    torch.testing.assert_close(gradient.maps[2], share.expand(2, 2, 5, 8, 6))


def test_deep_lift_goes_through_gem_pooling_and_operators() -> None:
    class Powers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.exponent = nn.Parameter(torch.tensor(3.0))
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu_().clamp(min=1e-3) ** self.exponent
            return x.mean((-2, -1)).pow(1 / 3) * self.scale.exp()

    net = filled(Powers())
    nn.init.constant_(net.exponent, 3.0)
    with capture(net, "stem") as run:
        score = ClassScore(torch.tensor([[0, 3]])).fix(run(IMAGES))
        contributions = lift_contributions(run, score).sum((-3, -2, -1))
        empty = run.replay(torch.arange(2), lambda maps: maps.zero_())
    torch.testing.assert_close(contributions, score(net(IMAGES).detach()) - score(empty.detach()))


@pytest.mark.parametrize("metric", [None, "dot", "l2", "l1", "cosine"])
@pytest.mark.parametrize("layer", ["stem", "stem.0", "features.0", "features"])
def test_deep_lift_contributions_are_complete(layer: str, metric: str | None) -> None:
    net = filled(Classifier(5))
    target = ClassScore(torch.tensor([[0, 4]])) if metric is None else Similarity(drawn(2, 5, seed=3), metric)
    with capture(net, layer) as run:
        score = target.fix(run(IMAGES))
        contributions = lift_contributions(run, score).sum((-3, -2, -1))
        empty = run.replay(torch.arange(2), lambda maps: maps.zero_())
    output = net(IMAGES).detach()
    if metric == "cosine":  # the length is held: what is complete is the dot product with the unit reference
        score = Similarity(functional.normalize(target.references, dim=-1), "dot").fix(output)
        length = output.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(contributions, (score(output) - score(empty)) / length)
    else:
        torch.testing.assert_close(contributions, score(output) - score(empty))


# ------------------------------------------------------------------------------------------------- flags and messages


def test_doctests() -> None:
    assert doctest.testmod(engine).failed == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_image_is_never_nan(method: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.constant_(net[0].bias, 1.0)
    x = torch.zeros(1, 3, 4, 4)
    for target in (ClassScore(), Similarity(torch.ones(4))):
        found = explain_image(net, x, target=target, method=method, layer="1")
        assert found.maps.isfinite().all()
        assert found.is_constant.all() or method == "eigencam"
        if method == "eigencam":
            assert found.maps.abs().max() < 1e-6


@pytest.mark.usefixtures("production")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hirecam"}, "method='hirecam' is not known; nearest: 'hirescam'"),
        ({"method": "cam", "relu": False}, "CAM takes no option 'relu'; it takes no options"),
        ({"method": "segxrescam", "windw": 2}, "Seg-XRes-CAM takes no option 'windw'; it takes window, pooling, relu"),
        ({"method": "scorecam", "batch_size": 0}, "batch_size=0"),
        ({"layer": "featurs"}, "no layer 'featurs'; nearest: 'features'"),
        ({"layer": None}, "name the layer of Classifier to look at .*'features.1'"),
        ({"method": "distcam", "layer": "stem"}, "the mean over the map of layer 'stem' is not the vector"),
        ({"method": "distcam", "weighting": "dot_centered"}, "needs `mean`"),
    ],
)
def test_what_cannot_be_done_is_said(options: dict[str, object], message: str) -> None:
    net, layer, target = CASES["match"]
    with pytest.raises(InputError, match=message):
        explain_image(net, IMAGES, target=target, **{"layer": layer, **options})


@pytest.mark.usefixtures("production")
def test_counts_that_differ_are_refused_before_any_map_is_made() -> None:
    net, layer, _ = CASES["class"]
    with pytest.raises(ShapeError, match=r"2 images need classes of shape .*got \(3,\)"):
        explain_image(net, IMAGES, target=ClassScore(torch.tensor([0, 1, 2])), layer=layer)
    with pytest.raises(ShapeError, match="not of the same images and questions"):
        ActivationMaps(
            maps=torch.zeros(2, 3, 4, 4),
            is_constant=torch.zeros(2, 2, dtype=torch.bool),
            scores=torch.zeros(2, 3),
            method="cam",
            layer=layer,
            target=ClassScore(),
        )
