"""The images of a gallery and their vectors, and the segment: one immutable file with some of them.

Arrays of a segment of n images (K = pooled, d = embedding, h × w = feature map):

    id u64 (n)                pooled f32 (n, K)           embedding f32 (n, d), unless it is the pooled vector
    sha256 u8 (n, 32)         size u64 (n)                mtime_ns i64 (n)             of the image files
    path_*                    strings                     column_names_*               strings; the first is "label"
    column_<i>_codes i32 (n)  -1 is "no value"            column_<i>_values_*          strings
    maps f16 (n, K, h, w)     map_scale f32 (n)           both only when maps are kept
    fine f16 (n, c, u, v)     fine_scale f32 (n)          both only when fine maps are kept
    about_*                   one string of JSON, only in files that stand alone (`encodings.py`)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptGalleryError
from ...files import REMEDY
from ..filters.matching import Categorical
from . import hdf5
from .hdf5 import Array, ArrayLayout, FlatFile, StoredArray, Strings, pack_strings
from .manifest import FileEntry, Spec

MASK_COLUMN, NO_MASK = "mask", "none"
BLOCK_BYTES = 16 << 20
MAX_COLUMNS = 512  # "path", which every table has, is one of them
_KNOWN = re.compile(
    r"id|pooled|embedding|maps|map_scale|fine|fine_scale|sha256|size|mtime_ns|(path|about|column_names)_(blob|offsets)"
    r"|column_\d{1,3}_(codes|values_blob|values_offsets)"
)
_FILE_STATES: dict[str, tuple[str, tuple[int, ...]]] = {
    "sha256": ("|u1", (32,)),
    "size": ("<u8", ()),
    "mtime_ns": ("<i8", ()),
}
_PLAIN = ("ids", *_FILE_STATES)


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
class Entries:
    """Paths, columns and file states of n images: all that is stored but their vectors."""

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
        paths = [self.paths[row] for row in numbers]
        columns = {name: [values[row] for row in numbers] for name, values in self.columns.items()}
        return type(self)(**{name: getattr(self, name)[rows] for name in _PLAIN}, paths=paths, columns=columns)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All parts in order; a column that a part does not have is empty there."""
        names = dict.fromkeys(name for part in parts for name in part.columns)
        columns = {
            name: [value for part in parts for value in part.columns.get(name, [None] * len(part))] for name in names
        }
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _PLAIN}
        return cls(**arrays, paths=[path for part in parts for path in part.paths], columns=columns)


@dataclass(frozen=True)
class RowVectors:
    """The encodings of n images: raw vectors, and feature maps when they are kept.

    `embedding` is `pooled` itself when the encoder's head changes nothing; it is stored once then.
    """

    pooled: NDArray[np.float32]  # (n, K)
    embedding: NDArray[np.float32]  # (n, d)
    maps: NDArray[np.float16] | None = None  # (n, K, h, w), each image divided by its map_scale
    map_scale: NDArray[np.float32] | None = None  # (n,)
    fine: NDArray[np.float16] | None = None  # (n, c, u, v), likewise
    fine_scale: NDArray[np.float32] | None = None  # (n,)
    border: NDArray[np.float32] | None = None  # (n, d) for the gallery's background; on their way in only, not stored

    def __len__(self) -> int:
        return len(self.pooled)

    @property
    def nbytes(self) -> int:
        """Memory that what is stored takes, in bytes."""
        own = self.pooled.nbytes + (0 if self.embedding is self.pooled else self.embedding.nbytes)
        return own + sum(maps.nbytes for maps in (self.maps, self.fine) if maps is not None)

    def take(self, rows: Array) -> Self:
        """The vectors of some rows, copied."""
        taken: dict[int, Any] = {id(array): None if array is None else array[rows] for array in vars(self).values()}
        return type(self)(*(taken[id(array)] for array in vars(self).values()))


def pack_maps(maps: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Feature maps (n, K, h, w) in half precision, each scaled to at most 2¹⁵, which keeps small activations too."""
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
    """The place of the file behind a stored path."""
    if not Path(path).is_absolute() and ".." in Path(path).parts:
        raise CorruptGalleryError(f"the stored path {path!r} leads out of {root}; build the gallery again")
    return root / path


def is_as_before(file: str, size: int, mtime_ns: int) -> bool:
    """True for a file of this size and time of change; of one that is gone, whoever reads it will say so."""
    try:
        status = os.stat(file)  # noqa: PTH116 (one call, no object)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (size, mtime_ns)


def write_segment(
    path: Path, entries: Entries, vectors: Iterable[RowVectors], *, spec: Spec, about: str | None = None
) -> None:
    """Write a segment file, from blocks of vectors of any size; the caller makes it durable and known."""
    names = ["label", *(name for name in entries.columns if name != "label")]
    small: dict[str, Array] = {
        "id": entries.ids.astype("<u8"),
        "sha256": entries.sha256,
        "size": entries.size.astype("<u8"),
        "mtime_ns": entries.mtime_ns.astype("<i8"),
        **pack_strings("path", entries.paths),
        **pack_strings("column_names", names),
    }
    for number, name in enumerate(names):
        column = Categorical.of(entries.columns.get(name, [None] * len(entries)))
        small[f"column_{number}_codes"] = column.codes.astype("<i4")
        small |= pack_strings(f"column_{number}_values", column.values)
    if about is not None:
        small |= pack_strings("about", [about])
    count = len(entries)
    layouts = {name: ArrayLayout(array.dtype.str, array.shape) for name, array in small.items()}
    large = _vector_layouts(spec, count)
    with hdf5.create(path, layouts | large) as datasets:
        for name, array in small.items():
            if array.size:
                datasets[name][...] = array
        start = 0
        for block in vectors:
            stop = start + len(block)
            for name in large:
                datasets[name][start:stop] = getattr(block, name)
            start = stop
        assert start == count, "as many vectors as entries"


def _vector_layouts(spec: Spec, count: int) -> dict[str, ArrayLayout]:
    """The stored arrays of the vectors of so many images, by their names in `RowVectors`."""
    layouts = {"pooled": ArrayLayout("<f4", (count, spec.pooled_dim))}
    if not spec.embedding_is_pooled:
        layouts["embedding"] = ArrayLayout("<f4", (count, spec.embedding_dim))
    if spec.map_shape:
        layouts["maps"] = ArrayLayout("<f2", (count, spec.pooled_dim, *spec.map_shape))
        layouts["map_scale"] = ArrayLayout("<f4", (count,))
    if spec.fine_shape:
        layouts["fine"] = ArrayLayout("<f2", (count, *spec.fine_shape))
        layouts["fine_scale"] = ArrayLayout("<f4", (count,))
    return layouts


class Segment:
    """A segment file, checked as far as its headers say; contents are read when asked for."""

    def __init__(
        self, path: Path, *, spec: Spec, count: int | None = None, remedy: str = REMEDY, sha256: str | None = None
    ) -> None:
        self.file = file = FlatFile(path, remedy=remedy, sha256=sha256)
        self.spec = spec
        if unknown := {name for name in file.names if not _KNOWN.fullmatch(name)}:
            raise file.corrupt(f"holds {', '.join(sorted(unknown))}, which no segment has")
        self.stored_ids = file.array("id", "<u8", (count,))
        n = len(self.stored_ids)
        self._stored: Any = {name: file.array(name, *layout) for name, layout in _vector_layouts(spec, n).items()}
        self.pooled: StoredArray = self._stored["pooled"]
        self.embedding: StoredArray = self._stored.setdefault("embedding", self.pooled)
        self.paths: Strings = file.strings("path", n)
        states = _FILE_STATES.items()
        self._stored_states = {name: file.array(name, dtype, (n, *width)) for name, (dtype, width) in states}

    @classmethod
    def of(cls, folder: Path, entry: FileEntry, spec: Spec) -> Segment:
        """A segment of a gallery, as its manifest names it: the open one, unless its file was touched."""
        key = (folder / entry.name, entry, spec)
        if (segment := _in_use.get(key)) is None or not segment.file.file.is_current:
            segment = _in_use[key] = cls(key[0], spec=spec, count=entry.count, sha256=entry.sha256)
        return segment

    def __len__(self) -> int:
        return len(self.stored_ids)

    @property
    def ids(self) -> Array:
        """The ids, read anew each time: what is open keeps no memory for every image of every file."""
        return self.stored_ids.read()

    @cached_property
    def file_states(self) -> dict[str, Array]:
        """Checksums (n, 32), lengths in bytes and times of change in ns of the image files; kept once asked for."""
        return {name: stored.read() for name, stored in self._stored_states.items()}

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """The label and the names of the user's columns."""
        names = tuple(self.file.strings("column_names", None))
        if names[:1] != ("label",) or len(set(names)) != len(names) or len(names) > MAX_COLUMNS:
            raise self.file.corrupt("column names are not unique, or too many, or do not begin with the label")
        return names

    @cached_property
    def columns(self) -> dict[str, Categorical]:
        """All columns by name; kept once they were asked for."""
        return {name: self.column(name) for name in self.column_names}

    def column(self, name: str) -> Categorical:
        """One column, which must be there."""
        number = self.column_names.index(name)
        codes = self.file.array(f"column_{number}_codes", "<i4", (len(self),)).read()
        values = tuple(self.file.strings(f"column_{number}_values", None))
        if len(codes) and (codes.min() < -1 or codes.max() >= len(values)):
            raise self.file.corrupt(f"column_{number}_codes point outside their values")
        return Categorical(values, codes)

    def entries(self, rows: Array) -> Entries:
        """The entries of the images in these rows."""
        return Entries(
            ids=self.stored_ids[rows],
            paths=self.paths.take(rows),
            **{name: array[rows] for name, array in self.file_states.items()},
            columns={name: Categorical(c.values, c.codes[rows]).strings() for name, c in self.columns.items()},
        )

    def vectors(self, rows: Array) -> RowVectors:
        """The vectors and packed maps of these rows, copied."""
        return RowVectors(**self._stored).take(rows)

    def maps(self, rows: Array) -> Array:
        """The feature maps of these rows, float32 (n, K, h, w); only for galleries that keep them."""
        return unpack_maps(self._stored["maps"][rows], self._stored["map_scale"][rows])

    def fine_maps(self, rows: Array) -> Array:
        """The fine maps of these rows, float32 (n, c, u, v); only for galleries that keep them."""
        return unpack_maps(self._stored["fine"][rows], self._stored["fine_scale"][rows])

    def blocks(self, rows: Array) -> Iterator[RowVectors]:
        """The vectors and packed maps of these rows, a bounded number of bytes at a time."""
        step = max(1, BLOCK_BYTES // max(1, self.file.bytes // max(1, len(self))))
        for start in range(0, len(rows), step):
            yield self.vectors(rows[start : start + step])


_in_use: WeakValueDictionary[tuple[Path, FileEntry, Spec], Segment] = WeakValueDictionary()
