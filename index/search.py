"""Neighbour search: what every backend promises, and the exact layer that makes them answer alike.

An engine (FAISS, Milvus, …) only *proposes* candidates. The layer reads their stored vectors, computes distances in
float64, sorts by (distance, id) and cuts to k. It asks for more until nothing left out can belong to the answer, where
an engine can say how near a vector that it did not propose may be: many copies of one image are a real case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError, ShapeError
from ..metrics.distances import Distances, SearchSpec, Vectors, check_vectors, comparable, distances_to

Ids: TypeAlias = npt.NDArray[np.uint64]
Rows: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

EXACT_UP_TO = 1_000_000  # vectors for which "auto" means an exact index, which is never written to a file
_NO_ROW = -1
_SMALL_LEAST, _SMALL_SHARE = 256, 100


class Hits(NamedTuple):
    """The nearest stored vectors of one query, sorted by (distance, id); fewer than k when fewer exist."""

    ids: Ids
    distances: Distances


# reads raw vectors, float32 (n, d), in the order of ids, of which there is at least one and all are stored
VectorSource: TypeAlias = Callable[[Ids], Vectors]


class Searcher(Protocol):
    """The part of a search that reading a gallery needs, wherever its rows lie."""

    @property
    def is_worth_saving(self) -> bool:
        """It takes longer to make than to read from a file."""

    def search(self, queries: Vectors, k: int, *, allowed: Ids | None = None) -> list[Hits]:
        """The k nearest of each query, out of `allowed` when given (unknown ids in it are ignored)."""

    def count(self) -> int:
        """Number of distinct ids stored."""

    def close(self) -> None:
        """Lets go of memory and connections; a second call does nothing."""


class Search(Searcher, Protocol):
    """A set of (id, vector) pairs that answers nearest-neighbour questions; ids are u64 chosen by the caller."""

    @property
    def spec(self) -> SearchSpec:
        """Dimension and metric."""

    @property
    def is_exact(self) -> bool:
        """The answer is the true one, ties included; False: the engine may miss neighbours."""

    def upsert(self, ids: Ids, vectors: Vectors) -> None:
        """Adds, or replaces by id; visible to the next search."""

    def delete(self, ids: Ids) -> None:
        """Removes; an id that is not there is no error."""

    def get(self, ids: Ids) -> Vectors:
        """Raw stored vectors in the order asked for; InputError names an id that is not there."""

    def scan(self, batch_size: int = 1024) -> Iterator[tuple[Ids, Vectors]]:
        """Everything stored, ascending by id."""

    def verify(self) -> list[str]:
        """Problems in the backend's own data, one sentence each; empty when it is sound."""


def check_ids(ids: npt.ArrayLike | Iterable[int], *, count: int | None = None) -> Ids:
    """The same ids as a u64 array of one axis, `count` long when given."""
    array = np.asarray(list(ids) if isinstance(ids, Iterable) and not isinstance(ids, np.ndarray) else ids)
    if array.size == 0:
        array = array.astype(np.uint64)
    if array.ndim != 1 or (count is not None and len(array) != count):
        raise ShapeError(f"expected {'a list of' if count is None else count} ids, got shape {array.shape}")
    if array.dtype.kind not in "ui" or (array.dtype.kind == "i" and (array < 0).any()):
        example = array.min() if array.dtype.kind == "i" else array[0]
        raise InputError(f"expected ids from 0 to 2^64 − 1, got {array.dtype} values such as {example}")
    return array.astype(np.uint64, copy=False)


UNKNOWN_FLOOR = float(np.finfo(np.float64).max)


class Proposal(NamedTuple):
    """An engine's candidates for one query, or for a few one after the other, in any order; repeats are dropped.

    No vector left out is nearer than `floor`, +inf when none is left out. An engine that cannot know says
    `UNKNOWN_FLOOR`: its candidates have to do if they are enough.
    """

    ids: Ids
    vectors: Vectors  # `comparable`
    floor: float | Distances  # of each query
    counts: Rows | None = None  # candidates of each query; None: all are of one


class Engine(Protocol):
    """One search's view of a backend: after filters and deletions."""

    @property
    def reach(self) -> int:
        """Largest number of candidates worth asking for; beyond it, reading everything is no dearer."""

    def propose(self, queries: Vectors, k: int, n: int, /) -> Iterable[Proposal]:
        """About n candidates for each query, in the order of the queries; less those surely not among its k nearest.

        What is proposed together is compared at once, so it should fit the processor's cache.
        """

    def everything(self) -> Iterator[tuple[Ids, Vectors]]:
        """All that may be an answer, in batches, vectors `comparable`."""


def first_fetch(k: int) -> int:
    """Candidates to ask for first: enough that re-scoring can mend an engine's rounding.

    >>> first_fetch(1), first_fetch(10)
    (20, 28)
    """
    return max(2 * k + 8, 20)


def search_exactly(spec: SearchSpec, queries: npt.ArrayLike, k: int, *, engine: Engine) -> list[Hits]:
    """The k nearest of each query out of what `engine` proposes, in the one order (distance, id)."""
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"expected k of at least 1, a whole number, got {k!r}")
    checked = comparable(spec, *check_vectors(spec, queries, what="queries"))
    answers = [_NOTHING] * len(checked)
    pending = np.arange(len(checked))
    fetch = first_fetch(k)
    while len(pending) and fetch <= engine.reach:
        open_questions = []
        start = 0
        for ids, vectors, floor, counts in engine.propose(checked[pending], k, fetch):
            counts = np.array([len(ids)]) if counts is None else counts
            rows = pending[start : start + len(counts)]
            distances = distances_to(spec, checked, vectors, which=np.repeat(rows, counts))
            floors = np.broadcast_to(floor, len(rows)).tolist()
            for row, hits, bound in zip(rows.tolist(), _nearest(k, ids, distances, counts), floors, strict=True):
                answers[row] = hits
                is_settled = bound == np.inf or (len(hits.ids) == k and hits.distances[-1] < bound)
                if not is_settled:
                    open_questions.append(row)
            start += len(rows)
        assert start == len(pending), "a proposal for each query"
        pending, fetch = np.array(open_questions, np.intp), fetch * 8
    for row in pending:  # these look at every vector; memory stays at one batch
        answers[row] = _NOTHING
    for ids, vectors in engine.everything() if len(pending) else ():
        for row in pending:
            best = answers[row]
            candidates, distances = ids, distances_to(spec, checked[row], vectors)
            if len(best.ids) == k:  # most batches hold nothing nearer
                near = distances <= best.distances[-1]
                candidates, distances = ids[near], distances[near]
            ids_now, distances = (np.concatenate(part) for part in zip(best, (candidates, distances), strict=True))
            (answers[row],) = _nearest(k, ids_now, distances, np.array([len(ids_now)]))
    return answers


_NOTHING = Hits(np.empty(0, np.uint64), np.empty(0, np.float64))


def _nearest(k: int, ids: Ids, distances: Distances, counts: Rows) -> list[Hits]:
    """Of each query's candidates, which stand one after the other, the first k by (distance, id), each id once."""
    query = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((ids, distances, query))
    ids, distances = ids[order], distances[order]
    is_first = np.append(True, (ids[1:] != ids[:-1]) | (query[1:] != query[:-1]))[: len(ids)]
    if not is_first.all():  # one id has one distance, so its repeats stand side by side
        ids, distances = ids[is_first], distances[is_first]
        counts = np.bincount(query[is_first], minlength=len(counts))
    stops = np.cumsum(counts)
    starts = stops - counts
    spans = zip(starts.tolist(), np.minimum(starts + k, stops).tolist(), strict=True)
    return [Hits(ids[start:stop], distances[start:stop]) for start, stop in spans]


def small_change(count: int) -> int:
    """Number of vectors that may come to an approximate index of `count` before it takes them in and is written again.

    >>> small_change(1_000), small_change(1_000_000)
    (256, 10000)
    """
    return max(_SMALL_LEAST, count // _SMALL_SHARE)


class MemoryVectors(dict[int, Vectors]):
    """Raw vectors held in memory by id: the `VectorSource` of an index that has no gallery behind it."""

    def __call__(self, ids: Ids, /) -> Vectors:
        """The vectors of `ids`, which must all be there and be at least one."""
        return np.stack([self[key] for key in ids.tolist()])


class IdMap:
    """Ids by row, and back; a row is live until its id is deleted or replaced.

    Attributes:
        ids: id of each row, live or not.
        live: True for each row that is live.
        live_count: number of live rows.
    """

    def __init__(self, ids: Ids | None = None, live: Mask | None = None) -> None:
        self.ids = np.empty(0, np.uint64) if ids is None else ids
        self.live = np.empty(0, np.bool_) if live is None else live
        self._largest = int(self.ids.max(initial=0)) if len(self.ids) else -1
        # (first id, row of each id of the range), ten times faster on long sorted lists; (sorted ids, their rows) where
        # ids are far apart
        self._lookup: tuple[Ids, Rows] | None = None
        self._live_rows: Rows | None = None
        self.live_count = int(self.live.sum())

    def __len__(self) -> int:
        """Number of rows, live or not."""
        return len(self.ids)

    def append(self, ids: Ids) -> None:
        """Add one row for each id; an older row of the same id is masked."""
        self.drop(ids)
        self.ids = np.concatenate([self.ids, ids])
        self.live = np.concatenate([self.live, np.ones(len(ids), np.bool_)])
        self._largest = max(self._largest, int(ids.max(initial=0)))
        self.live_count += len(ids)
        self._lookup = self._live_rows = None

    def drop(self, ids: Ids) -> None:
        """Mask the live rows of `ids`; unknown ids are no error."""
        if not len(ids) or int(ids.min()) > self._largest:
            return  # the usual batch: ids ascend, so none can be known
        rows = self.rows_of(ids)
        self.live[rows] = False
        self._live_rows = None
        self.live_count -= len(rows)

    def rows_of(self, ids: Ids) -> Rows:
        """The live rows of those `ids` that have one, in the order of `ids`; each row once."""
        rows = self.find(ids)
        if rows.min(initial=0) < 0:
            rows = rows[rows != _NO_ROW]
        if len(rows) > 1 and not (rows[1:] > rows[:-1]).all():
            rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
        return rows

    def find(self, ids: Ids) -> Rows:
        """The live row of each id, −1 where there is none."""
        if self._lookup is None:
            rows = self.ascending()
            keys = self.ids[rows]
            if len(keys) == 1 or (len(keys) and keys[-1] - keys[0] < 8 * len(keys)):
                table = np.full(int(keys[-1] - keys[0]) + 1, _NO_ROW, np.int64)
                table[(keys - keys[0]).astype(np.int64)] = rows
                keys, rows = keys[:1], table
            self._lookup = keys, rows
        keys, rows = self._lookup
        found: Rows
        if not len(rows) or not len(ids):
            return np.full(len(ids), _NO_ROW, np.int64)
        if len(keys) == 1:  # a table over the range of ids, starting at the one key
            offsets = ids - keys[0]  # ids below the first wrap round to huge numbers
            if offsets.max() < len(rows):
                found = rows[offsets.view(np.int64)]
            else:
                known = offsets < np.uint64(len(rows))
                found = np.where(known, rows[np.where(known, offsets, 0).astype(np.int64)], _NO_ROW)
        else:
            places = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
            found = np.where(keys[places] == ids, rows[places], _NO_ROW)
        if self.live_count < len(self):
            found = np.where(self.live[found], found, _NO_ROW)  # −1 looks at the last row, and stays −1
        return found

    def all_live(self) -> Rows | None:
        """The live rows, None where that is every row."""
        if self.live_count == len(self):
            return None
        rows = self._live_rows = np.flatnonzero(self.live) if self._live_rows is None else self._live_rows
        return rows

    def ascending(self) -> Rows:
        """The live rows, ascending by id."""
        rows: Rows = np.flatnonzero(self.live).astype(np.int64, copy=False)
        return rows[np.argsort(self.ids[rows], kind="stable")]
