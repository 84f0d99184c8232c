"""From the feature map to the embedding: pooling and heads, and how much of a head is plain linear algebra.

A head that is affine in evaluation mode can be folded into the feature map, so that an activation map explains the very
space that is searched.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, ShapeError


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

    def forward(self, feature_map: Float[Tensor, "b k h w"], weights: Tensor | None = None) -> Float[Tensor, "b k"]:
        """The mean of each channel; with weights (h, w) or (b, 1, h, w), of mean 1, over a region."""
        return (feature_map if weights is None else feature_map * weights).mean((-2, -1))

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

    def forward(self, feature_map: Float[Tensor, "b k h w"], weights: Tensor | None = None) -> Float[Tensor, "b k"]:
        """The generalised mean of each channel; `weights` as for `GAP`."""
        powers = feature_map.clamp(min=self.eps).pow(self.p)
        return (powers if weights is None else powers * weights).mean((-2, -1)).pow(1 / self.p)

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


@dataclass(frozen=True, eq=False)
class Affine:
    """The map `x → weight @ x + bias`, or `x → diagonal * x + bias`, or `x → x + bias`.

    At most one of `weight` and `diagonal` is set; neither means the identity. A bias of None is zero.
    """

    weight: Float[Tensor, "d k"] | None = None
    diagonal: Float[Tensor, " k"] | None = None
    bias: Float[Tensor, " d"] | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and self.diagonal is not None:
            raise InputError("an affine map has a weight matrix or a diagonal, not both")

    def __call__(self, x: Float[Tensor, "*n k"]) -> Float[Tensor, "*n d"]:
        """The map applied to vectors that lie along the last axis.

        >>> Affine(diagonal=torch.tensor([2.0, 3.0]), bias=torch.tensor([0.0, 1.0]))(torch.tensor([[1.0, 1.0]]))
        tensor([[2., 4.]])
        """
        if self.weight is not None:
            x = x @ self.weight.mT
        elif self.diagonal is not None:
            x = x * self.diagonal
        return x if self.bias is None else x + self.bias

    def then(self, after: Affine) -> Affine:
        """The one map that does this and then `after`."""
        bias = after(self.bias) if self.bias is not None else after.bias
        if self.weight is None and after.weight is None:
            factors = [d for d in (self.diagonal, after.diagonal) if d is not None]
            return Affine(diagonal=torch.stack(factors).prod(0) if factors else None, bias=bias)
        if self.weight is None:
            assert after.weight is not None
            return Affine(after.weight if self.diagonal is None else after.weight * self.diagonal, bias=bias)
        # Columns of the first matrix are vectors too: push them through the second map, without its bias.
        return Affine(Affine(after.weight, after.diagonal)(self.weight.mT).mT, bias=bias)


class Head(nn.Module):
    """A head that distcam can write into a checkpoint. Any `nn.Module` from (b, k) to (b, d) serves as a head too."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `head_from_dict` reads it, unless its type is "custom"."""
        return {"type": "custom", "class": type(self).__qualname__}

    def affine(self) -> Affine | None:
        """The head in evaluation mode as an affine map; None when it is not one."""
        return None


class IdentityHead(Head):
    """No head: the embedding is the pooled vector."""

    def forward(self, pooled: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """The pooled vector."""
        return pooled

    def affine(self) -> Affine:
        """The identity."""
        return Affine()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `head_from_dict` reads it."""
        return {"type": "identity"}


class Linear(Head, nn.Linear):
    """A linear projection from k to d dimensions."""

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool = True) -> None:
        nn.Linear.__init__(self, in_dim, out_dim, bias=bias)

    def affine(self) -> Affine:
        """The projection itself."""
        return Affine(self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `head_from_dict` reads it."""
        bias = self.bias is not None
        return {"type": "linear", "in_dim": self.in_features, "out_dim": self.out_features, "bias": bias}


class BNNeck(Head):
    """Batch normalisation whose shift stays 0, between the metric loss's space and the classifier's.

    In evaluation mode it scales every channel and subtracts the training mean.

    Source: Luo et al., Bag of Tricks and a Strong Baseline for Deep Person Re-identification, 2019, §3.5.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.norm.bias.requires_grad_(False)

    def forward(self, pooled: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """The normalised vector."""
        normalised: Tensor = self.norm(pooled)
        return normalised

    def affine(self) -> Affine:
        """`gamma / sqrt(var + eps)` on the diagonal, and the running mean scaled by it as bias."""
        return batch_norm_affine(self.norm)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `head_from_dict` reads it."""
        return {"type": "bnneck", "dim": self.norm.num_features}


class Sequential(Head, nn.Sequential):
    """Heads one after another."""

    def affine(self) -> Affine | None:
        """The composition, as long as every part is affine."""
        return _composition(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `head_from_dict` reads it."""
        heads = [described(head) for head in self]
        is_custom = any(head["type"] == "custom" for head in heads)
        return {"type": "custom" if is_custom else "sequential", "heads": heads}


def described(head: nn.Module) -> dict[str, Any]:
    """The head as JSON can hold it; a module of the user's own is only named."""
    return head.to_dict() if isinstance(head, Head) else {"type": "custom", "class": type(head).__qualname__}


def affine_of(head: nn.Module) -> Affine | None:
    """The head in evaluation mode as an affine map, detached; None when it is not known to be one.

    Besides distcam's heads it knows torch's own `IdentityHead`, `Linear`, `BatchNorm1d`, and `Sequential` of these.
    """
    if isinstance(head, Head):
        return head.affine()
    if type(head) is nn.Identity:
        return Affine()
    if type(head) is nn.Linear:
        return Affine(head.weight.detach(), bias=None if head.bias is None else head.bias.detach())
    if type(head) is nn.BatchNorm1d:
        return batch_norm_affine(head) if head.track_running_stats else None
    return _composition(head) if type(head) is nn.Sequential else None


def _composition(heads: nn.Sequential) -> Affine | None:
    whole = Affine()
    for head in heads:
        part = affine_of(head)
        if part is None:
            return None
        whole = whole.then(part)
    return whole


def batch_norm_affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Affine:
    """The map of a norm in evaluation mode, which has running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return Affine(diagonal=scale, bias=shift if norm.bias is None else shift + norm.bias.detach())


def width_behind(head: nn.Module, width: int | None) -> int | None:
    """Numbers per image that leave a head when `width` enter; None where only running the head would tell.

    >>> width_behind(Sequential(BNNeck(64), Linear(64, 10)), 64)
    10
    """
    if type(head) is Sequential or type(head) is nn.Sequential:
        for part in head:
            width = width_behind(part, width)
        return width
    if isinstance(head, IdentityHead | nn.Identity):
        return width
    inner = head.norm if type(head) is BNNeck else head
    if type(inner) is nn.BatchNorm1d:
        takes = gives = inner.num_features
    elif type(inner) is Linear or type(inner) is nn.Linear:
        takes, gives = inner.in_features, inner.out_features
    else:
        return None
    if width not in (None, takes):
        raise ShapeError(f"the head's {type(head).__name__} was built for {takes} channels, but gets {width}")
    return gives


_PLAIN: Mapping[type[nn.Module], tuple[str, ...]] = {  # torch's own layers, and what their constructors take
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.Dropout: ("p",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Identity: (),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine", "bias"),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.ReLU: (),
}


def kept(head: nn.Module) -> dict[str, Any]:
    """The head as `head_from_dict` reads it; of type "custom" where a part is a module of the user's own."""
    if type(head) in (nn.Sequential, Sequential):
        parts = {name: kept(part) for name, part in head.named_children()}
        kind = "sequential" if type(head) is Sequential else "torch.Sequential"
        return described(head) if any(p["type"] == "custom" for p in parts.values()) else {"type": kind, "parts": parts}
    if type(head) not in _PLAIN:
        return described(head)
    options = {name: getattr(head, name) for name in _PLAIN[type(head)]}
    if "bias" in options:
        options["bias"] = options["bias"] is not None
    return {"type": f"torch.{type(head).__name__}", **options}


def head_from_dict(spec: Mapping[str, Any]) -> nn.Module:
    """The head that `kept` or `Head.to_dict` described, with fresh weights."""
    options = dict(spec)
    kind = options.pop("type", None)
    if kind in ("sequential", "torch.Sequential"):
        parts = options.get("parts") or {str(i): part for i, part in enumerate(options["heads"])}
        built = OrderedDict((name, head_from_dict(part)) for name, part in parts.items())
        return Sequential(built) if kind == "sequential" else nn.Sequential(built)
    makers: dict[object, type[nn.Module]] = {f"torch.{layer.__name__}": layer for layer in _PLAIN}
    makers |= {"identity": IdentityHead, "linear": Linear, "bnneck": BNNeck}
    if isinstance(kind, str) and kind in makers:
        return makers[kind](**options)
    raise InputError(f"unknown head {kind!r}: expected 'identity', 'linear', 'bnneck', or 'sequential'")
