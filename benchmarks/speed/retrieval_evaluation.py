"""Time and memory of an evaluation the size of Stanford Online Products, beside pytorch-metric-learning's.

    python benchmarks speed/retrieval_evaluation [--n 60502 --classes 11316 --d 128]

Seeded vectors around one centre per class, every one a query against all others. Ours: R@k, MAP@R, R-precision and mAP
over the whole ranking, exact. Peers compute less at this size: pytorch-metric-learning's AccuracyCalculator with
k="max_bin_count" has R@1, R-precision and MAP@R; for mAP it needs the whole ranking, n × n indices and distances at
once, and so it is run on `--small` vectors only. Memory is the growth of the process's peak over the vectors
themselves; each side runs in a process of its own. `--nmi` times the clustering alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
from machine import REACH_HEAD, command_of, describe_machine, interleave, reach_row

import distcam.retrieval.evaluation as evaluation


def clustered(n: int, classes: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and class numbers."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % classes)
    vectors = rng.standard_normal((classes, d), dtype=np.float32)[labels]
    vectors += 1.5 * rng.standard_normal((n, d), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


def ours(vectors: np.ndarray, labels: np.ndarray) -> Callable[[], dict[str, float]]:
    from distcam.retrieval import RetrievalProtocol, evaluate_embeddings

    protocol = RetrievalProtocol(recall_at=(1, 10, 100, 1000), clusters=False)

    def run() -> dict[str, float]:
        result = evaluate_embeddings(vectors, labels, protocol=protocol)
        return {name: score.value for name, score in result.scores.items()}

    return run


def peer(vectors: np.ndarray, labels: np.ndarray, k: str | None) -> Callable[[], dict[str, float]]:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = {"precision_at_1": "R@1", "mean_average_precision_at_r": "MAP@R", "r_precision": "R-precision"}
    names |= {"mean_average_precision": "mAP"} if k is None else {}
    calculator = AccuracyCalculator(include=tuple(names), k=k, device=torch.device("cpu"))

    def run() -> dict[str, float]:
        found = calculator.get_accuracy(vectors, labels)
        return {name: found[key] for key, name in names.items()}

    return run


def nmi(vectors: np.ndarray, labels: np.ndarray) -> Callable[[], dict[str, float]]:
    from distcam.metrics.distances import cluster, normalised_mutual_information

    def run() -> dict[str, float]:
        found = cluster(vectors, len(np.unique(labels)), seed=0)
        return {"NMI": normalised_mutual_information(labels, found)}

    return run


SIDES: dict[str, Callable[[np.ndarray, np.ndarray], Callable[[], dict[str, float]]]] = {
    "distcam": ours,
    "pytorch-metric-learning, up to rank R": lambda *data: peer(*data, "max_bin_count"),
    "pytorch-metric-learning, whole ranking": lambda *data: peer(*data, None),
    "distcam, NMI": nmi,
}


def measure(side: str, n: int, classes: int, d: int) -> dict[str, Any]:
    """Run one side in this process."""
    vectors, labels = clustered(n, classes, d)
    SIDES[side](*clustered(200, 40, d))()  # imports, thread pools
    run = SIDES[side](vectors, labels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    scores = run()
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "mebibytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "scores": scores,
    }


def quick(d: int, rounds: int) -> None:
    """Both sides in turns, for classes of five and of fifty."""
    print(REACH_HEAD)
    for classes in (1000, 100):
        data = clustered(5000, classes, d)
        with patch.object(evaluation, "bootstrap_means", lambda values, *_, **__: np.zeros((2, values.shape[1]))):
            seconds = interleave({"ours": ours(*data), "peer": peer(*data, "max_bin_count")}, rounds=rounds)
        ratios = [a / b for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
        print(
            reach_row(f"evaluation, classes of {5000 // classes}, × pytorch-metric-learning", ratios, 1.2), flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60_502, help="vectors")
    parser.add_argument("--classes", type=int, default=11_316)
    parser.add_argument("--d", type=int, default=128, help="dimensions")
    parser.add_argument("--small", type=int, default=6_000, help="vectors where whole rankings are compared")
    parser.add_argument("--nmi", action="store_true", help="also time the clustering")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="5,000 vectors in turns")
    parser.add_argument("--rounds", type=int, default=5, help="of --quick")
    options = parser.parse_args()
    if options.quick:
        print(describe_machine("numpy", "pytorch-metric-learning", "torch"))
        return quick(options.d, options.rounds)
    if options.side:
        print(json.dumps(measure(options.side, options.n, options.classes, options.d)))
        return None
    from distcam.index.faiss.runtime import installed

    print(describe_machine("numpy", *installed(), "pytorch-metric-learning", "torch"))
    print(f"{options.d} dimensions; peak memory beyond the vectors\n")
    print("| vectors | side | wall s | CPU s | MiB | scores in % |\n|---:|---|---:|---:|---:|---|")
    sides = list(SIDES)
    runs = [(options.small, side) for side in sides[:3]] + [(options.n, side) for side in sides[:2]]
    for n, side in runs + ([(options.n, sides[3])] if options.nmi else []):
        classes = max(2, round(options.classes * n / options.n))
        command = [
            *command_of(__name__),
            "--side",
            side,
            *map(str, ("--n", n, "--classes", classes, "--d", options.d)),
        ]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        scores = ", ".join(f"{name} {100 * value:.3f}" for name, value in found["scores"].items())
        numbers = f"{found['wall']:.1f} | {found['cpu']:.1f} | {found['mebibytes']:.0f}"
        print(f"| {n:,} | {side} | {numbers} | {scores} |", flush=True)
    return None
