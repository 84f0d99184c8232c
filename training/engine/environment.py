"""The surroundings of a run: a device, batches on it, and random numbers that belong to the step alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from .distributed import current_world
from .step import Batch, Mix, Regions


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is this process's CUDA device if there is any, else the CPU."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise InputError(f"run.device: expected 'auto', 'cpu', or 'cuda', got {name!r}") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise InputError(f"run.device: {name!r} was asked for, but torch sees no CUDA device; use 'cpu' or 'auto'")
    return device if device.index is not None else torch.device("cuda", current_world().local_rank)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the training device, its images with channels last in memory."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    regions, mix = batch.regions, batch.mix
    return replace(
        batch,
        images=batch.images.to(device, memory_format=torch.channels_last, non_blocking=True),
        labels=moved(batch.labels),
        index=moved(batch.index),
        regions=regions
        and Regions(moved(regions.row), moved(regions.label), moved(regions.is_box), moved(regions.raster)),
        mix=mix and Mix(moved(mix.partner), mix.share),
    )


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Inside, the global generators of torch, numpy, and random may be seeded; afterwards they are as before."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002 - libraries below draw from it
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


def seed_step(seed: int, batch: int, rank: int) -> None:
    """Seed the global generators with a number that follows from the run's seed, the batch, and the process."""
    word = int(np.random.SeedSequence([seed, batch, rank]).generate_state(1, np.uint64)[0])
    torch.manual_seed(word)
    np.random.seed(word % 2**32)  # noqa: NPY002
    random.seed(word)


def repeatable(device: torch.device, *, deterministic: bool) -> AbstractContextManager[object]:
    """Inside, cuDNN takes algorithms that repeat exactly, or the fastest it finds."""
    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[object] = torch.backends.cudnn.flags(
        enabled=True, benchmark=not deterministic, deterministic=deterministic
    )
    return flags
