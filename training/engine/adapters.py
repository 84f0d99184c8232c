"""Low-rank adapters beside the matrices of a frozen backbone (LoRA), by peft; merged into them when training ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...encoders import Encoder
from ...encoders.layers import closest, watch_parts
from ...encoders.readouts import source_of
from ...encoders.weight_files import drawn_from
from ...errors import InputError, MissingExtraError
from ..recipes.settings import LoraSettings

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


@contextmanager
def adapted(encoder: Encoder, settings: LoraSettings | None, *, seed: int) -> Iterator[None]:
    """Inside, layers of the backbone have adapters, which change nothing yet; then these are part of the weights."""
    if settings is None:
        yield
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("run.lora needs peft: pip install 'distcam[lora]', or leave it out") from error
    network, _ = source_of(encoder.backbone)
    names = _targets(encoder, network, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,
        lora_dropout=settings.dropout,
        target_modules="|".join(map(re.escape, names)),
    )
    try:
        try:
            with drawn_from(seed):
                inject_adapter_in_model(config, network)
        except ValueError as error:
            raise InputError(f"run.lora: peft cannot adapt {', '.join(names)}: {error}") from error
        yield
    finally:
        merge_adapters(encoder)


def layers_with_adapters(encoder: Encoder) -> list[Any]:
    """The layers of peft around those of the backbone."""
    return [part for part in encoder.modules() if hasattr(part, "lora_A") and hasattr(part, "get_base_layer")]


@torch.no_grad()
def merge_adapters(encoder: Encoder) -> None:
    """Add what adapters have learnt to the weights, and take the adapters away."""
    names = {part: name for name, part in encoder.named_modules()}
    for layer in layers_with_adapters(encoder):
        inner = layer.get_base_layer()
        # not by peft's `merge`, which writes through `.data`, so that no fingerprint would see the change
        inner.weight += layer.get_delta_weight("default")
        encoder.set_submodule(names[layer], inner)


def _targets(encoder: Encoder, network: nn.Module, settings: LoraSettings) -> list[str]:
    """The names of the layers that get an adapter; each is one that runs, as nothing else would learn."""
    ran: set[str] = set()
    image = next(network.parameters()).new_zeros(1, 3, encoder.transform.height, encoder.transform.width)
    watch_parts(network, image, after=lambda name, *_: ran.add(name))
    kinds = {name: type(part) for name, part in network.named_modules() if name in ran}
    matrices = [name for name, kind in kinds.items() if issubclass(kind, nn.Linear | nn.Conv2d)]
    for target in settings.targets:
        if not any(f".{name}".endswith(f".{target}") for name in matrices):
            raise InputError(
                "run.lora.targets: no linear layer or convolution that runs as a layer of its own is called "
                f"{target!r}; nearest: {closest(target, matrices)}"
            )
    if settings.targets:
        return [name for name in matrices if f".{name}".endswith(tuple(f".{target}" for target in settings.targets))]
    projections = [
        name
        for name in matrices
        if issubclass(kinds[name], nn.Linear) and _ATTENTION.search(name.rpartition(".")[0]) and "mlp" not in name
    ]
    if not projections:
        raise InputError(
            f"run.lora: {encoder.architecture} has no attention whose projections run as layers of their own (CNNs "
            "have none; nn.MultiheadAttention of open_clip and torchvision takes their weights alone); name ends of "
            f"other layers' names in run.lora.targets, such as {closest('mlp.fc1', matrices)}"
        )
    return projections
