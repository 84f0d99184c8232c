"""Files that appear whole or not at all: written beside their place, renamed, and cleared away on failure."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .errors import InputError

if TYPE_CHECKING:
    import h5py
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["content_digest", "file_digests", "is_file", "read_hdf5", "replacing", "write_hdf5", "write_text"]

T = TypeVar("T")


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is there; False as well for what can be no path, such as a name of 5,000 letters."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for such names


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new path beside `path`, with its suffix, to be written to; it takes the place of `path` when the block ends.

    If the block fails, what was written is removed and `path` is as it was. The path is different in every call, so
    that two processes never write to the same file. The folder of `path` is made if it is not there.

    Raises:
        OSError: the file system refuses, a full disk for instance; the error names `path`.
    """
    target = Path(path)
    aside = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(4)}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(target)
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) == aside:
            error.filename, error.filename2 = str(target), None
        raise
    finally:
        with suppress(OSError):
            aside.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file whole, in UTF-8, its line ends as they are; what UTF-8 cannot hold gets backslashes.

    Raises:
        OSError: the file system refuses; the error names `path`.
    """
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    return Path(path)


def write_hdf5(path: str | os.PathLike[str], write: Callable[[h5py.File], None]) -> None:
    """Let `write` fill a new HDF5 file, which takes its place when it is complete."""
    import h5py  # not needed by most of those who write files

    final = Path(path)
    if not final.parent.is_dir():
        raise InputError(f"{final.parent} is not a folder; create it first")
    with replacing(final) as aside, h5py.File(aside, "w") as file:
        write(file)


def read_hdf5(path: str | os.PathLike[str], what: str, read: Callable[[h5py.File], T]) -> T:
    """What `read` makes of an HDF5 file; whatever h5py raises for a bad file becomes one clear InputError."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return read(file)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, KeyError, TypeError, AttributeError, UnicodeError, ValueError) as error:
        raise InputError(f"{path} is not {what} written by distcam: {error}") from error


def content_digest(content: bytes) -> int:
    """The first eight bytes of the sha256 of a file's bytes, as a signed number."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)


def file_digests(files: Iterable[str | os.PathLike[str]]) -> NDArray[np.int64]:
    """`content_digest` of each file that can be read, by several threads."""
    import numpy as np

    def one(file: str | os.PathLike[str]) -> int | None:
        try:
            return content_digest(Path(file).read_bytes())
        except OSError:  # whoever looks at the image will say so
            return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return np.array([digest for digest in threads.map(one, files) if digest is not None], np.int64)
