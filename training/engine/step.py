"""One training step: a batch, the encoder, and an objective that is a weighted sum of terms.

Every loss is a `Term`: a module that looks at a `Step` and returns a scalar. The loop knows nothing about losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ...encoders import Encoder, Encoding
from ...encoders.layers import require_layer, run_watched
from ...encoders.readouts import source_of
from ...errors import InputError


@dataclass(frozen=True, eq=False)
class Regions:
    """Outlined objects of the few images of a batch that have any; r regions, possibly none.

    Attributes:
        row: the image's position in the batch.
        label: the class that the region belongs to.
        is_box: True for a box drawn as a filled rectangle, False for a mask.
        raster: 1 on the object, 1 + saliency where that is known, 0 elsewhere; augmented with the images.
    """

    row: Int[Tensor, " r"]
    label: Int[Tensor, " r"]
    is_box: Bool[Tensor, " r"]
    raster: Float[Tensor, "r h w"]

    def chosen(self, which: Bool[Tensor, " r"], raster: Float[Tensor, "r h w"]) -> Regions:
        """Some of the regions, with these rasters."""
        return Regions(self.row[which], self.label[which], self.is_box[which], raster[which])

    def merged(self) -> Regions:
        """The same regions; all masks of one class in one image are one, and so are all boxes."""
        same = (self.row[:, None] == self.row) & (self.label[:, None] == self.label)
        same = same & (self.is_box[:, None] == self.is_box)
        first = same.int().argmax(1)  # the first region of the same image, class and kind
        index = first[:, None, None].expand_as(self.raster)
        raster = torch.zeros_like(self.raster).scatter_reduce(0, index, self.raster, "amax")
        return self.chosen(first == torch.arange(len(first), device=first.device), raster)


@dataclass(frozen=True, eq=False)
class Mix:
    """Mixup or CutMix: image i shows `share` of its own label and `1 - share` of image `partner[i]`'s."""

    partner: Int[Tensor, " b"]
    share: float
    layer: str = ""  # of the backbone, where what it hands on is still to be blended; empty if the images are already


@dataclass(frozen=True, eq=False)
class Batch:
    """Images as the network sees them (augmented, normalised) and what is known about them.

    Attributes:
        images: on the training device.
        labels: class indices; or one 0/1 column per class where an image may show several.
        index: each image's position in the training set.
        regions: masks and boxes; None if the data set has none at all.
        mix: how images were blended, None if they were not.
        finish: what is left to do on the training device while the images are bytes as they were read; None if nothing.
    """

    images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"] | Float[Tensor, "b c"]
    index: Int[Tensor, " b"]
    regions: Regions | None = None
    mix: Mix | None = None
    finish: Callable[[Batch], Batch] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)


class BatchSource(Protocol):
    """A source of batches; epoch e is the same list of batches whenever it is asked for.

    A source that has `names(index)` lets error messages say which images a batch held; one that has `class_names` names
    the classes of the classifier that is kept. One whose images are the same in every epoch may have `unchanged()`:
    their number, and all of them in the order of their index, in batches.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Batches of every epoch, for this process."""

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch on the CPU, without the first `skip`; closing the iterator stops its workers."""


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a training run.

    Attributes:
        epoch: of the current step, from 0.
        epochs: in all.
        step: optimiser steps done in the whole run.
        train_accuracy: the mean of what the terms logged as `accuracy` in the last whole epoch; None before that.
    """

    epoch: int
    epochs: int
    step: int
    train_accuracy: float | None = None


@runtime_checkable
class HasClassWeights(Protocol):
    """A term with one weight vector per class in the embedding's space: a linear or cosine classifier, proxies."""

    def class_weights(self) -> Float[Tensor, "c d"]:
        """The vectors, inside the gradient graph."""

    def logits(self, embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """One score per class; the largest is the prediction."""


class Step:
    """One batch on its way through the encoder; what several terms need is computed once, and only if asked for."""

    def __init__(
        self,
        encoder: Encoder,
        batch: Batch,
        progress: TrainingProgress,
        *,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        features: Encoding | None = None,  # of every training image, where the backbone is frozen
    ) -> None:
        self.encoder = encoder
        self.batch = batch
        self.progress = progress
        self.classifier: HasClassWeights | None = None
        self.log: dict[str, float | Tensor] = {}
        self._autocast = autocast
        self._features = features

    @cached_property
    def encoding(self) -> Encoding:
        """The batch's encoding, float32, inside the gradient graph."""
        if self._features is None:
            return self.encode(self.batch.images)
        index = self.batch.index.to(self._features.pooled.device)
        own = self._features.changed(lambda part: part[index].to(self.batch.images.device))
        return self.encoder.encode_map(own.feature_map, constant=own.constant)

    def encode(self, images: Float[Tensor, "b 3 h w"], *, encoder: Encoder | None = None) -> Encoding:
        """A forward pass of the encoder, or of a teacher, under the run's mixed precision; float32 results.

        InputError: images are blended inside the network, and this is another pass over them.
        """
        mix = self.batch.mix
        inside = mix if mix is not None and mix.layer else None
        if inside is not None and (encoder is not None or images is not self.batch.images):
            raise InputError(
                "augment.manifold_mixup blends inside the trained network alone, so no loss may look at the images "
                "again, as GAIN, CPN and those with a teacher do; use mixup or cutmix"
            )
        with self._autocast():
            encoding: Encoding = self._blended(images, inside) if inside else (encoder or self.encoder)(images)
        return encoding.changed(Tensor.float)

    def _blended(self, images: Tensor, mix: Mix) -> Encoding:
        """A pass in which a layer hands on a blend of its outputs (Manifold Mixup; Verma et al. 2019, Eq. 1)."""
        backbone, _ = source_of(self.encoder.backbone)

        def blend(output: Tensor) -> Tensor:
            return torch.lerp(output[mix.partner], output, mix.share)

        try:
            require_layer(backbone, mix.layer)
            part = backbone.get_submodule(mix.layer)
            name = next(name for name, own in self.encoder.named_modules() if own is part)
            encoding: Encoding = run_watched(self.encoder, name, images, blend)
        except InputError as error:
            raise InputError(f"augment.manifold_layers: {error}") from None
        return encoding

    def noted(self, name: str, value: Tensor) -> Tensor:
        """The value, which the log gets too."""
        self.log[name] = value.detach()
        return value

    def need_classifier(self, who: str) -> HasClassWeights:
        """The term that owns the class weights; InputError if the objective has none."""
        if self.classifier is None:
            raise InputError(
                f"{who} needs class weights: add a cross entropy or a loss with proxies (proxy_anchor, arcface, …)"
            )
        return self.classifier


class Term(nn.Module):
    """A part of the training objective; its parameters, if it has any, are trained with the encoder's."""

    # of the encodings of a batch the "vector" alone, the "map" too, or "images" and whatever the encoder makes of them
    reads: ClassVar[Literal["vector", "map", "images"]] = "images"

    def weight_at(self, progress: TrainingProgress, weight: float) -> float:
        """The factor of this term now, `weight` being the recipe's; a term that starts late returns 0 before."""
        del progress
        return weight

    def forward(self, step: Step) -> Tensor:
        """The term's value, a scalar."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Losses:
    """`total` is what is minimised; `values` are those of the terms that took part, unweighted and detached."""

    total: Tensor
    values: Mapping[str, Tensor]

    @property
    def terms(self) -> dict[str, float]:
        """The values as numbers, for which the device is waited for."""
        return as_numbers(self.values)


def as_numbers(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Scalars as numbers; whatever lies on a device comes in one piece."""
    scalars = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    read = torch.stack([value.double() for value in scalars.values()]).tolist() if scalars else []
    found = dict(zip(scalars, read, strict=True))
    return {name: found[name] if name in found else float(value) for name, value in values.items()}


class Objective(nn.Module):
    """A weighted sum of named terms. A term whose weight is 0 now is not computed."""

    def __init__(self, terms: Mapping[str, Term], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        if not terms:
            raise InputError("an objective needs at least one term")
        self.terms = nn.ModuleDict(terms)
        self.weights = dict.fromkeys(terms, 1.0) | dict(weights or {})

    @property
    def classifier(self) -> HasClassWeights | None:
        """The first term that has class weights."""
        return next((term for term in self.terms.values() if isinstance(term, HasClassWeights)), None)

    def forward(self, step: Step) -> Losses:
        """The value of every term, and their weighted sum."""
        step.classifier = self.classifier
        values: dict[str, Tensor] = {}
        total = step.batch.images.new_zeros(())
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            weight = term.weight_at(step.progress, self.weights[name])
            if weight:
                values[name] = term(step)
                total = total + weight * values[name]
        return Losses(total, {name: value.detach() for name, value in values.items()})


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
    """True if a class that the image shows has the largest logit; a tie with one that it does not show is lost."""
    is_shown = (labels if labels.ndim == 2 else one_hot(labels, logits.shape[1])) > 0
    best_shown, best_other = (logits.where(some, -torch.inf).amax(1) for some in (is_shown, ~is_shown))
    return best_shown > best_other


def accuracy(logits: Float[Tensor, "b c"], batch: Batch) -> Float[Tensor, ""]:
    """Share of images whose largest logit is (one of) their class(es), in [0, 1]; mixed images in their shares."""
    return in_shares(batch, lambda labels: is_right(logits, labels).float().mean())


def in_shares(batch: Batch, value: Callable[[Tensor], Tensor]) -> Tensor:
    """The value of the batch's labels; of a mixed batch that of both images' labels in their shares."""
    if batch.mix is None:
        return value(batch.labels)
    own, share = value(batch.labels), batch.mix.share
    return share * own + (1 - share) * value(batch.labels[batch.mix.partner])


def multi_hot(batch: Batch, who: str) -> Float[Tensor, "b c"]:
    """The labels, one 0/1 column per class, of images that were not blended."""
    if batch.labels.ndim != 2:
        raise InputError(
            f"{who} learns from 0/1 columns, one per class; got labels of shape {tuple(batch.labels.shape)}"
        )
    if batch.mix is not None:
        raise InputError(f"{who} cannot learn from blended images; leave augment.mixup and augment.cutmix out")
    return batch.labels.float()


def single_labels(batch: Batch, who: str) -> Int[Tensor, " b"]:
    """The labels, one class per image."""
    if batch.labels.ndim != 1:
        raise InputError(f"{who} needs one class per image; these labels are 0/1 columns, {tuple(batch.labels.shape)}")
    return batch.labels
