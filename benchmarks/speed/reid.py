"""What evaluating and re-ranking cost at the size of Market-1501 and MSMT17, beside the usual ways of doing it.

    python benchmarks speed/reid --small        # a minute: the same code on an eighth of the images
    python benchmarks speed/reid                # Market-1501's size: 3,368 by 15,913 images, 2,048 dimensions
    python benchmarks speed/reid --only rerank rerank_dense
    python benchmarks speed/reid --msmt17       # also MSMT17's size, 11,659 by 82,161, in a process of its own

Features are seeded: one direction per identity, one per camera, and noise. The references are written here, plainly:
the evaluation walks each sorted row in Python, as widely used code does, and the re-ranking fills tables of all images
by all images. torchreid's own evaluation, in Python and in Cython, is measured too where it is installed. Every part
runs in a process of its own, so that its peak memory is its own; "above" is what it took on top of features and
libraries. CPU seconds count all threads. `evaluate` gives CMC, both mAPs, mINP and the camera table;
`evaluate_everything` ROC, TAR@FAR and DIR@FAR as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from machine import REACH_HEAD, command_of, describe_machine, reach_row

from distcam.reid import Labels, evaluate_distances, evaluate_features, rerank_features
from distcam.reid.distances import FeatureDistances

DIMENSION = 2048
SIZES = {"small": (421, 1989, 94, 6), "market": (3368, 15913, 750, 6), "msmt17": (11659, 82161, 3060, 15)}
K1, K2, SHARE = 20, 6, 0.3


@dataclass(frozen=True)
class Set:
    """Seeded features with identities and cameras."""

    query: np.ndarray
    gallery: np.ndarray
    query_labels: tuple[np.ndarray, np.ndarray]
    gallery_labels: tuple[np.ndarray, np.ndarray]

    @property
    def labels(self) -> dict[str, Labels]:
        return {"query": Labels(*self.query_labels), "gallery": Labels(*self.gallery_labels)}


def seeded(size: str, dimension: int, *, noise: float = 4.0) -> Set:
    n_query, n_gallery, n_identities, n_cameras = SIZES[size]
    random = np.random.default_rng(0)
    centres = random.standard_normal((n_identities + 1, dimension), dtype=np.float32)
    shifts = 0.5 * random.standard_normal((n_cameras, dimension), dtype=np.float32)

    def side(n: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        identity, camera = random.integers(1, n_identities + 1, n), random.integers(0, n_cameras, n)
        features = np.empty((n, dimension), np.float32)
        for start in range(0, n, 4096):
            rows = slice(start, min(start + 4096, n))
            features[rows] = noise * random.standard_normal((rows.stop - start, dimension), dtype=np.float32)
            features[rows] += centres[identity[rows]] + shifts[camera[rows]]
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return features, (identity, camera)

    query, gallery = side(n_query), side(n_gallery)
    return Set(query[0], gallery[0], query[1], gallery[1])


def table_of(data: Set) -> np.ndarray:
    return FeatureDistances(data.query, data.gallery).rows(0, len(data.query))


# ---- the usual ways --------------------------------------------------------------------------------------------------


def walked_evaluation(distances: np.ndarray, data: Set, max_rank: int = 50) -> dict[str, float]:
    """CMC, mAP and mINP by walking each sorted row, as the widely used Python code does."""
    (query_ids, query_cameras), (ids, cameras) = data.query_labels, data.gallery_labels
    order = np.argsort(distances, axis=1)
    cmcs, precisions, penalties = [], [], []
    for row, (identity, camera) in enumerate(zip(query_ids, query_cameras, strict=True)):
        ranked = order[row]
        kept = ranked[~((ids[ranked] == identity) & (cameras[ranked] == camera))]
        right = (ids[kept] == identity).astype(int)
        if not right.any():
            continue
        hits = right.cumsum()
        cmcs.append(np.minimum(hits[:max_rank], 1))
        precision = [found / (place + 1.0) for place, found in enumerate(hits)]
        precisions.append((np.asarray(precision) * right).sum() / right.sum())
        penalties.append(right.sum() / (np.flatnonzero(right)[-1] + 1.0))
    cmc = np.mean(cmcs, axis=0)
    return {"rank-1": float(cmc[0]), "mAP": float(np.mean(precisions)), "mINP": float(np.mean(penalties))}


def dense_reranking(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """k-reciprocal re-ranking with tables of all images by all images, float32, in the order of the paper."""
    features = np.concatenate([query, gallery])
    n, n_query = len(features), len(query)
    distance = np.maximum(2 - 2 * (features @ features.T), 0)
    np.fill_diagonal(distance, 0)
    distance /= distance.max(axis=1, keepdims=True)
    ranking = np.argsort(distance, axis=1).astype(np.int32)
    half = int(np.around(K1 / 2))

    def reciprocal(i: int, k: int) -> np.ndarray:
        forward = ranking[i, : k + 1]
        return forward[(ranking[forward, : k + 1] == i).any(axis=1)]

    encoding = np.zeros((n, n), np.float32)
    for i in range(n):
        mine = reciprocal(i, K1)
        expanded = mine
        for candidate in mine:
            theirs = reciprocal(int(candidate), half)
            if len(np.intersect1d(theirs, mine)) > 2 / 3 * len(theirs):
                expanded = np.append(expanded, theirs)
        expanded = np.unique(expanded)
        weight = np.exp(-distance[i, expanded])
        encoding[i, expanded] = weight / weight.sum()
    original = distance[:n_query].copy()
    if K2 > 1:
        averaged = np.zeros_like(encoding)
        for i in range(n):
            averaged[i] = encoding[ranking[i, :K2]].mean(axis=0)
        encoding = averaged
    holders = [np.flatnonzero(encoding[:, j]) for j in range(n)]
    jaccard = np.zeros((n_query, n), np.float32)
    for i in range(n_query):
        overlap = np.zeros(n, np.float32)
        for j in np.flatnonzero(encoding[i]):
            overlap[holders[j]] += np.minimum(encoding[i, j], encoding[holders[j], j])
        jaccard[i] = 1 - overlap / (2 - overlap)
    return ((1 - SHARE) * jaccard + SHARE * original)[:, n_query:]


# ---- the parts, each in its own process ------------------------------------------------------------------------------


def measured(run: Callable[[], Any]) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return spent | {"peak_gb": peak / 2**20, "above_gb": (peak - before) / 2**20, **result}


def scores(evaluation: Any) -> dict[str, float]:
    return {"rank-1": evaluation.rank(1), "mAP": evaluation.map_step, "mINP": evaluation.minp}


def part_evaluate(data: Set) -> dict[str, Any]:
    table = table_of(data)
    return measured(lambda: scores(evaluate_distances(table, **data.labels, false_accept_rates=())))


def part_evaluate_everything(data: Set) -> dict[str, Any]:
    table = table_of(data)
    return measured(lambda: scores(evaluate_distances(table, **data.labels)))


def part_evaluate_features(data: Set) -> dict[str, Any]:
    return measured(lambda: scores(evaluate_features(data.query, data.gallery, **data.labels)))


def part_evaluate_python(data: Set) -> dict[str, Any]:
    table = table_of(data)
    return measured(lambda: walked_evaluation(table, data))


def _torchreid(data: Set, *, cython: bool) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    try:
        from torchreid.reid.metrics.rank import evaluate_rank

        if cython:
            import torchreid.reid.metrics.rank_cylib.rank_cy  # noqa: F401
    except Exception as error:
        return {"skipped": f"{type(error).__name__}: {error}"}
    table = table_of(data)
    labels = (data.query_labels[0], data.gallery_labels[0], data.query_labels[1], data.gallery_labels[1])

    def run() -> dict[str, float]:
        cmc, mean = evaluate_rank(table, *labels, max_rank=50, use_cython=cython)
        return {"rank-1": float(cmc[0]), "mAP": float(mean)}

    return measured(run)


def part_evaluate_torchreid(data: Set) -> dict[str, Any]:
    return _torchreid(data, cython=False)


def part_evaluate_cython(data: Set) -> dict[str, Any]:
    return _torchreid(data, cython=True)


def part_rerank(data: Set) -> dict[str, Any]:
    def run() -> dict[str, float]:
        reranked = rerank_features(data.query, data.gallery, k1=K1, k2=K2, original_share=SHARE)
        ready = time.perf_counter()
        return scores(evaluate_distances(reranked, **data.labels)) | {"evaluated_in": time.perf_counter() - ready}

    return measured(run)


def part_rerank_dense(data: Set) -> dict[str, Any]:
    def run() -> dict[str, float]:
        table = dense_reranking(data.query, data.gallery)
        ready = time.perf_counter()
        return scores(evaluate_distances(table, **data.labels)) | {"evaluated_in": time.perf_counter() - ready}

    return measured(run)


PARTS: dict[str, Callable[[Set], dict[str, Any]]] = {
    "evaluate": part_evaluate,
    "evaluate_everything": part_evaluate_everything,
    "evaluate_features": part_evaluate_features,
    "evaluate_python": part_evaluate_python,
    "evaluate_torchreid": part_evaluate_torchreid,
    "evaluate_cython": part_evaluate_cython,
    "rerank": part_rerank,
    "rerank_dense": part_rerank_dense,
}


def in_own_process(part: str, size: str, dimension: int) -> dict[str, Any]:
    command = [*command_of(__name__), "--part", part, "--size", size, "--dimension", str(dimension)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ)
    if finished.returncode:
        return {"skipped": f"ended with status {finished.returncode}"}
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def line(name: str, found: dict[str, Any], base: dict[str, Any]) -> str:
    if "skipped" in found:
        return f"| {name} | – | | | | | {found['skipped'][:60]} |"
    ratio = found["cpu"] / base["cpu"]
    memory = f"{found['peak_gb']:.2f} | {found['above_gb']:.2f}"
    accuracy = f"{100 * found['rank-1']:.4f} / {100 * found['mAP']:.4f}"
    return f"| {name} | {found['wall']:.2f} | {found['cpu']:.2f} | {ratio:.1f} | {memory} | {accuracy} |"


def report(size: str, dimension: int, parts: tuple[str, ...]) -> None:
    n_query, n_gallery, *_ = SIZES[size]
    print(f"\n{n_query:,} × {n_gallery:,}, {dimension} dimensions\n")
    print("| part | wall s | CPU s | × CPU | peak GB | above GB | rank-1 / mAP |\n|---|---:|---:|---:|---:|---:|---|")
    base: dict[str, Any] = {}
    for part in parts:
        found = in_own_process(part, size, dimension)
        base = base or found
        print(line(part, found, base), flush=True)
        if part == "rerank_dense" and "skipped" not in base and "skipped" not in found:
            print(f"\n{REACH_HEAD}\n{reach_row('re-ranking, × the dense way', [base['cpu'] / found['cpu']], 0.1)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--msmt17", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="Leave the other parts out.")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=SIZES, default="market", help=argparse.SUPPRESS)
    parser.add_argument("--dimension", type=int, default=DIMENSION)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](seeded(options.size, options.dimension))))
        return
    print(describe_machine("distcam", "numpy", "torchreid"))
    size = "small" if options.small else "market"
    for kind in ("evaluate", "rerank"):
        parts = tuple(part for part in options.only if part.startswith(kind))
        if parts:
            report(size, options.dimension, parts)
    if options.msmt17:
        report("msmt17", options.dimension, ("rerank",))
