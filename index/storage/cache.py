"""Prototypes and search index of an open gallery, and the files that spare the next reader their making.

A file that is missing, stale, damaged, or foreign is passed over. An index outlives small changes: an id means one
vector for ever. FAISS trusts its input: its file is read only with an HMAC, keyed with a secret of this user.
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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptGalleryError, DistcamError, InputError, TooFewVectorsError
from ...files import file_sha256, say_after_commit
from ...remarks import counted
from ..prototypes import PrototypeStore
from ..scan import Scan
from ..search import EXACT_UP_TO, Hits, Searcher, VectorSource, search_exactly, small_change
from .hdf5 import Array
from .manifest import CacheEntry, Manifest, has_outgrown
from .snapshot import Ids, Snapshot, check_file
from .writer import GalleryWriter

if TYPE_CHECKING:  # FAISS is imported by the first search
    from ..faiss.search import FaissSearch

_SCANS = 4  # searches that cost no more than building the index
_SECRET_BYTES = 32
_IN_MEMORY = 1 << 30


class GalleryCache:
    """Prototypes and search index of one open gallery, of the generation `snapshot`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._prototypes: PrototypeStore | None = None
        self._search: Searcher | None = None
        self._scans = 0  # searches that were answered without an index
        self._unmade: InputError | None = None  # why a flat index stands in for the gallery's

    def close(self) -> None:
        """Release the search index."""
        self._unmade = None
        if self._search is not None:
            self._search.close()
            self._search = None

    def clear(self) -> None:
        """Drop everything kept: it may come from a damaged file, or belong to another gallery."""
        self.close()
        self._prototypes = None

    @property
    def prototypes(self) -> PrototypeStore:
        """The classes' prototypes and the gallery's mean."""
        if self._prototypes is None:
            self._prototypes = load_prototypes(self.snapshot)
        if self._prototypes is None:
            self._prototypes = computed_prototypes(self.snapshot)
        return self._prototypes

    @property
    def search(self) -> Searcher:
        """The search index; read from its file when this user made it, else built; or the backend's own."""
        if self._search is None:
            self._search = self.snapshot.search()
        if self._search is None:
            with suppress(DistcamError):
                self._search = load_index(self.snapshot, self._embeddings)
        if self._search is None:
            self._search = self._new_search()
        return self._search

    def answer(self, queries: Array, k: int, **limits: Any) -> list[Hits]:
        """Answers of `search`; without an index yet, exact and quick to make, the first few read all vectors."""
        spec, is_remote = self.snapshot.search_spec, self.snapshot.is_remote
        is_made = self._search is not None or self._scans >= _SCANS or not _is_built_quickly(self.snapshot)
        if is_made or is_remote or spec.metric == "l1":
            return self.search.search(queries, k, **limits)
        self._scans += 1
        allowed = limits.get("allowed")
        ids = self.snapshot.ids if allowed is None else np.intersect1d(allowed, self.snapshot.ids)
        return search_exactly(spec, queries, k, engine=Scan(spec, ids, self._embeddings))

    def _new_search(self) -> FaissSearch:
        """The gallery's index, or a flat one where FAISS cannot make that of these vectors: there may be too few."""
        factory = self.snapshot.manifest.index
        try:
            return self._search_of(factory)
        except InputError as error:
            if factory == "flat":
                raise
            search = self._search_of("flat")
            self._unmade = error
            return search

    def _search_of(self, factory: str) -> FaissSearch:
        from ..faiss.factory import SearchSettings
        from ..faiss.search import FaissSearch

        tuning = self.snapshot.manifest.tuning
        return FaissSearch.from_source(
            self.snapshot.search_spec,
            self.snapshot.ids,
            self._embeddings,
            factory=factory,
            seed=0 if tuning is None else tuning.seed,
            settings=None if tuning is None else SearchSettings.of(tuning),
        )

    def _embeddings(self, ids: Ids | Array) -> NDArray[np.float32]:
        """The vectors for a search index: of the generation that is open now, whatever the index was built from."""
        return self.snapshot.embeddings(ids)

    # --- Following changes -------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Read, before a change, what can follow it in memory only: prototypes, and an earlier version's index."""
        self._prototypes = self._prototypes or load_prototypes(self.snapshot)
        entry = self.snapshot.manifest.index_cache
        if self._search is None and entry is not None and entry.next_id is None:
            with suppress(DistcamError):
                self._search = load_index(self.snapshot, self._embeddings)

    def refresh(self, after: Snapshot) -> None:
        """Go on to another generation, by what came and what left."""
        before = self.snapshot
        old, new = before.manifest, after.manifest
        if (old.gallery_id, old.spec, old.encoder.fingerprint) != (new.gallery_id, new.spec, new.encoder.fingerprint):
            self.clear()  # somebody built it anew: ids mean other images
        if (old.index, old.tuning) != (new.index, new.tuning) or after.is_remote:
            self.close()  # a backend has what came, and the new generation says what of it counts
        if isinstance(self._unmade, TooFewVectorsError) and len(after) >= self._unmade.needed:
            self.close()
        store, self._prototypes = self._prototypes, None  # a failure on the way leaves none rather than half of them
        if store is not None:
            try:
                _update(store, before=before, after=after)
                self._prototypes = store
            except CorruptGalleryError:
                if not after.is_remote:
                    raise
                # another writer has deleted the rows of what left from the backend; the cache file knows the outcome
        self.snapshot = after
        if self._search is not None:
            _bring_up_to_date(cast("FaissSearch", self._search), after)

    def attach(self, search: FaissSearch) -> None:
        """Search with an index that was made of an earlier generation."""
        self.close()
        search.read_from(self._embeddings)
        _bring_up_to_date(search, self.snapshot)
        self._search = search

    def store(self, writer: GalleryWriter) -> None:
        """Store prototypes, and a search index that costs more to build than to read when much has changed since."""
        snapshot = self.snapshot
        manifest = snapshot.manifest
        if not manifest.is_fresh(manifest.prototype_cache):
            writer.store_cache("prototypes", self.prototypes.save, count=len(self.prototypes))
        if _is_index_due(snapshot):
            if getattr(self._search, "is_outgrown", False):
                self.close()
            if self.search.is_worth_saving:
                search = cast("FaissSearch", self.search)
                writer.store_cache("index", search.save, count=len(snapshot), tag=partial(index_tag, manifest))
        if self._unmade is not None:
            reason = str(self._unmade).split(";")[0].split(", got ")[0]
            say_after_commit(
                f"{snapshot.folder}: is searched exactly for now, since no index {manifest.index} can be made of "
                f"{counted(len(snapshot), 'image')} ({reason}); `distcam index tune` chooses another"
            )


# --- Prototypes -------------------------------------------------------------------------------------------------------


def load_prototypes(snapshot: Snapshot) -> PrototypeStore | None:
    """The stored prototypes of exactly this generation, if they are there and in order."""
    entry, spec = snapshot.manifest.prototype_cache, snapshot.spec
    if entry is None or not snapshot.manifest.is_fresh(entry):
        return None
    path = snapshot.folder / entry.file.name
    with suppress(OSError, DistcamError):
        if path.stat().st_size != entry.file.bytes or file_sha256(path) != entry.file.sha256:
            return None
        store = PrototypeStore.load(
            path, pooled_dim=spec.pooled_dim, embedding_dim=spec.embedding_dim, metric=spec.metric
        )
        return store if store.total == len(snapshot) else None
    return None


def computed_prototypes(snapshot: Snapshot) -> PrototypeStore:
    """The prototypes, from all vectors."""
    spec = snapshot.spec
    store = PrototypeStore(pooled_dim=spec.pooled_dim, embedding_dim=spec.embedding_dim, metric=spec.metric)
    _update(store, before=None, after=snapshot)
    return store


def _update(store: PrototypeStore, *, before: Snapshot | None, after: Snapshot) -> None:
    """Bring prototypes from one generation to another by reading only the images that came or went."""
    old_ids = after.ids[:0] if before is None else before.ids
    for snapshot, others, change in ((before, after.ids, store.subtract), (after, old_ids, store.add)):
        if snapshot is not None:
            for ids, vectors in snapshot.blocks(np.flatnonzero(~np.isin(snapshot.ids, others))):
                change(snapshot.values("label", snapshot.places(ids)), vectors.pooled, vectors.embedding)


# --- The index file ---------------------------------------------------------------------------------------------------


def user_secret() -> bytes | None:
    """This user's secret for authenticating index files, made on first use; None where it cannot be kept secret."""
    with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
        windows = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None
        state = os.environ.get("XDG_STATE_HOME") or windows
        path = (Path(state) if state else Path.home() / ".local" / "state") / "distcam" / "key"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f"key.{secrets.token_hex(8)}")
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
            aside.replace(path)
        status = path.lstat()
        is_private = sys.platform == "win32" or (status.st_uid == os.getuid() and not status.st_mode & 0o077)
        if stat.S_ISREG(status.st_mode) and status.st_size == _SECRET_BYTES and is_private:
            return path.read_bytes()
    return None


def index_tag(manifest: Manifest, entry: CacheEntry, ids: Ids | None = None) -> str | None:
    """Proof that this user computed this index file for this gallery; for these very `ids` if it cannot follow."""
    secret = user_secret()
    if secret is None:
        return None
    state = {
        "index": entry.file.sha256,
        "generation": entry.generation,
        "spec": asdict(manifest.spec),
        "factory": manifest.index,
        "encoder": manifest.encoder.fingerprint,
    }
    if entry.next_id is None and ids is not None:
        state["ids"] = hashlib.sha256(ids.tobytes()).hexdigest()
    else:
        state |= {"gallery": manifest.gallery_id, "next_id": entry.next_id}
    return hmac.new(secret, json.dumps(state, sort_keys=True).encode(), "sha256").hexdigest()


def is_own(manifest: Manifest, entry: CacheEntry, ids: Ids | None = None) -> bool:
    """True for an index file that `index_tag` proves to be this user's."""
    expected = index_tag(manifest, entry, ids)
    return expected is not None and entry.tag is not None and hmac.compare_digest(expected, entry.tag)


def _is_built_quickly(snapshot: Snapshot) -> bool:
    """True where no index file is worth its room: the index is exact, or not ours."""
    index = snapshot.manifest.index
    return snapshot.is_remote or index in ("flat", "SQfp16") or (index == "auto" and len(snapshot) <= EXACT_UP_TO)


def _is_index_due(snapshot: Snapshot) -> bool:
    """True where an index that is slow to build has no file, or one of which more than a hundredth has changed."""
    manifest, entry, count = snapshot.manifest, snapshot.manifest.index_cache, len(snapshot)
    if _is_built_quickly(snapshot):
        return False
    if entry is None or not is_own(manifest, entry, snapshot.ids):
        return True
    try:
        check_file(snapshot.folder, entry.file, checksum=False)
    except (OSError, DistcamError):
        return True
    then = entry.file.count
    came = 0 if entry.next_id is None else count - int(np.searchsorted(snapshot.ids, np.uint64(entry.next_id)))
    return then - count + 2 * came > small_change(then) or has_outgrown(then, count)


def load_index(snapshot: Snapshot, source: VectorSource) -> FaissSearch | None:
    """The stored FAISS index at this generation; None where it is missing, foreign, or no longer fits."""
    if _is_built_quickly(snapshot) or (data := load_index_bytes(snapshot)) is None:
        return None
    from ..faiss.search import FaissSearch

    search = FaissSearch.deserialise(data, spec=snapshot.search_spec, source=source)
    _bring_up_to_date(search, snapshot)
    return None if search.is_outgrown else search


def _bring_up_to_date(search: FaissSearch, snapshot: Snapshot) -> None:
    """Take what is not in a generation out of a search index, and put in what is."""
    known = search.ids
    search.delete(np.setdiff1d(known, snapshot.ids, assume_unique=True))
    for ids, vectors in snapshot.blocks(np.flatnonzero(~np.isin(snapshot.ids, known))):
        search.upsert(ids, vectors.embedding)


def load_index_bytes(snapshot: Snapshot) -> bytes | mmap.mmap | None:
    """The contents of the stored FAISS index, if this user wrote it; beyond 1 GiB in a nameless file on the disk."""
    entry = snapshot.manifest.index_cache
    if entry is None or not is_own(snapshot.manifest, entry, snapshot.ids):
        return None
    with suppress(OSError, ValueError):  # ValueError: an empty file cannot be mapped
        path = snapshot.folder / entry.file.name
        flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # no links, no waiting for the other end of a pipe
        descriptor = os.open(path, os.O_RDONLY | sum(getattr(os, name, 0) for name in flags))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if path.is_symlink() or not stat.S_ISREG(status.st_mode) or status.st_size != entry.file.bytes:
                return None
            data: bytes | mmap.mmap = b""  # where nobody can change or cut it, which under a mapping ends the process
            for place in (snapshot.folder, None) if status.st_size > _IN_MEMORY else ():  # it may be write-protected
                with suppress(OSError), tempfile.TemporaryFile(dir=place) as aside:
                    file.seek(0)
                    shutil.copyfileobj(file, aside, 1 << 20)
                    aside.flush()
                    data = mmap.mmap(aside.fileno(), status.st_size, access=mmap.ACCESS_READ)
                    break
            else:
                file.seek(0)
                data = file.read()
        return data if hashlib.sha256(data).hexdigest() == entry.file.sha256 else None
    return None
