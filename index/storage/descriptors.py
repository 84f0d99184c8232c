"""Files that stay open for reading by position, with few descriptors.

A mapped file that somebody truncates ends the process (SIGBUS); here a short read is an error.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import CorruptGalleryError, GalleryError, is_out_of_descriptors, too_many_files
from ...forking import ForkSafeLock

if sys.platform != "win32":
    import resource

_LIMIT_MOST = 16_384
_SHARE = 4  # of the soft limit; images, sockets and the rest of the process need descriptors too
_LEAST = 4
_PIECE = 1 << 30  # bytes in one read: systems stop at 2 GiB
_CHUNK = 1 << 20

_held: deque[weakref.ref[OpenFile]] = deque()  # those that have a descriptor, roughly in the order of their last use
_looking = ForkSafeLock()  # one thread hashes a file that was written to, the others wait for what it finds
_seeking = ForkSafeLock()


def _state(status: os.stat_result) -> tuple[int, int, int, int]:
    """Device, inode, length, and time of change: another state when somebody writes to the file."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Descriptor:
    """Closed with the last reference to it, so never under a thread that is reading."""

    def __init__(self, path: Path) -> None:
        flags = ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_NOINHERIT")  # no links, no waiting on pipes
        self.number = os.open(path, os.O_RDONLY | sum(getattr(os, name, 0) for name in flags))

    def __del__(self) -> None:
        if (number := getattr(self, "number", None)) is not None:
            os.close(number)


class OpenFile:
    """A plain file, open for reading, also once deleted; if written to, it is read on only with the same `sha256`."""

    def __init__(self, path: Path, *, remedy: str, sha256: str | None = None) -> None:
        self.path = path
        self._remedy = remedy
        self._sha256 = sha256
        self._refused: tuple[int, ...] | None = None
        self._descriptor: _Descriptor | None = None
        self.was_used = True
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise self.corrupt("is not a plain file")
        status = os.fstat(self._opened().number)
        if not stat.S_ISREG(status.st_mode):
            raise self.corrupt("is not a plain file")
        self._state = _state(status)
        self.bytes = status.st_size

    @property
    def is_current(self) -> bool:
        """True if what lies under its name is the file that was opened, not written to since."""
        with suppress(OSError):
            return _state(self.path.lstat()) == self._state
        return False

    def corrupt(self, problem: str) -> CorruptGalleryError:
        """The error for a problem with this file; to be raised by the caller."""
        return CorruptGalleryError(f"{self.path}: {problem}; {self._remedy}")

    def read(self, pieces: Iterable[tuple[int, Any, int]]) -> None:
        """Fill buffers, given with their offsets and lengths in bytes, with what stands there."""
        pieces = list(pieces)
        for _ in range(3):
            descriptor = self._descriptor or self._opened()
            self.was_used = True
            try:
                is_whole = _fill(descriptor.number, pieces)
            except OSError as error:
                raise self.corrupt(f"cannot be read ({error.strerror})") from error
            if is_whole and _state(os.fstat(descriptor.number)) == self._state:
                return
            self._accept_change(descriptor)
        raise self._changed()

    def _accept_change(self, descriptor: _Descriptor) -> None:
        """Go on with a file that was written to, or replaced, if it holds what it held."""
        with _looking:
            status = os.fstat(descriptor.number)
            if (now := _state(status)) == self._state:
                return
            if self._sha256 is None or now == self._refused or status.st_size != self.bytes:
                raise self._changed()
            digest, buffer, offset = hashlib.sha256(), bytearray(_CHUNK), 0
            while size := _read_at(descriptor.number, buffer, offset):
                digest.update(memoryview(buffer)[:size])
                offset += size
            if _state(os.fstat(descriptor.number)) != now:
                raise self._changed()
            if digest.hexdigest() != self._sha256:
                self._refused = now
                raise self._changed()
            self._state = now

    def _changed(self) -> CorruptGalleryError:
        return self.corrupt("was changed while it was open, and does not hold what it did")

    def _opened(self) -> _Descriptor:
        """A new descriptor, kept for the next reads."""
        try:
            try:
                descriptor = _Descriptor(self.path)
            except OSError as error:
                if not is_out_of_descriptors(error):
                    raise
                _give_up(len(_held))
                descriptor = _Descriptor(self.path)
        except FileNotFoundError as error:
            if not hasattr(self, "_state"):
                raise
            raise GalleryError(
                f"{self.path}: was removed while the gallery was open, as compacting and restoring do; "
                "open the gallery again"
            ) from error
        except OSError as error:
            if is_out_of_descriptors(error):
                raise too_many_files(self.path) from error
            raise self.corrupt(f"cannot be opened ({error.strerror})") from error
        self._descriptor = descriptor
        _held.append(weakref.ref(self))
        if len(_held) > (most := _most_held()):
            _give_up(len(_held) - most)
        return descriptor


def _fill(number: int, pieces: Iterable[tuple[int, Any, int]]) -> bool:
    """Fill buffers; False if the file ends before that."""
    for offset, buffer, size in pieces:
        done = more = _read_at(number, buffer, offset)
        while more and done < size:  # systems read up to 2 GiB at once
            more = _read_at(number, memoryview(buffer).cast("B")[done : done + _PIECE], offset + done)
            done += more
        if done != size:
            return False
    return True


if hasattr(os, "preadv"):

    def _read_at(number: int, buffer: Any, offset: int) -> int:
        return os.preadv(number, (buffer,), offset)

else:  # Windows

    def _read_at(number: int, buffer: Any, offset: int) -> int:
        view = memoryview(buffer).cast("B")
        with _seeking:
            os.lseek(number, offset, os.SEEK_SET)
            data = os.read(number, min(len(view), _PIECE))
        view[: len(data)] = data
        return len(data)


def _give_up(count: int) -> None:
    """Close so many descriptors, first those that were not used since they were last passed over."""
    for _ in range(2 * len(_held)):
        if count <= 0 or not _held:
            return
        file = _held.popleft()()
        if file is not None and file.was_used:
            file.was_used = False
            _held.append(weakref.ref(file))
            continue
        count -= 1
        if file is not None:
            file._descriptor = None  # a thread that reads from it has its own reference


def _most_held() -> int:
    """Number of descriptors that may be kept, after raising the limit where more are in use."""
    if sys.platform == "win32":
        return 2048 // _SHARE
    found, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, most = (_LIMIT_MOST if limit == resource.RLIM_INFINITY else limit for limit in (found, hard))
    wanted = min(most, _LIMIT_MOST)
    if len(_held) > soft // _SHARE and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):
            pass
    return max(_LEAST, soft // _SHARE)
