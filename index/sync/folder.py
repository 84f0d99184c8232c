"""The synced folder as the gallery sees it, and its files as the disk has them."""

from __future__ import annotations

import hashlib
import os
import stat
from functools import cached_property
from pathlib import Path

from ...errors import ImageError, InputError
from ...images.listing import Listing, list_images
from ...images.loading import IMAGE_SUFFIXES
from ...images.splits import SPLIT_COLUMN, SplitFolders, find_split_folders
from ..building.ingest import MAX_FILE_BYTES
from ..storage.segments import stored_path


class SyncFolder:
    """The synced folder as the gallery sees it: stored paths under it, and the classes that their folders name."""

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
        """True for a stored path that lies under the folder."""
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
        if _is_absolute(path):
            return self._within(path) or path, self._outer_splits
        return path, self._splits

    @cached_property
    def _splits(self) -> SplitFolders | None:
        return find_split_folders(self.root)

    @cached_property
    def _outer_splits(self) -> SplitFolders | None:
        return find_split_folders(self.folder)


def list_folder(folder: Path, labels: str | os.PathLike[str] | None) -> Listing | None:
    """The images of a folder; None when it is empty, as the place of a disk is that is not mounted."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; is its disk mounted?")
    try:
        return list_images(folder, labels=labels)
    except InputError:
        if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, _, names in os.walk(folder) for name in names):
            raise
        return None


def status_of(file: str) -> os.stat_result:
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


def digest(file: Path) -> bytes:
    """The SHA-256 of a file; ImageError if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise ImageError(file, reason_of(error)) from error


def reason_of(error: OSError) -> str:
    """The system's words for an error."""
    return (error.strerror or str(error)).lower()


def _is_absolute(path: str) -> bool:
    return os.path.isabs(path)  # noqa: PTH117 (asked for every image of the gallery)
