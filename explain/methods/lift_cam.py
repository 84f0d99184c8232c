"""LIFT-CAM: channels weighted by their DeepLIFT contributions, an approximation of their Shapley values.

How it is settled here. The reference is the layer's map with 0 everywhere, and the contribution of A_kij is its
DeepLIFT contribution to y. Behind the layer, each operation passes a multiplier back instead of a derivative:

- linear operations: their weights;
- functions of one number (ReLU, GELU, sigmoid, powers and roots, magnitude…): the rescale rule, the quotient of the
  differences Δout / Δin between the image and the reference, or the derivative where Δin is 0;
- maximum pooling: each window's difference goes to the place of the image's maximum, and what the reference has more
  to that of the reference's maximum;
- scaling to length 1 (the cosine) and layer norm: the length or spread is held at the image's own;
- everything else (attention, products of two maps): the derivative at the image.

With the first three kinds alone the contributions sum to y(image) - y(reference), and so they do with a layer norm that
meets nothing but zeros in the reference. Operations are recognised whether they are modules or calls, and modules may
be used several times.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..layer_runs import LayerRun, LayerView, jacobian
from ..targets import TargetScore

ACTIVATIONS = {"relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign"}
SQUASHING = {"sigmoid", "logsigmoid", "hardsigmoid", "tanh", "hardtanh", "hardswish"}
POWERS = {"pow", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log"}
ELEMENTWISE = ACTIVATIONS | SQUASHING | POWERS | {"abs", "clamp", "clamp_min"}
SAME = 1e-7  # differences below this share of the values count as none


def lift_weights(view: LayerView) -> Float[Tensor, "b m k"]:
    """LIFT-CAM's weight of each channel, the sum of its contributions."""
    return lift_contributions(view.run, view.score).sum((-2, -1))


def lift_contributions(run: LayerRun, score: TargetScore) -> Float[Tensor, "b m k h w"]:
    """The DeepLIFT contribution of every value of the layer's map to each score.

    Source: Jung and Oh, Towards Better Explanations of Class Activation Mapping, 2021, §3.3; Shrikumar et al., Learning
    Important Features Through Propagating Activation Differences, 2017, §3.5.1.
    """
    rows = torch.arange(score.n_images, device=run.images.device).repeat(2)
    with _Rescaled(2 * score.n_images):
        scores = score(run.beside_zero(), rows)[: score.n_images]
    (multipliers,) = jacobian(scores, [run.leaf])
    maps = run.as_map(multipliers.flatten(0, 1))
    return (maps.reshape(*multipliers.shape[:2], *maps.shape[1:]) * run.activations).transpose(0, 1)


class _Rescaled(TorchFunctionMode):
    """While it lasts, non-linear functions of a batch of images and their references pass multipliers back."""

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        self.n_rows = n_rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args else kwargs.get("input")
        is_batch = isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and x.shape[:1] == (self.n_rows,)
        if not (is_batch and x.requires_grad):
            return func(*args, **kwargs)
        given = getattr(func, "__name__", "")
        name = given.strip("_")  # `pow`, or `__pow__` for the operator; `relu_` works in place

        def call(values: Tensor) -> Any:
            return func(values, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})

        if name in ELEMENTWISE:
            out = _rescaled(x, call)
            return x.copy_(out) if given == f"{name}_" else out
        if name == "max_pool2d" and x.ndim == 4:
            return _max_pooled(x, args[1:], kwargs)
        if name in ("normalize", "layer_norm"):
            return _held(x, func, args, kwargs)
        return func(*args, **kwargs)


def _rescaled(x: Tensor, function: Callable[[Tensor], Any]) -> Tensor:
    """function(x), with Δout / Δin in place of its derivative."""
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        out = function(point.clone())  # the function may work in place
        (slope,) = torch.autograd.grad(out.sum(), point)
    value: Tensor = out.detach()
    before = x.detach()
    d_in, d_out = (_difference(pair).repeat(2, *[1] * (x.ndim - 1)) for pair in (before, value))
    is_same = d_in.abs() <= SAME * before.abs().amax()
    multiplier = torch.where(is_same, slope, d_out / _nonzero(d_in))
    return value + multiplier * (x - before)


def _max_pooled(x: Tensor, args: Any, kwargs: Any) -> Tensor:
    """The maxima of the windows, with the rule for maximum pooling in place of the derivative."""
    before = x.detach()
    value, places = functional.max_pool2d(before, *args[:5], **{**kwargs, "return_indices": True})
    n = len(x) // 2
    (image, reference), d_in = value.chunk(2), _difference(before)
    larger = torch.maximum(image, reference)
    share = (x[:n] * torch.where(d_in == 0, 0.0, 1 / _nonzero(d_in))).flatten(2)
    gain = sum(
        share.gather(2, where.flatten(2)).view_as(image) * change
        for where, change in ((places[:n], larger - reference), (places[n:], image - larger))
    )
    return torch.cat([image + (gain - gain.detach()), reference])


def _held(x: Tensor, function: Any, args: Any, kwargs: Any) -> Tensor:
    """`normalize` or `layer_norm` of torch, in which the length or the standard deviation counts as a constant."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if function.__name__ == "normalize":
        length: Tensor = torch.linalg.vector_norm(x.detach(), given["p"], given["dim"], keepdim=True)
        return x / length.clamp(min=given["eps"])
    over = tuple(range(-len(given["normalized_shape"]), 0))
    spread: Tensor = (x.detach().var(over, correction=0, keepdim=True) + given["eps"]).sqrt()
    out = (x - x.mean(over, keepdim=True)) / spread
    out = out if given["weight"] is None else out * given["weight"]
    return out if given["bias"] is None else out + given["bias"]


def _difference(pair: Tensor) -> Tensor:
    """First half minus second half."""
    image, reference = pair.chunk(2)
    return image - reference


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values == 0, 1.0, values)
