"""What a reader of explanations waits for: `python benchmarks speed/page [--photos FOLDER] [--arch mobilenet_v2]`.

A gallery of photographs is built twice, without and with stored maps, and searched with one more. In one process, in
turns, one thread, CPU time: a forward pass of the query; drawing and writing an explanation of `--k` matches as PNG and
as HTML, with the passes that its matches need and without (stored maps); then through the application of `distcam
serve`, without a network between, the first explanation of a search and a click on another weighting.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine, interleave
from PIL import Image

from distcam.encoders import Encoder
from distcam.images import list_images
from distcam.index import Gallery
from distcam.retrieval import Explanation, Retriever
from distcam.server import ServerSettings, create_app

with warnings.catch_warnings():  # starlette would rather have another httpx
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

REACH = {  # passes; where no maps are stored, the matches' own are as many as there are matches
    "PNG": 10,
    "PNG, stored maps": 10,
    "HTML": 4,
    "HTML, stored maps": 4,
    "click on another weighting": 0.5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a folder of photographs; by default some are made")
    parser.add_argument("--count", type=int, default=60, help="of how many of them the gallery is made")
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine("torch", "pillow", "fastapi"))
    print(f"{arguments.arch}, random weights, {arguments.count} photographs, k {arguments.k}, seed {arguments.seed}\n")
    with tempfile.TemporaryDirectory() as folder:
        seconds = measured(arguments, Path(folder))
    base = seconds["forward pass of the query"]
    print("| step | CPU ms: median [min, max] | × one pass [min, max] | reach |\n|---|---:|---:|---:|")
    for name, values in seconds.items():
        ms = [1000 * value for value in values]
        ratios = [value / one for value, one in zip(values, base, strict=True)]
        passes = f"{statistics.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}]"
        spread = f"{statistics.median(ms):.0f} [{min(ms):.0f}, {max(ms):.0f}]"
        print(f"| {name} | {spread} | {passes} | {f'≤ {REACH[name]:g} ×' if name in REACH else ''} |")


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    files = photographs(arguments, folder)
    encoder = Encoder.load(arguments.arch, weights="random", seed=arguments.seed)
    (query, *rest) = files
    query = query.rename(folder / "query.jpg")
    plain = Gallery.build(query.parent / "photographs", encoder, out=folder / "plain", device="cpu")
    stored = Gallery.build(query.parent / "photographs", encoder, out=folder / "stored", device="cpu", store_maps=True)
    ways = {name: Retriever(gallery, encoder, device="cpu") for name, gallery in (("plain", plain), ("stored", stored))}

    def explained(name: str) -> Explanation:
        return ways[name].query(query, k=arguments.k).explain()

    def written(name: str, kind: str) -> None:
        explained(name).save(folder / f"why.{kind}")

    with TestClient(
        create_app(ServerSettings(plain.folder, rate=0, threads=1)), base_url="http://127.0.0.1:8000"
    ) as client:

        def search() -> str:
            answer = client.post(f"/api/v1/search?k={arguments.k}", files={"image": query.read_bytes()})
            token: str = answer.json()["query"]["token"]
            return token

        def click(weighting: str) -> None:
            asked = {"token": token, "k": arguments.k, "weighting": weighting}
            answer = client.post("/api/v1/explain", json=asked).json()
            assert all(reference["match_map"] for reference in answer["references"]), answer

        def first() -> None:  # as if nobody had asked: the files are new
            for file in rest:
                os.utime(file)
            click("root_ratio")

        token = search()
        return interleave(
            {
                "forward pass of the query": lambda: ways["plain"].inference.encode_images([query]),
                "query and maps on it": lambda: explained("plain"),
                "PNG": lambda: written("plain", "png"),
                "PNG, stored maps": lambda: written("stored", "png"),
                "HTML": lambda: written("plain", "html"),
                "HTML, stored maps": lambda: written("stored", "html"),
                "first explanation on the page": first,
                "click on another weighting": lambda: click("dist"),
            },
            rounds=arguments.rounds,
        )


def photographs(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """The user's own in an order of the seed, or JPEGs of a photograph's size and smoothness."""
    rng = np.random.default_rng(arguments.seed)
    (folder / "photographs").mkdir()
    files = []
    listing = None if arguments.photos is None else list_images(arguments.photos)
    own = [] if listing is None else [listing.file(record) for record in listing]
    order = rng.permutation(len(own) or arguments.count + 1)[: arguments.count + 1]
    for number in order.tolist():
        file = folder / "photographs" / f"{number:05d}.jpg"
        if own:
            file.write_bytes(own[number].read_bytes())
        else:
            coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).resize((500, 375))
            grained = np.clip(np.asarray(coarse) + rng.normal(0, 6, (375, 500, 3)), 0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(grained).save(stream, "JPEG", quality=90)
            file.write_bytes(stream.getvalue())
        files.append(file)
    return files
