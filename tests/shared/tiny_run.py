"""A training run that takes a tenth of a second, for tests in this process and in others that get killed.

    python tiny_run.py '{"folder": "run", "settings": {"epochs": 3}, "kill_at": 7}'

prints the digest of the weights it ends with; a list of such orders is carried out one after another.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.images import Transform
from distcam.training import (
    Batch,
    Objective,
    OptimiserSettings,
    ScheduleSettings,
    Settings,
    Step,
    Term,
    current_world,
    fit,
)
from distcam.training.engine.environment import joined
from distcam.training.losses.registry import TermContext, build_objective

CLASSES = 3


class Sick(Term):
    """Not finite in the second process's third step."""

    def forward(self, step: Step) -> torch.Tensor:
        ill = current_world().rank == 1 and step.progress.step == 2
        return step.encoding.embedding.mean() * (float("nan") if ill else 1.0)


class Images:
    """Random pictures, brighter from class to class, in batches; this process's share of them."""

    def __init__(self, count: int = 36, *, batch_size: int = 8) -> None:
        generator = torch.Generator().manual_seed(5)
        self.labels = torch.arange(count) % CLASSES
        self.images = torch.randn(count, 3, 16, 16, generator=generator) + 0.5 * self.labels[:, None, None, None]
        self.batch_size = batch_size
        self.closed = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def names(self, index: Sequence[int]) -> list[str]:
        return [f"picture-{i}.png" for i in index]

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        world = current_world()
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(epoch))
        try:
            for members in order.split(self.batch_size)[skip:]:
                own = members.chunk(world.size)[world.rank]
                yield Batch(self.images[own], self.labels[own], own)
        finally:
            self.closed += 1


class Noise(Term):
    """A term that draws random numbers from torch's global generator, as dropout does."""

    def forward(self, step: Step) -> torch.Tensor:
        embedding = step.encoding.embedding
        return (embedding * torch.randn_like(embedding)).mean()


def make_encoder(**options: Any) -> Encoder:
    transform = Transform(size=16)
    return Encoder.load("conv4", weights="random", transform=transform, options={"width": 4, **options}, seed=3)


def make_objective(encoder: Encoder, *kinds: str) -> Objective:
    """A classifier, and everything else that has something to remember: a memory, centres, random numbers."""
    specs: list[dict[str, Any]] = [{"kind": "cross_entropy"}]
    if "memory" in kinds:
        specs += [{"kind": "contrastive", "memory": 20}, {"kind": "center", "on": "embedding"}]
    objective = build_objective(specs, TermContext(encoder, [str(i) for i in range(CLASSES)]))
    if "noise" in kinds:
        objective = Objective({**objective.terms, "noise": Noise()}, objective.weights)
    return objective


def make_settings(plain: dict[str, Any]) -> Settings:
    tables = {"optimiser": OptimiserSettings, "schedule": ScheduleSettings}
    nested = {name: make(**plain[name]) for name, make in tables.items() if name in plain}
    return Settings(**{"precision": "fp32", "device": "cpu", **plain, **nested})


def digest(*modules: torch.nn.Module) -> str:
    """A fingerprint of every bit of the modules' weights and buffers."""
    sha = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            sha.update(name.encode() + value.contiguous().numpy().tobytes())
    return sha.hexdigest()


def brightness(encoder: Encoder) -> dict[str, float]:
    """A metric that changes from epoch to epoch."""
    with torch.no_grad():
        return {"brightness": float(encoder(torch.ones(1, 3, 16, 16)).embedding.mean())}


def run(order: dict[str, Any]) -> dict[str, Any]:
    """One run, as the order describes it."""
    encoder = make_encoder()
    objective = make_objective(encoder, *order.get("terms", ["memory", "noise"]))
    if order.get("is_sick"):
        objective = Objective({"sick": Sick()})

    def kill(done: int, _total: int) -> None:
        if done == order.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    source = Images(order.get("count", 36), batch_size=order.get("batch_size", 8))
    try:
        result = fit(
            encoder,
            source,
            objective,
            make_settings(order.get("settings", {})),
            folder=order.get("folder"),
            resume=order.get("resume", False),
            evaluate=brightness if order.get("evaluate") else None,
            progress=kill,
        )
    except InputError as error:
        return {"error": str(error)}
    rows = [
        {name: value for name, value in row.items() if name not in ("seconds", "waiting")} for row in result.history
    ]
    return {"digest": digest(encoder, objective), "history": rows, "best_epoch": result.best_epoch}


def main() -> None:
    torch.set_num_threads(1)
    orders = json.loads(sys.argv[1])
    with joined(torch.device("cpu")):  # one process group for several runs
        for order in orders if isinstance(orders, list) else [orders]:
            print(json.dumps(run(order)))


if __name__ == "__main__":
    main()
