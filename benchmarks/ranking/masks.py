"""What masks do for retrieval: R@1 with query and gallery pooled with and without masks, and Dist-CAM's boxes.

    python benchmarks ranking/masks --scenes
    python benchmarks ranking/masks FOLDER --weights FOLDER/../weights/mobilenet_v2….pth

Scenes: classes that the encoder was not trained on, two objects in every picture, of which the first gives the label;
the true masks, and pseudo masks: the map of a linear probe for the picture's class (of a query: for the predicted one)
above `--threshold` of its range. FOLDER holds `gallery/<class>/*.jpg`, `query/<class>/*.jpg` and `boxes.csv`; there the
boxes are masks among the queries, each searched for among the others, and pseudo masks come from the network's own
classifier. Every picture is encoded once and pooled both ways. Intervals are 95 % bootstrap intervals over queries;
differences are paired.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from explanations.localisation import train_encoder
from machine import describe_machine
from ranking.map_masks import mask_of_map, write_mask
from ranking.mask_tables import EncodedBothWays, localisation_table, retrieval_table

from distcam.encoders import Encoder, Inference
from distcam.images import Transform, list_images, read_image
from distcam.images.boxes.formats import read_boxes
from distcam.images.boxes.joined import BoxedImage, BoxedImages, boxed_images
from distcam.images.masks import MaskFolder, read_mask
from distcam.retrieval import References, read_classifier
from distcam.retrieval.localisation.classifiers import LinearClassifier, linear_probe
from distcam.retrieval.localisation.references import ObjectImage
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import SceneSet, write_scenes
from distcam.training.data.training_set import TrainingSet


@dataclass(frozen=True)
class Side:
    """Pictures with their class and the path by which a folder of masks knows them."""

    files: list[Path]
    paths: list[str]
    labels: list[str]

    @classmethod
    def of(cls, folder: Path) -> Side:
        listing = list_images(folder)
        records = list(listing)
        return cls([listing.file(r) for r in records], [r.path for r in records], [str(r.label) for r in records])

    def encoded(self, inference: Inference, masks: Path) -> EncodedBothWays:
        named = [ObjectImage(*each) for each in zip(self.files, self.labels, self.paths, strict=True)]
        found = [References.encode(named, inference, masks=own) for own in (None, MaskFolder(masks))]
        whole, masked = ((each.pooled, each.embeddings) for each in found)
        drawn = [MaskFolder(masks).file(path).is_file() for path in self.paths]
        return EncodedBothWays(found[0].files, whole, masked, sum(drawn) / len(drawn))


# --- masks ------------------------------------------------------------------------------------------------------------


def true_masks(scenes: SceneSet, split: str, folder: Path) -> Path:
    """For each scene the mask of the object that gives it its label."""
    for record in scenes.of_split(split):
        numbered = read_mask(scenes.mask_file(record), category=scenes.labels.index(record.label) + 1)
        write_mask(numbered, (folder / Path(record.path).relative_to(split)).with_suffix(".png"))
    return folder


def filled_boxes(image: BoxedImage, size: tuple[int, int]) -> np.ndarray:
    """The boxes of a picture's class, filled: a boolean mask for a picture of `size` (width, height)."""
    mask = np.zeros((size[1], size[0]), dtype=bool)
    for box in image.boxes_of(image.label, *size):
        left, top, right, bottom = (round(edge) for edge in box.clipped(*size))
        mask[top:bottom, left:right] = True
    return mask


def box_masks(images: BoxedImages, side: Side, folder: Path) -> Path:
    """Each picture's boxes of its class, filled."""
    path = dict(zip(side.files, side.paths, strict=True))
    for image in images:
        mask = filled_boxes(image, read_image(image.file).size)
        write_mask(mask, (folder / path[image.file]).with_suffix(".png"))
    return folder


def pseudo_masks(
    sides: dict[str, Side],
    inference: Inference,
    classifier: LinearClassifier,
    labels: Sequence[str],
    folder: Path,
    *,
    threshold: float,
) -> list[Path]:
    """The classifier's map above a threshold: for a gallery picture's own class, for the predicted one of a query."""
    for name, side in sides.items():
        for file, path, label in zip(side.files, side.paths, side.labels, strict=True):
            encoding = inference.encode_images([file]).to("cpu")
            number = labels.index(label) if name == "gallery" else int(classifier.predicted(encoding.pooled))
            heat = torch.einsum("k,khw->hw", classifier.weight[number], encoding.feature_map[0])
            size = read_image(file).size
            mask = mask_of_map(heat, threshold=threshold, transform=inference.transform, size=size)
            if mask.any():
                write_mask(mask, (folder / name / path).with_suffix(".png"))
    return [folder / name for name in sides]


# --- sources ----------------------------------------------------------------------------------------------------------


def scenes(options: argparse.Namespace, work: Path) -> Iterator[str]:
    classes = blueprints(options.base + options.novel, seed=options.seed)
    base = write_scenes(
        work / "base",
        classes=classes[: options.base],
        splits={"train": options.per_class},
        size=96,
        two_object_share=0,
        seed=options.seed,
    )
    novel = write_scenes(
        work / "novel",
        classes=classes[options.base :],
        splits={"gallery": options.gallery, "query": options.query},
        size=96,
        two_object_share=1,
        seed=options.seed,
        masks=True,
    )
    transform = Transform(64, fit="squash")
    encoder = Encoder.load(
        "conv4", weights="random", seed=options.seed, transform=transform, options={"width": 32, "last_pool": False}
    )
    train_encoder(encoder, TrainingSet.from_scenes(base, "train", transform), seed=options.seed)
    inference = Inference(encoder, precision="fp32")
    gallery, query = (Side.of(novel.folder / split) for split in ("gallery", "query"))
    boxed = boxed_images(list_images(novel.folder / "query"), read_boxes(novel.folder / "boxes.csv"))
    own = References.encode(list_images(novel.folder / "gallery"), inference)
    probe = linear_probe(own)
    kinds = {
        "true masks": [true_masks(novel, split, work / "true" / split) for split in ("gallery", "query")],
        f"pseudo masks, threshold {options.threshold}": pseudo_masks(
            {"gallery": gallery, "query": query},
            inference,
            probe,
            own.labels,
            work / "pseudo",
            threshold=options.threshold,
        ),
    }
    yield f"## scenes with two objects: {len(gallery.files)} in the gallery, {len(query.files)} queries, conv4"
    for title, (of_gallery, of_query) in kinds.items():
        yield from compared(title, encoder, inference, (query, of_query), (gallery, of_gallery), boxed, options)


def photographs(options: argparse.Namespace, work: Path) -> Iterator[str]:
    encoder = Encoder.load(options.encoder, weights=options.weights)
    encoder.transform = encoder.transform.adapted(fit="squash")
    inference = Inference(encoder, precision="fp32")
    gallery, query = (Side.of(options.folder / split) for split in ("gallery", "query"))
    gallery, query = (every(side, options.every) for side in (gallery, query))
    everything = boxed_images(list_images(options.folder / "query"), read_boxes(options.folder / "boxes.csv"))
    chosen = set(query.files)
    boxed = BoxedImages(tuple(image for image in everything if image.file in chosen))
    counts = f"{len(gallery.files)} in the gallery, {len(query.files)} queries"
    yield f"## {options.folder.name}: {counts}, {encoder.short_name}"
    boxes = box_masks(boxed, query, work / "boxes")
    yield from compared(
        "boxes as masks, queries among themselves", encoder, inference, (query, boxes), None, None, options
    )
    classifier = read_classifier(options.encoder, options.weights, pooled_dim=encoder.pooled_dim)
    if classifier is None:
        yield "no classifier in the weights, so no pseudo masks"
        return
    named = gallery.encoded(inference, work)
    references = References.of([gallery.labels[gallery.files.index(f)] for f in named.files], *named.whole)
    rows = classifier.for_references(references)
    sides = {"gallery": gallery, "query": query}
    folders = pseudo_masks(sides, inference, rows, references.labels, work, threshold=options.threshold)
    title = f"pseudo masks of the network's own classifier, threshold {options.threshold}"
    yield from compared(title, encoder, inference, (query, folders[1]), (gallery, folders[0]), boxed, options)


def every(side: Side, step: int) -> Side:
    return Side(side.files[::step], side.paths[::step], side.labels[::step])


def compared(
    title: str,
    encoder: Encoder,
    inference: Inference,
    query: tuple[Side, Path],
    gallery: tuple[Side, Path] | None,
    boxed: BoxedImages | None,
    options: argparse.Namespace,
) -> Iterator[str]:
    """Both tables of one kind of masks; without a gallery the queries are searched for among themselves."""
    start = time.process_time()
    asked = query[0].encoded(inference, query[1])
    held = asked if gallery is None else gallery[0].encoded(inference, gallery[1])
    labels = labels_of(query[0] if gallery is None else gallery[0], held)
    share = f"{asked.masks:.0%} of the queries and {held.masks:.0%}"
    yield f"\n### {title}\n\n{share} of the gallery have a mask.\n"
    yield retrieval_table(asked, labels_of(query[0], asked), held, labels, is_same=gallery is None, seed=options.seed)
    if boxed is not None:
        yield "\nBoxes of the maps, against prototypes of whole pictures and of what the masks mark:\n"
        yield localisation_table(boxed, encoder, held, labels, seed=options.seed)
    yield f"\n{time.process_time() - start:.0f} s of processor time"


def labels_of(side: Side, encoded: EncodedBothWays) -> list[str]:
    label = dict(zip(side.files, side.labels, strict=True))
    return [label[file] for file in encoded.files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--every", type=int, default=1, help="take every n-th photograph only")
    parser.add_argument("--scenes", action="store_true", help="drawn scenes with two objects; needs no folder")
    parser.add_argument("--base", type=int, default=32, help="classes that the encoder is trained on")
    parser.add_argument("--novel", type=int, default=16, help="classes that are searched")
    parser.add_argument("--per-class", type=int, default=40, help="training scenes of each class")
    parser.add_argument("--gallery", type=int, default=24, help="gallery scenes of each class")
    parser.add_argument("--query", type=int, default=12, help="query scenes of each class")
    parser.add_argument("--threshold", type=float, default=0.4, help="of pseudo masks, as a share of the map's range")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.folder is None and not options.scenes:
        parser.error("name the FOLDER of photographs, or pass --scenes")
    torch.set_num_threads(1)
    print(f"{describe_machine('torch')}, 1 thread, seed {options.seed}")
    sources = [photographs] * (options.folder is not None) + [scenes] * options.scenes
    for source in sources:
        with tempfile.TemporaryDirectory() as work:
            for text in source(options, Path(work)):
                print(text, flush=True)
