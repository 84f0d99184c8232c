"""Conv-4, the four-layer network of few-shot learning."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class Conv4(nn.Module):
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
        blocks = [_block(3 if i == 0 else width, width, pool=last_pool or i < 3) for i in range(4)]
        self.encoder = nn.Sequential(*blocks)

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b k h w"]:
        """The feature map."""
        feature_map: Tensor = self.encoder(images)
        return feature_map


def _block(in_channels: int, channels: int, *, pool: bool) -> nn.Sequential:
    layers = [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)
