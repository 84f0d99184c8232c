"""Building a gallery against the least it could cost: decode + forward alone, in the same process, on the same cores.

    python benchmarks speed/build [--images 600] [--encoder mobilenet_v2]

Prints images per second of both (they take turns) and the ratio, then the peak memory of builds of growing size, each
in a process of its own. The pictures are procedural scenes of 500×400 pixels, the weights random.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import command_of, describe_machine

from distcam.encoders import Encoder, Inference
from distcam.images import list_images, read_image
from distcam.index import Gallery
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene import draw_scene


def write_pictures(folder: Path, count: int, *, different: int = 100) -> None:
    """`count` JPEG files of 500×400 pixels; `different` pictures are drawn, the rest are copies."""
    folder.mkdir(parents=True)
    classes = blueprints(10)
    for i in range(count):
        file = folder / f"{i:06d}.jpg"
        if i < different:
            scene = draw_scene([classes[i % 10]], size=400, generator=np.random.default_rng(i))
            scene.image.resize((500, 400)).save(file, quality=90)
        else:
            shutil.copyfile(folder / f"{i % different:06d}.jpg", file)


def decode_and_forward(folder: Path, encoder: Encoder, workers: int | None) -> None:
    """What no build can do without: read, decode, transform and encode every picture; nothing is kept."""
    inference = Inference(encoder)
    listing = list_images(folder)
    files = (listing.file(record) for record in listing)
    for _ in inference.stream(files, load=lambda file: encoder.transform(read_image(file)), workers=workers):
        pass


def build(folder: Path, encoder: Encoder, out: Path, workers: int | None) -> None:
    """A gallery from nothing."""
    shutil.rmtree(out, ignore_errors=True)
    Gallery.build(folder, encoder, out=out, workers=workers)


def seconds(function: object, *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)  # type: ignore[operator]
    return time.perf_counter() - start


def peak_memory(folder: Path, architecture: str) -> dict[str, float]:
    """Build once in this process and report its peak resident memory in MiB, before and after."""
    encoder = Encoder.load(architecture, weights="random")
    warm = folder.parent / "warm"
    if not warm.exists():
        write_pictures(warm, 64)
    with tempfile.TemporaryDirectory() as work:
        build(warm, encoder, Path(work) / "warm.gallery", None)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        build(folder, encoder, Path(work) / "gallery", None)
    return {"before": before, "after": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--memory-sizes", type=int, nargs="*", default=[500, 2000])
    parser.add_argument("--peak-memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_memory_of:
        print(json.dumps(peak_memory(options.peak_memory_of, options.encoder)))
        return

    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "pictures"
        write_pictures(folder, options.images)
        encoder = Encoder.load(options.encoder, weights="random")
        floor, ours = [], []
        decode_and_forward(folder, encoder, options.workers)  # warm-up
        for _ in range(options.rounds):
            floor.append(seconds(decode_and_forward, folder, encoder, options.workers))
            ours.append(seconds(build, folder, encoder, Path(work) / "gallery", options.workers))
        ratios = [a / b for a, b in zip(floor, ours, strict=True)]
        print(
            describe_machine("torch", "pillow", "h5py"),
            f"{torch.get_num_threads()} threads, {options.rounds} rounds, wall time",
        )
        print("| what | images/s (median) |\n|---|---:|")
        print(f"| decode + forward alone | {options.images / statistics.median(floor):.1f} |")
        print(f"| `Gallery.build` | {options.images / statistics.median(ours):.1f} |")
        spread = f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"
        print(f"\nbuild reaches {spread} of the throughput of decode + forward alone")
        print("\n| images | peak memory before the build, MiB | after |\n|---:|---:|---:|")
        for size in options.memory_sizes:
            sized = Path(work) / f"pictures-{size}"
            write_pictures(sized, size)
            command = [*command_of(__name__), "--encoder", options.encoder, "--peak-memory-of", str(sized)]
            memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"| {size} | {memory['before']:.0f} | {memory['after']:.0f} |")
