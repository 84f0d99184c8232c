"""Images with masks, or with no more than the classes they show: the data of weakly supervised segmentation.

In a mask 0 is background, c + 1 is class c, and 255 is void: pixels that nobody has decided about, which neither teach
nor count. Files may number their classes otherwise; they are renumbered when they are read, and a number that stands
for nothing is an error that names the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

from ..datasets import mask_benchmarks as benchmarks
from ..datasets import masked_images as layouts
from ..datasets.masked_images import Entry, MaskIds
from ..errors import ImageError, InputError
from ..explain.places import sample_mask
from ..files import file_digests
from ..images import Transform, read_image
from ..images.loading import image_size
from ..images.masks import VOID, Mask, MaskFolder, read_class_numbers, wrong_size
from ..metrics.maps import components
from ..remarks import Skipped
from ..threads import in_threads
from ..training.data.outlines import RegionTable, by_turns
from ..training.data.training_set import Cache, TrainingSet, say_left_out, stays_in_memory

if TYPE_CHECKING:
    from ..synthetic.scene_set import SceneSet


class MaskedImages:
    """Images in a fixed order, each with a mask, with the classes it shows, with both, or with neither.

    Attributes:
        class_names: of the foreground; class c is c + 1 in the masks.
        has_background: False if every pixel belongs to a class or is void, as in street scenes.
    """

    def __init__(self, entries: Iterable[Entry], class_names: Sequence[str], *, ids: MaskIds | None = None) -> None:
        self._entries = tuple(entries)
        self.class_names = tuple(class_names)
        self._ids = ids or MaskIds()
        self.has_background = self._ids.first > 0
        self._found: dict[int, tuple[int, ...]] = {}
        if not self._entries:
            raise InputError("expected one image or more, got none")
        if not 1 <= len(self.class_names) <= VOID - self._ids.first:
            raise InputError(f"expected 1 to {VOID - self._ids.first} classes, got {len(self.class_names)}")
        twice = [name for name in self.class_names if self.class_names.count(name) > 1]
        if twice:
            raise InputError(f"expected classes with different names, got {twice[0]!r} twice")

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        masks = sum(entry.mask is not None for entry in self._entries)
        return f"MaskedImages({len(self)} images, {masks} with masks, {len(self.class_names)} classes)"

    @property
    def names(self) -> tuple[str, ...]:
        """The images' paths without the suffix, for lists and output folders."""
        return tuple(entry.name for entry in self._entries)

    @property
    def mask_names(self) -> tuple[str, ...]:
        """By number in the masks: "background", then the classes."""
        return ("background", *self.class_names)

    def file(self, i: int) -> Path:
        """The file of image i."""
        return self._entries[i].image

    def image(self, i: int) -> Image.Image:
        """Image i, RGB; ImageError if it cannot be read."""
        return read_image(self._entries[i].image, whole=True)

    def has_mask(self, i: int) -> bool:
        """True if image i comes with a mask."""
        return self._entries[i].mask is not None

    def mask(self, i: int) -> Mask | None:
        """The mask of image i; None if it has none, InputError if it has another size, or a number of no class."""
        entry = self._entries[i]
        if entry.mask is None:
            return None
        values = read_class_numbers(entry.mask)
        size = image_size(entry.image)
        if (problem := wrong_size(entry.mask, (values.shape[1], values.shape[0]), size)) is not None:
            raise InputError(f"{entry.image}: {problem}; expected a mask in the size of its image")
        return self._ids.renumbered(values, len(self.class_names), entry.mask)

    def labels(self, i: int) -> tuple[int, ...]:
        """The classes that image i shows, in rising order, as a list or its mask says; InputError if nothing does."""
        entry = self._entries[i]
        if entry.shown is not None:
            return entry.shown
        if i not in self._found:
            mask = self.mask(i)
            if mask is None:
                raise InputError(
                    f"{entry.image}: nothing says which classes the image shows; give a mask, or a table with the "
                    "columns path and labels (names between semicolons)"
                )
            self._found[i] = tuple(int(value) - 1 for value in np.unique(mask) if value not in (0, VOID))
        return self._found[i]

    def is_labelled(self, i: int) -> bool:
        """True if something says which classes image i shows."""
        return self._entries[i].shown is not None or self._entries[i].mask is not None

    def readable(self) -> tuple[Self, tuple[Skipped, ...]]:
        """The images that can be read, as their masks can, and the others, decoded once; InputError if none is left."""

        def problem(i: int) -> str | None:
            try:
                self.image(i)
                self.mask(i)
            except (ImageError, InputError) as error:
                return str(error)
            return None

        problems = list(in_threads(problem, range(len(self))))
        skipped = tuple(Skipped(self.names[i], text) for i, text in enumerate(problems) if text is not None)
        if len(skipped) == len(self):
            raise InputError(f"none of {len(self)} images can be used, the first: {skipped[0].reason}")
        return self if not skipped else self.subset(i for i, text in enumerate(problems) if text is None), skipped

    def subset(self, index: Iterable[int]) -> Self:
        """Some of the images, in this order."""
        return type(self)([self._entries[i] for i in index], self.class_names, ids=self._ids)

    def without_masks(self) -> MaskedImages:
        """The same images with the classes they show and nothing else, for weak supervision."""
        entries = [replace(entry, mask=None, shown=self.labels(i)) for i, entry in enumerate(self._entries)]
        return MaskedImages(entries, self.class_names, ids=self._ids)

    def with_masks(self, folder: str | Path) -> MaskedImages:
        """The same images with other masks, `FOLDER/NAME.png`, such as pseudo masks; InputError if one is missing."""
        masks = MaskFolder.given(folder)
        files = [masks.file(f"{entry.name}.jpg") for entry in self._entries]
        missing = [i for i, file in enumerate(files) if not file.is_file()]
        if missing:
            fit = masks.join(f"{entry.name}.jpg" for entry in self._entries)
            some = f"; {fit.fitting} of {fit.images} have one" + (f"; {fit.cause}" if fit.cause else "")
            raise InputError(f"{self._entries[missing[0]].name} has no mask; expected {files[missing[0]]}{some}")
        entries = [
            replace(entry, mask=file, shown=self.labels(i))
            for i, (entry, file) in enumerate(zip(self._entries, files, strict=True))
        ]
        return MaskedImages(entries, self.class_names)

    def choose(self, count: int, *, seed: int = 0) -> tuple[int, ...]:
        """Images with masks by chance, classes taking turns; a larger choice contains the smaller, or InputError."""
        usable = [i for i in range(len(self)) if self.has_mask(i) and self.labels(i)]
        if not 0 <= count <= len(usable):
            raise InputError(f"expected 0 to {len(usable)} images with masks, got {count}")
        dealt = by_turns({i: self.labels(i)[0] for i in usable}, np.random.default_rng([0x5E6, seed]))
        return tuple(sorted(dealt[:count]))

    def training_set(
        self,
        transform: Transform,
        *,
        masks_for: Sequence[int] = (),
        kind: Literal["mask", "box"] = "mask",
        boxes_for: Sequence[int] = (),
        saliency: str | Path = "",
        regions: RegionTable | None = None,
        cache: Cache = "auto",
    ) -> TrainingSet:
        """The images with one 0/1 column per class, for training an encoder from image-level labels.

        The masks of `masks_for` become regions of their classes (GAIN-ext): masks, or boxes around connected parts, as
        those of `boxes_for` do; `saliency` is a folder of maps of what stands out in boxes. `regions` are others in
        place of those. ImageError for an image or map that cannot be read, InputError for one without labels, or one
        whose outline is asked for without a mask.
        """
        columns = torch.zeros(len(self), len(self.class_names))
        for i in range(len(self)):
            columns[i, list(self.labels(i))] = 1
        pixels = None
        if stays_in_memory(len(self), transform, cache):
            pixels = torch.empty(len(self), 3, transform.height, transform.width, dtype=torch.uint8)
            for i, image in enumerate(in_threads(lambda i: transform(self.image(i)), range(len(self)))):
                pixels[i] = image
        found: list[tuple[int, int, Mask]] = []
        kinds = dict.fromkeys(masks_for, kind) | dict.fromkeys(boxes_for, "box")
        are_boxes: list[bool] = []
        for i in sorted(kinds):
            mask = self.mask(i)
            if mask is None:
                raise InputError(f"{self._entries[i].name} has no mask, but its mask was to be used")
            is_box, levels = kinds[i] == "box", np.uint8(1)
            if saliency and is_box:
                stands_out = MaskFolder.given(saliency).saliency(f"{self.names[i]}.png", mask.shape[::-1])
                levels = np.maximum(stands_out, 1)
            for c in self.labels(i):
                marked = boxes_around(mask == c + 1) if is_box else mask == c + 1
                seen = label_map(marked * levels, transform, outside=0)
                if seen.any():
                    found.append((i, c, seen))
                    are_boxes.append(is_box)
        if kinds:
            regions = as_regions(found, transform, are_boxes=are_boxes)
            regions = replace(regions, has_saliency=bool(saliency))
        return TrainingSet.from_pixels(
            pixels,
            columns,
            transform=transform,
            class_names=self.class_names,
            regions=regions,
            digests=file_digests(map(self.file, range(len(self)))),
            original=self.image,
        )

    @classmethod
    def from_voc(cls, root: str | Path, split: str = "train", *, class_names: Sequence[str] | None = None) -> Self:
        """Images of PASCAL VOC, see `mask_benchmarks.in_voc`; InputError if a list or image is missing."""
        return cls(*benchmarks.in_voc(Path(root), split, class_names))

    @classmethod
    def from_camvid(cls, root: str | Path, split: str = "train") -> Self:
        """Street scenes of CamVid with 11 classes and no background: `SPLIT/`, and `SPLIT_masks/` or `SPLITannot/`."""
        folder = Path(root)
        masks = next((p for p in (folder / f"{split}_masks", folder / f"{split}annot") if p.is_dir()), None)
        if masks is None or not (folder / split).is_dir():
            raise InputError(f"{root}: expected the folders {split} and {split}_masks or {split}annot")
        ids = MaskIds(first=0, void=len(benchmarks.CAMVID_CLASSES))
        return cls.from_folder(folder / split, masks, benchmarks.CAMVID_CLASSES, ids=ids)

    @classmethod
    def from_cityscapes(cls, root: str | Path, split: str = "train") -> Self:
        """Street scenes of Cityscapes with 19 classes and no background, see `mask_benchmarks.in_cityscapes`."""
        found, is_trained = benchmarks.in_cityscapes(Path(root), split)
        ids = MaskIds(first=0) if is_trained else MaskIds(first=0, numbers=benchmarks.CITYSCAPES_IDS)
        return cls(*found, ids=ids)

    @classmethod
    def from_folder(
        cls,
        images: str | Path,
        masks: str | Path | None,
        names: str | Path | Sequence[str],
        *,
        labels: str | Path | None = None,
        ids: MaskIds | None = None,
    ) -> Self:
        """Images as `list_images` takes them, and a folder with `NAME.png` for each that has a mask.

        NAME is the path without the suffix. `names` are those of the classes, or a file with them (see `read_names`);
        `labels` is a table with the columns path and labels (names between semicolons). InputError: a missing folder,
        no image with a mask, or a label that is no class.
        """
        return cls(*layouts.in_folder(images, masks, names, labels), ids=ids)

    @classmethod
    def from_table(
        cls,
        table: str | Path,
        names: str | Path | Sequence[str] | None = None,
        *,
        split: str | None = None,
        ids: MaskIds | None = None,
    ) -> Self:
        """A CSV with the column `path`, and `mask`, `labels` (names between semicolons) or one 0/1 column per class.

        `names` are as in `from_folder`, left out the 0/1 columns; only rows whose column `split` says `split` count.
        InputError: no such table, split, or class.
        """
        return cls(*layouts.in_table(table, names, split), ids=ids)

    @classmethod
    def from_scenes(cls, scenes: SceneSet, split: str = "train") -> Self:
        """Drawn scenes of one split, written with `masks=True`; a scene shows the classes of all its objects."""
        return cls(*layouts.in_scenes(scenes, split))


BENCHMARKS: Mapping[str, Callable[..., MaskedImages]] = {
    "voc": MaskedImages.from_voc,
    "camvid": MaskedImages.from_camvid,
    "cityscapes": MaskedImages.from_cityscapes,
}
"""Data sets in layouts of their own, by name; each takes the folder and the split."""


def all_readable(sets: Mapping[str, MaskedImages], *, strict: bool) -> dict[str, MaskedImages]:
    """The images of each split that can be used; one remark names the others."""
    found = {name: images.readable() for name, images in sets.items()}
    skipped = [item for _, own in found.values() for item in own]
    say_left_out(skipped, of=sum(map(len, sets.values())), strict=strict)
    return {name: images for name, (images, _) in found.items()}


def label_map(mask: Mask, transform: Transform, *, outside: int = VOID) -> Mask:
    """The mask in the pixels of the network's input; what that shows beyond the image (fit="pad") is `outside`."""
    seen, inside = sample_mask(mask, transform)
    return np.where(inside, seen, np.uint8(outside))


def boxes_around(marked: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask with each of its connected parts (corners touch) filled up to its box."""
    filled = np.zeros_like(marked, dtype=bool)
    for left, top, right, bottom in components(marked[None]).box.astype(int):
        filled[top:bottom, left:right] = True
    return filled


def as_regions(
    found: Sequence[tuple[int, int, Mask]], transform: Transform, *, are_boxes: Sequence[bool] = ()
) -> RegionTable:
    """Regions from (image, label, pixels of the network's input that belong to it); masks if `are_boxes` is empty."""
    rasters = [torch.from_numpy(raster) for *_, raster in found]
    blank = torch.zeros(0, transform.height, transform.width, dtype=torch.uint8)
    return RegionTable(
        torch.tensor([image for image, *_ in found], dtype=torch.long),
        torch.tensor([label for _, label, _ in found], dtype=torch.long),
        torch.tensor(are_boxes or [False] * len(found), dtype=torch.bool),
        torch.stack(rasters) if rasters else blank,
    )
