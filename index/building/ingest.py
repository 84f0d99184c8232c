"""Images on their way into a gallery: new, changed, unchanged, or of no use.

Each file is read once; its checksum is taken from the same bytes that are decoded. Where a gallery pools under masks,
the column `mask` holds the first digits of the mask file's checksum, or "none" for the whole image.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import GalleryError, ImageError, InputError, is_out_of_descriptors, too_many_files
from ...images.geometry import Box
from ...images.image_sources import ImageRecord
from ...images.items import item_of
from ...images.listing import Listing
from ...images.masks import MaskFolder
from ...metrics import Metric
from ...progress import Progress
from ...remarks import Skipped, remark
from ..backends import open_snapshot
from ..reports import AddReport, read_skipped
from ..storage.segments import MASK_COLUMN, MAX_COLUMNS, NO_MASK, Entries, RowVectors, stored_path
from ..storage.snapshot import Snapshot
from ..storage.writer import GalleryWriter

MAX_FILE_BYTES = 1 << 30


@dataclass(eq=False, slots=True)
class Offer:
    """An image file offered to a gallery, with what the listing says of it."""

    file: Path
    path: str  # under which the gallery will know it
    label: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    replaces: int | None = None  # the id of the image that the gallery has under this path
    known_sha256: bytes | None = None  # that image's checksum, when an equal file needs no encoding
    box: Box | None = None  # the part of the image that is encoded, before the gallery's margin
    sha256: bytes = bytes(32)  # this and the rest are filled in when the file is read
    size: int = 0
    mtime_ns: int = 0


class Encoded(NamedTuple):
    """One batch out of a stream: offers with their vectors, and offers with the reason why they have none."""

    offers: Sequence[Offer]
    vectors: RowVectors | None
    failures: Sequence[tuple[Offer, ImageError]]


# turns offers into vectors, in order, calling `read_offer` for the bytes of each; closing it ends its threads
Stream = Callable[[Iterable[Offer]], Generator[Encoded, None, None]]


class _Unchanged(ImageError):
    """Not a failure: the file is the one that the gallery has, only younger."""


def reason_of(error: OSError) -> str:
    """The system's words for an error."""
    return (error.strerror or str(error)).lower()


def status_of(file: str | os.PathLike[str]) -> os.stat_result:
    """Size and times of a regular file; ImageError for anything else."""
    try:
        status = os.stat(file)  # noqa: PTH116 (one call, no object)
    except OSError as error:
        raise ImageError(file, reason_of(error)) from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ImageError(file, "not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise ImageError(file, f"{status.st_size >> 20} MiB, more than {MAX_FILE_BYTES >> 20}")
    return status


def stored_names(folder: Path, root: Path, *, are_walked: bool = False) -> Callable[[str], str]:
    """`stored_path` of files given relative to a folder: for millions of them, without an object for each.

    `are_walked`: they come from walking the folder, so no `..` is among them.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (as above)
    prefix = f"{folder.relative_to(root).as_posix()}/".removeprefix("./") if folder.is_relative_to(root) else None
    if prefix is not None and are_walked:
        return prefix.__add__

    def stored(path: str) -> str:
        is_plain = os.path.normpath(path) == path and not path.startswith("..") and not os.path.isabs(path)  # noqa: PTH117
        return stored_path(folder / path, root) if prefix is None or not is_plain else prefix + path

    return stored


def read_offer(offer: Offer) -> bytes:
    """The bytes of an offered file, read once; notes their checksum, their number, and the file's time of change."""
    try:
        offer.path.encode()
        status = status_of(offer.file)
        data = offer.file.read_bytes()
    except OSError as error:
        raise ImageError(offer.file, reason_of(error)) from error
    except UnicodeEncodeError as error:
        raise ImageError(offer.file, "the name is not UTF-8, which galleries store; rename it") from error
    note_state(offer, hashlib.sha256(data).digest(), len(data), status.st_mtime_ns)
    return data


def note_state(offer: Offer, sha256: bytes, size: int, mtime_ns: int) -> None:
    """Note the state of an offer's file; ImageError if the gallery has it as it is."""
    offer.sha256, offer.size, offer.mtime_ns = sha256, size, mtime_ns
    if sha256 == offer.known_sha256:
        raise _Unchanged(offer.file, "unchanged")


def ingest(
    writer: GalleryWriter,
    images: Listing,
    stream: Stream,
    *,
    masks: MaskFolder | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> AddReport:
    """Bring a listing's images into the gallery, all but those that are there already.

    An exception, Ctrl-C among them, commits what is encoded before it goes on.
    """
    _check_columns(writer, images.column_names)
    if masks is not None and MASK_COLUMN in images.column_names:
        raise InputError("with masks the column `mask` says under which each image was pooled; rename yours")
    if masks is not None and not strict:  # which stops at the first image without a mask
        root = Path(writer.manifest.root)
        fit = masks.join(stored_path(images.file(record), root) for record in images)
        fit.tell(what="a mask", lines=f"masks in {masks.folder}", is_needed=writer.is_new)
    is_boxed = any(record.box is not None for record in islice(images, 1))  # of a listing all are, or none
    if masks is not None and is_boxed:
        raise InputError("a gallery pools either boxes or under masks; leave out one of both")
    snapshot = open_snapshot(writer.folder, writer.manifest)
    boxes = 0 if snapshot.is_remote else len(snapshot.box_paths())
    if not snapshot.is_remote and (boxes < len(snapshot) if is_boxed else boxes):
        new, old = ("boxes", "whole images")[:: 1 if is_boxed else -1]
        hint = "; --boxes none takes whole images of a table" if is_boxed else ""
        remark(f"{new} are added beside the {old} of this gallery{hint}", strict=strict)
    intake = _Intake(writer, 0 if progress is None else len(images), strict=strict, progress=progress)
    return intake.carry_through(stream, intake.offers_of(images, masks, snapshot), images)


def ingest_offers(
    writer: GalleryWriter,
    offers: Sequence[Offer],
    stream: Stream,
    *,
    strict: bool = False,
    progress: Progress | None = None,
) -> AddReport:
    """Bring images into the gallery that somebody has compared with it already; else as `ingest`."""
    _check_columns(writer, {name for offer in offers for name in offer.columns})
    return _Intake(writer, len(offers), strict=strict, progress=progress).carry_through(stream, offers)


class _Intake:
    """One pass over some images: the counts, and the offers on their way to the commit."""

    def __init__(self, writer: GalleryWriter, total: int, *, strict: bool, progress: Progress | None) -> None:
        self.writer = writer
        self.strict = strict
        self.added = self.replaced = self.unchanged = 0
        self.skipped: list[Skipped] = []
        self._progress = progress
        self._total = total

    def carry_through(self, stream: Stream, offers: Iterable[Offer], images: Listing | None = None) -> AddReport:
        try:
            with closing(stream(offers)) as batches:  # its threads end before the last commit
                for batch in batches:
                    for offer, error in batch.failures:
                        self._refuse(offer, error)
                    if batch.vectors is not None:
                        self._accept(batch.offers, batch.vectors)
                        self.writer.merge_small(newest=True)
                    self._report_progress()
            for problem in () if images is None else images.problems:
                path, _, reason = problem.partition(": ")
                self.skipped.append(Skipped(path, reason))
            self._report_progress()
            self.writer.commit()
        except BaseException:  # which may have come in the middle of that commit
            self.writer.commit()
            raise
        precision = self.writer.manifest.encoder.precision
        return AddReport(self.added, self.replaced, self.unchanged, tuple(self.skipped), precision)

    def _report_progress(self) -> None:
        if self._progress is not None:
            done = self.added + self.replaced + self.unchanged + len(self.skipped)
            self._progress(min(done, self._total), self._total)

    def offers_of(self, images: Listing, masks: MaskFolder | None, snapshot: Snapshot) -> Iterator[Offer]:
        """The offers of a listing, without files whose size and time of change say that they are known."""
        snapshot.preload()  # the commits to come may merge its files away
        stored = stored_names(images.root, Path(self.writer.manifest.root), are_walked=images.is_walked)
        prefix = f"{images.root}/"
        records: dict[str, ImageRecord] = {}
        for record in images.survey():
            path = item_of(stored(record.path), record.box)
            if records.setdefault(path, record) is not record:  # one file under two names
                self.unchanged += 1
        known = snapshot.places_by_path(among=records)
        names = snapshot.column_names
        paths = (record.path for record in records.values())
        files = map(prefix.__add__ if images.is_walked else partial(os.path.join, images.root), paths)
        are_as_before = snapshot.are_as_before(files, map(known.get, records))
        for (path, record), is_as_before in zip(records.items(), are_as_before, strict=True):
            columns, place = record.columns, known.get(path)
            if masks is not None:
                try:
                    digest = masks.digest(path)
                    if digest is None and self.strict:
                        raise ImageError(path, f"it has no mask; expected {masks.file(path)}")
                except ImageError as error:
                    self._refuse(Offer(images.file(record), path), error)
                    continue
                columns = {**columns, MASK_COLUMN: digest or NO_MASK}
            said = columns if record.label is None else {"label": record.label, **columns}
            is_said = place is not None and all(
                name in names and snapshot.value(name, place) == value for name, value in said.items()
            )
            if is_said and is_as_before:
                self.unchanged += 1
                continue
            offer = Offer(images.file(record), path, record.label, columns, box=record.box)
            if place is not None:
                offer.replaces = int(snapshot.ids[place])
                offer.known_sha256 = snapshot.file_state(place)[0] if is_said else None
            yield offer

    def _refuse(self, offer: Offer, error: ImageError) -> None:
        if is_out_of_descriptors(error.__cause__):  # says nothing of the image
            raise too_many_files(offer.file) from error
        if isinstance(error, _Unchanged):
            self.unchanged += 1
        elif self.strict:
            raise ImageError(offer.path, error.reason) from error
        else:
            self.skipped.append(Skipped(offer.path, error.reason))

    def _accept(self, offers: Sequence[Offer], vectors: RowVectors) -> None:
        refused = unusable(vectors, self.writer.manifest.spec.metric)
        for row, reason in refused.items():
            self._refuse(offers[row], ImageError(offers[row].file, reason))
        rows = np.delete(np.arange(len(offers)), list(refused))
        if not len(rows):
            return
        taken = [offers[row] for row in rows.tolist()]
        replaced = [offer.replaces for offer in taken if offer.replaces is not None]
        self.writer.append(
            entries_of(taken), vectors if len(rows) == len(offers) else vectors.take(rows), replaces=replaced
        )
        self.added += len(taken) - len(replaced)
        self.replaced += len(replaced)


def unusable(vectors: RowVectors, metric: Metric) -> dict[int, str]:
    """The rows that no search can compare, with the reasons: a zero vector has no direction, NaN no distance."""
    arrays = [array for array in vars(vectors).values() if array is not None and array.ndim < 4]  # maps have a scale
    finite = np.logical_and.reduce([np.isfinite(array.reshape(len(array), -1)).all(axis=1) for array in arrays])
    is_zero = (vectors.embedding == 0).all(axis=1) & (metric == "cosine")
    reasons = ("its vectors are not finite", "its embedding is zero, which no cosine compares")
    return {row: reasons[int(finite[row])] for row in np.flatnonzero(~finite | is_zero).tolist()}


def skipped_before(writer: GalleryWriter) -> tuple[Skipped, ...]:
    """The images that could not be used as of the last commit; nothing hangs on a list that is damaged."""
    if writer.manifest.skipped is not None:
        with suppress(GalleryError):
            return read_skipped(writer.folder / writer.manifest.skipped.name)
    return ()


def new_skip_list(writer: GalleryWriter, before: Sequence[Skipped], now: Iterable[Skipped]) -> dict[str, Any]:
    """The change of the manifest by a new list of images that could not be used, each path once; empty: none."""
    merged = {item.path: item for item in now}
    if merged == {item.path: item for item in before}:
        return {}
    lines = [item.to_json() for item in merged.values()]
    return {"skipped": writer.write_skipped(lines) if lines else None}


def _check_columns(writer: GalleryWriter, new: Iterable[str]) -> None:
    """Refuse now what could not be read again later."""
    names = {*open_snapshot(writer.folder, writer.manifest).column_names, *new}
    if len(names) > MAX_COLUMNS:
        raise InputError(f"a gallery holds up to {MAX_COLUMNS} columns, with these images it would have {len(names)}")


def entries_of(offers: Sequence[Offer]) -> Entries:
    """Offers as rows of a gallery, without their ids."""
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
