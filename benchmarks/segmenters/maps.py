"""What do the maps of a segmenter light up, and does it matter? All methods, on close objects and on street scenes.

    python benchmarks segmenters/maps cells crowds
    python benchmarks segmenters/maps camvid --camvid FOLDER/camvid --weights FOLDER/weights/mobilenet_v2….pth
    python benchmarks segmenters/maps cells crowds --roar
    python benchmarks segmenters/maps --figure docs/images/segmenter.jpg

A small segmenter is trained on the training pictures; then, in the test pictures, one object among others of its class
is asked about by its pixels (`component`), its box, or one point in it, and each class by all its predicted pixels
(`class`). Columns: is the map's peak in the object; share of its energy in the object; of its energy in all objects of
the class, the share in that one; is it the brightest of them; ROAD, (LeRF − MoRF) / 2 in logits per pixel asked about.
Brackets are 95 % bootstrap intervals over pictures, whose questions stay together. References without a gradient stand
below: noise, the middle, the whole picture, the largest object, the network's own probability, and the question itself.

`--roar`: the share of the pixels that a method's map (of everything that is predicted) puts first is removed from
training and test pictures, and a network is trained anew; its mean IoU, mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine
from segmenters.crowds import Crowd, draw_cells, draw_crowd, draw_crowds
from segmenters.judging_maps import ASKS, REFERENCES, MapScores, Questions, ask_objects, judge_maps, maps_for
from segmenters.pixel_data import PixelData, predict
from segmenters.roar import remove_and_retrain, whole_explanations
from segmenters.small_segmenters import (
    FitSettings,
    MobileSegmenter,
    SmallSegmenter,
    as_image,
    crowd_data,
    fit_segmenter,
    score,
)
from torch import nn

from distcam.explain import METHODS, DrawStyle, Tile, contour, draw_box, grid, map_tiles, rectify
from distcam.explain.drawing.rendering import draw_points
from distcam.images import Box, Transform
from distcam.segmentation.data import MaskedImages
from distcam.synthetic.blueprint import blueprints

TITLES = {"hirescam": "Seg-HiRes-Grad-CAM", "gradcam": "Seg-Grad-CAM", "segxrescam": "Seg-XRes-CAM"}
SHOWN = ("hirescam", "segxrescam", "layercam", "gradcam", "scorecam", "caam")
HEADINGS = {
    "pointing": "peak in object",
    "energy": "energy in object",
    "own_energy": "energy among objects",
    "own_peak": "brightest of them",
    "road": "ROAD",
}


@dataclass(frozen=True)
class Task:
    """Pictures, and how a network for them is made and trained."""

    title: str
    train: PixelData
    test: PixelData
    make: Callable[[int], nn.Module]
    settings: FitSettings

    def trained(self, data: PixelData, seed: int) -> nn.Module:
        model = self.make(seed)
        fit_segmenter(model, data, FitSettings(**{**vars(self.settings), "seed": seed}))
        return model


def crowd_task(
    title: str, draw: Callable[[np.random.Generator], Crowd], names: list[str], options: argparse.Namespace
) -> Task:
    transform = Transform(options.size, fit="squash")
    train, test = (
        crowd_data(draw_crowds(draw, count=count, seed=2 * options.seed + part), names, transform)
        for part, count in ((0, options.train), (1, options.images))
    )
    settings = FitSettings(epochs=options.epochs, seed=options.seed)
    return Task(title, train, test, lambda seed: SmallSegmenter(len(names) + 1, seed=seed), settings)


def cells(options: argparse.Namespace) -> Task:
    return crowd_task(
        "cells: many close round objects of one class",
        lambda generator: draw_cells(generator=generator, size=options.size, count=14),
        ["cell"],
        options,
    )


def crowds(options: argparse.Namespace) -> Task:
    classes = blueprints(4, seed=options.seed)
    return crowd_task(
        "scenes: three objects of one class and one of another",
        lambda generator: draw_crowd(classes, generator=generator, size=options.size),
        [blueprint.name for blueprint in classes],
        options,
    )


def camvid(options: argparse.Namespace) -> Task:
    transform = Transform((options.rows, options.rows * 4 // 3), fit="squash")
    train, test = (
        PixelData.of_masks(MaskedImages.from_camvid(options.camvid, split), transform) for split in ("train", "test")
    )
    test = PixelData(
        test.images[: options.images],
        test.classes[: options.images],
        test.instances[: options.images],
        test.names,
        test.background,
    )
    settings = FitSettings(options.camvid_epochs, batch_size=5, learning_rate=2e-3, seed=options.seed)
    return Task(
        f"CamVid: {len(train)} training and {len(test)} test pictures of {transform.height}×{transform.width}",
        train,
        test,
        lambda seed: MobileSegmenter(len(train.names), weights=options.weights, seed=seed),
        settings,
    )


TASKS = {"cells": cells, "crowds": crowds, "camvid": camvid}


def tables(task: Task, options: argparse.Namespace) -> None:
    model = task.trained(task.train, options.seed)
    print(f"\n## {task.title}\n\nmean IoU of the network on the test pictures: {score(model, task.test).mean_iou:.3f}")
    methods = [*options.methods.split(","), *REFERENCES]
    for by in options.by.split(","):
        start = time.process_time()
        found = judge_maps(
            model,
            task.test,
            methods=methods,
            layer=model.layer,
            by=by,
            most=options.most,
            least_pixels=options.least_pixels,
            road=tuple(float(share) for share in options.road.split(",") if share),
            seed=options.seed,
            window=options.window,
        )
        first = next(iter(found.values()))
        pictures = len(first.image.unique())
        print(f"\n### asked by {by}: {len(first.image)} questions in {pictures} pictures\n")
        print(measure_table(found, options.window, seed=options.seed))
        print(f"\n{time.process_time() - start:.0f} s of processor time", flush=True)


def measure_table(found: dict[str, MapScores], window: int, *, seed: int) -> str:
    measures = [name for name in MapScores.MEASURES if any(each.interval(name) for each in found.values())]
    lines = [f"| map | {' | '.join(HEADINGS[name] for name in measures)} |", "|---|" + "---:|" * len(measures)]
    for name, scores in found.items():
        cells = []
        for measure in measures:
            interval = scores.interval(measure, seed=seed)
            cells.append("–" if interval is None else "{:.3f} [{:.3f}, {:.3f}]".format(*interval))
        lines.append(f"| {titled(name, window)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def titled(name: str, window: int) -> str:
    if name in REFERENCES:
        return f"none: {REFERENCES[name]}"
    title = TITLES.get(name, METHODS[name].title)
    return f"{title}, windows of {window}" if name == "segxrescam" else title


def roar_table(task: Task, options: argparse.Namespace) -> None:
    fractions = [float(share) for share in options.fractions.split(",")]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    print(f"\n## ROAR, {task.title}; fill: {options.fill}; mean IoU, mean ± standard deviation over seeds {seeds}\n")
    print(f"| map | {' | '.join(f'{share:.0%} removed' for share in fractions)} |\n|---|{'---:|' * len(fractions)}")
    for method in [*options.roar_methods.split(","), "random"]:
        start, values = time.process_time(), []
        for seed in seeds:
            model = task.trained(task.train, seed)
            given = {"window": options.window} if method == "segxrescam" else {}
            maps = tuple(
                whole_explanations(model, data, method=method, layer=model.layer, seed=seed + part, **given)
                for part, data in enumerate((task.train, task.test))
            )
            values.append(
                remove_and_retrain(
                    task.train,
                    task.test,
                    maps,
                    lambda data, seed=seed: task.trained(data, seed),
                    fractions=fractions,
                    measure=lambda network, data: score(network, data).mean_iou,
                    fill=options.fill,
                    seed=seed,
                )
            )
        cells = [f"{np.mean(column):.3f} ± {np.std(column):.3f}" for column in zip(*values, strict=True)]
        name = "a random order" if method == "random" else titled(method, options.window)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        print(f"<!-- {time.process_time() - start:.0f} s -->", flush=True)


def figure(file: Path, options: argparse.Namespace) -> None:
    """One picture of cells, one of them asked about in three ways, and what each method lights up."""
    task = cells(options)
    model = task.trained(task.train, options.seed)
    row, number = options.picture
    predicted = predict(model, task.test.images)
    image = task.test.images[row : row + 1]
    picture = as_image(image[0], Transform(options.size)).resize((384, 384), 1)
    rows = []
    for by in ("component", "box", "point"):
        questions = ask_objects(task.test, row, predicted[row], by=by)
        one = Questions(*(getattr(questions, name)[number : number + 1] for name in vars(questions)))
        found = maps_for(model, image, one, methods=SHOWN, layer=model.layer, window=options.window)
        marked = mark(picture, one, by, options.size)
        tiles = [
            map_tiles(
                [picture],
                rectify(maps),
                views=[Box(0, 0, *picture.size)],
                look=DrawStyle(opacity=0.6),
                title=short(name),
            )[0]
            for name, maps in found.items()
        ]
        plain = [Tile(tile.image, title=tile.title) for tile in tiles]
        rows.append([Tile(marked, title=f"asked by {by}"), *plain])
    grid(rows, tile_size=168).convert("RGB").save(file, quality=82, optimize=True)
    print(f"written: {file}, {file.stat().st_size // 1024} kB")


def short(name: str) -> str:
    return {"hirescam": "Seg-HiRes", "segxrescam": "Seg-XRes", "gradcam": "Seg-Grad-CAM"}.get(name, METHODS[name].title)


def mark(picture, questions: Questions, by: str, size: int):
    ratio = picture.width / size
    pixels = questions.pixels[0]
    if by == "component":
        return contour(picture, pixels.float())
    rows, columns = pixels.any(1).nonzero(), pixels.any(0).nonzero()
    box = Box(*(float(edge) for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))).scaled(ratio, ratio)
    if by == "box":
        return draw_box(picture, box)
    return draw_points(picture, [((box.left + box.right) / 2, (box.top + box.bottom) / 2)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []])
    parser.add_argument("--camvid", type=Path, help="the folder of CamVid")
    parser.add_argument("--weights", type=Path, help="torchvision's MobileNetV2, for camvid")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--by", default=",".join(ASKS))
    parser.add_argument("--road", default="0.05,0.1,0.2", help="shares of the pixels; empty leaves ROAD out")
    parser.add_argument("--window", type=int, default=4, help="of Seg-XRes-CAM")
    parser.add_argument("--most", type=int, default=4, help="questions about one picture")
    parser.add_argument("--least-pixels", type=int, default=30, help="of an object that is asked about")
    parser.add_argument("--size", type=int, default=64, help="side of the drawn pictures")
    parser.add_argument("--train", type=int, default=200, help="drawn training pictures")
    parser.add_argument("--images", type=int, default=40, help="test pictures, at most")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rows", type=int, default=144, help="height of CamVid's pictures")
    parser.add_argument("--camvid-epochs", type=int, default=40)
    parser.add_argument("--roar", action="store_true")
    parser.add_argument("--roar-methods", default="hirescam,gradcam,layercam,caam")
    parser.add_argument("--fractions", default="0,0.1,0.3")
    parser.add_argument("--seeds", default="0,1,2", help="of ROAR's networks")
    parser.add_argument("--fill", choices=["linear", "mean"], default="linear")
    parser.add_argument("--figure", type=Path, metavar="OUT.jpg")
    parser.add_argument("--picture", type=int, nargs=2, default=(0, 5), metavar=("PICTURE", "OBJECT"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if "camvid" in options.tasks and options.camvid is None:
        parser.error("camvid needs --camvid FOLDER")
    torch.set_num_threads(1)
    print(f"{describe_machine('torch')}, 1 thread, seed {options.seed}")
    if options.figure is not None:
        figure(options.figure, options)
    for name in options.tasks:
        task = TASKS[name](options)
        (roar_table if options.roar else tables)(task, options)
