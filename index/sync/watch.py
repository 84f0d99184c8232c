"""A gallery that keeps following a folder: look, wait for something to happen, look again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from ...errors import CorruptGalleryError, DistcamError, InputError
from .report import SyncReport
from .sync import LazyEncoder

if TYPE_CHECKING:
    from ...encoders import Encoder
    from ..gallery import Gallery


def watch_folder(
    gallery: Gallery,
    folder: str | os.PathLike[str],
    encoder: Encoder | str | os.PathLike[str] | None = None,
    *,
    every: float | None = None,
    settle: float = 2.0,
    stop: Event | None = None,
    **options: Any,
) -> Iterator[SyncReport | DistcamError]:
    """Sync at once, and again whenever the folder changes; yields what each change set did.

    With `watchfiles` installed the operating system says when something changes; else the folder is looked through
    every few seconds. Files younger than `settle`, and files that cannot be used, are tried again. A sync that fails
    later on (an unmounted disk, another writer) is yielded as the error, once, and tried again too: nothing is lost by
    it. Looks that find nothing are not yielded.

    Args:
        gallery: the gallery; open it for nothing else meanwhile.
        folder: what to follow.
        encoder: see `Gallery.sync`.
        every: look every so many seconds instead of waiting for the operating system, which says nothing of changes on
            network disks. Without `watchfiles` 10 s are the default.
        settle: seconds that a file must have been left alone before it is read.
        stop: set it to end the watch.
        options: of `Gallery.sync`.

    Raises:
        DistcamError: the first sync failed, or the gallery was damaged.
    """
    if settle < 0 or (every is not None and every <= 0):
        raise InputError(f"expected seconds above 0, got every={every}, settle={settle}")
    stop = stop or Event()
    load = LazyEncoder(gallery, encoder)
    waiting = _Waiting(Path(folder), gallery.folder, every=every, stop=stop)
    last: tuple[Any, ...] | None = None
    is_first = True
    while not stop.is_set():
        waiting.begin()  # before the look, so that nothing happens between the two
        busy = 0
        try:
            report = gallery.sync(folder, load, settle=settle, **options)
            found = (report.changes, report.missing, report.skipped)
            if is_first or report.changes or found != last:
                yield report
            last, busy = ((), *found[1:]), report.busy
        except CorruptGalleryError:
            raise
        except DistcamError as error:
            if is_first:
                raise
            if last != (str(error),):
                yield error
            last, busy = (str(error),), 1
        is_first = False
        waiting.wait(settle if busy else None)


class _Waiting:
    """Until something changes under a folder, time is up, or the watch is over."""

    def __init__(self, folder: Path, gallery: Path, *, every: float | None, stop: Event) -> None:
        self._folder = folder
        self._own = (str(gallery.absolute()), str(gallery.resolve()))  # what a sync writes is no reason for another
        self._stop = stop
        self._every = every
        self._events: Iterator[Any] | None = None
        if every is None and find_spec("watchfiles") is None:
            self._every = 10.0

    def begin(self) -> None:
        """Start listening, if that is possible and has not begun."""
        if self._every is None and self._events is None and self._folder.is_dir():
            import watchfiles

            self._events = watchfiles.watch(
                self._folder,
                watch_filter=lambda _kind, path: not path.startswith(self._own),
                debounce=1000,
                rust_timeout=500,
                yield_on_timeout=True,
                stop_event=self._stop,
                ignore_permission_denied=True,
            )
            next(self._events, None)  # it starts listening with the first call

    def wait(self, at_most: float | None) -> None:
        """Return when there is a reason to look again; `at_most` when something is known to be unfinished."""
        if self._events is None:
            self._stop.wait(at_most or self._every or 1.0)
            return
        until = None if at_most is None else time.monotonic() + at_most
        try:
            for happened in self._events:
                if happened or (until is not None and time.monotonic() >= until):
                    break
        except (OSError, RuntimeError):  # the folder itself is gone
            self._events = None
        if not self._folder.is_dir():
            self._events = None
            self._stop.wait(1.0)
