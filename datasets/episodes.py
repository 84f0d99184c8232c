"""Episodes as a value: items of support and query by number and by name, hashed, checked, and stored for replay."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, ShapeError
from ..files import read_hdf5, write_hdf5

FORMAT = "distcam-episodes/1"

T = TypeVar("T")
Names = NDArray[np.str_]
Indices = NDArray[np.int32]
Numbers = NDArray[np.int64]


class NamedItems:
    """Items with unique names and the names of their classes."""

    names: Names
    labels: Names

    def __post_init__(self) -> None:
        for what in ("names", "labels"):
            object.__setattr__(self, what, as_names(getattr(self, what), what))
        check_items(self.names, self.labels)

    @cached_property
    def class_names(self) -> Names:
        """The C class names in code-point order; `class_of` numbers them."""
        return np.unique(self.labels)

    @cached_property
    def class_of(self) -> Numbers:
        """Class number of each item, (n,)."""
        number: Numbers = np.searchsorted(self.class_names, self.labels)
        return number

    @cached_property
    def split_hash(self) -> str:
        """sha256 over the (name, label) pairs sorted by name: the same whatever the order of the items."""
        order = np.argsort(self.names)
        pairs = zip(self.names[order].tolist(), self.labels[order].tolist(), strict=True)
        return hashlib.sha256(json.dumps(list(pairs)).encode()).hexdigest()


@dataclass(frozen=True, eq=False, repr=False)
class EpisodeManifest(NamedItems):
    """E episodes over n named, labelled items; two manifests are the same when their `content_hash` is.

    The hash covers what is in the episodes, not how they were drawn or in which order the items are listed. Queries are
    a flat list per episode, class by class when they were sampled; `target` says which way each belongs to.

    Attributes:
        names: unique names of the n items, in the order of the feature rows.
        labels: class name of each item; any strings, not numbers from 0.
        support: item numbers (E, N, K); `support[e, i]` are the K images of way i, all of one class.
        query: item numbers (E, M), M = N·Q; each of a class of its episode, none of them also in the support.
        origin: how the list came about, for instance generator and seed; for the reader only.

    Raises:
        InputError: the arrays are no valid episodes; the message names the episode and the item.
    """

    names: Names
    labels: Names
    support: Indices
    query: Indices
    origin: Mapping[str, Any] = field(default_factory=lambda: {"generator": "given"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, n_axes in (("support", 3), ("query", 2)):
            array = np.asarray(getattr(self, name))
            if array.ndim != n_axes or not array.size or array.dtype.kind not in "iu":
                got = f"{array.dtype} of shape {array.shape}"
                raise ShapeError(f"{name} must hold item numbers in {n_axes} non-empty axes, got {got}")
            if array.min() < 0 or array.max() >= len(self.names):
                raise InputError(f"{name} refers to items outside 0…{len(self.names) - 1}")
            object.__setattr__(self, name, array.astype(np.int32))  # a copy
        support, query, class_of, names = self.support, self.query, self.class_of, self.names
        if len(support) != len(query) or query.shape[1] % support.shape[1] or support.shape[1] < 2:
            got = f"{support.shape} and {query.shape}"
            raise ShapeError(f"expected support (E, N ≥ 2, K) and query (E, N·Q), got {got}")
        if (mixed := (class_of[support] != self.ways[:, :, None]).any((1, 2))).any():
            raise InputError(f"episode {mixed.argmax()}: the support images of a way must all be of one class")
        if (twice := (np.diff(np.sort(self.ways)) == 0).any(1)).any():
            raise InputError(f"episode {twice.argmax()}: two ways are the same class")
        if (foreign := class_of[query] != np.take_along_axis(self.ways, self.target, 1)).any():
            episode, column = np.argwhere(foreign)[0]
            item = query[episode, column]
            raise InputError(f"episode {episode}: query {str(names[item])!r} is of no class of its episode")
        used = np.sort(np.concatenate([support.reshape(len(support), -1), query], axis=1))
        if (repeated := np.diff(used) == 0).any():
            episode, column = np.argwhere(repeated)[0]
            item = used[episode, column]
            overlap = "in support and query" if item in support[episode] and item in query[episode] else "twice"
            raise InputError(f"episode {episode}: {str(names[item])!r} is {overlap}; an image may be used once")

    @property
    def summary(self) -> str:
        """The episodes in one line."""
        queries = f"{self.n_query} queries per class{'' if self.is_balanced else ' on average'}"
        return (
            f"{self.n_way}-way {self.n_shot}-shot, {queries}, {self.n_episodes} episodes of "
            f"{len(self.class_names)} classes, manifest {self.content_hash[:12]}"
        )

    def __repr__(self) -> str:
        return f"EpisodeManifest({self.summary})"

    @property
    def n_episodes(self) -> int:
        """Number of episodes, E."""
        return len(self.support)

    @property
    def n_way(self) -> int:
        """Classes in an episode, N."""
        return int(self.support.shape[1])

    @property
    def n_shot(self) -> int:
        """Support images of each class, K."""
        return int(self.support.shape[2])

    @property
    def n_query(self) -> int:
        """Query images per class, Q; with Dirichlet queries the mean over an episode's classes."""
        return int(self.query.shape[1]) // self.n_way

    @cached_property
    def ways(self) -> Numbers:
        """Class number of each way, (E, N)."""
        return self.class_of[self.support[:, :, 0]]

    @cached_property
    def target(self) -> Numbers:
        """Way each query belongs to, in 0…N−1, (E, M)."""
        target: Numbers = (self.class_of[self.query][:, :, None] == self.ways[:, None, :]).argmax(-1)
        return target

    @property
    def is_balanced(self) -> bool:
        """True if every class of every episode has equally many queries, listed class by class."""
        return bool((self.target == np.arange(self.query.shape[1]) // self.n_query).all())

    @property
    def queries_by_class(self) -> Indices:
        """Balanced queries as (E, N, Q); refused for unbalanced ones."""
        if not self.is_balanced:
            raise InputError("the classes have different numbers of queries; use the flat `query` with `target`")
        return self.query.reshape(self.n_episodes, self.n_way, self.n_query)

    @cached_property
    def content_hash(self) -> str:
        """sha256 over format, split and episodes; item numbers are counted in the order of the names."""
        digest = hashlib.sha256(f"{FORMAT} {self.split_hash} {self.support.shape} {self.query.shape}".encode())
        rank = np.argsort(np.argsort(self.names)).astype("<i4")
        digest.update(rank[self.support].tobytes())
        digest.update(rank[self.query].tobytes())
        return digest.hexdigest()

    def rows_in(self, names: ArrayLike | Sequence[object]) -> Numbers:
        """Row of each of the manifest's items in another listing, in any order; InputError counts the missing ones."""
        row = {name: i for i, name in enumerate(as_names(names, "names").tolist())}
        missing = [name for name in self.names.tolist() if name not in row]
        if missing:
            raise InputError(
                f"{len(missing)} of the manifest's {len(self.names)} items are not in the listing, "
                f"the first is {missing[0]!r}; extract features of the split that the manifest was made from"
            )
        return np.array([row[name] for name in self.names.tolist()])

    def batch_sampler(self) -> list[list[int]]:
        """Item numbers of each episode, class by class: K support images, then Q queries.

        Pass it as `DataLoader(dataset, batch_sampler=...)`; easyfsl's collate function expects this order.
        """
        by_class = np.concatenate([self.support, self.queries_by_class], axis=2)
        return [[int(i) for i in episode] for episode in by_class.reshape(self.n_episodes, -1)]

    def describe(self) -> dict[str, Any]:
        """Settings, origin and hashes, enough to repeat the episodes; JSON-able."""
        sizes = {name: getattr(self, name) for name in ("n_way", "n_shot", "n_query", "n_episodes")}
        hashes = {"split_hash": self.split_hash, "content_hash": self.content_hash}
        return {"format": FORMAT, **sizes, "n_classes": len(self.class_names), "origin": dict(self.origin), **hashes}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest as one HDF5 file; it appears complete or not at all."""
        write_hdf5(path, self.write)

    def write(self, group: h5py.Group) -> None:
        """Write the manifest into an open HDF5 group."""
        group.attrs["manifest"] = json.dumps(self.describe())
        for name in ("names", "labels"):
            encoded = [text.encode("utf-8", "surrogateescape") for text in getattr(self, name).tolist()]
            group.create_dataset(name, data=encoded, dtype=h5py.string_dtype())
        for name in ("support", "query"):
            group.create_dataset(name, data=getattr(self, name), compression="gzip", shuffle=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EpisodeManifest:
        """Read what `save` wrote; InputError if the file is missing, of another format, or does not have its hash."""
        return read_hdf5(path, "an episode manifest", cls.read)

    @classmethod
    def read(cls, group: h5py.Group) -> EpisodeManifest:
        """Read a manifest from an open HDF5 group."""
        header = json.loads(group.attrs["manifest"])
        if header["format"] != FORMAT:
            raise InputError(f"episode manifest has format {header['format']!r}, this version reads {FORMAT!r}")
        names, labels = (
            np.array([text.decode("utf-8", "surrogateescape") for text in group[name][()]], dtype=np.str_)
            for name in ("names", "labels")
        )
        manifest = cls(names, labels, group["support"][()], group["query"][()], header["origin"])
        if manifest.content_hash != header["content_hash"]:
            raise InputError("episode manifest does not match its own hash: the file was changed after it was written")
        return manifest


def as_names(values: ArrayLike | Sequence[object], what: str) -> Names:
    """One-dimensional names from whatever a user holds: strings, numbers, a tensor."""
    listed = values.tolist() if hasattr(values, "tolist") else list(values)  # type: ignore[arg-type]
    if not isinstance(listed, list) or any(isinstance(value, list | tuple) for value in listed[:1]):
        raise ShapeError(f"{what} must be one value per item, got {type(values).__name__} with more or fewer axes")
    if not listed:
        raise InputError(f"{what} are empty; episodes need at least two classes")
    absent = [row for row, value in enumerate(listed) if value is None or value != value]
    if absent:
        raise InputError(f"{len(absent)} of {len(listed)} {what} are missing, the first in row {absent[0]}")
    return np.array([str(value) for value in listed], dtype=np.str_)


def check_items(names: Names, labels: Names) -> None:
    """Refuse names that do not belong to labels one by one, or that are not unique."""
    if len(names) != len(labels):
        raise ShapeError(f"names and labels must belong together, got {len(names)} names and {len(labels)} labels")
    unique, count = np.unique(names, return_counts=True)
    if len(unique) < len(names):
        raise InputError(f"names must be unique, {str(unique[count > 1][0])!r} occurs {count.max()} times")
