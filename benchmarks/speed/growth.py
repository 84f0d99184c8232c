"""One image comes or goes: what it costs galleries of growing size, and a build of thousands of commits.

    python benchmarks speed/growth [--sizes 60000:HNSW32 120000:IVF1024,SQfp16 --dim 64 --rounds 5]
    python benchmarks speed/growth --sizes 990000:auto 990000:IVF1024,SQfp16 --dim 512
    python benchmarks speed/growth --commits 2000          # one commit for each image, with 64 descriptors

`Gallery.build` makes the galleries with listing, commits, merges and index; only decoding and network are left out:
clustered, seeded vectors are injected where the encoder would be. Every round is a process of its own, as commands are.
Printed are CPU seconds, median [min, max], and the ratio of adding an image to building the index, which it once cost.

Reach: adding or removing one image takes at most .5 CPU seconds at 60,000 to 1,000,000 images (every sixteenth or so
also merges files); no build needs more descriptors than it may open. A sync looks at all images, and grows with them.
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
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from machine import command_of, describe_machine
from PIL import Image
from torch import nn

from distcam.encoders import Encoder
from distcam.images import Transform
from distcam.images.image_sources import ImageRecord
from distcam.images.listing import Listing
from distcam.index import Gallery, verify_gallery
from distcam.index.building.build import begin
from distcam.index.building.ingest import Encoded, Offer, Stream
from distcam.index.building.ray import RayEngine
from distcam.index.storage import writer as writing
from distcam.index.storage.segments import RowVectors
from distcam.index.storage.writer import GalleryWriter

CLASSES = 1000
BATCH = 64
REACH = 0.5  # CPU seconds


@dataclass(frozen=True)
class Names:
    """A source of images that are not there."""

    root: Path
    count: int
    column_names: tuple[str, ...] = ()

    def scan(self, report: object) -> Iterator[ImageRecord]:
        del report
        for number in range(self.count):
            yield ImageRecord(f"{number % CLASSES:04d}/{number:08d}.jpg", f"{number % CLASSES:04d}")


@dataclass(frozen=True)
class Injected(RayEngine):
    """Vectors of clustered images in place of decoding and network."""

    dim: int = 64

    def stream(self, writer: GalleryWriter, *_: object, **__: object) -> Stream:
        def stream(offers: Iterable[Offer]) -> Generator[Encoded, None, None]:
            rng = np.random.default_rng(0)
            centres = rng.standard_normal((2000, self.dim), dtype=np.float32)
            rest = iter(offers)
            while batch := list(islice(rest, BATCH)):
                for offer in batch:
                    offer.sha256 = rng.bytes(32)
                vectors = rng.standard_normal((len(batch), self.dim), dtype=np.float32) * np.float32(0.5)
                vectors += centres[rng.integers(0, len(centres), len(batch))]
                if writer.is_new and not writer.has_pending:
                    begin(writer, precision="fp32", map_shape=None, copy=None)
                yield Encoded(batch, RowVectors(vectors, vectors), [])

        return stream


def encoder_of(dim: int) -> Encoder:
    torch.manual_seed(0)
    return Encoder(nn.Conv2d(3, dim, 8, stride=8), transform=Transform(size=8))


def images_at(folder: Path, *, seed: int, count: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed:04d}-{number:05d}.png")
    return folder


def cpu(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def build(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    listing = Listing.of(Names(folder.parent, options.n))
    encoder = encoder_of(options.dim)
    spent = cpu(lambda: Gallery.build(listing, encoder, out=folder, index="flat", engine=Injected(dim=options.dim)))
    gallery = Gallery.open(folder)
    with gallery._writing() as writer:
        writer.commit(index=options.index, index_cache=None)
        gallery.refresh()
        index = cpu(lambda: gallery.searcher)
    return {"build": spent, "index": index, "segments": len(gallery.manifest.segments)}


def change(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """One of each change, each through a gallery that was just opened."""
    encoder, seed = encoder_of(options.dim), options.seed
    seconds: dict[str, float] = {}
    new, synced = folder.parent / f"new-{seed}", images_at(folder.parent / "synced", seed=seed)
    images_at(new, seed=seed)
    Gallery.open(folder, verify=False).check_encoder(encoder)
    for name, ask in {
        "add": lambda gallery: gallery.add(new, encoder, labels="none"),
        "remove": lambda gallery: gallery.remove(paths=[f"{seed % CLASSES:04d}/{seed:08d}.jpg"]),
        "sync": lambda gallery: gallery.sync(synced, encoder),
    }.items():
        gallery = Gallery.open(folder, verify=False)
        seconds[name] = cpu(partial(ask, gallery))
    return seconds


def query(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Opening, the first search and later ones, with what this process holds then."""
    del options
    start = time.process_time()
    gallery = Gallery.open(folder)
    opened = time.process_time() - start
    queries = gallery.embeddings(gallery.ids[:50])
    first = cpu(lambda: gallery.search(queries[:1], 10))
    later = cpu(lambda: [gallery.search(row[None], 10) for row in queries]) / len(queries)
    return {"open": opened, "first search": first, "search": later, "descriptors": open_files()}


def verify(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    del options
    found: list[object] = []
    seconds = cpu(lambda: found.extend(verify_gallery(folder).problems))
    assert not found, found
    return {"verify": seconds}


def commits(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """A build with one commit for each image, under a limit of 64 descriptors; then a query and a removal."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    writing.CommitLimits = partial(writing.CommitLimits, images=1)  # type: ignore[misc,assignment]
    most = 0

    def look(done: int, total: int) -> None:
        nonlocal most
        del done, total
        most = max(most, open_files())

    listing, encoder = Listing.of(Names(folder.parent, options.n)), encoder_of(options.dim)
    global BATCH
    BATCH = 1
    spent = cpu(lambda: Gallery.build(listing, encoder, out=folder, engine=Injected(dim=options.dim), progress=look))
    gallery = Gallery.open(folder, verify=True)
    assert len(gallery) == options.n
    assert gallery.search(gallery.embeddings(gallery.ids[-1:]), 1)[0].ids.tolist() == [options.n - 1]
    assert gallery.remove(paths=["0000/00000000.jpg"]) == 1
    return {"build": spent, "descriptors": most, "segments": len(gallery.manifest.segments)}


PHASES = {"build": build, "change": change, "query": query, "verify": verify, "commits": commits}


def run(phase: str, folder: Path, **options: object) -> dict[str, float]:
    """A phase in its own process, with its peak memory."""
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [*command_of(__name__), "--phase", phase, "--folder", str(folder), *given]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def report_growth(work: Path, options: argparse.Namespace) -> None:
    print(f"{options.dim} dimensions, {CLASSES} classes, {options.rounds} rounds; CPU seconds")
    print("| images, index | index | open | first search | search | add 1 | remove 1 | sync 1 | add/index | verify |")
    print("|---|" + "---:|" * 9)
    notes = []
    for size in options.sizes:
        count, _, index = size.partition(":")
        folder = work / f"{size}.gallery"
        built = run("build", folder, n=count, dim=options.dim, index=index)
        changed = [run("change", folder, dim=options.dim, seed=seed) for seed in range(1, options.rounds + 1)]
        asked = [run("query", folder, dim=options.dim) for _ in range(options.rounds)]
        checked = run("verify", folder, dim=options.dim)
        columns = [spread([each[name] for each in asked]) for name in ("open", "first search", "search")]
        columns += [spread([each[name] for each in changed]) for name in ("add", "remove", "sync")]
        ratio = statistics.median(each["add"] for each in changed) / max(built["index"], 1e-9)
        columns += [f"{ratio:.3f}", f"{checked['verify']:.2f}"]
        print(f"| {int(count):,} {index} | {built['index']:.2f} | " + " | ".join(columns) + " |", flush=True)
        slowest = max(each[name] for each in changed for name in ("add", "remove"))
        notes.append(
            f"{size}: built in {built['build']:.1f} s, {built['segments']:.0f} segments; peak MiB: build "
            f"{built['peak']:.0f}, change {max(each['peak'] for each in changed):.0f}, query "
            f"{max(each['peak'] for each in asked):.0f}, verify {checked['peak']:.0f}; descriptors of a query "
            f"{max(each['descriptors'] for each in asked):.0f}; reach of {REACH} s: {slowest <= REACH}"
        )
        shutil.rmtree(folder)
    print("\n".join(notes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["60000:HNSW32", "120000:IVF1024,SQfp16"], help="COUNT:INDEX")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commits", type=int, help="build so many images with a commit for each, under 64 descriptors")
    parser.add_argument("--work", type=Path, help="where the galleries go; default: a temporary folder")
    for name, kind in {"phase": str, "folder": Path, "n": int, "index": str, "seed": int}.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        result = PHASES[options.phase](options.folder, options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**result, "peak": peak}))
        return
    print(describe_machine("numpy", "torch"))
    work = Path(tempfile.mkdtemp(dir=options.work))
    try:
        if options.commits:
            done = run("commits", work / "commits.gallery", n=options.commits, dim=options.dim)
            print(
                f"{options.commits} commits under a limit of 64: built, opened, searched and changed; at most "
                f"{done['descriptors']:.0f} descriptors at once, {done['segments']:.0f} segments, {done['build']:.1f} s"
            )
        else:
            report_growth(work, options)
    finally:
        shutil.rmtree(work)
