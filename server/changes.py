"""One image more or less in a gallery: the smallest commits there are, which leave the caches to a quieter hour."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..encoders import Encoding
from ..errors import FingerprintMismatchError
from ..index.building.build import finish, to_vectors
from ..index.building.ingest import Encoded, Offer, ingest_offers, read_offer
from ..index.storage.records import stored_path
from ..index.storage.snapshot import Snapshot
from ..index.storage.writer import GalleryWriter, opened_for_writing
from .api_error import ApiError

__all__ = ["NewImage", "add_image", "remove_image"]


class NewImage(NamedTuple):
    """A file to be added, and what is said about it."""

    file: Path
    label: str | None
    columns: Mapping[str, str]


def add_image(folder: Path, image: NewImage, encoding: Encoding, *, fingerprint: str) -> int:
    """The id of a new image of the gallery, given by its file and its encoding; durable when the call returns.

    Raises:
        FingerprintMismatchError: the gallery has been built anew with another encoder than the one with `fingerprint`.
        ApiError: 409, the gallery has the picture already; 400, it has no features to compare.
        GalleryLockedError: another process is writing to the gallery.
    """
    with opened_for_writing(folder) as writer:
        if (mine := writer.manifest.encoder).fingerprint != fingerprint:
            raise FingerprintMismatchError(f"the gallery was built anew with {mine.short_name}; start the server again")
        path = stored_path(image.file, Path(writer.manifest.root))
        _require_new(writer, path)
        new = writer.manifest.next_id

        def stream(offers: Iterable[Offer]) -> Generator[Encoded, None, None]:
            for offer in offers:
                read_offer(offer)
                yield Encoded([offer], to_vectors(encoding, writer.manifest.spec), [])

        report = ingest_offers(writer, [Offer(image.file, path, image.label, image.columns)], stream)
        if not report.added:
            reason = report.skipped[0].reason if report.skipped else "the gallery did not take it"
            raise ApiError(400, f"the picture cannot be added: {reason}", reason="features")
        finish(writer, report)
    return new


def remove_image(folder: Path, image: int) -> bool:
    """Let an image leave the gallery, durably; False if somebody else removed it before.

    Raises:
        GalleryLockedError: another process is writing to the gallery.
    """
    with opened_for_writing(folder) as writer:
        if image not in Snapshot.at(folder, writer.manifest, verify=False).ids:
            return False
        writer.remove([image])
        writer.commit()
        writer.tidy()
    return True


def _require_new(writer: GalleryWriter, path: str) -> None:
    snapshot = Snapshot.at(writer.folder, writer.manifest, verify=False)
    place = snapshot.known_files([path]).get(path)
    if place is not None:
        raise ApiError(409, f"the gallery has this picture already, as image {snapshot.ids[place]}", reason="known")
