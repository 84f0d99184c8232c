"""Images to learn from or to measure on: pixels, classes, and where the objects are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...encoders.trained_on import TrainedOn
from ...errors import ImageError, InputError, ShapeError
from ...files import content_digest
from ...images import ImageRecord, Listing, Transform
from ...progress import Progress
from ...remarks import Skipped, counted, remark
from ...threads import in_threads
from ..recipes.tables import NotNegative
from .dividing import shown_classes
from .outlines import Outline, OutlineLabels, Outlines, RegionSettings, RegionTable, region_table

if TYPE_CHECKING:
    from ...synthetic.scene_set import SceneSet

MEMORY_LIMIT = 2 * 1024**3  # bytes of pixels that cache="auto" keeps in memory
_SHOWN = 10  # left-out images that a remark names

# "memory", "none", GiB that decoded images may take, or "auto" for 2; what does not fit is decoded when it is needed
Cache = Literal["auto", "memory", "none"] | NotNegative


def stays_in_memory(count: int, transform: Transform, cache: Cache) -> bool:
    """True if that many decoded images are kept in memory."""
    if cache == "memory" or cache == "none":
        return cache == "memory"
    limit = MEMORY_LIMIT if cache == "auto" else cache * 1024**3
    return count * 3 * transform.height * transform.width <= limit


class Decoded(NamedTuple):
    """Files, decoded."""

    pixels: UInt8[Tensor, "n 3 h w"] | None  # of the images that can be read, if they stay in memory
    kept: tuple[int, ...]  # their places among the files
    digests: NDArray[np.int64]  # of their contents, see `content_digest`
    failed: tuple[tuple[int, str], ...] = ()  # place and reason of each of the others


def decode(files: Sequence[Path], transform: Transform, *, cache: Cache, progress: Progress | None = None) -> Decoded:
    """Decode every file once, by several threads; the pixels stay in memory if the cache says so."""
    is_lazy = not stays_in_memory(len(files), transform, cache)
    rows = 0 if is_lazy else len(files)
    pixels = torch.empty(rows, 3, transform.height, transform.width, dtype=torch.uint8)
    kept: list[int] = []
    digests: list[int] = []
    failed: list[tuple[int, str]] = []

    def look(file: Path) -> tuple[Tensor | None, int] | ImageError:
        """The image, if it is to be kept, and the digest of the file; or what is wrong with it."""
        try:
            pixels, _ = transform.read(file)
            digest = content_digest(file.read_bytes())
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(file, f"cannot be read: {error.strerror}")
        return None if is_lazy else pixels, digest

    for number, found in enumerate(in_threads(look, files, progress=progress)):
        if isinstance(found, ImageError):
            failed.append((number, found.reason))
            continue
        image, digest = found
        if image is not None:
            pixels[len(kept)] = image
        kept.append(number)
        digests.append(digest)
    held = None if is_lazy else pixels[: len(kept)]
    return Decoded(held, tuple(kept), np.array(digests, np.int64), tuple(failed))


def say_left_out(skipped: Sequence[Skipped], *, of: int, strict: bool = False) -> None:
    """Remark on images that cannot be read, all of them at once; nothing if there are none."""
    if not skipped:
        return
    shown = "; ".join(f"{item.path} ({item.reason})" for item in skipped[:_SHOWN])
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    if len(skipped) == of:
        raise InputError(f"none of {counted(of, 'image')} can be read: {shown}{more}")
    are = "is" if len(skipped) == 1 else "are"
    remark(f"{len(skipped)} of {counted(of, 'image')} cannot be read and {are} left out: {shown}{more}", strict=strict)


@dataclass(frozen=True, eq=False, repr=False)
class TrainingSet:
    """Images of one split, in a fixed order, with their labels and perhaps with regions."""

    held: UInt8[Tensor, "n 3 h w"] | None  # decoded already; None if they are read whenever they are needed
    files: Sequence[Path]
    transform: Transform  # made the pixels; its `normalise` is still to come
    labels: OutlineLabels  # class indices; or one 0/1 column per class where an image may show several
    class_names: tuple[str, ...]
    regions: RegionTable | None = None  # outlined objects; None if the data set has none
    image_names: Sequence[str] = ()  # for messages
    digests: NDArray[np.int64] | None = None  # of the images' contents, see `content_digest`; None if not known
    skipped: Sequence[Skipped] = ()  # images that cannot be read and are left out
    original: Callable[[int], Image.Image] | None = None  # an image by number as it was, where there are no `files`

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        outlined = f", {len(self.regions.image)} regions" if self.regions is not None else ""
        return f"TrainingSet({len(self)} images, {len(self.class_names)} classes{outlined})"

    @property
    def is_multi_label(self) -> bool:
        """True if an image may show several classes."""
        return self.labels.ndim == 2

    def pixels(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Images as the transform makes them, in grey levels; ImageError names a file that cannot be read any more."""
        if self.held is not None:
            return self.held[index]
        if self.original is not None:
            return torch.stack([self.transform(self.original(i)) for i in index.tolist()])
        return torch.stack([self.transform.read(self.files[i])[0] for i in index.tolist()])

    @property
    def trained_on(self) -> TrainedOn:
        """The record of a training on these images."""
        shown = [name for name, n in zip(self.class_names, self.per_class().tolist(), strict=True) if n]
        return TrainedOn.of(shown, len(self), self.digests)

    def names(self, index: Sequence[int]) -> list[str]:
        """Names of images, for messages."""
        return [self.image_names[i] if self.image_names else f"image {i}" for i in index]

    def per_class(self) -> Int[Tensor, " c"]:
        """The number of images that show each class."""
        if self.is_multi_label:
            return (self.labels > 0).sum(0)
        return torch.bincount(self.labels.long(), minlength=len(self.class_names))

    def require_trainable(self) -> None:
        """Nothing, if a classifier can learn from these images."""
        if len(self.class_names) < 2:
            raise InputError(f"training needs at least two classes, got {len(self.class_names)}")
        empty = [name for name, n in zip(self.class_names, self.per_class().tolist(), strict=True) if n == 0]
        if empty:
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            raise InputError(
                f"expected training images of every class; none shows {', '.join(map(repr, empty[:5]))}{more}"
            )

    @classmethod
    def from_pixels(
        cls,
        pixels: UInt8[Tensor, "n 3 h w"] | None,
        labels: Sequence[str] | OutlineLabels,
        *,
        transform: Transform,
        class_names: Sequence[str] | None = None,
        regions: RegionTable | None = None,
        digests: NDArray[np.int64] | None = None,
        original: Callable[[int], Image.Image] | None = None,
    ) -> TrainingSet:
        """Images in memory, as `transform` makes them; labels are names, indices, or 0/1 columns.

        Without `pixels`, `transform` makes them of the `original` when they are needed.
        """
        expected = (len(labels), 3, transform.height, transform.width)
        if pixels is None and original is None:
            raise InputError("expected pixels, or the images that they are made of")
        if pixels is not None and (pixels.dtype != torch.uint8 or tuple(pixels.shape) != expected):
            raise ShapeError(f"expected uint8 pixels {expected}, got {pixels.dtype} {tuple(pixels.shape)}")
        if isinstance(labels, Tensor):
            count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
            names = tuple(map(str, range(count))) if class_names is None else tuple(class_names)
            if len(names) < count or (labels.ndim == 2 and len(names) != count):
                raise InputError(f"labels for {count} classes came with {len(names)} class names")
            numbers = labels.float() if labels.ndim == 2 else labels.long()
        else:
            names, numbers = _numbered([(label,) for label in labels], class_names, is_multi_label=False)
        return cls(pixels, (), transform, numbers, names, regions=regions, digests=digests, original=original)

    @classmethod
    def from_listing(
        cls,
        listing: Listing,
        transform: Transform,
        *,
        records: Sequence[ImageRecord] | None = None,
        label_columns: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        outlines: Outlines | None = None,
        regions: RegionSettings | None = None,
        cache: Cache = "auto",
        strict: bool = False,
        left_out: list[Skipped] | None = None,
        progress: Progress | None = None,
    ) -> TrainingSet:
        """Images of a folder or table, or of some of its records, all decoded now, and kept if they fit into memory.

        Files that cannot be read are left out and named in one remark, or added to `left_out`. An image shows several
        classes by a column `labels` (names between semicolons) or by 0/1 `label_columns`.
        """
        chosen = list(listing) if records is None else list(records)
        shown = [_labels_of(record, label_columns) for record in chosen]
        found = decode([listing.file(record) for record in chosen], transform, cache=cache, progress=progress)
        skipped = [Skipped(chosen[i].path, reason) for i, reason in found.failed]
        if left_out is None or not found.kept:
            say_left_out(skipped, of=len(chosen), strict=strict)
        else:
            left_out += skipped
        chosen, shown = [chosen[i] for i in found.kept], [shown[i] for i in found.kept]
        files = [listing.file(record) for record in chosen]
        is_multi_label = bool(label_columns) or "labels" in listing.column_names
        names, labels = _numbered(shown, class_names or tuple(label_columns) or None, is_multi_label=is_multi_label)
        table = region_table(
            outlines, regions, files, labels=labels, class_names=names, transform=transform, strict=strict
        )
        held, paths = (found.pixels, files, transform), [record.path for record in chosen]
        return cls(*held, labels, names, table, image_names=paths, digests=found.digests, skipped=skipped)

    @classmethod
    def from_scenes(
        cls,
        scenes: SceneSet,
        split: str,
        transform: Transform,
        *,
        is_multi_label: bool = False,
        regions: RegionSettings | None = None,
    ) -> TrainingSet:
        """One split of a set of scenes, with outlines; multi-label, it shows the classes of all its objects."""
        records = scenes.of_split(split)
        shown = [tuple(dict.fromkeys(label for label, _ in record.boxes)) for record in records]
        names, labels = _numbered(
            shown if is_multi_label else [own[:1] for own in shown], scenes.labels, is_multi_label=is_multi_label
        )
        files = [scenes.file(record) for record in records]
        outlines: dict[Path, list[Outline]] = {}
        for record, file, own in zip(records, files, shown, strict=True):
            mask = scenes.mask_file(record)
            for label in own if is_multi_label else own[:1]:
                value = scenes.labels.index(label) + 1
                box = next(box for name, box in record.boxes if name == label)
                entry = Outline(label, box, mask if mask.is_file() else None, value)
                outlines.setdefault(file, []).append(entry)
        found = decode(files, transform, cache="auto")
        if found.failed:
            place, reason = found.failed[0]
            raise ImageError(files[place], f"{reason}; remove the folder, and the scenes are drawn again")
        table = region_table(
            outlines, regions, files, labels=labels, class_names=names, transform=transform, strict=True
        )
        paths = [record.path for record in records]
        return cls(found.pixels, files, transform, labels, names, table, image_names=paths, digests=found.digests)


def _labels_of(record: ImageRecord, columns: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes that an image shows, as its record says."""
    if columns:
        for name in columns:
            if record.columns.get(name) not in ("0", "1"):
                raise InputError(
                    f"{record.path}: expected 0 or 1 in the column {name!r}, got {record.columns.get(name)!r}"
                )
        return tuple(name for name in columns if record.columns[name] == "1")
    shown = shown_classes(record)
    if not shown and "labels" not in record.columns:
        raise InputError(f"{record.path}: expected a label for every image; sort images into one folder per class, "
                         "or give a table with the columns path and label")  # fmt: skip
    return shown


def _numbered(
    shown: Sequence[tuple[str, ...]], class_names: Sequence[str] | None, *, is_multi_label: bool
) -> tuple[tuple[str, ...], OutlineLabels]:
    """Class names by index, and the labels as indices or as 0/1 columns."""
    names = tuple(sorted({name for own in shown for name in own}) if class_names is None else class_names)
    number = {name: i for i, name in enumerate(names)}
    unknown = next((name for own in shown for name in own if name not in number), None)
    if unknown is not None:
        raise InputError(f"the label {unknown!r} is none of the {len(names)} classes {', '.join(names[:8])}")
    if not is_multi_label:
        return names, torch.tensor([number[own[0]] for own in shown], dtype=torch.long)
    columns = torch.zeros(len(shown), len(names))
    for row, own in enumerate(shown):
        columns[row, [number[name] for name in own]] = 1
    return names, columns
