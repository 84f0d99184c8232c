"""What a folder sync has to do: which files are new, changed, moved, doubled or gone. Nothing here encodes or writes.

Contents decide, by SHA-256; size and time of change only spare reading what has not changed. What cannot be looked at
now is never taken for gone.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from ...errors import ImageError, InputError
from ...images.listing import ImageRecord, Listing, list_images
from ...images.loading import IMAGE_SUFFIXES, read_image
from ...images.splits import SPLIT_COLUMN, SplitFolders, find_split_folders
from ..building.ingest import MAX_FILE_BYTES, Offer, Progress
from ..reports import Skipped
from ..storage.segments import Segment, stored_path
from ..storage.snapshot import Snapshot

__all__ = ["Carry", "Place", "Plan", "Row", "SyncKind", "make_plan", "rows_of"]

SyncKind = Literal["added", "changed", "moved", "duplicated", "relabelled", "removed"]


class Row(NamedTuple):
    """Where an image lies in the gallery."""

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
    """A new row whose vectors are those of a row that the gallery has.

    Attributes:
        kind: what it is in the report.
        source: the row with the vectors.
        offer: path, label, columns and state of the new row; `replaces` leaves in the same commit.
        origin: the path of `source`.
    """

    kind: SyncKind
    source: Row
    offer: Offer
    origin: str


@dataclass
class Plan:
    """What has to be done.

    Attributes:
        carries: rows that need no encoding.
        offers: files that must be encoded.
        twins: files with the contents of one of `offers`, given by its path; they follow when it is encoded.
        removed: ids and paths of images whose files are gone.
        missing: paths of images that are gone and stay all the same.
        skipped: files that cannot be used.
        unchanged: images that are as the gallery has them.
        busy: files that changed so lately that somebody may still be writing them.
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


class Place:
    """The synced folder as the gallery sees it: which stored paths lie under it, and what their folders are called."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 (no resolve(): names of links stay)
        self.root = root
        self._prefixes = tuple({f"{path.as_posix().rstrip('/')}/" for path in (self.folder, self.folder.resolve())})
        self._roots = tuple({f"{path.as_posix().rstrip('/')}/" for path in (root, root.resolve())})
        self._stored_prefix = None  # of the folder's files, where no link can lead to another name for them
        if self.folder.is_relative_to(root):
            self._stored_prefix = "" if self.folder == root else f"{self.folder.relative_to(root).as_posix()}/"

    def stored(self, path: str) -> str:
        """The path under which the gallery knows a file of the folder, given relative to the folder."""
        if self._stored_prefix is not None:  # for millions of files: without an object for each
            return self._stored_prefix + path
        return stored_path(self.folder / path, self.root)

    def holds(self, path: str) -> bool:
        """Whether a stored path lies under the folder."""
        return self._within(path) is not None

    def _within(self, path: str) -> str | None:
        if "://" in path:  # an address, which no folder holds
            return None
        candidates = [path] if _is_absolute(path) else [root + path for root in self._roots]
        for candidate in candidates:
            for prefix in self._prefixes:
                if candidate.startswith(prefix):
                    return candidate[len(prefix) :]
        return None

    def label_of(self, path: str) -> str | None:
        """The class that the folders say: under the gallery's root, or under the synced one for files outside of it.

        It is the first folder, or that below the folder of a split. So syncing a part of the images gives them the
        labels that syncing all of them would.
        """
        relative = self._relative(path)
        splits = self._outer_splits if _is_absolute(path) else self._splits
        if splits is not None and splits.names:
            return splits.label_of(relative)
        folder, slash, _ = relative.partition("/")
        return folder if slash else None

    def columns_of(self, path: str) -> dict[str, str]:
        """What else the folders say: the split, where they are those of splits."""
        splits = self._outer_splits if _is_absolute(path) else self._splits
        if splits is None or not splits.names:
            return {}
        return {SPLIT_COLUMN: splits.split_of(self._relative(path)) or ""}

    def _relative(self, path: str) -> str:
        return (self._within(path) or path) if _is_absolute(path) else path

    @cached_property
    def _splits(self) -> SplitFolders | None:
        return find_split_folders(self.root)

    @cached_property
    def _outer_splits(self) -> SplitFolders | None:
        return find_split_folders(self.folder)


def rows_of(snapshot: Snapshot) -> dict[str, Row]:
    """Every image's row by its path."""
    return {
        path: Row(segment, row)
        for segment, rows in snapshot.live_parts()
        for path, row in zip(segment.paths.take(rows), rows.tolist(), strict=True)
    }


def make_plan(
    snapshot: Snapshot,
    place: Place,
    *,
    labels: str | os.PathLike[str] | None = None,
    checksum: bool = False,
    keep_missing: bool = False,
    settle: float = 0.0,
    doubtful: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Compare a folder with the gallery.

    Args:
        snapshot: the gallery.
        place: the folder.
        labels: `"folder"`, `"none"`, or a CSV: what it says holds for every image. None: images that are there keep
            their labels, new ones are called after their folders as the old ones are, and a label that came from the
            folder moves with the file.
        checksum: read every file, also those whose size and time are as before.
        keep_missing: images whose files are gone stay.
        settle: seconds that a file must have been left alone.
        doubtful: paths of files to decode now rather than to offer them for encoding; None decodes all new ones.
        progress: called with the number of files looked at and the number expected.

    Raises:
        InputError: there is no such folder, or `labels` cannot be used.
    """
    comparison = _Comparison(snapshot, place, listing := _listing(place.folder, labels), follows=labels is None)
    comparison.look(listing, checksum=checksum, settle=settle, progress=progress)
    comparison.find_gone()
    comparison.resolve(keep_missing=keep_missing, doubtful=doubtful)
    return comparison.plan


def _listing(folder: Path, labels: str | os.PathLike[str] | None) -> Listing | None:
    """The images of a folder; None when it is empty, as the place of a disk is that is not mounted."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; is its disk mounted?")
    try:
        return list_images(folder, labels=labels)
    except InputError:
        if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, _, names in os.walk(folder) for name in names):
            raise
        return None


class _Comparison:
    def __init__(self, snapshot: Snapshot, place: Place, listing: Listing | None, *, follows: bool) -> None:
        self.place = place
        self.known = rows_of(snapshot)
        self.plan = Plan()
        self.plan.skipped += _problems(listing, place)
        self._follows = follows
        self._has_labels = follows and bool((snapshot.column("label").codes >= 0).any())
        self._inside = {path for path in self.known if place.holds(path)}
        self._seen: set[str] = set()
        self._wanted: list[Offer] = []
        self._gone: dict[bytes, list[str]] = defaultdict(list)
        self.plan.inside = len(self._inside)

    def look(self, listing: Listing | None, *, checksum: bool, settle: float, progress: Progress | None) -> None:
        """Sort the files into unchanged ones and wanted ones."""
        for number, record in enumerate(listing or (), 1):
            path = self.place.stored(record.path)
            if path in self._seen:  # one file under two names
                continue
            self._seen.add(path)
            try:
                self._compare(path, record, checksum=checksum, settle=settle)
            except ImageError as error:
                self.plan.skipped.append(Skipped(path, error.reason))
            if progress is not None:
                progress(number, max(number, len(self._inside)))

    def _compare(self, path: str, record: ImageRecord, *, checksum: bool, settle: float) -> None:
        status = _status(f"{self.place.folder}/{record.path}")
        row = self.known.get(path)
        is_as_before = row is not None and row.state == (status.st_size, status.st_mtime_ns)
        if is_as_before and self._follows and not checksum:
            self.plan.unchanged += 1
            return
        if not is_as_before and abs(time.time() - status.st_mtime) < settle:
            self.plan.busy += 1
            return
        offer = Offer(self.place.folder / record.path, path, record.label)
        offer.size, offer.mtime_ns = status.st_size, status.st_mtime_ns
        offer.sha256 = row.sha256 if row is not None and is_as_before and not checksum else _digest(offer.file)
        if row is not None:
            self._compare_known(offer, row)
        else:
            self._label_new(offer)
            self._wanted.append(offer)

    def _compare_known(self, offer: Offer, row: Row) -> None:
        """A path that the gallery has: are contents and label as they were?"""
        held = row.columns
        label = held.pop("label", None)
        offer.label = label if self._follows or offer.label is None else offer.label
        offer.columns, offer.replaces = held, row.id
        if offer.sha256 != row.sha256:
            self._wanted.append(offer)
        elif offer.label != label:
            self.plan.carries.append(Carry("relabelled", row, offer, offer.path))
        else:
            self.plan.unchanged += 1

    def _label_new(self, offer: Offer) -> None:
        if self._follows:
            offer.label = self.place.label_of(offer.path) if self._has_labels or not self.known else None
            offer.columns = self.place.columns_of(offer.path)

    def find_gone(self) -> None:
        """Images whose files are really not there any more; what cannot be looked at stays as it is."""
        for path in sorted(self._inside - self._seen):
            file = self.place.root / path
            try:
                file.stat()
                self.plan.unchanged += 1  # there, but nothing that a walk lists: a hidden file, another suffix
            except (FileNotFoundError, NotADirectoryError):
                if not file.is_symlink():
                    self._gone[self.known[path].sha256].append(path)
            except OSError as error:
                self.plan.skipped.append(Skipped(path, _reason(error)))

    def resolve(self, *, keep_missing: bool, doubtful: Collection[str] | None) -> None:
        """Find for every wanted file where its vectors come from; decide what becomes of the images that are gone."""
        sources = self._sources({offer.sha256 for offer in self._wanted})
        first: dict[bytes, str] = {}
        for offer in self._wanted:
            if (old := self._moved_from(offer)) is not None:
                self._move(offer, old)
            elif (origin := sources.get(offer.sha256)) is not None:
                kind: SyncKind = "duplicated" if offer.replaces is None else "changed"
                self.plan.carries.append(Carry(kind, self.known[origin], offer, origin))
            elif offer.sha256 in first:
                self.plan.twins.append((offer, first[offer.sha256]))
            elif (reason := self._refusal(offer, doubtful)) is not None:
                self.plan.skipped.append(Skipped(offer.path, reason))
            else:
                first[offer.sha256] = offer.path
                self.plan.offers.append(offer)
        gone = sorted(path for paths in self._gone.values() for path in paths)
        if keep_missing:
            self.plan.missing = gone
        else:
            self.plan.removed = [(self.known[path].id, path) for path in gone]

    def _moved_from(self, offer: Offer) -> str | None:
        """An image that is gone and had the same contents, if possible under the same name in another folder."""
        paths = self._gone.get(offer.sha256)
        if offer.replaces is not None or not paths:
            return None
        name = Path(offer.path).name
        best = next((path for path in paths if Path(path).name == name), paths[0])
        paths.remove(best)
        return best

    def _move(self, offer: Offer, old: str) -> None:
        row = self.known[old]
        held = row.columns
        label = held.pop("label", None)
        if self._follows:
            came_from_folder = label is not None and label == self.place.label_of(old)
            offer.label = self.place.label_of(offer.path) if came_from_folder else label
            held |= self.place.columns_of(offer.path)
        elif offer.label is None:
            offer.label = label
        offer.columns, offer.replaces = held, row.id
        self.plan.carries.append(Carry("moved", row, offer, old))

    def _sources(self, wanted: set[bytes]) -> dict[bytes, str]:
        """A path of the gallery for each wanted checksum that it has."""
        if not wanted:
            return {}
        return {sha256: path for path, row in self.known.items() if (sha256 := row.sha256) in wanted}

    def _refusal(self, offer: Offer, doubtful: Collection[str] | None) -> str | None:
        if doubtful is not None and offer.path not in doubtful:
            return None
        try:
            read_image(offer.file)
        except ImageError as error:
            return error.reason
        return None


def _is_absolute(path: str) -> bool:
    return os.path.isabs(path)  # noqa: PTH117 (asked for every image of the gallery)


def _problems(listing: Listing | None, place: Place) -> Iterator[Skipped]:
    """What the walk over the folder left out, under the paths that the gallery uses."""
    for problem in () if listing is None else listing.problems:
        path, _, reason = problem.partition(": ")
        yield Skipped(place.stored(path), reason)


def _status(file: str) -> os.stat_result:
    try:
        status = os.stat(file)  # noqa: PTH116 (one call, no object)
    except OSError as error:
        raise ImageError(file, _reason(error)) from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ImageError(file, "not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise ImageError(file, f"{status.st_size >> 20} MiB, more than {MAX_FILE_BYTES >> 20}")
    return status


def _digest(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise ImageError(file, _reason(error)) from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
