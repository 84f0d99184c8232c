"""Networks made fast once they are frozen: batch norms absorbed by convolutions, and weights cast once."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .encoder import Encoder
from .layers import watch_parts
from .names import library_of

_PROBE = 64  # pixels


class _CastOnce(nn.Conv2d):
    """A frozen convolution that keeps its weights in bfloat16 too: autocast would cast them anew at every call."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):
            weight, bias = self.__dict__["low"]
        output: Tensor = super()._conv_forward(input, weight, bias)
        return output


def cast_once(network: nn.Module) -> None:
    """Store the convolutions' weights of a frozen network on its device in bfloat16 too."""
    for part in network.modules():
        if type(part) is nn.Conv2d and "weight" in part._parameters:
            low = part.weight.bfloat16(), None if part.bias is None else part.bias.bfloat16()
            part.__class__, part.__dict__["low"] = _CastOnce, low


def absorb_batch_norms(encoder: Encoder, device: torch.device) -> None:
    """Absorb the batch norms of the backbone; a small image tells enough of a network that is known by name."""
    size = (encoder.transform.height, encoder.transform.width)
    is_known = encoder.options is not None and library_of(encoder.architecture) is None
    small = (min(_PROBE, size[0]), min(_PROBE, size[1])) if is_known else size
    for rows, columns in (small, size):
        probe = torch.randn(1, 3, rows, columns, generator=torch.Generator().manual_seed(0))
        try:
            fuse_batch_norms(encoder.backbone, probe.to(device))
            break
        except (RuntimeError, ValueError, AssertionError):  # of networks that take no image but of their own size
            if (rows, columns) == size:
                raise


@torch.no_grad()
def fuse_batch_norms(network: nn.Module, probe: Float[Tensor, "b 3 h w"]) -> None:
    """Fuse the batch norms of a network in evaluation mode into the convolutions before them.

    The order is seen by watching one forward pass, so any code will do, and the result is believed only if it gives the
    probe the same output; else the network is as it was.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return
    expected, pairs = _watched_pairs(network, probe)
    before = [(convolution, convolution.weight, convolution.bias) for convolution, _ in pairs]
    norms = {norm for _, norm in pairs}
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent._modules.items()
        if child in norms
    ]
    for convolution, norm in pairs:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
        )
    for parent, name, _ in places:
        setattr(parent, name, nn.Identity())
    if not (network(probe) - expected).abs().max() <= 1e-3 * expected.abs().max():
        for convolution, weight, bias in before:
            convolution.weight, convolution.bias = weight, bias
        for parent, name, norm in places:
            setattr(parent, name, norm)


def _watched_pairs(network: nn.Module, probe: Tensor) -> tuple[Tensor, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """The output, and convolutions whose output went straight into a batch norm, where both ran once."""
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    inputs: list[tuple[nn.BatchNorm2d, Tensor]] = []

    def after(_name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        # A weight that hooks compute anew before each pass (old weight norm, pruning) is no parameter to be replaced.
        if type(module) is nn.Conv2d and "weight" in module._parameters:
            outputs.append((module, output))

    def before(_name: str, module: nn.Module, args: Any) -> None:
        if type(module) is nn.BatchNorm2d and module.track_running_stats:
            inputs.append((module, args[0]))

    output = watch_parts(network, probe, before=before, after=after)
    runs = [module for module, _ in [*outputs, *inputs]]
    # The tensors are held until here, so that `is` means the same tensor and not the same address used again.
    return output, [
        (convolution, norm)
        for convolution, made in outputs
        for norm, value in inputs
        if value is made and runs.count(convolution) == runs.count(norm) == 1
    ]
