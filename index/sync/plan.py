"""Plan of a folder sync: new, changed, moved, doubled and missing files. Nothing encodes or writes.

Contents decide, by SHA-256; size and time of change only spare reading. Files that cannot be looked at are not gone.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ...errors import ImageError, InputError
from ...images.boxes.cutting import GivenBoxes, list_items
from ...images.geometry import Box
from ...images.image_sources import ImageRecord
from ...images.items import item_of, split_item
from ...images.listing import Listing
from ...images.loading import IMAGE_SUFFIXES, read_image
from ...images.splits import SPLIT_COLUMN, SplitFolders, find_split_folders
from ...progress import Progress
from ...remarks import Skipped
from ..building.ingest import Offer, reason_of, status_of, stored_names
from ..reports import SyncKind
from ..storage.snapshot import Snapshot


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
    boxes: GivenBoxes = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_vanishing <= 1:
            raise InputError(f"expected a share from 0 to 1 that may vanish, got {self.max_vanishing}")


class Carry(NamedTuple):
    """A new row with the vectors of the image at a place of the snapshot, whose path is `origin`."""

    kind: SyncKind
    place: int
    offer: Offer
    origin: str


def content_of(sha256: bytes, path: str) -> bytes:
    """The key of an image's vectors: its file's contents and its box."""
    box = split_item(path)[1]
    return sha256 if box is None else sha256 + item_of("", box).encode()


def digest_of(file: Path) -> bytes:
    """The SHA-256 of a file; ImageError if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise ImageError(file, reason_of(error)) from error


class SyncFolder:
    """The synced folder as the gallery sees it: stored paths under it, and the classes that their folders name."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 (no resolve(): names of links stay)
        self.root = root
        self._prefixes = tuple({f"{path.as_posix().rstrip('/')}/" for path in (self.folder, self.folder.resolve())})
        self._roots = tuple({f"{path.as_posix().rstrip('/')}/" for path in (root, root.resolve())})
        self._splits = cache(find_split_folders)
        # the path under which the gallery knows a file of the folder, given relative to the folder
        self.stored = stored_names(self.folder, root, are_walked=True)
        self._prefix = self.stored("x")[:-1]

    def holds(self, path: str) -> bool:
        """True for a stored path that lies under the folder."""
        is_under = path.startswith(self._prefix) and ":" not in path and path[0] not in "/\\"
        return is_under or self._within(path) is not None

    def _within(self, path: str) -> str | None:
        if "://" in path:  # an address, which no folder holds
            return None
        for candidate in [path] if os.path.isabs(path) else [root + path for root in self._roots]:  # noqa: PTH117
            for prefix in self._prefixes:
                if candidate.startswith(prefix):
                    return candidate[len(prefix) :]
        return None

    def label_of(self, path: str) -> str | None:
        """The class that the first folder names, or that below the folder of a split.

        It counts from the gallery's root, so that syncing a part of the images gives them the labels that syncing all
        of them would; from the synced folder for files outside of that root.
        """
        relative, splits = self._relative(path)
        if splits is not None and splits.names:
            return splits.label_of(relative)
        folder, slash, _ = relative.partition("/")
        return folder if slash else None

    def columns_of(self, path: str) -> dict[str, str]:
        """The split, where the folders are those of splits."""
        relative, splits = self._relative(path)
        if splits is None or not splits.names:
            return {}
        return {SPLIT_COLUMN: splits.split_of(relative) or ""}

    def _relative(self, path: str) -> tuple[str, SplitFolders | None]:
        if os.path.isabs(path):  # noqa: PTH117 (asked for every image of the gallery)
            return self._within(path) or path, self._splits(self.folder)
        return path, self._splits(self.root)


def list_folder(folder: Path, labels: str | os.PathLike[str] | None, boxes: GivenBoxes = None) -> Listing | None:
    """The images of a folder, or the boxes of them; None when it is empty, as where no disk is mounted."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; is its disk mounted?")
    try:
        return list_items(folder, labels=labels, boxes=boxes)
    except InputError:
        if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, _, names in os.walk(folder) for name in names):
            raise
        return None


class SyncPlan:
    """The work of a sync: every file is unchanged, or wanted; every image without a file is gone.

    Files whose paths are `doubtful` (None: all new ones) are decoded now.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        folder: SyncFolder,
        settings: SyncSettings,
        *,
        doubtful: Collection[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        if snapshot.manifest.masks is not None:
            raise InputError(
                f"{snapshot.folder} pools its images under masks, which a sync does not follow; "
                "use `distcam index add` and `distcam index remove`"
            )
        self.snapshot, self.folder, self.settings = snapshot, folder, settings
        self.known = snapshot.places_by_path()
        self._column_names = snapshot.column_names[1:]  # without "path"
        self.carries: list[Carry] = []  # rows that need no encoding
        self.offers: list[Offer] = []  # files that must be encoded
        self.twins: list[tuple[Offer, str]] = []  # files with the contents of an offer, by its path: they follow it
        self.removed: list[tuple[int, str]] = []  # ids and paths of images whose files are gone
        self.missing: list[str] = []  # such images that stay all the same
        self.skipped: list[Skipped] = []
        self.unchanged = self.busy = 0
        self._place = str(folder.folder)
        self._keeps_labels = settings.labels is None
        self._has_labels = self._keeps_labels and bool((snapshot.column("label").codes >= 0).any())
        boxes = snapshot.box_paths()
        self._has_only_boxes = 0 < len(self.known) == len(boxes)
        self._wanted: list[Offer] = []
        self._gone: dict[bytes, list[str]] = defaultdict(list)  # by content
        self._items: dict[str, list[str]] = defaultdict(list)  # boxes by their file
        self._boxes: dict[bytes, list[Box]] = defaultdict(list)  # by the file's checksum
        for path in boxes:
            file, box = split_item(path)
            assert box is not None
            self._items[file].append(path)
            self._boxes[self._sha256_of(path)].append(box)
        unseen = self.known.keys() - self._look(list_folder(folder.folder, settings.labels, settings.boxes), progress)
        elsewhere = {path for path in unseen if not folder.holds(path)}
        self.inside = len(self.known) - len(elsewhere)  # images of the gallery under the folder, before
        self._find_gone(unseen - elsewhere)
        self._resolve(doubtful)

    def _look(self, listing: Listing | None, progress: Progress | None) -> Collection[str]:
        """Sort the files into unchanged ones and wanted ones; the paths under which the gallery would know them."""
        records = [] if listing is None else listing.survey()
        for problem in () if listing is None else listing.problems:
            path, _, reason = problem.partition(": ")
            self.skipped.append(Skipped(self.folder.stored(path), reason))
        items: dict[str, ImageRecord] = {}
        for record in records:
            file = self.folder.stored(record.path)
            for path in [item_of(file, record.box)] if record.box is not None else self._items.get(file, [file]):
                items.setdefault(path, record)  # one file may have two names
        is_trusted = self._keeps_labels and not self.settings.checksum
        files = (f"{self._place}/{record.path}" for record in items.values())
        are_as_before = self.snapshot.are_as_before(files, map(self.known.get, items))
        for number, ((path, record), is_as_before) in enumerate(zip(items.items(), are_as_before, strict=True), 1):
            try:
                if is_as_before and is_trusted:
                    self.unchanged += 1
                else:
                    self._compare(path, record)
            except ImageError as error:
                self.skipped.append(Skipped(path, error.reason))
            if progress is not None:
                progress(number, len(items))
        return items.keys()

    def _sha256_of(self, path: str) -> bytes:
        """The checksum that the gallery has of an image's file."""
        return self.snapshot.file_state(self.known[path])[0]

    def _columns_of(self, place: int) -> dict[str, str]:
        """Label and columns of an image of the gallery, as far as it has values."""
        named = ((name, self.snapshot.value(name, place)) for name in self._column_names)
        return {name: value for name, value in named if value is not None}

    def _compare(self, path: str, record: ImageRecord) -> None:
        status = status_of(f"{self._place}/{record.path}")
        place = self.known.get(path)
        sha256, *state = (b"",) if place is None else self.snapshot.file_state(place)
        is_as_before = state == [status.st_size, status.st_mtime_ns]
        if not is_as_before and abs(time.time() - status.st_mtime) < self.settings.settle:
            self.busy += 1
            return
        offer = Offer(self.folder.folder / record.path, path, record.label, box=split_item(path)[1])
        offer.size, offer.mtime_ns = status.st_size, status.st_mtime_ns
        offer.sha256 = sha256 if is_as_before and not self.settings.checksum else digest_of(offer.file)
        if place is None:
            if self._keeps_labels:
                named = record.label if record.box is not None else self.folder.label_of(path)
                offer.label = named if self._has_labels or not self.known else None
            offer.columns = {**record.columns, **(self.folder.columns_of(path) if self._keeps_labels else {})}
            self._wanted += self._of_boxes(offer)
            return
        columns = self._columns_of(place)
        label = columns.pop("label", None)
        offer.columns, offer.replaces = columns, int(self.snapshot.ids[place])
        offer.label = label if self._keeps_labels or offer.label is None else offer.label
        if offer.sha256 != sha256:
            self._wanted.append(offer)
        elif offer.label != label:
            self.carries.append(Carry("relabelled", place, offer, offer.path))
        else:
            self.unchanged += 1

    def _of_boxes(self, offer: Offer) -> list[Offer]:
        """A new file's offer, or where the gallery is of boxes one for each box that is known of its contents."""
        if offer.box is not None or len(self._items) == 0:
            return [offer]
        boxes = self._boxes.get(offer.sha256, [])
        if not boxes and self._has_only_boxes:
            raise ImageError(offer.file, "the gallery is of boxes, and none is known of it; sync with --boxes FILE")
        return [replace(offer, path=item_of(offer.path, box), box=box) for box in boxes] or [offer]

    def _find_gone(self, unseen: Iterable[str]) -> None:
        """Images whose files are really not there any more; what cannot be looked at stays as it is."""
        for path in sorted(unseen):
            name, box = split_item(path)
            file = self.folder.root / name
            content = content_of(self._sha256_of(path), path)
            try:
                file.stat()
                if box is not None and self.settings.boxes is not None:  # that file does not say it any more
                    self._gone[content].append(path)
                else:
                    self.unchanged += 1  # there, but nothing that a walk lists: a hidden file, another suffix
            except (FileNotFoundError, NotADirectoryError):
                if not file.is_symlink():
                    self._gone[content].append(path)
            except OSError as error:
                self.skipped.append(Skipped(path, reason_of(error)))

    def _resolve(self, doubtful: Collection[str] | None) -> None:
        """Find for every wanted file where its vectors come from; decide what becomes of the images that are gone."""
        wanted = {offer.sha256 for offer in self._wanted}
        known = ((path, self._sha256_of(path)) for path in (self.known if wanted else ()))
        sources = {content_of(sha256, path): path for path, sha256 in known if sha256 in wanted}
        first: dict[bytes, str] = {}
        for offer in self._wanted:
            if self._is_moved(offer):
                continue
            content = content_of(offer.sha256, offer.path)
            if (origin := sources.get(content)) is not None:
                kind: SyncKind = "duplicated" if offer.replaces is None else "changed"
                self.carries.append(Carry(kind, self.known[origin], offer, origin))
            elif content in first:
                self.twins.append((offer, first[content]))
            else:
                try:
                    if doubtful is None or offer.path in doubtful:
                        read_image(item_of(offer.file, offer.box))
                    first[content] = offer.path
                    self.offers.append(offer)
                except ImageError as error:
                    self.skipped.append(Skipped(offer.path, error.reason))
        gone = sorted(path for paths in self._gone.values() for path in paths)
        if self.settings.keep_missing:
            self.missing = gone
        else:
            self.removed = [(int(self.snapshot.ids[self.known[path]]), path) for path in gone]

    def _is_moved(self, offer: Offer) -> bool:
        """Carry over an image that is gone and had the same contents, if possible under the same name; False: none."""
        paths = self._gone.get(content_of(offer.sha256, offer.path))
        if offer.replaces is not None or not paths:
            return False
        name = Path(offer.path).name
        old = next((path for path in paths if Path(path).name == name), paths[0])
        paths.remove(old)
        place = self.known[old]
        columns = self._columns_of(place)
        label = columns.pop("label", None)
        if self._keeps_labels:
            came_from_folder = label is not None and label == self.folder.label_of(old)
            offer.label = self.folder.label_of(offer.path) if came_from_folder else label
            columns |= self.folder.columns_of(offer.path)
        elif offer.label is None:
            offer.label = label
        offer.columns, offer.replaces = columns, int(self.snapshot.ids[place])
        self.carries.append(Carry("moved", place, offer, old))
        return True
