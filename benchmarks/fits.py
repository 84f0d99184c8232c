"""Which way of fitting a photograph into the network's square, and which arithmetic, retrieves best.

    python benchmarks/fits.py DATA… --encoder mobilenet_v2 --weights FILE [--fits crop,pad]

DATA are folders of classes, folders with `query/<class>/` and `gallery/<class>/`, or tables (path,label; the rows of
the split `test` if there is a column `split`; images with the same `photo_id` are never compared). For every fit and
precision it prints R@1 and MAP@R in percent with standard errors over queries, and beside them the difference to the
first row of the table with the standard error of that difference, query by query.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine
from numpy.typing import NDArray

from distcam import Encoder
from distcam.encoders import Inference
from distcam.images import load_dataset


def measured(data: Path, encoder: Encoder, precision: str) -> NDArray[np.float64]:
    """R@1 and MAP@R of each query, (queries, 2)."""
    dataset = load_dataset(data)
    if "test" in dataset.splits and len(dataset.splits) > 1:
        dataset = load_dataset(data, split="test")
    listing = dataset.listing()
    records = list(listing)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--fits", default="crop,squash,pad")
    parser.add_argument("--precisions", default="fp32,bf16")
    options = parser.parse_args()
    encoder = Encoder.load(options.encoder, weights=options.weights)
    own = encoder.transform
    print(f"{describe_machine('torch')}, {torch.get_num_threads()} threads, {encoder.short_name}", flush=True)
    for data in options.data:
        first = None
        print(f"\n{data.name}\n\n| fit | precision | R@1 | | MAP@R | |\n|---|---|---:|---:|---:|---:|", flush=True)
        for precision in options.precisions.split(","):
            for fit in options.fits.split(","):
                encoder.transform = own if own.fit == fit else own.adapted(fit=fit)
                values = measured(data, encoder, precision)
                first = values if first is None else first
                print(
                    f"| {fit} | {precision} | {told(values[:, 0], first[:, 0])} | {told(values[:, 1], first[:, 1])} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
