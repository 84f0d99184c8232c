"""U-Net and LargeFOV: parameters and sizes of the papers, weights by name, files, and explanations."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import vgg16

from distcam.errors import InputError
from distcam.explain import PixelScore, explain_image
from distcam.images import Transform
from distcam.segmentation.segmenter.architectures import UNet, largefov, unet
from distcam.segmentation.segmenter.segmenter import build_segmenter, load_segmenter

NAMES = ("cell", "dirt")


def test_largefov_has_the_parameters_and_the_map_of_its_paper() -> None:
    with torch.device("meta"):
        backbone, classifier = largefov(21)
        assert classifier.eval()(backbone.eval()(torch.zeros(1, 3, 321, 321))).shape == (1, 21, 41, 41)
    count = sum(p.numel() for part in (backbone, classifier) for p in part.parameters())
    assert f"{count / 1e6:.1f}" == "20.5"  # Chen et al. 2015, Table 3


def test_the_u_net_of_the_paper_has_31_million_parameters_and_masks_of_any_size() -> None:
    with torch.device("meta"):
        body, head = unet(2)
    convolutions = [p.numel() for p in [*body.parameters(), *head.parameters()] if p.ndim == 4]
    # two convolutions on each of 9 levels, by hand; without the paper's four up-convolutions, which halve channels
    down = [3 * 64, 64 * 64, 64 * 128, 128**2, 128 * 256, 256**2, 256 * 512, 512**2, 512 * 1024, 1024**2]
    up = [1536 * 512, 512**2, 768 * 256, 256**2, 384 * 128, 128**2, 192 * 64, 64**2]
    assert sum(convolutions) == 9 * sum(down + up) + 2 * 64
    small = UNet(width=2, levels=3).eval()
    assert small(torch.zeros(1, 3, 19, 30)).shape == (1, 2, 19, 30)
    with pytest.raises(InputError, match="of 3 levels needs images from 4 pixels on"):
        small(torch.zeros(1, 3, 3, 8))


def test_a_u_net_passes_details_beside_its_lowest_level() -> None:
    """What the lowest level says is the same everywhere, and the output still has edges."""
    torch.manual_seed(0)
    body = UNet(width=4, levels=3).eval()
    body.deep.register_forward_hook(lambda *_: torch.zeros(1, 16, 4, 4))
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1
    assert not torch.equal(body(image)[..., 2], body(image)[..., 13])


@pytest.mark.parametrize(
    ("name", "options"), [("unet", {"width": 4, "levels": 3}), ("deeplab_largefov_vgg16", {"channels": 8})]
)
def test_a_network_survives_its_file_and_is_explained(name, options, tmp_path) -> None:
    segmenter = build_segmenter(name, NAMES, transform=Transform(32), weights="random", options=options)
    segmenter.save(tmp_path / "n.safetensors")
    again = load_segmenter(tmp_path / "n.safetensors")
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(pixels).feature_map, segmenter(pixels).feature_map)
    network = again.network()
    assert network.layer == {"unet": "backbone.deep"}.get(name, "backbone.features")
    found = explain_image(network.model, pixels, target=PixelScore(1), layer=network.layer)
    assert found.maps.shape[-2:] == ((8, 8) if name == "unet" else (4, 4))


def test_weights_of_a_vgg_fill_the_features_of_largefov(tmp_path) -> None:
    torch.manual_seed(1)
    vgg = vgg16(weights=None)
    torch.save(
        {name: tensor for name, tensor in vgg.state_dict().items() if name.startswith("features")}, tmp_path / "vgg.pth"
    )
    built = build_segmenter("deeplab_largefov_vgg16", NAMES, transform=Transform(32), weights=tmp_path / "vgg.pth")
    assert torch.equal(built.backbone.features[28].weight, vgg.features[28].weight)


@pytest.mark.parametrize(
    ("name", "options", "weights", "words"),
    [
        ("unet", {"widht": 4}, "random", "unknown option of unet 'widht', nearest is 'width'"),
        ("unet", {}, "imagenet", "no weights of a U-Net to download"),
        ("unet", {"levels": 1}, "random", "levels from 2 on"),
        ("u-net", {}, "random", "nearest: 'unet'"),
        ("deeplab_largefov_vgg16", {"download": True}, "random", "unknown option"),
    ],
)
def test_what_does_not_exist_is_refused(name, options, weights, words) -> None:
    with pytest.raises(InputError, match=words):
        build_segmenter(name, NAMES, transform=Transform(32), weights=weights, options=options)
