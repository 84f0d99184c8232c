"""Convolutions that absorb the batch norm behind them: the same network in evaluation mode with fewer steps."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fuse_batch_norms(network: nn.Module, probe: Float[Tensor, "b 3 h w"]) -> nn.Module:
    """A copy of a network in evaluation mode in which convolutions have absorbed the batch norms that follow them.

    Which follows which is seen by watching one forward pass, so any code will do, and the result is believed only if
    it gives the probe the same output. The network itself comes back when there is nothing to fuse or when it does not.

    Args:
        network: in evaluation mode; left as it is.
        probe: some input of the size in use; noise shows differences best.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    fused = deepcopy(network)
    with torch.no_grad():
        expected = network(probe)
        for convolution, norm in _pairs(fused, probe):
            _absorb(fused, convolution, norm)
        scale = expected.abs().max()
        agrees = bool(((fused(probe) - expected).abs().max() <= 1e-3 * scale).item())
    return fused if agrees else network


def _pairs(network: nn.Module, probe: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions whose output went straight into a batch norm, where both ran once."""
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    inputs: list[tuple[nn.BatchNorm2d, Tensor]] = []

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        # A weight that hooks compute anew before each pass (old weight norm, pruning) is no parameter to be replaced.
        if type(module) is nn.Conv2d and "weight" in module._parameters:
            outputs.append((module, output))

    def before(module: nn.Module, args: Any) -> None:
        if type(module) is nn.BatchNorm2d and module.track_running_stats:
            inputs.append((module, args[0]))

    handles = [module.register_forward_hook(after) for module in network.modules()]
    handles += [module.register_forward_pre_hook(before) for module in network.modules()]
    try:
        network(probe)
    finally:
        for handle in handles:
            handle.remove()
    runs = [module for module, _ in [*outputs, *inputs]]
    # The tensors are held until here, so that `is` means the same tensor and not the same address used again.
    return [
        (convolution, norm)
        for convolution, output in outputs
        for norm, value in inputs
        if value is output and runs.count(convolution) == runs.count(norm) == 1
    ]


def _absorb(network: nn.Module, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    for parent in network.modules():
        for name, child in list(parent.named_children()):
            if child is norm:
                setattr(parent, name, nn.Identity())
