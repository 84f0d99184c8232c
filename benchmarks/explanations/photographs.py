"""Real photographs, end to end: build a gallery, query it, and count how often the explanation points at the object.

    python benchmarks explanations/photographs FOLDER --encoder mobilenet_v2 --weights FILE

FOLDER holds `gallery/<class>/*.jpg`, `query/<class>/*.jpg` and `boxes.csv` (path,x1,y1,x2,y2 in pixels of the picture;
a picture may have several lines). Prints R@1, the share of maps whose peak lies in a ground-truth box and the share of
their energy in the boxes, for every weighting, against the nearest match and the nearest class prototype, beside what
needs no learning: a random place (the boxes' share of the area), the picture's centre, and the class-agnostic map
(`caam`). Sensitivity is the mean rank correlation with the map against an unrelated gallery image: 1.00 means that a
map does not depend on its reference. Confidence intervals are 95 % bootstrap intervals over queries.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine

from distcam import Encoder, Gallery, Matches, Retriever
from distcam.encoders import Inference
from distcam.explain import WEIGHTINGS, energy_in_box, peak_in_box, rectify, upsample
from distcam.images import Box, list_images
from distcam.index.faiss.runtime import installed


def read_boxes(file: Path) -> dict[str, list[Box]]:
    """Boxes by picture path."""
    boxes = defaultdict(list)
    with file.open(newline="") as lines:
        for line in csv.DictReader(lines):
            boxes[line["path"]].append(Box(*(float(line[corner]) for corner in ("x1", "y1", "x2", "y2"))))
    return boxes


def interval(values: list[float], *, seed: int = 0) -> str:
    """Mean with its 95 % bootstrap interval over queries."""
    data = np.asarray(values)
    means = np.random.default_rng(seed).choice(data, (2000, len(data))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{data.mean():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--fit", default="squash", help="the boxes reach to the borders, so nothing is cut off")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    options = parser.parse_args()

    encoder = Encoder.load(options.encoder, weights=options.weights)
    encoder.transform = encoder.transform.adapted(fit=options.fit)
    queries = list_images(options.folder / "query")
    records = list(queries)
    boxes = read_boxes(options.folder / "boxes.csv")
    precision = Inference(encoder, precision=options.precision).precision
    machine = describe_machine("torch", *installed())
    print(f"{machine}, {torch.get_num_threads()} threads, {encoder.short_name}, {precision}")
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        gallery = Gallery.build(
            options.folder / "gallery", encoder, out=Path(work) / "gallery", precision=options.precision
        )
        building = time.perf_counter() - start
        retriever = Retriever(gallery, encoder, precision=options.precision)
        files = [queries.file(record) for record in records]
        start = time.perf_counter()
        results = retriever.query(files, k=10)
        batched = (time.perf_counter() - start) / len(files)
        single, explaining = [], []
        for file in files[:50]:
            start = time.perf_counter()
            matches = retriever.query(file, k=10)
            single.append(time.perf_counter() - start)
            start = time.perf_counter()
            matches.explain()
            explaining.append(time.perf_counter() - start)
        hits = [float(matches[0].label == record.label) for matches, record in zip(results, records, strict=True)]
        print(f"\n{len(gallery)} gallery images, {len(files)} queries, {len(gallery.labels)} classes")
        print(
            f"R@1 {interval(hits)}; nearest prototype {interval(prototype_hits(results, [r.label for r in records]))}"
        )
        print(f"building: {1000 * building / len(gallery):.1f} ms per image ({len(gallery) / building:.0f} images/s)")
        print(f"query with k = 10: {1000 * batched:.1f} ms in batches, {1000 * statistics.median(single):.1f} ms alone")
        print(f"explaining its ten matches: {1000 * statistics.median(explaining):.2f} ms more")
        report_maps(results, [boxes[f"query/{record.path}"] for record in records])


def prototype_hits(results: list[Matches], labels: list[str | None]) -> list[float]:
    return [
        float(m.prototype is not None and m.prototype[0] == label) for m, label in zip(results, labels, strict=True)
    ]


def report_maps(results: list[Matches], boxes: list[list[Box]]) -> None:
    """The table of maps against boxes."""
    print("\n| map | reference | peak in box | energy in box | sensitivity |\n|---|---|---:|---:|---:|")
    sizes = [matches.query.image.size for matches in results]
    flat = [energy_in_box(torch.zeros(h, w), *own).chance for (w, h), own in zip(sizes, boxes, strict=True)]
    centre = [float(any(box.contains(w / 2, h / 2) for box in own)) for (w, h), own in zip(sizes, boxes, strict=True)]
    print(f"| none: a random place | – | {interval(flat)} | {interval(flat)} | – |")
    print(f"| none: the picture's centre | – | {interval(centre)} | – | – |")
    for against in ("match", "prototype"):
        for weighting, tau in (("dist", 0.0), *((weighting, 1.0) for weighting in WEIGHTINGS)):
            peaks, energies, sensitivities = [], [], []
            for matches, (width, height), own in zip(results, sizes, boxes, strict=True):
                explanation = matches.explain(against=against, weighting=weighting, tau=tau)
                heat = rectify(upsample(explanation.query_maps[0], (height, width)))
                sensitivities.append(explanation.sensitivity or 0.0)
                peaks.append(float(peak_in_box(heat, *own)))
                energies.append(energy_in_box(heat, *own).share)
            name = f"`{weighting}`" if tau else "`dist`, 1/D to the letter (tau = 0)"
            sensitivity = f"{statistics.mean(sensitivities):.2f}"
            print(f"| {name} | nearest {against} | {interval(peaks)} | {interval(energies)} | {sensitivity} |")
