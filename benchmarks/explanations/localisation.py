"""Table 1 of Dist-CAM on photographs with boxes, for any number of encoders, and on drawn scenes with two objects.

    python benchmarks explanations/localisation FOLDER --weights FOLDER/../weights
    python benchmarks explanations/localisation --scenes

FOLDER holds `gallery/<class>/*.jpg`, `query/<class>/*.jpg` and `boxes.csv` (path,x1,y1,x2,y2 in pixels of the picture).
For each encoder whose weights are found: errors, MaxBoxAcc, pointing and energy of all maps, against class prototypes
and against the nearest image, and the paired difference of every weighting to CAM and to the class-agnostic map. One
thread; pictures are squashed, so that no part of a box is cut off.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from machine import describe_machine

from distcam.encoders import Encoder, Inference
from distcam.images import Transform, list_images
from distcam.images.boxes.formats import read_boxes
from distcam.images.boxes.joined import boxed_images
from distcam.retrieval import LocalisationTable, References, localise, read_classifier
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes
from distcam.training import OptimiserSettings, ScheduleSettings, Settings, fit
from distcam.training.data.augment import AugmentSettings
from distcam.training.data.batches import TrainingBatches
from distcam.training.data.samplers import shuffled
from distcam.training.data.training_set import TrainingSet
from distcam.training.losses.registry import TermContext, build_objective

CAFFE = Transform(channels="bgr", mean=(104 / 255, 117 / 255, 123 / 255), std=(1 / 255, 1 / 255, 1 / 255))
ENCODERS: dict[str, dict[str, object]] = {  # name: file pattern and how to load it
    "mobilenet_v2": {"files": "mobilenet_v2*.pth"},
    "resnet18": {"files": "resnet18*.pth", "layer": "layer3"},
    "squeezenet1_1": {"files": "squeezenet1_1*.pth", "transform": CAFFE},
    "timm:tf_efficientnet_lite0": {"files": "tf_efficientnet_lite0*.pth"},
    "timm:tf_efficientnet_lite2": {"files": "tf_efficientnet_lite2*.pth"},
}
WEIGHTINGS = ("dist@tau=0", "dist@tau=0.1", "dist", "dist*s", "dist*excess", "log_ratio", "dot", "dot_centered")
CLOSED = ("cam", "cam_probe", *WEIGHTINGS, "gradcam_cos")
GRADIENT = ("gradcam++", "layercam", "hirescam")
THRESHOLDS = tuple(step / 20 for step in range(20))


def load_encoder(name: str, weights: Path) -> tuple[Encoder, Path] | None:
    """An encoder of `ENCODERS` and its file in a folder of weights; None if the folder has none."""
    how = dict(ENCODERS[name])
    file = next(iter(sorted(weights.glob(str(how.pop("files"))))), None)
    return None if file is None else (Encoder.load(name, weights=file, **how), file)


def photographs(options: argparse.Namespace) -> Iterator[tuple[str, LocalisationTable]]:
    """A table for each encoder and kind of reference."""
    boxed = boxed_images(list_images(options.folder / "query"), read_boxes(options.folder / "boxes.csv"))
    for name in options.encoders.split(","):
        loaded = load_encoder(name, options.weights)
        if loaded is None:
            print(f"{name} left out: no weights in {options.weights}")
            continue
        encoder, file = loaded
        encoder.transform = encoder.transform.adapted(fit="squash")
        classifier = read_classifier(name, file, pooled_dim=encoder.pooled_dim)
        references = References.encode(list_images(options.folder / "gallery"), Inference(encoder, precision="fp32"))
        for kind in ("prototypes", "nearest"):
            methods = [method for method in CLOSED if method != "cam" or classifier is not None]
            if options.gradients and kind == "prototypes":
                methods += GRADIENT
            table = localise(
                boxed,
                encoder,
                references,
                methods=methods,
                reference=kind,
                classifier=classifier,
                thresholds=THRESHOLDS,
                precision="fp32",
                seed=options.seed,
            )
            yield name, table


def scenes(options: argparse.Namespace) -> Iterator[tuple[str, LocalisationTable]]:
    """Novel classes, every picture with two objects; the encoder is trained on other classes, one object each."""
    classes = blueprints(48, seed=options.seed)
    with tempfile.TemporaryDirectory() as work:
        base = write_scenes(
            Path(work, "base"),
            classes=classes[:32],
            splits={"train": 40},
            size=96,
            two_object_share=0,
            seed=options.seed,
        )
        novel = {
            split: write_scenes(
                Path(work, split),
                classes=classes[32:],
                splits={split: n},
                size=96,
                two_object_share=share,
                seed=options.seed,
            )
            for split, n, share in (("gallery", 24, 0.0), ("query", 12, 1.0))
        }
        transform = Transform(size=64, fit="squash")
        encoder = Encoder.load(
            "conv4", weights="random", seed=options.seed, transform=transform, options={"width": 32, "last_pool": False}
        )
        train_encoder(encoder, TrainingSet.from_scenes(base, "train", transform), seed=options.seed)
        boxed = boxed_images(list_images(Path(work, "query", "query")), read_boxes(Path(work, "query", "boxes.csv")))
        for kind in ("prototypes", "nearest"):
            methods = [method for method in CLOSED if method != "cam"]
            table = localise(
                boxed,
                encoder,
                list_images(novel["gallery"].folder / "gallery"),
                methods=methods,
                reference=kind,
                thresholds=THRESHOLDS,
                precision="fp32",
                seed=options.seed,
            )
            yield "conv4 on scenes with two objects", table


def train_encoder(encoder: Encoder, data: TrainingSet, *, seed: int) -> None:
    """Eight epochs of the normalised softmax loss, as in `distcam demo`."""
    batches = TrainingBatches(data, shuffled(len(data), batch_size=64, seed=seed), augment=AugmentSettings(), seed=seed)
    loss = {"kind": "normalized_softmax", "temperature": 0.1}
    objective = build_objective([loss], TermContext(encoder, data.class_names), seed=seed)
    optimiser, schedule = OptimiserSettings(learning_rate=1e-2), ScheduleSettings(kind="one_cycle")
    fit(encoder, batches, objective, Settings(epochs=8, optimiser=optimiser, schedule=schedule, seed=seed))


def differences(table: LocalisationTable) -> str:
    """Every weighting's MaxBoxAcc minus CAM's and minus the class-agnostic map's, paired."""
    cam = "cam" if "cam" in table.scores else "cam_probe"
    lines = [f"| MaxBoxAcc of | minus `{cam}` | minus `caam` |", "|---|---:|---:|"]
    for name in WEIGHTINGS:
        lines.append(f"| `{name}` | {table.difference(name, cam)} | {table.difference(name, 'caam')} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder with the encoders' weights")
    parser.add_argument("--encoders", default=",".join(ENCODERS))
    parser.add_argument("--gradients", action="store_true", help="also the gradient methods, which take longer")
    parser.add_argument("--scenes", action="store_true", help="drawn scenes with two objects; needs no folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.folder is None and not options.scenes:
        parser.error("name the FOLDER of photographs, or pass --scenes")
    torch.set_num_threads(1)
    print(f"{describe_machine('torch')}, 1 thread, seed {options.seed}")
    sources: list[Callable[[argparse.Namespace], Iterator[tuple[str, LocalisationTable]]]] = []
    sources += [photographs] * (options.folder is not None) + [scenes] * options.scenes
    for source in sources:
        start = time.process_time()
        for name, table in source(options):
            print(f"\n## {name}\n\n{table.table()}\n\n{differences(table)}")
            print(f"\n{time.process_time() - start:.0f} s of processor time", flush=True)
            start = time.process_time()
