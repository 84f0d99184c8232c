"""What distcam's search costs beside raw FAISS: `python benchmarks speed/search [--n 100000 --d 512 --threads 1]`.

Raw FAISS is `search(queries, k)` of the very index that distcam holds: float32 distances, row numbers, ties in no
promised order. distcam adds checks, exact distances, ids, and the order (distance, id); it gives the true neighbours,
copies included. Both take turns and may use `--threads` threads; filters are made ready for raw FAISS, not for distcam.
Ratios below 1 come from searching batches as matrix products long before FAISS does, and from not masking inside FAISS
where that is the slower way; `--ways` measures where those ways cross. `--waits` measures instead what people wait for:
the first search of a gallery that was just opened, beside building its index, and what a batch costs beyond FAISS's own
time in the same calls. CPU time unless `--clock wall`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import faiss
import numpy as np
from machine import REACH_HEAD, describe_machine, interleave, reach_row

from distcam.files import Storage, WriterLock
from distcam.index import Gallery
from distcam.index.faiss import candidates
from distcam.index.faiss.candidates import Candidates
from distcam.index.faiss.search import FaissSearch
from distcam.index.storage.manifest import EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.writer import CommitLimits, GalleryWriter
from distcam.metrics.distances import SearchSpec

SHARES = (1.0, 0.5, 0.1, 0.01)
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def clustered(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Vectors that lie as embeddings do: around one centre for every fifty."""
    centres = rng.standard_normal((max(n // 50, 1), d), dtype=np.float32)
    vectors = 0.5 * rng.standard_normal((n, d), dtype=np.float32)
    vectors += centres[rng.integers(0, len(centres), n)]
    return vectors


@contextmanager
def matrix_products() -> Any:
    """FAISS's switch to BLAS, set by hand as an expert would."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 1
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


class Sides:
    """One gallery as raw FAISS and as distcam hold it."""

    def __init__(self, metric: str, vectors: np.ndarray, factory: str = "flat") -> None:
        self.metric, self.n = metric, len(vectors)
        self.ids = np.arange(self.n, dtype=np.uint64)
        spec = SearchSpec(vectors.shape[1], metric)  # type: ignore[arg-type]
        self.ours = FaissSearch.build(
            spec,
            [(self.ids, vectors)],
            count=self.n,
            factory=factory,
            device="cpu",
            source=lambda ids: vectors[ids.astype(np.int64)],
        )
        self.raw = self.ours.store.index  # another copy would lie elsewhere in memory: up to a tenth of difference

    def prepared(self, vectors: np.ndarray) -> np.ndarray:
        """What a user of raw FAISS does for cosine."""
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if self.metric == "cosine" else vectors

    def allowed(self, share: float) -> np.ndarray | None:
        rng = np.random.default_rng(1)
        return None if share == 1 else np.sort(rng.permutation(self.ids)[: max(int(share * self.n), 1)])

    def contestants(self, queries: np.ndarray, k: int, share: float) -> dict[str, Callable[[], object]]:
        ready, allowed = self.prepared(queries), self.allowed(share)
        bits = np.packbits(np.ones(self.n, bool) if allowed is None else np.isin(self.ids, allowed), bitorder="little")
        selector = faiss.IDSelectorBitmap(self.n, faiss.swig_ptr(bits))
        parameters = None if allowed is None else faiss.SearchParameters(sel=selector)

        def raw() -> object:
            assert len(bits)  # FAISS only borrows them
            return self.raw.search(ready, k, params=parameters)

        def raw_with_matrix_products() -> object:
            with matrix_products():
                return raw()

        return {
            "raw": raw,
            "raw, matrix products": raw_with_matrix_products,
            "distcam": lambda: self.ours.search(queries, k, allowed=allowed),
        }


def ratio(seconds: dict[str, list[float]], base: str) -> str:
    """Median over the rounds, with their middle half."""
    ratios = sorted(a / b for a, b in zip(seconds["distcam"], seconds[base], strict=True))
    return f"{statistics.median(ratios):.2f} [{ratios[len(ratios) // 4]:.2f}, {ratios[-1 - len(ratios) // 4]:.2f}]"


def compare(sides: Sides, queries: np.ndarray, options: argparse.Namespace) -> None:
    """One line for each kind of call."""
    for n_queries in (1, len(queries)):
        rounds = options.rounds if n_queries == 1 else max(options.rounds // 10, 3)
        for share in SHARES:
            contestants = sides.contestants(queries[:n_queries], options.k, share)
            seconds = interleave(contestants, rounds=rounds, clock=CLOCKS[options.clock])
            extra = statistics.median(a - b for a, b in zip(seconds["distcam"], seconds["raw"], strict=True))
            raw = 1e3 * statistics.median(seconds["raw"])
            ratios = f"{ratio(seconds, 'raw')} | {ratio(seconds, 'raw, matrix products')}"
            cells = (
                f"{sides.metric} | {n_queries} | {share:.0%} | {raw:.2f} | {ratios} | {1e6 * extra / n_queries:+.0f}"
            )
            print(f"| {cells} |", flush=True)


def compare_ways(vectors: np.ndarray, queries: np.ndarray, options: argparse.Namespace) -> None:
    """Milliseconds of each way to filter, for exact indexes, single queries and batches."""
    print("| index | queries | allowed | all, then drop | gather | mask |\n|---|---|---|---|---|---|")
    for factory in ("flat", "SQfp16"):
        sides = Sides("cosine", vectors, factory)
        for n_queries in (1, len(queries)):
            for share in (1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.03, 0.01):
                allowed = sides.allowed(share)

                def by(way: str, n: int = n_queries, allowed: Any = allowed, sides: Sides = sides) -> object:
                    with patch.object(Candidates, "_way", lambda *_: way):
                        return sides.ours.search(queries[:n], options.k, allowed=allowed)

                ways = ("all", "gather", "mask")
                seconds = interleave(
                    {way: lambda way=way, by=by: by(way) for way in ways}, rounds=5, clock=CLOCKS[options.clock]
                )
                cells = " | ".join(f"{1e3 * statistics.median(seconds[way]):.2f}" for way in ways)
                print(f"| {factory} | {n_queries} | {share:.0%} | {cells} |", flush=True)


def write_gallery(folder: Path, vectors: np.ndarray) -> None:
    """A gallery of these vectors, through the writer that builds use; no images."""
    count, dim = vectors.shape
    manifest = Manifest(
        Spec("cosine", dim, dim, embedding_is_pooled=True), EncoderEntry("0" * 64, "synthetic/0"), root=str(folder)
    )
    Storage().make_folder(folder)
    limits = CommitLimits(images=count, vector_bytes=1 << 40, seconds=1e9, segment_images=2 * count)
    with WriterLock(folder):
        writer = GalleryWriter(folder, manifest, on_disk=None, limits=limits)
        zeros = np.zeros(count, np.uint64)
        entries = Entries(
            ids=np.arange(count, dtype=np.uint64),
            paths=[f"{row:08d}.jpg" for row in range(count)],
            sha256=np.zeros((count, 32), np.uint8),
            size=zeros,
            mtime_ns=zeros.astype(np.int64),
            columns={"label": [None] * count},
        )
        writer.append(entries, RowVectors(vectors, vectors))
        writer.commit(complete=True)


def compare_waits(vectors: np.ndarray, queries: np.ndarray, options: argparse.Namespace) -> None:
    """The first search of a gallery, and what a batch costs beyond FAISS."""
    clock = CLOCKS[options.clock]
    first, build = [], []
    with tempfile.TemporaryDirectory() as work:
        write_gallery(Path(work) / "search.gallery", vectors)
        for query in queries[: max(options.rounds // 10, 3)]:
            with Gallery.open(Path(work) / "search.gallery") as gallery:
                start = clock()
                gallery.search(query[None], options.k)
                first.append(clock() - start)
                start = clock()
                assert gallery.searcher.count() == len(vectors)
                build.append(clock() - start)
    print(REACH_HEAD)
    print(reach_row("first search of an opened gallery", first, 0.1, unit="s"))
    print(reach_row("... beside building its index", [a / b for a, b in zip(first, build, strict=True)], 0.2))
    ours = Sides("cosine", vectors).ours
    inside, beyond = 0.0, []
    asked = candidates.searched

    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal inside
        start = clock()
        answer = asked(*arguments, **named)
        inside += clock() - start
        return answer

    with patch.object(candidates, "searched", timed):
        for _ in range(max(options.rounds // 10, 3)):
            inside, start = 0.0, clock()
            ours.search(queries, options.k)
            beyond.append(1e6 * (clock() - start - inside) / len(queries))
    print(reach_row(f"a query of {len(queries)} beyond FAISS's own time", beyond, 15, unit="µs"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000, help="gallery vectors")
    parser.add_argument("--d", type=int, default=512, help="dimensions")
    parser.add_argument("--queries", type=int, default=200, help="queries in a batch")
    parser.add_argument("-k", type=int, default=10, help="neighbours")
    parser.add_argument("--rounds", type=int, default=50, help="rounds of single queries; batches take a tenth")
    parser.add_argument("--threads", type=int, default=1, help="OpenMP threads of both sides; 0 leaves FAISS's default")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--metrics", nargs="+", default=["cosine", "l2"], choices=["cosine", "l2", "dot"])
    parser.add_argument("--ways", action="store_true", help="compare the ways to filter instead")
    parser.add_argument("--waits", action="store_true", help="the first search, and batches beyond FAISS, instead")
    options = parser.parse_args()
    if options.threads:
        faiss.omp_set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    vectors = clustered(options.n, options.d, rng)
    queries = vectors[rng.integers(0, options.n, options.queries)]
    queries += 0.2 * rng.standard_normal(queries.shape, dtype=np.float32)
    print(f"{describe_machine('numpy')}, FAISS {faiss.__version__}, {faiss.omp_get_max_threads()} thread(s)")
    print(f"{options.n} × {options.d} vectors, k = {options.k}, {options.clock} time; [middle half of the rounds]\n")
    if options.waits:
        return compare_waits(vectors, queries, options)
    if options.ways:
        return compare_ways(vectors, queries, options)
    print(
        "| metric | queries | allowed | raw FAISS, ms | distcam / raw | distcam / raw, BLAS on | µs added per query |"
    )
    print("|---|---|---|---|---|---|---|")
    for metric in options.metrics:
        compare(Sides(metric, vectors), queries, options)
    return None
