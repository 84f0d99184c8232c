"""ResNet-38, the wide residual network of weakly supervised segmentation (AffinityNet, SEAM, CPN)."""

from __future__ import annotations

from torch import Tensor, nn

from ...errors import InputError
from .few_shot import draw_by_fan_out

# Of published checkpoints: classifiers and refinements that are no part of the backbone.
RESNET38_SPARE = frozenset(
    ["linear1000.bias", *(f"{name}.weight" for name in ("fc8", "f8_3", "f8_4", "f8_5", "f9", "f10", "linear1000"))]
)


class ResNet38(nn.Sequential):
    """Wide pre-activation ResNet, model A1, with a map of 4096 channels at an eighth of the image's side.

    The fifth stage spreads its kernels by 2 and the last two blocks by 4, in place of two further strides. Layers are
    called as in AffinityNet's and SEAM's code, so their state dicts load, and so does the MXNet file of the published
    ImageNet weights (`…_cls1000_ep-0001.params`); none come with this package, and from random ones a training takes
    days. Layers of interest: `b5.relu_branch2a` is what the fourth stage hands on (512
    channels), `b6.relu_branch2a` the fifth's (1024), both after batch norm and ReLU; `relu7` is the map.

    Args:
        width: channels of the first convolution, 64 in the paper; all others are multiples of it. Less for trying out.
        drop_rate: of the drop-out of whole channels in the last block but one and the last one.

    Source: Wu et al., Wider or Deeper: Revisiting the ResNet Model for Visual Recognition, 2019, Table 1, model A1.
    """

    def __init__(self, *, width: int = 64, drop_rate: tuple[float, float] = (0.3, 0.5)) -> None:
        super().__init__()
        if width < 1 or not all(0 <= rate < 1 for rate in drop_rate):
            raise InputError(f"ResNet-38 needs width ≥ 1 and drop rates in [0, 1), got {width} and {drop_rate}")
        w = width
        self.conv1a = nn.Conv2d(3, w, 3, padding=1, bias=False)
        self.b2 = _ResUnit(w, 2 * w, 2 * w, stride=2)
        self.b2_1, self.b2_2 = (_ResUnit(2 * w, 2 * w, 2 * w) for _ in range(2))
        self.b3 = _ResUnit(2 * w, 4 * w, 4 * w, stride=2)
        self.b3_1, self.b3_2 = (_ResUnit(4 * w, 4 * w, 4 * w) for _ in range(2))
        self.b4 = _ResUnit(4 * w, 8 * w, 8 * w, stride=2)
        self.b4_1, self.b4_2, self.b4_3, self.b4_4, self.b4_5 = (_ResUnit(8 * w, 8 * w, 8 * w) for _ in range(5))
        self.b5 = _ResUnit(8 * w, 8 * w, 16 * w, dilation=(1, 2))
        self.b5_1, self.b5_2 = (_ResUnit(16 * w, 8 * w, 16 * w, dilation=(2, 2)) for _ in range(2))
        self.b6 = _Bottleneck(16 * w, 32 * w, dilation=4, drop_rate=drop_rate[0])
        self.b7 = _Bottleneck(32 * w, 64 * w, dilation=4, drop_rate=drop_rate[1])
        self.bn7, self.relu7 = nn.BatchNorm2d(64 * w), nn.ReLU()
        draw_by_fan_out(self)


class _ResUnit(nn.Module):
    """Batch norm, ReLU, 3×3 convolution, twice; where channels or size change, the shortcut starts after the ReLU."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, *, stride: int = 1, dilation: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = dilation
        self.bn_branch2a, self.relu_branch2a = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv_branch2a = nn.Conv2d(inputs, middle, 3, stride, padding=first, dilation=first, bias=False)
        self.bn_branch2b1, self.relu_branch2b1 = nn.BatchNorm2d(middle), nn.ReLU()
        self.conv_branch2b1 = nn.Conv2d(middle, outputs, 3, padding=second, dilation=second, bias=False)
        changes = inputs != outputs or stride != 1
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu_branch2a(self.bn_branch2a(x))
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(y)
        y = self.relu_branch2b1(self.bn_branch2b1(self.conv_branch2a(y)))
        total: Tensor = shortcut + self.conv_branch2b1(y)
        return total


class _Bottleneck(nn.Module):
    """1×1 convolution to a quarter of the channels, spread 3×3 to a half, 1×1 to all of them."""

    def __init__(self, inputs: int, outputs: int, *, dilation: int, drop_rate: float) -> None:
        super().__init__()
        self.bn_branch2a, self.relu_branch2a = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv_branch2a = nn.Conv2d(inputs, outputs // 4, 1, bias=False)
        self.bn_branch2b1, self.relu_branch2b1 = nn.BatchNorm2d(outputs // 4), nn.ReLU()
        self.dropout_2b1 = nn.Dropout2d(drop_rate)
        self.conv_branch2b1 = nn.Conv2d(outputs // 4, outputs // 2, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2, self.relu_branch2b2 = nn.BatchNorm2d(outputs // 2), nn.ReLU()
        self.dropout_2b2 = nn.Dropout2d(drop_rate)
        self.conv_branch2b2 = nn.Conv2d(outputs // 2, outputs, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu_branch2a(self.bn_branch2a(x))
        shortcut = self.conv_branch1(y)
        y = self.relu_branch2b1(self.bn_branch2b1(self.conv_branch2a(y)))
        y = self.relu_branch2b2(self.bn_branch2b2(self.conv_branch2b1(self.dropout_2b1(y))))
        total: Tensor = shortcut + self.conv_branch2b2(self.dropout_2b2(y))
        return total
