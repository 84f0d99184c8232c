"""What every search backend promises, checked by random operations against a dictionary and plain numpy.

FAISS and milvus-lite always, and the Milvus server that DISTCAM_MILVUS_URI names (`milvus://HOST:19530/any_name`);
`test_index_milvus_server.py` sets it to one of its own. A further backend joins by another `Backend`.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from distcam.index.faiss.search import FaissSearch
from distcam.index.search import Hits, Search, VectorSource
from distcam.metrics.distances import METRICS, Metric, SearchSpec

Batches = Iterable[tuple[np.ndarray, np.ndarray]]
Make = Callable[[SearchSpec, Batches, VectorSource | None], Search]

DIM = 3


def with_faiss(factory: str) -> Make:
    def make(spec: SearchSpec, batches: Batches, source: VectorSource | None) -> Search:
        return FaissSearch.build(spec, batches, count=0, factory=factory, device="cpu", source=source)

    return make


@dataclass(frozen=True)
class Backend:
    """How to make a search; for one that outlives its process, how to open it again; and how much to ask of it."""

    make: Make
    reopen: Callable[[Search], Search] = lambda search: search
    drop: Callable[[Search], None] = lambda search: None
    examples: int = 20
    max_id: int = 2**64 - 1


def with_milvus(address: str, examples: int) -> Backend:
    from distcam.index.milvus.connection import Address
    from distcam.index.milvus.search import MAX_ID, MilvusSearch, RowSet
    from distcam.index.milvus.table import MilvusTable, TableSpec

    class Table(MilvusSearch):
        """A table that no gallery manages, changed as any other backend."""

        def __init__(self, spec: SearchSpec, table: MilvusTable) -> None:
            super().__init__(spec, table, rows=RowSet(MAX_ID + 1, np.empty(0, np.uint64)))
            self.upsert = table.upsert
            self.delete = lambda keys: table.delete(keys[keys <= MAX_ID])
            self.get = table.embeddings
            self.is_exact = table.kind.is_exact and spec.metric in ("cosine", "l2")

        def scan(self, batch_size: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
            keys = self._table.ids_where()
            for start in range(0, len(keys), batch_size):
                yield keys[start : start + batch_size], self.get(keys[start : start + batch_size])

        def count(self) -> int:
            return len(self._table.ids_where())

        def verify(self) -> list[str]:
            return []

    def make(spec: SearchSpec, batches: Batches, source: VectorSource | None) -> Search:
        owner = f"x{uuid.uuid4().hex}"
        place = Address.parse(address.format(owner))
        table = MilvusTable(place, TableSpec(spec.dim, spec.metric, None, owner))
        table.create()
        for keys, stored in batches:
            table.upsert(keys, stored)
        return Table(spec, table)

    def reopen(search: Search) -> Search:
        table = MilvusTable(search._table.address, search._table.spec)
        table.open()
        return Table(search.spec, table)

    return Backend(make, reopen, lambda search: search._table.drop(), examples, max_id=MAX_ID)


BACKENDS = {
    name: Backend(with_faiss(factory)) for name, factory in [("flat",) * 2, ("half", "SQfp16"), ("hnsw", "HNSW8")]
}
MILVUS = [
    "milvus-lite",
    pytest.param("milvus-lite at length", marks=pytest.mark.slow),
    pytest.param("milvus server", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterable[dict[str, Backend]]:
    backends = {}
    has_client = importlib.util.find_spec("pymilvus") is not None
    if has_client and (uri := os.environ.get("DISTCAM_MILVUS_URI")):
        backends["milvus server"] = with_milvus(uri.rpartition("/")[0] + "/{}", 3)
    if has_client and importlib.util.find_spec("milvus_lite") is not None:
        file = tmp_path_factory.mktemp("milvus") / "rows.db"
        backends["milvus-lite"] = with_milvus(f"milvus+lite://{file}?collection={{}}", 1)
        backends["milvus-lite at length"] = with_milvus(f"milvus+lite://{file}?collection={{}}", 40)
    yield backends
    gc.collect()  # the connection closes with its last user


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param in BACKENDS:
        return BACKENDS[request.param]
    known = request.getfixturevalue("milvus")
    if request.param not in known:
        wanted = "DISTCAM_MILVUS_URI" if "server" in request.param else "pip install milvus-lite"
        pytest.skip(f"{request.param} needs pip install 'distcam[milvus]' and {wanted}")
    return known[request.param]


def distances(metric: Metric, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The definitions, in float64, without any of the package's code."""
    q, v = query.astype(float), vectors.astype(float)
    match metric:
        case "cosine":
            return 1 - (v @ q) / np.linalg.norm(v, axis=1) / np.linalg.norm(q)
        case "l2":
            return np.linalg.norm(v - q, axis=1)
        case "l1":
            return np.abs(v - q).sum(axis=1)
        case _:
            return -(v @ q)


def assert_is_the_answer(search: Search, hits: Hits, query: np.ndarray, stored: dict[int, np.ndarray], k: int) -> None:
    """The k nearest by (distance, id), where distances closer than rounding may stand in either order.

    A backend that does not claim to be exact may miss some, but never returns fewer, or a wrong distance.
    """
    assert len(hits.ids) == len(hits.distances) == min(k, len(stored))
    assert hits.ids.dtype == np.uint64
    assert hits.distances.dtype == np.float64
    if not stored:
        return
    ids = np.array(sorted(stored), np.uint64)
    expected = distances(search.spec.metric, query, np.stack([stored[int(key)] for key in ids]))
    of_id = dict(zip(ids.tolist(), expected, strict=True))
    own = np.array([of_id[int(key)] for key in hits.ids])
    np.testing.assert_allclose(hits.distances, own, rtol=1e-6, atol=1e-6)
    assert list(zip(hits.distances, hits.ids, strict=True)) == sorted(zip(hits.distances, hits.ids, strict=True))
    assert len(set(hits.ids.tolist())) == len(hits.ids)
    if not search.is_exact:
        return
    np.testing.assert_allclose(hits.distances, np.sort(expected)[:k], rtol=1e-6, atol=1e-6)
    for key in ids:  # a copy with a smaller id may not be passed over
        if key not in hits.ids:
            assert not (of_id[int(key)] == own[-1] and key < hits.ids[-1] and exactly_equal(stored, key, hits.ids[-1]))


def exactly_equal(stored: dict[int, np.ndarray], a: int, b: int) -> bool:
    return bool((stored[int(a)] == stored[int(b)]).all())


# Small whole numbers: copies, parallel vectors and ties everywhere.
vectors = st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM).filter(any).map(lambda v: np.array(v, np.float32))
ids = st.integers(0, 40)


def machine(backend: Backend, metric: Metric) -> type[RuleBasedStateMachine]:
    far_ids = st.sampled_from([2**40 + 3, 2**62 + 1, backend.max_id])

    class Model(RuleBasedStateMachine):
        """Any order of calls: the backend answers like the dictionary."""

        def __init__(self) -> None:
            super().__init__()
            self.stored: dict[int, np.ndarray] = {}
            self.spec = SearchSpec(DIM, metric)

        def read(self, keys: np.ndarray) -> np.ndarray:
            return np.stack([self.stored[int(key)] for key in keys])

        @initialize(reads_back=st.booleans())
        def open(self, reads_back: bool) -> None:
            self.search = backend.make(self.spec, [], self.read if reads_back else None)

        @rule(batch=st.dictionaries(ids | far_ids, vectors, max_size=8))
        def upsert(self, batch: dict[int, np.ndarray]) -> None:
            self.stored |= batch
            keys = np.array(list(batch), np.uint64)
            self.search.upsert(keys, np.stack(list(batch.values())) if batch else np.empty((0, DIM), np.float32))

        @rule(first=ids, copies=st.integers(1, 30), vector=vectors)
        def upsert_many_copies(self, first: int, copies: int, vector: np.ndarray) -> None:
            self.upsert(dict.fromkeys(range(first, first + copies), vector))

        @rule(keys=st.lists(ids | far_ids, max_size=10))
        def delete(self, keys: list[int]) -> None:
            self.search.delete(np.array(keys, np.uint64))
            for key in keys:
                self.stored.pop(key, None)

        @rule(queries=st.lists(vectors, max_size=6), k=st.integers(1, 60))
        def find(self, queries: list[np.ndarray], k: int) -> None:
            asked = np.array(queries, np.float32).reshape(-1, DIM)
            answers = self.search.search(asked, k)
            assert len(answers) == len(asked)
            for query, hits in zip(asked, answers, strict=True):
                assert_is_the_answer(self.search, hits, query, self.stored, k)

        @rule(query=vectors, k=st.integers(1, 5), allowed=st.lists(ids | far_ids, max_size=30))
        def find_among(self, query: np.ndarray, k: int, allowed: list[int]) -> None:
            (hits,) = self.search.search(query[None], k, allowed=np.array(allowed, np.uint64))
            kept = {key: self.stored[key] for key in allowed if key in self.stored}
            assert_is_the_answer(self.search, hits, query, kept, k)

        @rule(data=st.data())
        def get(self, data: st.DataObject) -> None:
            if self.stored:
                drawn = data.draw(st.lists(st.sampled_from(sorted(self.stored)), min_size=1, max_size=5))
                keys = np.array(drawn, np.uint64)
                np.testing.assert_array_equal(self.search.get(keys), self.read(keys))

        @rule(batch_size=st.integers(1, 7))
        def scan(self, batch_size: int) -> None:
            seen = list(self.search.scan(batch_size))
            assert [int(key) for keys, _ in seen for key in keys] == sorted(self.stored)
            for keys, found in seen:
                assert 0 < len(keys) <= batch_size
                np.testing.assert_array_equal(found, self.read(keys))

        @rule()
        def reopen(self) -> None:
            self.search = backend.reopen(self.search)

        @invariant()
        def counts(self) -> None:
            if hasattr(self, "search"):
                assert self.search.count() == len(self.stored)

        def teardown(self) -> None:
            if hasattr(self, "search"):
                assert self.search.verify() == []
                backend.drop(self.search)
                self.search.close()
                self.search.close()

    return Model


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", [*BACKENDS, *MILVUS], indirect=True)
def test_a_backend_answers_like_a_dictionary_whatever_is_done_to_it(backend: Backend, metric: Metric) -> None:
    run_state_machine_as_test(
        machine(backend, metric),
        settings=settings(
            max_examples=backend.examples,
            phases=[Phase.generate] if backend.max_id < 2**63 else Phase,  # a server is too slow to shrink with
            stateful_step_count=15,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("metric", METRICS)
def test_all_backends_give_the_same_bits_in_the_same_order(metric: Metric, milvus: dict[str, Backend]) -> None:
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((300, 8)).astype(np.float32)
    stored[100:140] = stored[7]  # one image forty times
    keys = rng.permutation(300).astype(np.uint64)
    queries = np.concatenate([stored[:5], stored[7:8], rng.standard_normal((5, 8)).astype(np.float32)])
    answers = []
    others = [backend for name, backend in milvus.items() if name != "milvus-lite at length"]
    for backend in (*BACKENDS.values(), Backend(with_faiss("IVF4,Flat")), *others):
        search = backend.make(SearchSpec(8, metric), [(keys, stored)], None)
        answers.append(search.search(queries, 20, allowed=keys[:250]))
        backend.drop(search)
    for other in answers[1:]:
        for hits, same in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(hits.ids, same.ids)
            np.testing.assert_array_equal(hits.distances, same.distances)
