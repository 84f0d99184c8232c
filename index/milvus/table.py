"""The rows of one gallery in Milvus: two collections, and every request that is made to them.

`NAME` holds id, embedding, `record` (JSON) and `keys` (`dialect.py`); `NAME_pooled` id and pooled vector. A row may
come twice after a crash there, so every answer is made unique by id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...errors import CorruptGalleryError, GalleryExistsError, InputError
from ...metrics.distances import Distances, Metric, Vectors
from ...remarks import counted
from ..search import Ids
from .connection import Address, Connection, connected
from .dialect import EVERY_ROW, IndexKind

MAX_CANDIDATES = 16_384  # Milvus' own limit of one search
MAX_DIM = 32_768  # likewise; milvus-lite accepts more
_REQUEST_BYTES = 32 << 20  # servers take 64 MiB
_MOST_IDS = 4096  # in one expression
_MAX_RECORD_BYTES = 65_536  # of a JSON field
_MAX_KEYS = 2048
_STRANGER = "belongs to another gallery or program"
_OWNER = "distcam.gallery"
_GENERATION = "distcam.generation"
_METRIC_TYPES: dict[Metric, str] = {"cosine": "COSINE", "l2": "L2", "l1": "L2", "dot": "IP"}

Row = dict[str, Any]


@dataclass(frozen=True)
class TableSpec:
    """Dimensions, metric and owner of the rows."""

    embedding_dim: int
    metric: Metric
    pooled_dim: int | None  # of the vectors that are read by id; None when there are none besides the embeddings
    owner: str  # random, kept with the collections: one gallery never takes another's rows for its own

    def __post_init__(self) -> None:
        largest = max(self.embedding_dim, self.pooled_dim or 0)
        if largest > MAX_DIM:
            raise InputError(f"Milvus holds vectors of up to {MAX_DIM} numbers, not {largest}; use another encoder")


class NearRows(NamedTuple):
    """Rows near one query: ids, Milvus' own scores, raw vectors, best first; an id may come twice."""

    ids: Ids
    scores: Distances
    vectors: Vectors


class MilvusTable:
    """The rows of one gallery; every method asks the server. May be used by several threads."""

    def __init__(self, address: Address, spec: TableSpec) -> None:
        self.address = address
        self.spec = spec
        self.kind = IndexKind.parse("flat")
        self._connection: Connection = connected(address)
        self._fields = [(address.collection, "embedding", spec.embedding_dim)]
        if spec.pooled_dim:
            self._fields.append((f"{address.collection}_pooled", "pooled", spec.pooled_dim))
        self._names = [name for name, _, _ in self._fields]

    def open(self) -> None:
        """Make sure that the collections are there, are this gallery's, and are loaded."""
        remedy = "restore it, or build the gallery again with `distcam index build --overwrite`"
        for name, field, dim in self._fields:
            owner, found_dim = self._described(name, field)
            if owner is None:
                raise CorruptGalleryError(f"{self.address}: there is no collection {name}; {remedy}")
            if owner != self.spec.owner:
                raise CorruptGalleryError(f"{self.address}: collection {name} {_STRANGER}; {remedy}")
            if found_dim != dim:
                raise CorruptGalleryError(
                    f"{self.address}: {name} holds vectors of {found_dim} numbers, the gallery's have {dim}; {remedy}"
                )
        with self._connection.speaking() as client:
            for name in self._names:
                client.load_collection(name)
            described = client.describe_index(self._names[0], "embedding")
        expected = _METRIC_TYPES[self.spec.metric]
        if described.get("metric_type", expected) != expected:
            raise CorruptGalleryError(
                f"{self.address}: is indexed for {described['metric_type']}, the gallery compares by "
                f"{self.spec.metric}; build the gallery again"
            )
        self.kind = IndexKind.of_description(described)

    def refuse_strangers(self) -> dict[str, str | None]:
        """Make sure that there are no collections of these names, or this gallery's; returns their owners."""
        owners = {name: self._described(name, field)[0] for name, field, _ in self._fields}
        for name, owner in owners.items():
            if owner not in (None, self.spec.owner):
                raise GalleryExistsError(
                    f"{self.address}: collection {name} {_STRANGER}; choose another name, or drop it"
                )
        return owners

    def create(self) -> None:
        """Make the collections new and empty; what this gallery had there is dropped."""
        from pymilvus import DataType

        owners = self.refuse_strangers()
        for name, field, dim in self._fields:
            with self._connection.speaking() as client:
                if owners[name] is not None:
                    client.drop_collection(name)
                schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("id", DataType.INT64, is_primary=True)
                schema.add_field(field, DataType.FLOAT_VECTOR, dim=dim)
                properties, metric = {_OWNER: self.spec.owner}, "L2"
                if field == "embedding":
                    schema.add_field("record", DataType.JSON)
                    schema.add_field("keys", DataType.ARRAY, element_type=DataType.INT64, max_capacity=_MAX_KEYS)
                    metric = _METRIC_TYPES[self.spec.metric]
                else:
                    properties["mmap.enabled"] = "true"  # read by id, never searched: may stay on disk
                index = client.prepare_index_params()
                index.add_index(field, index_type="FLAT", metric_type=metric)
                client.create_collection(
                    name, schema=schema, index_params=index, consistency_level="Strong", properties=properties
                )

    def drop(self) -> None:
        """Drop the collections, as far as they are this gallery's."""
        for name, field, _ in self._fields:
            if self._described(name, field)[0] == self.spec.owner:
                with self._connection.speaking() as client:
                    client.drop_collection(name)

    def _described(self, name: str, field: str) -> tuple[str | None, int]:
        """The owner of a collection, None when there is none, and the length of its vectors."""
        with self._connection.speaking() as client:
            if not client.has_collection(name):
                return None, 0
            description = client.describe_collection(name)
        dims = [int(f["params"].get("dim", 0)) for f in description["fields"] if f["name"] == field]
        return str((description.get("properties") or {}).get(_OWNER, "")), dims[0] if dims else 0

    @property
    def generation(self) -> int:
        """The newest generation that a writer has finished here, -1 when none has."""
        with self._connection.speaking() as client:
            description = client.describe_collection(self._names[0])
        return int((description.get("properties") or {}).get(_GENERATION) or -1)

    def note_generation(self, generation: int) -> None:
        """Keep with the rows that this generation is finished, so that an older copy of the folder is told apart."""
        with self._connection.speaking() as client:
            client.alter_collection_properties(self._names[0], properties={_GENERATION: str(generation)})

    def reindex(self, kind: IndexKind) -> None:
        """Index the embeddings in another way; searches wait meanwhile."""
        if kind.is_like(self.kind):
            return
        name = self._names[0]
        with self._connection.speaking() as client:
            client.flush(name)
            client.release_collection(name)
            client.drop_index(name, "embedding")
            index, metric = client.prepare_index_params(), _METRIC_TYPES[self.spec.metric]
            index.add_index("embedding", index_type=kind.name, metric_type=metric, params=kind.build)
            client.create_index(name, index)
            client.load_collection(name)
        self.kind = kind

    def compact(self) -> None:
        """Flush what Milvus holds in memory; it reclaims the space of deleted rows in its own time."""
        with self._connection.speaking() as client:
            for name in self._names:
                client.flush(name)
                client.compact(name)

    def upsert(
        self, ids: Ids, embeddings: Vectors, *, pooled: Vectors | None = None, records: Sequence[Row] | None = None
    ) -> None:
        """Write rows, replacing those with the same ids; records hold "keys" besides what is stored as it is."""
        if pooled is not None:  # first: a row that is found can be explained
            self._send(1, [{"id": key, "pooled": row} for key, row in zip(ids.tolist(), pooled, strict=True)])
        rows = []
        for key, embedding, record in zip(ids.tolist(), embeddings, records or [{}] * len(ids), strict=True):
            stored = {name: value for name, value in record.items() if name != "keys"}
            keys = record.get("keys", [])
            size = len(json.dumps(stored, ensure_ascii=False).encode("utf-8", "replace"))
            if size > _MAX_RECORD_BYTES or len(keys) > _MAX_KEYS:
                raise InputError(
                    f"{str(stored.get('path'))[:200]}: its path, label and columns take {size} bytes, Milvus keeps "
                    f"{_MAX_RECORD_BYTES}; leave a column out"
                )
            rows.append({"id": key, "embedding": embedding, "record": stored, "keys": keys})
        self._send(0, rows)

    def _send(self, number: int, rows: list[Row]) -> None:
        """Write rows into one of the collections, in requests of a size that servers take."""
        name, _, dim = self._fields[number]
        facts = [len(json.dumps(row.get("record"))) + 8 * len(row.get("keys", [])) for row in rows]
        step = max(1, _REQUEST_BYTES // (64 + 4 * dim + max(facts, default=0)))
        for start in range(0, len(rows), step):
            with self._connection.speaking() as client:
                client.upsert(name, rows[start : start + step])

    def delete(self, ids: Ids) -> None:
        """Delete rows; unknown ids are no error."""
        with self._connection.speaking() as client:
            for some in _parts(np.unique(ids), _MOST_IDS):
                for name in self._names:
                    client.delete(name, ids=some.tolist())

    def embeddings(self, ids: Ids, *, number: int = 0) -> Vectors:
        """Raw embeddings in the order of `ids`; or what else the collection of this number holds."""
        name, field, dim = self._fields[number]
        rows = self._rows(name, field, ids, row_bytes=4 * dim)
        return np.array([rows[key] for key in ids.tolist()], np.float32).reshape(len(ids), dim)

    def pooled(self, ids: Ids) -> Vectors:
        """Raw pooled vectors in the order of `ids`."""
        return self.embeddings(ids, number=-1)

    def records(self, ids: Ids) -> list[Row]:
        """The records, in the order of `ids`."""
        rows = self._rows(self._names[0], "record", ids, row_bytes=1024)
        return [rows[key] for key in ids.tolist()]

    def _rows(self, name: str, field: str, ids: Ids, *, row_bytes: int) -> dict[int, Any]:
        """One field by id. Rows that a replica does not have yet are asked for again, from the newest data."""
        rows: dict[int, Any] = {}
        for some in _parts(np.unique(ids), min(_MOST_IDS, max(1, _REQUEST_BYTES // row_bytes))):
            wanted = some
            for level in ("Session", "Strong"):
                with self._connection.speaking() as client:
                    found = client.query(
                        name, filter=expressions_of(wanted)[0], output_fields=["id", field], consistency_level=level
                    )
                rows |= {int(row["id"]): row[field] for row in found}
                wanted = np.array([key for key in wanted.tolist() if key not in rows], np.uint64)
                if not len(wanted):
                    break
            else:
                raise CorruptGalleryError(
                    f"{self.address}: {counted(len(wanted), 'row')} of the gallery, such as {wanted[0]}, "
                    f"not in {name}; open the gallery anew if it has changed, or run `distcam index verify`"
                )
        return rows

    def ids_where(self, expression: str = EVERY_ROW, *, pooled: bool = False, most: int | None = None) -> Ids:
        """The ids of the rows that fit, ascending, each once; at most about `most` when given."""
        found: list[int] = []
        name = self._names[-1 if pooled else 0]
        with self._connection.speaking() as client:
            pages = client.query_iterator(
                name, batch_size=MAX_CANDIDATES, filter=expression, output_fields=["id"], consistency_level="Strong"
            )
            try:
                while page := pages.next():
                    found += [int(row["id"]) for row in page]
                    if most is not None and len(found) >= most:
                        break
            finally:
                pages.close()
        return np.unique(np.array(found, np.int64)).astype(np.uint64)

    def nearest(self, queries: Vectors, n: int, *, expression: str = EVERY_ROW) -> Iterator[NearRows]:
        """About n rows near each query, out of those that fit, as far as Milvus finds them."""
        per_query = n * 4 * self.spec.embedding_dim
        brings_vectors = per_query <= _REQUEST_BYTES
        step = max(1, min(_REQUEST_BYTES // per_query, 1000)) if brings_vectors else 1
        for start in range(0, len(queries), step):
            with self._connection.speaking() as client:
                answers = client.search(
                    self._names[0],
                    data=list(queries[start : start + step]),
                    anns_field="embedding",
                    limit=n,
                    filter=expression,
                    output_fields=["embedding"] if brings_vectors else [],
                    search_params={"metric_type": _METRIC_TYPES[self.spec.metric], "params": self.kind.effort(n)},
                    consistency_level=self.address.consistency,
                )
            for hits in answers:
                ids = np.array([hit["id"] for hit in hits], np.int64).astype(np.uint64)
                scores = np.array([hit["distance"] for hit in hits], np.float64)
                if brings_vectors:
                    stored = [hit["entity"]["embedding"] for hit in hits]
                    vectors = np.array(stored, np.float32).reshape(-1, self.spec.embedding_dim)
                else:
                    vectors = self.embeddings(ids)
                yield NearRows(ids, scores, vectors)


def expressions_of(ids: Ids) -> list[str]:
    """Expressions that together keep the rows with these ids, each once; none is long."""
    return [f"id in [{', '.join(map(str, some.tolist()))}]" for some in _parts(ids, _MOST_IDS)]


def _parts(ids: Ids, size: int) -> Iterator[Ids]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
