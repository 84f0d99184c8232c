"""Early stopping: the weights of the best epoch, and when to wait no longer for better ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...encoders.layers import closest
from ...errors import InputError
from ..recipes.settings import Settings
from .outcome import Row


class EarlyStopping:
    """The weights of the epoch with the best `run.monitor` so far; nothing if no metric is monitored."""

    def __init__(self, settings: Settings, modules: Mapping[str, nn.Module]) -> None:
        self._settings, self._modules = settings, modules
        self._best: dict[str, Any] | None = None

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights are kept, counted from 1."""
        return None if self._best is None else self._best["epoch"]

    def update(self, row: Row, *, epoch: int) -> None:
        """Keep the modules' weights if the row of this epoch is better than what was kept."""
        monitor = self._settings.monitor
        if monitor is None:
            return
        if monitor not in row:
            raise InputError(f"run.monitor: no metric {monitor!r}; nearest: {closest(monitor, list(row))}")
        sign = 1 if self._settings.mode == "max" else -1
        if math.isfinite(row[monitor]) and (self._best is None or sign * row[monitor] > sign * self._best["value"]):
            weights = {
                name: {
                    key: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
                    for key, value in module.state_dict().items()
                }
                for name, module in self._modules.items()
            }
            self._best = {"epoch": epoch, "value": row[monitor], "weights": weights}

    def should_stop(self, *, epochs: int) -> bool:
        """True if `run.patience` evaluations brought nothing better, with so many epochs done."""
        first = (self.best_epoch or 0) + 1
        since = sum(epoch % self._settings.evaluate_every == 0 for epoch in range(first, epochs + 1))
        return self._settings.patience is not None and since >= self._settings.patience

    def restore_best(self) -> None:
        """Give the modules the weights that were kept."""
        assert self._best is not None
        for name, module in self._modules.items():
            module.load_state_dict(self._best["weights"][name])

    def state_dict(self) -> dict[str, Any] | None:
        """Epoch, value and weights by module; None before there are any."""
        return self._best

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from another run's."""
        self._best = state
