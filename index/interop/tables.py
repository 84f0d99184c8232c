"""Ground common to the formats of other tools: a source of rows, untrusted arrays, cells of tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, MissingExtraError
from ..storage.hdf5 import Array
from ..storage.segments import Entries, Vectors, stored_path

BLOCK_ROWS = 4096
_PATH_COLUMNS = ("image_path", "path", "file", "url", "key")
_STATE_COLUMNS = ("id", "sha256", "size", "mtime_ns")  # in the tables of `distcam index export`


@dataclass(frozen=True)
class Source:
    """Rows of vectors that another tool wrote.

    Attributes:
        kind: which tool's layout it is.
        place: the folder or file.
        root: the folder that relative image paths refer to.
        count: rows.
        embedding_dim, pooled_dim: lengths of the vectors; `pooled_dim` is None when there are embeddings only.
        blocks: reads all rows from the first on, a bounded number at a time.
        about: what `distcam index export` wrote of the gallery; empty for everybody else's.
    """

    kind: str
    place: Path
    root: Path
    count: int
    embedding_dim: int
    blocks: Callable[[], Iterator[tuple[Entries, Vectors]]]
    pooled_dim: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def parquet() -> tuple[ModuleType, ModuleType]:
    """`pyarrow` and `pyarrow.parquet`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("Parquet tables need pyarrow: pip install 'distcam[parquet]'") from error
    return pyarrow, pyarrow.parquet


def read_matrix(file: Path) -> Array:
    """An array of one row per image, mapped into memory."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{file}: is no readable .npy array without pickle ({error})") from error
    return checked_matrix(file, array)


def checked_matrix(file: Path, array: Any) -> Array:
    """The array, if it is one of one row of numbers per image."""
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        shape, kind = getattr(array, "shape", "?"), getattr(array, "dtype", type(array).__name__)
        raise InputError(f"{file}: expected one row of floating-point numbers per image, got {kind} of shape {shape}")
    return array


@dataclass(frozen=True)
class TableReader:
    """Turns rows of a table into entries.

    Attributes:
        root: what relative paths refer to.
        label: the column with the classes.
        columns: of our own export: the gallery's name of each column of the table; None in everybody else's.
    """

    root: Path
    label: str
    columns: Mapping[str, str] | None = None

    def entries(self, table: dict[str, list[Any]], prefix: str = "", start: int = 0) -> Entries:
        """Some rows, given as columns; those without a path are named by `prefix` and their number."""
        count = len(next(iter(table.values())))
        empty = [None] * count
        state: dict[str, list[Any]] = {}
        own = next((name for name in _PATH_COLUMNS if name in table), "")
        if self.columns is not None:
            own = "path"
            table.pop("image_path", None)
            state = {name: table.pop(name) for name in _STATE_COLUMNS if name in table}
        paths = [
            f"{prefix}{start + row:08d}" if path is None else path
            for row, path in enumerate(map(_text, table.pop(own, empty)))
        ]
        columns = {"label": [_text(value) for value in table.pop(self.label, empty)]}
        for name, values in table.items():
            if name:
                taken = f"{name}_" if name in ("path", "label") else name
                columns[(self.columns or {}).get(name, taken)] = [_text(value) for value in values]
        return Entries(
            ids=np.zeros(count, np.uint64),
            paths=[  # addresses stay as they are
                path if "://" in path or not path or "\0" in path else stored_path(self.root / path, self.root)
                for path in paths
            ],
            sha256=_checksums(state.get("sha256", empty)),
            size=_numbers(state.get("size", empty), np.uint64),
            mtime_ns=_numbers(state.get("mtime_ns", empty), np.int64),
            columns=columns,
        )


def _text(value: Any) -> str | None:
    """A cell as a gallery stores it: text, or nothing."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, (dict, list)):
        return json.dumps(value, default=str)
    return value.hex() if isinstance(value, bytes) else str(value)


def _checksums(values: Sequence[Any]) -> NDArray[np.uint8]:
    """Checksums as bytes; zeros, which no file has, where there is none."""
    known = [isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in values]
    data = b"".join(bytes.fromhex(value) if is_one else bytes(32) for value, is_one in zip(values, known, strict=True))
    return np.frombuffer(data, np.uint8).reshape(len(values), 32)


def _numbers(values: Sequence[Any], kind: type[np.integer[Any]]) -> Array:
    """Whole numbers; 0 where there is none, or one that does not fit."""
    limits = np.iinfo(kind)
    fits = (isinstance(value, int) and limits.min <= value <= limits.max for value in values)
    return np.array([value if is_one else 0 for value, is_one in zip(values, fits, strict=True)], kind)
