"""How large the parts of a run's data are, and how many of their classes are trained on: said before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .training_set import TrainingSet

__all__ = ["Part", "describe", "parts_of", "sentence"]


@dataclass(frozen=True)
class Part:
    """One part of the data.

    Attributes:
        images: how many.
        classes: the names of those that its images show.
    """

    images: int
    classes: frozenset[str]


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
