"""Files that spare work and can always be computed again: class prototypes, and the FAISS index.

A cache that is missing, stale, damaged, or foreign is passed over without an error. FAISS reads its own files with
C++ that was not made for hostile input, so an index file is read only when this user wrote it: the manifest holds an
HMAC over its contents, keyed with a secret in the user's state folder. Whoever sends a gallery around sends an index
that others ignore.

Large indexes are mapped, not copied. The file is opened once; its owner and mode, its hash, and the mapping are all
taken from that one open file, so replacing or renaming it changes nothing. It is mapped only where nobody but this
user may write to it; what others may write to is copied into memory first, and the copy is what is hashed and used.
What remains is this user changing the file in place, as no part of distcam does.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import mmap
import os
import secrets
import stat
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..errors import DistcamError
from .durable import file_sha256
from .prototypes import PrototypeStore
from .rows import Array
from .snapshot import Snapshot

__all__ = ["index_tag", "load_index_bytes", "load_prototypes", "new_store", "update_prototypes", "user_secret"]

_SECRET_BYTES = 32


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

    Mapped where only this user may write to the file, else copied; hashing reads all of it once, at over 1 GB/s.
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
            data: bytes | mmap.mmap
            if _is_only_ours(status):
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                data = mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_READ)
            else:
                data = file.read()
                sha256 = hashlib.sha256(data).hexdigest()
        expected = index_tag(snapshot, sha256)
        return data if expected is not None and hmac.compare_digest(expected, entry.tag) else None
    return None


def _is_only_ours(status: os.stat_result) -> bool:
    """Whether nobody but this user (and the system's administrator) may write to the file."""
    return sys.platform != "win32" and status.st_uid == os.getuid() and not status.st_mode & 0o022


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
