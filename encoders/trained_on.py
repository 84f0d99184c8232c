"""What an encoder was trained on: its classes by name and its images by content, for telling if a test was fair."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsError

__all__ = ["Overlap", "TrainedOn", "content_digest", "file_digests", "short_digests"]

LIMIT = 1 << 20  # digests that a checkpoint keeps: 8 MB


def content_digest(content: bytes) -> int:
    """The first eight bytes of the sha256 of a file's bytes, as a signed number."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)


def file_digests(files: Iterable[str | os.PathLike[str]]) -> NDArray[np.int64]:
    """`content_digest` of each file that can be read, by several threads."""

    def one(file: str | os.PathLike[str]) -> int | None:
        try:
            return content_digest(Path(file).read_bytes())
        except OSError:  # whoever looks at the image will say so
            return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return np.array([digest for digest in threads.map(one, files) if digest is not None], np.int64)


def short_digests(sha256: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`content_digest` of contents whose whole sha256 is known: (n, 32) bytes to (n,)."""
    return np.ascontiguousarray(sha256[:, :8]).view("<i8")[:, 0].astype(np.int64)


@dataclass(frozen=True)
class Overlap:
    """How much of what is measured was trained on.

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
        classes = f"{self.classes:,} of the {self.of_classes:,} measured classes (by name)"
        if self.images is None:
            return f"{classes} were trained on; which images were is not known"
        least = "at least " if self.is_sample else ""
        return f"{classes} and {least}{self.images:,} of the {self.of_images:,} images (by content) were trained on"

    def to_dict(self) -> dict[str, int | bool | None]:
        """For JSON."""
        return dict(vars(self))


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
    digests: NDArray[np.int64]
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
        """How many of some labels' classes, and of some images, were trained on."""
        measured = {label for label in labels if label is not None}
        seen = int(np.isin(digests, self.digests).sum()) if len(self.digests) else None
        return Overlap(len(measured & set(self.classes)), len(measured), seen, len(digests), is_sample=self.is_sample)

    def to_dict(self) -> dict[str, Any]:
        """All but the digests, for the header of a checkpoint."""
        return {"classes": list(self.classes), "images": self.images, "is_sample": self.is_sample}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], digests: NDArray[np.int64]) -> TrainedOn:
        """The inverse of `to_dict`.

        Raises:
            WeightsError: something else.
        """
        try:
            classes = tuple(str(name) for name in config["classes"])
            return cls(classes, int(config["images"]), np.unique(digests), bool(config["is_sample"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"the checkpoint does not say properly what it was trained on ({error})") from error
