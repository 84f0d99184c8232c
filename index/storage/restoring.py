"""A copy of a gallery put into its place, or anywhere: checked first, then written aside, renamed, and named last.

The manifest is replaced when all files are there: readers go on with what they have open until their next look.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path

from ...errors import CorruptGalleryError, GalleryError, InputError
from ...files import REMEDY, Storage, WriterLock, refusals_named
from ..backends import existing_gallery, is_root_of_this_user, new_gallery_id, require_rows_in_folder
from .cache import index_tag, is_own
from .manifest import CacheEntry, FileEntry, Manifest
from .segments import Segment
from .snapshot import check_file, read_ids
from .writer import GalleryWriter

_BLOCK = 4 << 20
_REMEDY = "name the gallery's folder"
_ATTEMPTS = 10


def restore_gallery(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], *, storage: Storage | None = None
) -> Manifest:
    """Make `folder` hold the gallery that lies in `source`, whatever state it is in; or copy it to a new folder.

    The whole of `source` is checked before anything is changed; others may write to it meanwhile. What `folder` held is
    replaced in one step, and killed in the middle it is as before. Files that it has already are not copied again.

    Returns:
        The manifest that `folder` has now.

    Raises:
        NotAGalleryError, CorruptGalleryError: `source` is none, or damaged: the message names the file.
        GalleryExistsError, GalleryLockedError: `folder` holds something else, or another process is writing to it.
        InputError: one folder is the other or lies in it, or the rows of `source` lie in Milvus.
        GalleryError: the disk is full.
    """
    source, folder, storage = Path(source), Path(folder), storage or Storage()
    Manifest.load(source)  # says of what can be no path that it is no gallery
    _require_apart(source, folder)
    manifest = _checked(source)
    existing_gallery(folder, overwrite=True, remedy=_REMEDY)
    storage.make_folder(folder)
    with WriterLock(folder), refusals_named(folder):
        old = existing_gallery(folder, overwrite=True, remedy=_REMEDY)
        if old is not None:
            require_rows_in_folder(folder, old, "restore the collection there, or into another folder")
        for _ in range(_ATTEMPTS):
            try:
                new = _copied(source, manifest, folder, old, storage)
                break
            except FileNotFoundError as error:  # a writer merges the source's files away
                if (newer := _checked(source)) == manifest:
                    raise CorruptGalleryError(f"{error.filename}: is missing; nothing was changed") from error
                manifest = newer
        else:
            raise GalleryError(f"{source}: changed {_ATTEMPTS} times while it was copied; try again")
        writer = GalleryWriter(folder, new, on_disk=old, storage=storage)
        writer.commit(gallery_id=new.gallery_id)
        writer.delete_orphans()
    return new


def _require_apart(source: Path, folder: Path) -> None:
    """Refuse a folder in itself: clearing up after one gallery would reach into the other."""
    try:
        real = (Path(os.path.realpath(source)), Path(os.path.realpath(folder)))
    except ValueError as error:
        raise InputError(f"{folder}: is no path ({error}); name the gallery's folder") from error
    outer, inner = sorted(real, key=lambda path: len(path.parts))
    if outer == inner or (os.path.exists(outer) and os.path.exists(inner) and outer.samefile(inner)):  # noqa: PTH110
        raise InputError(f"{folder}: is to be restored from itself; name the copy first, then the gallery")
    if inner.is_relative_to(outer):
        raise InputError(f"{inner} lies in {outer}; a gallery is restored from, and to, a folder outside of it")


def _checked(source: Path) -> Manifest:
    """The manifest of a whole gallery; caches that are not in order are left out of it."""
    manifest = Manifest.load(source)
    for _ in range(_ATTEMPTS):
        require_rows_in_folder(source, manifest, "copy and restore the collection there")
        try:
            return _without_bad_files(source, manifest)
        except (FileNotFoundError, CorruptGalleryError) as error:
            if (newer := Manifest.load(source)) != manifest:
                manifest = newer
                continue
            problem = str(error) if isinstance(error, CorruptGalleryError) else f"{error.filename}: is missing"
            raise CorruptGalleryError(
                f"{problem.split(';')[0]}; nothing was changed, restore from another copy"
            ) from error
    raise GalleryError(f"{source}: changed {_ATTEMPTS} times while it was being checked; try again")


def _without_bad_files(source: Path, manifest: Manifest) -> Manifest:
    for entry in manifest.files():
        if not GalleryWriter.owns(entry.name):
            raise CorruptGalleryError(f"{source}: names a file {entry.name!r} that no gallery has; {REMEDY}")
    for needed in (*manifest.segments, *manifest.tombstones, manifest.encoder.file, manifest.skipped):
        if needed is not None:
            check_file(source, needed, checksum=True)
    for entry in manifest.segments:
        Segment.of(source, entry, manifest.spec)
    for entry in manifest.tombstones:
        read_ids(source, entry)
    return dataclasses.replace(
        manifest,
        prototype_cache=_sound_cache(source, manifest.prototype_cache),
        index_cache=_sound_cache(source, manifest.index_cache),
    )


def _sound_cache(source: Path, cache: CacheEntry | None) -> CacheEntry | None:
    if cache is not None:
        with suppress(FileNotFoundError, CorruptGalleryError):
            check_file(source, cache.file, checksum=True)
            return cache
    return None


def _copied(source: Path, manifest: Manifest, folder: Path, old: Manifest | None, storage: Storage) -> Manifest:
    """Bring all files into the folder under names that are free there; the new gallery is another to its readers."""
    taken = {} if old is None else {entry.name: entry for entry in old.files()}
    new: dict[str, FileEntry] = {}
    for entry in manifest.files():
        name = entry.name
        if name in taken and taken[name] != entry:
            kind, _, rest = name.partition("-")
            name = f"{kind}-{uuid.uuid4().hex}{rest[32:]}"
        new[entry.name] = placed = dataclasses.replace(entry, name=name)
        try:
            check_file(folder, placed, checksum=True)
        except (GalleryError, OSError):
            digest, origin = hashlib.sha256(), source / entry.name
            with origin.open("rb") as file, storage.replacing(folder / name) as aside:  # `origin` may be merged away
                with aside.open("wb") as copy:
                    while block := file.read(_BLOCK):
                        digest.update(block)
                        copy.write(block)
                if digest.hexdigest() != entry.sha256:
                    raise CorruptGalleryError(
                        f"{origin}: was changed while it was copied; nothing was changed, try again"
                    ) from None

    def cache(entry: CacheEntry | None) -> CacheEntry | None:
        return None if entry is None else dataclasses.replace(entry, file=new[entry.file.name])

    encoder, index = manifest.encoder, cache(manifest.index_cache)
    restored = dataclasses.replace(
        manifest,
        segments=tuple(new[entry.name] for entry in manifest.segments),
        tombstones=tuple(new[entry.name] for entry in manifest.tombstones),
        encoder=dataclasses.replace(encoder, file=None if encoder.file is None else new[encoder.file.name]),
        skipped=None if manifest.skipped is None else new[manifest.skipped.name],
        prototype_cache=cache(manifest.prototype_cache),
        gallery_id=new_gallery_id(manifest.root if is_root_of_this_user(manifest) else None),
    )
    if index is not None and index.next_id is not None:  # it goes by the gallery's name; others by their ids
        index = dataclasses.replace(index, tag=index_tag(restored, index) if is_own(manifest, index) else None)
    return dataclasses.replace(restored, index_cache=index)
