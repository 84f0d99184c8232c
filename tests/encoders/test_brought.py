"""Parts that weights files bring, what files say they are, and LightningModules taken out of their wrapping."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torchvision import models

from distcam import Encoder
from distcam.encoders import BNNeck, GeM, IdentityHead
from distcam.encoders.backbones.registry import build_backbone
from distcam.errors import InputError, WeightsError
from distcam.images import Transform
from distcam.remarks import DistcamWarning

SMALL = Transform(32)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return models.resnet18().eval()


def batch_norm(prefix, width=512):
    torch.manual_seed(1)
    values = {"weight": torch.rand(width), "bias": torch.rand(width), "running_mean": torch.rand(width)}
    return {f"{prefix}{name}": value for name, value in (values | {"running_var": torch.rand(width) + 0.5}).items()}


@pytest.mark.parametrize(
    ("prefix", "exponent", "neck"),
    [
        ("backbone.", "heads.pool_layer.p", "heads.bottleneck.0."),  # fast-reid
        ("backbone.", "pooling.p", "bn."),  # MiewID
        ("module.base.", "gem.p", "bottleneck."),  # strong baselines
    ],
)
def test_a_re_id_checkpoint_ranks_by_its_own_pooling_and_neck(network, tmp_path, prefix, exponent, neck) -> None:
    trunk = {f"{prefix}{name}": value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    classifier = {"final.weight": torch.ones(4, 512)}
    torch.save(
        {"model": {**trunk, exponent: torch.tensor([2.5]), **batch_norm(neck), **classifier}}, tmp_path / "w.pth"
    )
    with pytest.warns(DistcamWarning) as said:
        encoder = Encoder.load("resnet18", weights=tmp_path / "w.pth", transform=SMALL)
    words = " ".join(str(each.message) for each in said)
    assert f"its {exponent!r} makes the pooling a generalised mean, p=2.5" in words
    assert f"its {neck.rstrip('.')!r} is the head (BNNeck)" in words
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        stride = 2 if neck == "bn." else 1  # re-identification's trunks are trained with 1
        oracle = build_backbone("resnet18", image_size=(32, 32), options={"last_stride": stride}).network.eval()
        oracle.load_state_dict({name: value for name, value in network.state_dict().items() if name[:3] != "fc."})
        features = oracle(image)
        assert encoder.options == ({} if stride == 2 else {"last_stride": 1})
        assert ("so the last stride is taken as 1" in words) == (stride == 1)
        pooled = features.clamp(min=1e-6).pow(2.5).mean((2, 3)).pow(1 / 2.5)
        given = batch_norm("")
        expected = nn.functional.batch_norm(
            pooled, given["running_mean"], given["running_var"], given["weight"], given["bias"]
        )
        torch.testing.assert_close(encoder(image).embedding, expected, atol=1e-4, rtol=1e-4)


def test_a_last_stride_of_ones_own_stays(network, tmp_path) -> None:
    torch.save({**network.state_dict(), **batch_norm("heads.bottleneck.0.")}, tmp_path / "w.pth")
    with pytest.warns(DistcamWarning, match=r"head \(BNNeck\)") as said:
        encoder = Encoder.load(
            "resnet18", weights=tmp_path / "w.pth", options={"last_stride": 2}, transform=Transform(64)
        )
    assert not any("last stride" in str(each.message) for each in said)
    assert encoder(torch.zeros(1, 3, 64, 64)).feature_map.shape[2:] == (2, 2)


def test_a_projector_of_self_supervised_training_is_no_head(network, tmp_path) -> None:
    trunk = {f"encoder.{name}": value for name, value in network.state_dict().items() if name[:3] != "fc."}
    layers = {f"encoder.fc.{i}.weight": torch.rand(512, 512) for i in (0, 3, 6)}
    norms = [batch_norm(f"encoder.fc.{i}.") for i in (1, 4, 7)]
    torch.save({"state_dict": {**trunk, **layers, **norms[0], **norms[1], **norms[2]}}, tmp_path / "w.pth")
    with pytest.warns(DistcamWarning, match="15 of its tensors have no place in the network and are left out") as said:
        encoder = Encoder.load("resnet18", weights=tmp_path / "w.pth", transform=SMALL)
    assert len(said) == 1
    assert isinstance(encoder.head, IdentityHead)
    assert encoder.options == {}


def test_a_head_and_an_exponent_of_ones_own_stay(network, tmp_path) -> None:
    torch.save({**network.state_dict(), "pool.p": torch.tensor(2.0), **batch_norm("bottleneck.")}, tmp_path / "w.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DistcamWarning)
        plain = Encoder.load(
            "resnet18", weights=tmp_path / "w.pth", head=IdentityHead(), pooling="gem", transform=SMALL
        )
    assert isinstance(plain.head, IdentityHead)
    assert isinstance(plain.pooling, GeM)
    assert plain.pooling.p.item() == 2.0
    assert not isinstance(plain.head, BNNeck)


@pytest.mark.parametrize(
    ("name", "begin", "words"),
    [
        ("m.onnx", b"\x08\x08\x12\x07pytorch", "an ONNX program"),
        ("m.gguf", b"GGUF....", "a GGUF file of quantised weights"),
        ("m.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it"),
        ("m.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
    ],
)
def test_files_of_other_frameworks_say_what_they_are(tmp_path, name, begin, words) -> None:
    (tmp_path / name).write_bytes(begin + bytes(64))
    with pytest.raises(WeightsError, match=words):
        Encoder.load("resnet18", weights=tmp_path / name)
    with pytest.raises(InputError, match=words):
        Encoder.load(str(tmp_path / name))


def test_programs_of_torch_and_quantised_weights_say_what_they_are(tmp_path) -> None:
    module, image = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.zeros(1, 3, 8, 8)
    torch.export.save(torch.export.export(module, (image,)), tmp_path / "m.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        torch.jit.save(torch.jit.trace(module, image), str(tmp_path / "m.pt"))
    torch.save({"0.zero_point": torch.tensor(0), "0.weight": torch.ones(2)}, tmp_path / "q.pt")
    for name, words in (("m.pt2", "torch.export"), ("m.pt", "TorchScript"), ("q.pt", "quantised weights")):
        with pytest.raises(WeightsError, match=words):
            Encoder.load("resnet18", weights=tmp_path / name)


class LightningModule(nn.Module):
    """Stands for Lightning's, which a class is told by through the name of its module."""

    __module__ = "lightning.pytorch.core.module"


class Trained(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network
        self.loss = nn.Linear(4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.model(images)
        return answer


@pytest.mark.parametrize("layer", ["layer4", "model.layer4"])
def test_a_lightning_module_is_the_network_in_it(network, layer) -> None:
    colours = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    bare = Encoder.load(network, layer="layer4", **colours)
    for module in (Trained(network), nn.DataParallel(Trained(network))):
        found = Encoder.load(module, layer=layer, **colours)
        assert (found.short_name, found.layer) == (bare.short_name, "layer4")


def test_a_lightning_module_of_two_networks_stays_whole(network) -> None:
    module = Trained(network)
    module.other = nn.Linear(2, 2)
    found = Encoder.load(module, layer="model.layer4", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert (found.architecture, found.layer) == ("Trained", "model.layer4")
