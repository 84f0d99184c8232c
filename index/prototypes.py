"""Class prototypes, kept as sums: images are added and removed without reading the others again."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ShapeError
from ..metrics.distances import Metric, SearchSpec, check_vectors, comparable, distances_to
from .storage.hdf5 import FlatFile, pack_strings, write_arrays

AnyFloats = NDArray[np.floating]
Floats = NDArray[np.float32]
Sums = NDArray[np.float64]


def unit_rows(vectors: AnyFloats) -> Sums:
    """Each row divided by its Euclidean length, in float64; a zero row stays zero."""
    rows = np.asarray(vectors, np.float64)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


class PrototypeStore:
    """Per class the sum of pooled vectors, the sum of embeddings in the space that ranks, and the number of images.

    With the cosine metric the embeddings are unit vectors before they are summed, and the mean is a unit vector again.
    All images, with a class or without, count towards the gallery's own mean. A class whose last image leaves is gone.

    Source: [Dist-CAM] Eq. 7: GAP is linear, so the pooled vector of the mean feature map is the mean pooled vector.

    >>> store = PrototypeStore(pooled_dim=2, embedding_dim=2, metric="l2")
    >>> vectors = np.array([[1.0, 0.0], [3.0, 2.0], [0.0, 5.0]])
    >>> store.add(["cat", "cat", None], vectors, vectors)
    >>> store.pooled("cat"), store.count("cat"), len(store)
    (array([2., 1.], dtype=float32), 2, 1)
    """

    def __init__(self, *, pooled_dim: int, embedding_dim: int, metric: Metric) -> None:
        self.pooled_dim = pooled_dim
        self.embedding_dim = embedding_dim
        self.metric = metric
        self._row: dict[str | None, int] = {None: 0}  # row 0 is the images without a class
        self._count = np.zeros(1, np.int64)
        self._pooled = np.zeros((1, pooled_dim))
        self._embedding = np.zeros((1, embedding_dim))
        self._magnitude: Sums | None = np.zeros(embedding_dim)  # None: sums of an earlier version

    # --- Changing ----------------------------------------------------------------------------------------------------

    def add(self, labels: Sequence[str | None], pooled: AnyFloats, embedding: AnyFloats) -> None:
        """Add images, given by raw vectors: pooled (n, K) and embedding (n, d)."""
        self._change(labels, pooled, embedding, sign=1)

    def subtract(self, labels: Sequence[str | None], pooled: AnyFloats, embedding: AnyFloats) -> None:
        """Remove images that were added with the same labels and vectors.

        Raises:
            InputError: more images of a class are removed than it has; nothing is changed then.
        """
        known = {label: int(self._count[row]) for label, row in self._row.items()}
        for label in labels:
            known[label] = known.get(label, 0) - 1
        if short := [label for label, count in known.items() if count < 0]:
            raise InputError(f"more images of {short[0]!r} are taken out than were counted in")
        self._change(labels, pooled, embedding, sign=-1)
        left = [label for label, row in self._row.items() if label is None or self._count[row]]
        rows = [self._row[label] for label in left]
        self._count, self._pooled, self._embedding = self._count[rows], self._pooled[rows], self._embedding[rows]
        self._row = {label: row for row, label in enumerate(left)}
        if not self._count[0]:  # rounding of many additions and subtractions must not outlive the images
            self._pooled[0] = self._embedding[0] = 0
        if self._magnitude is not None and not self.total:
            self._magnitude[:] = 0

    def merge(self, other: PrototypeStore) -> None:
        """Add all images of another store.

        Raises:
            InputError: the other has other dimensions, or another metric.
        """
        mine, theirs = ((one.pooled_dim, one.embedding_dim, one.metric) for one in (self, other))
        if mine != theirs:
            raise InputError(
                "prototypes of another kind: expected K={}, d={}, {}, got K={}, d={}, {}".format(*mine, *theirs)
            )
        rows = self._rows_of(list(other._row))
        self._count[rows] += other._count
        self._pooled[rows] += other._pooled
        self._embedding[rows] += other._embedding
        both = (self._magnitude, other._magnitude)
        self._magnitude = None if both[0] is None or both[1] is None else both[0] + both[1]

    def _change(self, labels: Sequence[str | None], pooled: AnyFloats, embedding: AnyFloats, *, sign: int) -> None:
        expected = ((len(labels), self.pooled_dim), (len(labels), self.embedding_dim))
        if (pooled.shape, embedding.shape) != expected:
            raise ShapeError(f"expected pooled and embedding of {expected}, got {(pooled.shape, embedding.shape)}")
        rows = self._rows_of(labels)
        np.add.at(self._count, rows, sign)
        np.add.at(self._pooled, rows, sign * np.asarray(pooled, np.float64))
        ranking = unit_rows(embedding) if self.metric == "cosine" else np.asarray(embedding, np.float64)
        np.add.at(self._embedding, rows, sign * ranking)
        if self._magnitude is not None:
            self._magnitude = (self._magnitude + sign * np.abs(ranking).sum(0)).clip(min=0)

    def _rows_of(self, labels: Sequence[str | None]) -> NDArray[np.intp]:
        """The row of each label; classes that are new get one."""
        new = [label for label in dict.fromkeys(labels) if label not in self._row]
        for label in new:
            self._row[label] = len(self._row)
        if new:
            self._count = np.concatenate([self._count, np.zeros(len(new), np.int64)])
            self._pooled = np.concatenate([self._pooled, np.zeros((len(new), self.pooled_dim))])
            self._embedding = np.concatenate([self._embedding, np.zeros((len(new), self.embedding_dim))])
        return np.array([self._row[label] for label in labels], np.intp)

    # --- Reading -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of classes."""
        return len(self._row) - 1

    def __contains__(self, label: object) -> bool:
        return label is not None and label in self._row

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in alphabetical order; the order of all arrays below."""
        return tuple(sorted(label for label in self._row if label is not None))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images per class."""
        return self._count[self._order()]

    @property
    def total(self) -> int:
        """Number of images, with a class or without."""
        return int(self._count.sum())

    def count(self, label: str) -> int:
        """Images of one class."""
        return int(self._count[self._find(label)])

    def pooled(self, label: str) -> Floats:
        """Mean pooled vector of a class, (K,)."""
        row = self._find(label)
        return np.asarray(self._pooled[row] / self._count[row], np.float32)

    def embedding(self, label: str) -> Floats:
        """Mean embedding of a class in the space that ranks, (d,); a unit vector with the cosine metric."""
        row = self._find(label)
        return self._mean(self._embedding[row], self._count[row])

    def without(self, label: str, embedding: AnyFloats) -> Floats | None:
        """Mean embedding (d,) of a class but for one image of it, given by its raw embedding; None if it is alone."""
        row = self._find(label)
        if self._count[row] < 2:
            return None
        own = unit_rows(embedding) if self.metric == "cosine" else np.asarray(embedding, np.float64)
        return self._mean(self._embedding[row] - own, self._count[row] - 1)

    def distances(self, embeddings: AnyFloats, own: Sequence[str | None] = ()) -> Sums:
        """Distances (m, c) of raw embeddings (m, d) to all classes; `own` are the labels of images that were added.

        They are measured to the mean of their class without themselves: inf where nothing is left.
        """
        spec = SearchSpec(self.embedding_dim, self.metric)
        asked, known = comparable(spec, *check_vectors(spec, embeddings)), self.all_embeddings()
        found = np.array([distances_to(spec, each, known) for each in asked]).reshape(len(asked), len(self))
        place = {label: column for column, label in enumerate(self.labels)}
        for row, label in enumerate(own):
            if label is not None:
                rest = self.without(label, embeddings[row])
                found[row, place[label]] = np.inf if rest is None else distances_to(spec, asked[row], rest[None])[0]
        return found

    def all_pooled(self) -> Floats:
        """Mean pooled vectors of all classes, (c, K)."""
        order = self._order()
        return (self._pooled[order] / self._count[order, None]).astype(np.float32)

    def all_embeddings(self) -> Floats:
        """Mean embeddings of all classes in the space that ranks, (c, d)."""
        order = self._order()
        return self._mean(self._embedding[order], self._count[order, None])

    def mean_pooled(self) -> Floats:
        """Mean pooled vector of all images, (K,); zero when there are none."""
        return np.asarray(self._pooled.sum(0) / max(1, self.total), np.float32)

    def mean_embedding(self) -> Floats:
        """Mean of all images in the space that ranks, (d,): never made a unit vector again; zero when there are none.

        This is the vector that `dot_centered` and `dist*excess` subtract, and that the ratios divide by.
        """
        return np.asarray(self._embedding.sum(0) / max(1, self.total), np.float32)

    def mean_magnitude(self) -> Floats:
        """Mean size of each number of the vectors in the space that ranks, (d,); the mean itself where none is signed.

        Sums that an earlier version wrote know the sizes of the classes' sums only, which are smaller or equal.
        """
        total = np.abs(self._embedding).sum(0) if self._magnitude is None else self._magnitude
        return np.asarray(total / max(1, self.total), np.float32)

    def _mean(self, total: Sums, count: NDArray[np.int64] | np.int64) -> Floats:
        mean = total / count
        return (unit_rows(mean) if self.metric == "cosine" else mean).astype(np.float32)

    def _order(self) -> list[int]:
        return [self._row[label] for label in self.labels]

    def _find(self, label: str) -> int:
        if label not in self:
            nearest = difflib.get_close_matches(label, self.labels, n=1)
            hint = f", did you mean {nearest[0]!r}?" if nearest else ""
            raise InputError(f"no class {label!r} among {len(self)}{hint}")
        return self._row[label]

    # --- Files -------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the sums; the caller sees to durability."""
        order = [0, *self._order()]
        write_arrays(
            path,
            {
                **pack_strings("label", self.labels),
                "counts": self._count[order],
                "pooled_sum": self._pooled[order],
                "embedding_sum": self._embedding[order],
                **({} if self._magnitude is None else {"magnitude_sum": self._magnitude}),
            },
        )

    @classmethod
    def load(cls, path: Path, *, pooled_dim: int, embedding_dim: int, metric: Metric) -> Self:
        """Read the sums; CorruptGalleryError when they do not fit together."""
        file = FlatFile(path, remedy="it is rebuilt when it is deleted")
        labels = list(file.strings("label", None))
        n = len(labels) + 1
        store = cls(pooled_dim=pooled_dim, embedding_dim=embedding_dim, metric=metric)
        store._count = file.array("counts", "<i8", (n,)).read().astype(np.int64)
        store._pooled = file.array("pooled_sum", "<f8", (n, pooled_dim)).read().astype(np.float64)
        store._embedding = file.array("embedding_sum", "<f8", (n, embedding_dim)).read().astype(np.float64)
        has_sizes = "magnitude_sum" in file.names
        store._magnitude = file.array("magnitude_sum", "<f8", (embedding_dim,)).read() if has_sizes else None
        store._row = {label: row for row, label in enumerate([None, *labels])}
        finite = np.isfinite(store._pooled).all() and np.isfinite(store._embedding).all()
        finite &= store._magnitude is None or np.isfinite(store._magnitude).all()
        if len(store._row) != n or (store._count[1:] < 1).any() or store._count[0] < 0 or not finite:
            raise file.corrupt("holds prototypes that cannot be")
        return store
