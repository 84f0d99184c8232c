"""What a GPU does for distcam, in one command of at most nine minutes: `python benchmarks speed/gpu [--seconds 540]`.

Wall-clock, one process, medians over rounds with their range; each stage gets its share of the time and what goes wrong
in one is printed, and the next begins. Without a GPU it says so and measures nothing; `--rehearse` walks through every
stage on the CPU with tiny sizes, to see that the script itself works: its numbers mean nothing.

1. encode: images/s of `Inference`, bytes in memory, by batch size, with and without CUDA graphs; largest difference
   between graphs and none, and the least cosine between the precision in use and float32.
2. decode: JPEGs/s of 500×375 by threads, and by nvJPEG (`torchvision.io.decode_jpeg(device="cuda")`), which is measured
   only: its pixels are not Pillow's.
3. build: `Gallery.build` from files, images/s, and how busy the GPU was.
4. search: flat vectors and halves, 1, 200 and 10,000 queries beside FAISS's own copy; answers equal to the CPU's; then
   once more with `NVIDIA_TF32_OVERRIDE=1`, which must be noticed and change no answer.
5. train: milliseconds a step of `fit`, bytes finished on the device and batches finished by the loader.
6. explain: a forward pass of one image, and with ten maps.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import faiss
import numpy as np
import torch
from machine import command_of, describe_machine
from PIL import Image

from distcam.encoders import Encoder, Encoding, Inference
from distcam.explain import dist_cam
from distcam.images import Transform, read_image
from distcam.index import Gallery
from distcam.index.faiss.search import FaissSearch
from distcam.metrics.distances import SearchSpec
from distcam.training import Settings, fit
from distcam.training.data.augment import AugmentSettings
from distcam.training.data.batches import TrainingBatches
from distcam.training.data.samplers import shuffled
from distcam.training.data.training_set import TrainingSet
from distcam.training.losses.registry import TermContext, build_objective


class Bench:
    """Sizes, the device, and the clock."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.is_real = not arguments.rehearse
        self.device = "cuda" if self.is_real else "cpu"
        self.arch, self.seed = ("resnet50" if self.is_real else "resnet18"), arguments.seed
        self.end = time.perf_counter() + arguments.seconds
        self.rng = np.random.default_rng(arguments.seed)

    def size(self, real: int, rehearsed: int) -> int:
        return real if self.is_real else rehearsed

    def timed(self, work: Callable[[], object], *, rounds: int = 5) -> list[float]:
        """Seconds of each round after one to warm up; the device has finished when a round ends."""
        seconds = []
        for number in range(1 + self.size(rounds, 1)):
            start = time.perf_counter()
            work()
            if self.is_real:
                torch.cuda.synchronize()
            if number:
                seconds.append(time.perf_counter() - start)
            if time.perf_counter() > self.end and seconds:
                break
        return seconds

    def rate(self, name: str, work: Callable[[], object], n: int, what: str = "images", **options: int) -> None:
        rates = [n / each for each in self.timed(work, **options)]
        print(f"- {name}: {statistics.median(rates):,.0f} {what}/s [{min(rates):,.0f}, {max(rates):,.0f}]", flush=True)

    def jpegs(self, folder: Path, n: int) -> list[Path]:
        """n files of 500×375, of sixteen contents."""
        contents = []
        for _ in range(16):
            coarse = Image.fromarray(self.rng.integers(0, 255, (24, 32, 3), np.uint8)).resize((500, 375))
            grained = np.clip(np.asarray(coarse) + self.rng.normal(0, 6, (375, 500, 3)), 0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(grained).save(stream, "JPEG", quality=90)
            contents.append(stream.getvalue())
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{number:06d}.jpg" for number in range(n)]
        for number, file in enumerate(files):
            file.write_bytes(contents[number % 16])
        return files


@contextmanager
def watched(is_real: bool) -> Iterator[list[int]]:
    """How busy the GPU is, in per cent, twice a second, as nvidia-smi says."""
    busy: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.5):
            asked = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
            found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
            busy.extend(int(each) for each in found[:1] if each.isdecimal())

    thread = threading.Thread(target=look, daemon=True)
    if is_real:
        thread.start()
    try:
        yield busy
    finally:
        stop.set()


def encode(bench: Bench) -> None:
    for arch in (bench.arch, "mobilenet_v2"):
        encoder = Encoder.load(arch, weights="random", seed=bench.seed)
        pixels = torch.from_numpy(bench.rng.integers(0, 256, (bench.size(1024, 4), 3, 224, 224), np.uint8))
        found: dict[bool, Encoding] = {}
        for batch in [64, 256, 1024] if bench.is_real else [4]:
            for graphs in (False, True) if bench.is_real else (False,):
                inference = Inference(encoder, device=bench.device, batch_size=batch, graphs=graphs)
                found[graphs] = inference(pixels)
                how = f"{arch} {inference.precision}, batches of {batch}{', graphs' if graphs else ''}"
                bench.rate(how, lambda inference=inference, x=pixels: inference(x), len(pixels))
        exact = Inference(encoder, device=bench.device, precision="fp32")(pixels[:64])
        cosines = torch.nn.functional.cosine_similarity(found[False].embedding[:64], exact.embedding)
        print(f"- {arch}: least cosine to float32 {cosines.min():.6f}")
        if True in found:
            print(f"- {arch}: graphs differ by {(found[True].embedding - found[False].embedding).abs().max():.2e}")


def decode(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = bench.jpegs(Path(folder), bench.size(2000, 8))
        transform, cores = Transform(224), os.cpu_count() or 1
        inference = Inference(Encoder.load("conv4", weights="random"), device=bench.device)
        for workers in sorted({min(8, cores), max(1, cores - 1)}):

            def read(workers: int = workers) -> None:
                for _ in inference.stream(files, load=lambda file: transform(read_image(file)), workers=workers):
                    pass

            bench.rate(f"Pillow and conv4, {workers} threads", read, len(files), rounds=2)
        if bench.is_real:
            from torchvision.io import ImageReadMode, decode_jpeg

            data = [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files[:256]]
            bench.rate("nvJPEG", lambda: decode_jpeg(data, mode=ImageReadMode.RGB, device="cuda"), len(data))
            (one,) = decode_jpeg(data[:1], mode=ImageReadMode.RGB, device="cuda")
            pillow = torch.from_numpy(np.array(read_image(files[0]))).permute(2, 0, 1)
            print(f"- nvJPEG and Pillow differ by {(one.cpu().int() - pillow.int()).abs().max()} grey levels at most")


def build(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, n = Path(name), bench.size(12_000, 8)
        bench.jpegs(folder / "images", n)
        encoder = Encoder.load(bench.arch, weights="random", seed=bench.seed)
        with watched(bench.is_real) as busy:
            start = time.perf_counter()
            Gallery.build(folder / "images", encoder, out=folder / "g", device=bench.device).close()
            seconds = time.perf_counter() - start
        used = f", GPU busy {statistics.mean(busy):.0f} %" if busy else ""
        print(f"- {bench.arch}, {n:,} files of 500×375: {n / seconds:,.0f} images/s{used}")


def search(bench: Bench) -> None:
    n, d = bench.size(1_000_000, 2000), 512
    centres = bench.rng.standard_normal((n // 50, d), dtype=np.float32)
    vectors = centres[bench.rng.integers(0, len(centres), n)]
    vectors += 0.5 * bench.rng.standard_normal((n, d), dtype=np.float32)
    ids, device = np.arange(n, dtype=np.uint64), bench.device if faiss.get_num_gpus() else "cpu"
    if device == "cpu" and bench.is_real:
        print("- this FAISS has no GPU (docs/install.md): nothing to compare")
        return
    for factory in ("Flat", "SQfp16"):
        sides = {
            place: FaissSearch.build(SearchSpec(d, "cosine"), [(ids, vectors)], count=n, factory=factory, device=place)
            for place in (device, "cpu")
        }
        for count in (1, 200, bench.size(10_000, 200)):
            queries = vectors[:count] + np.float32(0.1)
            bench.rate(
                f"{factory}, {count:,} at once", lambda q=queries, s=sides[device]: s.search(q, 10), count, "queries"
            )
        few = vectors[:200] + np.float32(0.1)
        for share in (None, 0.5, 0.01):
            allowed = None if share is None else ids[bench.rng.random(n) < share]
            own, cpu = (sides[place].search(few, 10, allowed=allowed) for place in (device, "cpu"))
            pairs = zip(own, cpu, strict=True)
            alike = all((a.ids == b.ids).all() and (a.distances == b.distances).all() for a, b in pairs)
            print(f"- {factory}, {'all' if share is None else f'{share:.0%}'} allowed: {'equal' if alike else 'WRONG'}")
        if bench.is_real:
            copy = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, sides["cpu"].store.index)
            for count in (1, 200, 10_000):
                queries = vectors[:count] / np.linalg.norm(vectors[:count], axis=1, keepdims=True)
                bench.rate(
                    f"raw {factory}, {count:,} at once", lambda q=queries, c=copy: c.search(q, 10), count, "queries"
                )
            used = sides[device]._gpu._index
            is_noticed = used is not None and used.is_half
            print(f"- {factory}: products of ten bits {'noticed' if is_noticed else 'not noticed'}")


def train(bench: Bench) -> None:
    n, batch = bench.size(2560, 8), bench.size(128, 4)
    pixels = torch.from_numpy(bench.rng.integers(0, 256, (n, 3, 224, 224), np.uint8))
    labels = torch.arange(n) % 4
    data = TrainingSet.from_pixels(pixels, labels, transform=Transform(224))
    for late in (True, False):
        encoder = Encoder.load(bench.arch, weights="random", seed=bench.seed)
        objective = build_objective([{"kind": "proxy_anchor"}], TermContext(encoder, data.class_names))
        batches = TrainingBatches(data, shuffled(n, batch, seed=0), augment=AugmentSettings(), workers=None)
        seconds: list[float] = []
        settings = Settings(epochs=bench.size(3, 1), device=bench.device)
        finish_on = TrainingBatches.finish_on if late else lambda *_: None
        with patch.object(TrainingBatches, "finish_on", finish_on), watched(bench.is_real) as busy:
            fit(encoder, batches, objective, settings, report=lambda row, s=seconds: s.append(row["seconds"]))
        step = 1000 * min(seconds) / batches.steps_per_epoch
        used = f", GPU busy {statistics.mean(busy):.0f} %" if busy else ""
        where = "finished on the device" if late and bench.is_real else "finished by the loader"
        print(f"- {bench.arch}, batches of {batch}, {where}: {step:.1f} ms a step{used}")


def explain(bench: Bench) -> None:
    inference = Inference(Encoder.load(bench.arch, weights="random", seed=bench.seed), device=bench.device)
    pixels = torch.from_numpy(bench.rng.integers(0, 256, (1, 3, 224, 224), np.uint8))
    references = torch.rand(1, 10, inference(pixels).pooled.shape[1], device=bench.device)
    for name, work in (
        ("a forward pass", lambda: inference(pixels)),
        ("with ten maps", lambda: dist_cam(inference(pixels).feature_map, references)),
    ):
        ms = [1000 * each for each in bench.timed(work, rounds=30)]
        print(f"- {name}: {statistics.median(ms):.2f} ms [{min(ms):.2f}, {max(ms):.2f}]")


STAGES = {"encode": encode, "decode": decode, "build": build, "search": search, "train": train, "explain": explain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--only", choices=list(STAGES), nargs="*", default=list(STAGES))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny: does the script work?")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(describe_machine("torch", "torchvision", "faiss-cpu", "faiss-gpu"))
    if arguments.rehearse:
        print("a rehearsal on the CPU: the numbers mean nothing\n")
    elif not torch.cuda.is_available():
        print("torch sees no CUDA device: nothing was measured")
        return
    else:
        print(f"{torch.cuda.get_device_name()}, seed {arguments.seed}\n")
    bench = Bench(arguments)
    for name in arguments.only:
        left = bench.end - time.perf_counter()
        if left < 20:
            print(f"## {name}: left out, {left:.0f} s are left")
            continue
        print(f"## {name}", flush=True)
        start = time.perf_counter()
        try:
            STAGES[name](bench)
        except Exception:  # whatever it is, the other stages are worth having
            traceback.print_exc(limit=4, file=sys.stdout)
        print(f"({time.perf_counter() - start:.0f} s)\n", flush=True)
    if "search" in arguments.only and not arguments.rehearse and os.environ.get("NVIDIA_TF32_OVERRIDE") is None:
        left = bench.end - time.perf_counter()
        if left > 60:
            print("## search, with NVIDIA_TF32_OVERRIDE=1", flush=True)
            again = [*command_of(__name__), "--only", "search", "--seconds", str(left - 5)]
            subprocess.run(again, env=os.environ | {"NVIDIA_TF32_OVERRIDE": "1"}, timeout=left, check=False)
