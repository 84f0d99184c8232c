"""Networks of few-shot learning: Conv-4, ResNet-12 with DropBlock, and WRN-28-10."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...errors import InputError


def draw_by_fan_out(network: nn.Module, **how: Any) -> None:
    """Draw the weights of all convolutions anew, normal with a spread by their outputs (He et al. 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", **{"nonlinearity": "relu", **how})


class Conv4(nn.Sequential):
    """Four times 3×3 convolution, batch norm, ReLU, 2×2 max pooling; 113,088 parameters at the usual width.

    An 84×84 image ends as 5×5, a 28×28 one as 1×1, which leaves nothing to localise: enlarge it, or leave out the
    last pooling.

    Args:
        width: channels of every layer.
        last_pool: whether the fourth block pools; without it the map has twice the rows and columns.

    Source: Snell et al., Prototypical Networks for Few-shot Learning, 2017, §3.1.
    """

    def __init__(self, *, width: int = 64, last_pool: bool = True) -> None:
        super().__init__()
        blocks = []
        for i in range(4):
            convolution = nn.Conv2d(3 if i == 0 else width, width, 3, padding=1)
            layers = [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            blocks.append(nn.Sequential(*layers, *([nn.MaxPool2d(2)] if last_pool or i < 3 else [])))
        self.encoder = nn.Sequential(*blocks)


class DropBlock(nn.Module):
    """Squares of the feature map set to 0 in training, the rest scaled up; nothing at all in evaluation mode.

    The share of positions that are dropped rises linearly from 0 to `rate` over the first `ramp` training batches. The
    count of batches lies in the state dict, so a run that goes on from a checkpoint goes on along the ramp; evaluation
    does not move it. A square larger than the map covers the whole map: then whole channels are dropped.

    Args:
        rate: share of positions that are dropped in the end, in [0, 1).
        size: side of the squares in positions.
        ramp: training batches until `rate` is reached; 0 starts with it.

    Source: Ghiasi et al., DropBlock, 2018, Eq. 1; the ramp as in §3.
    """

    num_batches_tracked: Tensor

    def __init__(self, rate: float, *, size: int = 5, ramp: int = 0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"a drop rate lies in [0, 1), got {rate}")
        if size < 1 or ramp < 0:
            raise InputError(f"DropBlock needs a size of at least 1 and a ramp of at least 0, got {size} and {ramp}")
        self.rate, self.size, self.ramp = rate, size, ramp
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    @property
    def current_rate(self) -> float:
        """The share of positions that the next training batch loses."""
        return self.rate * (min(1.0, int(self.num_batches_tracked) / self.ramp) if self.ramp else 1.0)

    def forward(self, feature_map: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        """The feature map, in training mode with holes."""
        if not self.training:
            return feature_map
        # as torchvision's `drop_block2d`, which refuses squares of an even side: what a small map leaves of one
        rows, columns = (min(self.size, side) for side in feature_map.shape[-2:])
        starts = feature_map[..., rows - 1 :, columns - 1 :]  # as many as there are places for a square
        gamma = self.current_rate * feature_map[0, 0].numel() / (rows * columns * starts[0, 0].numel())
        self.num_batches_tracked += 1
        seeds = torch.empty_like(starts, memory_format=torch.contiguous_format).bernoulli_(min(gamma, 1.0))
        spread = functional.pad(seeds, (columns - 1, columns - 1, rows - 1, rows - 1))
        kept = 1 - functional.max_pool2d(spread, (rows, columns), stride=1)
        return feature_map * kept * (kept.numel() / kept.sum().clamp(min=1))

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"rate={self.rate}, size={self.size}, ramp={self.ramp}"


class ResNet12(nn.Sequential):
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
        stages = []
        for number, (inputs, outputs) in enumerate(zip((3, *widths[:3]), widths, strict=True)):
            stages.append(nn.Sequential(_ResidualBlock(inputs, outputs)))
            if last_pool or number < 3:
                stages[-1].append(nn.MaxPool2d(2))
            if drop_rate:
                dropped = DropBlock(drop_rate, size=drop_size, ramp=drop_ramp)
                stages[-1].append(nn.Dropout(drop_rate) if number < 2 else dropped)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        draw_by_fan_out(self, nonlinearity="leaky_relu", a=0.1)


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        inner: Any = {"kernel_size": 3, "padding": 1, "bias": False}
        self.conv1, self.bn1 = nn.Conv2d(in_channels, channels, **inner), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, **inner), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, channels, **inner), nn.BatchNorm2d(channels)
        shortcut = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))
        self.activation = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.activation(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        activated: Tensor = self.activation(y + self.downsample(x))
        return activated


class WideResNet(nn.Sequential):
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
        for number, (inputs, outputs) in enumerate(pairwise(channels), start=1):
            group = nn.Sequential(_WideBlock(inputs, outputs, stride=min(number, 2), drop_rate=drop_rate))
            for _ in range(blocks - 1):
                group.append(_WideBlock(outputs, outputs, stride=1, drop_rate=drop_rate))
            self.add_module(f"layer{number}", group)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.relu = nn.ReLU()
        draw_by_fan_out(self)


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
