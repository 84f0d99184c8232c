"""Wrappers around a network: DataParallel, torch.compile, averaged copies.

An encoder takes the network out of them once, at the door, so that names, layers and the fingerprint are those of the
network alone. What can be neither looked into nor copied is refused there, too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from ...errors import InputError

_TRANSPARENT = {"module", "_orig_mod"}  # the names under which wrappers keep their network


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, torch.compile and AveragedModel, nested in any order.

    >>> unwrapped(nn.DataParallel(nn.ReLU()))
    ReLU()
    """
    while (name := _inner_name(module)) is not None:
        module = module.get_submodule(name)
    return module


def _inner_name(module: nn.Module) -> str | None:
    """The name of the network in a wrapper that does nothing but call it; None for everything else."""
    if type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module):
        return "_orig_mod"
    return "module" if isinstance(module, DataParallel | DistributedDataParallel | AveragedModel) else None


def plain_name(name: str) -> str:
    """The name of a tensor or layer without the parts that wrappers add.

    >>> plain_name("module._orig_mod.layer4.0.conv1.weight")
    'layer4.0.conv1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def find_layer(network: nn.Module, layer: str) -> tuple[str, str]:
    """A layer's name in the network, and the name that it has without the wrappers on the way.

    The name may be given with the parts that a wrapper adds or without them. One that fits nothing comes back as it is.
    """
    if not isinstance(layer, str):
        raise InputError(f"expected a layer's name, such as 'layer4', got {type(layer).__name__}")
    names = [name for name, _ in network.named_modules(remove_duplicate=False) if name]  # a part may have two names
    if layer in names:
        found = layer
    else:
        alike = [
            name
            for name in names
            if plain_name(name) == plain_name(layer) and _inner_name(network.get_submodule(name)) is None
        ]
        if len(alike) != 1:
            return layer, layer
        found = alike[0]
    plain, parent = [], network  # the parts of the name, less those that lead into a wrapper
    for part in found.split("."):
        if _inner_name(parent) != part:
            plain.append(part)
        parent = parent.get_submodule(part)
    return found, ".".join(plain)


def eagerly(network: nn.Module) -> AbstractContextManager[object]:
    """Inside, compiled parts of the network run as Python does: compiled code does not call a hook set afterwards."""
    is_compiled = any(
        _inner_name(part) == "_orig_mod" or getattr(part, "_compiled_call_impl", None) is not None
        for part in network.modules()
    )
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


def require_usable(network: nn.Module) -> None:
    """Refuse what can be neither looked into nor copied."""
    for name, part in network.named_modules():
        what = f"{type(network).__name__}{f' (at {name!r})' if name else ''}"
        if "train" in vars(part):  # torch.export replaces it by a refusal
            raise InputError(
                f"{what} is an exported program, which is fixed in its mode; hand over the module it was exported from"
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise InputError(
                f"{what} is TorchScript, which can be neither copied nor read out at a layer; hand over the eager "
                "module (before torch.jit) with the same weights"
            )
        own = [tensor for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None]
        if any(is_lazy(tensor) for tensor in own):
            raise InputError(f"{what} has lazy parts that have no weights yet; run it once on an image first")
        if any(tensor.is_meta for tensor in own):
            raise InputError(f"{what} has weights on the meta device, without values; load them first")
        if any(tensor.layout != torch.strided for tensor in own):
            raise InputError(f"{what} has sparse weights, which can be neither compared nor copied; use .to_dense()")
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")) or any(
            tensor.is_quantized for tensor in own
        ):
            raise InputError(
                f"{what} is quantised: its packed weights can be neither compared nor copied; hand over the fp32 "
                "module (before quantisation) and choose precision='bf16' for speed"
            )
