"""The classes of a batch's images: one, two in shares (mixup, CutMix), or several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from ...errors import InputError
from ..engine.step import Batch


@dataclass(frozen=True, eq=False)
class Targets:
    """Pairs of an image and a class that it shows; t of them."""

    # the image's position in the batch; None if there is exactly one pair for each image, in order
    row: Int[Tensor, " t"] | None
    label: Int[Tensor, " t"]  # the class
    share: Float[Tensor, " t"]  # how much the pair counts; the shares of an image sum to 1, or there are none

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.label)

    def of(self, values: Tensor) -> Tensor:
        """The entry of each pair's image, without a copy where there is one pair for each image."""
        return values if self.row is None else values[self.row]

    def mean(self, values: Float[Tensor, " t"], *, n_images: int) -> Tensor:
        """The mean over images of the share-weighted sum over their pairs; an image without a pair adds 0."""
        return (values * self.share).sum() / n_images


def true_classes(batch: Batch) -> Targets:
    """Every class of every image: a single label counts whole, mixed ones in their shares, several ones evenly."""
    labels, mix = batch.labels, batch.mix
    if labels.ndim == 1:
        whole = torch.ones(len(labels), device=labels.device)
        if mix is None:
            return Targets(None, labels, whole)
        row = torch.arange(len(labels), device=labels.device).repeat(2)
        share = torch.cat([whole * mix.share, whole * (1 - mix.share)])
        return Targets(row, torch.cat([labels, labels[mix.partner]]), share)
    amount = labels.float()
    amount = amount / amount.sum(1, keepdim=True).clamp(min=1e-12)
    if mix is not None:
        amount = mix.share * amount + (1 - mix.share) * amount[mix.partner]
    row, label = amount.nonzero(as_tuple=True)
    return Targets(row, label, amount[row, label])


def is_right(logits: Float[Tensor, "b c"], labels: Tensor) -> Bool[Tensor, " b"]:
    """True if a class that the image shows has the largest logit; a tie with one that it does not show is lost.

    >>> is_right(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0])).tolist()
    [True, False]
    """
    is_shown = (labels if labels.ndim == 2 else one_hot(labels, logits.shape[1])) > 0
    best_shown, best_other = (logits.where(some, -torch.inf).amax(1) for some in (is_shown, ~is_shown))
    return best_shown > best_other


def accuracy(logits: Float[Tensor, "b c"], batch: Batch) -> float:
    """Share of images whose largest logit is (one of) their class(es), in [0, 1]; mixed images in their shares."""

    def hits(labels: Tensor) -> float:
        return float(is_right(logits, labels).float().mean())

    if batch.mix is None:
        return hits(batch.labels)
    return batch.mix.share * hits(batch.labels) + (1 - batch.mix.share) * hits(batch.labels[batch.mix.partner])


def single_labels(batch: Batch, who: str) -> Int[Tensor, " b"]:
    """The labels, one class per image."""
    if batch.labels.ndim != 1:
        raise InputError(f"{who} needs one class per image; these labels are 0/1 columns, {tuple(batch.labels.shape)}")
    return batch.labels
