"""The nearest others of every image of a gallery, searched in blocks: the start of every question about the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...metrics.distances import SearchSpec
from ..faiss.factory import list_count
from ..search import Searcher

if TYPE_CHECKING:
    from ...progress import Progress
    from ..reader import GalleryReader
    from ..storage.snapshot import Snapshot

K = 20
EXACT_UP_TO = 30_000  # images; beyond, exact search of all by all takes longer than an inverted file with its training
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest images of a gallery to each image of it, without itself, or to each of another gallery.

    Attributes:
        places: of the neighbours in the gallery, nearest first, (n, k); −1 where there are no more.
        distances: to them, (n, k); inf where there are no more. Cosine distances where the gallery ranks by dot.
        recall: share of the true ten nearest that the search finds, see `Snapshot.recall`.
    """

    places: NDArray[np.int32]
    distances: NDArray[np.float32]
    recall: float = 1.0

    @classmethod
    def of(
        cls, gallery: GalleryReader, *, of: Snapshot | None = None, k: int = K, progress: Progress | None = None
    ) -> Neighbours:
        """Search a gallery for all of its images, or for those `of` another of the same encoder."""
        snapshot, asked = gallery.snapshot, of or gallery.snapshot
        if len(snapshot) < 2:
            raise InputError(f"{gallery.folder} holds {len(snapshot)} images; expected two at least to compare")
        searcher, recall = _searcher(gallery)
        own = int(of is None)
        places = np.full((len(asked), k), -1, np.int32)
        distances = np.full((len(asked), k), np.inf, np.float32)
        row = 0
        for ids, vectors in asked.blocks(block_bytes=_BLOCK_BYTES):
            for number, hits in zip(ids, searcher.search(vectors.embedding, k + own), strict=True):
                others = slice(None) if of is not None else hits.ids != number
                found = hits.ids[others][:k]
                places[row, : len(found)] = np.searchsorted(snapshot.ids, found)
                distances[row, : len(found)] = hits.distances[others][:k]
                row += 1
            if progress is not None:
                progress(row, len(asked))
        return cls(places, distances, recall)

    def __len__(self) -> int:
        """Number of images that were asked for."""
        return len(self.places)

    @property
    def farthest(self) -> NDArray[np.float32]:
        """Distance of the last neighbour that there is, (n,): how dense the images lie there."""
        found: NDArray[np.float32] = np.where(np.isfinite(self.distances), self.distances, 0).max(1)
        return found

    def values(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        """The neighbours' codes, (n, k); −1 where there are no more."""
        return np.where(self.places < 0, np.int32(-1), codes[self.places])


def _searcher(gallery: GalleryReader) -> tuple[Searcher, float]:
    """The gallery's own search; of a large flat one, and of one that ranks by dot, another over the same vectors."""
    from ..faiss.search import FaissSearch

    snapshot, spec = gallery.snapshot, gallery.snapshot.search_spec
    is_flat = gallery.manifest.index in ("auto", "flat") and not snapshot.is_remote
    is_large = is_flat and len(snapshot) > EXACT_UP_TO and spec.metric != "l1"
    if spec.metric != "dot" and not is_large:
        return gallery.searcher, snapshot.recall
    spec = SearchSpec(spec.dim, "cosine" if spec.metric == "dot" else spec.metric)
    factory = f"IVF{list_count(len(snapshot)) // 2},Flat" if len(snapshot) > EXACT_UP_TO else "flat"
    search = FaissSearch.from_source(spec, snapshot.ids, snapshot.embeddings, factory=factory)
    return search, float(search.description.get("recall_at_10", 1.0))
