"""Training data of an encoder: its classes by name and its images by content, for telling if a test was fair."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsError
from ..remarks import remark

if TYPE_CHECKING:  # what reads checkpoints imports torch, which comparing records does without
    from torch import Tensor

DIGESTS = "trained_on.digests"  # a tensor of a checkpoint's file that is no weight

LIMIT = 1 << 20  # digests that a checkpoint keeps: 8 MB


@dataclass(frozen=True)
class Overlap:
    """Measured classes and images that were trained on.

    Attributes:
        classes: measured classes whose name is that of a training class.
        of_classes: measured classes.
        images: measured images with the content of a training image; None if the training's contents are not known.
        of_images: measured images.
        is_sample: the training had more images than digests are kept, so `images` is a lower bound.
    """

    classes: int
    of_classes: int
    images: int | None
    of_images: int
    is_sample: bool = False

    def __bool__(self) -> bool:
        return bool(self.classes or self.images)

    def __str__(self) -> str:
        parts = [f"{self.classes:,} of the {self.of_classes:,} classes measured (by name)"] if self.of_classes else []
        if self.images is not None:
            least = "at least " if self.is_sample else ""
            parts.append(f"{least}{self.images:,} of the {self.of_images:,} images (by content)")
        unknown = "; which images were is not known" if self.images is None else ""
        return f"{' and '.join(parts) or 'nothing that is known'} were trained on{unknown}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, stored: object) -> Overlap | None:
        """The inverse of `to_dict`; None for anything else."""
        try:
            return cls(**stored)  # type: ignore[arg-type]
        except TypeError:
            return None


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """The classes and images of an encoder's training; no part of its fingerprint.

    Attributes:
        classes: their names, sorted.
        images: how many images there were.
        digests: eight bytes of each content's sha256, sorted, each once; the smallest of them where there are more than
            a checkpoint keeps, and none where the contents are not known.
        is_sample: whether digests are left out.
    """

    classes: tuple[str, ...]
    images: int
    digests: NDArray[np.int64] = field(repr=False)
    is_sample: bool = False

    @classmethod
    def of(cls, classes: Iterable[str], images: int, digests: NDArray[np.int64] | None) -> TrainedOn:
        """The record of a training on images with these contents, or with contents that nobody knows."""
        kept = np.unique(np.empty(0, np.int64) if digests is None else digests)
        is_sample = len(kept) > LIMIT or (digests is None and images > 0)
        return cls(tuple(sorted(set(classes))), images, kept[:LIMIT], is_sample)

    def after(self, earlier: TrainedOn | None) -> TrainedOn:
        """The record of both trainings, where this one went on with an encoder that had been trained before."""
        if earlier is None:
            return self
        both = TrainedOn.of({*self.classes, *earlier.classes}, 0, np.concatenate([self.digests, earlier.digests]))
        is_sample = both.is_sample or self.is_sample or earlier.is_sample
        common = len(self.digests) + len(earlier.digests) - len(np.union1d(self.digests, earlier.digests))
        return TrainedOn(both.classes, self.images + earlier.images - common, both.digests, is_sample)

    def overlap(self, labels: Iterable[str | None], digests: NDArray[np.int64]) -> Overlap:
        """The overlap of some labels' classes, and of some images, with the training."""
        measured = {label for label in labels if label is not None}
        seen = int(np.isin(digests, self.digests).sum()) if len(self.digests) else None
        return Overlap(len(measured & set(self.classes)), len(measured), seen, len(digests), is_sample=self.is_sample)

    @staticmethod
    def short(sha256: NDArray[np.uint8]) -> NDArray[np.int64]:
        """`content_digest` of contents whose whole sha256 is known: (n, 32) bytes to (n,)."""
        return np.ascontiguousarray(sha256[:, :8]).view("<i8")[:, 0].astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """All but the digests, for the header of a checkpoint."""
        return {"classes": list(self.classes), "images": self.images, "is_sample": self.is_sample}

    def put(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Add the record to what a checkpoint will hold; `of_checkpoint` reads it."""
        import torch  # not needed by those who only read records

        config["trained_on"] = self.to_dict()
        tensors[DIGESTS] = torch.from_numpy(self.digests)

    @classmethod
    def of_checkpoint(cls, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> TrainedOn | None:
        """The record in a checkpoint, whose tensors are then weights alone; None in one that has none."""
        found = tensors.pop(DIGESTS, None)
        if found is None:
            return None
        try:
            own = config["trained_on"]
            classes = tuple(str(name) for name in own["classes"])
            digests = np.unique(found.numpy().astype(np.int64).reshape(-1))
            return cls(classes, int(own["images"]), digests, bool(own["is_sample"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"the checkpoint does not say properly what it was trained on ({error})") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TrainedOn | None:
        """The record in a checkpoint's file, without its weights; None if there is none."""
        from .checkpoint import read_checkpoint

        return cls.of_checkpoint(*read_checkpoint(path, only=DIGESTS))


def say_overlap(overlap: Overlap | None) -> Overlap | None:
    """The same; remarked on if anything that is measured was trained on."""
    if overlap:
        remark(str(overlap))
    return overlap
