"""Neighbour search in Milvus: it proposes, the exact layer decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...metrics.distances import SearchSpec, Vectors, comparable, lengths_of
from ..filters.tree import Filter
from ..search import UNKNOWN_FLOOR, Hits, Ids, Proposal, check_ids, search_exactly
from .dialect import EVERY_ROW, compiled
from .table import MAX_CANDIDATES, MilvusTable, NearRows, expressions_of

MAX_ID = (1 << 63) - 2  # Milvus has one more, but its server 2.3 does not list a row that has it
MAX_K = (MAX_CANDIDATES - 8) // 2  # twice as many candidates are asked for
_READ_ALL = 200_000  # rows; in larger galleries what Milvus proposes has to do
_BATCH = 4096
_SINGLE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class RowSet:
    """The rows of a table that belong to a gallery."""

    below: int  # ids from here on were never committed
    removed: Ids  # ids that have left, ascending, whether or not Milvus has deleted them yet

    def hold(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """True for each id that belongs to the gallery."""
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
        """Number of rows."""
        return self.below - len(self.removed)


class MilvusSearch:
    """Search over the rows of a gallery; L1 neighbours are looked for among five times as many L2 neighbours."""

    is_worth_saving = False

    def __init__(self, spec: SearchSpec, table: MilvusTable, *, rows: RowSet) -> None:
        self.spec = spec
        self._table = table
        self._rows = rows

    def search(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        allowed: npt.ArrayLike | None = None,
        where: Filter | None = None,
    ) -> list[Hits]:
        """The k nearest of each raw query (q, d), among `allowed` ids and rows that fit `where` (see `compiled`)."""
        if k > MAX_K:
            raise InputError(f"Milvus finds up to {MAX_K} neighbours at once, {k} were asked for; lower k")
        expressions = [self._rows.expression]
        if where is not None:
            expression = compiled(where)
            assert expression is not None
            expressions.append(f"({expression})")
        filters = [" and ".join(expressions)]
        if allowed is not None:
            keys = np.unique(check_ids(allowed))
            filters = [" and ".join([*expressions, among]) for among in expressions_of(keys[keys <= MAX_ID])]
        known = self._rows.count if where is None and allowed is None else None
        engine = _Candidates(self._table, self.spec, self._rows, filters, known)
        return search_exactly(self.spec, queries, k, engine=engine)

    def count(self) -> int:
        """Number of ids stored."""
        return self._rows.count

    def close(self) -> None:
        """Nothing to let go of: the connection closes with its last user."""


class _Candidates:
    """One search's view of the table: the rows that several filters let through together."""

    def __init__(
        self, table: MilvusTable, spec: SearchSpec, rows: RowSet, filters: list[str], known: int | None
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
        found = [self._table.nearest(queries, wanted, expression=expression) for expression in self._filters]
        nothing = Proposal(np.empty(0, np.uint64), np.empty((0, self._spec.dim), np.float32), np.inf)
        for query in queries:
            proposals = [nothing]
            for rows, expression in zip(found, self._filters, strict=True):
                proposals.append(self._completed(query, next(rows), wanted, expression))
            yield Proposal(
                np.concatenate([proposal.ids for proposal in proposals]),
                np.concatenate([proposal.vectors for proposal in proposals]),
                min(proposal.floor for proposal in proposals),
            )

    def _completed(self, query: Vectors, found: NearRows, n: int, expression: str) -> Proposal:
        """Fewer than n rows may be all there are; after a crash, or from a graph, they may not be."""
        own = self._rows.hold(found.ids)
        ids, vectors, floor = found.ids[own], found.vectors[own], np.inf
        if len(found.ids) >= n:
            floor = self._floor(query, found, n)
        elif self._known is None or len(np.unique(ids)) < self._known:
            if expression not in self._listed:  # asked once for all queries
                self._listed[expression] = self._table.ids_where(expression, most=MAX_CANDIDATES)
            there = self._listed[expression]
            if len(there) >= MAX_CANDIDATES:
                floor = UNKNOWN_FLOOR
            elif len(missing := np.setdiff1d(there[self._rows.hold(there)], ids)):
                ids = np.concatenate([ids, missing])
                vectors = np.concatenate([vectors, self._table.embeddings(missing)])
        return Proposal(ids, comparable(self._spec, vectors), floor)

    def _floor(self, query: Vectors, found: NearRows, n: int) -> float:
        """No vector left out is nearer: the last distance, less what sums of d products in single precision hide."""
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
            ids = ids[self._rows.hold(ids)]
            for start in range(0, len(ids), _BATCH):
                some = ids[start : start + _BATCH]
                yield some, comparable(self._spec, self._table.embeddings(some))
