"""The weights that are trained, at which rates, and how a gradient moves them."""

from __future__ import annotations

import math
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
from ...errors import InputError
from ..recipes.settings import OptimiserSettings, ScheduleSettings, Settings
from .step import Objective, whole_backbone

Tensors = tuple[Tensor, ...] | list[Tensor]


class Optimisation:
    """The optimiser of a run with its schedule, and the moving average of what it trains."""

    def __init__(self, encoder: Encoder, objective: Objective, settings: Settings, *, steps_per_epoch: int) -> None:
        self.optimiser = _optimiser(encoder, objective, settings.optimiser)
        self.parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
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


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _optimiser(encoder: Encoder, objective: Objective, settings: OptimiserSettings) -> Optimizer:
    """The optimiser over backbone, pooling and head, and the objective's own weights, each with its learning rate."""
    backbone = _trainable(encoder.backbone)
    inside = {id(parameter) for parameter in encoder.backbone.parameters()}
    rest = [parameter for parameter in _trainable(encoder) if id(parameter) not in inside]
    inside |= {id(parameter) for parameter in encoder.parameters()}
    own = [parameter for parameter in _trainable(objective) if id(parameter) not in inside]
    parts = ((backbone, settings.backbone_factor), (rest, 1.0), (own, settings.term_factor))
    groups = [{"params": part, "lr": settings.learning_rate * factor} for part, factor in parts if part]
    if not groups:
        raise InputError("nothing is left to train: every part of the encoder is frozen and the terms have no weights")
    rate, decay = settings.learning_rate, settings.weight_decay
    fused = is_fused([*backbone, *rest, *own])
    if settings.kind == "sgd":
        momentum, nesterov = settings.momentum, settings.nesterov and settings.momentum > 0
        return torch.optim.SGD(groups, rate, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=fused)
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return kind(groups, rate, betas=settings.betas, weight_decay=decay, fused=fused)


def is_fused(parameters: Iterable[Tensor]) -> bool | None:
    """True where one kernel can do an optimiser's step: all weights are floats on CUDA; None leaves it to torch."""
    return True if all(each.device.type == "cuda" and each.is_floating_point() for each in parameters) else None


class Average:
    """A moving average of the encoder's weights and statistics and of what the objective learns."""

    def __init__(self, encoder: Encoder, objective: Objective, decay: float) -> None:
        self._live = nn.ModuleList([encoder, nn.ParameterList(_trainable(objective))])

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
    for part in _frozen_parts(encoder, settings):
        part.requires_grad_(False)
    try:
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
        part.eval()
    if settings.freeze_batch_norm:
        for part in encoder.backbone.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()


def _frozen_parts(encoder: Encoder, settings: Settings) -> list[nn.Module]:
    """The modules of the backbone that `freeze` names."""
    parts = {name or "backbone": part for name, part in whole_backbone(encoder).named_modules()}
    for name in settings.freeze:
        if name not in parts:
            raise InputError(f"run.freeze: the backbone has no part {name!r}; nearest: {closest(name, list(parts))}")
    return [parts[name] for name in settings.freeze]


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
