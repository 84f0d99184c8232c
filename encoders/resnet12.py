"""ResNet-12, the residual network of few-shot learning."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["ResNet12"]


class ResNet12(nn.Module):
    """Four residual blocks of three 3×3 convolutions, each block followed by 2×2 max pooling.

    Two widths are in use: 64-160-320-640 (MetaOptNet, FEAT; 12,424,320 parameters) and 64-128-256-512 (Meta-Baseline;
    7,996,800). An 84×84 image ends as 5×5; without the last pooling as 10×10, which makes a finer activation map.

    Args:
        widths: channels of the four blocks.
        last_pool: whether the fourth block pools.

    Source: Lee et al., Meta-Learning with Differentiable Convex Optimization, 2019, §4.1 (without its drop-out layers).
    """

    def __init__(self, *, widths: Sequence[int] = (64, 160, 320, 640), last_pool: bool = True) -> None:
        super().__init__()
        if len(widths) != 4:
            raise InputError(f"ResNet-12 has four widths, got {len(widths)}: {tuple(widths)}")
        inputs = (3, *widths[:3])
        pools = (True, True, True, last_pool)
        blocks = [
            nn.Sequential(_Block(*channels, pool=pool)) for *channels, pool in zip(inputs, widths, pools, strict=True)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = blocks
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu", a=0.1)

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b k h w"]:
        """The feature map."""
        feature_map: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(images))))
        return feature_map


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, *, pool: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(in_channels, channels), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _convolution(channels, channels), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _convolution(channels, channels), nn.BatchNorm2d(channels)
        shortcut = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))
        self.activation = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.activation(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        pooled: Tensor = self.pool(self.activation(y + self.downsample(x)))
        return pooled


def _convolution(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
