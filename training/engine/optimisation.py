"""The weights that are trained, at which rates, and how a gradient moves them."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from ...encoders import Encoder
from ...encoders.layers import closest
from ...encoders.readouts import source_of
from ...errors import InputError
from ..recipes.settings import OptimiserSettings, ScheduleSettings, Settings
from .backbone_parts import adapted, blocks_of, layers_with_adapters
from .step import Objective

Tensors = tuple[Tensor, ...] | list[Tensor]


class Optimisation:
    """The optimiser of a run with its schedule, and the moving average of what it trains."""

    def __init__(self, encoder: Encoder, objective: Objective, settings: Settings, *, steps_per_epoch: int) -> None:
        own, groups = settings.optimiser, _groups(encoder, objective, settings.optimiser)
        if not groups:
            said = "nothing is left to train: every part of the encoder is frozen and the terms have no weights"
            raise InputError(said)
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        rates: dict[str, Any] = {"lr": own.learning_rate, "fused": is_fused(self.parameters)}
        if own.kind == "sgd":
            rates |= {"momentum": own.momentum, "nesterov": own.nesterov and own.momentum > 0}
        else:
            rates |= {"betas": own.betas}
        kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
        self.optimiser: Optimizer = kinds[own.kind](groups, **rates)
        self.average = None if settings.ema is None else Average(encoder, objective, settings.ema)
        self._clip_norm = settings.optimiser.clip_norm
        steps = settings.epochs * steps_per_epoch
        self._schedule = learning_rate_schedule(
            self.optimiser, settings.schedule, steps=steps, steps_per_epoch=steps_per_epoch
        )

    @property
    def learning_rate(self) -> float:
        """The first group's, now."""
        rate: float = self.optimiser.param_groups[0]["lr"]
        return rate

    def gradient_norm(self) -> Tensor:
        """The length of the whole gradient, a scalar that a device may still be computing."""
        return torch.nn.utils.get_total_norm([each.grad for each in self.parameters if each.grad is not None])

    def step(self, norm: Tensor | None = None) -> bool:
        """Move the weights along their gradients of this length; False, and nothing moves, if these are not finite."""
        norm = self.gradient_norm() if norm is None else norm
        if not math.isfinite(float(norm)):
            return False
        if self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self._clip_norm, norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._schedule.step()
        if self.average is not None:
            self.average.update()
        return True

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are their moving average, if there is one."""
        if self.average is not None:
            self.average.exchange()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.exchange()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "average": None if self.average is None else self.average.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it, in the memory layout of the weights, as arithmetic may depend on that."""

        def laid_out(value: Any, parameter: Tensor) -> Any:
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                return torch.empty_like(parameter, requires_grad=False).copy_(value)
            return value

        moments = {
            index: {name: laid_out(value, self.parameters[index]) for name, value in values.items()}
            for index, values in state["optimiser"]["state"].items()
        }
        kernels = [{"fused": group.get("fused")} for group in self.optimiser.param_groups]  # of this device
        groups = [group | own for group, own in zip(state["optimiser"]["param_groups"], kernels, strict=True)]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self._schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])


def _groups(encoder: Encoder, objective: Objective, settings: OptimiserSettings) -> list[dict[str, Any]]:
    """The weights of backbone, of pooling and head, and of the objective alone, by learning rate and weight decay.

    Of the backbone's groups the one with the highest rate is first.
    """
    network, _ = source_of(encoder.backbone)
    seen: set[nn.Parameter] = set()
    groups: list[dict[str, Any]] = []
    parts = ((network, settings.backbone_factor), (encoder, 1.0), (objective, settings.term_factor))
    for part, factor in parts:
        alike: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        named = [(name, each) for name, each in part.named_parameters() if each.requires_grad and each not in seen]
        has_depth = part is network and settings.layer_decay is not None
        blocks = blocks_of(encoder.backbone, fine=True) if has_depth else None
        if blocks is not None and not named:
            raise InputError("optimiser.layer_decay: the whole backbone is frozen; leave it out, or train some of it")
        for name, parameter in named:
            below_top = 0 if blocks is None else len(blocks.parts) - 1 - blocks.depth(name)
            rate = settings.learning_rate * factor * (settings.layer_decay or 1.0) ** below_top
            decay, is_spared = settings.norm_decay, parameter.ndim <= 1 or _SPARED.search(name)
            alike[rate, decay if decay is not None and is_spared else settings.weight_decay].append(parameter)
        seen.update(part.parameters())
        for rate, decay in sorted(alike, key=lambda key: -key[0]):
            groups.append({"params": alike[rate, decay], "lr": rate, "weight_decay": decay})
    return groups


_SPARED = re.compile(r"pos(ition(al)?)?_?(embed|bias)|(cls|class|reg(ister)?|dist|mask)_(token|embed)")


def is_fused(parameters: Iterable[Tensor]) -> bool | None:
    """True where one kernel can do an optimiser's step: all weights are floats on CUDA; None leaves it to torch."""
    return True if all(each.device.type == "cuda" and each.is_floating_point() for each in parameters) else None


class Average:
    """A moving average of the encoder's weights and statistics and of what the objective learns."""

    def __init__(self, encoder: Encoder, objective: Objective, decay: float) -> None:
        learnt = nn.ParameterList(each for each in objective.parameters() if each.requires_grad)
        self._live = nn.ModuleList([encoder, learnt])

        @torch.no_grad()
        def update(averages: Tensors, values: Tensors, count: Tensor | int) -> None:
            weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, values, weight)
            else:  # counters of batch norms
                torch._foreach_copy_(averages, values)

        self.model = AveragedModel(self._live, multi_avg_fn=update, use_buffers=True)

    def update(self) -> None:
        """Take the weights as they are now into the average."""
        self.model.update_parameters(self._live)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the average where the live weights are, and the live weights here; twice is as before."""
        live_and_average = (self._live, self.model.module)
        tensors = ([*module.parameters(), *module.buffers()] for module in live_and_average)
        for live, average in zip(*tensors, strict=True):
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)


@contextmanager
def training_mode(encoder: Encoder, objective: Objective, settings: Settings) -> Iterator[None]:
    """Encoder and objective in training mode, frozen parts frozen; then in evaluation mode, gradients as before."""
    needed = [(parameter, parameter.requires_grad) for parameter in encoder.parameters()]
    try:
        with adapted(encoder, settings.lora, seed=settings.seed):
            for part in _frozen_parts(encoder, settings):
                part.requires_grad_(False)
            for layer in layers_with_adapters(encoder):
                layer.set_adapter(layer.active_adapters)  # which alone gets gradients
            set_training(encoder, objective, settings)
            yield
    finally:
        for parameter, flag in needed:
            parameter.requires_grad_(flag)
        encoder.eval()
        objective.eval()


def set_training(encoder: Encoder, objective: Objective, settings: Settings) -> None:
    """Training mode, except for what is frozen."""
    encoder.train()
    objective.train()
    for part in _frozen_parts(encoder, settings):
        if isinstance(part, nn.Module):
            part.eval()
    for layer in layers_with_adapters(encoder):
        layer.train()
    if settings.freeze_batch_norm:
        for module in encoder.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _frozen_names(encoder: Encoder, settings: Settings) -> list[str]:
    """The names of what stays as it is in the backbone; "backbone" for all of it."""
    if settings.lora is not None:
        return ["backbone"]
    count = settings.train_blocks
    if count is None:
        return [name.removeprefix("source.") for name in settings.freeze]
    blocks = blocks_of(encoder.backbone)
    if count > len(blocks.names):
        raise InputError(
            f"run.train_blocks: {encoder.architecture} has {len(blocks.names)} blocks up to the layer that is read "
            f"({', '.join(blocks.names)}), got {count}; leave it out to train all"
        )
    return [*(name for part in blocks.parts[: -count - 1] for name in part), *blocks.unused]


def _frozen_parts(encoder: Encoder, settings: Settings) -> list[nn.Module | nn.Parameter]:
    """The parts of the backbone that are frozen."""
    network, _ = source_of(encoder.backbone)
    parts = {name or "backbone": part for name, part in [*network.named_modules(), *network.named_parameters()]}
    frozen = _frozen_names(encoder, settings)
    for name in frozen:
        if name not in parts:
            raise InputError(f"run.freeze: the backbone has no part {name!r}; nearest: {closest(name, list(parts))}")
    return [parts[name] for name in frozen]


def what_is_trained(encoder: Encoder, settings: Settings) -> str:
    """What a run changes of the backbone, inside `training_mode` and in a sentence; empty if that is all of it."""
    frozen = [str(name) for name in _frozen_names(encoder, settings)]
    if not frozen:
        return ""
    weights = list(source_of(encoder.backbone)[0].parameters())
    trained, total = sum(each.numel() for each in weights if each.requires_grad), sum(map(Tensor.numel, weights))
    shown = [*frozen[:4], "…", frozen[-1]] if len(frozen) > 6 else frozen
    adapters = set(layers_with_adapters(encoder))
    names = [name for name, part in encoder.named_modules() if part in adapters]
    kinds = ", ".join(sorted({".".join(name.split(".")[-2:]) for name in names}))
    beside = f", but for adapters of {len(names)} layers: {kinds}" if settings.lora else ""
    return f"trained: {trained:,} of {total:,} weights of the backbone; frozen: {', '.join(shown)}{beside}"


def learning_rate_schedule(
    optimiser: Optimizer, settings: ScheduleSettings, *, steps: int, steps_per_epoch: int
) -> LRScheduler:
    """The scheduler to call after every one of `steps` optimiser steps; each group keeps its own highest rate."""
    if settings.kind == "one_cycle":
        highest = [group["lr"] for group in optimiser.param_groups]
        return OneCycleLR(optimiser, highest, total_steps=max(steps, 2), pct_start=settings.peak)
    factor = partial(learning_rate_factor, settings=settings, steps=steps, steps_per_epoch=steps_per_epoch)
    return LambdaLR(optimiser, factor)


def learning_rate_factor(step: int, *, settings: ScheduleSettings, steps: int, steps_per_epoch: int) -> float:
    """The share of the highest learning rate in optimiser step `step`, counted from 0, in [0, 1]."""
    warm_up = settings.warm_up * steps_per_epoch
    if step < warm_up:
        return min(1.0, (step + 1) / warm_up)
    done = min(1.0, (step - warm_up) / max(1.0, steps - warm_up))
    if settings.kind == "poly":
        return float((1 - done) ** settings.power)
    if settings.kind == "cosine":
        return settings.end + (1 - settings.end) * (1 + math.cos(math.pi * done)) / 2
    passed = sum(step >= milestone * steps_per_epoch for milestone in settings.milestones)
    return settings.factor**passed
