"""Learning rates over a run, on torch's own schedulers, one change per optimiser step."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from ..recipes.settings import ScheduleSettings

__all__ = ["learning_rate_factor", "learning_rate_schedule"]


def learning_rate_schedule(
    optimiser: Optimizer, settings: ScheduleSettings, *, steps: int, steps_per_epoch: int
) -> LRScheduler:
    """The scheduler to call after every optimiser step; each parameter group keeps its own highest rate.

    Args:
        optimiser: whose groups hold the highest learning rates now.
        settings: the kind of schedule and its numbers.
        steps: optimiser steps of the whole run.
        steps_per_epoch: optimiser steps of one epoch; warm-up and milestones count epochs.
    """
    if settings.kind == "one_cycle":
        highest = [group["lr"] for group in optimiser.param_groups]
        return OneCycleLR(optimiser, highest, total_steps=max(steps, 2), pct_start=settings.peak)
    factor = partial(learning_rate_factor, settings=settings, steps=steps, steps_per_epoch=steps_per_epoch)
    return LambdaLR(optimiser, factor)


def learning_rate_factor(step: int, *, settings: ScheduleSettings, steps: int, steps_per_epoch: int) -> float:
    """What the highest learning rate is multiplied by in optimiser step `step`, counted from 0, in [0, 1].

    >>> learning_rate_factor(50, settings=ScheduleSettings("cosine"), steps=100, steps_per_epoch=10)
    0.5
    """
    warm_up = settings.warm_up * steps_per_epoch
    if step < warm_up:
        return min(1.0, (step + 1) / warm_up)
    if settings.kind == "cosine":
        done = min(1.0, (step - warm_up) / max(1.0, steps - warm_up))
        return settings.end + (1 - settings.end) * (1 + math.cos(math.pi * done)) / 2
    passed = sum(step >= milestone * steps_per_epoch for milestone in settings.milestones)
    return settings.factor**passed
