"""Vectors that other tools made, as blocks of rows: clip-retrieval's folders, OML's tables, hloc's HDF5 files.

Nothing in these files is trusted or run: arrays are read without pickle, links out of an HDF5 file are not followed,
and a shape that a file claims is compared with what it holds before anything is copied.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MissingExtraError
from ..images.listing import list_images
from .rows import Array, Entries, Vectors, stored_path

__all__ = ["EXPORT_FILE", "Kind", "Source", "open_source", "parquet"]

Kind = Literal["auto", "clip-retrieval", "oml", "hloc"]
EXPORT_FILE = "export.json"
BLOCK_ROWS = 4096
MAX_JSON_BYTES = 16 << 20
_ARRAYS = (".npy", ".pt", ".pth")
_PATH_COLUMNS = ("image_path", "path", "file", "url", "key")
_STATE_COLUMNS = ("id", "sha256", "size", "mtime_ns")  # in the tables of `distcam index export`


@dataclass(frozen=True)
class Source:
    """What another tool left behind.

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
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        MissingExtraError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("Parquet tables need pyarrow: pip install 'distcam[parquet]'") from error
    return pyarrow, pyarrow.parquet


def open_source(
    place: Path,
    *,
    kind: Kind = "auto",
    embeddings: Path | None = None,
    root: Path | None = None,
    label_column: str | None = None,
) -> Source:
    """Look at what another tool left behind.

    Args:
        place: a folder of clip-retrieval or of `distcam index export`; a table of Open Metric Learning, or a folder
            with one table and one file of embeddings; or an HDF5 file of hloc.
        kind: whose layout it is; `"auto"` looks.
        embeddings: the `.npy` or `.pt` file that belongs to a table, row by row.
        root: the folder that relative image paths refer to; by default that of the table, or `place`.
        label_column: the column with the classes; by default `label`.

    Raises:
        InputError: it is none of these, or its parts do not fit together.
    """
    if not place.exists():
        raise InputError(f"nothing is at {place}")
    chosen = _kind_of(place) if kind == "auto" else kind
    if chosen == "clip-retrieval":
        return _clip_retrieval(place, root=root, label_column=label_column)
    if chosen == "hloc":
        return _hloc(place, root or place.parent)
    return _oml(place, embeddings, root=root, label_column=label_column)


def _kind_of(place: Path) -> str:
    if place.is_dir() and (place / "img_emb").is_dir():
        return "clip-retrieval"
    if place.suffix.lower() in (".h5", ".hdf5"):
        return "hloc"
    if place.suffix.lower() == ".csv" or (place.is_dir() and any(place.glob("*.csv"))):
        return "oml"
    raise InputError(
        f"{place}: expected a folder with img_emb/*.npy (clip-retrieval, `distcam index export`), a .csv table with "
        "embeddings beside it (Open Metric Learning), or an .h5 file (hloc)"
    )


# --- clip-retrieval, and our own export -------------------------------------------------------------------------------


def _clip_retrieval(place: Path, *, root: Path | None, label_column: str | None) -> Source:
    """`img_emb/img_emb_<n>.npy` and `metadata/metadata_<n>.parquet`, row by row; rows are numbered through."""
    about = _about(place)
    shards = _numbered(place / "img_emb", ".npy")
    if not shards:
        raise InputError(f"{place / 'img_emb'}: holds no .npy file")
    tables = dict(_numbered(place / "metadata", ".parquet"))
    pooled = dict(_numbered(place / "pooled", ".npy"))
    arrays = [_Shard(_matrix(file), tables.get(number), _optional(pooled.get(number)), file) for number, file in shards]
    dims = {(array.embedding.shape[1], None if array.pooled is None else array.pooled.shape[1]) for array in arrays}
    if len(dims) > 1:
        raise InputError(f"{place}: its arrays have different widths, {sorted(map(str, dims))}")
    for array in arrays:
        array.check()
    own_root = Path(about["root"]) if "root" in about else place.absolute()
    reader = _TableReader(
        root=own_root if root is None else root.absolute(),
        label=label_column or "label",
        columns=about.get("columns"),
    )

    def blocks() -> Iterator[tuple[Entries, Vectors]]:
        for shard in arrays:
            yield from reader.blocks(shard)

    (dim, pooled_dim) = dims.pop()
    count = sum(len(array.embedding) for array in arrays)
    return Source("clip-retrieval", place, reader.root, count, dim, blocks, pooled_dim, about)


def _about(place: Path) -> dict[str, Any]:
    """What our own export says of itself, checked; nothing when somebody else wrote the folder."""
    file = place / EXPORT_FILE
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("too long")
        about = json.loads(file.read_bytes())
        if about.get("format") != "distcam-export" or about.get("version") != 1:
            raise ValueError("another format, or a newer version")
        kinds = {"root": str, "metric": str, "columns": dict, "encoder": dict}
        if wrong := [name for name, kind in kinds.items() if not isinstance(about.get(name), kind)]:
            raise ValueError(f"no {', '.join(wrong)}")
        encoder = about["encoder"]
        if not isinstance(encoder.get("description"), dict) or not all(
            isinstance(encoder.get(name), str) for name in ("fingerprint", "short_name")
        ):
            raise ValueError("its encoder is not described")
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        raise InputError(f"{file}: is not what `distcam index export` writes ({error}); export again") from error
    return dict(about)


def _numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """Files by the number that their names end in: `img_emb_2` comes before `img_emb_10`."""
    found = []
    for path in folder.glob(f"*{suffix}") if folder.is_dir() else ():
        number = re.search(r"(\d+)$", path.stem)
        found.append((int(number[1]) if number else 0, path))
    found.sort()
    numbers = [number for number, _ in found]
    if len(set(numbers)) < len(numbers):
        raise InputError(
            f"{folder}: two files have the same number, so nothing says which table belongs to which array"
        )
    return found


def _matrix(file: Path) -> Array:
    """An array of one row per image, mapped into memory."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{file}: is no readable .npy array without pickle ({error})") from error
    return _checked(file, array)


def _checked(file: Path, array: Any) -> Array:
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        shape, kind = getattr(array, "shape", "?"), getattr(array, "dtype", type(array).__name__)
        raise InputError(f"{file}: expected one row of floating-point numbers per image, got {kind} of shape {shape}")
    return array


def _optional(file: Path | None) -> Array | None:
    return None if file is None else _matrix(file)


@dataclass(frozen=True)
class _Shard:
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


@dataclass(frozen=True)
class _TableReader:
    """Turns rows of a table into entries.

    Attributes:
        root: what relative paths refer to.
        label: the column with the classes.
        columns: of our own export: the gallery's name of each column of the table; None in everybody else's.
    """

    root: Path
    label: str
    columns: Mapping[str, str] | None

    def blocks(self, shard: _Shard) -> Iterator[tuple[Entries, Vectors]]:
        start = 0
        for table in self._tables(shard):
            stop = start + len(next(iter(table.values())))
            embedding = np.array(shard.embedding[start:stop], np.float32)
            pooled = embedding if shard.pooled is None else np.array(shard.pooled[start:stop], np.float32)
            yield self.entries(table, f"{shard.file.stem}/", start), Vectors(pooled, embedding)
            start = stop

    def _tables(self, shard: _Shard) -> Iterator[dict[str, list[Any]]]:
        if shard.table is None:
            for start in range(0, len(shard.embedding), BLOCK_ROWS):
                yield {"": [None] * min(BLOCK_ROWS, len(shard.embedding) - start)}
            return
        _, pq = parquet()
        try:
            with pq.ParquetFile(shard.table) as file:
                for batch in file.iter_batches(batch_size=BLOCK_ROWS):
                    names = map(str, batch.schema.names)
                    yield {name: column.to_pylist() for name, column in zip(names, batch.columns, strict=True)}
        except (OSError, ValueError) as error:
            raise InputError(f"{shard.table}: cannot be read as Parquet ({error})") from error

    def entries(self, table: dict[str, list[Any]], prefix: str, start: int) -> Entries:
        count = len(next(iter(table.values())))
        state = {name: table.pop(name) for name in _STATE_COLUMNS if name in table} if self.columns is not None else {}
        own = "path" if self.columns is not None else next((name for name in _PATH_COLUMNS if name in table), None)
        paths = _texts(table.pop(own, [None] * count)) if own is not None else [None] * count
        if self.columns is not None:
            table.pop("image_path", None)
        labels = _texts(table.pop(self.label, [None] * count))
        names = self.columns or {}
        columns = {names.get(name, _free(name)): _texts(values) for name, values in table.items() if name}
        return Entries(
            ids=np.zeros(count, np.uint64),
            paths=[
                _stored(f"{prefix}{start + row:08d}" if path is None else path, self.root)
                for row, path in enumerate(paths)
            ],
            sha256=_checksums(state.get("sha256", [None] * count)),
            size=_numbers(state.get("size", [None] * count), np.uint64),
            mtime_ns=_numbers(state.get("mtime_ns", [None] * count), np.int64),
            columns={"label": labels, **columns},
        )


def _free(name: str) -> str:
    """A column's name in the gallery, where `path` and `label` are taken."""
    return f"{name}_" if name in ("path", "label") else name


def _texts(values: Sequence[Any]) -> list[str | None]:
    return [_text(value) for value in values]


def _text(value: Any) -> str | None:
    """A cell as a gallery stores it: text, or nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
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


def _stored(path: str, root: Path) -> str:
    """The path under which the gallery will know an image; addresses stay as they are."""
    return path if "://" in path or not path or "\0" in path else stored_path(root / path, root)


# --- Open Metric Learning ---------------------------------------------------------------------------------------------


def _oml(place: Path, embeddings: Path | None, *, root: Path | None, label_column: str | None) -> Source:
    """A table as `list_images` reads it, and a matrix or tensor with a row for each of its lines."""
    table = _only(place, "*.csv") if place.is_dir() else place
    file = embeddings or _only(table.parent, *(f"*{suffix}" for suffix in _ARRAYS))
    listing = list_images(table)
    matrix = _matrix(file) if file.suffix == ".npy" else _tensor(file)
    if len(listing) != len(matrix):
        raise InputError(
            f"{table} has {len(listing)} lines and {file.name} {len(matrix)} rows; they must have the same"
        )
    own_root = (root or listing.root).absolute()
    reader = _TableReader(root=own_root, label=label_column or "label", columns=None)

    def blocks() -> Iterator[tuple[Entries, Vectors]]:
        records, start = iter(listing), 0
        while some := list(islice(records, BLOCK_ROWS)):
            rows: dict[str, list[Any]] = {"path": [record.path for record in some]}
            rows["label"] = [record.label for record in some]
            rows |= {name: [record.columns.get(name) for record in some] for name in listing.column_names}
            embedding = np.array(matrix[start : start + len(some)], np.float32)
            yield reader.entries(rows, "", start), Vectors(embedding, embedding)
            start += len(some)

    return Source("oml", table, own_root, len(matrix), matrix.shape[1], blocks)


def _only(folder: Path, *patterns: str) -> Path:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise InputError(f"{folder}: expected one file {' or '.join(patterns)}, found {names}; name it (--embeddings)")
    return found[0]


def _tensor(file: Path) -> Array:
    """A tensor that `torch.save` wrote, read without running anything in it."""
    import pickle

    import torch

    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file}: cannot be read safely as a tensor ({reason}); save it with np.save") from error
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise InputError(f"{file}: expected a tensor of floating-point numbers, got {type(tensor).__name__}")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():  # a small file may claim any shape
        raise InputError(f"{file}: says it has {tuple(tensor.shape)} numbers, more than it holds")
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return _checked(file, tensor.detach().numpy())


# --- hloc -------------------------------------------------------------------------------------------------------------


def _hloc(place: Path, root: Path) -> Source:
    """A group for each image, named by its path, with a dataset `global_descriptor`."""
    names, dim = _with_hloc(place, _descriptors)
    if not names:
        raise InputError(f"{place}: no group in it holds a global_descriptor")
    reader = _TableReader(root=root.absolute(), label="label", columns=None)

    def blocks() -> Iterator[tuple[Entries, Vectors]]:
        for start in range(0, len(names), BLOCK_ROWS):
            some = names[start : start + BLOCK_ROWS]
            embedding = _with_hloc(place, partial(_stacked, some))
            yield reader.entries({"path": list(some)}, "", start), Vectors(embedding, embedding)

    return Source("hloc", place, reader.root, len(names), dim, blocks)


def _with_hloc(place: Path, read: Callable[[Any], Any]) -> Any:
    try:
        with h5py.File(place, "r", locking=False) as file:
            return read(file)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except Exception as error:  # h5py raises nearly every kind for a damaged file
        raise InputError(f"{place}: cannot be read as hloc's HDF5 ({type(error).__name__})") from error


def _descriptors(file: Any) -> tuple[list[str], int]:
    names: list[str] = []
    dims: set[int] = set()
    pending = [("", file)]
    while pending:
        place, group = pending.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{place}{name} is a link to somewhere else, which is never followed")
            item = group[name]
            if isinstance(item, h5py.Group) and place.count("/") < 64:
                pending.append((f"{place}{name}/", item))
            elif name == "global_descriptor" and isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual or item.ndim != 1 or item.dtype.kind != "f":
                    raise InputError(f"{place}{name} is no plain vector of this file")
                dims.add(item.shape[0])
                names.append(place.rstrip("/"))
    if len(dims) > 1 or any(not 1 <= dim <= 1 << 20 for dim in dims):
        raise InputError(f"its descriptors have impossible or different lengths, {sorted(dims)[:5]}")
    return sorted(names), dims.pop() if dims else 0


def _stacked(names: Sequence[str], file: Any) -> NDArray[np.float32]:
    return np.stack([np.asarray(file[name]["global_descriptor"][:], np.float32) for name in names])
