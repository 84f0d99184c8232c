"""Files that appear whole or not at all, that survive a crash, and the lock that admits one writer.

What a crash must not harm is written under a name ending in `.tmp`, brought to the disk, renamed to its final name,
and the folder that holds the name is brought to the disk too. Every one of these steps goes through `Storage`, so a
test can record them and replay each moment at which the power may fail.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from .errors import (
    CorruptGalleryError,
    DistcamError,
    GalleryError,
    GalleryLockedError,
    InputError,
    is_out_of_descriptors,
    too_many_files,
)
from .forking import in_every_child
from .remarks import DistcamWarning, remark
from .threads import in_threads

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    import h5py
    import numpy as np
    from numpy.typing import NDArray

ASIDE_SUFFIX = ".tmp"
REMEDY = (
    "restore it from a copy with `distcam index restore COPY GALLERY`, "
    "or build the gallery again with `distcam index build`"
)
LOCK_NAME = ".lock"
_LOCKED_BYTE = 1 << 30  # Windows locks bytes, not files: one far behind the pid, which others must be able to read

T = TypeVar("T")


def is_file(path: str | os.PathLike[str]) -> bool:
    """True if a file is there; False as well for what can be no path, such as a name of 5,000 letters."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for such names


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new path beside `path`, with its suffix, to be written to; it takes the place of `path` when the block ends.

    If the block fails, what was written is removed and `path` is as it was. The path is different in every call, so
    that two processes never write to the same file. The folder of `path` is made if it is not there.
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
    """Write a text file whole, in UTF-8, its line ends as they are; what UTF-8 cannot hold gets backslashes."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    return Path(path)


def write_hdf5(path: str | os.PathLike[str], write: Callable[[h5py.File], None]) -> None:
    """Write a new HDF5 file by `write`, and put it in its place when it is complete."""
    import h5py  # not needed by most of those who write files

    final = Path(path)
    if not final.parent.is_dir():
        raise InputError(f"{final.parent} is not a folder; create it first")
    with replacing(final) as aside, h5py.File(aside, "w") as file:
        write(file)


def read_hdf5(path: str | os.PathLike[str], what: str, read: Callable[[h5py.File], T]) -> T:
    """The result of `read` for an HDF5 file; whatever h5py raises for a bad file becomes one clear InputError."""
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

    return np.array([digest for digest in in_threads(one, list(files)) if digest is not None], np.int64)


class Storage:
    """The file operations that a commit is made of; without state. Tests stand in for it to record or to break it."""

    def make_folder(self, folder: Path) -> None:
        """Create `folder` and its missing parents, and bring their names to the disk."""
        missing = [folder]
        try:
            while not missing[-1].parent.is_dir():
                missing.append(missing[-1].parent)
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                self.sync_folder(path.parent)
        except (OSError, ValueError) as error:  # ValueError: no path holds a NUL
            if not isinstance(error, OSError):
                raise GalleryError(f"{folder}: cannot be made ({error}); choose another place") from error
            raise _refusal(error, folder, f"cannot be made ({error.strerror}); choose another place") from error

    def sync(self, path: Path) -> None:
        """Bring a file's contents to the disk."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            full_sync = None if sys.platform == "win32" else getattr(fcntl, "F_FULLFSYNC", None)
            if full_sync is None:
                os.fsync(descriptor)
            else:  # macOS: fsync alone stops at the drive's own cache
                fcntl.fcntl(descriptor, full_sync)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give `source` the name `target`, replacing what had it, in one step."""
        source.replace(target)

    def sync_folder(self, folder: Path) -> None:
        """Bring the names in a folder to the disk. Windows has no such call and does it by itself."""
        if sys.platform == "win32":
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Delete a file if it is there and nobody holds it; what stays is an orphan for the next writer."""
        with suppress(OSError):
            path.unlink()

    @contextmanager
    def replacing(self, target: Path) -> Iterator[Path]:
        """The path to write to; on leaving without an exception it becomes `target`, durably.

        An exception removes what was written, so a full disk leaves nothing behind.
        """
        aside = target.with_name(target.name + ASIDE_SUFFIX)
        try:
            yield aside
            self.sync(aside)
            self.rename(aside, target)
            self.sync_folder(target.parent)
        except BaseException as error:
            self.remove(aside)
            if not isinstance(error, OSError):
                raise
            reason = error.strerror or str(error)
            problem = f"cannot be written ({reason}); is the disk full or write-protected?"
            raise _refusal(error, target, problem) from error

    def write(self, target: Path, data: bytes) -> None:
        """Make `data` the contents of `target`, durably and in one step."""
        with self.replacing(target) as aside:
            aside.write_bytes(data)


class WriterLock:
    """The right to change a gallery, held by one writer at a time; readers neither ask nor wait.

    The operating system lets go of it when the process ends, however it ends, so there is no stale lock to clear away.
    Entering waits `patience` seconds for another writer; then GalleryLockedError names its process.
    """

    def __init__(self, folder: Path, *, patience: float = 0.0) -> None:
        self._path = folder / LOCK_NAME
        self._patience = patience
        self._descriptor: int | None = None
        in_every_child(self._close)

    def __enter__(self) -> Self:
        folder = self._path.parent
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            problem = f"cannot be changed ({error.strerror}); is it write-protected?"
            raise _refusal(error, folder, problem) from error
        try:
            self._wait_for(descriptor)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise GalleryLockedError(
                f"{folder}: process {holder} is writing to this gallery; wait for it, or stop it"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise GalleryError(
                f"{self._path}: this file system cannot lock files ({error.strerror}); keep the gallery on a local disk"
            ) from error
        with suppress(OSError):  # on a full disk the lock holds all the same, without its holder's name
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def _wait_for(self, descriptor: int) -> None:
        """Take the lock, or raise BlockingIOError when patience is at its end."""
        until = time.monotonic() + self._patience
        while True:
            try:
                return _lock(descriptor)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        """Close the lock file. In a forked child the parent keeps the lock, and the child does not hold it longer."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> None:
    """Take the lock at once or raise BlockingIOError."""
    if sys.platform == "win32":
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _refusal(error: OSError, path: object, problem: str) -> GalleryError:
    """The error of one line for what the file system refused."""
    return too_many_files(path) if is_out_of_descriptors(error) else GalleryError(f"{path}: {problem}")


@contextmanager
def refusals_named(folder: Path) -> Iterator[None]:
    """Turn whatever the file system refuses while a gallery is made or changed into a `GalleryError` of one line."""
    try:
        yield
    except BrokenPipeError:  # nobody reads what the caller prints
        raise
    except OSError as error:
        if isinstance(error, DistcamError):
            raise
        problem = f"{(error.strerror or str(error)).lower()}; what was committed before is in {folder}"
        raise _refusal(error, error.filename or folder, problem) from error


@contextmanager
def after_commit(folder: Path, what: str) -> Iterator[None]:
    """For what follows a commit and can be made up for later: a failure is a remark, even for whoever is strict.

    What was asked for is done and on the disk by then: an error would make the caller do it again.

    Args:
        folder: the gallery's.
        what: a noun, such as "the search index".
    """
    try:
        yield
    except (DistcamError, OSError, MemoryError) as error:
        say_after_commit(
            f"{folder}: what was asked for is done and kept, but {what} could not be brought up to date "
            f"({' '.join(str(error).split()) or type(error).__name__}); it is made up for by the next change"
        )


def say_after_commit(message: str) -> None:
    """A remark that is no error even for whoever is strict: what was asked for is done."""
    try:
        remark(message)
    except DistcamWarning as warning:
        warnings.showwarning(warning, DistcamWarning, __file__, 0)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's contents, as 64 hexadecimal digits."""
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(path: Path) -> bytes:
    """The contents of a small file of a gallery."""
    with _reading(path):
        return path.read_bytes()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_out_of_descriptors(error):
            raise too_many_files(path) from error
        raise CorruptGalleryError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
