"""The end of a run: a value for the caller, and the files of its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..._version import __version__
from ...encoders import Encoder
from ...errors import InputError
from ...index.storage.durable import Storage
from .logs import Row, write_csv, write_json
from .step import Objective


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
        history: one row per epoch, as in `log.csv`.
        best_epoch: whose weights the encoder has now, counted from 1; the last one if no metric was monitored.
        folder: where the files are; None if none were written.
    """

    history: tuple[Row, ...]
    best_epoch: int
    folder: Path | None = None

    @property
    def metrics(self) -> Row:
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
    """Fill the run's folder: the encoder, its classifier, `metrics.json`, `log.csv`.

    An encoder with code of its own, which no file can bring back, leaves its weights alone in `weights.safetensors`.
    Class weights that are no linear or cosine classifier, such as several vectors per class, leave no classifier.
    """
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


def finite(row: Row) -> dict[str, float | None]:
    """The row as JSON can hold it: what is not finite becomes null."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}
