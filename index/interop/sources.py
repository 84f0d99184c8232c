"""Vectors that other tools made, as blocks of rows: clip-retrieval's folders, OML's tables, hloc's HDF5 files.

Nothing in them is trusted or run: no pickle, no links out of a file, no shape that a file cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from ...errors import InputError
from ...images.listing import quiet_listing
from ..storage.hdf5 import Array
from .tables import BLOCK_ROWS, ImportSource, RowBlock, checked_matrix, open_clip_retrieval, read_matrix

Kind = Literal["auto", "clip-retrieval", "oml", "hloc"]


def open_source(
    place: Path,
    *,
    kind: Kind = "auto",
    embeddings: Path | None = None,
    root: Path | None = None,
    label_column: str | None = None,
) -> ImportSource:
    """The rows that another tool left behind, as `import_gallery` explains."""
    if not place.exists():
        raise InputError(f"nothing is at {place}")
    chosen, suffix = kind, place.suffix.lower()
    if kind == "auto":
        if place.is_dir() and (place / "img_emb").is_dir():
            chosen = "clip-retrieval"
        elif suffix in (".h5", ".hdf5"):
            chosen = "hloc"
        elif suffix == ".csv" or (place.is_dir() and any(place.glob("*.csv"))):
            chosen = "oml"
        else:
            raise InputError(
                f"{place}: expected a folder with img_emb/*.npy (clip-retrieval, `distcam index export`), a .csv table "
                "with embeddings beside it (Open Metric Learning), or an .h5 file (hloc)"
            )
    if embeddings is not None and chosen != "oml":
        raise InputError(f"{place}: `embeddings` belongs to a table; {chosen} brings its own")
    if label_column is not None and chosen == "hloc":
        raise InputError(f"{place}: `label_column` is not used, as hloc keeps no classes")
    if chosen == "clip-retrieval":
        return open_clip_retrieval(place, root=root, label_column=label_column)
    if chosen == "hloc":
        return _hloc(place, root or place.parent)
    return _oml(place, embeddings, root=root, label_column=label_column)


def _oml(place: Path, embeddings: Path | None, *, root: Path | None, label_column: str | None) -> ImportSource:
    """A table as `list_images` reads it, and a matrix or tensor with a row for each of its lines."""
    table = _only(place, "*.csv") if place.is_dir() else place
    file = embeddings or _only(table.parent, "*.npy", "*.pt", "*.pth")
    listing = quiet_listing(table, "column", needs_no_cut=True)
    matrix = read_matrix(file) if file.suffix == ".npy" else _tensor(file)
    if len(listing) != len(matrix):
        raise InputError(
            f"{table} has {len(listing)} lines and {file.name} {len(matrix)} rows; they must have the same"
        )
    own_root = (root or listing.root).absolute()

    def read() -> Iterator[RowBlock]:
        records, start = iter(listing), 0
        while some := list(islice(records, BLOCK_ROWS)):
            rows: dict[str, list[Any]] = {
                name: [getattr(record, name) for record in some] for name in ("path", "label")
            }
            rows |= {name: [record.columns.get(name) for record in some] for name in listing.column_names}
            yield RowBlock(rows, matrix[start : start + len(some)])
            start += len(some)

    return ImportSource("oml", table, own_root, len(matrix), matrix.shape[1], read, label_column or "label")


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
    return checked_matrix(file, tensor.detach().numpy())


def _hloc(place: Path, root: Path) -> ImportSource:
    """A group for each image, named by its path, with a dataset `global_descriptor`."""
    names, dim = _with_hloc(place, _descriptors)
    if not names:
        raise InputError(f"{place}: no group in it holds a global_descriptor")

    def stacked(file: Any, names: list[str]) -> Array:
        return np.stack([np.asarray(file[name]["global_descriptor"][:], np.float32) for name in names])

    def read() -> Iterator[RowBlock]:
        for start in range(0, len(names), BLOCK_ROWS):
            some = names[start : start + BLOCK_ROWS]
            yield RowBlock({"path": list(some)}, _with_hloc(place, stacked, some))

    return ImportSource("hloc", place, root.absolute(), len(names), dim, read)


def _with_hloc(place: Path, read: Callable[..., Any], *names: list[str]) -> Any:
    try:
        with h5py.File(place, "r", locking=False) as file:
            return read(file, *names)
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
