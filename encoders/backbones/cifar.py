"""Networks of CIFAR's tables: ResNet, ResNeXt, DenseNet-BC and PyramidNet for 32×32 images, which end as 8×8 maps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...errors import InputError
from .few_shot import DropBlock, draw_by_fan_out
from .torchvisions import StochasticDepth, models

Block = Callable[[int, int, int], "_Residual"]  # of so many channels, in a stage from 0 on, with a stride
DROPS = ("none", "stochastic_depth", "shake_drop", "drop_block")


class ShakeDrop(nn.Module):
    """A residual branch that is, with the probability `rate`, multiplied by α in [-1, 1], its gradient by β in [0, 1].

    One decision for a batch, α and β for each image; in evaluation mode the branch is multiplied by 1 - rate.

    Source: Yamada et al., ShakeDrop Regularization for Deep Residual Learning, 2019, Eq. 6 and §3.4.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        """The branch, shaken."""
        if not self.training:
            return branch * (1 - self.rate)
        if float(torch.rand(())) >= self.rate:
            return branch
        alpha, beta = torch.rand(2, len(branch), 1, 1, 1, device=branch.device, dtype=branch.dtype)
        back = beta * branch
        shaken: Tensor = back + ((2 * alpha - 1) * branch - back).detach()
        return shaken


class _Residual(nn.Module):
    """A branch added to its input or to the shortcut's output, in which channels that are missing are 0."""

    def __init__(self, branch: list[nn.Module], shortcut: nn.Module | None, *, is_activated: bool = True) -> None:
        super().__init__()
        self.branch, self.shortcut = nn.Sequential(*branch), shortcut
        self.relu = nn.ReLU() if is_activated else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        x = x if self.shortcut is None else self.shortcut(x)
        total: Tensor = y + functional.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return total if self.relu is None else self.relu(total)


class ResidualStages(nn.Sequential):
    """A convolution and three stages of residual blocks, the second and third of which begin with a stride of 2.

    Args:
        stem: channels of the convolution.
        blocks: how many a stage has.
        block: makes one.
        ends: whether batch norm and ReLU come behind the last block, and not behind the first convolution.
        drop: what is dropped in training: "stochastic_depth" leaves out branches, those of a whole batch (Huang et al.,
            2016, but scaled up in training, not down afterwards), "shake_drop" shakes them, and "drop_block" cuts
            squares out of the last two stages, behind every block (Ghiasi et al., 2018).
        drop_rate: of the last block; that of the others is in proportion to their depth, but the same for "drop_block".
        drop_size: side of DropBlock's squares in positions.
    """

    def __init__(
        self,
        stem: int,
        blocks: int,
        block: Block,
        *,
        ends: bool = False,
        drop: str = "none",
        drop_rate: float = 0.5,
        drop_size: int = 5,
    ) -> None:
        super().__init__()
        if drop not in DROPS or not 0 <= drop_rate < 1:
            raise InputError(
                f"expected drop as one of {', '.join(DROPS)}, and drop_rate in [0, 1); got {drop!r} and {drop_rate}"
            )
        channels, stages = stem, [nn.Sequential() for _ in range(3)]
        for place in range(3 * blocks):
            stage, rate = place // blocks, drop_rate * (place + 1) / (3 * blocks)
            built = block(channels, stage, 2 if stage and place % blocks == 0 else 1)
            channels = next(part for part in reversed(built.branch) if isinstance(part, nn.BatchNorm2d)).num_features
            if drop in ("stochastic_depth", "shake_drop"):
                is_shaken = drop == "shake_drop"
                built.branch.append(ShakeDrop(rate) if is_shaken else StochasticDepth(rate, "batch"))
            stages[stage].append(built)
            if drop == "drop_block" and stage:
                stages[stage].append(DropBlock(drop_rate, size=drop_size))
        self.stem = nn.Sequential(*_normed(3, stem, 3), *([] if ends else [nn.ReLU()]))
        self.layer1, self.layer2, self.layer3 = stages
        self.relu = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()) if ends else nn.Identity()
        draw_by_fan_out(self)


def _normed(inputs: int, outputs: int, side: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, and its batch norm."""
    convolution = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def _blocks(name: str, depth: int, layers: int) -> int:
    """The blocks of so many layers in each of the three stages of a network with two further layers."""
    blocks, rest = divmod(depth - 2, 3 * layers)
    if blocks < 1 or rest:
        raise InputError(f"a {name} for CIFAR has {3 * layers}n + 2 layers, got {depth}")
    return blocks


def cifar_resnet(*, depth: int = 56, **dropped: Any) -> ResidualStages:
    """Blocks of two 3×3 convolutions with 16, 32, 64 channels; .85 M parameters with 56 layers, 1.7 M with 110.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, §4.2 and Table 6; shortcuts are of kind A.
    `dropped` are options of `ResidualStages`.
    """

    def block(channels: int, stage: int, stride: int) -> _Residual:
        width = 16 * 2**stage
        branch = [*_normed(channels, width, 3, stride=stride), nn.ReLU(), *_normed(width, width, 3)]
        return _Residual(branch, nn.AvgPool2d(1, stride) if stride > 1 else None)

    return ResidualStages(16, _blocks("ResNet", depth, 2), block, **dropped)


def cifar_resnext(*, depth: int = 29, groups: int = 8, width: int = 64, **dropped: Any) -> ResidualStages:
    """Bottlenecks of `groups` times `width` channels, doubled in each stage; 34.4 M parameters with 29 layers, 8×64.

    Source: Xie et al., Aggregated Residual Transformations for Deep Neural Networks, 2017, §5.3 and Table 7.
    `dropped` are options of `ResidualStages`.
    """
    if groups < 1 or width < 1:
        raise InputError(f"a ResNeXt has one group or more, of one channel or more; got {groups} and {width}")

    def block(channels: int, stage: int, stride: int) -> _Residual:
        inner, outer = groups * width * 2**stage, 256 * 2**stage
        grouped = _normed(inner, inner, 3, stride=stride, groups=groups)
        branch = [*_normed(channels, inner, 1), nn.ReLU(), *grouped, nn.ReLU(), *_normed(inner, outer, 1)]
        return _Residual(
            branch, nn.Sequential(*_normed(channels, outer, 1, stride=stride)) if channels != outer else None
        )

    return ResidualStages(64, _blocks("ResNeXt", depth, 3), block, **dropped)


def pyramidnet(*, depth: int = 200, alpha: int = 240, **dropped: Any) -> ResidualStages:
    """Bottlenecks that widen with every block, by `alpha` from 16 on in all; 26.8 M parameters with 200 layers and 240.

    Source: Han et al., Deep Pyramidal Residual Networks, 2017, Eq. 3, Figure 6 (d), Table 4. `dropped` are options of
    `ResidualStages`.
    """
    blocks = _blocks("PyramidNet", depth, 3)
    if alpha < 0:
        raise InputError(f"a PyramidNet widens by alpha of at least 0, got {alpha}")
    widths = iter([round(16 + alpha * number / (3 * blocks)) for number in range(1, 3 * blocks + 1)])

    def block(channels: int, _stage: int, stride: int) -> _Residual:
        width = next(widths)
        branch: list[nn.Module] = [nn.BatchNorm2d(channels), *_normed(channels, width, 1), nn.ReLU()]
        branch += [*_normed(width, width, 3, stride=stride), nn.ReLU(), *_normed(width, 4 * width, 1)]
        return _Residual(branch, nn.AvgPool2d(2) if stride > 1 else None, is_activated=False)

    return ResidualStages(16, blocks, block, ends=True, **dropped)


def densenet_bc(*, depth: int = 190, growth: int = 40, drop_rate: float = 0.0) -> nn.Sequential:
    """Torchvision's DenseNet with a stem and three blocks for CIFAR; 25.6 M parameters with 190 layers and growth 40.

    `drop_rate` is that of the drop-out behind every dense layer.

    Source: Huang et al., Densely Connected Convolutional Networks, 2017, §3 and Table 2.
    """
    if depth < 10 or (depth - 4) % 6 or growth < 1:
        raise InputError(f"a DenseNet-BC has 6n + 4 layers (100, 190, 250, …), got {depth} and growth {growth}")
    whole = models.DenseNet(growth, ((depth - 4) // 6,) * 3, 2 * growth, drop_rate=drop_rate)
    parts = OrderedDict(whole.features.named_children())
    parts["conv0"] = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(parts["conv0"].weight)
    kept = OrderedDict((name, part) for name, part in parts.items() if name not in ("norm0", "relu0", "pool0"))
    return nn.Sequential(OrderedDict([("features", nn.Sequential(kept)), ("relu", nn.ReLU())]))
