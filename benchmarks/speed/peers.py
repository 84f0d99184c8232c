"""Approximate search at equal recall beside hnswlib, usearch and LanceDB: `python benchmarks speed/peers [--n 100000]`.

Everyone indexes the same clustered vectors (cosine, seeded) and answers with the ten nearest. Each is searched with
more and more effort until `--recall` of the true ten are found, and is timed there: single queries, CPU time,
one thread. Ours is the index with its exact distances, ids and order; hnswlib and usearch give numbers and distances in
single precision; LanceDB's table is on disk, re-scores ten candidates for each answer, and its time is wall time, since
its threads are its own. A peer that is not installed is a row that says so.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import faiss
import numpy as np
from machine import describe_machine
from speed.search import clustered

from distcam.index.faiss.search import FaissSearch
from distcam.metrics.distances import SearchSpec

EFFORTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
K = 10
Ask = Callable[[np.ndarray], np.ndarray]  # one query (1, d): numbers of the ten nearest
Sized = Iterator[tuple[str, Ask]]  # more and more effort, in words


def ours(factory: str, vectors: np.ndarray) -> Sized:
    """The index as it measures itself for a recall of .99, so with one effort alone."""
    spec, ids = SearchSpec(vectors.shape[1], "cosine"), np.arange(len(vectors), dtype=np.uint64)
    search = FaissSearch.from_source(
        spec, ids, lambda ids: vectors[ids.astype(np.int64)], factory=factory, device="cpu"
    )
    yield f"{search.description}", lambda query: search.search(query, K)[0].ids.astype(np.int64)


def hnswlib_of(vectors: np.ndarray) -> Sized:
    import hnswlib

    index = hnswlib.Index(space="cosine", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), M=16, ef_construction=100, random_seed=0)
    index.add_items(vectors, num_threads=1)
    for effort in EFFORTS:
        index.set_ef(max(effort, K))
        yield (
            f"M 16, ef {max(effort, K)}",
            lambda query: index.knn_query(query, K, num_threads=1)[0][0].astype(np.int64),
        )


def usearch_of(vectors: np.ndarray) -> Sized:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="cos", dtype="f32", connectivity=16, expansion_add=100)
    index.add(np.arange(len(vectors), dtype=np.uint64), vectors, threads=1)
    for effort in EFFORTS:
        index.expansion_search = max(effort, K)
        yield f"M 16, ef {max(effort, K)}", lambda query: index.search(query[0], K, threads=1).keys.astype(np.int64)


def lancedb_of(vectors: np.ndarray) -> Sized:
    import lancedb
    import pyarrow as pa

    with tempfile.TemporaryDirectory() as folder:
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        content = pa.table({"number": np.arange(len(vectors)), "vector": column})
        table = lancedb.connect(folder).create_table("images", content)
        table.create_index(metric="cosine", num_partitions=256, num_sub_vectors=vectors.shape[1] // 8)
        for effort in EFFORTS:

            def ask(query: np.ndarray, n: int = effort) -> np.ndarray:
                asked: Any = table.search(query[0]).distance_type("cosine").nprobes(n).refine_factor(10)
                found: np.ndarray = asked.limit(K).select(["number", "_distance"]).to_arrow()["number"].to_numpy()
                return found

            yield f"IVF256, PQ, nprobes {effort}, refine 10", ask


SIDES: dict[str, tuple[str | None, Callable[[np.ndarray], Sized], Callable[[], float]]] = {
    "distcam, IVF1024,SQfp16": (None, lambda v: ours("IVF1024,SQfp16", v), time.process_time),
    "distcam, HNSW32": (None, lambda v: ours("HNSW32", v), time.process_time),
    "hnswlib": ("hnswlib", hnswlib_of, time.process_time),
    "usearch": ("usearch", usearch_of, time.process_time),
    "LanceDB": ("lancedb", lancedb_of, time.perf_counter),
}


def recall_of(ask: Ask, queries: np.ndarray, truth: list[set[int]]) -> float:
    """Share of the true neighbours that are found."""
    found = [len(truth[row] & set(ask(queries[row : row + 1]).tolist())) for row in range(len(queries))]
    return sum(found) / (K * len(queries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000, help="vectors")
    parser.add_argument("--d", type=int, default=128, help="dimensions")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--rounds", type=int, default=5, help="of all queries, one by one")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    vectors = clustered(options.n, options.d, rng)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[rng.integers(0, options.n, options.queries)]
    queries += 0.5 * rng.standard_normal(queries.shape, dtype=np.float32) / np.sqrt(options.d, dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exact = faiss.IndexFlatIP(options.d)
    exact.add(vectors)
    truth = [set(row) for row in exact.search(queries, K)[1].tolist()]
    print(describe_machine("faiss-cpu", "hnswlib", "usearch", "lancedb"))
    print(f"{options.n:,} × {options.d}, {options.queries} queries, k {K}, recall@{K} of at least {options.recall}\n")
    print("| index | build, CPU s | effort | recall@10 | a query, ms: median [min, max] |\n|---|---:|---|---:|---:|")
    for name in options.only:
        package, side, clock = SIDES[name]
        if package is not None and find_spec(package) is None:
            print(f"| {name} | | not installed | | |", flush=True)
            continue
        start, efforts = time.process_time(), side(vectors)  # held: it owns what it searches
        effort, ask = next(efforts)
        build = time.process_time() - start
        while (recall := recall_of(ask, queries, truth)) < options.recall and (more := next(efforts, None)) is not None:
            effort, ask = more
        rounds = []
        for _ in range(options.rounds):
            start = clock()
            for row in range(len(queries)):
                ask(queries[row : row + 1])
            rounds.append(1e3 * (clock() - start) / len(queries))
        spread = f"{statistics.median(rounds):.2f} [{min(rounds):.2f}, {max(rounds):.2f}]"
        print(f"| {name} | {build:.1f} | {effort} | {recall:.3f} | {spread} |", flush=True)
