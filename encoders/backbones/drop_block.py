"""DropBlock whose strength grows on a schedule that is part of the network, and so of its checkpoint."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import drop_block2d

from ...errors import InputError


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
        rate = self.current_rate
        self.num_batches_tracked += 1
        dropped: Tensor = drop_block2d(feature_map, p=rate, block_size=self.size)
        return dropped

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"rate={self.rate}, size={self.size}, ramp={self.ramp}"
