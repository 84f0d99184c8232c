"""Data sets by name in a recipe: `images = "cub:FOLDER"`, read as downloaded, with the literature's division."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...datasets.cifar import CIFAR, read_cifar
from ...datasets.mask_benchmarks import voc_labels
from ...datasets.retrieval import LAYOUTS, load_dataset
from ...errors import InputError
from ...files import content_digest
from ...images import Listing, Transform
from ...remarks import remark
from .training_set import MEMORY_LIMIT, TrainingSet


def named_benchmark(images: str, base: Path) -> tuple[str, Path, str] | None:
    """Data set, folder, and the split behind a `#`, of `cub:FOLDER` and the like; None for any other path.

    There are cub, cars, sop, inshop, dogs, cifar10, cifar100, and voc, which may say the list that it trains on.
    """
    kind, colon, place = images.partition(":")
    if not colon or kind not in (*LAYOUTS, *CIFAR, "voc") or (base / images).exists():
        return None
    place, mark, split = place.partition("#")
    if mark and kind != "voc":
        raise InputError(f"{images}: {kind} has one division; leave #{split} out")
    return kind, (base / place).absolute(), split


def benchmark_listing(kind: str, folder: Path, split: str, *, strict: bool, quiet: bool) -> Listing:
    """The images of a data set with the column `split`; what its copy lacks is remarked on."""
    if kind == "voc":
        return voc_labels(folder, split or "train")
    found = load_dataset(folder, layout=kind, strict=strict)
    if found.problems and not quiet:
        remark(f"{folder}: {'; '.join(found.problems)}")
    return found.listing()


def archived_sets(kind: str, folder: Path, transform: Transform) -> dict[str, TrainingSet]:
    """Training and test images of CIFAR, in memory."""
    parts, names = read_cifar(folder, kind)
    needed = sum(len(part.labels) for part in parts.values()) * 3 * transform.height * transform.width
    if needed > MEMORY_LIMIT:
        raise InputError(
            f"{kind} at {transform.width} x {transform.height} pixels takes {needed / 1024**3:.1f} GiB of memory; "
            "choose a smaller data.size, or write the images into folders, which are read when they are needed"
        )
    sets = {}
    for name, part in parts.items():
        pixels = torch.stack([transform(Image.fromarray(image)) for image in part.images])
        digests = [content_digest(image.tobytes()) for image in part.images]
        sets[name] = TrainingSet.from_pixels(
            pixels,
            torch.tensor(part.labels),
            transform=transform,
            class_names=names,
            digests=np.array(digests, np.int64),
        )
    return sets
