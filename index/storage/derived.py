"""What an open gallery computes from its vectors: prototypes and the search index, brought along from state to state.

Neither is ever the truth. They are read from the gallery's caches or made on first use, updated by what came and what
left, and stored for the next reader where that saves time.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptGalleryError, DistcamError, InputError, TooFewVectorsError
from ..prototypes import PrototypeStore
from ..reports import counted
from ..search import Search
from . import caches
from .durable import say_after_commit
from .records import Array
from .snapshot import Ids, Snapshot
from .writer import GalleryWriter

if TYPE_CHECKING:  # FAISS and Milvus are imported by the first search
    from ..faiss.search import FaissSearch
    from ..milvus.search import MilvusSearch

__all__ = ["Derived"]

_FAST_INDEX = 100_000  # images; below, "auto" always means an index that is built as quickly as read


class Derived:
    """Prototypes and search index of one open gallery.

    Attributes:
        snapshot: the generation that they are of.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._prototypes: PrototypeStore | None = None
        self._search: FaissSearch | MilvusSearch | None = None
        self._unmade: InputError | None = None  # why a flat index stands in for the gallery's

    def close(self) -> None:
        """Let go of the search index."""
        self._unmade = None
        if self._search is not None:
            self._search.close()
            self._search = None

    def forget(self) -> None:
        """Let go of everything: it may hold what was damaged, or belong to another gallery."""
        self.close()
        self._prototypes = None

    @property
    def prototypes(self) -> PrototypeStore:
        """The classes' prototypes and the gallery's mean."""
        if self._prototypes is None:
            self._prototypes = caches.load_prototypes(self.snapshot)
        if self._prototypes is None:
            store = caches.new_store(self.snapshot)
            caches.update_prototypes(store, before=None, after=self.snapshot)
            self._prototypes = store
        return self._prototypes

    @property
    def search(self) -> FaissSearch | MilvusSearch:
        """The search index; read from the cache when this user made it, else built; or Milvus."""
        if self._search is None and self.snapshot.manifest.backend is not None:
            from ..milvus.snapshot import MilvusSnapshot

            assert isinstance(self.snapshot, MilvusSnapshot)
            self._search = self.snapshot.search()
        if self._search is None:
            self._search = self._cached_search() or self._new_search()
        return self._search

    def _cached_search(self) -> FaissSearch | None:
        data = caches.load_index_bytes(self.snapshot)
        if data is None:
            return None
        from ..faiss.search import FaissSearch

        with suppress(DistcamError):
            return FaissSearch.deserialise(data, spec=self.snapshot.search_spec, source=self._embeddings)
        return None

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
        from ..faiss.search import FaissSearch
        from ..faiss.tuning import settings_of

        manifest = self.snapshot.manifest
        return FaissSearch.from_source(
            self.snapshot.search_spec,
            self.snapshot.ids,
            self._embeddings,
            factory=factory,
            seed=0 if manifest.tuning is None else manifest.tuning.seed,
            settings=settings_of(manifest.tuning),
        )

    def _embeddings(self, ids: Ids | Array) -> NDArray[np.float32]:
        """Where a search index reads vectors: in the generation that is open now, whatever it was built from."""
        return self.snapshot.embeddings(ids)

    def follow(self, after: Snapshot) -> None:
        """Go on to another generation, by what came and what left."""
        before = self.snapshot
        old, new = before.manifest, after.manifest
        if (old.birth, old.spec, old.encoder.fingerprint) != (new.birth, new.spec, new.encoder.fingerprint):
            self.forget()  # somebody built it anew: ids mean other images
        if (old.index, old.tuning) != (new.index, new.tuning) or new.backend is not None:
            self.close()  # Milvus has what came, and the new generation says what of it counts
        if isinstance(self._unmade, TooFewVectorsError) and len(after) >= self._unmade.needed:
            self.close()
        self._follow_prototypes(before, after)
        self.snapshot = after
        if self._search is not None:
            self._bring_up_to_date(self._search, before.ids)

    def _follow_prototypes(self, before: Snapshot, after: Snapshot) -> None:
        store, self._prototypes = self._prototypes, None  # a failure on the way leaves none rather than half of them
        if store is None:
            return
        try:
            caches.update_prototypes(store, before=before, after=after)
            self._prototypes = store
        except CorruptGalleryError:
            if after.manifest.backend is None:
                raise
            # another writer has deleted the rows of what left from Milvus; the cache knows the outcome

    def adopt(self, search: FaissSearch, known: Ids) -> None:
        """Search with an index that was made from the images `known`."""
        self.close()
        search.read_from(self._embeddings)
        self._bring_up_to_date(search, known)
        self._search = search

    def _bring_up_to_date(self, search: Search, known: Ids) -> None:
        """Take what left out of a search index over the ids in `known`, and put in what came."""
        search.delete(np.setdiff1d(known, self.snapshot.ids, assume_unique=True))
        for ids, vectors in self.snapshot.blocks(np.flatnonzero(~np.isin(self.snapshot.ids, known))):
            search.upsert(ids, vectors.embedding)

    def store(self, writer: GalleryWriter) -> None:
        """Store prototypes, and the search index if it costs more to build than to read, as the gallery's caches."""
        snapshot = self.snapshot
        manifest = snapshot.manifest
        if not manifest.is_fresh(manifest.prototype_cache):
            writer.store_cache("prototypes", self.prototypes.save, count=len(self.prototypes))
        if not manifest.is_fresh(manifest.index_cache) and self._has_slow_index():
            from ..faiss.search import FaissSearch

            search = self.search
            assert isinstance(search, FaissSearch)
            writer.store_cache(
                "index", search.save, count=len(snapshot), tag=lambda file: caches.index_tag(snapshot, file.sha256)
            )

        if self._unmade is not None:
            reason = str(self._unmade).split(";")[0].split(", got ")[0]
            say_after_commit(
                f"{snapshot.folder}: is searched exactly for now, since no index {manifest.index} can be made of "
                f"{counted(len(snapshot), 'image')} ({reason}); `distcam index tune` chooses another"
            )

    def _has_slow_index(self) -> bool:
        manifest = self.snapshot.manifest
        if manifest.backend is not None:
            return False
        if manifest.index in ("flat", "SQfp16") or (manifest.index == "auto" and len(self.snapshot) < _FAST_INDEX):
            return False
        return self.search.is_worth_saving
