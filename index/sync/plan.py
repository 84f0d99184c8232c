"""Plan of a folder sync, and its report: new, changed, moved, doubled and missing files. Nothing encodes or writes.

Contents decide, by SHA-256; size and time of change only spare reading. Files that cannot be looked at are not gone.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ...errors import ImageError, InputError
from ...images.image_sources import ImageRecord
from ...images.listing import Listing
from ...images.loading import read_image
from ...progress import Progress
from ...remarks import Skipped, counted
from ..building.ingest import Offer
from ..storage.segments import Segment
from ..storage.snapshot import Snapshot
from .folder import SyncFolder, digest, list_folder, reason_of, status_of

SyncKind = Literal["added", "changed", "moved", "duplicated", "relabelled", "removed"]


@dataclass(frozen=True)
class SyncSettings:
    """Options of a sync, as `Gallery.sync` explains them; a label that came from a folder moves with its file."""

    labels: str | os.PathLike[str] | None = None
    checksum: bool = False
    keep_missing: bool = False
    max_vanishing: float = 0.5
    force: bool = False
    settle: float = 0.0
    strict: bool = False
    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.max_vanishing <= 1:
            raise InputError(f"expected a share from 0 to 1 that may vanish, got {self.max_vanishing}")


@dataclass(frozen=True, slots=True)
class Change:
    """One image's change; `origin` is the path that its vectors come from when nothing was encoded."""

    kind: SyncKind
    path: str
    origin: str | None = None


@dataclass(frozen=True)
class SyncReport:
    """The changes that a sync made, or would make.

    Attributes:
        changes: image by image.
        unchanged: images that were as the gallery had them.
        missing: paths whose files are gone and which stay in the gallery.
        skipped: files that cannot be used; the images that the gallery had under their paths stay.
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
        """Number of images added, changed, and so on."""
        return Counter(change.kind for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        counts = self.counts
        return {"counts": {kind: counts[kind] for kind in get_args(SyncKind)}, **asdict(self)}

    def __str__(self) -> str:
        counts = self.counts
        parts = [f"{counts[kind]} {kind}" for kind in get_args(SyncKind) if counts[kind]]
        parts += [f"{self.unchanged} unchanged"]
        parts += [f"{len(self.missing)} missing but kept"] if self.missing else []
        parts += [f"{self.busy} still being written"] if self.busy else []
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        would = "would be: " if self.is_dry_run else ""
        return f"{would}{', '.join(parts)}; {counted(self.images, 'image')}"


class Row(NamedTuple):
    """An image's row in its segment."""

    segment: Segment
    row: int

    @property
    def id(self) -> int:
        """Its id."""
        return int(self.segment.stored_ids[self.row])

    @property
    def sha256(self) -> bytes:
        """The checksum of the file it was read from."""
        return bytes(self.segment.sha256[self.row])

    @property
    def state(self) -> tuple[int, int]:
        """Size in bytes and time of change in ns of that file."""
        return int(self.segment.size[self.row]), int(self.segment.mtime_ns[self.row])

    @property
    def columns(self) -> dict[str, str]:
        """Label and columns, as far as it has values."""
        named = ((name, column[self.row]) for name, column in self.segment.columns.items())
        return {name: value for name, value in named if value is not None}


class Carry(NamedTuple):
    """A new row with the vectors of a row that the gallery has under the path `origin`."""

    kind: SyncKind
    source: Row
    offer: Offer
    origin: str


@dataclass
class SyncPlan:
    """The work of a sync.

    Attributes:
        carries: rows that need no encoding.
        offers: files that must be encoded.
        twins: files with the contents of one of `offers`, given by its path; they follow when it is encoded.
        removed: ids and paths of images whose files are gone; those of `missing` stay all the same.
        inside: images of the gallery under the folder, before.
    """

    carries: list[Carry] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    twins: list[tuple[Offer, str]] = field(default_factory=list)
    removed: list[tuple[int, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unchanged: int = 0
    busy: int = 0
    inside: int = 0


def rows_of(snapshot: Snapshot) -> dict[str, Row]:
    """Every image's row by its path."""
    return {
        path: Row(segment, row)
        for segment, rows in snapshot.live_parts()
        for path, row in zip(segment.paths.take(rows), rows.tolist(), strict=True)
    }


def make_plan(
    snapshot: Snapshot,
    folder: SyncFolder,
    settings: SyncSettings,
    *,
    doubtful: Collection[str] | None = None,
    progress: Progress | None = None,
) -> SyncPlan:
    """Compare a folder with the gallery; files whose paths are `doubtful` (None: all new ones) are decoded now."""
    if snapshot.manifest.masks is not None:
        raise InputError(
            f"{snapshot.folder} pools its images under masks, which a sync does not follow; "
            "use `distcam index add` and `distcam index remove`"
        )
    comparison = _Comparison(snapshot, folder, settings)
    comparison.look(list_folder(folder.folder, settings.labels), progress)
    comparison.find_gone()
    comparison.resolve(doubtful)
    return comparison.plan


class _Comparison:
    """A folder against a gallery: every file is unchanged, or wanted; every image without a file is gone."""

    def __init__(self, snapshot: Snapshot, folder: SyncFolder, settings: SyncSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.known = rows_of(snapshot)
        self.plan = SyncPlan()
        self._keeps_labels = settings.labels is None
        self._has_labels = self._keeps_labels and bool((snapshot.column("label").codes >= 0).any())
        self._inside = {path for path in self.known if folder.holds(path)}
        self._seen: set[str] = set()
        self._wanted: list[Offer] = []
        self._gone: dict[bytes, list[str]] = defaultdict(list)
        self.plan.inside = len(self._inside)

    def look(self, listing: Listing | None, progress: Progress | None) -> None:
        """Sort the files into unchanged ones and wanted ones."""
        for problem in () if listing is None else listing.problems:
            path, _, reason = problem.partition(": ")
            self.plan.skipped.append(Skipped(self.folder.stored(path), reason))
        for number, record in enumerate(listing or (), 1):
            path = self.folder.stored(record.path)
            if path in self._seen:  # one file under two names
                continue
            self._seen.add(path)
            try:
                self._compare(path, record)
            except ImageError as error:
                self.plan.skipped.append(Skipped(path, error.reason))
            if progress is not None:
                progress(number, max(number, len(self._inside)))

    def _compare(self, path: str, record: ImageRecord) -> None:
        status = status_of(f"{self.folder.folder}/{record.path}")
        row = self.known.get(path)
        is_as_before = row is not None and row.state == (status.st_size, status.st_mtime_ns)
        if is_as_before and self._keeps_labels and not self.settings.checksum:
            self.plan.unchanged += 1
            return
        if not is_as_before and abs(time.time() - status.st_mtime) < self.settings.settle:
            self.plan.busy += 1
            return
        offer = Offer(self.folder.folder / record.path, path, record.label)
        offer.size, offer.mtime_ns = status.st_size, status.st_mtime_ns
        is_trusted = row is not None and is_as_before and not self.settings.checksum
        offer.sha256 = row.sha256 if row is not None and is_trusted else digest(offer.file)
        if row is None:
            if self._keeps_labels:
                offer.label = self.folder.label_of(path) if self._has_labels or not self.known else None
                offer.columns = self.folder.columns_of(path)
            self._wanted.append(offer)
            return
        offer.columns, offer.replaces = row.columns, row.id
        label = offer.columns.pop("label", None)
        offer.label = label if self._keeps_labels or offer.label is None else offer.label
        if offer.sha256 != row.sha256:
            self._wanted.append(offer)
        elif offer.label != label:
            self.plan.carries.append(Carry("relabelled", row, offer, offer.path))
        else:
            self.plan.unchanged += 1

    def find_gone(self) -> None:
        """Images whose files are really not there any more; what cannot be looked at stays as it is."""
        for path in sorted(self._inside - self._seen):
            file = self.folder.root / path
            try:
                file.stat()
                self.plan.unchanged += 1  # there, but nothing that a walk lists: a hidden file, another suffix
            except (FileNotFoundError, NotADirectoryError):
                if not file.is_symlink():
                    self._gone[self.known[path].sha256].append(path)
            except OSError as error:
                self.plan.skipped.append(Skipped(path, reason_of(error)))

    def resolve(self, doubtful: Collection[str] | None) -> None:
        """Find for every wanted file where its vectors come from; decide what becomes of the images that are gone."""
        wanted = {offer.sha256 for offer in self._wanted}
        sources = {row.sha256: path for path, row in self.known.items() if row.sha256 in wanted} if wanted else {}
        first: dict[bytes, str] = {}
        for offer in self._wanted:
            if self._is_moved(offer):
                continue
            if (origin := sources.get(offer.sha256)) is not None:
                kind: SyncKind = "duplicated" if offer.replaces is None else "changed"
                self.plan.carries.append(Carry(kind, self.known[origin], offer, origin))
            elif offer.sha256 in first:
                self.plan.twins.append((offer, first[offer.sha256]))
            else:
                try:
                    if doubtful is None or offer.path in doubtful:
                        read_image(offer.file)
                    first[offer.sha256] = offer.path
                    self.plan.offers.append(offer)
                except ImageError as error:
                    self.plan.skipped.append(Skipped(offer.path, error.reason))
        gone = sorted(path for paths in self._gone.values() for path in paths)
        if self.settings.keep_missing:
            self.plan.missing = gone
        else:
            self.plan.removed = [(self.known[path].id, path) for path in gone]

    def _is_moved(self, offer: Offer) -> bool:
        """Carry over an image that is gone and had the same contents, if possible under the same name; False: none."""
        paths = self._gone.get(offer.sha256)
        if offer.replaces is not None or not paths:
            return False
        name = Path(offer.path).name
        old = next((path for path in paths if Path(path).name == name), paths[0])
        paths.remove(old)
        row = self.known[old]
        columns = row.columns
        label = columns.pop("label", None)
        if self._keeps_labels:
            came_from_folder = label is not None and label == self.folder.label_of(old)
            offer.label = self.folder.label_of(offer.path) if came_from_folder else label
            columns |= self.folder.columns_of(offer.path)
        elif offer.label is None:
            offer.label = label
        offer.columns, offer.replaces = columns, row.id
        self.plan.carries.append(Carry("moved", row, offer, old))
        return True
