"""The gallery in service, searched by many threads while this or another process changes it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..encoders import Encoder, Encoding
from ..encoders.inference import Encodes
from ..errors import CorruptGalleryError, DistcamError, FingerprintMismatchError, GalleryError
from ..index import Gallery, Record
from ..index.backends import is_root_of_this_user, open_snapshot, opened_for_writing
from ..index.building.build import finish, to_vectors
from ..index.building.ingest import Encoded, Offer, ingest_offers, read_offer
from ..index.storage.manifest import MANIFEST_NAME
from ..index.storage.segments import stored_path
from ..retrieval import Retriever
from .refusals import ApiError
from .settings import ServerSettings

_log = logging.getLogger(__name__)
_NOWHERE = Path(os.devnull, "not shown")  # no file can be there
_FRESH_S = 0.1
_RETRY_S = 1.0  # between two looks at a gallery that could not be opened


class ReadWriteLock:
    """Any number of readers, or one writer; who waits to write goes before new readers."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._inside = 0  # readers; −1 for a writer
        self._writers_waiting = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold off writers."""
        with self._free:
            self._free.wait_for(lambda: self._inside >= 0 and not self._writers_waiting)
            self._inside += 1
        with self._leaving(-1):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold off everybody else."""
        with self._free:
            self._writers_waiting += 1
            try:
                self._free.wait_for(lambda: not self._inside)
            finally:
                self._writers_waiting -= 1
            self._inside = -1
        with self._leaving(1):
            yield

    @contextmanager
    def _leaving(self, change: int) -> Iterator[None]:
        try:
            yield
        finally:
            with self._free:
                self._inside += change
                self._free.notify_all()


class FencedGallery(Gallery):
    """A gallery whose images are read only under the folders `shown`: it can name any file of this machine as one."""

    shown: tuple[Path, ...] = ()

    def file(self, image: Record | int) -> Path:
        """Path of an image's file; nowhere, if that is not in one of the folders, links followed."""
        file = super().file(image)
        try:
            real = os.path.realpath(file)  # pathlib takes three times as long, for each of a thousand images
        except (OSError, ValueError):  # a name that no disk takes
            return _NOWHERE
        return file if any(real.startswith(os.path.join(folder, "")) for folder in self.shown) else _NOWHERE  # noqa: PTH118


class LiveGallery:
    """The newest generation of a gallery, for any number of readers; one that cannot be used is refused until it can.

    Each reader first looks at the manifest's time. When it has changed, the next reader waits for those at work and
    refreshes the gallery: an answer never shows an image that was removed before its request came.
    """

    def __init__(
        self, settings: ServerSettings, encoder: Encoder, inference: Encodes, *, on_change: Callable[[int, int], None]
    ) -> None:
        self.folder = settings.gallery
        self._settings = settings
        self._known = (0, 0)
        self._encoder = encoder
        self._inference = inference
        self._on_change = on_change
        self._lock = ReadWriteLock()
        self._moving = threading.Lock()
        self._retriever: Retriever | None = None
        self._trouble: DistcamError | None = None
        self._is_damaged = False
        self._seen: tuple[int, ...] | None = None
        self._tried = 0.0
        self._looked = 0.0
        self.follow()
        if self._trouble is not None:
            raise self._trouble

    @contextmanager
    def reading(self) -> Iterator[Retriever]:
        """The gallery with its encoder, unchanged as long as this is open."""
        self.follow()
        with self._lock.reading():
            if self._retriever is None:
                raise ApiError(503, str(self._trouble), reason="gallery", retry_after=10)
            try:
                yield self._retriever
            except CorruptGalleryError:  # the next look opens the gallery anew, and finds whether it can be used
                self._is_damaged = True
                raise

    def follow(self) -> None:
        """Move on if the gallery on the disk has; costs one look at a file if not."""
        if self._is_current():
            return
        with self._moving:
            if self._is_current():
                return
            with self._lock.writing():
                self._seen, self._tried = self._stamp(), time.monotonic()  # before reading: what comes later is news
                if self._is_damaged:
                    self._is_damaged = False
                    self.close()
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
        """True if somebody has just looked whether the gallery changed."""
        return not self._is_damaged and time.monotonic() - self._looked < _FRESH_S

    @property
    def known(self) -> tuple[int, int]:
        """Images and generation at the last look; waits for nobody."""
        if (trouble := self._trouble) is not None:
            raise ApiError(503, str(trouble), reason="gallery", retry_after=10)
        return self._known

    def close(self, *, save_caches: bool = False) -> None:
        """Close the gallery, after saving its caches for the next process where asked; no reader may be at work."""
        if self._retriever is None:
            return
        gallery, self._retriever = self._retriever.gallery, None
        if save_caches:
            try:
                gallery.save_caches()
            except DistcamError as error:  # somebody else writes, or the disk is full: they are only caches
                _log.warning("%s", error)
        gallery.close()

    def add(self, file: Path, encoding: Encoding, *, label: str | None, columns: Mapping[str, str]) -> int:
        """Add an image, given by its file and its encoding; its id. Durable when the call returns."""
        with opened_for_writing(self.folder) as writer:
            if (built_with := writer.manifest.encoder).fingerprint != self._encoder.fingerprint:
                raise FingerprintMismatchError(
                    f"the gallery was built anew with {built_with.short_name}; start the server again"
                )
            path = stored_path(file, Path(writer.manifest.root))
            snapshot = open_snapshot(self.folder, writer.manifest)
            if (row := snapshot.places_by_path([path]).get(path)) is not None:
                known = f"the gallery has this image already, as image {snapshot.ids[row]}"
                raise ApiError(409, known, reason="known")
            new = writer.manifest.next_id

            def stream(offers: Iterable[Offer]) -> Generator[Encoded, None, None]:
                for offer in offers:
                    read_offer(offer)
                    yield Encoded([offer], to_vectors(encoding, writer.manifest.spec, self._encoder), [])

            report = ingest_offers(writer, [Offer(file, path, label, columns)], stream)
            if not report.added:
                reason = report.skipped[0].reason if report.skipped else "the gallery did not take it"
                raise ApiError(400, f"the image cannot be added: {reason}", reason="features")
            finish(writer, report)
        return new

    def remove(self, image: int) -> bool:
        """Remove an image, durably; False if somebody else did before."""
        with opened_for_writing(self.folder) as writer:
            if image not in open_snapshot(self.folder, writer.manifest).ids:
                return False
            writer.remove([image])
            writer.commit()
            writer.merge_small()
        return True

    def _is_current(self) -> bool:
        if self._is_damaged or (self._trouble is not None and time.monotonic() - self._tried > _RETRY_S):
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
        """The gallery at its newest generation, read as far as the first reader needs it."""
        retriever = self._retriever
        if retriever is not None:
            before = retriever.gallery.manifest
            retriever.gallery.refresh()
            now = retriever.gallery.manifest  # an id means the same image as long as these are the same
            is_same = before.gallery_id == now.gallery_id and before.root == now.root
            if not is_same or before.encoder.fingerprint != now.encoder.fingerprint:
                self.close()
                retriever = None
        if retriever is None:
            settings = self._settings
            fenced = FencedGallery.open(self.folder, root=settings.root)
            if (theirs := fenced.manifest.encoder).fingerprint != self._encoder.fingerprint:
                other = f"the gallery was built anew with {theirs.short_name}, this server encodes with "
                other += f"{self._encoder.short_name}; start the server again"
                raise ApiError(503, other, reason="encoder", retry_after=60)
            is_named = settings.root is not None or is_root_of_this_user(fenced.manifest)
            shown = ([fenced.root] if is_named else []) + ([settings.uploads_folder] if settings.is_writable else [])
            fenced.shown = tuple(folder.resolve() for folder in shown)
            retriever = Retriever(fenced, self._encoder, inference=self._inference)
        gallery = retriever.gallery
        _ = gallery.searcher, gallery.prototypes
        if not gallery.snapshot.is_remote:
            gallery.records(gallery.ids[:1])  # reads all columns
        return retriever
