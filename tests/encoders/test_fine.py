"""The fine layer: chosen by watching, read in the same pass, and nameable."""

from __future__ import annotations

import pytest
import torch

from distcam.encoders import Encoder, Inference
from distcam.encoders.fine import fine_layer
from distcam.encoders.layers import LayerOutput
from distcam.errors import InputError
from distcam.images import Transform


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer2"),
        ("mobilenet_v2", "features.6"),
        ("mobilenet_v3_small", "features.3"),
        ("efficientnet_b0", "features.3"),
        ("squeezenet1_1", "features.7"),
        ("shufflenet_v2_x1_0", "stage2"),
    ],
)
def test_the_last_block_with_stride_8_is_found(name, layer):
    network = Encoder.load(name, weights="random", transform=Transform(64)).backbone
    found = fine_layer(network, (128, 128))
    assert found is not None
    assert found.removeprefix("source.") == layer


def test_timms_families_have_one_too():
    timm = pytest.importorskip("timm", reason="timm is an extra")
    for name, layer in (("tf_efficientnet_lite0", "blocks.2"), ("resnet18", "layer2"), ("convnext_atto", "stages.1")):
        assert fine_layer(timm.create_model(name).eval(), (128, 128)) == layer


def test_patches_of_16_pixels_have_nothing_finer():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 16, 16), torch.nn.ReLU())
    assert fine_layer(network, (64, 64)) is None


def test_a_map_that_ends_at_stride_8_is_its_own_fine_map():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, 8), torch.nn.ReLU())
    assert fine_layer(network, (64, 64)) is None
    inference = Inference(Encoder(network, transform=Transform(64)), device="cpu")
    assert inference.fine.read() == ""
    encoding = inference(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert encoding.fine is not None
    assert encoding.fine.equal(encoding.feature_map)


@pytest.fixture(scope="module")
def encoder():
    return Encoder.load("resnet18", weights="random", transform=Transform(64))


def test_it_is_read_in_the_same_pass_and_changes_nothing(encoder):
    inference = Inference(encoder, device="cpu", precision="fp32")
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = inference(pixels)
    assert plain.fine is None
    passes = []
    handle = inference.encoder.backbone.register_forward_hook(lambda *_: passes.append(1))
    assert inference.fine.read() == inference.fine.read()
    passes.clear()
    encoding = inference(pixels)
    handle.remove()
    assert len(passes) == 1
    assert encoding.embedding.equal(plain.embedding)
    assert encoding.fine is not None
    assert encoding.fine.shape == (3, 128, 8, 8)
    alone = LayerOutput(inference.encoder.backbone, inference.fine.layer or "")(inference.transform.normalise(pixels))
    assert encoding.fine.allclose(alone, atol=1e-5)
    assert encoding[1].fine is not None
    assert encoding[1].fine.equal(encoding.fine[1:2])


def test_another_layer_can_be_named_and_a_wrong_one_is_refused(encoder):
    inference = Inference(encoder, device="cpu")
    assert inference.fine.read("layer1").endswith("layer1")
    with pytest.raises(InputError, match=r"no layer 'layer9'.*nearest: .*layer"):
        inference.fine.read("layer9")
