"""The batches of an epoch: drawn by a sampler, read, augmented, normalised, and all of that ahead of the training.

A batch is a pure function of (seed, epoch, step): neither the number of threads shows in it, nor what was asked for
before. Images are changed by their place in the epoch, so several processes together see what one alone would.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from ...errors import InputError
from ..engine.step import Batch
from .augment import AugmentSettings, augment, mix_images, uniforms
from .samplers import Indices, Sampler, share_of_rank
from .training_set import TrainingSet

_AHEAD = 3  # batches that wait for the training


class TrainingBatches:
    """The training loop's source of batches, for one of `world_size` processes.

    `workers` threads prepare them: one for images in memory, else one per core, if left out.
    """

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
        self.data = data
        self._sampler = sampler
        self._augment = AugmentSettings.none() if augment is None else augment
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._workers = workers or (1 if data.in_memory else min(os.cpu_count() or 1, 8))

    @property
    def steps_per_epoch(self) -> int:
        """Batches in every epoch."""
        return self._sampler.steps_per_epoch

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class index."""
        return self.data.class_names

    def names(self, index: Sequence[int]) -> list[str]:
        """Names of images, for messages."""
        return self.data.names(index)

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch but the first `skip`, prepared by threads that end with the iterator."""
        batches = self._sampler.batches(epoch)
        threads = ThreadPoolExecutor(self._workers, thread_name_prefix="batches")
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(skip, len(batches)):
                waiting.append(threads.submit(self.batch, epoch, step, batches[step]))
                if len(waiting) >= _AHEAD + self._workers - 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def batch(self, epoch: int, step: int, members: Indices) -> Batch:
        """One batch of this process; `members` are the images of all processes in this step."""
        own = share_of_rank(np.arange(len(members)), rank=self._rank, world_size=self._world_size)
        index = torch.from_numpy(members[own])
        place = torch.from_numpy(own) + (step << 32)
        regions = None if self.data.regions is None else self.data.regions.of(index)
        chance = uniforms(self._seed, epoch, place, index)
        changed = augment(self.data.pixels(index), self._augment, chance, regions=regions)
        images = self.data.transform.normalise(changed.pixels)
        key = (self._seed, epoch, step, self._rank)
        images, mix, regions = mix_images(images, self._augment, key, regions=changed.regions)
        return Batch(images, self.data.labels[index], index, regions, mix)
