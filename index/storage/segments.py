"""A segment: one immutable file with the vectors of some images and everything known about them.

Arrays of a segment of n images (K = pooled, d = embedding, h × w = feature map):

    id u64 (n)                pooled f32 (n, K)           embedding f32 (n, d), unless it is the pooled vector
    sha256 u8 (n, 32)         size u64 (n)                mtime_ns i64 (n)             of the image files
    path_*                    strings                     column_names_*               strings; the first is "label"
    column_<i>_codes i32 (n)  -1 is "no value"            column_<i>_values_*          strings
    maps f16 (n, K, h, w)     map_scale f32 (n)           both only when maps are kept
    about_*                   one string of JSON, only in files that stand alone (`encodings.py`)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Self

from ...files import REMEDY
from . import hdf5 as flatfile
from .hdf5 import FlatFile, Layout, StoredArray, Strings, pack_strings
from .manifest import FileEntry, Spec
from .records import Array, Categorical, Entries, Vectors, unpack_maps

__all__ = ["MAX_COLUMNS", "Segment", "write_segment"]

MAX_COLUMNS = 512  # "path", which every table has, is one of them
_FIXED = {"id", "pooled", "sha256", "size", "mtime_ns", "path_blob", "path_offsets"} | {
    "column_names_blob",
    "column_names_offsets",
}
_COLUMN = re.compile(r"column_(\d{1,3})_(codes|values_blob|values_offsets)")
_FILE_STATES: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("sha256", "|u1", (32,)),
    ("size", "<u8", ()),
    ("mtime_ns", "<i8", ()),
)
_OPTIONAL = {"embedding", "maps", "map_scale", "about_blob", "about_offsets"}


def write_segment(
    path: Path, entries: Entries, vectors: Iterable[Vectors], *, spec: Spec, about: str | None = None
) -> None:
    """Write a segment file; making it durable and known is the caller's business.

    Args:
        path: the new file.
        entries: what is known about the images.
        vectors: their vectors in the same order, in blocks of any size: never all of them in memory.
        spec: what the gallery's segments have in common.
        about: JSON to put into a file that stands alone.
    """
    small = _describe(entries)
    if about is not None:
        small |= pack_strings("about", [about])
    layouts = {name: Layout(array.dtype.str, array.shape) for name, array in small.items()}
    with flatfile.create(path, layouts | _vector_layouts(len(entries), spec)) as datasets:
        for name, array in small.items():
            if array.size:
                datasets[name][...] = array
        start = 0
        for block in vectors:
            stop = start + len(block)
            for name, array in _vector_arrays(block, spec).items():
                datasets[name][start:stop] = array
            start = stop
        assert start == len(entries), "as many vectors as entries"


def _describe(entries: Entries) -> dict[str, Array]:
    names = ["label", *(name for name in entries.columns if name != "label")]
    arrays: dict[str, Array] = {
        "id": entries.ids.astype("<u8"),
        "sha256": entries.sha256,
        "size": entries.size.astype("<u8"),
        "mtime_ns": entries.mtime_ns.astype("<i8"),
        **pack_strings("path", entries.paths),
        **pack_strings("column_names", names),
    }
    for number, name in enumerate(names):
        column = Categorical.of(entries.columns.get(name, [None] * len(entries)))
        arrays[f"column_{number}_codes"] = column.codes.astype("<i4")
        arrays |= pack_strings(f"column_{number}_values", column.values)
    return arrays


def _vector_layouts(count: int, spec: Spec) -> dict[str, Layout]:
    layouts = {"pooled": Layout("<f4", (count, spec.pooled_dim))}
    if not spec.embedding_is_pooled:
        layouts["embedding"] = Layout("<f4", (count, spec.embedding_dim))
    if spec.map_shape:
        layouts["maps"] = Layout("<f2", (count, spec.pooled_dim, *spec.map_shape))
        layouts["map_scale"] = Layout("<f4", (count,))
    return layouts


def _vector_arrays(block: Vectors, spec: Spec) -> dict[str, Array]:
    arrays: dict[str, Array] = {"pooled": block.pooled}
    if not spec.embedding_is_pooled:
        arrays["embedding"] = block.embedding
    if spec.map_shape:
        assert block.maps is not None
        assert block.map_scale is not None
        arrays |= {"maps": block.maps, "map_scale": block.map_scale}
    return arrays


class Segment:
    """A segment file, checked as far as its headers say; contents are read when asked for.

    Args:
        path: the file.
        spec: what the gallery says of all its segments.
        count: how many images the gallery says are in it; None takes the file's word.
        remedy: what a user can do about a damaged file.
        sha256: what the gallery says of its contents; looked at when the file is written to while it is open.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptGalleryError: it is damaged, or not what the gallery says it is.
    """

    def __init__(
        self, path: Path, *, spec: Spec, count: int | None = None, remedy: str = REMEDY, sha256: str | None = None
    ) -> None:
        self.file = file = FlatFile(path, remedy=remedy, sha256=sha256)
        self.spec = spec
        unknown = {name for name in file.names - _FIXED - _OPTIONAL if not _COLUMN.fullmatch(name)}
        if unknown:
            raise file.corrupt(f"holds {', '.join(sorted(unknown))}, which no segment has")
        self.stored_ids = file.array("id", "<u8", (count,))
        n = len(self.stored_ids)
        self.pooled = file.array("pooled", "<f4", (n, spec.pooled_dim))
        self.embedding = self.pooled
        if not spec.embedding_is_pooled:
            self.embedding = file.array("embedding", "<f4", (n, spec.embedding_dim))
        self.paths: Strings = file.strings("path", n)
        self._maps: StoredArray | None = None
        self._map_scale: StoredArray | None = None
        if spec.map_shape:
            self._maps = file.array("maps", "<f2", (n, spec.pooled_dim, *spec.map_shape))
            self._map_scale = file.array("map_scale", "<f4", (n,))
        for name, dtype, width in _FILE_STATES:
            file.array(name, dtype, (n, *width))

    @classmethod
    def of(cls, folder: Path, entry: FileEntry, spec: Spec) -> Self:
        """A segment of a gallery, as its manifest names it."""
        return cls(folder / entry.name, spec=spec, count=entry.count, sha256=entry.sha256)

    def __len__(self) -> int:
        return len(self.stored_ids)

    @property
    def ids(self) -> Array:
        """The ids, read anew each time: what is open keeps no memory for every image of every file."""
        return self.stored_ids.read()

    @cached_property
    def sha256(self) -> Array:
        """The checksums of the image files, (n, 32); kept once they were asked for, like the next two."""
        return self.file.array("sha256", "|u1", (len(self), 32)).read()

    @cached_property
    def size(self) -> Array:
        """The lengths of the image files, in bytes."""
        return self.file.array("size", "<u8", (len(self),)).read()

    @cached_property
    def mtime_ns(self) -> Array:
        """When the image files were changed, in ns."""
        return self.file.array("mtime_ns", "<i8", (len(self),)).read()

    @property
    def about(self) -> str | None:
        """The JSON of a file that stands alone."""
        return self.file.strings("about", 1)[0] if "about_blob" in self.file.names else None

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
        """What is known about the images in these rows."""
        return Entries(
            ids=self.stored_ids[rows],
            paths=self.paths.take(rows),
            sha256=self.sha256[rows],
            size=self.size[rows],
            mtime_ns=self.mtime_ns[rows],
            columns={name: Categorical(c.values, c.codes[rows]).strings() for name, c in self.columns.items()},
        )

    def vectors(self, rows: Array) -> Vectors:
        """The vectors and packed maps of these rows, copied."""
        pooled = self.pooled[rows]
        return Vectors(
            pooled=pooled,
            embedding=pooled if self.spec.embedding_is_pooled else self.embedding[rows],
            maps=None if self._maps is None else self._maps[rows],
            map_scale=None if self._map_scale is None else self._map_scale[rows],
        )

    def maps(self, rows: Array) -> Array:
        """The feature maps of these rows, float32 (n, K, h, w); only for galleries that keep them."""
        assert self._maps is not None
        assert self._map_scale is not None
        return unpack_maps(self._maps[rows], self._map_scale[rows])
