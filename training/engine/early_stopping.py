"""Which epoch's weights a run keeps, and how long it waits for better ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...encoders.layers import closest
from ...errors import InputError
from ..recipes.settings import Settings
from .logs import Row
from .state import copied

__all__ = ["Best"]


class Best:
    """The weights of the epoch with the best `run.monitor` so far; nothing if no metric is monitored.

    Attributes:
        state: epoch (from 1), value, and weights by module; None before there is any. A checkpoint holds it.
    """

    def __init__(self, settings: Settings, modules: Mapping[str, nn.Module]) -> None:
        self._settings, self._modules = settings, modules
        self.state: dict[str, Any] | None = None

    @property
    def epoch(self) -> int | None:
        """Whose weights these are, counted from 1."""
        return None if self.state is None else self.state["epoch"]

    def consider(self, row: Row, *, epoch: int) -> None:
        """Keep the modules' weights if the row of this epoch is better than what was kept.

        Raises:
            InputError: the row lacks the metric to monitor.
        """
        monitor = self._settings.monitor
        if monitor is None:
            return
        if monitor not in row:
            raise InputError(f"run.monitor: no metric {monitor!r}; nearest: {closest(monitor, list(row))}")
        sign = 1 if self._settings.mode == "max" else -1
        if math.isfinite(row[monitor]) and (self.state is None or sign * row[monitor] > sign * self.state["value"]):
            weights = {name: copied(module.state_dict()) for name, module in self._modules.items()}
            self.state = {"epoch": epoch, "value": row[monitor], "weights": weights}

    def is_too_long_ago(self, *, epochs: int) -> bool:
        """Whether `run.patience` evaluations brought nothing better, with so many epochs done."""
        since = sum(epoch % self._settings.evaluate_every == 0 for epoch in range((self.epoch or 0) + 1, epochs + 1))
        return self._settings.patience is not None and since >= self._settings.patience

    def put_back(self) -> None:
        """Give the modules the weights that were kept."""
        assert self.state is not None
        for name, module in self._modules.items():
            module.load_state_dict(self.state["weights"][name])
