"""A gallery follows a folder: what is new is encoded, what moved is carried over, what is gone leaves.

The plan is made under the writer's lock, and every step of carrying it out is a commit: whatever interrupts it, the
same sync goes on from there. Removals come last. Without a new image nothing imports torch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from ...errors import GalleryError, ImageError, InputError
from ...files import after_commit
from ...progress import Progress
from ...remarks import Skipped, counted
from ..building.ingest import Offer, Stream, entries_of, ingest_offers
from ..reports import read_skipped
from ..storage.segments import BLOCK_BYTES
from ..storage.snapshot import Snapshot
from ..storage.writer import GalleryWriter
from .folder import SyncFolder
from .plan import Carry, Plan, SyncSettings, make_plan, rows_of
from .report import Change, SyncReport

if TYPE_CHECKING:  # a sync that finds nothing new does without torch
    from ...encoders import Encoder
    from ..reader import GalleryReader

_CARRIED_AT_ONCE = 1024  # rows


class LazyEncoder:
    """A gallery's encoder, loaded and checked when it is first needed.

    Args:
        gallery: whose images it encodes.
        given: an encoder, or a checkpoint; None means the gallery's own copy.

    Raises:
        FingerprintMismatchError: another encoder built the gallery.
    """

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
            raise InputError(
                f"{self._gallery.folder} keeps no encoder, and there are new images; pass --encoder CHECKPOINT"
            )
        encoder = Encoder.load(source) if isinstance(source, (str, os.PathLike)) else whole_encoder(source)
        self._gallery.check_encoder(encoder)
        self._loaded = encoder
        return encoder


def plan_sync(
    snapshot: Snapshot, folder: SyncFolder, settings: SyncSettings, *, progress: Progress | None
) -> SyncReport:
    """The report of a dry run. New files are decoded, to see which cannot be used, but not encoded."""
    plan = make_plan(snapshot, folder, settings, progress=progress)
    changes = [*_carried(plan.carries), *(_change(offer) for offer in plan.offers)]
    changes += [_twin(offer, first) for offer, first in plan.twins]
    changes += [Change("removed", path) for _, path in plan.removed]
    report = _report(plan, changes, plan.skipped, images=0)
    counts = report.counts
    images = len(snapshot) + counts["added"] + counts["duplicated"] - counts["removed"]
    return dataclasses.replace(report, images=images, is_dry_run=True, refusal=_refusal(plan, folder, settings))


def sync_folder(
    writer: GalleryWriter,
    folder: SyncFolder,
    encoder: Callable[[], Encoder],
    *,
    settings: SyncSettings,
    progress: Progress | None = None,
) -> SyncReport:
    """Make a gallery hold what a folder holds, as far as the folder's images are concerned.

    Args:
        writer: the gallery, locked.
        folder: the folder.
        encoder: called when there is something to encode.
        settings: what may be done, and how to run the encoder.
        progress: called with files looked at, and then with files encoded.
    """
    before = Snapshot(writer.folder, writer.manifest, verify=False)
    old_skipped = _old_skipped(writer)
    doubtful = {item.path for item in old_skipped}
    plan = make_plan(before, folder, settings, doubtful=doubtful, progress=progress)
    if (refusal := _refusal(plan, folder, settings)) is not None:
        raise InputError(refusal)
    skipped = list(plan.skipped)
    if settings.strict and skipped:
        raise ImageError(skipped[0].path, skipped[0].reason)
    _carry(writer, plan.carries)
    changes = _carried(plan.carries)
    if plan.offers:
        stream = _stream(writer, encoder, settings)
        report = ingest_offers(writer, plan.offers, stream, strict=settings.strict, progress=progress)
        refused = {item.path for item in report.skipped}
        skipped += report.skipped
        changes += [_change(offer) for offer in plan.offers if offer.path not in refused]
    twins, lonely = _resolve_twins(writer, plan, skipped)
    _carry(writer, twins)
    changes += [_twin(carry.offer, carry.origin) for carry in twins]
    skipped += lonely
    if plan.removed:
        writer.remove(id_ for id_, _ in plan.removed)
        writer.commit()
        changes += [Change("removed", path) for _, path in plan.removed]
    with after_commit(writer.folder, "the list of images that could not be used"):
        _note_skipped(writer, old_skipped, skipped, folder)
    writer.merge_small()
    return _report(plan, changes, skipped, images=len(Snapshot(writer.folder, writer.manifest, verify=False)))


def _stream(writer: GalleryWriter, load_encoder: Callable[[], Encoder], settings: SyncSettings) -> Stream:
    from ..building.build import InferenceSettings, encoding_stream

    inference = InferenceSettings(settings.batch_size, settings.workers, settings.device)
    return encoding_stream(writer, load_encoder(), inference)


def _refusal(plan: Plan, folder: SyncFolder, settings: SyncSettings) -> str | None:
    leaving = len(plan.removed)
    if settings.force or leaving <= settings.max_vanishing * plan.inside:
        return None
    return (
        f"{leaving} of {counted(plan.inside, 'image')} under {folder.folder} are gone, more than "
        f"{settings.max_vanishing:.0%}; nothing was changed. Is the disk mounted? If they are meant to leave, "
        "use --force; if they are to stay, --keep-missing"
    )


def _carry(writer: GalleryWriter, carries: Iterable[Carry]) -> None:
    """Write rows again under another path or label, each in one commit with the departure of the old one."""
    by_segment = sorted(carries, key=lambda carry: carry.source.segment.file.path)
    for segment, group in groupby(by_segment, key=lambda carry: carry.source.segment):
        these = list(group)
        row_bytes = max(1, segment.file.bytes // max(1, len(segment)))
        step = max(1, min(_CARRIED_AT_ONCE, BLOCK_BYTES // row_bytes))
        for start in range(0, len(these), step):
            block = these[start : start + step]
            offers = [carry.offer for carry in block]
            replaced = [offer.replaces for offer in offers if offer.replaces is not None]
            rows = np.array([carry.source.row for carry in block])
            writer.append(entries_of(offers), segment.vectors(rows), replaces=replaced)
    writer.commit()


def _resolve_twins(writer: GalleryWriter, plan: Plan, skipped: Sequence[Skipped]) -> tuple[list[Carry], list[Skipped]]:
    """Files with the same contents as one that has just been encoded; or not, and then they share its fate."""
    if not plan.twins:
        return [], []
    rows = rows_of(Snapshot(writer.folder, writer.manifest, verify=False))
    reasons = {item.path: item.reason for item in skipped}
    carries, lonely = [], []
    for offer, first in plan.twins:
        row = rows.get(first)
        if row is not None and row.sha256 == offer.sha256:
            carries.append(Carry(_twin(offer, first).kind, row, offer, first))
        else:
            lonely.append(Skipped(offer.path, reasons.get(first, "changed while it was read; sync again")))
    return carries, lonely


def _carried(carries: Iterable[Carry]) -> list[Change]:
    return [
        Change(carry.kind, carry.offer.path, None if carry.kind == "relabelled" else carry.origin) for carry in carries
    ]


def _change(offer: Offer) -> Change:
    return Change("added" if offer.replaces is None else "changed", offer.path)


def _twin(offer: Offer, first: str) -> Change:
    return Change("duplicated" if offer.replaces is None else "changed", offer.path, first)


def _report(plan: Plan, changes: Iterable[Change], skipped: Iterable[Skipped], *, images: int) -> SyncReport:
    return SyncReport(
        tuple(changes), plan.unchanged, images, missing=tuple(plan.missing), skipped=tuple(skipped), busy=plan.busy
    )


def _old_skipped(writer: GalleryWriter) -> tuple[Skipped, ...]:
    entry = writer.manifest.skipped
    with suppress(GalleryError):  # nothing hangs on the old list
        return () if entry is None else read_skipped(writer.folder / entry.name)
    return ()


def _note_skipped(
    writer: GalleryWriter, before: tuple[Skipped, ...], now: Iterable[Skipped], folder: SyncFolder
) -> None:
    """Renew the gallery's list: what it says of other folders stays."""
    merged = {item.path: item for item in before if not folder.holds(item.path)}
    merged |= {item.path: item for item in now}
    if {item.path: item for item in before} != merged:
        lines = [item.to_json() for item in merged.values()]
        writer.commit(skipped=writer.write_skipped(lines) if lines else None)
