"""ResNet-12, the residual network of few-shot learning."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ...errors import InputError
from .drop_block import DropBlock


class ResNet12(nn.Module):
    """Four residual blocks of three 3×3 convolutions, each block followed by 2×2 max pooling.

    Two widths are in use: 64-160-320-640 (MetaOptNet, FEAT; 12,424,320 parameters) and 64-128-256-512 (Meta-Baseline;
    7,996,800). An 84×84 image ends as 5×5; without the last pooling as 10×10, which makes a finer activation map.

    Args:
        widths: channels of the four blocks.
        last_pool: whether the fourth block pools.
        drop_rate: of the drop-out behind the first two blocks and of DropBlock behind the last two; the paper has 0.1.
        drop_size: side of DropBlock's squares.
        drop_ramp: training batches over which DropBlock's rate rises from 0.

    Source: Lee et al., Meta-Learning with Differentiable Convex Optimization, 2019, §4.1.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 160, 320, 640),
        last_pool: bool = True,
        drop_rate: float = 0.0,
        drop_size: int = 5,
        drop_ramp: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise InputError(f"ResNet-12 has four widths, got {len(widths)}: {tuple(widths)}")
        blocks = [_ResidualBlock(inputs, outputs) for inputs, outputs in zip((3, *widths[:3]), widths, strict=True)]
        stages = [nn.Sequential(block, nn.MaxPool2d(2)) for block in blocks[:3]]
        stages.append(nn.Sequential(blocks[3], nn.MaxPool2d(2)) if last_pool else nn.Sequential(blocks[3]))
        if drop_rate:
            for stage in stages[:2]:
                stage.append(nn.Dropout(drop_rate))
            for stage in stages[2:]:
                stage.append(DropBlock(drop_rate, size=drop_size, ramp=drop_ramp))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu", a=0.1)

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b k h w"]:
        """The feature map."""
        feature_map: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(images))))
        return feature_map


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(in_channels, channels), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _convolution(channels, channels), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _convolution(channels, channels), nn.BatchNorm2d(channels)
        shortcut = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))
        self.activation = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.activation(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        activated: Tensor = self.activation(y + self.downsample(x))
        return activated


def _convolution(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
