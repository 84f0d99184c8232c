"""The images of a run by part, and the batches of an epoch: drawn, read, augmented, and normalised by threads.

A batch is a pure function of (seed, epoch, step): neither the number of threads shows in it, nor what was asked for
before. Images are changed by their place in the epoch, so several processes together see what one alone would.

Where `augment.crop_from` is "file", parts drawn by chance are cut from the original files: what leaves the file is as
fine as the network's input allows, and nothing is enlarged that the original has in detail.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ...encoders import Encoder
from ...errors import InputError
from ...images import Box, Transform
from ...remarks import Skipped
from ...threads import in_threads
from ..engine.step import Batch, Objective, Regions
from .augment import PLACE, AugmentSettings, augment, cut_out, mix_images, uniforms
from .dividing import SplitSettings
from .samplers import Indices, Sampler, share_of_rank
from .training_set import TrainingSet

if TYPE_CHECKING:
    from ..losses.registry import Builder

_AHEAD = 3  # batches that wait for the training


class TrainingBatches:
    """The training loop's source of batches, for one of `world_size` processes, by one thread per core if need be."""

    def __init__(
        self,
        data: TrainingSet,
        sampler: Sampler,
        *,
        augment: AugmentSettings | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise InputError(f"expected a rank from 0 to {world_size - 1}, got {rank}")
        if workers is not None and workers < 1:
            raise InputError(f"expected one worker or more, got {workers}")
        self.data, self.class_names, self.names = data, data.class_names, data.names
        self.steps_per_epoch = sampler.steps_per_epoch
        self._sampler = sampler
        self._augment = AugmentSettings.none() if augment is None else augment
        self._cuts = self._augment.crop_from == "file"
        if self._cuts:
            require_files(data)
        own = {"crop_from": "input", "crop": (1.0, 1.0), "resize": None, "shift": 0.0}  # done where a window is cut
        self._rest = self._augment.changed(**own) if self._cuts else self._augment
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._workers = workers or (1 if data.held is not None and not self._cuts else min(os.cpu_count() or 1, 16))
        self._device: torch.device | None = None

    def finish_on(self, device: torch.device) -> None:
        """From now on give bytes, for `device` in page-locked memory, that `Batch.finish` augments and normalises."""
        self._device = device

    def unchanged(self) -> tuple[int, Iterator[Tensor]] | None:
        """The number of images, and all of them in order, in batches; None if they are changed from epoch to epoch."""
        if self._augment != AugmentSettings.none():
            return None
        size = len(self.data)
        batches = (torch.arange(first, min(first + 64, size)) for first in range(0, size, 64))
        return size, (self.data.transform.normalise(self.data.pixels(index)) for index in batches)

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch but the first `skip`, prepared by threads that end with the iterator."""
        batches = self._sampler.batches(epoch)
        ahead = _AHEAD + self._workers - 1
        steps = enumerate(batches[skip:], skip)
        return in_threads(lambda step: self.batch(epoch, *step), steps, workers=self._workers, ahead=ahead)

    def batch(self, epoch: int, step: int, members: Indices) -> Batch:
        """One batch of this process; `members` are the images of all processes in this step."""
        own = share_of_rank(np.arange(len(members)), rank=self._rank, world_size=self._world_size)
        index = torch.from_numpy(members[own])
        place = torch.from_numpy(own) + (step << 32)
        chance = uniforms(self._seed, epoch, place, index)
        if self._cuts:
            pixels, regions = cut(self.data, index, self._augment, chance)
        else:
            pixels = self.data.pixels(index)
            regions = None if self.data.regions is None else self.data.regions.of(index)
        finish = partial(self._finished, chance, (self._seed, epoch, step, self._rank))
        batch = Batch(pixels, self.data.labels[index], index, regions, finish=finish)
        if self._device is None:
            return finish(batch)
        return replace(batch, images=batch.images.pin_memory()) if self._device.type == "cuda" else batch

    def _finished(self, chance: Tensor, key: tuple[int, ...], batch: Batch) -> Batch:
        """A batch of bytes augmented, normalised and mixed, where it lies."""
        chance = chance.to(batch.images.device, non_blocking=True)
        pixels, regions = augment(batch.images, self._rest, chance, regions=batch.regions)
        images = cut_out(self.data.transform.normalise(pixels), self._rest, chance)
        images, mix, regions = mix_images(images, self._augment, key, regions=regions)
        return replace(batch, images=images, regions=regions, mix=mix, finish=None)


Measure = Callable[[Encoder, Objective, Path | None], Mapping[str, float]]  # the last: the run's folder


@dataclass(frozen=True)
class DataPart:
    """One part of the data."""

    images: int  # how many
    classes: frozenset[str]  # the names of those that its images show


@dataclass(frozen=True, eq=False)
class RunData:
    """Images, losses and measures of a run."""

    sets: Mapping[str, TrainingSet]  # images by split, "train" among them
    parts: Mapping[str, DataPart] | None = None  # sizes and classes, where the sets are not all of the data
    left_out: Sequence[Skipped] = ()  # images that were left out of the sets beforehand
    terms: Mapping[str, Builder] | None = None  # the kinds of losses there are; `TERMS` if left out
    sampler: Sampler | None = None  # instead of the recipe's `[sampler]`: few-shot episodes, for example
    validate: Measure | None = None  # what `run.monitor` looks at, instead of a metric of `[evaluation]`
    measure: Measure | None = None  # further metrics of the trained encoder
    split: SplitSettings | None = None  # how the images were divided, where the recipe leaves something to the data


def parts_of(sets: Mapping[str, TrainingSet]) -> dict[str, DataPart]:
    """The parts that some sets are."""
    return {
        name: DataPart(
            len(own), frozenset(c for c, n in zip(own.class_names, own.per_class().tolist(), strict=True) if n > 0)
        )
        for name, own in sets.items()
    }


def describe(parts: Mapping[str, DataPart]) -> dict[str, dict[str, int]]:
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


def sentence(parts: Mapping[str, DataPart]) -> str:
    """The same on one line: `train: 320 images, 16 classes; test: 160 images, 8 classes, 0 of them in train`."""
    trained = _trained(parts)
    return "; ".join(
        f"{name}: {own['images']:,} images, {own['classes']:,} classes"
        + (f", {own['classes_in_train']:,} of them in {trained}" if "classes_in_train" in own else "")
        for name, own in describe(parts).items()
    )


def _trained(parts: Mapping[str, DataPart]) -> str:
    return "base" if "base" in parts and "train" not in parts else "train"


@dataclass(frozen=True, kw_only=True)
class Window(Transform):
    """One part of an image at the network's size: a share of its area, or a cut from the image brought to a size.

    `chance` are four numbers in [0, 1): of the area or size, the shape, and the place across and down.
    """

    settings: AugmentSettings
    chance: tuple[float, ...]
    asked: str  # the fit of the transform, which says the side that `resize` is about

    @classmethod
    def drawn(cls, transform: Transform, settings: AugmentSettings, chance: Sequence[float]) -> Window:
        """The window of one image; `transform` gives the size, the colours, and the filter."""
        own = {field.name: getattr(transform, field.name) for field in fields(Transform)}
        fit = "squash" if settings.resize is None else "pad"  # an image smaller than the window gets margins
        own |= {"fit": fit, "resize": None}
        return cls(**own, settings=settings, chance=tuple(chance), asked=transform.fit)

    def _placement(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Width and height of the whole image at the window's scale, and the window's left and top edges in it."""
        across, down = self._whole(width, height)
        *_, u, v = self.chance
        return across, down, round(u * (across - self.width)), round(v * (down - self.height))

    def _whole(self, width: int, height: int) -> tuple[int, int]:
        settings, (first, second, *_) = self.settings, self.chance
        if settings.resize is not None:
            side = settings.resize[0] + first * (settings.resize[1] - settings.resize[0])
            if self.asked == "squash":
                factor = side / max(self.width, self.height)
                return max(round(self.width * factor), 1), max(round(self.height * factor), 1)
            factor = side / (min(width, height) if self.asked == "crop" else max(width, height))
            return max(round(width * factor), 1), max(round(height * factor), 1)
        area = settings.crop[0] + first * (settings.crop[1] - settings.crop[0])
        narrow, wide = map(math.log, settings.crop_ratio)
        shape = math.exp(narrow + second * (wide - narrow)) * height / width
        return round(self.width / min(math.sqrt(area * shape), 1)), round(self.height / min(math.sqrt(area / shape), 1))


def require_files(data: TrainingSet) -> None:
    """Refuse images, or outlines, that windows cannot be cut from."""
    if not data.files and data.original is None:
        raise InputError('augment.crop_from = "file" needs image files, and these images are in memory alone')
    if data.regions is not None and data.transform.fit == "crop":
        raise InputError(
            'augment.crop_from = "file" needs outlines of whole images, and data.fit = "crop" cuts their borders off; '
            'choose "squash" or "pad"'
        )


def cut(
    data: TrainingSet, index: Tensor, settings: AugmentSettings, chance: Float[Tensor, "b n"]
) -> tuple[UInt8[Tensor, "b 3 h w"], Regions | None]:
    """Windows of images, and of their outlines; `chance` as for `augment`. ImageError: a file that cannot be read."""
    pixels, seen = [], []
    for i, own in zip(index.tolist(), chance[:, PLACE].tolist(), strict=True):
        window = Window.drawn(data.transform, settings, own)
        if data.original is None:
            levels, size = window.read(data.files[i])
        else:
            image = data.original(i)
            levels, size = window(image), image.size
        pixels.append(levels)
        seen.append(_inside(window.view(*size), data.transform.view(*size)))
    regions = None if data.regions is None else data.regions.of(index)
    if regions is None or not len(regions.row):
        return torch.stack(pixels), regions
    matrix = torch.tensor(seen)[regions.row]
    shape = [len(matrix), 1, *regions.raster.shape[-2:]]
    grid = functional.affine_grid(matrix, shape, align_corners=False)
    raster = functional.grid_sample(regions.raster[:, None], grid, mode="nearest", align_corners=False)[:, 0]
    return torch.stack(pixels), regions.chosen(raster.flatten(1).any(1), raster)


def _inside(window: Box, whole: Box) -> list[list[float]]:
    """The affine map from places of the window to those of the rectangle that the outlines are drawn in, in [-1, 1]."""
    (x, y), (middle_x, middle_y) = window.center, whole.center
    return [
        [window.width / whole.width, 0.0, 2 * (x - middle_x) / whole.width],
        [0.0, window.height / whole.height, 2 * (y - middle_y) / whole.height],
    ]
