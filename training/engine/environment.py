"""The surroundings of a run: processes, a device, and random numbers that belong to the step alone.

Gradients are averaged by one all_reduce of a flat vector after the backward pass; the encoder has no wrapper, so a
loss may call it as often as it needs.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from ...errors import InputError
from .step import Batch, Mix, Regions

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among `size` others; `local_rank` counts within its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """True for the process that evaluates and writes."""
        return self.rank == 0


def current_world() -> World:
    """This process's place: torch.distributed's if it is set up, else what torchrun announced, else alone."""
    variables = os.environ
    if distributed.is_available() and distributed.is_initialized():
        rank, size = distributed.get_rank(), distributed.get_world_size()
    else:
        rank, size = int(variables.get("RANK", 0)), int(variables.get("WORLD_SIZE", 1))
    if not 0 <= rank < size:
        raise InputError(f"RANK={rank} is not below WORLD_SIZE={size}; start the processes with torchrun")
    return World(rank, size, int(variables.get("LOCAL_RANK", rank)))


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The process group (gloo, nccl), set up if several processes were started, and taken down again."""
    world = current_world()
    if world.size == 1 or distributed.is_initialized():
        yield world
        return
    on_gpu = device.type == "cuda"
    distributed.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    try:
        yield world
    finally:
        distributed.destroy_process_group()


def average_gradients(parameters: Sequence[nn.Parameter], world: World, *, failed: bool) -> bool:
    """Replace every gradient (none counts as 0) by its mean over the processes; True if any has `failed`."""
    if world.size == 1:
        return failed
    marks = [float(failed), *(float(parameter.grad is not None) for parameter in parameters)]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    head = torch.tensor(marks, device=gradients[0].device)
    flat = torch.cat([head, *(gradient.reshape(-1) for gradient in gradients)])
    distributed.all_reduce(flat)
    marks = flat[: len(marks)].tolist()
    means = torch.split(flat[len(marks) :] / world.size, [parameter.numel() for parameter in parameters])
    for parameter, present, mean in zip(parameters, marks[1:], means, strict=True):
        if present:  # in the parameter's memory layout
            parameter.grad = torch.empty_like(parameter).copy_(mean.view(parameter.shape))
    return bool(marks[0])


def average_statistics(module: nn.Module, world: World) -> None:
    """Replace the running statistics of every batch norm that is in training mode by their mean over the processes."""
    if world.size == 1:
        return
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training and part.running_mean is not None:
            for statistic in (part.running_mean, part.running_var):
                assert statistic is not None
                distributed.all_reduce(statistic)
                statistic /= world.size


@torch.no_grad()
def spread(tensors: Iterable[Tensor], world: World) -> None:
    """Give every process the values of the first one."""
    if world.size == 1:
        return
    for tensor in tensors:
        values = tensor.detach().contiguous()  # gloo and nccl want plain layouts
        distributed.broadcast(values, 0)
        tensor.copy_(values)


def gathered(value: T, world: World) -> list[T]:
    """Every process's value, in the order of ranks, in every process."""
    if world.size == 1:
        return [value]
    values: list[T | None] = [None] * world.size
    distributed.all_gather_object(values, value)
    return [one for one in values if one is not None]


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


def batch_on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the training device, finished there, its images with channels last in memory."""

    def moved(value: Any) -> Any:
        if isinstance(value, Batch | Regions | Mix):
            return replace(value, **{each.name: moved(getattr(value, each.name)) for each in fields(value)})
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    if batch.finish is not None:
        with nullcontext() if device.type == "cpu" else device:  # what is made on the way is made there
            batch = batch.finish(moved(batch))
    images = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
    found: Batch = moved(replace(batch, images=images))
    return found


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
