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
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from . import flatfile
from .flatfile import FlatFile, Layout, Strings, pack_strings
from .manifest import REMEDY, Spec
from .rows import Array, Categorical, Entries, Vectors, unpack_maps

__all__ = ["MAX_COLUMNS", "Segment", "write_segment"]

MAX_COLUMNS = 512  # "path", which every table has, is one of them
_FIXED = {"id", "pooled", "sha256", "size", "mtime_ns", "path_blob", "path_offsets"} | {
    "column_names_blob",
    "column_names_offsets",
}
_COLUMN = re.compile(r"column_(\d{1,3})_(codes|values_blob|values_offsets)")
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
    """A segment file, mapped into memory and checked as far as its headers say; contents are read when asked for.

    Args:
        path: the file.
        spec: what the gallery says of all its segments.
        count: how many images the gallery says are in it; None takes the file's word.
        remedy: what a user can do about a damaged file.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptGalleryError: it is damaged, or not what the gallery says it is.
    """

    def __init__(self, path: Path, *, spec: Spec, count: int | None = None, remedy: str = REMEDY) -> None:
        self.file = file = FlatFile(path, remedy=remedy)
        self.spec = spec
        unknown = {name for name in file.names - _FIXED - _OPTIONAL if not _COLUMN.fullmatch(name)}
        if unknown:
            raise file.corrupt(f"holds {', '.join(sorted(unknown))}, which no segment has")
        self.ids: Array = file.array("id", "<u8", (count,))
        n = len(self.ids)
        self.pooled: Array = file.array("pooled", "<f4", (n, spec.pooled_dim))
        self.embedding: Array = self.pooled
        if not spec.embedding_is_pooled:
            self.embedding = file.array("embedding", "<f4", (n, spec.embedding_dim))
        self.sha256: Array = file.array("sha256", "|u1", (n, 32))
        self.size: Array = file.array("size", "<u8", (n,))
        self.mtime_ns: Array = file.array("mtime_ns", "<i8", (n,))
        self.paths: Strings = file.strings("path", n)
        self._maps = self._map_scale = None
        if spec.map_shape:
            self._maps = file.array("maps", "<f2", (n, spec.pooled_dim, *spec.map_shape))
            self._map_scale = file.array("map_scale", "<f4", (n,))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def about(self) -> str | None:
        """The JSON of a file that stands alone."""
        return self.file.strings("about", 1)[0] if "about_blob" in self.file.names else None

    @cached_property
    def columns(self) -> Mapping[str, Categorical]:
        """The label and the user's columns, by name."""
        names = list(self.file.strings("column_names", None))
        if names[:1] != ["label"] or len(set(names)) != len(names) or len(names) > MAX_COLUMNS:
            raise self.file.corrupt("column names are not unique, or too many, or do not begin with the label")
        return {name: self._column(number) for number, name in enumerate(names)}

    def _column(self, number: int) -> Categorical:
        codes = self.file.array(f"column_{number}_codes", "<i4", (len(self),))
        values = tuple(self.file.strings(f"column_{number}_values", None))
        if len(codes) and (codes.min() < -1 or codes.max() >= len(values)):
            raise self.file.corrupt(f"column_{number}_codes point outside their values")
        return Categorical(values, codes)

    def entries(self, rows: Array) -> Entries:
        """What is known about the images in these rows."""
        numbers = rows.tolist()
        return Entries(
            ids=self.ids[rows],
            paths=[self.paths[row] for row in numbers],
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
