"""Train an encoder with a metric loss on images held in memory: one plain, seeded loop.

The losses come from pytorch-metric-learning. Images are kept as uint8, so 10,000 pictures of 96×96 pixels take 280 MB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn

from ..encoders import Encoder
from ..encoders.inference import has_fast_bfloat16
from ..errors import InputError

__all__ = ["LOSSES", "FitResult", "fit"]

LOSSES: dict[str, Callable[[int, int], nn.Module]] = {
    "normalized_softmax": lambda classes, width: losses.NormalizedSoftmaxLoss(classes, width, temperature=0.1),
    "proxy_anchor": lambda classes, width: losses.ProxyAnchorLoss(classes, width),
    "multi_similarity": lambda _classes, _width: losses.MultiSimilarityLoss(),
}


@dataclass(frozen=True)
class FitResult:
    """Mean training loss of every epoch, first to last, and the class names in the order of their indices."""

    loss_per_epoch: tuple[float, ...]
    class_names: tuple[str, ...]


def fit(
    encoder: Encoder,
    pixels: Tensor,
    labels: Sequence[str],
    *,
    loss: str = "normalized_softmax",
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Train `encoder` in place: AdamW, one-cycle learning rate, random crops and horizontal flips.

    Args:
        encoder: left in eval mode; its fingerprint changes with its weights.
        pixels: uint8 "n 3 h w", as `encoder.transform` makes them.
        labels: n class names; at least two classes.
        loss: a key of `LOSSES`; it acts on the embedding.
        epochs: passes over all images.
        batch_size: images per step; the last batch of an epoch may be smaller.
        learning_rate: the highest of the schedule.
        weight_decay: of AdamW.
        seed: of batch order, augmentation and the loss's own proxies; the global generators stay as they were.
        progress: called with (steps done, steps in all).

    Raises:
        InputError: lengths that differ, fewer than two classes, an unknown loss, or a loss that stops being finite.
    """
    names = tuple(sorted(set(labels)))
    _check(pixels, labels, names, loss)
    targets = torch.tensor([names.index(label) for label in labels])
    steps = epochs * math.ceil(len(labels) / batch_size)
    history = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        criterion = LOSSES[loss](len(names), encoder.embedding_dim)
        parameters = [*encoder.parameters(), *criterion.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
        encoder.train().to(memory_format=torch.channels_last)
        for _ in range(epochs):
            order = torch.split(torch.randperm(len(labels)), batch_size)
            total = 0.0
            for batch in order:
                total += _step(encoder, criterion, optimiser, augment(pixels[batch]), targets[batch]) * len(batch)
                schedule.step()
                if progress is not None:
                    progress(schedule.last_epoch, steps)
            history.append(total / len(labels))
    encoder.eval()
    return FitResult(tuple(history), names)


def _check(pixels: Tensor, labels: Sequence[str], names: tuple[str, ...], loss: str) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) != len(labels):
        raise InputError(
            f"expected uint8 pixels (n, 3, h, w) for {len(labels)} labels, got {pixels.dtype} {tuple(pixels.shape)}"
        )
    if len(names) < 2:
        raise InputError(f"training needs at least two classes, got {len(names)}")
    if loss not in LOSSES:
        raise InputError(f"unknown loss {loss!r}; choose from {', '.join(LOSSES)}")


def _step(
    encoder: Encoder, criterion: nn.Module, optimiser: torch.optim.Optimizer, pixels: Tensor, targets: Tensor
) -> float:
    images = encoder.transform.normalise(pixels).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16(images.device)):
        embedding = encoder(images).embedding
    value = criterion(embedding.float(), targets)
    if not torch.isfinite(value):
        raise InputError("the training loss is not finite any more; lower `learning_rate`")
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    optimiser.step()
    return float(value.detach())


def augment(pixels: Tensor, *, margin: float = 0.1) -> Tensor:
    """Each image flipped with probability 1/2 and moved by up to `margin` of its side (edges repeated), uint8."""
    count, _, height, width = pixels.shape
    pad_y, pad_x = round(margin * height), round(margin * width)
    padded = nn.functional.pad(pixels.float(), (pad_x, pad_x, pad_y, pad_y), mode="replicate").to(torch.uint8)
    top = torch.randint(2 * pad_y + 1, (count, 1)) + torch.arange(height)
    left = torch.randint(2 * pad_x + 1, (count, 1)) + torch.arange(width)
    left = torch.where(torch.rand(count, 1) < 0.5, left.flip(1), left)
    index = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2)
