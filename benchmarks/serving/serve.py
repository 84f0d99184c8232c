"""The cost of a server beside the encoder it runs: `python benchmarks serving/serve [--photos FOLDER] [--arch NAME]`.

In one run, taking turns round by round: the encoder's own throughput, forward passes only and with decoding
(`Inference.stream`); `distcam serve` in a process of its own, asked by `--clients` clients that send JPEGs over
loopback and wait for each answer; and a plain server that decodes, encodes one picture, searches and answers, one
request after the other. Server and encoder have the same number of threads. Then, with one client, what ten maps on
both sides of a stored query cost beyond its search, in a gallery that keeps its maps. Wall-clock: it wants a quiet
machine.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from machine import command_of, describe_machine
from PIL import Image

from distcam.encoders import Encoder, Inference
from distcam.images import list_images, read_image
from distcam.index import Gallery
from distcam.retrieval import Retriever

BOUNDARY = "distcam-benchmark-boundary"


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        pictures = files_of(arguments, Path(folder))
        encoder = Encoder.load(arguments.arch, weights="random", seed=arguments.seed)
        gallery = Gallery.build(
            pictures, encoder, out=Path(folder) / "g", store_maps=True, device=arguments.device, precision="auto"
        )
        print(describe_machine("torch", "fastapi", "uvicorn"))
        print(
            f"{arguments.arch}, {len(pictures)} pictures, {arguments.threads} threads, device {arguments.device}, "
            f"{arguments.clients} clients, {arguments.rounds} rounds of {arguments.requests} images, "
            f"seed {arguments.seed}\n"
        )
        with running(ours(gallery, arguments)) as server, running(plain(gallery, arguments)) as simple:
            throughput(arguments, gallery, encoder, pictures, {"distcam serve": server, "plain server": simple})
            maps(arguments, server, len(pictures))
            print(f"\nbatches: {mean_batch(server):.1f} images on average")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a folder of pictures; by default some are made")
    parser.add_argument("--pictures", type=int, default=200, help="how many of them")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=400, help="images of each method in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", nargs=2, metavar=("GALLERY", "PORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain is not None:
        serve_plainly(Path(arguments.plain[0]), int(arguments.plain[1]), arguments)
        sys.exit()
    return arguments


def files_of(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """JPEGs of a photograph's size and smoothness, or the user's own."""
    if arguments.photos is not None:
        listing = list_images(arguments.photos)
        files = [listing.file(record) for record in listing]
        order = np.random.default_rng(arguments.seed).permutation(len(files))[: arguments.pictures]
        return [files[i] for i in sorted(order.tolist())]
    rng = np.random.default_rng(arguments.seed)
    files = []
    for number in range(arguments.pictures):
        coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 6, (375, 500, 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        files.append(folder / f"{number:05d}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=90)
    return files


# --- Servers ---------------------------------------------------------------------------------------------------------


def ours(gallery: Gallery, arguments: argparse.Namespace) -> Callable[[int], list[str]]:
    options = ["--rate", "0", "--threads", str(arguments.threads), "--device", arguments.device]
    return lambda port: ["-m", "distcam", "serve", str(gallery.folder), "--port", str(port), *options]


def plain(gallery: Gallery, arguments: argparse.Namespace) -> Callable[[int], list[str]]:
    options = ["--threads", str(arguments.threads), "--device", arguments.device]
    return lambda port: [*command_of(__name__), "--plain", str(gallery.folder), str(port), *options]


def serve_plainly(folder: Path, port: int, arguments: argparse.Namespace) -> None:
    """A server as one writes it first: everything in the handler."""
    torch.set_num_threads(arguments.threads)
    retriever = Retriever(folder, device=arguments.device)
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/api/v1/search")
    async def search(image: UploadFile) -> dict[str, object]:
        return retriever.query(await image.read(), k=10).to_dict()

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


@contextmanager
def running(command: Callable[[int], list[str]]):
    """The port of a server in a process of its own, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(command(port), stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                ask(http.client.HTTPConnection("127.0.0.1", port), "GET", "/health")
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


# --- Asking ----------------------------------------------------------------------------------------------------------


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, kind: str = ""
) -> bytes:
    connection.request(method, path, body, {"Content-Type": kind} if kind else {})
    response = connection.getresponse()
    data = response.read()
    assert response.status == 200, data
    return data


def form_of(file: Path) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{file.name}"\r\n'
    return f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + file.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


def load(port: int, forms: Sequence[bytes], *, clients: int, requests: int) -> tuple[float, list[float]]:
    """Seconds that so many clients take for so many requests together, and the seconds of each request."""
    rest = iter(range(requests))
    lock, latencies = threading.Lock(), []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            with lock:
                number = next(rest, None)
            if number is None:
                connection.close()
                return
            start = time.perf_counter()
            form = forms[number % len(forms)]
            ask(connection, "POST", "/api/v1/search?k=10", form, f"multipart/form-data; boundary={BOUNDARY}")
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    return time.perf_counter() - start, latencies


# --- Measuring -------------------------------------------------------------------------------------------------------


def throughput(
    arguments: argparse.Namespace, gallery: Gallery, encoder: Encoder, pictures: list[Path], servers: dict[str, int]
) -> None:
    precision = gallery.manifest.encoder.precision or "auto"
    inference = Inference(encoder, device=arguments.device, precision=precision)
    forms = [form_of(file) for file in pictures]
    contents = [file.read_bytes() for file in pictures]
    pixels = torch.stack([inference.transform(read_image(io.BytesIO(data))) for data in contents])
    n = arguments.requests
    some = [contents[i % len(contents)] for i in range(n)]
    batch = pixels[torch.arange(n) % len(pixels)]
    latencies: dict[str, list[float]] = {name: [] for name in servers}

    def stream() -> float:
        start = time.perf_counter()
        for _ in inference.stream(some):
            pass
        return time.perf_counter() - start

    def forward() -> float:
        start = time.perf_counter()
        for first in range(0, n, inference.batch_size):
            inference(batch[first : first + inference.batch_size]).to("cpu")
        return time.perf_counter() - start

    def served(name: str) -> Callable[[], float]:
        def measure() -> float:
            seconds, each = load(servers[name], forms, clients=arguments.clients, requests=n)
            latencies[name] += each
            return seconds

        return measure

    ways = {"decode + forward (Inference.stream)": stream, "forward only": forward}
    ways |= {name: served(name) for name in servers}
    rates = turns(ways, n, arguments.rounds, latencies)
    base = "decode + forward (Inference.stream)"
    print("| way | images/s (median) | ÷ decode + forward [min, max] | ÷ forward only | p50 ms | p99 ms |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values, rates[base], strict=True)]
        bare = statistics.median(v / o for v, o in zip(values, rates["forward only"], strict=True))
        p50, p99 = (f"{1000 * np.percentile(latencies[name], q):.0f}" if name in latencies else "" for q in (50, 99))
        spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"| {name} | {statistics.median(values):.1f} | {spread} | {bare:.2f} | {p50} | {p99} |")


def turns(
    ways: dict[str, Callable[[], float]], n: int, rounds: int, latencies: dict[str, list[float]]
) -> dict[str, list[float]]:
    """Images a second of every way in every round, after one that does not count."""
    for way in ways.values():
        way()
    for values in latencies.values():
        values.clear()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(n / way())
    return rates


def maps(arguments: argparse.Namespace, port: int, images: int) -> None:
    """Milliseconds of a stored query, and of its explanation with ten maps on both sides."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    asked = {"search": ("/api/v1/search/stored", {}), "ten maps": ("/api/v1/explain", {"both_sides": False})}
    asked["ten maps on both sides"] = ("/api/v1/explain", {"both_sides": True})
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(20 * arguments.rounds + 5):
        for name, (path, options) in asked.items():
            body = json.dumps({"id": turn % images, "k": 10, **options}).encode()
            start = time.perf_counter()
            ask(connection, "POST", path, body, "application/json")
            seconds[name].append(time.perf_counter() - start)
    seconds = {name: values[5:] for name, values in seconds.items()}
    print("\n| stored query | ms (median) | beyond search, ms | p99 ms |\n|---|---:|---:|---:|")
    for name, values in seconds.items():
        beyond = 1000 * (statistics.median(values) - statistics.median(seconds["search"]))
        p50, p99 = (1000 * float(np.percentile(values, q)) for q in (50, 99))
        print(f"| {name} | {p50:.1f} | {beyond:.1f} | {p99:.1f} |")


def mean_batch(port: int) -> float:
    text = ask(http.client.HTTPConnection("127.0.0.1", port), "GET", "/metrics").decode()
    total, count = (float(text.split(f"distcam_batch_images_{what} ")[1].split()[0]) for what in ("sum", "count"))
    return total / count
