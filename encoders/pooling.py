"""From a feature map to one number per channel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError


class Pooling(nn.Module):
    """Any pooling over rows and columns; derive from it for one of your own."""

    @abstractmethod
    def forward(self, feature_map: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k"]:
        """One number per image and channel."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `pooling_from` reads it, unless its type is "custom"."""
        return {"type": "custom", "class": type(self).__qualname__}


class GAP(Pooling):
    """Global average pooling: the mean over rows and columns.

    >>> GAP()(torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]]))
    tensor([[3.]])
    """

    def forward(self, feature_map: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k"]:
        """The mean of each channel."""
        return feature_map.mean((-2, -1))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `pooling_from` reads it."""
        return {"type": "gap"}


class GeM(Pooling):
    """Generalised mean: `mean(max(x, eps)^p)^(1/p)`; p = 1 is the average, p → ∞ the maximum.

    Values under `eps`, negative ones included, count as `eps`.

    Args:
        p: the exponent to start from.
        eps: the floor under the feature map.
        trainable: whether p is learnt; one p for all channels.

    Source: Radenović et al., Fine-tuning CNN Image Retrieval with No Human Annotation, 2018, Eq. 3.

    >>> GeM(p=2.0)(torch.tensor([[[[1.0, 7.0]]]])).item()
    5.0
    """

    def __init__(self, p: float = 3.0, *, eps: float = 1e-6, trainable: bool = True) -> None:
        super().__init__()
        if p <= 0 or eps <= 0:
            raise InputError(f"GeM needs p > 0 and eps > 0, got p={p}, eps={eps}")
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=trainable)
        self.eps = float(eps)

    def forward(self, feature_map: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k"]:
        """The generalised mean of each channel."""
        return feature_map.clamp(min=self.eps).pow(self.p).mean((-2, -1)).pow(1 / self.p)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `pooling_from` reads it. The exponent itself is a weight, and whether it is frozen is not kept."""
        return {"type": "gem", "eps": self.eps}

    def extra_repr(self) -> str:
        """The exponent, for `print(encoder)`."""
        return f"p={self.p.item():.3g}, eps={self.eps:g}"


def pooling_from(spec: str | Mapping[str, Any] | Pooling) -> Pooling:
    """The pooling that a name ("gap", "gem"), a `to_dict`, or a pooling itself stands for."""
    if isinstance(spec, Pooling):
        return spec
    if not isinstance(spec, str | Mapping):
        raise InputError(f"unknown pooling {spec!r}: expected 'gap', 'gem', or a Pooling")
    options = {"type": spec} if isinstance(spec, str) else dict(spec)
    kind = options.pop("type", None)
    if kind not in ("gap", "gem"):
        raise InputError(f"unknown pooling {kind!r}: expected 'gap', 'gem', or a Pooling")
    return GAP() if kind == "gap" else GeM(**options)
