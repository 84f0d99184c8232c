"""The record of a run: means over an epoch, logs, the best weights, its state on disk, and what it leaves."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..._version import __version__
from ...encoders import Encoder
from ...encoders.checkpoint import built_from_header, read_checkpoint, write_checkpoint
from ...encoders.layers import closest
from ...errors import InputError, MissingExtraError, WeightsError
from ...files import Storage
from ..recipes.settings import Settings
from .step import Objective

LogRow = Mapping[str, float]


class Means:
    """Weighted means of named values that come one by one; its `state` can be saved and given back."""

    def __init__(self, state: Mapping[str, Sequence[float]] | None = None) -> None:
        self.state: dict[str, tuple[float, float]] = {name: (pair[0], pair[1]) for name, pair in (state or {}).items()}

    def add(self, values: Mapping[str, float], weight: float) -> None:
        """Count each value `weight` times."""
        for name, value in values.items():
            total, count = self.state.get(name, (0.0, 0.0))
            self.state[name] = (total + weight * value, count + weight)

    def means(self) -> dict[str, float]:
        """The mean of every name so far."""
        return {name: total / count for name, (total, count) in self.state.items() if count}

    @classmethod
    def together(cls, parts: Iterable[Means]) -> Means:
        """The means over all that several counted."""
        result = cls()
        for part in parts:
            for name, (total, count) in part.state.items():
                before = result.state.get(name, (0.0, 0.0))
                result.state[name] = (before[0] + total, before[1] + count)
        return result


class TensorBoardLog:
    """Event files in `folder`; what an earlier, killed run wrote behind `step` is struck out."""

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "run.tensorboard needs TensorBoard: pip install 'distcam[tensorboard]', or leave it out; "
                "log.csv is written in any case"
            ) from error
        self.writer: Any = SummaryWriter(str(folder), purge_step=step or None)

    def add(self, kind: str, step: int, values: LogRow) -> None:
        """One point per value under `KIND/`."""
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)


def write_csv(path: Path, rows: Sequence[LogRow]) -> None:
    """All rows under the union of their columns, in one step; what a row lacks is left empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    Storage().write(path, text.getvalue().encode())


def write_json(path: Path, value: Any) -> None:
    """A value as indented JSON, in one step."""
    Storage().write(path, (json.dumps(value, indent=2) + "\n").encode())


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
        history: one row per epoch, as in `log.csv`.
        best_epoch: whose weights the encoder has now, counted from 1; the last one if no metric was monitored.
        folder: where the files are; None if none were written.
    """

    history: tuple[LogRow, ...]
    best_epoch: int
    folder: Path | None = None

    @property
    def metrics(self) -> LogRow:
        """The row of the epoch whose weights were kept."""
        return self.history[self.best_epoch - 1]

    @property
    def loss_per_epoch(self) -> tuple[float, ...]:
        """Mean training loss of every epoch, first to last."""
        return tuple(row["loss"] for row in self.history)


def write_outcome(
    result: FitResult,
    encoder: Encoder,
    objective: Objective,
    *,
    class_names: Sequence[str],
    settings: Mapping[str, Any],
    config: Mapping[str, Any] | None,
) -> None:
    """Fill the run's folder: the encoder (of a network of one's own its weights), its classifier, metrics, log."""
    from ..losses.classifier import save_classifier  # with pytorch-metric-learning, which takes seconds to import

    assert result.folder is not None
    measured = {name: value for name, value in result.metrics.items() if name not in ("seconds", "waiting")}
    story = {  # the same for every repetition of the run, so the encoder's file is the same, too
        "metrics": finite(measured),
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "settings": dict(settings),
        "config": None if config is None else dict(config),
        "versions": {"distcam": __version__, "torch": str(torch.__version__)},
    }
    encoder.metadata = {**encoder.metadata, "training": story}
    try:
        encoder.save(result.folder / "encoder.safetensors")
    except InputError:
        own = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in encoder.state_dict().items()}
        Storage().write(result.folder / "weights.safetensors", save(own))
    classifier = objective.classifier
    if classifier is not None:
        names = class_names or [str(number) for number in range(len(classifier.class_weights()))]
        with suppress(InputError):
            save_classifier(
                result.folder / "classifier.safetensors", classifier, names, fingerprint=encoder.fingerprint
            )
    write_csv(result.folder / "log.csv", result.history)
    write_json(result.folder / "metrics.json", {**story, "history": [finite(row) for row in result.history]})


def finite(row: LogRow) -> dict[str, float | None]:
    """The row as JSON can hold it: what is not finite becomes null."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


class EarlyStopping:
    """The weights of the epoch with the best `run.monitor` so far; nothing if no metric is monitored."""

    def __init__(self, settings: Settings, modules: Mapping[str, nn.Module]) -> None:
        self._settings, self._modules = settings, modules
        self.best: dict[str, Any] | None = None  # epoch, value, and weights by module; None before there are any

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights are kept, counted from 1."""
        return None if self.best is None else self.best["epoch"]

    def update(self, row: LogRow, *, epoch: int) -> None:
        """Keep the modules' weights if the row of this epoch is better than what was kept."""
        monitor = self._settings.monitor
        if monitor is None:
            return
        if monitor not in row:
            raise InputError(f"run.monitor: no metric {monitor!r}; nearest: {closest(monitor, list(row))}")
        sign = 1 if self._settings.mode == "max" else -1
        if math.isfinite(row[monitor]) and (self.best is None or sign * row[monitor] > sign * self.best["value"]):
            weights = {
                name: {
                    key: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
                    for key, value in module.state_dict().items()
                }
                for name, module in self._modules.items()
            }
            self.best = {"epoch": epoch, "value": row[monitor], "weights": weights}

    def should_stop(self, *, epochs: int) -> bool:
        """True if `run.patience` evaluations brought nothing better, with so many epochs done."""
        first = (self.best_epoch or 0) + 1
        since = sum(epoch % self._settings.evaluate_every == 0 for epoch in range(first, epochs + 1))
        return self._settings.patience is not None and since >= self._settings.patience

    def restore_best(self) -> None:
        """Give the modules the weights that were kept."""
        assert self.best is not None
        for name, module in self._modules.items():
            module.load_state_dict(self.best["weights"][name])


STATE = Path("state", "run.safetensors")


def write_state(folder: Path, tree: Mapping[str, Any]) -> None:
    """Make `tree` the state of the run in `folder`, durably and in one step."""
    path = folder / STATE
    storage = Storage()
    storage.make_folder(path.parent)
    plain, tensors = flatten(tree)
    write_checkpoint(path, {"kind": "training run", "tree": plain}, tensors)
    storage.sync_folder(path.parent)


def read_state(folder: Path) -> dict[str, Any] | None:
    """The state of the run in `folder`; None if there is none."""
    path = folder / STATE
    if not path.exists():
        return None
    config, tensors = read_checkpoint(path)
    if config.get("kind") != "training run":
        raise WeightsError(f"{path}: not the state of a training run")
    with built_from_header(path, "a training run"):
        tree: dict[str, Any] = restore(config["tree"], tensors)
    return tree


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """The tree as JSON, with names in place of tensors, and the tensors by name; `restore` gives back an equal tree."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {"$tensor": path}
        if isinstance(value, Mapping):
            return {"$items": [[plain(key, path), plain(item, f"{path}/{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            items = [plain(item, f"{path}/{position}") for position, item in enumerate(value)]
            return {"$tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, float) and not math.isfinite(value):
            return {"$float": repr(value)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise InputError(
            f"the state of a run holds tensors and plain values, but {path} is a {type(value).__name__}; "
            "a term keeps such things out of get_extra_state"
        )

    return plain(tree, ""), tensors


def restore(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `flatten` took apart."""
    if isinstance(plain, list):
        return [restore(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "$tensor":
        return tensors[content]
    if kind == "$float":
        return float(content)
    if kind == "$tuple":
        return tuple(restore(item, tensors) for item in content)
    return {restore(key, tensors): restore(item, tensors) for key, item in content}


def difference(before: Any, now: Any, name: str = "") -> str:
    """The first difference of two JSON values, in words; empty if there is none."""
    if isinstance(before, dict) and isinstance(now, dict):
        differences = (
            difference(before.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in {**before, **now}
        )
        return next(filter(None, differences), "")
    return "" if before == now else f"{name} was {before!r} and is {now!r}"
