"""A gallery follows a folder: what is new is encoded, what moved is carried over, what is gone leaves.

The plan is made under the writer's lock, and every step of carrying it out is a commit: whatever interrupts it, the
same sync goes on from there. Removals come last. Without a new image nothing imports torch.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import GalleryError, ImageError, InputError
from ..images.listing import ImageRecord, Listing
from .ingest import Encoded, Offer, Progress, ingest, read_offer
from .reports import Skipped, counted, read_skipped
from .rows import Entries
from .snapshot import BLOCK_BYTES, Snapshot
from .sync_plan import Carry, Place, Plan, SyncKind, make_plan, rows_of
from .writer import GalleryWriter

if TYPE_CHECKING:  # a sync that finds nothing new does without torch
    from ..encoders import Encoder
    from .build import InferenceSettings
    from .gallery import Gallery

__all__ = ["Change", "LazyEncoder", "SyncReport", "SyncSettings", "inference_settings", "plan_sync", "sync_folder"]

_CARRIED_AT_ONCE = 1024  # rows


@dataclass(frozen=True)
class SyncSettings:
    """What a sync may do.

    Attributes:
        labels: `"folder"`, `"none"`, or a CSV for all images; None: see `make_plan`.
        checksum: read every file instead of trusting size and time of change.
        keep_missing: images whose files are gone stay.
        max_vanishing: the share of the folder's images that may leave in one sync, 0 … 1.
        force: let any number leave.
        settle: seconds that a file must have been left alone before it is read.
        strict: stop at the first file that cannot be used.
    """

    labels: str | os.PathLike[str] | None = None
    checksum: bool = False
    keep_missing: bool = False
    max_vanishing: float = 0.5
    force: bool = False
    settle: float = 0.0
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_vanishing <= 1:
            raise InputError(f"expected a share from 0 to 1 that may vanish, got {self.max_vanishing}")


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one image; `origin` is the path that its vectors come from when nothing was encoded."""

    kind: SyncKind
    path: str
    origin: str | None = None


@dataclass(frozen=True)
class SyncReport:
    """What a sync did, or would do.

    Attributes:
        changes: image by image.
        unchanged: images that were as the gallery had them.
        missing: paths whose files are gone and which stay in the gallery.
        skipped: files that cannot be used; what the gallery had under their paths is kept.
        busy: files left for later because they are being written.
        images: images in the gallery afterwards.
        is_dry_run: nothing was done.
        refusal: why it would be refused; None if it would not.
    """

    changes: tuple[Change, ...]
    unchanged: int
    images: int
    missing: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    busy: int = 0
    is_dry_run: bool = False
    refusal: str | None = None

    @property
    def counts(self) -> Counter[SyncKind]:
        """How many images were added, changed, and so on."""
        return Counter(change.kind for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        counts = self.counts
        return {"counts": {kind: counts[kind] for kind in _KINDS}, **asdict(self)}

    def __str__(self) -> str:
        counts = self.counts
        parts = [f"{counts[kind]} {kind}" for kind in _KINDS if counts[kind]]
        parts += [f"{self.unchanged} unchanged"]
        parts += [f"{len(self.missing)} missing but kept"] if self.missing else []
        parts += [f"{self.busy} still being written"] if self.busy else []
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        would = "would be: " if self.is_dry_run else ""
        return f"{would}{', '.join(parts)}; {counted(self.images, 'image')}"


_KINDS: tuple[SyncKind, ...] = ("added", "changed", "moved", "duplicated", "relabelled", "removed")


class LazyEncoder:
    """A gallery's encoder, loaded and checked when it is first needed.

    Args:
        gallery: whose images it encodes.
        given: an encoder, or a checkpoint; None means the gallery's own copy.

    Raises:
        FingerprintMismatchError: another encoder built the gallery.
    """

    def __init__(self, gallery: Gallery, given: Encoder | str | os.PathLike[str] | None) -> None:
        self._gallery = gallery
        self._given = given
        self._loaded: Encoder | None = None
        if given is not None and not isinstance(given, (str, os.PathLike)):
            gallery.check_encoder(given)

    def __call__(self) -> Encoder:
        """The encoder.

        Raises:
            InputError: the gallery keeps none, and none was given.
        """
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Encoder:
        from ..encoders import Encoder

        source = self._given if self._given is not None else self._gallery.encoder_path
        if source is None:
            raise InputError(
                f"{self._gallery.folder} keeps no encoder, and there are new images; pass --encoder CHECKPOINT"
            )
        encoder = source if isinstance(source, Encoder) else Encoder.load(source)
        self._gallery.check_encoder(encoder)
        return encoder


def inference_settings(batch_size: int | None, workers: int | None, device: str) -> Callable[[], InferenceSettings]:
    """How to run the encoder, made when there is something to encode: its module imports torch."""

    def settings() -> InferenceSettings:
        from .build import InferenceSettings

        return InferenceSettings(batch_size, workers, device)

    return settings


def plan_sync(snapshot: Snapshot, place: Place, settings: SyncSettings, *, progress: Progress | None) -> SyncReport:
    """What a sync would do. New files are decoded, to see which cannot be used, but not encoded."""
    plan = _plan(snapshot, place, settings, doubtful=None, progress=progress)
    changes = [*_carried(plan.carries), *(_change(offer) for offer in plan.offers)]
    changes += [*(_twin(offer, first) for offer, first in plan.twins), *_removed(plan)]
    report = _report(plan, changes, plan.skipped, images=0)
    counts = report.counts
    images = len(snapshot) + counts["added"] + counts["duplicated"] - counts["removed"]
    return dataclasses.replace(report, images=images, is_dry_run=True, refusal=_refusal(plan, place, settings))


def sync_folder(
    writer: GalleryWriter,
    place: Place,
    encoder: Callable[[], Encoder],
    *,
    settings: SyncSettings,
    inference: Callable[[], InferenceSettings],
    progress: Progress | None = None,
) -> SyncReport:
    """Make a gallery hold what a folder holds, as far as the folder's images are concerned.

    Args:
        writer: the gallery, locked.
        place: the folder.
        encoder: called when there is something to encode.
        settings: what may be done.
        inference: how to run the encoder.
        progress: called with files looked at, and then with files encoded.

    Raises:
        InputError: there is no such folder, or more images would leave than may.
        ImageError: with `strict`, the first file that cannot be used; what was encoded before is kept.
    """
    before = Snapshot(writer.folder, writer.manifest, verify=False)
    old_skipped = _old_skipped(writer)
    plan = _plan(before, place, settings, doubtful={item.path for item in old_skipped}, progress=progress)
    if (refusal := _refusal(plan, place, settings)) is not None:
        raise InputError(refusal)
    skipped = list(plan.skipped)
    if settings.strict and skipped:
        raise ImageError(skipped[0].path, skipped[0].reason)
    _carry(writer, plan.carries)
    changes = _carried(plan.carries)
    if plan.offers:
        stream = _stream(writer, plan.offers, encoder, inference)
        report = ingest(
            writer, _Prepared(place.folder, len(plan.offers)), stream, strict=settings.strict, progress=progress
        )
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
        changes += _removed(plan)
    _note_skipped(writer, old_skipped, skipped, place)
    writer.tidy()
    return _report(plan, changes, skipped, images=len(Snapshot(writer.folder, writer.manifest, verify=False)))


def _plan(
    snapshot: Snapshot, place: Place, settings: SyncSettings, *, doubtful: set[str] | None, progress: Progress | None
) -> Plan:
    if snapshot.manifest.masks is not None:
        raise InputError(
            f"{snapshot.folder} pools its images under masks, which a sync does not follow; "
            "use `distcam index add` and `distcam index remove`"
        )
    return make_plan(
        snapshot,
        place,
        labels=settings.labels,
        checksum=settings.checksum,
        keep_missing=settings.keep_missing,
        settle=settings.settle,
        doubtful=doubtful,
        progress=progress,
    )


def _refusal(plan: Plan, place: Place, settings: SyncSettings) -> str | None:
    leaving = len(plan.removed)
    if settings.force or leaving <= settings.max_vanishing * plan.inside:
        return None
    return (
        f"{leaving} of {counted(plan.inside, 'image')} under {place.folder} are gone, more than "
        f"{settings.max_vanishing:.0%}; nothing was changed. Is the disk mounted? If they are meant to leave, "
        "use --force; if they are to stay, --keep-missing"
    )


# --- Rows that need no encoding ---------------------------------------------------------------------------------------


def _carry(writer: GalleryWriter, carries: Iterable[Carry]) -> None:
    """Write rows again under another path or label, each in one commit with the departure of the old one."""
    by_segment = sorted(carries, key=lambda carry: carry.source.segment.file.path)
    for _, group in groupby(by_segment, key=lambda carry: carry.source.segment):
        for block in _blocks(list(group)):
            segment, rows = block[0].source.segment, np.array([carry.source.row for carry in block])
            offers = [carry.offer for carry in block]
            replaced = [offer.replaces for offer in offers if offer.replaces is not None]
            writer.append(_entries(offers), segment.vectors(rows), replaces=replaced)
    writer.commit()


def _blocks(carries: Sequence[Carry]) -> Iterator[Sequence[Carry]]:
    segment = carries[0].source.segment
    row_bytes = max(1, segment.file.bytes // max(1, len(segment)))
    step = max(1, min(_CARRIED_AT_ONCE, BLOCK_BYTES // row_bytes))
    yield from (carries[start : start + step] for start in range(0, len(carries), step))


def _entries(offers: Sequence[Offer]) -> Entries:
    names = dict.fromkeys(name for offer in offers for name in offer.columns)
    return Entries(
        ids=np.zeros(len(offers), np.uint64),  # given out by the commit
        paths=[offer.path for offer in offers],
        sha256=np.frombuffer(b"".join(offer.sha256 for offer in offers), np.uint8).reshape(-1, 32),
        size=np.array([offer.size for offer in offers], np.uint64),
        mtime_ns=np.array([offer.mtime_ns for offer in offers], np.int64),
        columns={
            "label": [offer.label for offer in offers],
            **{name: [offer.columns.get(name) for offer in offers] for name in names},
        },
    )


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


# --- Files that must be encoded ---------------------------------------------------------------------------------------


class _Prepared(Listing):
    """Stands for files whose offers the plan has made: only their number is asked for."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.column_names = ()
        self._count = count

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(())

    def __len__(self) -> int:
        return self._count

    @property
    def problems(self) -> tuple[str, ...]:
        """None: the plan has them."""
        return ()


def _stream(
    writer: GalleryWriter,
    prepared: Sequence[Offer],
    load_encoder: Callable[[], Encoder],
    settings: Callable[[], InferenceSettings],
) -> Callable[[Iterable[Offer]], Generator[Encoded, None, None]]:
    """Encodes the plan's own offers."""

    def stream(_offers: Iterable[Offer]) -> Generator[Encoded, None, None]:
        from ..encoders import Inference
        from ..images.loading import read_image
        from .build import to_vectors

        asked = settings()
        precision = writer.manifest.encoder.precision or asked.precision  # one gallery, one arithmetic
        inference = Inference(load_encoder(), device=asked.device, precision=precision, batch_size=asked.batch_size)
        batches = inference.stream(
            prepared, load=lambda offer: inference.transform(read_image(read_offer(offer))), workers=asked.workers
        )
        for batch in batches:
            vectors = None if batch.encoding is None else to_vectors(batch.encoding, writer.manifest.spec)
            yield Encoded(batch.items, vectors, [(failure.item, failure.error) for failure in batch.failures])

    return stream


# --- Reports ----------------------------------------------------------------------------------------------------------


def _carried(carries: Iterable[Carry]) -> list[Change]:
    return [
        Change(carry.kind, carry.offer.path, None if carry.kind == "relabelled" else carry.origin) for carry in carries
    ]


def _change(offer: Offer) -> Change:
    return Change("added" if offer.replaces is None else "changed", offer.path)


def _twin(offer: Offer, first: str) -> Change:
    return Change("duplicated" if offer.replaces is None else "changed", offer.path, first)


def _removed(plan: Plan) -> list[Change]:
    return [Change("removed", path) for _, path in plan.removed]


def _report(plan: Plan, changes: Iterable[Change], skipped: Iterable[Skipped], *, images: int) -> SyncReport:
    return SyncReport(
        tuple(changes), plan.unchanged, images, missing=tuple(plan.missing), skipped=tuple(skipped), busy=plan.busy
    )


def _old_skipped(writer: GalleryWriter) -> tuple[Skipped, ...]:
    entry = writer.manifest.skipped
    with suppress(GalleryError):  # nothing hangs on the old list
        return () if entry is None else read_skipped(writer.folder / entry.name)
    return ()


def _note_skipped(writer: GalleryWriter, before: tuple[Skipped, ...], now: Iterable[Skipped], place: Place) -> None:
    """Renew the gallery's list: what it says of other folders stays."""
    merged = {item.path: item for item in before if not place.holds(item.path)}
    merged |= {item.path: item for item in now}
    if {item.path: item for item in before} != merged:
        lines = [item.to_json() for item in merged.values()]
        writer.commit(skipped=writer.write_skipped(lines) if lines else None)
