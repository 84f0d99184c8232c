"""MXNet's files of weights, written here byte by byte, and ResNet-38 from one with the published names."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from distcam.encoders import Encoder, ResNet38
from distcam.encoders.weight_files import read_state_dict
from distcam.errors import WeightsError
from distcam.images import Transform


def one(array: np.ndarray, *, version: int = 2, kind: int = 0) -> bytes:
    """An array as one of MXNet's three versions writes it."""
    sides = "q" if version else "I"
    begin = [b"", struct.pack("<I", 0xF993FAC8), struct.pack("<Ii", 0xF993FAC9, 0)][version]
    shape = struct.pack(f"<I{array.ndim}{sides}", array.ndim, *array.shape)
    return begin + shape + struct.pack("<iii", 1, 0, kind) + array.tobytes()


def listed(arrays: dict[str, bytes]) -> bytes:
    names = b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)
    return (
        struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(arrays.values()) + struct.pack("<Q", len(arrays)) + names
    )


def published(name: str) -> str:
    """The name in the published file of one of ours."""
    *owner, part = name.split(".")
    parts = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    if owner == ["conv1a"]:
        return "arg:conv1a_weight"
    kind = "aux" if part.startswith("running") else "arg"
    if owner == ["bn7"]:
        return f"{kind}:bn7_{parts[part]}"
    block, layer = owner
    stage, _, number = block[1:].partition("_")
    place = f"{stage}b{number}" if number else f"{stage}a"
    layer_kind, branch = layer.split("_", 1)
    is_convolution = layer_kind == "conv"
    return f"{kind}:{'res' if is_convolution else 'bn'}{place}_{branch}_{part if is_convolution else parts[part]}"


def test_resnet38_takes_the_published_file_with_every_tensor_in_its_place(tmp_path) -> None:
    torch.manual_seed(0)
    state = {name: torch.rand_like(tensor) for name, tensor in ResNet38(width=1).state_dict().items() if tensor.ndim}
    assert published("b4_2.conv_branch2b1.weight") == "arg:res4b2_branch2b1_weight"  # as the published names are
    assert published("b2.bn_branch2a.running_var") == "aux:bn2a_branch2a_moving_var"
    arrays = {published(name): one(tensor.numpy()) for name, tensor in state.items()}
    arrays["arg:linear1000_weight"] = one(np.zeros((10, 64), np.float32))
    arrays["arg:linear1000_bias"] = one(np.zeros(10, np.float32))
    file = tmp_path / "rna-a1_cls1000_ep-0001.params"
    file.write_bytes(listed(arrays))
    encoder = Encoder.load("resnet38", weights=file, options={"width": 1}, transform=Transform(64))
    loaded = encoder.backbone.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_version_and_kind_of_numbers_is_read(tmp_path, version) -> None:
    kinds = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}
    arrays = {kind: np.arange(6).reshape(2, 3).astype(dtype) for kind, dtype in kinds.items()}
    content = {f"arg:layer{kind}_weight": one(array, version=version, kind=kind) for kind, array in arrays.items()}
    file = tmp_path / "a.params"
    file.write_bytes(listed(content))
    state = read_state_dict(file)
    for kind, array in arrays.items():
        assert np.array_equal(state[f"layer{kind}.weight"].numpy(), array)
        assert state[f"layer{kind}.weight"].numpy().dtype == array.dtype


def test_damaged_files_say_so(tmp_path) -> None:
    whole = listed({"arg:fc_weight": one(np.ones((2, 2), np.float32))})
    file = tmp_path / "a.params"
    for content, words in (
        *((whole[:length], "ends too early") for length in (12, 25, 40, 60, len(whole) - 1)),
        (whole.replace(struct.pack("<Ii", 0xF993FAC9, 0), struct.pack("<Ii", 0xF993FAC9, 1)), "a sparse array"),
        (whole.replace(struct.pack("<I", 0xF993FAC9), struct.pack("<I", 0xF993FACA)), "no known version"),
        (listed({"arg:a_weight": one(np.ones(2, np.float32), kind=9)}), "unknown kind 9"),
        (listed({f"{p}:a_weight": one(np.ones(2, np.float32)) for p in ("arg", "aux")}), "share the name"),
    ):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=words):
            read_state_dict(file)
