"""WRN-28-10, the wide residual network of few-shot learning."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ...errors import InputError


class WideResNet(nn.Module):
    """Pre-activation residual blocks in three groups, 16-160-320-640 channels at the usual width of 10.

    The first group keeps the resolution and the two others halve it: an 84×84 image ends as 21×21 and a 32×32 one as
    8×8. The map is taken after the last batch norm and ReLU. WRN-28-10 has 36,472,784 parameters.

    Args:
        depth: 6n + 4; n blocks in every group.
        width: factor on the channels 16, 32, 64.
        drop_rate: of the drop-out between the two convolutions of a block.
        stride: of the first convolution; 2 makes a map of 11×11 from 84×84 at a quarter of the cost.

    Source: Zagoruyko & Komodakis, Wide Residual Networks, 2016, §2 and Table 1.
    """

    def __init__(self, *, depth: int = 28, width: int = 10, drop_rate: float = 0.0, stride: int = 1) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"a wide ResNet has 6n + 4 layers (10, 16, 22, 28, …), got {depth}")
        if width < 1 or not 0 <= drop_rate < 1:
            raise InputError(f"a wide ResNet needs width ≥ 1 and a drop rate in [0, 1), got {width} and {drop_rate}")
        blocks, channels = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(3, channels[0], 3, stride=stride, padding=1, bias=False)
        self.layer1 = _group(channels[0], channels[1], blocks, stride=1, drop_rate=drop_rate)
        self.layer2 = _group(channels[1], channels[2], blocks, stride=2, drop_rate=drop_rate)
        self.layer3 = _group(channels[2], channels[3], blocks, stride=2, drop_rate=drop_rate)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.relu = nn.ReLU()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b k h w"]:
        """The feature map."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        feature_map: Tensor = self.relu(self.bn1(x))
        return feature_map


def _group(in_channels: int, channels: int, blocks: int, *, stride: int, drop_rate: float) -> nn.Sequential:
    first = _WideBlock(in_channels, channels, stride=stride, drop_rate=drop_rate)
    rest = (_WideBlock(channels, channels, stride=1, drop_rate=drop_rate) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class _WideBlock(nn.Module):
    """Batch norm, ReLU, convolution, twice; where the channels change, the shortcut starts after the first ReLU."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(drop_rate)
        changes = stride != 1 or in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(y)
        total: Tensor = residual + self.conv2(self.dropout(self.relu(self.bn2(self.conv1(y)))))
        return total
