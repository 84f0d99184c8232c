"""Values that go into a gallery and come out of it: what is known about images, and their vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptGalleryError

__all__ = ["Array", "Categorical", "Entries", "Record", "Vectors", "located", "pack_maps", "stored_path", "unpack_maps"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a gallery: everything but its vectors.

    Attributes:
        id: unique in its gallery for ever; a removed image's id is not given out again.
        path: with `/`; relative to the gallery's root when the image lies under it, else absolute.
        label: the class, or None.
        columns: the user's other columns; a column in which the image has no value is left out.
    """

    id: int
    path: str
    label: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The record for JSON."""
        return {"id": self.id, "path": self.path, "label": self.label, "columns": dict(self.columns)}


@dataclass(frozen=True)
class Categorical:
    """A column of strings as codes into its distinct values; code -1 is "no value"."""

    values: tuple[str, ...]
    codes: NDArray[np.int32]

    @classmethod
    def of(cls, strings: Sequence[str | None]) -> Self:
        """Number the distinct values in alphabetical order.

        >>> Categorical.of(["dog", None, "cat", "dog"])
        Categorical(values=('cat', 'dog'), codes=array([ 1, -1,  0,  1], dtype=int32))
        """
        values = tuple(sorted({string for string in strings if string is not None}))
        number: dict[str | None, int] = {value: code for code, value in enumerate(values)}
        number[None] = -1
        return cls(values, np.array([number[string] for string in strings], np.int32))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> str | None:
        code = self.codes[index]
        return None if code < 0 else self.values[code]

    def strings(self) -> list[str | None]:
        """The column as a list."""
        known: tuple[str | None, ...] = (*self.values, None)  # code -1 is the last
        return [known[code] for code in self.codes]


@dataclass(frozen=True)
class Entries:
    """What is stored about n images besides their vectors."""

    ids: NDArray[np.uint64]
    paths: list[str]
    sha256: NDArray[np.uint8]  # (n, 32), of the image file
    size: NDArray[np.uint64]  # of the image file, in bytes
    mtime_ns: NDArray[np.int64]
    columns: Mapping[str, list[str | None]]  # "label" is one of them

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Array) -> Self:
        """The entries of some rows."""
        numbers = rows.tolist()
        return type(self)(
            ids=self.ids[rows],
            paths=[self.paths[row] for row in numbers],
            sha256=self.sha256[rows],
            size=self.size[rows],
            mtime_ns=self.mtime_ns[rows],
            columns={name: [values[row] for row in numbers] for name, values in self.columns.items()},
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All parts in order; a column that a part does not have is empty there."""
        names = dict.fromkeys(name for part in parts for name in part.columns)
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            paths=[path for part in parts for path in part.paths],
            sha256=np.concatenate([part.sha256 for part in parts]),
            size=np.concatenate([part.size for part in parts]),
            mtime_ns=np.concatenate([part.mtime_ns for part in parts]),
            columns={
                name: [value for part in parts for value in part.columns.get(name, [None] * len(part))]
                for name in names
            },
        )


@dataclass(frozen=True)
class Vectors:
    """What an encoder said about n images: raw vectors, and feature maps when they are kept.

    `embedding` is `pooled` itself when the encoder's head changes nothing; it is stored once then.
    """

    pooled: NDArray[np.float32]  # (n, K)
    embedding: NDArray[np.float32]  # (n, d)
    maps: NDArray[np.float16] | None = None  # (n, K, h, w), each image divided by its map_scale
    map_scale: NDArray[np.float32] | None = None  # (n,)

    def __len__(self) -> int:
        return len(self.pooled)

    def take(self, rows: Array) -> Self:
        """The vectors and maps of some rows."""
        pooled = self.pooled[rows]
        embedding = pooled if self.embedding is self.pooled else self.embedding[rows]
        maps = None if self.maps is None else self.maps[rows]
        return type(self)(pooled, embedding, maps, None if self.map_scale is None else self.map_scale[rows])

    @property
    def nbytes(self) -> int:
        """Memory the vectors take, in bytes."""
        own = self.pooled.nbytes + (0 if self.embedding is self.pooled else self.embedding.nbytes)
        return own + (0 if self.maps is None else self.maps.nbytes)


def pack_maps(maps: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Feature maps (n, K, h, w) in half precision, each image scaled so that its largest magnitude is 2¹⁵.

    Half precision keeps 11 bits between 6e-5 and 65504: scaling to the top keeps the small activations too.
    """
    largest = np.abs(maps).reshape(len(maps), -1).max(axis=1)
    scale = np.where(largest > 0, largest / 32768, 1).astype(np.float32)
    return (maps / scale[:, None, None, None]).astype(np.float16), scale


def unpack_maps(maps: NDArray[np.float16], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The maps that `pack_maps` packed, within half precision."""
    return np.asarray(maps.astype(np.float32) * scale[:, None, None, None], np.float32)


def stored_path(file: str | os.PathLike[str], root: Path) -> str:
    """The path under which a gallery knows a file: with `/`, relative to `root` when it lies under it, else absolute.

    Names of links stay as the user gave them, except that a root reached by two names still counts as one.

    >>> stored_path("/photos/cat/1.jpg", Path("/photos"))
    'cat/1.jpg'
    """
    path = Path(os.path.abspath(file))  # noqa: PTH100 (no resolve(): it would follow links)
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    real, real_root = path.parent.resolve() / path.name, root.resolve()
    return real.relative_to(real_root).as_posix() if real.is_relative_to(real_root) else path.as_posix()


def located(path: str, root: Path) -> Path:
    """Where the file behind a stored path lies.

    Raises:
        CorruptGalleryError: a relative path leads out of the root, as none that distcam stores does.
    """
    if not Path(path).is_absolute() and ".." in Path(path).parts:
        raise CorruptGalleryError(f"the stored path {path!r} leads out of {root}; build the gallery again")
    return root / path
