"""Checkpoints of re-identification libraries as encoders that rank as they do there; torchreid itself is the oracle."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distcam.encoders import Encoder, IdentityHead, Inference
from distcam.encoders.backbones.osnet import OSNETS, OSNet
from distcam.encoders.encoding import fold
from distcam.errors import InputError, WeightsError
from distcam.images import Transform
from distcam.remarks import DistcamWarning

SMALL = Transform((64, 32), fit="squash")


def drawn(module: nn.Module) -> nn.Module:
    """No statistic, scale or shift is left at the 0 or 1 that it starts with."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def people(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 64, 32, generator=torch.Generator().manual_seed(1))


def test_the_networks_have_the_papers_sizes() -> None:
    millions = {"osnet_x1_0": 2.2, "osnet_x0_75": 1.3, "osnet_x0_5": 0.6, "osnet_x0_25": 0.2}  # Table 5, with `fc`
    for name, expected in millions.items():
        network = OSNet(**OSNETS[name])
        width = int(512 * OSNETS[name]["width"])
        count = sum(p.numel() for p in network.parameters()) + (width + 3) * 512
        assert round(count / 1e6, 1) == expected
        with torch.no_grad():
            assert network.eval()(torch.zeros(1, 3, 256, 128)).shape == (1, width, 16, 8)


def torchreids(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its ranking is not compiled
        models = pytest.importorskip("torchreid.reid.models")
    return drawn(models.build_model(name, num_classes=5, pretrained=False))


SLOW = {"marks": pytest.mark.slow}


@pytest.mark.parametrize(
    "name",
    [pytest.param("osnet_x1_0", **SLOW), "osnet_x0_25", pytest.param("osnet_ibn_x1_0", **SLOW), "osnet_ain_x0_25"],
)
@pytest.mark.filterwarnings("ignore::distcam.remarks.DistcamWarning")
def test_an_osnet_of_torchreid_gives_the_same_features(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchreids(name)
    named = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": named, "epoch": 3, "rank1": 0.9}, tmp_path / "model.pth.tar-3")
    encoder = Encoder.load(name, weights=tmp_path / "model.pth.tar-3")
    assert (encoder.transform.size, encoder.transform.fit) == ((256, 128), "squash")
    with torch.no_grad():
        expected = model(people())
        torch.testing.assert_close(encoder(people()).embedding, expected, rtol=0, atol=1e-5 * expected.max().item())
    assert encoder.embedding_dim == 512
    encoder.save(tmp_path / "e.safetensors")
    again = Encoder.load(tmp_path / "e.safetensors", transform=SMALL)
    assert again(people()).embedding.equal(encoder(people()).embedding)
    pixels = torch.randint(0, 255, (2, 3, 64, 32), dtype=torch.uint8)
    frozen = Inference(again, device="cpu", precision="fp32")(pixels).embedding
    torch.testing.assert_close(frozen, model(SMALL.normalise(pixels)).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::distcam.remarks.DistcamWarning")
@pytest.mark.parametrize(("name", "stride"), [("resnet50", 2), pytest.param("resnet50_fc512", 1, **SLOW)])
def test_a_resnet_of_torchreid_gives_the_same_features(name: str, stride: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchreids(name)
    from torchreid.reid.utils import save_checkpoint

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state: dict[str, Any] = {"state_dict": nn.DataParallel(model).state_dict(), "epoch": 2, "rank1": 0.5}
    save_checkpoint({**state, "optimizer": optimizer.state_dict()}, str(tmp_path))
    encoder = Encoder.load("resnet50", weights=tmp_path / "model.pth.tar-2", transform=SMALL)
    with torch.no_grad():
        expected, encoding = model(people()), encoder(people())
    torch.testing.assert_close(encoding.embedding, expected, rtol=1e-5, atol=1e-5 * expected.max().item())
    assert encoding.feature_map.shape[-2:] == (4 // stride, 2 // stride)


def head_of(width: int, dim: int, *, place: str, rank: int, bias: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tensors = {f"{place}.0.weight": torch.randn(dim, width, *[1] * (rank - 2), generator=generator)}
    if bias:
        tensors[f"{place}.0.bias"] = torch.randn(dim, generator=generator)
    norm = ("weight", "bias", "running_mean", "running_var")
    return tensors | {f"{place}.1.{key}": torch.rand(dim, generator=generator) + 0.1 for key in norm}


@pytest.mark.parametrize(
    ("place", "rank", "bias", "words"),
    [
        ("heads.bottleneck", 4, False, "projection to 7 and batch norm)"),  # fast-reid with EMBEDDING_DIM
        ("fc", 2, True, "projection to 7 and batch norm, ReLU)"),  # torchreid
    ],
)
def test_a_projection_and_its_norm_are_the_head(place: str, rank: int, bias: bool, words: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = drawn(OSNet(width=0.25))
    given = head_of(128, 7, place=place, rank=rank, bias=bias)
    trunk = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    exponent = {"heads.pool_layer.p": torch.tensor([3.0])}
    state = {**trunk, **exponent, **given, "heads.weight": torch.ones(4, 7)}
    if place == "fc":
        state = {key.removeprefix("backbone."): value for key, value in {**trunk, **given}.items()}
    torch.save({"model": state, "iteration": 1}, tmp_path / "w.pth")
    with pytest.warns(DistcamWarning) as said:
        encoder = Encoder.load("osnet_x0_25", weights=tmp_path / "w.pth")
    assert f"its '{place}' is the head ({words}" in " ".join(str(each.message) for each in said)
    with torch.no_grad():
        feature_map = network(people())
        pooled = feature_map.mean((2, 3))
        if place != "fc":
            pooled = feature_map.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)
        projected = pooled @ given[f"{place}.0.weight"].flatten(1).mT + given.get(f"{place}.0.bias", 0)
        norm = [given[f"{place}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        expected = nn.functional.batch_norm(projected, *norm)
        expected = expected.relu() if place == "fc" else expected
        encoding = encoder(people())
        torch.testing.assert_close(encoding.embedding, expected, rtol=1e-4, atol=1e-5)
        response = fold(encoding.feature_map, pooling=encoder.pooling, head=encoder.head)
        torch.testing.assert_close(response.map.mean((2, 3)), expected, rtol=1e-4, atol=1e-4)
    assert response.is_exact == (place != "fc")
    encoder.save(tmp_path / "e.safetensors")
    assert Encoder.load(tmp_path / "e.safetensors").fingerprint == encoder.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DistcamWarning)
        assert Encoder.load("osnet_x0_25", weights=tmp_path / "w.pth", head=IdentityHead()).embedding_dim == 128


def test_files_of_another_width_and_missing_weights_are_refused(tmp_path: Path) -> None:
    torch.save(OSNet(width=0.25).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"do not fit the architecture .*expected float32"):
        Encoder.load("osnet_x0_5", weights=tmp_path / "w.pth")
    with pytest.raises(InputError, match="osnet_x0_5 needs weights: a FILE of torchreid or fast-reid, or 'random'"):
        Encoder.load("osnet_x0_5")
    with pytest.raises(InputError, match=r"needs width ≥ 0.25 and norm 'batch', 'ibn' or 'ain', got 0.1"):
        Encoder.load("osnet_x0_5", weights="random", options={"width": 0.1})


def miewids(backbone: nn.Module) -> nn.Module:
    """The network as MiewID's code builds it around a network of timm: a generalised mean and a batch norm."""
    backbone.classifier, backbone.global_pool = nn.Identity(), nn.Identity()
    model = nn.Module()
    model.backbone, model.pooling, model.bn = backbone, nn.Module(), nn.BatchNorm1d(backbone.num_features)
    model.pooling.p = nn.Parameter(torch.ones(1))
    model.final = nn.Linear(backbone.num_features, 9, bias=False)  # the margin loss's centres
    return model


@pytest.mark.parametrize(
    ("name", "width"),
    [("tinynet_e", 1280), pytest.param("efficientnetv2_rw_m", 2152, **SLOW)],
)
def test_a_miewid_checkpoint_is_an_encoder_without_its_code(name: str, width: int, tmp_path: Path) -> None:
    timm, safetensors = pytest.importorskip("timm"), pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    model = drawn(miewids(timm.create_model(name)))
    model.pooling.p.data.fill_(2.6)
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    chips = Transform(440, fit="squash")
    with pytest.warns(DistcamWarning) as said:
        encoder = Encoder.load(f"timm:{name}", weights=tmp_path / "model.safetensors", transform=chips)
    words = " ".join(str(each.message) for each in said)
    assert "its 'pooling.p' makes the pooling a generalised mean, p=2.6" in words
    assert "its 'bn' is the head (BNNeck)" in words
    assert "1 of its tensors have no place in the network and are left out, such as final.weight" in words
    with torch.no_grad():
        features = model.backbone.forward_features(people())
        pooled = features.clamp(min=1e-6).pow(model.pooling.p).mean((2, 3)).pow(1 / model.pooling.p)
        expected = model.bn(pooled)
        encoding = encoder(people())
    assert encoder.embedding_dim == width
    torch.testing.assert_close(encoding.embedding, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
