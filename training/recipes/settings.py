"""Settings of the training loop: the tables `[optimiser]`, `[schedule]`, and `[run]`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from ...errors import InputError
from .tables import BelowOne, Count, NotNegative, Positive, Share, Table


class OptimiserSettings(Table):
    """The optimiser and its rates.

    Attributes:
        kind: "adamw", "adam", or "sgd".
        learning_rate: the highest of the schedule.
        weight_decay: of every trained weight.
        momentum: of "sgd".
        nesterov: whether that momentum is Nesterov's; plain if not.
        betas: of "adam" and "adamw".
        backbone_factor: times the learning rate, for the backbone; 0.1 spares pretrained weights.
        term_factor: times the learning rate, for what the objective's terms learn: classifiers, proxies, centres.
        layer_decay: the backbone's rate falls by this factor from block to block, counted from the last one down to the
            embedding of patches or the stem; what lies behind the blocks has the whole rate (BEiT). None for all alike.
        norm_decay: the weight decay of norms, biases, and position embeddings, which BEiT and timm set to 0; None is
            `weight_decay`.
        clip_norm: the gradient of all weights together is scaled down to this length; None leaves it.
    """

    only_for: ClassVar = {"betas": ("kind", "adamw", "adam"), "momentum": ("kind", "sgd"), "nesterov": ("kind", "sgd")}

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-4
    momentum: BelowOne = 0.9
    nesterov: bool = True
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    backbone_factor: NotNegative = 1.0
    term_factor: NotNegative = 1.0
    layer_decay: Share | None = None
    norm_decay: NotNegative | None = None
    clip_norm: Positive | None = None

    def _check(self) -> None:
        if self.layer_decay == 0:
            raise InputError("optimiser.layer_decay: expected a factor above 0; run.train_blocks freezes blocks")


class LoraSettings(Table):
    """Low-rank adapters beside a frozen backbone's matrices, by peft (Hu et al., LoRA, 2022).

    Attributes:
        rank: of the matrices that are learnt.
        alpha: their product counts `alpha / rank` times; None is the rank.
        dropout: of what goes into an adapter.
        targets: the layers that get one, by their names or the ends of these; the attention's projections if left out.
    """

    rank: Count = 8
    alpha: Count | None = None
    dropout: BelowOne = 0.0
    targets: tuple[str, ...] = ()


class ScheduleSettings(Table):
    """The learning rate over a run, optimiser step by optimiser step.

    Attributes:
        kind: "cosine" (down to `end`), "poly" (the share of steps that are left, to the `power`), "step" (times
            `factor` at each milestone), "one_cycle" (torch's, momentum included), or "constant".
        warm_up: epochs in which the rate rises linearly from nearly 0; may be a fraction. Not for "one_cycle".
        milestones: epochs after which "step" steps down.
        factor: of each step down.
        end: what "cosine" leaves of the learning rate, as a share of it.
        power: of "poly".
        peak: where "one_cycle" is highest, as a share of the run.
    """

    only_for: ClassVar = {
        "factor": ("kind", "step"),
        "end": ("kind", "cosine"),
        "power": ("kind", "poly"),
        "peak": ("kind", "one_cycle"),
    }

    kind: Literal["cosine", "poly", "step", "one_cycle", "constant"] = "cosine"
    warm_up: NotNegative = 0.0
    milestones: tuple[float, ...] = ()
    factor: Positive = 0.1
    end: NotNegative = 0.0
    power: Positive = 0.9
    peak: float = 0.3

    def _check(self) -> None:
        if not 0 < self.peak < 1:
            raise InputError(f"schedule.peak: expected a share between 0 and 1, got {self.peak}")
        if (self.kind == "step") != bool(self.milestones):
            raise InputError(f"schedule.milestones go with kind 'step' alone; got {self.milestones} for {self.kind!r}")
        if list(self.milestones) != sorted(self.milestones):
            raise InputError(f"schedule.milestones: expected epochs in rising order, got {self.milestones}")
        if self.kind == "one_cycle" and self.warm_up:
            raise InputError("schedule.warm_up: 'one_cycle' has a warm-up of its own; set schedule.peak instead")


class Settings(Table):
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
            "backbone" for all of it. What the whole backbone makes of images that are not augmented is computed once.
        train_blocks: how many of the backbone's last blocks or stages are trained, with what lies behind them; all
            before stays as it is. None trains every part that `freeze` does not name.
        lora: see `LoraSettings`: the backbone stays as it is, but for adapters that are merged into it at the end.
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

    epochs: Count = 10
    optimiser: OptimiserSettings = OptimiserSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    accumulate: Count = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    ema: BelowOne | None = None
    freeze: tuple[str, ...] | str = ()
    train_blocks: Count | None = None
    lora: LoraSettings | None = None
    freeze_batch_norm: bool = False
    monitor: str | None = None
    mode: Literal["max", "min"] = "max"
    patience: Count | None = None
    evaluate_every: Count = 1
    checkpoint_every_steps: Count | None = None
    seed: int = 0
    device: str = "auto"
    deterministic: bool = True
    tensorboard: bool = False

    @field_validator("freeze")
    @classmethod
    def _one_name_or_several(cls, names: tuple[str, ...] | str) -> tuple[str, ...]:
        return (names,) if isinstance(names, str) else names

    def _check(self) -> None:
        if self.seed < 0:
            raise InputError(f"run.seed: expected 0 or more, got {self.seed}")
        chosen = [name for name in ("freeze", "train_blocks", "lora") if getattr(self, name)]
        if len(chosen) > 1:
            raise InputError(f"run.{chosen[0]} and run.{chosen[1]} both say what is trained; leave one of them out")
        if self.lora is not None and self.freeze_batch_norm:
            raise InputError("run.freeze_batch_norm: run.lora freezes the whole backbone already; leave it out")
        if self.patience is not None and self.monitor is None:
            raise InputError("run.patience: name the metric to wait for with run.monitor")
