"""One generation of a gallery, open for reading: the images that are alive, and the places of their rows.

In memory are an id and a position per image, and columns that were asked for; it outlives the files it was opened from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptGalleryError, InputError
from ...files import REMEDY, file_sha256, read_file
from ...images.items import BOX_MARK, split_item
from ...metrics.distances import SearchSpec
from ...remarks import counted
from ..filters.matching import Categorical, Verdicts, matching
from ..filters.tree import Filter
from ..search import Searcher, check_ids
from .hdf5 import Array, StoredArray
from .manifest import FileEntry, Manifest, Spec
from .segments import BLOCK_BYTES, Record, RowVectors, Segment, is_as_before, stored_path

AUTO_VERIFY_BYTES = 1 << 30
_FEW_ROWS = 256
_PATHS_KEPT = 2_000_000  # about 200 MB

Ids: TypeAlias = NDArray[np.uint64]
Verify: TypeAlias = bool | Literal["auto"]


class Snapshot:
    """The images of one generation, in the order of ids; see `newest_snapshot` for a file that is gone."""

    is_remote = False  # True: the rows lie elsewhere, where reading them all takes long, and are searched there

    def __init__(self, folder: Path, manifest: Manifest, *, verify: Verify = "auto") -> None:
        self.folder = folder
        self.manifest = manifest
        files = (*manifest.segments, *manifest.tombstones)
        if verify == "auto":
            verify = sum(entry.bytes for entry in files) <= AUTO_VERIFY_BYTES
        for entry in files:
            check_file(folder, entry, checksum=verify)
        self.segments = tuple(Segment.of(folder, entry, manifest.spec) for entry in manifest.segments)
        self._starts = np.cumsum([0, *(len(segment) for segment in self.segments)])
        ids = np.concatenate([np.empty(0, np.uint64), *(segment.ids for segment in self.segments)])
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        if len(ids) and (bool(np.any(ids[1:] == ids[:-1])) or int(ids[-1]) >= manifest.next_id):
            raise CorruptGalleryError(f"{folder}: an id occurs twice or was never given out; {REMEDY}")
        if manifest.tombstones:
            alive = ~np.isin(ids, removed_ids(folder, manifest.tombstones))
            ids, order = ids[alive], order[alive]
        self.ids: Ids = ids.astype(np.uint64, copy=False)
        self._positions = order
        self._columns: dict[str, Categorical] = {}
        self._verdicts = Verdicts()

    @property
    def spec(self) -> Spec:
        """Metric and dimensions."""
        return self.manifest.spec

    @property
    def search_spec(self) -> SearchSpec:
        """Dimension and metric, for a search."""
        return SearchSpec(self.spec.embedding_dim, self.spec.metric)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def removed_rows(self) -> int:
        """Rows of removed images that still take room."""
        return sum(len(segment) for segment in self.segments) - len(self)

    # --- Which images ------------------------------------------------------------------------------------------------

    def places(self, ids: Iterable[int] | Array) -> NDArray[np.int64]:
        """The places of ids in `self.ids`."""
        wanted = check_ids(ids.reshape(-1) if isinstance(ids, np.ndarray) else ids)
        places = np.searchsorted(self.ids, wanted)
        known = places < len(self.ids)
        known[known] = self.ids[places[known]] == wanted[known]
        if not known.all():
            raise InputError(f"no image with id {wanted[~known][0]} in {self.folder}; it may have been removed")
        return places

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns that a filter may name: path, label, and the user's."""
        names = dict.fromkeys(name for segment in self.segments for name in segment.column_names)
        return ("path", *dict.fromkeys(("label", *names)))

    def column(self, name: str) -> Categorical:
        """One column of all images, in the order of ids; InputError for an unknown one."""
        if (kept := self._columns.get(name)) is not None:
            return kept
        if name not in self.column_names:
            raise InputError(f"no column {name!r} in {self.folder}; there are {', '.join(self.column_names)}")
        column = self._read_column(name)
        if name != "path" or len(self) <= _PATHS_KEPT:
            self._columns[name] = column
        return column

    def _read_column(self, name: str) -> Categorical:
        """Every segment numbers its own values; give each value one number for all."""
        if name == "path":
            return Categorical(tuple(self.all_paths()), np.arange(len(self), dtype=np.int32))
        parts = [segment.column(name) if name in segment.column_names else None for segment in self.segments]
        values = tuple(sorted({value for part in parts if part is not None for value in part.values}))
        number = {value: code for code, value in enumerate(values)}
        codes = [np.empty(0, np.int32)]
        for segment, part in zip(self.segments, parts, strict=True):
            if part is None:
                codes.append(np.full(len(segment), -1, np.int32))
            else:
                new = np.array([*(number[value] for value in part.values), -1], np.int32)
                codes.append(new[part.codes])
        return Categorical(values, np.concatenate(codes)[self._positions])

    def values(self, name: str, places: Array) -> list[str | None]:
        """One column of some images."""
        column = self.column(name)
        return [column[place] for place in places.tolist()]

    def value(self, name: str, place: int) -> str | None:
        """One column of one image."""
        return self.column(name)[place]

    def ids_where(self, where: Filter) -> Ids:
        """The ids of the images that a filter keeps, ascending."""
        return self.ids[matching(where, self, self._verdicts)]

    def search(self) -> Searcher | None:
        """The search of whatever holds the rows; None where an index has to be made of them."""
        return None

    def search_limits(self, where: Filter) -> dict[str, Any]:
        """The arguments by which a search is told of a filter."""
        return {"allowed": self.ids_where(where)}

    def paths(self, places: Array) -> Iterator[str]:
        """The stored paths of images given by place."""
        for segment, row in self.stored_rows(places):
            yield segment.paths[row]

    def all_paths(self) -> list[str]:
        """The stored paths of all images, in the order of ids."""
        stored = [path for segment in self.segments for path in segment.paths]
        return [stored[position] for position in self._positions.tolist()]

    def box_paths(self) -> list[str]:
        """The stored paths of the images that are boxes of a file, in the order of ids."""
        has_any = any(BOX_MARK.encode() in segment.paths.blob.read().tobytes() for segment in self.segments)
        return [path for path in (self.all_paths() if has_any else ()) if split_item(path)[1] is not None]

    def stored_rows(self, places: Array) -> Iterator[tuple[Segment, int]]:
        """The segment of each image given by place, and its row there."""
        positions = self._positions[places]
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        for number, row in zip(numbers.tolist(), (positions - self._starts[numbers]).tolist(), strict=True):
            yield self.segments[number], row

    def records(self, ids: Iterable[int] | Array) -> list[Record]:
        """Path, label and columns of these images, in their order."""
        places = self.places(ids)
        names = self.column_names[2:]
        labels = self.column("label")
        columns = {name: self.column(name) for name in names}
        records = []
        for place, path in zip(places.tolist(), self.paths(places), strict=True):
            values = {name: value for name, column in columns.items() if (value := column[place]) is not None}
            records.append(Record(int(self.ids[place]), path, labels[place], values))
        return records

    # --- Their vectors -----------------------------------------------------------------------------------------------

    def pooled(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Raw pooled vectors, (n, K)."""
        return self._gather([segment.pooled for segment in self.segments], ids, (self.spec.pooled_dim,))

    def embeddings(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Raw embeddings, (n, d)."""
        return self._gather([segment.embedding for segment in self.segments], ids, (self.spec.embedding_dim,))

    def maps(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Feature maps, (n, K, h, w); InputError when the gallery does not keep them."""
        if self.spec.map_shape is None:
            raise InputError(f"{self.folder} keeps no feature maps; build it with --store-maps")
        places = self.places(ids)
        out = np.empty((len(places), self.spec.pooled_dim, *self.spec.map_shape), np.float32)
        for at, (segment, row) in enumerate(self.stored_rows(places)):
            out[at] = segment.maps(np.array([row]))[0]
        return out

    def fine_maps(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Fine maps, (n, c, u, v), that lines are drawn from; InputError when the gallery does not keep them."""
        if self.spec.fine_shape is None:
            raise InputError(f"{self.folder} keeps no fine maps; build it with --store-lines")
        places = self.places(ids)
        found = [segment.fine_maps(np.array([row])) for segment, row in self.stored_rows(places)]
        return np.concatenate([np.empty((0, *self.spec.fine_shape), np.float32), *found])

    def _gather(self, arrays: Sequence[StoredArray], ids: Iterable[int] | Array, shape: tuple[int, ...]) -> Array:
        positions = self._positions[self.places(ids)]
        if len(arrays) == 1:
            return arrays[0][positions]
        out = np.empty((len(positions), *shape), np.float32)
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        if len(positions) <= _FEW_ROWS:  # the candidates of one query, spread over all segments
            rows = (positions - self._starts[numbers]).tolist()
            spread: dict[int, tuple[list[int], list[int]]] = {}
            for at, (number, row) in enumerate(zip(numbers.tolist(), rows, strict=True)):
                to, of = spread.setdefault(number, ([], []))
                to.append(at)
                of.append(row)
            for number, (to, of) in spread.items():
                arrays[number].fill(out, to, of)
            return out
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            wanted = positions[places] - self._starts[number]
            first, last = int(places[0]), int(places[-1])
            if last - first + 1 == len(places):  # all that is read in the order of ids
                arrays[number].gather(wanted, out[first : last + 1])
            else:
                out[places] = arrays[number].gather(wanted)
        return out

    def blocks(
        self, places: Array | None = None, *, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[tuple[Ids, RowVectors]]:
        """All images, or those at some places, a block at a time in the order of ids, without their maps."""
        ids = self.ids if places is None else self.ids[places]
        row_bytes = 4 * (self.spec.pooled_dim + self.spec.embedding_dim)
        step = max(1, block_bytes // row_bytes)
        for start in range(0, len(ids), step):
            some = ids[start : start + step]
            pooled = self.pooled(some)
            yield some, RowVectors(pooled, pooled if self.spec.embedding_is_pooled else self.embeddings(some))

    @property
    def recall(self) -> float:
        """Share of the true ten nearest that a search finds: as measured, 1 if it is exact, NaN if nobody knows."""
        return 1.0 if self.manifest.tuning is None else self.manifest.tuning.recall_at_10

    def live_parts(self) -> list[tuple[Segment, Array]]:
        """The rows of each segment that are alive, for copying whole galleries."""
        parts = [(segment, np.flatnonzero(np.isin(segment.ids, self.ids))) for segment in self.segments]
        return [(segment, rows) for segment, rows in parts if len(rows)]

    def places_by_path(self, among: Iterable[str] | None = None) -> dict[str, int]:
        """The place of each image, or of those under the paths `among`, by its path."""
        wanted = None if among is None else set(among)
        if wanted is None or 2 * len(wanted) > len(self):
            return {path: place for place, path in enumerate(self.all_paths()) if wanted is None or path in wanted}
        starts = zip(self._starts.tolist(), self.segments, strict=False)
        found = {start + row: path for start, segment in starts for row, path in segment.paths.find(wanted)}
        places = np.flatnonzero(np.isin(self._positions, list(found)))
        return {found[self._positions[place]]: place for place in places.tolist()}

    def ids_of(self, paths: Sequence[str | os.PathLike[str]], root: Path) -> Ids:
        """The ids of images given by path, as stored or where the files lie; of a file that is none, of all its boxes.

        InputError when one is not there.
        """
        stored = [stored_path(path, root) for path in paths]
        known = self.places_by_path([*(os.fspath(path) for path in paths), *stored])
        places = [known.get(os.fspath(path), known.get(other)) for path, other in zip(paths, stored, strict=True)]
        unknown = [number for number, place in enumerate(places) if place is None]
        files = {name: number for number in unknown for name in (os.fspath(paths[number]), stored[number])}
        boxed: dict[int, list[int]] = {number: [] for number in unknown}
        for place, item in enumerate(self.all_paths() if unknown else ()):
            if (number := files.get(split_item(item)[0])) is not None:
                boxed[number].append(place)
        missing = [os.fspath(paths[number]) for number, own in boxed.items() if not own]
        if missing:
            shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise InputError(f"not in {self.folder}: {shown}; nothing was removed")
        return np.unique(self.ids[[*(place for place in places if place is not None), *chain(*boxed.values())]])

    def preload(self) -> None:
        """Read everything that is known of the images besides vectors, before a writer merges the files away."""
        for segment in self.segments:
            assert segment.file_states  # which keeps them
        for name in self.column_names[1:]:
            self.column(name)

    def file_state(self, place: int) -> tuple[bytes, int, int]:
        """SHA-256, size in bytes, and time of change in ns of the file an image was read from."""
        sha256, size, mtime_ns = self._file_states
        return sha256[32 * place : 32 * place + 32], size[place], mtime_ns[place]

    def are_as_before(self, files: Iterable[str], places: Iterable[int | None]) -> Iterator[bool]:
        """True for each file with the size and the time of change that the image at its place was read with."""
        asked = zip(files, places, strict=True)
        return (place is not None and is_as_before(file, *self.file_state(place)[1:]) for file, place in asked)

    @cached_property
    def _file_states(self) -> tuple[bytes, memoryview, memoryview]:
        parts = [segment.file_states.values() for segment in self.segments]
        sha256, size, mtime_ns = (np.concatenate(column)[self._positions] for column in zip(*parts, strict=True))
        return sha256.tobytes(), size.data, mtime_ns.data  # whose items are plain numbers


def check_file(folder: Path, entry: FileEntry, *, checksum: bool) -> None:
    """Compare a file of the gallery with what the manifest says of it."""
    path = folder / entry.name
    if path.is_symlink() or (not (is_file := path.is_file()) and path.exists()):
        raise CorruptGalleryError(f"{path}: is not a plain file; {REMEDY}")
    if not is_file:
        raise FileNotFoundError(2, "is missing", str(path))
    if path.stat().st_size != entry.bytes:
        raise CorruptGalleryError(f"{path}: has {path.stat().st_size} bytes, should have {entry.bytes}; {REMEDY}")
    if checksum and file_sha256(path) != entry.sha256:
        raise CorruptGalleryError(f"{path}: its checksum does not fit the manifest; {REMEDY}")


def require_file(folder: Path, entry: FileEntry, *, checksum: bool) -> Path:
    """A file of an open gallery, checked."""
    try:
        check_file(folder, entry, checksum=checksum)
    except FileNotFoundError as error:
        raise CorruptGalleryError(f"{folder / entry.name}: is missing; {REMEDY}") from error
    return folder / entry.name


def read_ids(folder: Path, entry: FileEntry) -> Ids:
    """The removed ids in a tombstone file: little-endian u64, nothing else."""
    data = read_file(folder / entry.name)
    if len(data) != 8 * entry.count:
        raise CorruptGalleryError(f"{folder / entry.name}: should hold {counted(entry.count, 'id')}; {REMEDY}")
    return np.frombuffer(data, "<u8").astype(np.uint64)


def removed_ids(folder: Path, entries: Iterable[FileEntry]) -> Ids:
    """The removed ids in some tombstone files, ascending, each once."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(read_ids(folder, entry) for entry in entries)]))
