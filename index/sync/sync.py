"""A gallery follows a folder, once or as long as it is watched: new images are encoded, moved ones carried over.

The plan is made under the writer's lock, and every step of carrying it out is a commit: whatever interrupts it, the
same sync goes on from there. Removals come last. Without a new image nothing imports torch.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import CorruptGalleryError, DistcamError, ImageError, InputError
from ...files import after_commit
from ...progress import Progress
from ...remarks import Skipped, counted
from ..building.ingest import Offer, entries_of, ingest_offers, new_skip_list, skipped_before
from ..reports import Change, SyncKind, SyncReport
from ..storage.segments import BLOCK_BYTES
from ..storage.snapshot import Snapshot
from ..storage.writer import GalleryWriter
from .plan import Carry, SyncFolder, SyncPlan, SyncSettings

if TYPE_CHECKING:  # a sync that finds nothing new does without torch
    from ...encoders import Encoder
    from ..gallery import Gallery
    from ..reader import GalleryReader

_CARRIED_AT_ONCE = 1024  # rows


class LazyEncoder:
    """The encoder given, or else the gallery's own copy, loaded and checked when it is first needed."""

    def __init__(self, gallery: GalleryReader, given: Encoder | str | os.PathLike[str] | None) -> None:
        self._gallery = gallery
        self._given = given
        self._loaded: Encoder | None = None
        if given is not None and not isinstance(given, (str, os.PathLike)):
            gallery.check_encoder(given)

    def __call__(self) -> Encoder:
        """The encoder."""
        mine = self._gallery.manifest.encoder.fingerprint  # a watch may outlive the gallery that it began with
        if self._loaded is not None and self._loaded.fingerprint == mine:
            return self._loaded
        from ...encoders import Encoder
        from ...encoders.inference import whole_encoder

        source = self._given if self._given is not None else self._gallery.encoder_path
        if source is None:
            raise InputError(f"{self._gallery.folder} keeps no encoder for new images; pass --encoder CHECKPOINT")
        encoder = Encoder.load(source) if isinstance(source, (str, os.PathLike)) else whole_encoder(source)
        self._gallery.check_encoder(encoder)
        self._loaded = encoder
        return encoder


def plan_sync(
    snapshot: Snapshot, folder: SyncFolder, settings: SyncSettings, *, progress: Progress | None
) -> SyncReport:
    """The report of a dry run. New files are decoded, to see which cannot be used, but not encoded."""
    plan = SyncPlan(snapshot, folder, settings, progress=progress)
    changes = [*_carried(plan.carries), *(_change(offer) for offer in plan.offers)]
    changes += [_change(offer, first) for offer, first in plan.twins]
    changes += [Change("removed", path) for _, path in plan.removed]
    report = _report(plan, changes, plan.skipped, images=0)
    counts = report.counts
    images = len(snapshot) + counts["added"] + counts["duplicated"] - counts["removed"]
    return dataclasses.replace(report, images=images, is_dry_run=True, refusal=_refusal(plan))


def sync_folder(
    writer: GalleryWriter,
    folder: SyncFolder,
    encoder: Callable[[], Encoder],
    *,
    settings: SyncSettings,
    progress: Progress | None = None,
) -> SyncReport:
    """Make a locked gallery hold what a folder holds; `progress` counts files looked at, and then files encoded."""
    before = Snapshot(writer.folder, writer.manifest, verify=False)
    old_skipped = skipped_before(writer)
    doubtful = {item.path for item in old_skipped}
    plan = SyncPlan(before, folder, settings, doubtful=doubtful, progress=progress)
    if (refusal := _refusal(plan)) is not None:
        raise InputError(refusal)
    skipped = list(plan.skipped)
    if settings.strict and skipped:
        raise ImageError(skipped[0].path, skipped[0].reason)
    _carry(writer, before, plan.carries)
    changes = _carried(plan.carries)
    if plan.offers:
        from ..building.build import InferenceOptions, encoding_stream

        inference = InferenceOptions(settings.batch_size, settings.workers, settings.device)
        stream = encoding_stream(writer, encoder(), inference)
        report = ingest_offers(writer, plan.offers, stream, strict=settings.strict, progress=progress)
        refused = {item.path for item in report.skipped}
        skipped += report.skipped
        changes += [_change(offer) for offer in plan.offers if offer.path not in refused]
    after = Snapshot(writer.folder, writer.manifest, verify=False)
    twins, lonely = _resolve_twins(after, plan, skipped)
    _carry(writer, after, twins)
    changes += [_change(carry.offer, carry.origin) for carry in twins]
    skipped += lonely
    if plan.removed:
        writer.remove(id_ for id_, _ in plan.removed)
        writer.commit()
        changes += [Change("removed", path) for _, path in plan.removed]
    with after_commit(writer.folder, "the list of images that could not be used"):
        elsewhere = [item for item in old_skipped if not folder.holds(item.path)]
        writer.commit(**new_skip_list(writer, old_skipped, (*elsewhere, *skipped)))
    writer.merge_small()
    return _report(plan, changes, skipped, images=len(Snapshot(writer.folder, writer.manifest, verify=False)))


def _refusal(plan: SyncPlan) -> str | None:
    leaving, settings = len(plan.removed), plan.settings
    if settings.force or leaving <= settings.max_vanishing * plan.inside:
        return None
    return (
        f"{leaving} of {counted(plan.inside, 'image')} under {plan.folder.folder} are gone, more than "
        f"{settings.max_vanishing:.0%}; nothing was changed. Is the disk mounted? If they are meant to leave, "
        "use --force; if they are to stay, --keep-missing"
    )


def _carry(writer: GalleryWriter, snapshot: Snapshot, carries: Sequence[Carry]) -> None:
    """Write rows again under another path or label, each in one commit with the departure of the old one."""
    rows_at = snapshot.stored_rows(np.array([carry.place for carry in carries], np.int64))
    placed = [(segment, row, carry.offer) for (segment, row), carry in zip(rows_at, carries, strict=True)]
    placed.sort(key=lambda each: each[0].file.path)
    for segment, group in groupby(placed, key=lambda each: each[0]):
        these = list(group)
        row_bytes = max(1, segment.file.bytes // max(1, len(segment)))
        step = max(1, min(_CARRIED_AT_ONCE, BLOCK_BYTES // row_bytes))
        for start in range(0, len(these), step):
            _, rows, offers = zip(*these[start : start + step], strict=True)
            replaced = [offer.replaces for offer in offers if offer.replaces is not None]
            writer.append(entries_of(offers), segment.vectors(np.array(rows)), replaces=replaced)
    writer.commit()


def _resolve_twins(snapshot: Snapshot, plan: SyncPlan, skipped: Sequence[Skipped]) -> tuple[list[Carry], list[Skipped]]:
    """Files with the same contents as one that has just been encoded; or not, and then they share its fate."""
    places = snapshot.places_by_path(first for _, first in plan.twins)
    reasons = {item.path: item.reason for item in skipped}
    carries, lonely = [], []
    for offer, first in plan.twins:
        place = places.get(first)
        if place is not None and snapshot.file_state(place)[0] == offer.sha256:
            carries.append(Carry(_change(offer, first).kind, place, offer, first))
        else:
            lonely.append(Skipped(offer.path, reasons.get(first, "changed while it was read; sync again")))
    return carries, lonely


def _carried(carries: Iterable[Carry]) -> list[Change]:
    return [
        Change(carry.kind, carry.offer.path, None if carry.kind == "relabelled" else carry.origin) for carry in carries
    ]


def _change(offer: Offer, origin: str | None = None) -> Change:
    new: SyncKind = "added" if origin is None else "duplicated"
    return Change(new if offer.replaces is None else "changed", offer.path, origin)


def _report(plan: SyncPlan, changes: Iterable[Change], skipped: Iterable[Skipped], *, images: int) -> SyncReport:
    return SyncReport(
        tuple(changes), plan.unchanged, images, missing=tuple(plan.missing), skipped=tuple(skipped), busy=plan.busy
    )


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
    """Waits until something changes under a folder, time is up, or the watch is over."""

    def __init__(self, folder: Path, gallery: Path, *, every: float | None, stop: Event) -> None:
        self._folder = folder
        self._own = (str(gallery.absolute()), str(gallery.resolve()))  # what a sync writes is no reason for another
        self._stop = stop
        self._every = every
        self._events: Iterator[Any] | None = None
        if every is None and find_spec("watchfiles") is None:
            self._every = 10.0

    def begin(self) -> None:
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
