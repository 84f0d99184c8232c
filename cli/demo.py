"""`distcam demo`: the whole job on images it draws itself, in less than a minute, without a network."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..explain.weightings import RECOMMENDED
from . import library
from .command import Commands
from .console import print_json, progress_bar, say
from .options import AsJson, option

if TYPE_CHECKING:
    from ..explain import Weighting
    from ..retrieval import Matches
    from ..synthetic.scene_set import SceneRecord, SceneSet

app = Commands()
EXAMPLE = "Example: `distcam demo --out /tmp/demo`"
MARKER = ".distcam-demo"  # only a folder that holds it is ever cleared

SceneAnswers = Sequence[tuple["SceneRecord", "Matches"]]


@dataclass(frozen=True)
class DemoSize:
    """Amount of drawing and training; images are `image` pixels wide, the network sees `side`."""

    base_classes: int = 32
    novel_classes: int = 16
    base_images: int = 40
    gallery_images: int = 24
    query_images: int = 12
    crowded_images: int = 6  # of each class, with an object of another beside
    image: int = 96
    side: int = 64
    epochs: int = 8
    shown: int = 12
    crowded_shown: int = 4


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The measures in three sentences: beside chance, Dist-CAM, and a map that ignores the match (`caam`)."""
    return [
        f"R@1 on {found['novel_classes']} classes that the encoder never saw: {found['recall_at_1']:.3f} (chance "
        f"{found['recall_at_1_chance']:.3f}; {found['gallery_images']} gallery images, {found['queries']} queries).",
        f"Peak of the map in the object's box: {found['peak_in_box']:.3f} (Dist-CAM {found['peak_in_box_dist']:.3f}, "
        f"the class-agnostic map {found['peak_in_box_caam']:.3f}, a random place {found['peak_in_box_chance']:.3f}).",
        "Two objects in an image, asked about either: the map prefers the right one in "
        f"{found['right_object']:.3f} of {2 * found['crowded']} cases (Dist-CAM {found['right_object_dist']:.3f}, "
        f"chance 0.500), and correlates {found['sensitivity']:.2f} with the map for an unrelated image (Dist-CAM "
        f"{found['sensitivity_dist']:.2f}).",
    ]


@app.command(epilog=EXAMPLE)
def demo(
    folder: Path = option(Path("distcam-demo"), "Where everything goes.", "--out"),
    seed: int = option(0, "Of the images and the training."),
    as_json: AsJson = False,
) -> None:
    """Draw images, train a small encoder, build a gallery of classes it never saw, query it, explain every match."""
    result = run(folder, seed=seed)
    if as_json:
        print_json(result)
        return
    for line in sentences(result):
        say(line)
    say(f"Report: {result['report']} ({result['seconds']:.0f} s in all)")
    say("\nThe same on a folder of your own (one sub-folder per class, or no classes at all):\n")
    for command in (
        "distcam index build photos/ --out photos.gallery --encoder mobilenet_v2 --weights imagenet",
        "distcam query photos.gallery probe.jpg -k 10",
        "distcam query photos.gallery probe.jpg -k 10 --explain why.html",
    ):
        say(f"  {command}")


def run(folder: Path, *, seed: int = 0, size: DemoSize | None = None) -> dict[str, Any]:
    """The demo without its text: fills `folder` and returns what was measured."""
    size = size or DemoSize()
    started = time.perf_counter()
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise InputError(f"{folder} is not empty and was not written by the demo; pass another --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    from ..synthetic.blueprint import blueprints
    from ..synthetic.scene_set import write_scenes

    # Single objects of the base classes to learn from; gallery and queries of others, some with a second object.
    classes = blueprints(size.base_classes + size.novel_classes, seed=seed)
    seen, unseen = classes[: size.base_classes], classes[size.base_classes :]
    draw = partial(write_scenes, size=size.image, seed=seed)
    with progress_bar("drawing base classes") as progress:
        splits = {"train": size.base_images}
        base = draw(folder / "base", classes=seen, splits=splits, two_object_share=0.0, progress=progress)
    with progress_bar("drawing novel classes") as progress:
        splits = {"gallery": size.gallery_images, "query": size.query_images}
        novel = draw(folder / "novel", classes=unseen, splits=splits, two_object_share=0.1, progress=progress)
        pairs = draw(folder / "pairs", classes=unseen, splits={"query": size.crowded_images}, two_object_share=1.0)
    encoder = _train(base, size, seed)
    encoder.save(folder / "encoder.safetensors")

    place = folder / "novel.gallery"
    with progress_bar("building the gallery") as progress:
        gallery = library.index.Gallery.build(
            novel.folder / "gallery", encoder, out=place, store_lines=True, progress=progress
        )
    records = novel.of_split("query")
    retriever = library.retrieval.Retriever(gallery, encoder)
    retriever.lines.keep()  # from here on queries' own pass brings what lines are read from
    results = retriever.query([novel.file(record) for record in records], k=5)
    answers = list(zip(records, results, strict=True))
    two = [record for record in pairs.records if record.boxes[0][0] != record.boxes[-1][0]]
    crowded = list(zip(two, retriever.query([pairs.file(record) for record in two], k=5), strict=True))
    result = {
        **_measure(answers),
        **_measure_crowded(crowded),
        "report": str(folder / "report.html"),
        "gallery": str(place),
    }

    chosen = answers[:: max(1, len(answers) // size.shown)][: size.shown]
    doubled = two[:: max(1, len(two) // size.crowded_shown)][: size.crowded_shown]
    every = retriever.query([pairs.file(record) for record in doubled], k=len(gallery))
    shown = (
        f"First {len(doubled)} images of two objects, each with the best match of either class: two matches, two maps. "
        f"Then {len(chosen)} queries, each with its five nearest images and its nearest prototype."
    )
    library.retrieval.write_report(
        result["report"],
        [
            *(_best_of_each(record, matches).explain() for record, matches in zip(doubled, every, strict=True)),
            *(matches.explain() for _, matches in chosen),
        ],
        title="distcam demo: which of these is this, and why",
        labels=[*(None for _ in doubled), *(record.label for record, _ in chosen)],
        lines=True,
        notes=[*sentences(result), shown],
    )
    return {**result, "seconds": time.perf_counter() - started}


def _train(base: SceneSet, size: DemoSize, seed: int) -> library.encoders.Encoder:
    """A four-layer encoder that has seen the base classes only."""
    from ..training import OptimiserSettings, ScheduleSettings, Settings, fit
    from ..training.data.augment import AugmentSettings
    from ..training.data.batches import TrainingBatches
    from ..training.data.samplers import shuffled
    from ..training.data.training_set import TrainingSet
    from ..training.losses.registry import TermContext, build_objective

    transform = library.images.Transform(size=size.side, fit="squash")
    encoder = library.encoders.Encoder.load(
        "conv4", weights="random", seed=seed, transform=transform, options={"width": 32, "last_pool": False}
    )
    data = TrainingSet.from_scenes(base, "train", transform)
    batches = TrainingBatches(data, shuffled(len(data), batch_size=64, seed=seed), augment=AugmentSettings(), seed=seed)
    loss = {"kind": "normalized_softmax", "temperature": 0.1}
    objective = build_objective([loss], TermContext(encoder, data.class_names), seed=seed)
    optimiser, schedule = OptimiserSettings(learning_rate=1e-2), ScheduleSettings(kind="one_cycle")
    settings = Settings(epochs=size.epochs, optimiser=optimiser, schedule=schedule, seed=seed)
    with progress_bar("training") as progress:
        fit(encoder, batches, objective, settings, progress=progress)
    return encoder


def _measure(answers: SceneAnswers) -> dict[str, Any]:
    """R@1 and the share of map peaks in the box of the object that gives the query its label."""
    gallery = answers[0][1].retriever.gallery
    counts = dict(zip(gallery.prototypes.labels, gallery.prototypes.counts.tolist(), strict=True))

    def is_found(record: SceneRecord, matches: Matches) -> bool:
        """True if the nearest image is of the query's class, and none of another as near."""
        return all(match.label == record.label for match in matches if match.distance == matches[0].distance)

    def has_peak_in_box(record: SceneRecord, matches: Matches, weighting: Weighting) -> bool:
        width, height = matches.query.size
        heat = library.explain.upsample(matches.explain(weighting=weighting).query_maps[0], (height, width))
        return library.explain.peak_in_box(heat, record.boxes[0][1])

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(answers)

    return {
        "novel_classes": len(counts),
        "gallery_images": len(gallery),
        "queries": len(answers),
        "recall_at_1": mean(is_found(record, matches) for record, matches in answers),
        "recall_at_1_chance": mean(counts[record.label] / len(gallery) for record, _ in answers),
        "nearest_prototype": mean((matches.prototype or "?")[0] == record.label for record, matches in answers),
        "peak_in_box": mean(has_peak_in_box(record, matches, RECOMMENDED) for record, matches in answers),
        "peak_in_box_dist": mean(has_peak_in_box(record, matches, "dist") for record, matches in answers),
        "peak_in_box_caam": mean(has_peak_in_box(record, matches, "caam") for record, matches in answers),
        "peak_in_box_chance": mean(
            record.boxes[0][1].area / math.prod(matches.query.size) for record, matches in answers
        ),
    }


def _measure_crowded(answers: SceneAnswers) -> dict[str, Any]:
    """Of images with two objects: how often the map prefers the right one, and how far it depends on the match.

    The latter is its mean rank correlation with the map against an unrelated image: 1 is the same for every match.
    """
    from ..explain.checks.sanity import two_object_preference
    from ..metrics.localisation import box_coverage

    measures: dict[str, Any] = {"crowded": len(answers)}
    for name, weighting in (("", RECOMMENDED), ("_dist", "dist")):
        preferences, sensitivities = [], []
        for record, matches in answers:
            (one, box), (other, other_box) = record.boxes
            found = [matches.explain(against=f"label:{label}", weighting=weighting) for label in (one, other)]
            width, height = matches.query.size
            maps = [library.explain.upsample(each.query_maps[0], (height, width)) for each in found]
            regions = [box_coverage([each], (height, width)) for each in (box, other_box)]
            preferences.append(float(two_object_preference(*maps, *regions)))
            sensitivities += [each.sensitivity for each in found if each.sensitivity is not None]
        measures[f"right_object{name}"] = sum(preferences) / max(1, len(preferences))
        measures[f"sensitivity{name}"] = sum(sensitivities) / max(1, len(sensitivities))
    return measures


def _best_of_each(record: SceneRecord, matches: Matches) -> Matches:
    """The ranking cut down to the nearest image of each of the two classes."""
    best = [next(match for match in matches if match.label == label) for label, _ in record.boxes]
    ranked = sorted(best, key=lambda match: match.rank)
    return replace(matches, matches=tuple(replace(match, rank=rank) for rank, match in enumerate(ranked, start=1)))
