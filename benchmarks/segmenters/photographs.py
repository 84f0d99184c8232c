"""Class maps as masks on photographs: how well do they cover the boxes, with finer maps, more looks, refinements?

    python benchmarks segmenters/photographs FOLDER --weights FOLDER/../weights/mobilenet_v2….pth

FOLDER holds `query/<class>/*.jpg` and `boxes.csv` (path,x1,y1,x2,y2 in pixels of the picture); the classes are called
as those of the ImageNet classifier whose weights are given. A photograph's class is known, as for pseudo masks: its CAM
is drawn at several output strides of the same weights, in one look or in several (scales, mirrored), and refined by a
random walk and by a dense CRF if pydensecrf2 is installed.

A mask is what lies above the background's score β, the truth are the boxes, filled: a box is wider than what is in it,
so 1 is out of reach and only comparisons count. Columns: mIoU over the classes and the background, the β that is best
for it, MaxBoxAcc (IoU of the largest region's box with one of the boxes ≥ 0.5, at the best of nine thresholds) and the
mean of that IoU. Thresholds are chosen on the photographs themselves, anew in every bootstrap sample. Intervals are
95 % bootstrap intervals over photographs; the difference to the first line is paired. One thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine
from PIL import Image
from ranking.masks import filled_boxes

from distcam.encoders import Encoder
from distcam.encoders.backbones.networks import find_class, load_network
from distcam.explain.places import boxes_from_maps
from distcam.images import list_images, read_image
from distcam.images.boxes.formats import read_boxes
from distcam.images.boxes.joined import BoxedImage, boxed_images
from distcam.metrics.segmentation import BETAS
from distcam.retrieval import read_classifier
from distcam.segmentation import CrfSettings, InferenceSettings, WeakSegmenter, class_scores, dense_crf, refine_by_walk

THRESHOLDS = tuple(step / 10 for step in range(1, 10))
SAMPLES = 1000


@dataclass(frozen=True)
class Photograph:
    """What a map of a photograph is measured against."""

    boxed: BoxedImage
    number: int
    image: Image.Image
    truth: np.ndarray

    @classmethod
    def of(cls, boxed: BoxedImage, classes: Sequence[str]) -> Photograph:
        image = read_image(boxed.file)
        return cls(boxed, classes.index(boxed.label), image, filled_boxes(boxed, image.size))


class Score:
    """Counts of every photograph at every β, and how well its box fits at every threshold.

    Args:
        photographs: n of them.
        maps: of the class that each shows, in its pixels, in [0, 1].
    """

    def __init__(self, photographs: Sequence[Photograph], maps: Sequence[np.ndarray]) -> None:
        self.number = np.array([photograph.number for photograph in photographs])
        self.counts = np.stack([_counts(p.truth, heat) for p, heat in zip(photographs, maps, strict=True)])
        self.fit = np.stack([_box_fit(p, heat) for p, heat in zip(photographs, maps, strict=True)])

    def mean_iou(self, draws: np.ndarray) -> np.ndarray:
        """By sample and β, of samples that hold each photograph `draws` (r, n) times."""
        found, wanted, both, pixels = (self.counts[..., place].astype(float) for place in range(4))
        ious = [(draws @ (pixels - found - wanted + both)) / (draws @ (pixels - both))]
        for number in np.unique(self.number):
            own = self.number == number
            hits, union = draws[:, own] @ both[own], draws[:, own] @ (found + wanted - both)[own]
            ious.append(np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0))
        return np.nanmean(ious, axis=0)

    def measured(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """The measures of every sample, each at its best β or threshold."""
        count = draws.sum(1, keepdims=True)
        return {
            "mIoU": self.mean_iou(draws).max(1),
            "MaxBoxAcc": (draws @ (self.fit >= 0.5) / count).max(1),
            "box IoU": (draws @ self.fit / count).max(1),
        }


def _counts(truth: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """For every β the pixels above it, those of the truth, those of both, and all, (β, 4)."""
    above = np.searchsorted(BETAS, heat)  # how many βs lie below each pixel
    found, both = (number_above(np.bincount(above[part].ravel(), minlength=len(BETAS) + 1)) for part in (..., truth))
    return np.stack([found, np.full_like(found, truth.sum()), both, np.full_like(found, truth.size)], 1)


def number_above(histogram: np.ndarray) -> np.ndarray:
    """How many values lie above the first, the second, … level."""
    return histogram[::-1].cumsum()[::-1][1:]


def _box_fit(photograph: Photograph, heat: np.ndarray) -> np.ndarray:
    """IoU of the box around the largest region with the nearest true box, by threshold."""
    boxes = photograph.boxed.boxes_of(photograph.boxed.label, *photograph.image.size)
    seen = torch.from_numpy(heat)[None]
    found = [boxes_from_maps(seen, threshold=threshold)[0] for threshold in THRESHOLDS]
    return np.array([max(box.iou(true) for true in boxes) for box in found])


# --- maps -------------------------------------------------------------------------------------------------------------


def floors(photographs: Sequence[Photograph]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """What needs no network."""
    yield "none: the whole picture", [np.ones(p.truth.shape, np.float32) for p in photographs]
    centred = []
    for photograph in photographs:
        heat = np.zeros(photograph.truth.shape, np.float32)
        down, across = (round(0.1 * side) for side in heat.shape)
        heat[down : heat.shape[0] - down, across : heat.shape[1] - across] = 1
        centred.append(heat)
    yield "none: a centred box of 80 % of each side", centred


def class_map(source: WeakSegmenter, photograph: Photograph, settings: InferenceSettings) -> np.ndarray:
    """The map of the class that the photograph shows."""
    scores = class_scores(source, photograph.image, shown=(photograph.number,), settings=settings)
    return scores[photograph.number]


def walked(photograph: Photograph, heat: np.ndarray) -> np.ndarray:
    """After the random walk by colours."""
    moved = refine_by_walk(heat[None], photograph.image)[1]
    return moved / max(float(moved.max()), 1e-12)


def smoothed(photograph: Photograph, heat: np.ndarray, *, beta: float) -> np.ndarray:
    """The class's probability after the dense CRF, beside a background with the score β."""
    settings = CrfSettings().scaled(max(photograph.image.size) / 500)
    scores = np.stack([np.full_like(heat, max(beta, 1e-3)), heat])
    return dense_crf(photograph.image, scores, settings=settings)[1]


# --- the table --------------------------------------------------------------------------------------------------------


class Table:
    """A line for each kind of map, with intervals from the same bootstrap samples."""

    def __init__(self, photographs: Sequence[Photograph], *, seed: int) -> None:
        self.photographs = photographs
        n = len(photographs)
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=SAMPLES).astype(float)
        self.draws = np.concatenate([np.ones((1, n)), drawn])  # the first is the sample as it is
        self.first: np.ndarray | None = None

    def line(self, name: str, maps: Sequence[np.ndarray], *, seconds: float | None = None) -> float:
        """Print it; the best β."""
        score = Score(self.photographs, maps)
        measured = score.measured(self.draws)
        beta = BETAS[int(score.mean_iou(self.draws[:1])[0].argmax())]
        cells = [_shown(measured["mIoU"]), f"{beta:.2f}"]
        if self.first is None and seconds is not None:
            self.first = measured["mIoU"]
        cells.append("" if self.first is None else _shown(measured["mIoU"] - self.first, sign="+"))
        cells += [_shown(measured["MaxBoxAcc"]), _shown(measured["box IoU"])]
        cells.append("" if seconds is None else f"{1000 * seconds / len(maps):.0f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        return beta


def _shown(values: np.ndarray, *, sign: str = "") -> str:
    """The value of the sample itself, with the interval of the others."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return f"{values[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--strides", default="32,16,8", help="output strides for one look")
    parser.add_argument("--many", default="16", help="output strides for several looks, which are refined as well")
    parser.add_argument("--scales", default="0.5,1,1.5", help="of several looks, all of them mirrored too")
    parser.add_argument("--every", type=int, default=1, help="take every n-th photograph only")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)

    boxed = boxed_images(list_images(options.folder / "query"), read_boxes(options.folder / "boxes.csv"))
    photographs = [Photograph.of(image, boxed.labels) for image in list(boxed)[:: options.every]]
    network = load_network(options.encoder, weights="random")
    rows = [find_class(label, network.classes, network.n_classes) for label in boxed.labels]
    plain = Encoder.load(options.encoder, weights=options.weights)
    classifier = read_classifier(options.encoder, options.weights, pooled_dim=plain.pooled_dim)
    if classifier is None:
        parser.error(f"{options.weights} holds no classifier, so there are no class maps")
    strides, many = ([int(part) for part in text.split(",") if part] for text in (options.strides, options.many))
    scales = tuple(float(part) for part in options.scales.split(","))
    looks = [(stride, InferenceSettings(scales=(1.0,), flip=False)) for stride in strides]
    looks += [(stride, InferenceSettings(scales=scales)) for stride in many]
    has_crf = importlib.util.find_spec("pydensecrf") is not None

    print(f"{describe_machine('torch', 'pydensecrf2')}, 1 thread, seed {options.seed}")
    print(f"{len(photographs)} photographs of {len(boxed.labels)} classes, {options.encoder}\n")
    print("| map | mIoU | β | minus the first map | MaxBoxAcc | box IoU | ms |\n|---|---:|---:|---:|---:|---:|---:|")
    table = Table(photographs, seed=options.seed)
    for name, maps in floors(photographs):
        table.line(name, maps)
    for stride, settings in looks:
        encoder = Encoder.load(options.encoder, weights=options.weights, options={"output_stride": stride})
        source = WeakSegmenter(encoder.to(memory_format=torch.channels_last), classifier.weight[rows], boxed.labels)
        start = time.process_time()
        maps = [class_map(source, photograph, settings) for photograph in photographs]
        is_one = settings.scales == (1.0,)
        name = f"stride {stride}, " + ("one look" if is_one else f"scales {options.scales}, mirrored")
        beta = table.line(name, maps, seconds=time.process_time() - start)
        if is_one:
            continue
        start = time.process_time()
        after = [walked(photograph, heat) for photograph, heat in zip(photographs, maps, strict=True)]
        table.line(f"{name}, random walk", after, seconds=time.process_time() - start)
        if has_crf:
            start = time.process_time()
            after = [smoothed(photograph, heat, beta=beta) for photograph, heat in zip(photographs, maps, strict=True)]
            table.line(f"{name}, dense CRF", after, seconds=time.process_time() - start)
