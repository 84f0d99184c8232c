"""Every benchmark of speed, one after the other, and one table: `python benchmarks/all.py --quick`.

`--quick` takes about ten minutes on two cores, without it the sizes are those of docs/results/speed.md and it takes
hours. Each runs in a process of its own; a script that is not there, runs out of time or fails is a row that says so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from machine import describe_machine

# script: options of a quick run, and of a whole one
RUNS: dict[str, tuple[list[str], list[str]]] = {
    "search.py": (["--waits", "--rounds", "50"], ["--waits"]),
    "retrieval_evaluation.py": (["--quick"], []),
    "folder_sync.py": (["--n", "20000", "--rounds", "3"], []),
    "reid.py": (["--small"], []),
    "growth.py": (["--sizes", "60000:HNSW32", "--rounds", "3"], []),
    "cold.py": ([], []),
    "decoding.py": ([], []),
    "page.py": ([], []),
    "explain.py": ([], []),
    "build.py": ([], []),
    "fewshot.py": ([], []),
    "peers.py": (["--n", "20000", "--rounds", "3"], []),
}
SECONDS = 600  # of all quick runs together


def rows_of(script: Path, options: list[str], *, seconds: float | None) -> list[str]:
    """The rows of the tables that a script prints, or one that says why there are none."""
    if not script.exists():
        return ["not there"]
    if seconds is not None and seconds <= 0:
        return ["left out: the ten minutes are over"]
    command = [sys.executable, str(script), *options]
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
        script = Path(__file__).with_name(name)
        for row in rows_of(script, quick if options.quick else whole, seconds=left):
            print(f"| {script.stem} | {row.replace(' | ', ' · ')} |", flush=True)


if __name__ == "__main__":
    main()
