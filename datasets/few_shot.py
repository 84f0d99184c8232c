"""A few-shot data set, whatever its files look like: parts of named, labelled images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..errors import ImageError, InputError
from ..files import content_digest
from ..images import read_image
from ..images.opening import unreadable
from ..progress import Progress
from ..remarks import Skipped
from ..threads import in_threads
from .episodes import EpisodeManifest, NamedItems, Names

if TYPE_CHECKING:  # lists of images are read without torch
    from jaxtyping import UInt8
    from torch import Tensor

    from ..images import Transform

PARTS = ("base", "val", "novel")


class SplitImages(Protocol):
    """The images of a split, by number; reading is safe from several threads."""

    def __getitem__(self, index: int) -> Image.Image:
        """One image, RGB."""

    def content(self, index: int) -> bytes:
        """Bytes that the image's checksum is taken of: the file, or the raw pixels."""

    @property
    def root(self) -> Path:
        """The folder or file that the items' names refer to."""


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images that are files under a folder."""

    root: Path
    paths: Sequence[str]

    def __getitem__(self, index: int) -> Image.Image:
        """The image; ImageError when the file is missing or none."""
        return read_image(self.root / self.paths[index])

    def content(self, index: int) -> bytes:
        """The file's bytes."""
        file = self.root / self.paths[index]
        try:
            return file.read_bytes()
        except OSError as error:
            raise ImageError(file, f"cannot be read: {error.strerror}") from error


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images that lie in an archive: `load` gives the pixels (rows, columns, 3) uint8 of one."""

    root: Path
    load: Callable[[int], NDArray[np.uint8]]

    def __getitem__(self, index: int) -> Image.Image:
        """The image."""
        return Image.fromarray(self.load(index))

    def content(self, index: int) -> bytes:
        """Shape and pixels."""
        pixels = self.load(index)
        return repr(pixels.shape).encode() + pixels.tobytes()


@dataclass(frozen=True, eq=False)
class SomeImages:
    """Images of others, each by its source and its number there."""

    root: Path
    places: Sequence[tuple[SplitImages, int]]

    def __getitem__(self, index: int) -> Image.Image:
        """The image."""
        images, row = self.places[index]
        return images[row]

    def content(self, index: int) -> bytes:
        """As in its source."""
        images, row = self.places[index]
        return images.content(row)


@dataclass(frozen=True, eq=False)
class Split(NamedItems):
    """One part of a data set: n images with unique names and class names.

    Attributes:
        name: data set, split and part, such as `omniglot:vinyals/novel`.
        names: of the items; a manifest finds them again by these.
        labels: class name of each item, any strings.
        images: the images in the same order.
    """

    name: str
    names: Names
    labels: Names
    images: SplitImages = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def without(self, names: Container[str]) -> Split:
        """The part without some items, such as those that cannot be read; InputError if none is left."""
        rows = np.flatnonzero([name not in names for name in self.names.tolist()])
        images = SomeImages(self.images.root, [(self.images, int(row)) for row in rows])
        return Split(self.name, self.names[rows], self.labels[rows], images)

    def pixels(self, transform: Transform, rows: Sequence[int] | None = None) -> UInt8[Tensor, "n 3 h w"]:
        """Images decoded for a network by several threads, all of them or some rows."""
        from torch import empty, uint8

        chosen = range(len(self)) if rows is None else rows
        found = empty(len(chosen), 3, transform.height, transform.width, dtype=uint8)
        for place, image in enumerate(in_threads(lambda row: transform(self.images[row]), chosen)):
            found[place] = image
        return found

    @cached_property
    def digests(self) -> NDArray[np.int64]:
        """Digests of the images' contents, see `content_digest`."""
        return np.array([content_digest(self.images.content(index)) for index in range(len(self))], np.int64)

    def describe(self) -> dict[str, Any]:
        """Name, sizes and hash, JSON-able."""
        counts = {"n_images": len(self), "n_classes": len(self.class_names)}
        return {"name": self.name, **counts, "split_hash": self.split_hash}


@dataclass(frozen=True, eq=False)
class FewShotData:
    """A data set divided by classes into base (for training), val and novel (for the test).

    Attributes:
        name: data set and split, such as `cub:chen`.
        parts: those of base, val and novel that exist.
        episodes: the test's own episodes where the data set prescribes them, such as Lake's 20 runs.

    Raises:
        InputError: a class or an image is in two parts.
    """

    name: str
    parts: Mapping[str, Split]
    episodes: EpisodeManifest | None = None

    def __post_init__(self) -> None:
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise InputError(f"{self.name}: the parts are {', '.join(PARTS)}; got {', '.join(self.parts) or 'none'}")
        for what in ("class_names", "names"):
            owner: dict[str, str] = {}
            for part, split in self.parts.items():
                for value in getattr(split, what).tolist():
                    if (first := owner.setdefault(value, part)) != part:
                        kind = "class" if what == "class_names" else "image"
                        raise InputError(f"{self.name}: the {kind} {value!r} is in {first} and in {part}")

    def __getitem__(self, part: str) -> Split:
        """One part; InputError names those that exist."""
        if part not in self.parts:
            raise InputError(f"{self.name} has no part {part!r}; it has {', '.join(self.parts)}")
        return self.parts[part]

    def __iter__(self) -> Iterator[Split]:
        return iter(self.parts.values())

    @cached_property
    def split_hash(self) -> str:
        """sha256 over the parts and their hashes: two data sets with the same one are split alike."""
        hashes = [[part, self.parts[part].split_hash] for part in PARTS if part in self.parts]
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Name, hash and parts, JSON-able."""
        parts = {part: split.describe() for part, split in self.parts.items()}
        return {"name": self.name, "split_hash": self.split_hash, "parts": parts}


def readable(data: FewShotData, *, progress: Progress | None = None) -> tuple[FewShotData, tuple[Skipped, ...]]:
    """The data set without the image files that cannot be read, and these; every file is decoded once."""
    parts: dict[str, Split] = {}
    skipped: list[Skipped] = []
    for part, split in data.parts.items():
        if not isinstance(split.images, FileImages):
            parts[part] = split
            continue
        failed = unreadable([split.images.root / path for path in split.images.paths], progress=progress)
        own = {str(split.names[i]): reason for i, reason in failed.items()}
        skipped += [Skipped(name, reason) for name, reason in own.items()]
        if len(own) < len(split):
            parts[part] = split.without(own) if own else split
    if not skipped:
        return data, ()
    if data.episodes is not None or not parts:
        shown = "; ".join(f"{item.path} ({item.reason})" for item in skipped[:10])
        raise InputError(f"{data.name}: {len(skipped)} images cannot be read, and its episodes need them: {shown}")
    return FewShotData(data.name, parts), tuple(skipped)


def data_of_files(
    name: str, root: Path, items: Mapping[str, tuple[Sequence[str], ArrayLike | Sequence[str]]]
) -> FewShotData:
    """A data set of image files; `items` holds paths under `root` and labels by part. A path is the item's name."""
    parts = {
        part: Split(f"{name}/{part}", np.array(paths), np.array(labels), FileImages(root, tuple(paths)))
        for part, (paths, labels) in items.items()
        if len(paths)
    }
    return FewShotData(name, parts)
