"""Opening, starting, changing and checking a gallery, whether its rows lie in segments in the folder or in Milvus.

The choice between the two is made here, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import hmac
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CorruptGalleryError, GalleryError, GalleryExistsError, InputError, NotAGalleryError
from ..files import LOCK_NAME, REMEDY, Storage, WriterLock, after_commit, refusals_named
from ..images.items import KEPT_NAME, holds_kept_images
from ..metrics.distances import SearchSpec
from .reports import VerifyReport
from .storage.cache import user_secret
from .storage.manifest import BackendEntry, FileEntry, Manifest
from .storage.snapshot import Snapshot, Verify
from .storage.verify import Check
from .storage.writer import GalleryWriter

if TYPE_CHECKING:
    from ..encoders import Encoder

_ATTEMPTS = 10


def rows_in(manifest: Manifest) -> str:
    """The place of the rows, for messages and comparison."""
    return "the folder" if manifest.backend is None else manifest.backend.address


def require_rows_in_folder(folder: Path, manifest: Manifest, remedy: str) -> None:
    """InputError for what is not done where the rows lie in Milvus."""
    if manifest.backend is not None:
        raise InputError(f"{folder} has its rows in Milvus; {remedy}")


# --- New galleries ----------------------------------------------------------------------------------------------------


def backend_entry(address: str | None, old: Manifest | None) -> BackendEntry | None:
    """The manifest's entry for a new gallery; building anew at the same place takes the old rows' place."""
    if address is None:
        return None
    from .milvus.connection import Address

    address = str(Address.parse(address))
    if old is not None and old.backend is not None and old.backend.address == address:
        return dataclasses.replace(old.backend, columns=(), settled=0)
    return BackendEntry(address, uuid.uuid4().hex)


def require_index(spec: SearchSpec, factory: str, backend: str | None = None, *, store_maps: bool = False) -> None:
    """Refuse a kind of index, or maps, that the backend does not have now, not after hours of work."""
    if backend is None:
        if factory not in ("auto", "flat"):
            from .faiss.factory import new_index

            new_index(spec, factory)
        return
    from .milvus.dialect import IndexKind

    if store_maps:
        raise InputError(
            "feature maps are not kept in Milvus; leave --store-maps out, maps are then made from the images"
        )
    IndexKind.parse(factory)


def existing_gallery(folder: Path, *, overwrite: bool, remedy: str = "choose another --out") -> Manifest | None:
    """The gallery that lies there; a new one may be where nothing is or a build left off, never among other files."""
    if os.path.exists(folder) and not os.path.isdir(folder):  # noqa: PTH110, PTH112 - never raise
        raise GalleryExistsError(f"{folder}: is a file; {remedy}")
    try:
        return Manifest.load(folder)
    except NotAGalleryError:
        with refusals_named(folder):
            names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []  # noqa: PTH112, PTH208
        for name in names:
            is_kept = name == KEPT_NAME and holds_kept_images(folder / name)
            if name != LOCK_NAME and not GalleryWriter.owns(name) and not is_kept:
                raise GalleryExistsError(
                    f"{folder}: is no gallery and holds other files, such as {name}; {remedy}"
                ) from None
        return None
    except GalleryError:
        if overwrite:
            return None
        raise


@contextmanager
def locked_for_new(folder: Path, *, overwrite: bool, storage: Storage) -> Iterator[Manifest | None]:
    """A new gallery's folder under its lock, with the manifest of what lies there."""
    existing_gallery(folder, overwrite=overwrite)  # before a lock file gets into a folder of something else
    storage.make_folder(folder)
    with WriterLock(folder), refusals_named(folder):
        yield existing_gallery(folder, overwrite=overwrite)


def new_gallery_id(root: str | None = None) -> str:
    """A random name for a new gallery; with the root that this user named for its images, one that proves who did."""
    name = uuid.uuid4().hex
    tag = None if root is None else _root_tag(name, root)
    return name if tag is None else f"{name}-{tag}"


def is_root_of_this_user(manifest: Manifest) -> bool:
    """True if this user, on this machine, named the root that a gallery records; nobody else can make it seem so."""
    name, _, given = manifest.gallery_id.partition("-")
    expected = _root_tag(name, manifest.root)
    return expected is not None and hmac.compare_digest(expected.encode(), given.encode())


def _root_tag(name: str, root: str) -> str | None:
    secret = user_secret()
    text = f"root\0{name}\0{root}".encode("utf-8", "surrogateescape")
    return None if secret is None else hmac.new(secret, text, "sha256").hexdigest()


def write_encoder_copy(encoder: Encoder, writer: GalleryWriter) -> FileEntry | None:
    """The gallery's copy of the encoder; None for a network of the user's own, which queries bring along."""

    def save(aside: Path) -> None:
        checkpoint = aside.with_name(f"{aside.name}.safetensors")  # the suffix that checkpoints must have
        encoder.save(checkpoint)
        checkpoint.replace(aside)

    try:
        return writer.write_encoder(save)
    except InputError:
        return None


# --- Reading ----------------------------------------------------------------------------------------------------------


def open_snapshot(folder: Path, manifest: Manifest, *, verify: Verify = False) -> Snapshot:
    """This generation; see `Snapshot`."""
    if manifest.backend is None:
        return Snapshot(folder, manifest, verify=verify)
    from .milvus.snapshot import MilvusSnapshot

    return MilvusSnapshot(folder, manifest, verify=verify)


def newest_snapshot(folder: Path, *, verify: Verify = "auto") -> Snapshot:
    """The newest generation.

    A compaction may remove a file between reading the manifest and opening the file; then there is a newer manifest.
    """
    manifest = Manifest.load(folder)
    for _ in range(_ATTEMPTS):
        try:
            return open_snapshot(folder, manifest, verify=verify)
        except (FileNotFoundError, CorruptGalleryError) as error:
            newer = Manifest.load(folder)
            if newer != manifest:
                manifest = newer
            elif isinstance(error, CorruptGalleryError):
                raise
            else:
                raise CorruptGalleryError(f"{error.filename}: is missing; {REMEDY}") from error
    raise CorruptGalleryError(f"{folder}: changed {_ATTEMPTS} times while it was being opened; try again")


# --- Changing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writer_of(folder: Path, manifest: Manifest, **options: Any) -> Iterator[GalleryWriter]:
    """A writer for the holder of the lock; what an interrupted one left behind is deleted first.

    Rows that leave Milvus are deleted at the end, when nobody here reads them any more.
    """
    if manifest.backend is None:
        writer = GalleryWriter(folder, manifest, **options)
        writer.delete_orphans()
        yield writer
        return
    from .milvus.writer import MilvusWriter

    remote = MilvusWriter(folder, manifest, **options)
    remote.delete_orphans()
    yield remote
    with after_commit(folder, "what removed images left behind"):
        remote.delete_removed_rows()


@contextmanager
def opened_for_writing(folder: Path, *, patience: float = 0.0, **options: Any) -> Iterator[GalleryWriter]:
    """A writer for an existing gallery, holding its lock."""
    Manifest.load(folder)  # before the lock, which would leave a lock file in a folder that is no gallery
    with WriterLock(folder, patience=patience), refusals_named(folder):
        manifest = Manifest.load(folder)
        with writer_of(folder, manifest, on_disk=manifest, **options) as writer:
            yield writer


# --- Checking ---------------------------------------------------------------------------------------------------------


def verify_gallery(folder: str | os.PathLike[str], *, repair: bool = False) -> VerifyReport:
    """Check every file's checksum and structure, every vector, and whether ids, paths and caches agree.

    Works on galleries that are too damaged to open. Repairing sets damaged segments aside (their files get the ending
    `.damaged`), says how many images that costs, and marks the gallery as unfinished, so that the same build encodes
    them again.

    Raises:
        NotAGalleryError: there is no gallery.
        CorruptGalleryError: the manifest itself is damaged.
        GalleryLockedError: with `repair`, another process is writing.
    """
    folder = Path(folder)
    if repair:
        with opened_for_writing(folder) as writer:
            check = _check(folder, writer.manifest)
            check.mend(writer)
            return check.report(repaired=True)
    while True:
        manifest = Manifest.load(folder)
        try:
            report = _check(folder, manifest).report()
        except FileNotFoundError:  # a writer replaced files meanwhile: the next generation is looked at
            if Manifest.load(folder) == manifest:
                raise
            continue
        if report.is_sound or Manifest.load(folder) == manifest:
            return report


def _check(folder: Path, manifest: Manifest) -> Check:
    if manifest.backend is None:
        return Check(folder, manifest)
    from .milvus.writer import MilvusCheck

    return MilvusCheck(folder, manifest)
