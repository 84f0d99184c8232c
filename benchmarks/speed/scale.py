"""A gallery of millions, searched by an approximate index with exact re-scoring, beside raw FAISS of the same kind.

    python benchmarks speed/scale [--n 2000000 --dim 512 --factory IVF4096,SQfp16]
    python benchmarks speed/scale --n 2000000 --factory tune          # every candidate of `distcam index tune`

Writes a real gallery of clustered unit vectors (seeded, made block by block; no images), builds and sets its index,
opens it in a fresh process, and compares single queries and batches with `search` of the very FAISS index that distcam
holds, at the same nprobe. Every phase runs in a process of its own, so that its peak memory is its own. At the end:
a batch on 100,000 × 512 against FAISS's Flat as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from machine import command_of, describe_machine, interleave

from distcam.files import Storage, WriterLock
from distcam.index import FaissSearch, Gallery, SearchSpec
from distcam.index.faiss.candidates import GroundTruth, ground_truth
from distcam.index.faiss.tuning import readable
from distcam.index.search import Hits
from distcam.index.storage.manifest import EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.writer import CommitLimits, GalleryWriter
from distcam.metrics.distances import distances_to

BLOCK = 65_536


def clustered_blocks(options: argparse.Namespace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(vectors, centre of each), a block at a time: unit vectors around unit centres, half as long a noise."""
    centres = np.random.default_rng(options.seed).standard_normal((options.centres, options.dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    for number, start in enumerate(range(0, options.n, BLOCK)):
        rng = np.random.default_rng([options.seed, number])
        count = min(BLOCK, options.n - start)
        vectors = rng.standard_normal((count, options.dim), dtype=np.float32)
        vectors *= np.float32(0.5 / np.sqrt(options.dim))
        nearest = rng.integers(0, options.centres, count)
        vectors += centres[nearest]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield vectors, nearest


def write_gallery(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The gallery, through the writer that builds use."""
    spec = Spec(options.metric, options.dim, options.dim, embedding_is_pooled=True)
    manifest = Manifest(spec, EncoderEntry("0" * 64, "synthetic/0"), root=str(folder.parent.absolute()), index="flat")
    start = time.perf_counter()
    Storage().make_folder(folder)
    limits = CommitLimits(images=BLOCK, vector_bytes=1 << 40, seconds=1e9, segment_images=2 * BLOCK)
    done = 0
    with WriterLock(folder):
        writer = GalleryWriter(folder, manifest, on_disk=None, limits=limits)
        for vectors, centres in clustered_blocks(options):
            count = len(vectors)
            entries = Entries(
                ids=np.arange(count, dtype=np.uint64),
                paths=[f"{centre:05d}/{done + i:08d}.jpg" for i, centre in enumerate(centres.tolist())],
                sha256=np.zeros((count, 32), np.uint8),
                size=np.zeros(count, np.uint64),
                mtime_ns=np.zeros(count, np.int64),
                columns={"label": [f"{centre:05d}" for centre in centres.tolist()]},
            )
            writer.append(entries, RowVectors(vectors, vectors))
            done += count
        writer.commit(complete=True)
    return {"seconds": time.perf_counter() - start, "bytes": sum(file.stat().st_size for file in folder.iterdir())}


def build_index(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The index, tuned on the gallery's own vectors and stored."""
    start = time.perf_counter()
    gallery = Gallery.open(folder)
    opened = time.perf_counter() - start
    report = gallery.tune(
        recall=options.recall,
        candidates=None if options.factory == "tune" else [options.factory],
        queries=options.queries,
        memory=options.memory << 30,
        seed=options.seed,
    )
    entry = gallery.manifest.index_cache
    return {
        "open_seconds": opened,
        "seconds": time.perf_counter() - start,
        "report": report.to_dict(),
        "index_file_bytes": None if entry is None else entry.file.bytes,
    }


def probe(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Opening the gallery and searching for the first time, in a process that has done nothing else."""
    query = next(clustered_blocks(options))[0][:50]
    before, start = resident(), time.perf_counter()
    gallery = Gallery.open(folder)
    opened, after_open = time.perf_counter() - start, resident()
    start = time.perf_counter()
    gallery.search(query[:1], 10)
    first = time.perf_counter() - start
    later = []
    for row in query[1:]:
        start = time.perf_counter()
        gallery.search(row[None], 10)
        later.append(time.perf_counter() - start)
    return {
        "open_seconds": opened,
        "first_search_seconds": first,
        "search_ms": 1e3 * statistics.median(later),
        "is_mapped": getattr(gallery.searcher, "is_mapped", False),
        "before": before,
        "opened": after_open,
        "searched": resident(),
    }


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """distcam and the raw index it holds, turn by turn; recall against the truth of all vectors."""
    gallery = Gallery.open(folder)
    search, spec = gallery.searcher, SearchSpec(options.dim, options.metric)
    assert isinstance(search, FaissSearch)
    truth = ground_truth(spec, gallery.ids, gallery.embeddings, queries=options.queries, k=100, seed=options.seed + 1)
    raw, queries, k = search.store.index, truth.queries, options.k
    parameters = search.store.parameters()
    answers = search.search(queries, k + 1)
    rows = raw.search(queries, k + 1, params=parameters)[1]
    singles = interleave(
        {
            "raw": one_by_one(lambda query: raw.search(query, k, params=parameters), queries),
            "distcam": one_by_one(lambda query: gallery.search(query, k), queries),
        },
        rounds=options.rounds * 40,
        clock=time.perf_counter,
    )
    batches = interleave(
        {
            "raw": lambda: raw.search(queries, k, params=parameters),
            "distcam": lambda: gallery.search(queries, k),
        },
        rounds=options.rounds,
        clock=time.perf_counter,
    )
    return {
        "description": search.description,
        "recall": truth.recall(answers, k),
        "raw_recall": truth.recall([exact_hits(spec, truth, gallery, row, i) for i, row in enumerate(rows)], k),
        "single_ms": {name: 1e3 * statistics.median(values) for name, values in singles.items()},
        "batch_ms": {name: 1e3 * statistics.median(values) / len(queries) for name, values in batches.items()},
    }


def one_by_one(search: Any, queries: np.ndarray) -> Any:
    """A call that asks the next query each time."""
    turn = iter(range(10**9))
    return lambda: search(queries[next(turn) % len(queries)][None])


def exact_hits(spec: SearchSpec, truth: GroundTruth, gallery: Gallery, rows: np.ndarray, number: int) -> Hits:
    """What raw FAISS found, with true distances: ids are rows in this gallery, from which nothing was removed."""
    ids = rows[rows >= 0].astype(np.uint64)
    return Hits(ids, distances_to(spec, truth.queries[number], gallery.ranking_vectors(ids)))


def flat_at_scale(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Raw FAISS Flat over everything, for scale."""
    gallery = Gallery.open(folder)
    index = faiss.index_factory(options.dim, "Flat", faiss.METRIC_INNER_PRODUCT)
    for start in range(0, len(gallery), BLOCK):
        index.add(gallery.embeddings(gallery.ids[start : start + BLOCK]))
    queries = gallery.embeddings(gallery.ids[: options.queries])
    single = [timed(lambda i=i: index.search(queries[i : i + 1], options.k)) for i in range(5)]
    return {
        "single_ms": 1e3 * statistics.median(single),
        "batch_ms": 1e3 * timed(lambda: index.search(queries, options.k)) / len(queries),
    }


def batch_check(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A batch on 100,000 × 512: distcam's Flat against FAISS's as it comes, and with matrix products switched on."""
    del folder
    small = argparse.Namespace(**{**vars(options), "n": options.batch_n, "dim": 512, "centres": 2000})
    vectors = np.concatenate([block for block, _ in clustered_blocks(small)])
    ids = np.arange(len(vectors), dtype=np.uint64)
    search = FaissSearch.build(SearchSpec(512, "cosine"), [(ids, vectors)], count=len(ids), factory="flat")
    raw, queries = search.store.index, vectors[:200]
    seconds = interleave(
        {"raw": lambda: raw.search(queries, 10), "distcam": lambda: search.search(queries, 10)},
        rounds=options.rounds,
        clock=time.perf_counter,
    )
    ratios = [ours / theirs for ours, theirs in zip(seconds["distcam"], seconds["raw"], strict=True)]
    return {
        "raw_ms": 1e3 * statistics.median(seconds["raw"]),
        "distcam_ms": 1e3 * statistics.median(seconds["distcam"]),
        "ratio": statistics.median(ratios),
    }


def timed(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def resident() -> dict[str, float]:
    """MiB of this process that are in memory: its own, and file pages that can be dropped at any time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"own": sizes["RssAnon"], "files": sizes["RssFile"]}


PHASES = {
    "write": write_gallery,
    "index": build_index,
    "probe": probe,
    "compare": compare,
    "flat": flat_at_scale,
    "batch": batch_check,
}


def run(phase: str, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """A phase in its own process."""
    command = [*command_of(__name__), *arguments, "--phase", phase, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report_index(index: dict[str, Any], n: int) -> None:
    print(
        "\n| candidate | bytes/vector | build s | recall@1 | @10 | @100 | ms | p95 | batch ms | nprobe | over-fetch |"
    )
    print("|---|" + "---:|" * 10)
    for trial in index["report"]["trials"]:
        found, size = trial["tuning"], trial["total_bytes"] / n
        if found is None:
            print(f"| {trial['factory']} | {size:.0f} | {trial['note']} |" + " |" * 8)
            continue
        recalls = " | ".join(f"{found[name]:.4f}" for name in ("recall_at_1", "recall_at_10", "recall_at_100"))
        times = " | ".join(f"{found[name]:.2f}" for name in ("latency_ms", "latency_p95_ms", "batch_ms"))
        knobs = f"{found['effort'] or '–'} | {found['overfetch']}"
        print(f"| {trial['factory']} | {size:.0f} | {found['build_seconds']:.0f} | {recalls} | {times} | {knobs} |")
    size = index["index_file_bytes"]
    print(
        f"\nchosen: {index['report']['tuning']['factory']}; open, build, measure, store: {index['seconds']:.0f} s, "
        f"peak {index['peak_mib'] / 1024:.1f} GiB with file pages; file {'none' if size is None else readable(size)}"
    )


def report_comparison(probed: dict[str, Any], compared: dict[str, Any], options: argparse.Namespace) -> None:
    opened, searched = probed["opened"], probed["searched"]
    print(
        f"fresh process: open {probed['open_seconds']:.2f} s ({opened['own'] - probed['before']['own']:.0f} MiB of its "
        f"own), first search {probed['first_search_seconds']:.2f} s, index mapped: {probed['is_mapped']}; then "
        f"{searched['own']:.0f} MiB of its own and {searched['files']:.0f} MiB of file pages"
    )
    print(
        f"\n{compared['description']}; recall@{options.k} of raw FAISS at the same setting {compared['raw_recall']:.4f}"
    )
    print(f"recall@{options.k} after re-scoring, against the truth: {compared['recall']:.4f}")
    print("\n| per query, wall | raw FAISS, ms | distcam, ms | ratio |\n|---|---:|---:|---:|")
    for kind in ("single", "batch"):
        values = compared[f"{kind}_ms"]
        print(f"| {kind} | {values['raw']:.3f} | {values['distcam']:.3f} | {values['distcam'] / values['raw']:.2f} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--centres", type=int, default=20_000, help="clusters; at most a twentieth of --n are used")
    parser.add_argument("--metric", default="cosine", choices=["cosine", "dot"])
    parser.add_argument("--factory", default="IVF4096,SQfp16", help="a FAISS factory string, or `tune`")
    parser.add_argument("--recall", type=float, default=0.97)
    parser.add_argument("--memory", type=int, default=8, help="GiB that the index may take")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-n", type=int, default=100_000, help="vectors of the batch check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where the gallery goes; default: a temporary folder")
    parser.add_argument("--no-flat", action="store_true", help="leave out Flat over everything: 4·n·dim bytes")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.centres = min(options.centres, max(options.n // 20, 1))
    return options


def main() -> None:
    options = parse()
    if options.phase:
        result = PHASES[options.phase](options.folder, options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**result, "peak_mib": peak}))
        return
    threads = f"{faiss.omp_get_max_threads()} threads on {os.cpu_count()} cores"
    print(f"{describe_machine('numpy')}, FAISS {faiss.__version__}, {threads}")
    print(f"{options.n} × {options.dim}, {options.centres} centres, {options.metric}, seed {options.seed}")
    arguments = sys.argv[1:]
    work = Path(tempfile.mkdtemp(dir=options.work))
    try:
        folder = work / "scale.gallery"
        written = run("write", folder, arguments)
        peak = f"peak {written['peak_mib'] / 1024:.1f} GiB"
        print(f"gallery written in {written['seconds']:.0f} s, {readable(written['bytes'])}, {peak}", flush=True)
        report_index(run("index", folder, arguments), options.n)
        report_comparison(run("probe", folder, arguments), run("compare", folder, arguments), options)
        if not options.no_flat:
            flat = run("flat", folder, arguments)
            print(
                f"\nraw Flat over everything: {flat['single_ms']:.1f} ms single, {flat['batch_ms']:.2f} ms in a batch"
            )
    finally:
        shutil.rmtree(work)
    batch = run("batch", work, arguments)
    print(
        f"\n200 queries on {options.batch_n} × 512: FAISS Flat as it comes {batch['raw_ms']:.0f} ms, distcam "
        f"{batch['distcam_ms']:.0f} ms, ratio {batch['ratio']:.2f} (wanted: at most 0.5)"
    )
