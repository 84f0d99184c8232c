"""Every benchmark of speed, one after the other, and one table: `python benchmarks all --quick`.

`--quick` takes about ten minutes on two cores, without it the sizes are those of docs/results/speed.md and it takes
hours. Each runs in a process of its own; one that runs out of time or fails is a row that says so.
"""

from __future__ import annotations

import argparse
import subprocess
import time

from machine import command_of, describe_machine

# name: options of a quick run, and of a whole one
RUNS: dict[str, tuple[list[str], list[str]]] = {
    "speed/search": (["--waits", "--rounds", "50"], ["--waits"]),
    "speed/retrieval_evaluation": (["--quick"], []),
    "speed/folder_sync": (["--n", "20000", "--rounds", "3"], []),
    "speed/reid": (["--small"], []),
    "speed/growth": (["--sizes", "60000:HNSW32", "--rounds", "3"], []),
    "speed/cold": ([], []),
    "speed/decoding": ([], []),
    "speed/page": ([], []),
    "speed/explain": ([], []),
    "speed/build": ([], []),
    "speed/fewshot": ([], []),
    "speed/peers": (["--n", "20000", "--rounds", "3"], []),
}
SECONDS = 600  # of all quick runs together


def rows_of(name: str, options: list[str], *, seconds: float | None) -> list[str]:
    """The rows of the tables that a benchmark prints, or one that says why there are none."""
    if seconds is not None and seconds <= 0:
        return ["left out: the ten minutes are over"]
    command = [*command_of(name), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return ["ran out of time"]
    if done.returncode:
        return [f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"]
    lines = [line.strip("| ") for line in done.stdout.splitlines() if line.startswith("|")]
    is_rule = [set(line) <= set("-:| ") for line in lines]
    heads = {number for number in range(len(lines) - 1) if is_rule[number + 1]}
    return [line for number, line in enumerate(lines) if not is_rule[number] and number not in heads]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, ten minutes")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="leave the others out")
    options = parser.parse_args()
    print(describe_machine("distcam", "numpy", "torch", "faiss-cpu"))
    print("\n| benchmark | finding |\n|---|---|", flush=True)
    end = time.monotonic() + SECONDS
    for name in options.only:
        quick, whole = RUNS[name]
        left = end - time.monotonic() if options.quick else None
        for row in rows_of(name, quick if options.quick else whole, seconds=left):
            print(f"| {name} | {row.replace(' | ', ' · ')} |", flush=True)
