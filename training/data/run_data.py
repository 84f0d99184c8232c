"""The images of a run by part, how many of their classes are trained on, and what its task does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...encoders import Encoder
from ...remarks import Skipped
from ..engine.step import Objective
from .dividing import SplitSettings
from .samplers import Sampler
from .training_set import TrainingSet

if TYPE_CHECKING:
    from ..losses.registry import Builder

Progress = Callable[[int, int], None]
Measure = Callable[[Encoder, Objective, Path | None], Mapping[str, float]]  # the last: the run's folder


@dataclass(frozen=True)
class Part:
    """One part of the data."""

    images: int  # how many
    classes: frozenset[str]  # the names of those that its images show


@dataclass(frozen=True, eq=False)
class RunData:
    """Images, losses and measures of a run."""

    sets: Mapping[str, TrainingSet]  # images by split, "train" among them
    parts: Mapping[str, Part] | None = None  # sizes and classes, where the sets are not all of the data
    left_out: Sequence[Skipped] = ()  # images that were left out of the sets beforehand
    terms: Mapping[str, Builder] | None = None  # the kinds of losses there are; `TERMS` if left out
    sampler: Sampler | None = None  # instead of the recipe's `[sampler]`: few-shot episodes, for example
    validate: Measure | None = None  # what `run.monitor` looks at, instead of a metric of `[evaluation]`
    measure: Measure | None = None  # further metrics of the trained encoder
    split: SplitSettings | None = None  # how the images were divided, where the recipe leaves something to the data


def parts_of(sets: Mapping[str, TrainingSet]) -> dict[str, Part]:
    """The parts that some sets are."""
    return {
        name: Part(
            len(own), frozenset(c for c, n in zip(own.class_names, own.per_class().tolist(), strict=True) if n > 0)
        )
        for name, own in sets.items()
    }


def describe(parts: Mapping[str, Part]) -> dict[str, dict[str, int]]:
    """Images and classes of each part, and for all but the trained one its classes in that one; for JSON."""
    trained = _trained(parts)
    known = parts[trained].classes if trained in parts else frozenset()
    return {
        name: {
            "images": part.images,
            "classes": len(part.classes),
            **({} if name == trained else {"classes_in_train": len(part.classes & known)}),
        }
        for name, part in parts.items()
    }


def sentence(parts: Mapping[str, Part]) -> str:
    """The same on one line: `train: 320 images, 16 classes; test: 160 images, 8 classes, 0 of them in train`."""
    trained = _trained(parts)
    return "; ".join(
        f"{name}: {own['images']:,} images, {own['classes']:,} classes"
        + (f", {own['classes_in_train']:,} of them in {trained}" if "classes_in_train" in own else "")
        for name, own in describe(parts).items()
    )


def _trained(parts: Mapping[str, Part]) -> str:
    return "base" if "base" in parts and "train" not in parts else "train"
