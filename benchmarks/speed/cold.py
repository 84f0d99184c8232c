"""What a command costs a process that has just started: `--help`, a cold query, and one that asks a running server.

    python benchmarks speed/cold [GALLERY IMAGE] [--rounds 5]

Prints CPU seconds of whole processes (median [least, most]), their peak memory, the same of `import torch` alone, and
how many of these each is. The processes take turns, so a busy machine hurts all alike. Reach: --help ≤ .35 s, a cold
query ≤ 4.0 s, with --server ≤ .4 s, on a machine where `import torch` takes 2.9 s.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import REACH_HEAD, describe_machine, reach_row

REACH = {"distcam --help": 0.12, "distcam query": 1.4, "distcam query --server": 0.14}  # in imports of torch
DISTCAM = [sys.executable, "-m", "distcam"]


def cost(command: Sequence[str]) -> tuple[float, float]:
    """CPU seconds and the peak of the memory in MiB of one process."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def spread(values: Sequence[float]) -> str:
    """Median [least, most]."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path, nargs="?", help="by default one of 60 images is made, of random weights")
    parser.add_argument("image", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if options.image is None:
            options.gallery, options.image = made(Path(work))
        compare(options)


def made(folder: Path) -> tuple[Path, Path]:
    """A gallery of MobileNetV2, and an image to ask it for."""
    from page import photographs

    from distcam.encoders import Encoder
    from distcam.index import Gallery

    files = photographs(argparse.Namespace(photos=None, count=60, seed=0), folder)
    encoder = Encoder.load("mobilenet_v2", weights="random", seed=0)
    return Gallery.build(files[0].parent, encoder, out=folder / "cold.gallery", device="cpu").folder, files[0]


def compare(options: argparse.Namespace) -> None:
    """The processes in turns."""
    server = subprocess.Popen(
        [*DISTCAM, "serve", str(options.gallery), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://[\w.:]+", line)))
        query = [*DISTCAM, "query", str(options.gallery), str(options.image)]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "distcam --help": [*DISTCAM, "--help"],
            "distcam query": query,
            "distcam query --server": [*query, "--server", url],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                found[name].append(cost(command))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    print(describe_machine("torch", "torchvision", "typer"))
    print("| process | CPU s | peak MiB |\n|---|---:|---:|")
    for name, runs in found.items():
        print(f"| {name} | {spread([run[0] for run in runs])} | {statistics.median([run[1] for run in runs]):.0f} |")
    print(f"\n{REACH_HEAD}")
    for name, reach in REACH.items():
        ratios = [a[0] / b[0] for a, b in zip(found[name], found["import torch"], strict=True)]
        print(reach_row(f"{name}, × import torch", ratios, reach))
