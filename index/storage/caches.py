"""Files that spare work and can always be computed again: class prototypes, and the FAISS index.

A cache that is missing, stale, damaged, or foreign is passed over without an error. FAISS reads its own files with
C++ that was not made for hostile input, so an index file is read only when this user wrote it: the manifest holds an
HMAC over its contents, keyed with a secret in the user's state folder. Whoever sends a gallery around sends an index
that others ignore.

An index is read into memory, and a large one into a file without a name that is mapped: FAISS looks into it while it
searches, and a file that somebody cuts under a mapping (as `cp` over a gallery in use does) ends the process. What is
hashed and used is the copy, so replacing or changing the file changes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import mmap
import os
import secrets
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...errors import DistcamError
from ...files import file_sha256
from ..prototypes import PrototypeStore
from .records import Array
from .snapshot import Snapshot

__all__ = ["index_tag", "load_index_bytes", "load_prototypes", "new_store", "update_prototypes", "user_secret"]

_SECRET_BYTES = 32
_IN_MEMORY = 1 << 30


def new_store(snapshot: Snapshot) -> PrototypeStore:
    """An empty store of the gallery's dimensions and metric."""
    spec = snapshot.spec
    return PrototypeStore(pooled_dim=spec.pooled_dim, embedding_dim=spec.embedding_dim, metric=spec.metric)


def load_prototypes(snapshot: Snapshot) -> PrototypeStore | None:
    """The cached prototypes of exactly this generation, if they are there and in order."""
    entry = snapshot.manifest.prototype_cache
    if entry is None or entry.generation != snapshot.manifest.generation:
        return None
    path, spec = snapshot.folder / entry.file.name, snapshot.spec
    with suppress(OSError, DistcamError):
        if path.stat().st_size != entry.file.bytes or file_sha256(path) != entry.file.sha256:
            return None
        store = PrototypeStore.load(
            path, pooled_dim=spec.pooled_dim, embedding_dim=spec.embedding_dim, metric=spec.metric
        )
        return store if store.total == len(snapshot) else None
    return None


def update_prototypes(store: PrototypeStore, *, before: Snapshot | None, after: Snapshot) -> None:
    """Bring prototypes from one generation to another by reading only the images that came or went."""
    if before is not None:
        _count(store, before, places=np.flatnonzero(~np.isin(before.ids, after.ids)), out=True)
    old_ids = after.ids[:0] if before is None else before.ids
    _count(store, after, places=np.flatnonzero(~np.isin(after.ids, old_ids)), out=False)


def user_secret() -> bytes | None:
    """This user's secret for authenticating index files, made on first use; None where it cannot be kept secret."""
    with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
        path = _state_folder() / "distcam" / "key"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f"key.{secrets.token_hex(8)}")
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
            aside.replace(path)
        return _read_secret(path)
    return None


def index_tag(snapshot: Snapshot, sha256: str) -> str | None:
    """Proof that this user computed the index file with this checksum for this very state of the gallery."""
    secret = user_secret()
    if secret is None:
        return None
    manifest = snapshot.manifest
    state = {
        "index": sha256,
        "ids": hashlib.sha256(snapshot.ids.tobytes()).hexdigest(),
        "generation": manifest.generation,
        "spec": asdict(manifest.spec),
        "factory": manifest.index,
        "encoder": manifest.encoder.fingerprint,
    }
    return hmac.new(secret, json.dumps(state, sort_keys=True).encode(), "sha256").hexdigest()


def load_index_bytes(snapshot: Snapshot) -> bytes | mmap.mmap | None:
    """The contents of the cached FAISS index, if this user wrote it for this very state of the gallery.

    Up to 1 GiB they are in memory, else in a nameless file on the gallery's disk, which is read as far as it is used.
    """
    entry = snapshot.manifest.index_cache
    if entry is None or entry.tag is None or entry.generation != snapshot.manifest.generation:
        return None
    with suppress(OSError, ValueError):  # ValueError: an empty file cannot be mapped
        path = snapshot.folder / entry.file.name
        flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # no links, no waiting for the other end of a pipe
        descriptor = os.open(path, os.O_RDONLY | sum(getattr(os, name, 0) for name in flags))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if path.is_symlink() or not stat.S_ISREG(status.st_mode) or status.st_size != entry.file.bytes:
                return None
            data = _own_copy(file, status.st_size, snapshot.folder)
        expected = index_tag(snapshot, hashlib.sha256(data).hexdigest())
        return data if expected is not None and hmac.compare_digest(expected, entry.tag) else None
    return None


def _own_copy(file: BinaryIO, size: int, folder: Path) -> bytes | mmap.mmap:
    """The contents of a file where nobody else can change them."""
    if size > _IN_MEMORY:
        for place in (folder, None):  # the gallery may be write-protected; then where temporary files lie
            with suppress(OSError), tempfile.TemporaryFile(dir=place) as aside:
                file.seek(0)
                shutil.copyfileobj(file, aside, 1 << 20)
                aside.flush()
                return mmap.mmap(aside.fileno(), size, access=mmap.ACCESS_READ)
        file.seek(0)
    return file.read()


def _count(store: PrototypeStore, snapshot: Snapshot, *, places: Array, out: bool) -> None:
    for ids, vectors in snapshot.blocks(places):
        of_block = snapshot.values("label", snapshot.places(ids))
        (store.subtract if out else store.add)(of_block, vectors.pooled, vectors.embedding)


def _read_secret(path: Path) -> bytes | None:
    status = path.lstat()
    is_private = sys.platform == "win32" or (status.st_uid == os.getuid() and not status.st_mode & 0o077)
    if not stat.S_ISREG(status.st_mode) or status.st_size != _SECRET_BYTES or not is_private:
        return None
    return path.read_bytes()


def _state_folder() -> Path:
    if folder := os.environ.get("XDG_STATE_HOME"):
        return Path(folder)
    if sys.platform == "win32" and (folder := os.environ.get("LOCALAPPDATA")):
        return Path(folder)
    return Path.home() / ".local" / "state"
