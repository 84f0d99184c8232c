"""Files that appear whole or not at all: written beside their place, renamed, and cleared away on failure."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["is_file", "replacing", "write_text"]


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
