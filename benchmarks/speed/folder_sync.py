"""A folder in which nothing changed: `python benchmarks speed/folder_sync [--n 100000 --rounds 5]`.

`Gallery.sync` and the comparison behind `index add`, beside `os.walk` and one `os.stat` for each file, which nobody can
do without. The files are a few bytes each, and the gallery is written by the package's own writer: no image is encoded.
CPU time, in turns in one process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np
from machine import REACH_HEAD, describe_machine, interleave, reach_row

from distcam.files import Storage, WriterLock
from distcam.images import list_images
from distcam.index import Gallery
from distcam.index.building.ingest import Encoded, Offer, ingest
from distcam.index.storage.manifest import EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.writer import CommitLimits, GalleryWriter

DIM = 8


def make(folder: Path, n: int) -> Path:
    """So many files, five hundred in a folder, and a gallery that knows them."""
    images, gallery = folder / "images", folder / "sync.gallery"
    paths = [f"{row // 500:04d}/{row:07d}.jpg" for row in range(n)]
    for row, path in enumerate(paths):
        if row % 500 == 0:
            (images / path).parent.mkdir(parents=True)
        (images / path).write_bytes(b"%d" % row)
    states = [(images / path).stat() for path in paths]
    spec = Spec("cosine", DIM, DIM, embedding_is_pooled=True)
    manifest = Manifest(spec, EncoderEntry("0" * 64, "synthetic/0"), root=str(images), index="flat")
    Storage().make_folder(gallery)
    with WriterLock(gallery):
        limits = CommitLimits(images=n, vector_bytes=1 << 40, seconds=1e9, segment_images=2 * n)
        writer = GalleryWriter(gallery, manifest, on_disk=None, limits=limits)
        vectors = np.random.default_rng(0).standard_normal((n, DIM), dtype=np.float32)
        digests = b"".join(hashlib.sha256(b"%d" % row).digest() for row in range(n))
        entries = Entries(
            ids=np.arange(n, dtype=np.uint64),
            paths=paths,
            sha256=np.frombuffer(digests, np.uint8).reshape(-1, 32),
            size=np.array([state.st_size for state in states], np.uint64),
            mtime_ns=np.array([state.st_mtime_ns for state in states], np.int64),
            columns={"label": [path.split("/")[0] for path in paths]},
        )
        writer.append(entries, RowVectors(vectors, vectors))
        writer.commit(complete=True)
    return gallery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000, help="files")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(describe_machine("numpy"))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        gallery = Gallery.open(make(folder, options.n))
        images = folder / "images"

        def walk() -> None:
            for place, _, names in os.walk(images):
                for name in names:
                    os.stat(f"{place}/{name}")  # noqa: PTH116

        def sync() -> None:
            assert gallery.sync(images).unchanged == options.n

        def encode(offers: Iterable[Offer]) -> Generator[Encoded, None, None]:
            assert not list(offers), "nothing is new"
            yield from ()

        def add() -> None:
            with gallery._writing() as writer:
                assert ingest(writer, list_images(images), encode).unchanged == options.n

        seconds = interleave({"walk": walk, "sync": sync, "add": add}, rounds=options.rounds)
    print(REACH_HEAD)
    for name in ("sync", "add"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["walk"], strict=True)]
        print(reach_row(f"{name} of {options.n:,} unchanged files, × walk and stat", ratios, 2))
