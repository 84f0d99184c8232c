"""The gallery in service, searched by many threads while this or another process changes it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..encoders import Encoder
from ..errors import DistcamError, GalleryError
from ..index import Gallery, Record
from ..index.building.creating import is_root_of_this_user
from ..index.storage.manifest import MANIFEST_NAME, Manifest
from ..retrieval import Retriever
from ..retrieval.retriever import Encodes
from .api_error import ApiError

__all__ = ["LiveGallery", "ReadWriteLock"]

_log = logging.getLogger(__name__)
_NOWHERE = Path(os.devnull, "not shown")  # no file can be there
_FRESH_S = 0.1
_RETRY_S = 1.0  # between two looks at a gallery that could not be opened


class ReadWriteLock:
    """Any number of readers, or one writer; who waits to write goes before new readers."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._readers = 0
        self._writers_waiting = 0
        self._is_writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While no one writes."""
        with self._free:
            self._free.wait_for(lambda: not self._is_writing and not self._writers_waiting)
            self._readers += 1
        try:
            yield
        finally:
            with self._free:
                self._readers -= 1
                self._free.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone."""
        with self._free:
            self._writers_waiting += 1
            try:
                self._free.wait_for(lambda: not self._is_writing and not self._readers)
            finally:
                self._writers_waiting -= 1
            self._is_writing = True
        try:
            yield
        finally:
            with self._free:
                self._is_writing = False
                self._free.notify_all()


class FencedGallery(Gallery):
    """A gallery whose pictures are read only where whoever serves it has said that they lie.

    A gallery can name any file of this machine as one of its images, and the server would show it to its clients.

    Attributes:
        shown: the folders, without links; pictures elsewhere are as if they were gone.
    """

    shown: tuple[Path, ...] = ()

    def file(self, image: Record | int) -> Path:
        """Where an image's file lies; nowhere, if that is not in one of the folders, links followed."""
        file = super().file(image)
        try:
            real = file.resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no disk takes
            return _NOWHERE
        return file if any(real.is_relative_to(folder) for folder in self.shown) else _NOWHERE


class LiveGallery:
    """The newest generation of a gallery, for any number of readers.

    Before each reading the manifest's time is looked at. When somebody has changed it, the next reader waits for those
    at work and moves the gallery on: an answer never shows what was removed before its request came. A gallery that
    cannot be used, because a file is damaged or another encoder built it anew, is refused until it can be used again.

    Args:
        folder: the gallery.
        encoder: the one that built it.
        inference: encodes for all readers.
        root: where the pictures lie; only those under it are shown. Left out, it is the recorded one, if this user
            built the gallery; otherwise none are shown.
        uploads: a folder of the server's own, whose pictures are shown too.
        on_change: called with the number of images and the generation.

    Raises:
        DistcamError: it cannot be used right now.
    """

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        inference: Encodes,
        *,
        root: Path | None = None,
        uploads: Path | None = None,
        on_change: Callable[[int, int], None] = lambda _images, _generation: None,
    ) -> None:
        self.folder = folder
        self._uploads = uploads
        self._known = (0, 0)
        self._encoder = encoder
        self._inference = inference
        self._root = root
        self._on_change = on_change
        self._lock = ReadWriteLock()
        self._moving = threading.Lock()
        self._retriever: Retriever | None = None
        self._trouble: DistcamError | None = None
        self._seen: tuple[int, ...] | None = None
        self._tried = 0.0
        self._looked = 0.0
        self.follow()
        if self._trouble is not None:
            raise self._trouble

    @contextmanager
    def reading(self) -> Iterator[Retriever]:
        """The gallery with its encoder, unchanged as long as this is open.

        Raises:
            ApiError: 503, the gallery cannot be used at the moment.
        """
        self.follow()
        with self._lock.reading():
            if self._retriever is None:
                raise ApiError(503, str(self._trouble), reason="gallery", retry_after=10)
            yield self._retriever

    def follow(self) -> None:
        """Move on if the gallery on the disk has; costs one look at a file if not."""
        if self._is_current():
            return
        with self._moving:
            if self._is_current():
                return
            with self._lock.writing():
                self._seen, self._tried = self._stamp(), time.monotonic()  # before reading: what comes later is news
                try:
                    self._retriever, self._trouble = self._moved(), None
                except Exception as error:  # whatever it is, what is half moved must not answer
                    self.close()
                    if isinstance(error, DistcamError):
                        self._trouble = error
                    else:
                        self._trouble = GalleryError(f"the gallery cannot be read: {error}")
                    _log.warning("%s", self._trouble, exc_info=not isinstance(error, (DistcamError, OSError)))
                    return
            gallery = self._retriever.gallery
            self._known = len(gallery), gallery.manifest.generation
            self._on_change(*self._known)

    @property
    def is_fresh(self) -> bool:
        """Whether somebody has just looked whether the gallery changed."""
        return time.monotonic() - self._looked < _FRESH_S

    @property
    def known(self) -> tuple[int, int]:
        """Images and generation at the last look; waits for nobody.

        Raises:
            ApiError: 503, the gallery could not be used then.
        """
        if (trouble := self._trouble) is not None:
            raise ApiError(503, str(trouble), reason="gallery", retry_after=10)
        return self._known

    @property
    def shown_roots(self) -> tuple[Path, ...]:
        """The folders whose pictures are shown."""
        with self.reading() as retriever:
            return getattr(retriever.gallery, "shown", ())

    def close(self, *, save_caches: bool = False) -> None:
        """Let go of the gallery, perhaps after a last service to the next who opens it; no reader may be at work."""
        if self._retriever is None:
            return
        gallery, self._retriever = self._retriever.gallery, None
        if save_caches:
            try:
                gallery.save_caches()
            except DistcamError as error:  # somebody else writes, or the disk is full: they are only caches
                _log.warning("%s", error)
        gallery.close()

    @property
    def fingerprint(self) -> str:
        """Of the encoder that the gallery must have been built with."""
        return self._encoder.fingerprint

    def _is_current(self) -> bool:
        if self._trouble is not None and time.monotonic() - self._tried > _RETRY_S:
            return False
        is_current = self._seen is not None and self._stamp() == self._seen
        if is_current:
            self._looked = time.monotonic()
        return is_current

    def _stamp(self) -> tuple[int, ...]:
        try:
            status = (self.folder / MANIFEST_NAME).stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_ino, status.st_size

    def _moved(self) -> Retriever:
        """The gallery at its newest generation, with everything read that readers would otherwise read on first use."""
        retriever = self._retriever
        if retriever is not None:
            before = retriever.gallery.manifest
            retriever.gallery.refresh()
            if not _continues(before, retriever.gallery.manifest):
                self.close()
                retriever = None
        if retriever is None:
            fenced = FencedGallery.open(self.folder, root=self._root)
            self._require_same_encoder(fenced.manifest)
            is_named = self._root is not None or is_root_of_this_user(fenced.manifest)
            roots = (fenced.root if is_named else None, self._uploads)
            fenced.shown = tuple(folder.resolve() for folder in roots if folder is not None)
            retriever = Retriever(fenced, self._encoder, inference=self._inference)
        gallery = retriever.gallery
        _ = gallery.searcher, gallery.prototypes
        if gallery.manifest.backend is None:
            gallery.records(gallery.ids[:1])  # reads all columns
        return retriever

    def _require_same_encoder(self, manifest: Manifest) -> None:
        mine, theirs = self._encoder, manifest.encoder
        if theirs.fingerprint != mine.fingerprint:
            raise ApiError(
                503,
                f"the gallery was built anew with {theirs.short_name}, this server encodes with {mine.short_name}; "
                "start the server again",
                reason="encoder",
                retry_after=60,
            )


def _continues(before: Manifest, after: Manifest) -> bool:
    """Whether it is still the same gallery, added to, removed from and merged, so that an id means the same image."""
    return (before.birth, before.root, before.encoder.fingerprint) == (
        after.birth,
        after.root,
        after.encoder.fingerprint,
    )
