"""What training costs: our loop against a peer's, the attention losses against plain steps, and the wait for data.

    python benchmarks speed/training [--architecture resnet18] [--rounds 5]

Everything takes turns in one process on one thread, float32 on a CPU, and ratios are of CPU time; the share of time
that the loop waits for data is of wall time. Images are random, already decoded; the peer is
pytorch-metric-learning's trainer `MetricLossOnly` with the same network, loss, optimiser, batch size and augmentation.
(open-metric-learning 4.0 asks for numpy < 2 and cannot be installed beside distcam.)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine, interleave, ratio_table
from PIL import Image
from pytorch_metric_learning import losses, trainers
from torch import Tensor, nn
from torch.utils.data import Dataset

from distcam.encoders import Encoder
from distcam.images import Transform, list_images
from distcam.training import Batch, Objective, Settings, Step, TrainingProgress, fit
from distcam.training.data.augment import AugmentSettings, augment, uniforms
from distcam.training.data.batches import TrainingBatches
from distcam.training.data.samplers import shuffled
from distcam.training.data.training_set import TrainingSet
from distcam.training.losses.registry import TERMS, TermContext, build_objective

CLASSES = 8


class Pictures(Dataset[tuple[Tensor, int]]):
    """What the peer reads: the same pixels, augmented by the same code, image by image."""

    def __init__(self, data: TrainingSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        index = torch.tensor([i])
        changed, _ = augment(self.data.pixels(index), AugmentSettings(), uniforms(0, 0, index, index))
        return self.data.transform.normalise(changed)[0], int(self.data.labels[i])


class Embedding(nn.Module):
    """The encoder as a network that returns embeddings."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images).embedding


def our_epoch(encoder: Encoder, data: TrainingSet, batch_size: int) -> Callable[[], object]:
    """One epoch of ours, without checkpoints."""
    batches = TrainingBatches(data, shuffled(len(data), batch_size=batch_size), augment=AugmentSettings())
    objective = build_objective([{"kind": "normalized_softmax"}], TermContext(encoder, data.class_names))
    return lambda: fit(encoder, batches, objective, Settings(epochs=1, precision="fp32", device="cpu"))


def their_epoch(encoder: Encoder, data: TrainingSet, batch_size: int) -> Callable[[], object]:
    """One epoch of pytorch-metric-learning's trainer."""
    logging.getLogger("PML").setLevel(logging.ERROR)
    trunk = Embedding(encoder)
    loss = losses.NormalizedSoftmaxLoss(CLASSES, encoder.embedding_dim)
    trainer = trainers.MetricLossOnly(
        models={"trunk": trunk},
        optimizers={
            "trunk_optimizer": torch.optim.AdamW(trunk.parameters(), lr=1e-3, weight_decay=1e-4),
            "metric_loss_optimizer": torch.optim.AdamW(loss.parameters(), lr=1e-3, weight_decay=1e-4),
        },
        batch_size=batch_size,
        loss_funcs={"metric_loss": loss},
        dataset=Pictures(data),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,  # CPU time of other processes would not be counted
    )

    def run() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            trainer.train(num_epochs=1)

    return run


def step_of(encoder: Encoder, batch: Batch, *specs: Mapping[str, object]) -> Callable[[], object]:
    """Forward and backward of one batch with an objective."""
    objective = build_objective(specs, TermContext(encoder, [str(i) for i in range(CLASSES)]), terms=TERMS)
    progress = TrainingProgress(epoch=1, epochs=2, step=1, train_accuracy=1.0)

    def run() -> None:
        forward_backward(encoder, objective, Step(encoder, batch, progress))

    return run


def forward_backward(encoder: Encoder, objective: Objective, step: Step) -> None:
    objective(step).total.backward()
    for module in (encoder, objective):
        module.zero_grad(set_to_none=True)


def two_passes(encoder: Encoder, batch: Batch) -> Callable[[], object]:
    """Two forward and two backward passes with a cross entropy each: what GAIN-self cannot do without."""
    once = step_of(encoder, batch, {"kind": "cross_entropy"})

    def run() -> None:
        once()
        once()

    return run


def waiting_for_files(architecture: str, *, size: int, count: int, batch_size: int) -> float:
    """The share of an epoch that the loop waits for JPEG files of 500×400 pixels, decoded while it computes."""
    with tempfile.TemporaryDirectory() as work:
        for i in range(count):
            folder = Path(work) / f"class-{i % CLASSES}"
            folder.mkdir(exist_ok=True)
            noise = np.random.default_rng(i).integers(0, 255, (50, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((500, 400)).save(folder / f"{i}.jpg", quality=90)
        transform = Transform(size)
        data = TrainingSet.from_listing(list_images(work), transform, cache="none")
        encoder = Encoder.load(architecture, weights="random", transform=transform)
        batches = TrainingBatches(data, shuffled(count, batch_size=batch_size), augment=AugmentSettings(), workers=1)
        objective = build_objective([{"kind": "cross_entropy"}], TermContext(encoder, data.class_names))
        result = fit(encoder, batches, objective, Settings(epochs=2, precision="fp32", device="cpu"))
        return result.history[-1]["waiting"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    transform = Transform(options.size)
    generator = torch.Generator().manual_seed(0)
    shape = (options.images, 3, options.size, options.size)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    data = TrainingSet.from_pixels(pixels, torch.arange(options.images) % CLASSES, transform=transform)

    print(describe_machine("torch", "pytorch-metric-learning"), f"1 thread, {options.rounds} rounds, CPU time")
    print(f"{options.architecture}, {options.size} pixels, batches of {options.batch_size}\n")

    ours = Encoder.load(options.architecture, weights="random", transform=transform)
    theirs = Encoder.load(options.architecture, weights="random", transform=transform)
    epochs = {
        "MetricLossOnly": their_epoch(theirs, data, options.batch_size),
        "our loop": our_epoch(ours, data, options.batch_size),
    }
    print(f"An epoch of {options.images} images:\n")
    print(ratio_table(interleave(epochs, rounds=options.rounds), base="MetricLossOnly"), "\n")

    encoder = (
        Encoder.load(options.architecture, weights="random", transform=transform)
        .to(memory_format=torch.channels_last)
        .train()
    )
    index = torch.arange(options.batch_size)
    images = transform.normalise(pixels[index]).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, data.labels[index], index)
    classify = {"kind": "cross_entropy"}
    attention = {
        "cross entropy": step_of(encoder, batch, classify),
        "+ CAM-loss": step_of(encoder, batch, classify, {"kind": "cam_loss", "start": 0}),
        "two of them": two_passes(encoder, batch),
        "+ GAIN-self": step_of(encoder, batch, classify, {"kind": "gain"}),
    }
    seconds = interleave(attention, rounds=3 * options.rounds)
    print("Forward and backward of one batch:\n")
    print(ratio_table({name: seconds[name] for name in ("cross entropy", "+ CAM-loss")}, base="cross entropy"), "\n")
    print(ratio_table({name: seconds[name] for name in ("two of them", "+ GAIN-self")}, base="two of them"), "\n")

    started = time.perf_counter()
    share = waiting_for_files(
        options.architecture, size=options.size, count=options.images, batch_size=options.batch_size
    )
    print(f"JPEG files, decoded by one thread beside the training: {share:.1%} of an epoch is spent waiting for them")
    print(f"({time.perf_counter() - started:.0f} s for two epochs)")
