"""Ways of explaining a match compared on photographs: composites of two and of four, boxes, lines on known crops.

    python benchmarks explanations/methods [--data FOLDER] [--out FILE.md]

FOLDER (else the environment variable DISTCAM_DATA) holds `imagenette/` (`gallery/`, `query/`, `boxes.csv`),
`caltech101/` (class folders), and `weights/`. Five encoders: MobileNetV2, ResNet-18 up to layer3, SqueezeNet, and
EfficientNet-Lite0 and Lite2 through timm. For every encoder and set, against prototypes and the nearest image: whether
a map points to the photograph it is asked for, how much it depends on the match, insertion minus deletion, and boxes.
Then everything pooled over encoders and sets, with paired 95 % bootstrap intervals; PAIR-X (see `pairx`) on composites
of two; and lines on known crops (see `lines`). `--sets imagenette caltech101` adds classes outside of ImageNet,
`--methods all` every row.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from explanations.lines import crops
from explanations.localisation import CAFFE
from explanations.pairx import PairX
from machine import describe_machine
from torch import Tensor

from distcam.encoders import Encoder, Encoding, Inference
from distcam.images import Transform, list_images
from distcam.images.boxes.formats import read_boxes
from distcam.images.boxes.joined import BoxedImages, boxed_images
from distcam.metrics.intervals import bootstrap_weights
from distcam.retrieval import References, localise, read_classifier
from distcam.retrieval.localisation.classifiers import LinearClassifier
from distcam.retrieval.localisation.composites import TWO, split_off
from distcam.retrieval.localisation.explanation_table import DEFAULT, ExplanationTable
from distcam.retrieval.localisation.explanations import Composing, benchmark_explanations, default_methods
from distcam.retrieval.localisation.maps import FLOORS, MapMaker
from distcam.retrieval.localisation.references import ObjectImage, photographs
from distcam.retrieval.localisation.results import MEASURES, Estimate, estimate

ROWS = {"cam", "cam_probe", DEFAULT, "dist", "log_ratio", "dot_centered", "gradcam_cos", "q*s"} | {
    f"{DEFAULT}@mean={mean}" for mean in ("gallery", "border", "half")
}
Cells = list[ExplanationTable]
SHOWN = ("right_of_two", "energy_of_two", "right_of_four", "energy_of_four", "sensitivity", "insertion_deletion")
THRESHOLDS = tuple(step / 20 for step in range(20))


def mobilenet(weights: Path) -> tuple[Encoder, LinearClassifier | None]:
    file = next(iter(weights.glob("mobilenet_v2*.pth")))
    encoder = Encoder.load("mobilenet_v2", weights=file)
    return encoder, read_classifier("mobilenet_v2", file, pooled_dim=encoder.pooled_dim)


def resnet(weights: Path) -> tuple[Encoder, LinearClassifier | None]:
    return Encoder.load("resnet18", weights=next(iter(weights.glob("resnet18*.pth"))), layer="layer3"), None


def squeezenet(weights: Path) -> tuple[Encoder, LinearClassifier | None]:
    return Encoder.load("squeezenet1_1", weights=next(iter(weights.glob("squeezenet*.pth"))), transform=CAFFE), None


def lite(number: int) -> Callable[[Path], tuple[Encoder, LinearClassifier | None]]:
    def load(weights: Path) -> tuple[Encoder, LinearClassifier | None]:
        import timm

        model = timm.create_model(f"tf_efficientnet_lite{number}")
        file = next(iter(weights.glob(f"tf_efficientnet_lite{number}*.pth")))
        model.load_state_dict(torch.load(file, weights_only=True))
        half, size = (0.5, 0.5, 0.5), {0: 224, 2: 260}[number]
        transform = Transform(size, mean=half, std=half, interpolation="bicubic")
        classifier = LinearClassifier(model.classifier.weight.detach(), model.classifier.bias.detach())
        return Encoder.load(model.eval(), layer="bn2", transform=transform), classifier

    return load


ENCODERS = {
    "mobilenet_v2": mobilenet,
    "resnet18, layer3": resnet,
    "squeezenet1_1": squeezenet,
    "efficientnet_lite0": lite(0),
    "efficientnet_lite2": lite(2),
}


def sets(
    data: Path, *, names: list[str], each: int, n: int, seed: int
) -> Iterator[tuple[str, list[ObjectImage], list[ObjectImage]]]:
    """The name of a set, images to ask with, and the images behind prototypes."""
    generator = torch.Generator().manual_seed(seed)
    gallery = photographs(list_images(data / "imagenette" / "gallery"))
    queries = photographs(list_images(data / "imagenette" / "query"))
    kept, _ = split_off(gallery, each * 10, generator=generator)
    asked, _ = split_off(queries, 2 * n, generator=generator)
    if "imagenette" in names:
        yield "imagenette", asked, kept
    if "caltech101" not in names:
        return
    images = photographs(list_images(data / "caltech101"))
    labels = sorted({image.label for image in images})
    chosen = {labels[place] for place in torch.randperm(len(labels), generator=generator)[:20].tolist()}
    asked, kept = split_off([image for image in images if image.label in chosen], 4 * n, generator=generator)
    yield "caltech101 (20 classes)", asked, kept


def boxes_of(data: Path, asked: list[ObjectImage]) -> BoxedImages:
    """The images of imagenette that are asked with, with their boxes."""
    found = boxed_images(list_images(data / "imagenette" / "query"), read_boxes(data / "imagenette" / "boxes.csv"))
    files = {photograph.file for photograph in asked}
    return replace(found, images=tuple(image for image in found if image.file in files))


def measured(options: argparse.Namespace, write: Callable[[str], None]) -> dict[str, Cells]:
    """A table for each encoder and set, by kind of reference."""
    tables: dict[str, Cells] = {"prototypes": [], "nearest": []}
    drawn = {"names": options.sets, "each": options.references, "n": options.composites, "seed": options.seed}
    for name, asked, kept in sets(options.data, **drawn):
        for title in options.encoders or ENCODERS:
            start = time.process_time()
            encoder, classifier = ENCODERS[title](options.data / "weights")
            references = References.encode(kept, Inference(encoder, precision="fp32"))
            own = classifier if name == "imagenette" else None
            for kind, cells in tables.items():
                found = default_methods(references, kind, has_classifier=own is not None)
                methods = [m for m in found if ":" not in m and (options.methods == "all" or m in ROWS)]
                table = benchmark_explanations(
                    asked,
                    encoder,
                    references,
                    composites=options.composites,
                    methods=methods,
                    reference=kind,
                    classifier=own,
                    faithful=options.faithful if kind == "prototypes" and name == "imagenette" else 0,
                    precision="fp32",
                    seed=options.seed,
                )
                if name == "imagenette":
                    boxed = localise(
                        boxes_of(options.data, asked),
                        encoder,
                        references,
                        methods=[m for m in methods if m not in FLOORS],
                        reference=kind,
                        classifier=own,
                        thresholds=THRESHOLDS,
                        precision="fp32",
                        n_samples=0,
                    )
                    table = replace(table, boxes=boxed)
                cells.append(table)
                write(f"### {title}, {name}, {kind}\n\n{table.table()}\n\n{time.process_time() - start:.0f} s\n")
            if name == "imagenette" and options.pairx:
                write(f"### {title}, PAIR-X\n\n{beside_pairx(title, asked, encoder, references, options)}\n")
    return tables


def beside_pairx(
    title: str, asked: list[ObjectImage], encoder: Encoder, references: References, options: argparse.Namespace
) -> str:
    """PAIR-X's relevance as a map, against the nearest image, beside three of ours on the same composites of two."""

    class Maker(MapMaker):
        def maps(self, encoding: Encoding, pixels: Tensor, references: Tensor, classes: Tensor) -> dict[str, Tensor]:
            images, found = encoder.transform.normalise(pixels), []
            start = time.process_time()
            for place in range(references.shape[1]):
                found.append(peer(images, references[:, place])[1])
            seconds.append((time.process_time() - start) / references.shape[1] / len(pixels))
            return {**super().maps(encoding, pixels, references, classes), "PAIR-X": torch.stack(found, 1)}

    names, peer, seconds = [DEFAULT, "dist", "gradcam_cos"], PairX(encoder, title), list[float]()
    inference, generator = Inference(encoder, precision="fp32"), torch.Generator().manual_seed(options.seed)
    maker = Maker.of(encoder, names, references, None, generator, reference="nearest")
    run = Composing(inference, maker, options.pairx)
    run.values["PAIR-X"] = {}
    values = run.draw(asked, (TWO,))
    start = time.process_time()
    inference(torch.zeros(8, 3, *run.canvas.size, dtype=torch.uint8))
    one = (time.process_time() - start) / 8
    lines = [f"{options.pairx} composites, layer {peer.layer}; a map costs {np.mean(seconds) / one:.0f} forward passes"]
    lines += [
        "of one photograph",
        "",
        "| map | right of two | its half | right of two − PAIR-X's |",
        "|---|---|---|---|",
    ]
    for name in (*names, "caam", "PAIR-X"):
        own, rival = values[name], values["PAIR-X"]
        shown = own["right_of_two"], own["energy_of_two"], own["right_of_two"] - rival["right_of_two"]
        cells = [str(estimate(lambda w, v=v: w @ v, len(v), n_samples=2000, seed=options.seed)) for v in shown]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def pooled(cells: Cells, *, seed: int) -> str:
    """All cells as one table: CAM is the encoder's own classifier's where it has one, else a probe's."""
    everywhere = set.intersection(*(set(cell.values) for cell in cells))
    names = [n for n in cells[0].values if n in everywhere - {"cam_probe", "random", "full"}]
    lines = [
        "| map | right of two | its half | right of four | its quarter | sensitivity | insertion − deletion | "
        "right of two − CAM's | V2 | peak | V2 − CAM's | insertion − deletion, − CAM's |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|---:|---|---|",
    ]
    for name in ("CAM", *names):
        row = [_mean(cells, name, measure, seed) for measure in SHOWN]
        lead, faith = (_lead(cells, name, measure, seed) for measure in ("right_of_two", "insertion_deletion"))
        boxed = [cell for cell in cells if cell.boxes is not None]
        v2, peak = (_boxed(boxed, name, None, measure, seed) for measure in ("max_box_acc_v2", "peak"))
        change = _boxed(boxed, name, "CAM", "max_box_acc_v2", seed)
        label = f"**`{name}`**" if name == DEFAULT else f"`{name}`"
        cells_ = [label, *row, lead, f"{v2.value:.3f}", f"{peak.value:.3f}", str(change), faith]
        lines.append(f"| {' | '.join(cells_)} |")
    return "\n".join(lines)


def _name(scores: object, name: str) -> str:
    return ("cam" if "cam" in scores else "cam_probe") if name == "CAM" else name  # type: ignore[operator]


def _of(cell: ExplanationTable, name: str, measure: str) -> torch.Tensor:
    return cell.values[_name(cell.values, name)].get(measure, torch.empty(0)).double()


def _pooled(cells: Cells, values: Callable[[ExplanationTable], torch.Tensor], seed: int) -> Estimate:
    found = torch.cat([values(cell) for cell in cells])
    return estimate(lambda w: w @ found, len(found), n_samples=2000, seed=seed)


def _lead(cells: Cells, name: str, measure: str, seed: int) -> str:
    own = [cell for cell in cells if len(_of(cell, name, measure))]
    if not own:
        return "–"
    return str(_pooled(own, lambda cell: _of(cell, name, measure) - _of(cell, "CAM", measure), seed))


def _mean(cells: Cells, name: str, measure: str, seed: int) -> str:
    own = [cell for cell in cells if len(_of(cell, name, measure))]
    if not own:
        return "–"
    found = _pooled(own, lambda cell: _of(cell, name, measure), seed)
    return f"{found.value:.3f} ± {(found.high - found.low) / 2:.3f}"


def _boxed(cells: Cells, one: str, other: str | None, measure: str, seed: int) -> Estimate:
    """A measure of boxes, or its difference to another method's, in the mean over cells, images drawn in each."""
    series, values = [], []
    for number, cell in enumerate(cells):
        assert cell.boxes is not None
        scores = cell.boxes.scores
        names = [_name(scores, name) for name in (one, other) if name is not None]

        def statistic(weights: torch.Tensor, scores: object = scores, names: list[str] = names) -> torch.Tensor:
            found = [MEASURES[measure](scores[name], weights) for name in names]  # type: ignore[index]
            return found[0] if len(found) == 1 else found[0] - found[1]

        n = len(cell.boxes)
        values.append(float(statistic(torch.full((1, n), 1 / n, dtype=torch.float64))[0]))
        drawn = bootstrap_weights(n, samples=1000, seed=seed + number)
        series.append(torch.cat([statistic(weights) for weights in drawn]))
    low, high = torch.stack(series).mean(0).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(sum(values) / len(values), low, high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DISTCAM_DATA"))
    parser.add_argument("--out", type=Path, help="also write everything into this Markdown file")
    parser.add_argument("--composites", type=int, default=12, help="of two, and of four, for each encoder and set")
    parser.add_argument("--references", type=int, default=10, help="images of a class behind imagenette's prototypes")
    parser.add_argument("--faithful", type=int, default=4, help="images for insertion and deletion, for each encoder")
    parser.add_argument("--pairx", type=int, default=6, help="composites of two for PAIR-X, for each encoder; 0: none")
    parser.add_argument("--lines", type=int, default=20, help="photographs for lines on known crops; 0: none")
    parser.add_argument("--sets", nargs="+", default=["imagenette"], choices=["imagenette", "caltech101"])
    parser.add_argument("--methods", default="few", choices=["few", "all"], help="rows of the tables")
    parser.add_argument("--encoders", type=lambda text: text.split(";"), help="some of them, separated by semicolons")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder of photographs with --data, or set DISTCAM_DATA")
    torch.set_num_threads(options.threads)
    parts: list[str] = []

    def write(text: str) -> None:
        parts.append(text)
        print(text, flush=True)
        if options.out is not None:
            options.out.write_text("\n".join(parts) + "\n", encoding="utf-8")

    write(
        f"{describe_machine('torch')}, {options.threads} threads, {options.composites} composites a cell, "
        f"{options.references} images of a class behind imagenette's prototypes, seed {options.seed}\n"
    )
    for kind, cells in measured(options, write).items():
        write(f"## {kind}: {len(cells)} cells pooled\n\n{pooled(cells, seed=options.seed)}\n")
    if options.lines:
        write("## Lines on known crops\n")
        crops(options.data, options.lines, options.seed, write=write)
    write(f"{time.process_time():.0f} s of processor time in all\n")
