"""What a training run is told, apart from data and losses: the tables `[optimiser]`, `[schedule]`, and `[run]`."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ...errors import InputError

__all__ = ["OptimiserSettings", "ScheduleSettings", "Settings"]

OptimiserKind = Literal["adamw", "adam", "sgd"]
ScheduleKind = Literal["cosine", "step", "one_cycle", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
Mode = Literal["max", "min"]


@dataclass(frozen=True)
class OptimiserSettings:
    """How weights follow their gradients.

    Attributes:
        kind: "adamw", "adam", or "sgd" (with Nesterov's momentum if there is any momentum).
        learning_rate: the highest of the schedule.
        weight_decay: of every trained weight.
        momentum: of "sgd".
        betas: of "adam" and "adamw".
        backbone_factor: times the learning rate, for the backbone; 0.1 spares pretrained weights.
        term_factor: times the learning rate, for what the objective's terms learn: classifiers, proxies, centres.
        clip_norm: the gradient of all weights together is scaled down to this length; None leaves it.
    """

    kind: OptimiserKind = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    backbone_factor: float = 1.0
    term_factor: float = 1.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        _one_of("optimiser.kind", self.kind, get_args(OptimiserKind))
        _positive("optimiser.learning_rate", self.learning_rate)
        _not_negative("optimiser.weight_decay", self.weight_decay)
        _share("optimiser.momentum", self.momentum)
        if len(self.betas) != 2:
            raise InputError(f"optimiser.betas: expected two numbers such as (0.9, 0.999), got {self.betas}")
        for beta in self.betas:
            _share("optimiser.betas", beta)
        _not_negative("optimiser.backbone_factor", self.backbone_factor)
        _not_negative("optimiser.term_factor", self.term_factor)
        if self.clip_norm is not None:
            _positive("optimiser.clip_norm", self.clip_norm)

    def unused(self) -> dict[str, str]:
        """Keys that this kind of optimiser does not use."""
        return {"betas" if self.kind == "sgd" else "momentum": f"kind {self.kind!r}"}


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate changes, optimiser step by optimiser step.

    Attributes:
        kind: "cosine" (down to `end`), "step" (times `factor` at each milestone), "one_cycle" (torch's, momentum
            included), or "constant".
        warm_up: epochs in which the rate rises linearly from nearly 0; may be a fraction. Not for "one_cycle".
        milestones: epochs after which "step" steps down.
        factor: of each step down.
        end: what "cosine" leaves of the learning rate, as a share of it.
        peak: where "one_cycle" is highest, as a share of the run.
    """

    kind: ScheduleKind = "cosine"
    warm_up: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    end: float = 0.0
    peak: float = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        _one_of("schedule.kind", self.kind, get_args(ScheduleKind))
        _not_negative("schedule.warm_up", self.warm_up)
        _positive("schedule.factor", self.factor)
        _not_negative("schedule.end", self.end)
        if not 0 < self.peak < 1:
            raise InputError(f"schedule.peak: expected a share between 0 and 1, got {self.peak}")
        if (self.kind == "step") != bool(self.milestones):
            raise InputError(f"schedule.milestones go with kind 'step' alone; got {self.milestones} for {self.kind!r}")
        if list(self.milestones) != sorted(self.milestones):
            raise InputError(f"schedule.milestones: expected epochs in rising order, got {self.milestones}")
        if self.kind == "one_cycle" and self.warm_up:
            raise InputError("schedule.warm_up: 'one_cycle' has a warm-up of its own; set schedule.peak instead")

    def unused(self) -> dict[str, str]:
        """Keys that this kind of schedule does not use."""
        kinds = {"factor": "step", "end": "cosine", "peak": "one_cycle"}
        return {key: f"kind {self.kind!r}" for key, kind in kinds.items() if kind != self.kind}


@dataclass(frozen=True)
class Settings:
    """A whole run.

    Attributes:
        epochs: passes over the data.
        optimiser: see `OptimiserSettings`.
        schedule: see `ScheduleSettings`.
        accumulate: batches whose gradients are averaged, weighted by their number of images, into one optimiser step.
        precision: of the backbone's arithmetic; "auto" is bfloat16 where the hardware has it. Losses are float32.
        ema: decay of a moving average of the weights, such as 0.999; the average is what is evaluated and kept. In the
            first steps n it is (1 + n) / (10 + n) if that is less. None trains without.
        freeze: parts of the backbone that stay as they are, batch-norm statistics included: names such as "layer1", or
            "backbone" for all of it.
        freeze_batch_norm: the backbone's batch norms keep their statistics; their scale and shift still learn.
        monitor: the metric that says which epoch's weights are kept: one of those that `evaluate` returns, or "loss".
            None keeps the last epoch's.
        mode: whether a higher ("max") or a lower ("min") metric is better.
        patience: evaluations without a better metric before the run stops; None never stops early.
        evaluate_every: epochs from one evaluation to the next; the last epoch is always evaluated.
        checkpoint_every_steps: optimiser steps between checkpoints, besides the one after every epoch.
        seed: of everything random inside a step: dropout, miners. Data and initial weights have seeds of their own.
        device: "auto" (CUDA if there is any; the process's own under torchrun), or a torch device.
        deterministic: cuDNN's repeatable algorithms; False lets it choose the fastest by trial.
        tensorboard: event files besides `log.csv`; needs the extra `tensorboard`.
    """

    epochs: int = 10
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    accumulate: int = 1
    precision: Precision = "auto"
    ema: float | None = None
    freeze: tuple[str, ...] = ()
    freeze_batch_norm: bool = False
    monitor: str | None = None
    mode: Mode = "max"
    patience: int | None = None
    evaluate_every: int = 1
    checkpoint_every_steps: int | None = None
    seed: int = 0
    device: str = "auto"
    deterministic: bool = True
    tensorboard: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", (self.freeze,) if isinstance(self.freeze, str) else tuple(self.freeze))
        for name in ("epochs", "accumulate", "patience", "evaluate_every", "checkpoint_every_steps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"run.{name}: expected a whole number from 1 on, got {value!r}")
        _one_of("run.precision", self.precision, get_args(Precision))
        _one_of("run.mode", self.mode, get_args(Mode))
        if self.ema is not None:
            _share("run.ema", self.ema)
        if self.seed < 0:
            raise InputError(f"run.seed: expected 0 or more, got {self.seed}")
        if self.patience is not None and self.monitor is None:
            raise InputError("run.patience: name the metric to wait for with run.monitor")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}: unknown {value!r}; choose from {', '.join(choices)}")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}: expected a number above 0, got {value}")


def _not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name}: expected 0 or more, got {value}")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name}: expected a number from 0 to below 1, got {value}")
