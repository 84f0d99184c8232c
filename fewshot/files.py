"""HDF5 files that appear complete or not at all, and whose faults are one clear error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import h5py

from ..errors import InputError
from ..files import replacing

__all__ = ["read_hdf5", "write_aside"]

T = TypeVar("T")


def write_aside(path: str | os.PathLike[str], write: Callable[[h5py.File], None]) -> None:
    """Let `write` fill an HDF5 file under another name, then rename it: no reader ever sees half of it."""
    final = Path(path)
    if not final.parent.is_dir():
        raise InputError(f"{final.parent} is not a folder; create it first")
    with replacing(final) as aside, h5py.File(aside, "w") as file:
        write(file)


def read_hdf5(path: str | os.PathLike[str], what: str, read: Callable[[h5py.File], T]) -> T:
    """What `read` makes of an HDF5 file; whatever h5py raises for a bad file becomes one clear InputError."""
    try:
        with h5py.File(path, "r") as file:
            return read(file)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, KeyError, TypeError, AttributeError, UnicodeError, ValueError) as error:
        raise InputError(f"{path} is not {what} written by distcam: {error}") from error
