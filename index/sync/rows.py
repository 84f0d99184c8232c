"""The rows of a gallery that a sync compares files with, and those that it writes again."""

from __future__ import annotations

import hashlib
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from ...errors import ImageError
from ...images.items import item_of, split_item
from ..building.ingest import Offer, reason_of
from ..reports import SyncKind
from ..storage.segments import Segment
from ..storage.snapshot import Snapshot


class Row(NamedTuple):
    """An image's row in its segment."""

    segment: Segment
    row: int
    state: tuple[int, int]  # size in bytes and time of change in ns of the file it was read from

    @property
    def id(self) -> int:
        """Its id."""
        return int(self.segment.stored_ids[self.row])

    @property
    def sha256(self) -> bytes:
        """The checksum of the file it was read from."""
        return bytes(self.segment.sha256[self.row])

    @property
    def columns(self) -> dict[str, str]:
        """Label and columns, as far as it has values."""
        named = ((name, column[self.row]) for name, column in self.segment.columns.items())
        return {name: value for name, value in named if value is not None}


def content_of(sha256: bytes, path: str) -> bytes:
    """What two images with the same vectors have in common: their file's contents and their box."""
    box = split_item(path)[1]
    return sha256 if box is None else sha256 + item_of("", box).encode()


class Carry(NamedTuple):
    """A new row with the vectors of a row that the gallery has under the path `origin`."""

    kind: SyncKind
    source: Row
    offer: Offer
    origin: str


def digest_of(file: Path) -> bytes:
    """The SHA-256 of a file; ImageError if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise ImageError(file, reason_of(error)) from error


def rows_of(snapshot: Snapshot) -> dict[str, Row]:
    """Every image's row by its path."""
    found: dict[str, Row] = {}
    for segment, rows in snapshot.live_parts():
        states = zip(segment.size[rows].tolist(), segment.mtime_ns[rows].tolist(), strict=True)
        found.update(zip(segment.paths.take(rows), map(Row, repeat(segment), rows.tolist(), states), strict=True))
    return found
