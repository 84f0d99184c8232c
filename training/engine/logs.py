"""Logs of a run: means over an epoch, a CSV file, and TensorBoard's event files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError
from ...index.storage.durable import Storage

Row = Mapping[str, float]


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
    """Event files in `folder`; what an earlier, killed run wrote behind `step` is struck out.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "run.tensorboard needs TensorBoard: pip install 'distcam[tensorboard]', or leave it out; "
                "log.csv is written in any case"
            ) from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=step or None)

    def step(self, step: int, values: Row) -> None:
        """One point per value under `step/`."""
        for name, value in values.items():
            self._writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, step: int, row: Row) -> None:
        """One point per value under `epoch/`."""
        for name, value in row.items():
            self._writer.add_scalar(f"epoch/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Everything is in the files."""
        self._writer.close()


def write_csv(path: Path, rows: Sequence[Row]) -> None:
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
