"""Which way of fitting a photograph into the network's square, and which arithmetic, retrieves best.

    python benchmarks ranking/fits DATA… --encoder mobilenet_v2 --weights FILE [--fits crop,pad]
    python benchmarks ranking/fits DATA… --encoder all --weights FOLDER --fits pad --precisions fp32 [--every 4]

DATA are folders of classes, folders with `query/<class>/` and `gallery/<class>/`, or tables (path,label; the rows of
the split `test` if there is a column `split`; images with the same `photo_id` are never compared). For every fit and
precision it prints R@1 and MAP@R in percent with standard errors over queries, and beside them the difference to the
first row of the table with the standard error of that difference, query by query. With a FOLDER of weights the encoder
is one of localisation.py's five by name, or all of them; `--every 4` takes every fourth class of the data.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from explanations.localisation import ENCODERS, load_encoder
from machine import describe_machine
from numpy.typing import NDArray

from distcam import Encoder
from distcam.encoders import Inference
from distcam.images import load_dataset


def measured(data: Path, encoder: Encoder, precision: str, *, every: int) -> NDArray[np.float64]:
    """R@1 and MAP@R of each query, (queries, 2)."""
    dataset = load_dataset(data)
    if "test" in dataset.splits and len(dataset.splits) > 1:
        dataset = load_dataset(data, split="test")
    listing = dataset.listing()
    kept = set(sorted({record.label for record in listing})[::every])
    records = [record for record in listing if record.label in kept]
    inference = Inference(encoder, precision=precision)
    batches = inference.stream([listing.file(record) for record in records])
    vectors = torch.cat([batch.encoding.embedding for batch in batches if batch.encoding is not None])
    vectors = torch.nn.functional.normalize(vectors.double(), dim=1)
    labels = np.array([record.label for record in records])
    photos = np.array([record.columns.get("photo_id", str(n)) for n, record in enumerate(records)])
    roles = np.array([record.columns.get("role") or "both" for record in records])
    distances = (1 - vectors @ vectors.mT).numpy()
    rows = []
    for query in np.flatnonzero(roles != "gallery"):
        others = (roles != "query") & (photos != photos[query]) & (np.arange(len(records)) != query)
        right = (labels == labels[query])[others][np.argsort(distances[query][others], kind="stable")]
        n_right = int(right.sum())
        if n_right:
            hits = right[:n_right]
            rows.append((right[0], (hits * np.cumsum(hits) / np.arange(1, n_right + 1)).sum() / n_right))
    return np.array(rows, dtype=float)


def told(values: NDArray[np.float64], first: NDArray[np.float64]) -> str:
    """Mean ± standard error in percent, and the difference to the first row's."""
    change = values - first
    error = 100 * values.std(ddof=1) / len(values) ** 0.5
    of_change = 100 * change.std(ddof=1) / len(values) ** 0.5
    return f"{100 * values.mean():.1f} ± {error:.1f} | {100 * change.mean():+.1f} ± {of_change:.1f}"


def print_table(data: Path, encoder: Encoder, options: argparse.Namespace) -> None:
    """One encoder on one set, a row for each fit and precision."""
    own, first = encoder.transform, None
    heading = f"{data.name}, {encoder.short_name}, own fit {own.fit}"
    print(
        f"\n{heading}\n\n| fit | precision | queries | R@1 | | MAP@R | |\n|---|---|---:|---:|---:|---:|---:|",
        flush=True,
    )
    for precision in options.precisions.split(","):
        for fit in options.fits.split(","):
            encoder.transform = own if own.fit == fit else own.adapted(fit=fit)
            values = measured(data, encoder, precision, every=options.every)
            first = values if first is None else first
            scores = " | ".join(told(values[:, column], first[:, column]) for column in range(2))
            print(f"| {fit} | {precision} | {len(values):,} | {scores} |", flush=True)
    encoder.transform = own


def encoders(name: str, weights: str) -> Iterator[Encoder]:
    """One encoder from a file of weights, or those of localisation.py from a folder of them."""
    if weights == "imagenet" or not Path(weights).is_dir():
        yield Encoder.load(name, weights=weights)
        return
    for asked in ENCODERS if name == "all" else name.split(","):
        loaded = load_encoder(asked, Path(weights))
        if loaded is None:
            print(f"\n{asked} left out: no weights in {weights}")
        else:
            yield loaded[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet", help="a file, a folder, or imagenet")
    parser.add_argument("--every", type=int, default=1, help="take every Nth class")
    parser.add_argument("--fits", default="crop,squash,pad")
    parser.add_argument("--precisions", default="fp32,bf16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{describe_machine('torch')}, {torch.get_num_threads()} threads")
    for encoder in encoders(options.encoder, options.weights):
        for data in options.data:
            print_table(data, encoder, options)
