"""Files that survive a crash: write aside, sync, rename, sync the folder; and the lock that admits one writer.

A file of a gallery is never changed in place. It is written under a name ending in `.tmp`, brought to the disk,
renamed to its final name, and the folder that holds the name is brought to the disk too. Only then does anything
refer to it. Every one of these steps goes through `Storage`, so a test can record them and replay each moment at
which the power may fail.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import CorruptGalleryError, GalleryError, GalleryLockedError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["ASIDE_SUFFIX", "LOCK_NAME", "Storage", "WriterLock", "file_sha256"]

ASIDE_SUFFIX = ".tmp"
LOCK_NAME = ".lock"
_LOCKED_BYTE = 1 << 30  # Windows locks bytes, not files: one far behind the pid, which others must be able to read


class Storage:
    """The file operations that a commit is made of; without state. Tests stand in for it to record or to break it."""

    def make_folder(self, folder: Path) -> None:
        """Create `folder` and its missing parents, and bring their names to the disk."""
        missing = [folder]
        while not missing[-1].parent.is_dir():
            missing.append(missing[-1].parent)
        try:
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                self.sync_folder(path.parent)
        except OSError as error:
            raise GalleryError(f"{folder}: cannot be made ({error.strerror}); choose another place") from error

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

        Raises:
            GalleryError: the file system refuses.
        """
        aside = target.with_name(target.name + ASIDE_SUFFIX)
        try:
            yield aside
            self.sync(aside)
            self.rename(aside, target)
            self.sync_folder(target.parent)
        except OSError as error:
            self.remove(aside)
            reason = error.strerror or str(error)
            raise GalleryError(
                f"{target}: cannot be written ({reason}); is the disk full or write-protected?"
            ) from error
        except BaseException:
            self.remove(aside)
            raise

    def write(self, target: Path, data: bytes) -> None:
        """Make `data` the contents of `target`, durably and in one step."""
        with self.replacing(target) as aside:
            aside.write_bytes(data)


class WriterLock:
    """The right to change a gallery, held by one writer at a time; readers neither ask nor wait.

    The operating system lets go of it when the process ends, however it ends, so there is no stale lock to clear away.

    Args:
        folder: the gallery's.
        patience: seconds to wait for another writer.

    Raises:
        GalleryLockedError: on entering, when another writer is still at work; names its process.
    """

    def __init__(self, folder: Path, *, patience: float = 0.0) -> None:
        self._path = folder / LOCK_NAME
        self._patience = patience
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        descriptor = self._open()
        try:
            self._wait_for(descriptor)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise GalleryLockedError(
                f"{self._path.parent}: process {holder} is writing to this gallery; wait for it, or stop it"
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

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise GalleryError(
                f"{self._path.parent}: cannot be changed ({error.strerror}); is it write-protected?"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # closing lets go of the lock
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


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's contents, as 64 hexadecimal digits."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorruptGalleryError(
            f"{path}: cannot be read ({error.strerror}); restore it or rebuild the gallery"
        ) from error
