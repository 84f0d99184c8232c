"""Agreement with independent code: pytorch-grad-cam, torchcam, and captum, wherever they mean the same.

pytorch-grad-cam returns maps that are rectified, scaled to [0, 1] and resized; ours go through its own scaling before
they are compared. Where it adds a constant to a denominator, the score is large enough for the constant not to show.
torchcam and captum return raw maps. Where a peer computes something else, the test says so; left out are

- torchcam's Grad-CAM++, which divides a copy, so its a_kij stays g²;
- captum's Grad-CAM on tokens, which averages gradients over the channels;
- captum's rule for maximum pooling right behind an activation function, which DeepLIFT loses; one step stands between.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from distcam.explain import ClassScore, PixelScore, Similarity, capture, explain_image
from distcam.explain.methods.full_grad import full_grad, full_gradient
from distcam.explain.methods.lift_cam import lift_contributions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("pytorch_grad_cam")
    torchcam = pytest.importorskip("torchcam.methods")
    captum = pytest.importorskip("captum.attr")
    from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, SemanticSegmentationTarget

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own

VIT_LAYER = "encoder.layers.encoder_layer_1.ln_1"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with random weights, which are the same each time, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make().eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.normal_(module.bias, std=0.1)
    return net


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.up = nn.Sequential(nn.Conv2d(14, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        return self.up(torch.cat([fine, nn.functional.interpolate(self.deep(fine), scale_factor=2)], 1))


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """Half of the blocks of the smallest ResNet: as many layers to name, in half the time."""
    blocks = torchvision.models.resnet.BasicBlock
    return built(lambda: torchvision.models.ResNet(blocks, [1, 1, 1, 1], num_classes=7))


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    def make() -> nn.Module:
        net = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=7)
        nn.init.normal_(net.heads.head.weight)
        return net

    return built(make)


def grid(tokens: Tensor) -> Tensor:
    """(b, 17, k) tokens as (b, k, 4, 4) without the class token, as the peers want to be told."""
    return tokens[:, 1:].mT.reshape(len(tokens), -1, 4, 4)


def as_displayed(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """What pytorch-grad-cam does to a map before it returns it: rectify, scale, resize, scale."""
    return scale_cam_image(scale_cam_image(maps.clamp(min=0).numpy(), size))


# One question for each of two images, in ours and in their words. The scores are large, for the peers' constants' sake.
SHAPES = {"resnet": (64, "layer3", None), "vit": (32, VIT_LAYER, grid)}
CLASSES = torch.tensor([2, 5])
REFERENCES = drawn(2, 7, seed=3)


def questions(kind: str) -> tuple[object, list[Callable[[Tensor], Tensor]]]:
    if kind == "class":
        ours = Similarity(1e4 * torch.eye(7)[CLASSES][:, None], "dot")  # the logit, ten thousand times
        return ours, [lambda out, c=c: 1e4 * out[c] for c in CLASSES]
    ours = Similarity(REFERENCES[:, None], kind)
    measure = {
        "cosine": lambda out, s: torch.cosine_similarity(out, s, dim=0),
        "l2": lambda out, s: -(out - s).norm(),
        "dot": lambda out, s: out @ s,
    }[kind]
    return ours, [partial(measure, s=s) for s in REFERENCES]


@pytest.fixture(params=SHAPES)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, str, Callable[[Tensor], Tensor] | None]:
    size, layer, reshape = SHAPES[request.param]
    return request.getfixturevalue(request.param), drawn(2, 3, size, size, seed=1), layer, reshape


# ---------------------------------------------------------------------------------------------------- pytorch-grad-cam


@pytest.mark.parametrize("kind", ["class", "cosine", "l2", "dot"])
@pytest.mark.parametrize(
    ("method", "theirs"), [("gradcam", peer.GradCAM), ("hirescam", peer.HiResCAM), ("layercam", peer.LayerCAM)]
)
def test_gradient_methods_agree_with_pytorch_grad_cam(network, method: str, theirs, kind: str) -> None:
    net, x, layer, reshape = network
    ours, words = questions(kind)
    found = explain_image(net, x, target=ours, method=method, layer=layer)
    other = copy.deepcopy(net)
    expected = theirs(other, [other.get_submodule(layer)], reshape_transform=reshape)(x, words)
    np.testing.assert_allclose(as_displayed(found.maps[:, 0], x.shape[2:]), expected, atol=1e-5)


@pytest.mark.parametrize(("method", "theirs"), [("gradcam++", peer.GradCAMPlusPlus), ("xgradcam", peer.XGradCAM)])
def test_weighted_gradient_methods_agree_with_pytorch_grad_cam(resnet, method: str, theirs) -> None:
    x = drawn(2, 3, 64, 64, seed=1)
    ours, words = questions("class")
    found = explain_image(resnet, x, target=ours, method=method, layer="layer3")
    other = copy.deepcopy(resnet)
    expected = theirs(other, [other.layer3])(x, words)
    np.testing.assert_allclose(as_displayed(found.maps[:, 0], (64, 64)), expected, atol=1e-5)


def test_class_scores_agree_with_pytorch_grad_cam(resnet) -> None:
    x = drawn(2, 3, 64, 64, seed=1)
    found = explain_image(resnet, x, target=ClassScore(CLASSES), method="hirescam", layer="layer4")
    other = copy.deepcopy(resnet)
    expected = peer.HiResCAM(other, [other.layer4])(x, [ClassifierOutputTarget(c) for c in CLASSES])
    np.testing.assert_allclose(as_displayed(found.maps[:, 0], (64, 64)), expected, atol=1e-5)


@pytest.mark.parametrize("pixels", ["predicted", "mask"])
@pytest.mark.parametrize(("method", "theirs"), [("seg-grad-cam", peer.GradCAM), ("seg-hires-grad-cam", peer.HiResCAM)])
def test_segmentation_agrees_with_pytorch_grad_cam(method: str, theirs, pixels: str) -> None:
    net, x = built(UNet), drawn(2, 3, 16, 16, seed=1)
    masks = net(x).argmax(1) == 1 if pixels == "predicted" else drawn(2, 16, 16) > 0
    target = PixelScore(1, "predicted" if pixels == "predicted" else masks)
    found = explain_image(net, x, target=target, method=method, layer="deep")
    words = [SemanticSegmentationTarget(1, mask.float().numpy()) for mask in masks]
    expected = theirs(net, [net.deep])(x, words)
    np.testing.assert_allclose(as_displayed(found.maps[:, 0], (16, 16)), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ torchcam


@pytest.mark.parametrize("kind", ["class", "cosine", "l2", "dot"])
@pytest.mark.parametrize(("method", "theirs"), [("gradcam", torchcam.GradCAM), ("layercam", torchcam.LayerCAM)])
def test_gradient_methods_agree_with_torchcam(network, method: str, theirs, kind: str) -> None:
    net, x, layer, reshape = network
    ours, words = questions(kind)
    found = explain_image(net, x, target=ours, method=method, layer=layer).maps[:, 0]
    with theirs(copy.deepcopy(net), layer, reshape_transform=reshape) as extractor:
        (expected,) = extractor(scores=extractor.model(x), targets=words, normalized=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


def test_xgrad_cam_and_cam_agree_with_torchcam(resnet) -> None:
    x = drawn(2, 3, 64, 64, seed=1)
    ours, words = questions("class")
    found = explain_image(resnet, x, target=ours, method="xgradcam", layer="layer3").maps[:, 0]
    with torchcam.XGradCAM(resnet, "layer3") as extractor:
        (expected,) = extractor(scores=resnet(x), targets=words, normalized=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))
    found = explain_image(resnet, x, target=ClassScore(CLASSES), method="cam", layer="layer4").maps[:, 0]
    with torchcam.CAM(resnet, "layer4", "fc") as extractor:
        resnet(x)
        (expected,) = extractor(class_idx=CLASSES.tolist(), normalized=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["class", "segmentation"])
def test_score_cam_agrees_with_torchcam(kind: str) -> None:
    """It scales before it resizes; by an odd factor the centres of the cells are pixels, and the order is the same."""
    tail = [nn.Conv2d(6, 7, 3, padding=1)] + [nn.AdaptiveAvgPool2d(1), nn.Flatten()] * (kind == "class")
    net = built(lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3), *tail))
    x = drawn(2, 3, 15, 15, seed=1)
    mask = drawn(5, 5) > 0
    ours = ClassScore(CLASSES) if kind == "class" else PixelScore(CLASSES, mask)
    words = [lambda out, c=c: out[c] if kind == "class" else (out[c] * mask).sum() for c in CLASSES]
    found = explain_image(net, x, target=ours, method="scorecam", layer="2").maps[:, 0]
    with torchcam.ScoreCAM(net, "2") as extractor:
        net(x)
        (expected,) = extractor(targets=words, normalized=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- captum


@pytest.mark.parametrize("kind", ["class", "cosine", "l2", "dot"])
def test_grad_cam_and_hires_cam_agree_with_captum(network, kind: str) -> None:
    net, x, layer, reshape = network
    ours, words = questions(kind)

    def forward(images: Tensor) -> Tensor:
        return torch.stack([word(out) for word, out in zip(words, net(images), strict=True)])

    product = captum.LayerGradientXActivation(forward, net.get_submodule(layer)).attribute(x).detach()
    expected = (reshape(product) if reshape else product).sum(1)
    found = explain_image(net, x, target=ours, method="hirescam", layer=layer, relu=False).maps[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    if reshape is None:
        expected = captum.LayerGradCam(forward, net.get_submodule(layer)).attribute(x).detach()[:, 0]
        found = explain_image(net, x, target=ours, method="gradcam", layer=layer, relu=False).maps[:, 0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_segmentation_agrees_with_captum() -> None:
    net, x = built(UNet), drawn(2, 3, 16, 16, seed=1)

    def forward(images: Tensor) -> Tensor:
        return net(images)[:, 2, 3:9, 5:6].sum((1, 2))

    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[3:9, 5:6] = True
    for method, theirs in (("hirescam", captum.LayerGradientXActivation), ("gradcam", captum.LayerGradCam)):
        expected = theirs(forward, net.deep).attribute(x).detach().sum(1)
        found = explain_image(net, x, target=PixelScore(2, mask), method=method, layer="deep", relu=False).maps[:, 0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("layer", ["0", "1", "3", "5"])
def test_deep_lift_contributions_agree_with_captum(layer: str) -> None:
    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1.0 * x

    def make() -> nn.Module:
        body = [nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), Step(), nn.MaxPool2d(2)]
        return nn.Sequential(
            *body, nn.Conv2d(6, 8, 3), nn.ELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7)
        )

    net, x = built(make).double(), drawn(2, 3, 12, 12, seed=1).double()
    with capture(net, layer) as run:
        score = ClassScore(CLASSES).fix(run(x))
        found, activations = lift_contributions(run, score)[:, 0], run.activations
    tail = copy.deepcopy(net[int(layer) + 1 :])
    expected = captum.DeepLift(tail).attribute(activations, 0 * activations, target=CLASSES.tolist())
    torch.testing.assert_close(found, expected.detach())


# ----------------------------------------------------------------- all three targets, both networks, all shared methods


class Segmenter(nn.Module):
    """A trunk whose map is scored position by position, and enlarged; the scores are of this size."""

    def __init__(self, trunk: nn.Module, channels: int, size: int, scale: float) -> None:
        super().__init__()
        self.trunk, self.size = trunk, size
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 4, 1))
        nn.init.normal_(self.head[1].weight, std=scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.head(self.trunk(x)), self.size, mode="bilinear", align_corners=False)


class Patches(nn.Module):
    """A ViT up to its last norm, as a map."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.vit._process_input(x)
        return grid(self.vit.encoder(torch.cat([self.vit.class_token.expand(len(x), -1, -1), tokens], 1)))


class Question(NamedTuple):
    """A network, one question for each of two images in ours and in the peers' words, and how tokens become a map."""

    net: nn.Module
    layer: str
    images: Tensor
    ours: object
    words: list[Callable[[Tensor], Tensor]]
    reshape: Callable[[Tensor], Tensor] | None

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    def ask(self, method: str, **options: object) -> Tensor:
        return explain_image(self.net, self.images, target=self.ours, method=method, layer=self.layer, **options).maps[
            :, 0
        ]

    def peer(self, theirs: Callable[..., object], **options: object) -> np.ndarray:
        net = copy.deepcopy(self.net)
        return theirs(net, [net.get_submodule(self.layer)], reshape_transform=self.reshape, **options)(
            self.images, self.words
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([word(out) for word, out in zip(self.words, self.net(images), strict=True)])


Asker = Callable[..., Question]


@pytest.fixture(params=["class", "segmentation", "similarity"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SHAPES)
def asked(request: pytest.FixtureRequest, kind: str) -> Asker:
    """A question of this kind, with a positive score, to this network; `scale` is the size of the scores."""
    family, trained = request.param, request.getfixturevalue(request.param)

    def ask(*, scale: float = 1e4, resnet_layer: str = "layer3", dtype: torch.dtype = torch.float32) -> Question:
        size, layer, reshape = SHAPES[family]
        size = size if resnet_layer == "layer3" else 32  # an early layer has a large map, asked once for each channel
        net, x = copy.deepcopy(trained), drawn(2, 3, size, size, seed=1).to(dtype)
        layer = layer if family == "vit" else resnet_layer
        if kind == "segmentation":
            trunk = Patches(net) if family == "vit" else nn.Sequential(OrderedDict(list(net.named_children())[:7]))
            net = built(lambda: Segmenter(trunk, 16 if family == "vit" else 256, size, scale))
            layer = f"trunk.vit.{layer}" if family == "vit" else f"trunk.{layer}"
        out = net.to(dtype)(x).detach()
        if kind == "segmentation":
            masks = drawn(2, size, size, seed=5) > 0
            best = (out * masks[:, None]).sum((2, 3)).argmax(1)
            words = [lambda out, c=c, m=mask: (out[c] * m).sum() for c, mask in zip(best, masks, strict=True)]
            return Question(net, layer, x, PixelScore(best, masks), words, reshape)
        towards = torch.eye(7)[out.argmax(1)] if kind == "class" else REFERENCES
        towards = scale * towards.to(dtype) * (out * towards).sum(1, keepdim=True).sign()
        words = [lambda out, s=s: out @ s for s in towards]
        return Question(net, layer, x, Similarity(towards[:, None], "dot"), words, reshape)

    return ask


@pytest.mark.parametrize(
    ("method", "one", "other"),
    [
        ("gradcam", peer.GradCAM, torchcam.GradCAM),
        ("layercam", peer.LayerCAM, torchcam.LayerCAM),
        ("hirescam", peer.HiResCAM, None),
        ("gradcam++", peer.GradCAMPlusPlus, None),
        ("xgradcam", peer.XGradCAM, torchcam.XGradCAM),
    ],
)
def test_gradient_methods_agree_for_every_target_on_both_networks(method: str, one, other, asked: Asker) -> None:
    question = asked()
    found = question.ask(method)
    np.testing.assert_allclose(as_displayed(found, question.size), question.peer(one), atol=1e-5)
    if other is not None:
        net = copy.deepcopy(question.net)
        with other(net, question.layer, reshape_transform=question.reshape) as extractor:
            (raw,) = extractor(scores=net(question.images), targets=question.words, normalized=False)
        torch.testing.assert_close(found, raw, rtol=1e-5, atol=1e-5 * float(raw.max()))


def test_eigen_cam_agrees_for_every_target_on_both_networks_but_for_the_sign(asked: Asker) -> None:
    """A principal component has no sign: theirs is that of the decomposition, ours that of the class-agnostic map."""
    question = asked(dtype=torch.float64)
    found, expected = question.ask("eigencam"), question.peer(peer.EigenCAM)
    for one, other in zip(found, expected, strict=True):
        either = [as_displayed(sign * one[None], question.size)[0] for sign in (1, -1)]
        assert min(float(np.abs(shown - other).max()) for shown in either) < 1e-5


class OneChannelOfTheMap(AblationLayerVit):
    """Tokens with one channel of all patches put to 0, as the method is defined.

    Theirs puts it to the minimum less 1e7 where there are negative values, and in the class token as well.
    """

    def __call__(self, x: Tensor) -> Tensor:
        for row in range(len(self.activations)):
            self.activations[row, 1:, self.indices[row]] = 0
        return self.activations


def test_ablation_cam_agrees_for_every_target_on_both_networks(asked: Asker) -> None:
    question = asked(resnet_layer="layer1")
    expected = question.peer(
        peer.AblationCAM, ablation_layer=OneChannelOfTheMap() if question.reshape else AblationLayer()
    )
    np.testing.assert_allclose(as_displayed(question.ask("ablationcam"), question.size), expected, atol=1e-5)


def test_score_cam_agrees_for_every_target_on_both_networks_after_the_same_resize(
    asked: Asker, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs puts the corners of the small map onto the corners of the image (align_corners=True)."""
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", partial(nn.Upsample, mode="bilinear", align_corners=False))
    question = asked(resnet_layer="layer1", scale=1e-3 if kind == "segmentation" else 1)
    expected = question.peer(peer.ScoreCAM)
    tolerance = 3e-5  # a softmax of sums over all pixels in float32: processors differ in the fifth digit
    np.testing.assert_allclose(as_displayed(question.ask("scorecam"), question.size), expected, atol=tolerance)


def test_full_grad_agrees_for_every_target_on_both_networks(asked: Asker) -> None:
    """Theirs sees the biases of 2-d convolutions and batch norms only: of a ViT's layers just the first."""
    question = asked(scale=1e6)
    net = copy.deepcopy(question.net)
    expected = peer.FullGrad(net, [])(question.images, question.words)
    gradient = full_gradient(question.net, question.images, question.ours)
    if question.reshape:
        behind = gradient.maps[-1:] * isinstance(net, Segmenter)
        gradient = gradient._replace(maps=[*gradient.maps[:2], *behind])
    else:
        torch.testing.assert_close(full_grad(gradient, question.size), question.ask("fullgrad")[:, None])
    found = full_grad(gradient, question.size)[:, 0]
    np.testing.assert_allclose(scale_cam_image(found.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "theirs"), [("hirescam", captum.LayerGradientXActivation), ("gradcam", captum.LayerGradCam)]
)
def test_gradient_methods_agree_with_captum_for_every_target_on_both_networks(
    method: str, theirs, asked: Asker
) -> None:
    question = asked()
    if question.reshape and method == "gradcam":
        pytest.skip("captum averages the gradient over all dimensions behind the second: of tokens over the channels")
    product = theirs(question.forward, question.net.get_submodule(question.layer)).attribute(question.images).detach()
    expected = (question.reshape(product) if question.reshape else product).sum(1)
    found = question.ask(method, relu=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_ablation_agrees_with_captum_for_every_target_on_both_networks(asked: Asker) -> None:
    """Every channel of the map is left out; a class token stays."""
    question = asked(resnet_layer="layer1")
    with capture(question.net, question.layer) as run:
        run(question.images)
        activations, shape = run.activations, run.leaf.shape[1:]
    channels = torch.arange(activations.shape[1]) + 1
    if question.reshape:
        feature = torch.where(torch.arange(shape[0])[:, None] == 0, 0, channels)[None]
    else:
        feature = channels[:, None, None].expand(1, *shape)
    ablation = captum.LayerFeatureAblation(question.forward, question.net.get_submodule(question.layer))
    lost = ablation.attribute(question.images, layer_mask=feature).detach()
    weights = (lost[:, 1] if question.reshape else lost[:, :, 0, 0]) / question.forward(question.images)[:, None]
    expected = torch.einsum("bk,bkhw->bhw", weights.detach(), activations)
    found = question.ask("ablationcam", relu=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# ----------------------------------------------------------------------------------------------- torchvision's networks


@pytest.mark.parametrize(
    ("name", "layer"), [("lraspp_mobilenet_v3_large", "backbone.16"), ("deeplabv3_mobilenet_v3_large", "classifier.0")]
)
def test_torchvisions_segmentation_networks_are_explained(name: str, layer: str) -> None:
    make = getattr(torchvision.models.segmentation, name)
    net, x = built(lambda: make(weights=None, weights_backbone=None, num_classes=4)), drawn(1, 3, 64, 64, seed=1)
    score = net(x)["out"]
    target = PixelScore(torch.tensor([[0, 3]]), (20, 30))
    for method in ("hirescam", "gradcam", "layercam", "liftcam"):
        found = explain_image(net, x, target=target, method=method, layer=layer, relu=False)
        torch.testing.assert_close(found.scores, score[:, [0, 3], 20, 30].detach())
        assert not found.is_constant.all()
    found = explain_image(net, x, target=PixelScore(3, (20, 30)), method="hirescam", layer=layer, relu=False)
    expected = captum.LayerGradientXActivation(
        lambda images: net(images)["out"][:, 3, 20, 30], net.get_submodule(layer)
    )
    expected = expected.attribute(x).detach().sum(1)
    torch.testing.assert_close(found.maps[:, 0], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
