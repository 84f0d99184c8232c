"""OSNet, the small network of re-identification, in the three forms that torchreid and fast-reid publish weights of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import InputError

OSNETS: Mapping[str, Mapping[str, Any]] = {  # by the names of torchreid, and those that fast-reid's options would have
    f"osnet_{form}x{width}": {"width": float(width.replace("_", ".")), "norm": form.rstrip("_") or "batch"}
    for form in ("", "ibn_", "ain_")
    for width in ("1_0", "0_75", "0_5", "0_25")
}
OSNET_SPARE = frozenset({"classifier.weight", "classifier.bias"})  # of the training identities
_WITH_NORM_INSIDE = {"conv2.0", "conv2.1", "conv3.1", "conv4.0"}  # blocks of OSNet-AIN, as its search found them


class OSNet(nn.Module):
    """Omni-scale network: residual blocks of four streams that see 3, 5, 7 and 9 pixels, gated and added.

    A 256×128 image ends as 16×8 with 512 channels at full width. Layers are called as in torchreid's code, so its state
    dicts and those of fast-reid load.

    Args:
        width: factor on the channels 64, 256, 384, 512.
        norm: "batch"; "ibn" with instance norms in the first convolution and behind the blocks of the first stage; or
            "ain" with instance norms in the first convolution and inside four of the six blocks.

    Source: Zhou et al., Omni-Scale Feature Learning for Person Re-Identification, 2019, §3 and Table 1; OSNet-AIN:
    Learning Generalisable Omni-Scale Representations for Person Re-Identification, 2021, §3.3.
    """

    def __init__(self, *, width: float = 1.0, norm: Literal["batch", "ibn", "ain"] = "batch") -> None:
        super().__init__()
        channels = [int(width * full) for full in (64, 256, 384, 512)]
        if norm not in ("batch", "ibn", "ain") or channels[0] < 16:
            raise InputError(f"OSNet needs width ≥ 0.25 and norm 'batch', 'ibn' or 'ain', got {width} and {norm!r}")
        is_adaptive = norm == "ain"
        self.conv1 = _unit(3, channels[0], 7, stride=2, is_instance=norm != "batch")
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        for stage, (inputs, outputs) in enumerate(pairwise(channels), start=2):
            blocks = []
            for number in range(2):
                after = norm == "ibn" and stage == 2
                inside = is_adaptive and f"conv{stage}.{number}" in _WITH_NORM_INSIDE
                name = "inside" if inside else "after" if after else ""
                blocks.append(_Block(outputs if number else inputs, outputs, instance_norm=name, is_listed=is_adaptive))
            halving = nn.Sequential(_unit(outputs, outputs, 1), nn.AvgPool2d(2))
            within = [halving] if stage < 4 and not is_adaptive else []
            self.add_module(f"conv{stage}", nn.Sequential(*blocks, *within))
            if stage < 4 and is_adaptive:
                self.add_module(f"pool{stage}", halving)
        self.conv5 = _unit(channels[3], channels[3], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b k h w"]:
        """The feature map."""
        x = images
        for stage in self.children():
            x = stage(x)
        return x


def _unit(
    inputs: int, outputs: int, side: int, *, stride: int = 1, is_instance: bool = False, is_linear: bool = False
) -> nn.Sequential:
    """Convolution, norm, and unless it is linear a ReLU."""
    convolution = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    norm = nn.InstanceNorm2d(outputs, affine=True) if is_instance else nn.BatchNorm2d(outputs)
    parts: list[tuple[str, nn.Module]] = [("conv", convolution), ("bn", norm)]
    return nn.Sequential(OrderedDict(parts if is_linear else [*parts, ("relu", nn.ReLU())]))


def _light(channels: int) -> nn.Sequential:
    """A 3×3 convolution in two: 1×1 over channels, then 3×3 in each channel by itself (Fig. 3 of the paper)."""
    across = nn.Conv2d(channels, channels, 1, bias=False)
    within = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    named = {"conv1": across, "conv2": within, "bn": nn.BatchNorm2d(channels), "relu": nn.ReLU()}
    return nn.Sequential(OrderedDict(named))


class _Block(nn.Module):
    """1×1 to a quarter of the channels, four streams added by one gate, 1×1 back, and the shortcut.

    `instance_norm` is "inside" (before the shortcut, in place of the batch norm), "after" it, or "". In
    OSNet-AIN's code the streams are a list, elsewhere they have letters.
    """

    def __init__(self, inputs: int, outputs: int, *, instance_norm: str, is_listed: bool) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = _unit(inputs, middle, 1)
        streams = [[_light(middle) for _ in range(depth)] for depth in (1, 2, 3, 4)]
        self.stream_names = [f"conv2.{i}" if is_listed else f"conv2{'abcd'[i]}" for i in range(4)]
        if is_listed:
            named = [OrderedDict[str, nn.Module](layers=nn.Sequential(*stream)) for stream in streams]
            self.conv2 = nn.ModuleList(nn.Sequential(each) for each in named)
        else:
            for name, stream in zip(self.stream_names, streams, strict=True):
                self.add_module(name, stream[0] if len(stream) == 1 else nn.Sequential(*stream))
        squeeze = nn.Conv2d(middle, middle // 16, 1)
        expand = nn.Conv2d(middle // 16, middle, 1)
        gate = {"pool": nn.AdaptiveAvgPool2d(1), "fc1": squeeze, "relu": nn.ReLU(), "fc2": expand, "end": nn.Sigmoid()}
        self.gate = nn.Sequential(OrderedDict(gate))
        self.conv3 = _unit(middle, outputs, 1, is_linear=True)
        if instance_norm == "inside":
            del self.conv3.bn
        self.downsample = _unit(inputs, outputs, 1, is_linear=True) if inputs != outputs else None
        self.is_inside = instance_norm == "inside"
        self.IN = nn.InstanceNorm2d(outputs, affine=True) if instance_norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        streams = [self.get_submodule(name)(y) for name in self.stream_names]
        y = self.conv3(sum(stream * self.gate(stream) for stream in streams))
        if self.IN is not None and self.is_inside:
            y = self.IN(y)
        y = y + (x if self.downsample is None else self.downsample(x))
        if self.IN is not None and not self.is_inside:
            y = self.IN(y)
        return torch.relu(y)
