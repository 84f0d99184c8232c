"""Finer maps: the fine one holds the plain one at every second cell, in every family of CNNs, or is refused."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from distcam.encoders import Encoder
from distcam.encoders.fine import with_detail
from distcam.errors import InputError
from distcam.images import Transform

FAMILIES = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1")
LARGE = ("mnasnet0_5", "efficientnet_b0", "densenet121", "vgg11", "convnext_tiny")


def holds(encoder: Encoder, offset: int = 0) -> None:
    fine = with_detail(encoder, "fine")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain, found = encoder(image).feature_map, fine(image).feature_map
    rows, columns = plain.shape[2:]
    assert found.shape[2] >= 2 * rows - 1
    torch.testing.assert_close(
        found[..., offset::2, offset::2][..., :rows, :columns], plain, rtol=0, atol=1e-3 * float(plain.abs().max())
    )


@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_the_fine_map_holds_the_plain_one_at_every_second_cell(name: str) -> None:
    holds(Encoder.load(name, weights="random", transform=Transform(64)))


@pytest.mark.parametrize(
    ("name", "layer", "offset"), [("tf_efficientnet_lite0", "bn2", 1), ("mobilenetv3_small_050", "blocks", 0)]
)
def test_so_do_timm_s(name: str, layer: str, offset: int) -> None:
    timm = pytest.importorskip("timm")
    holds(Encoder.load(timm.create_model(name).eval(), layer=layer, transform=Transform(64)), offset)


def test_what_cannot_be_dilated_is_refused_with_the_reason() -> None:
    transformer = Encoder.load("vit_b_16", weights="random", transform=Transform(64))
    with pytest.raises(InputError, match="detail='fine'` is not for vit_b_16: no convolution or pooling with a stride"):
        with_detail(transformer, "fine")
    with pytest.raises(InputError, match="takes images of any size, and vit_b_16 does not"):
        with_detail(transformer, "finer")


def test_finer_takes_a_larger_image_and_leaves_the_encoder_as_it_is(small_encoder: Encoder) -> None:
    finer = with_detail(small_encoder, "finer")
    assert (finer.transform.height, finer.transform.width) == (96, 96)
    assert small_encoder.transform.height == 64
    assert with_detail(small_encoder, "plain") is small_encoder


def test_finer_is_not_shown_the_margins_of_elongated_images() -> None:
    encoder = Encoder.load("conv4", weights="random", transform=Transform(64))
    finer = with_detail(encoder, "finer")
    draw = torch.Generator().manual_seed(0)
    for width, height, rows, columns in ((90, 25, slice(32, 64), slice(0, 96)), (20, 80, slice(0, 96), slice(32, 64))):
        pixels = torch.randint(1, 256, (height, width, 3), generator=draw, dtype=torch.uint8)
        image = finer.transform.normalise(finer.transform(Image.fromarray(pixels.numpy()))[None])
        plain = encoder(image[..., rows, columns]).feature_map
        found = finer(torch.cat([image, torch.rand(image.shape, generator=draw)])).feature_map  # the second has none
        stride = 96 // found.shape[2]
        inside = [slice(part.start // stride, part.stop // stride) for part in (rows, columns)]
        torch.testing.assert_close(found[:1, :, inside[0], inside[1]], plain)
        rest = found[:1].clone()
        rest[:, :, inside[0], inside[1]] = 0
        assert not rest.any()
        assert found[1].any(0).all()
