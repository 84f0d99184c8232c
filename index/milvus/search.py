"""Neighbour search in Milvus: it proposes, the exact layer decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import InputError, ShapeError
from ..filters.tree import Filter
from ..search import (
    UNKNOWN_FLOOR,
    Hits,
    Ids,
    Proposal,
    SearchSpec,
    Vectors,
    check_ids,
    check_vectors,
    comparable,
    lengths_of,
    search_exactly,
)
from .filters import EVERY_ROW, compiled
from .table import MAX_CANDIDATES, Found, MilvusTable, expressions_of

__all__ = ["MilvusSearch", "Rows"]

MAX_ID = (1 << 63) - 2  # Milvus has one more, but its server 2.3 does not list a row that has it
MAX_K = (MAX_CANDIDATES - 8) // 2  # twice as many candidates are asked for
_READ_ALL = 200_000  # rows; in larger galleries what Milvus proposes has to do
_BATCH = 4096
_SINGLE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Rows:
    """Which rows of a table belong to an answer.

    Attributes:
        below: ids from here on were never committed.
        removed: ids that have left, ascending, whether or not Milvus has deleted them yet.
    """

    below: int
    removed: Ids

    def hold(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which of these ids belong."""
        places = np.searchsorted(self.removed, ids)
        is_removed = places < len(self.removed)
        is_removed[is_removed] = self.removed[places[is_removed]] == ids[is_removed]
        return (ids < self.below) & ~is_removed

    @property
    def expression(self) -> str:
        """The part of it that Milvus decides."""
        return f"{EVERY_ROW} and id < {self.below}"

    @property
    def count(self) -> int:
        """How many there are."""
        return self.below - len(self.removed)


class MilvusSearch:
    """The rows of a table as a `Search`; of a gallery, those that its manifest knows.

    Args:
        spec: dimension and metric.
        table: the rows.
        rows: which of them count; None: all, for a table that nobody else changes.
    """

    def __init__(self, spec: SearchSpec, table: MilvusTable, *, rows: Rows | None = None) -> None:
        self.spec = spec
        self._table = table
        self._rows = rows

    @property
    def is_exact(self) -> bool:
        """L1 neighbours are looked for among five times as many L2 neighbours, so a few may be missed."""
        return self._table.kind.is_exact and self.spec.metric in ("cosine", "l2")

    is_worth_saving = False

    def upsert(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """Adds raw vectors, or replaces them by id.

        Raises:
            ShapeError, InputError: what `check_vectors` and `check_ids` refuse, an id twice in one call, or one above
                `MAX_ID`.
        """
        raw, _ = check_vectors(self.spec, vectors)
        keys = check_ids(ids, count=len(raw))
        if len(np.unique(keys)) != len(keys):
            raise InputError(f"expected each id once in one upsert, but {len(keys) - len(np.unique(keys))} came again")
        if len(keys) and int(keys.max()) > MAX_ID:
            raise InputError(f"Milvus keeps ids up to {MAX_ID}, got {keys.max()}")
        self._table.upsert(keys, raw)

    def delete(self, ids: npt.ArrayLike) -> None:
        """Removes; unknown ids are no error."""
        keys = check_ids(ids)
        self._table.delete(keys[keys <= MAX_ID])

    def get(self, ids: npt.ArrayLike) -> Vectors:
        """Raw stored vectors in the order asked for.

        Raises:
            InputError: an id that is not stored.
        """
        keys = check_ids(ids)
        missing = np.setdiff1d(keys, self._table.present(keys[keys <= MAX_ID]))
        if len(missing):
            raise InputError(f"expected stored ids, but {len(missing)} of {len(keys)} are not, such as {missing[0]}")
        return self._table.embeddings(keys)

    def search(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        allowed: npt.ArrayLike | None = None,
        where: Filter | None = None,
    ) -> list[Hits]:
        """The k nearest of each query (q, d).

        Args:
            queries: raw.
            k: from 1 to `MAX_K`.
            allowed: only among these ids.
            where: only among rows that fit; a filter that `compiled` has an expression for.

        Raises:
            ShapeError, InputError: queries that `check_vectors` refuses, or k out of range.
        """
        if k > MAX_K:
            raise InputError(f"Milvus finds up to {MAX_K} neighbours at once, {k} were asked for; lower k")
        expressions = [EVERY_ROW if self._rows is None else self._rows.expression]
        if where is not None:
            expression = compiled(where)
            assert expression is not None
            expressions.append(f"({expression})")
        if allowed is not None:
            keys = np.unique(check_ids(allowed))
            keys = keys[keys <= MAX_ID]
            filters = [" and ".join([*expressions, among]) for among in expressions_of(keys)]
        else:
            filters = [" and ".join(expressions)]
        known = None if self._rows is None or where is not None or allowed is not None else self._rows.count
        candidates = _Candidates(self._table, self.spec, self._rows, filters, known)
        return search_exactly(self.spec, queries, k, engine=candidates)

    def scan(self, batch_size: int = 1024) -> Iterator[tuple[Ids, Vectors]]:
        """Every (ids, raw vectors), ascending by id."""
        ids = self._all_ids()
        for start in range(0, len(ids), batch_size):
            batch = ids[start : start + batch_size]
            yield batch, self._table.embeddings(batch)

    def count(self) -> int:
        """Number of ids stored."""
        return len(self._all_ids()) if self._rows is None else self._rows.count

    def verify(self) -> list[str]:
        """What is wrong with the rows: those that are missing, and vectors that no distance can be taken to."""
        problems = []
        ids = self._table.ids_where(EVERY_ROW)
        if self._rows is not None:
            ids = ids[self._rows.hold(ids)]
            if len(ids) != self._rows.count:
                problems.append(f"{self._rows.count - len(ids)} of {self._rows.count} vectors are missing")
        for start in range(0, len(ids), _BATCH):
            try:
                check_vectors(self.spec, self._table.embeddings(ids[start : start + _BATCH]), what="stored vectors")
            except (InputError, ShapeError) as error:
                problems.append(str(error).split(";")[0])
        return problems

    def close(self) -> None:
        """Nothing to let go of: the connection closes with its last user."""

    def _all_ids(self) -> Ids:
        ids = self._table.ids_where(EVERY_ROW)
        return ids if self._rows is None else ids[self._rows.hold(ids)]


def _nothing(dim: int) -> Proposal:
    return Proposal(np.empty(0, np.uint64), np.empty((0, dim), np.float32), np.inf)


class _Candidates:
    """One search's view of the table; what several filters let through together."""

    def __init__(
        self, table: MilvusTable, spec: SearchSpec, rows: Rows | None, filters: list[str], known: int | None
    ) -> None:
        self._table = table
        self._spec = spec
        self._rows = rows
        self._filters = filters
        self._listed: dict[str, Ids] = {}
        self._known = known  # how many rows there are to find, when that is clear without asking

    @property
    def reach(self) -> int:
        return MAX_CANDIDATES

    def propose(self, queries: Vectors, _k: int, n: int, /) -> Iterable[Proposal]:
        wanted = min(self.reach, max(n, 5 * n // 2, 50)) if self._spec.metric == "l1" else n
        parts = [self._proposals(queries, wanted, expression) for expression in self._filters]
        for _ in queries:
            proposals = [_nothing(self._spec.dim), *(next(part) for part in parts)]
            yield Proposal(
                np.concatenate([proposal.ids for proposal in proposals]),
                np.concatenate([proposal.vectors for proposal in proposals]),
                min(proposal.floor for proposal in proposals),
            )

    def _proposals(self, queries: Vectors, n: int, expression: str) -> Iterator[Proposal]:
        for query, found in zip(queries, self._table.nearest(queries, n, expression=expression), strict=True):
            yield self._completed(query, found, n, expression)

    def _completed(self, query: Vectors, found: Found, n: int, expression: str) -> Proposal:
        """Fewer than n rows may be all there are; after a crash, or from a graph, they may not be."""
        ids, vectors = self._own(found.ids, found.vectors)
        if len(found.ids) >= n:
            return Proposal(ids, comparable(self._spec, vectors), self._floor(query, found, n))
        distinct = np.unique(ids)
        if self._known is None or len(distinct) < self._known:
            there = self._there(expression)
            if len(there) >= MAX_CANDIDATES:
                return Proposal(ids, comparable(self._spec, vectors), UNKNOWN_FLOOR)
            missing = there if self._rows is None else there[self._rows.hold(there)]
            missing = np.setdiff1d(missing, distinct)
            if len(missing):
                ids = np.concatenate([ids, missing])
                vectors = np.concatenate([vectors, self._table.embeddings(missing)])
        return Proposal(ids, comparable(self._spec, vectors), np.inf)

    def _there(self, expression: str) -> Ids:
        """What there is to find, as far as that is little; asked once for all queries."""
        if expression not in self._listed:
            self._listed[expression] = self._table.ids_where(expression, most=MAX_CANDIDATES)
        return self._listed[expression]

    def _own(self, ids: Ids, vectors: Vectors) -> tuple[Ids, Vectors]:
        if self._rows is None:
            return ids, vectors
        own = self._rows.hold(ids)
        return ids[own], vectors[own]

    def _floor(self, query: Vectors, found: Found, n: int) -> float:
        """No vector left out is nearer than this: the last one's distance, less what single precision may hide.

        A sum of d products in single precision is off by at most about d·ε times the product of the lengths, also when
        Milvus takes ‖x − y‖² as ‖x‖² + ‖y‖² − 2x·y.
        """
        is_last_try = 8 * n > self.reach and (self._known is None or self._known > _READ_ALL)
        if not self._table.kind.is_exact or self._spec.metric == "l1" or is_last_try:
            return UNKNOWN_FLOOR
        last, relative = float(found.scores[-1]), (self._spec.dim + 16) * _SINGLE
        own = float(lengths_of(query[None])[0])
        match self._spec.metric:
            case "cosine":
                return 1 - last - 4 * relative
            case "l2":
                slack = relative * (2 * own + np.sqrt(max(last, 0.0))) ** 2
                return float(np.sqrt(max(last - slack, 0.0)))
            case _:
                return -last - relative * own * float(lengths_of(found.vectors).max())

    def everything(self) -> Iterator[tuple[Ids, Vectors]]:
        for expression in self._filters:
            ids = self._table.ids_where(expression)
            ids = ids if self._rows is None else ids[self._rows.hold(ids)]
            for start in range(0, len(ids), _BATCH):
                some = ids[start : start + _BATCH]
                yield some, comparable(self._spec, self._table.embeddings(some))
