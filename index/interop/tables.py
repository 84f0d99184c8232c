"""Tables and arrays of other tools, row by row; clip-retrieval's folders, which `distcam index export` writes too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, NamedTuple

import numpy as np

from ...errors import InputError, MissingExtraError
from ..storage.background import Background
from ..storage.hdf5 import Array
from ..storage.manifest import MaskEntry
from ..storage.segments import Entries, RowVectors, stored_path

BLOCK_ROWS = 4096
EXPORT_FILE = "export.json"
ENCODER_FILE = "encoder.safetensors"  # beside it, never elsewhere: what an export names is not followed
_MAX_JSON_BYTES = 16 << 20
_PATH_COLUMNS = ("image_path", "path", "file", "url", "key")
_STATE_COLUMNS = ("id", "sha256", "size", "mtime_ns")  # in the tables of `distcam index export`


class RowBlock(NamedTuple):
    """Some rows as columns, with their vectors; a row without a path is called `name` and its number from `start`."""

    table: dict[str, list[Any]]
    embedding: Array
    pooled: Array | None = None
    name: str = ""
    start: int = 0


@dataclass(frozen=True)
class ImportSource:
    """Rows of vectors that another tool wrote; relative image paths refer to `root`."""

    kind: str
    place: Path
    root: Path
    count: int
    embedding_dim: int
    read: Callable[[], Iterator[RowBlock]]  # all rows from the first on, a bounded number at a time
    label: str = "label"  # the column of the classes
    pooled_dim: int | None = None  # None when there are embeddings only
    about: Mapping[str, Any] = field(default_factory=dict)  # by `distcam index export`; empty for other tools

    def blocks(self) -> Iterator[tuple[Entries, RowVectors]]:
        """All rows as a gallery holds them."""
        for block in self.read():
            embedding = np.array(block.embedding, np.float32)
            pooled = embedding if block.pooled is None else np.array(block.pooled, np.float32)
            yield self._entries(block), RowVectors(pooled, embedding)

    def _entries(self, block: RowBlock) -> Entries:
        table, count = block.table, len(block.embedding)
        empty = [None] * count
        state: dict[str, list[Any]] = {}
        own = next((name for name in _PATH_COLUMNS if name in table), "")
        if self.about:
            own = "path"
            table.pop("image_path", None)
            state = {name: table.pop(name) for name in _STATE_COLUMNS if name in table}
        paths = [
            f"{block.name}{block.start + row:08d}" if path is None else path
            for row, path in enumerate(map(_text, table.pop(own, empty)))
        ]
        checksums = b"".join(
            # zeros, which no file has, where there is none
            bytes.fromhex(value) if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else bytes(32)
            for value in state.get("sha256", empty)
        )
        columns = {"label": [_text(value) for value in table.pop(self.label, empty)]}
        names = self.about.get("columns", {})  # the gallery's, of the columns of our own export
        for name, values in table.items():
            if name:
                taken = f"{name}_" if name in ("path", "label") else name
                columns[names.get(name, taken)] = [_text(value) for value in values]
        return Entries(
            ids=np.zeros(count, np.uint64),
            paths=[  # addresses stay as they are
                path if "://" in path or not path or "\0" in path else stored_path(self.root / path, self.root)
                for path in paths
            ],
            sha256=np.frombuffer(checksums, np.uint8).reshape(count, 32),
            size=_numbers(state.get("size", empty), np.uint64),
            mtime_ns=_numbers(state.get("mtime_ns", empty), np.int64),
            columns=columns,
        )


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


def _text(value: Any) -> str | None:
    """A cell as a gallery stores it: text, or nothing."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, (dict, list)):
        return json.dumps(value, default=str)
    return value.hex() if isinstance(value, bytes) else str(value)


def _numbers(values: Sequence[Any], kind: type[np.integer[Any]]) -> Array:
    """The whole numbers; 0 for none, or one that does not fit."""
    limits = np.iinfo(kind)
    fitting = [value if isinstance(value, int) and limits.min <= value <= limits.max else 0 for value in values]
    return np.array(fitting, kind)


def open_clip_retrieval(place: Path, *, root: Path | None, label_column: str | None) -> ImportSource:
    """`img_emb/img_emb_<n>.npy` and `metadata/metadata_<n>.parquet`, row by row; rows are numbered through."""
    about = _about(place)
    arrays = _numbered(place / "img_emb", ".npy")
    if not arrays:
        raise InputError(f"{place / 'img_emb'}: holds no .npy file")
    tables = _numbered(place / "metadata", ".parquet")
    pooled = _numbered(place / "pooled", ".npy")
    if tables and (alone := [file.name for number, file in arrays.items() if number not in tables]):
        raise InputError(
            f"{place}: no table in metadata belongs to {', '.join(alone[:5])}; was the folder copied whole?"
        )
    shards = [
        _Shard(read_matrix(file), tables.get(number), read_matrix(pooled[number]) if number in pooled else None, file)
        for number, file in arrays.items()
    ]
    dims = {(shard.embedding.shape[1], None if shard.pooled is None else shard.pooled.shape[1]) for shard in shards}
    if len(dims) > 1:
        raise InputError(f"{place}: its arrays have different widths, {sorted(map(str, dims))}")
    for shard in shards:
        shard.check()
    own_root = (root or (Path(about["root"]) if "root" in about else place)).absolute()
    (dim, pooled_dim) = dims.pop()
    count = sum(len(shard.embedding) for shard in shards)

    def read() -> Iterator[RowBlock]:
        return chain.from_iterable(shard.blocks() for shard in shards)

    label = label_column or "label"
    return ImportSource("clip-retrieval", place, own_root, count, dim, read, label, pooled_dim, about)


def _about(place: Path) -> dict[str, Any]:
    """The description in a distcam export, checked; empty for folders of other tools."""
    file = place / EXPORT_FILE
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("too long")
        about = json.loads(file.read_bytes())
        if about.get("format") != "distcam-export" or about.get("version") != 1:
            raise ValueError("another format, or a newer version")
        kinds = {"root": str, "metric": str, "columns": dict, "encoder": dict}
        if wrong := [name for name, kind in kinds.items() if not isinstance(about.get(name), kind)]:
            raise ValueError(f"no {', '.join(wrong)}")
        encoder = about["encoder"]
        kinds = {"description": dict, "fingerprint": str, "short_name": str}
        if not all(isinstance(encoder.get(name), kind) for name, kind in kinds.items()):
            raise ValueError("its encoder is not described")
        if (masks := about.get("masks")) is not None:
            if not isinstance(masks["folder"], str) or type(masks.get("category")) not in (int, NoneType):
                raise ValueError("its masks are not described")
            about["masks"] = MaskEntry(masks["folder"], masks.get("category"))
        about["box_margin"] = float(about.get("box_margin", 0.0))
        if about.get("background") is not None:
            about["background"] = Background(**about["background"])
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError, OSError) as error:
        raise InputError(f"{file}: is not what `distcam index export` writes ({error}); export again") from error
    return dict(about)


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Files by the number that their names end in: `img_emb_2` comes before `img_emb_10`."""
    paths = list(folder.glob(f"*{suffix}"))
    found = {int(number[0]) if (number := re.search(r"\d+$", path.stem)) else 0: path for path in paths}
    if len(found) < len(paths):
        raise InputError(
            f"{folder}: two files have the same number, so nothing says which table belongs to which array"
        )
    return dict(sorted(found.items()))


class _Shard(NamedTuple):
    """One array of embeddings, and what belongs to it row by row."""

    embedding: Array
    table: Path | None
    pooled: Array | None
    file: Path

    def check(self) -> None:
        rows = {len(self.embedding), *(() if self.pooled is None else (len(self.pooled),))}
        if self.table is not None:
            _, pq = parquet()
            try:
                rows.add(pq.read_metadata(self.table).num_rows)
            except (OSError, ValueError) as error:
                raise InputError(f"{self.table}: cannot be read as Parquet ({error})") from error
        if len(rows) > 1:
            raise InputError(f"{self.file}: the files of this number have {sorted(rows)} rows; they must have the same")

    def blocks(self) -> Iterator[RowBlock]:
        if self.table is None:
            for start in range(0, len(self.embedding), BLOCK_ROWS):
                yield self._block({}, start, start + BLOCK_ROWS)
            return
        _, pq = parquet()
        start = 0
        try:
            with pq.ParquetFile(self.table) as file:
                for batch in file.iter_batches(batch_size=BLOCK_ROWS):
                    names = map(str, batch.schema.names)
                    table = {name: column.to_pylist() for name, column in zip(names, batch.columns, strict=True)}
                    yield self._block(table, start, start + batch.num_rows)
                    start += batch.num_rows
        except (OSError, ValueError) as error:
            raise InputError(f"{self.table}: cannot be read as Parquet ({error})") from error

    def _block(self, table: dict[str, list[Any]], start: int, stop: int) -> RowBlock:
        pooled = None if self.pooled is None else self.pooled[start:stop]
        return RowBlock(table, self.embedding[start:stop], pooled, f"{self.file.stem}/", start)
