"""Sources of class maps: a weak segmenter, a classifier that `distcam train` left, or anything of one's own.

Whatever has `class_names`, a `transform`, and `class_maps(images, refined=…, labels=…)` can be asked for masks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...encoders import Encoder
from ...encoders.backbones.networks import Network
from ...encoders.checkpoint import read_checkpoint
from ...encoders.layers import evaluating
from ...errors import InputError, WeightsError
from ...images import Transform
from ...training.data.labels import Targets
from ...training.engine.step import HasClassWeights
from ...training.losses.attention import gradient_weights, pooled_weights
from ...training.losses.classifier import load_classifier
from ..cam_training.weak_segmenter import WeakSegmenter

Method = Literal["cam", "gradcam"]


class ClassMapSource(Protocol):
    """A source of class maps."""

    @property
    def class_names(self) -> Sequence[str]:
        """The foreground classes, in the order of the maps."""

    @property
    def transform(self) -> Transform:
        """From an image to the input; its size is the one that scale 1 stands for."""

    def class_maps(
        self, images: Float[Tensor, "b 3 rows columns"], *, refined: bool = True, labels: Tensor | None = None
    ) -> Tensor:
        """Raw maps (b, c, h, w) of normalised images of any size; what is below 0 speaks against the class.

        `labels` are 0/1 columns, for a refinement that knows which classes are absent; None where nobody knows.
        """


class ClassifierMaps(nn.Module):
    """The class maps of an encoder with a classifier.

    "cam" weighs channels with the class's weights, "gradcam" with the gradient of its logit, summed over positions.
    Behind global average pooling and a linear classifier the two are one map; behind GeM pooling or a cosine classifier
    they are not.

    Args:
        encoder: its pooling and an affine head are folded in for "cam".
        classifier: the class weights and their logits.
        class_names: in the order of the class weights.
        method: see above.

    Source: Zhou et al. 2016, Eq. 2 (CAM); [GAIN] Eq. 1-2.
    """

    def __init__(
        self,
        encoder: Encoder,
        classifier: HasClassWeights,
        class_names: Sequence[str],
        *,
        method: Literal["cam", "gradcam"] = "cam",
    ) -> None:
        super().__init__()
        if len(classifier.class_weights()) != len(class_names):
            raise InputError(f"{len(class_names)} names of classes for {len(classifier.class_weights())} class weights")
        self.encoder, self.classifier = encoder, classifier
        self.class_names, self.method = tuple(class_names), method

    @property
    def transform(self) -> Transform:
        """The encoder's."""
        return self.encoder.transform

    @torch.no_grad()
    def class_maps(
        self, images: Float[Tensor, "b 3 rows columns"], *, refined: bool = True, labels: Tensor | None = None
    ) -> Tensor:
        """Raw maps (b, c, h, w), before the ReLU of Grad-CAM; there is nothing to refine them."""
        del refined, labels
        with evaluating(self.encoder):
            feature_map = self.encoder(images).feature_map
            if self.method == "cam":
                weights = pooled_weights(self.encoder, self.classifier.class_weights())
                return torch.einsum("ck,bkhw->bchw", weights, feature_map)
            count, classes = len(images), len(self.class_names)
            row = torch.arange(count, device=images.device).repeat_interleave(classes)
            label = torch.arange(classes, device=images.device).repeat(count)
            targets = Targets(row, label, torch.ones(len(row), device=images.device))
            weights = gradient_weights(self.encoder, feature_map, self.classifier, targets)
            positions = feature_map[0, 0].numel()  # Grad-CAM's 1/N would make a large scale count less than a small one
            return torch.einsum("bck,bkhw->bchw", weights.view(count, classes, -1) * positions, feature_map)

    def presence(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b c"]:
        """The classes' logits, inside the gradient graph; above 0 a class is more likely there than not."""
        with evaluating(self.encoder):
            return self.classifier.logits(self.encoder(images).embedding)


def load_source(path: str | os.PathLike[str], *, method: Method = "cam") -> ClassMapSource:
    """The source of class maps that a training left.

    Args:
        path: the file of a `WeakSegmenter`, or a run's folder or its `encoder.safetensors` with
            `classifier.safetensors` beside it.
        method: of a classifier's maps.

    Raises:
        WeightsError: no such file, or one that gives no class maps.
    """
    given = Path(path)
    weak = given / "weak_segmenter.safetensors"
    file = (weak if weak.is_file() else given / "encoder.safetensors") if given.is_dir() else given
    config, _ = read_checkpoint(file)
    if config.get("kind") == "weak segmenter":
        return WeakSegmenter.load(file)
    beside = file.with_name("classifier.safetensors")
    if "architecture" not in config or not beside.is_file():
        raise WeightsError(
            f"{file}: gives no class maps; expected a weak segmenter, or an encoder beside classifier.safetensors"
        )
    encoder = Encoder.load(file)
    classifier, names, fingerprint = load_classifier(beside)
    if fingerprint != encoder.fingerprint:
        raise WeightsError(f"{beside}: belongs to another encoder than {file.name} beside it; train both in one run")
    return ClassifierMaps(encoder, classifier, names, method=method)


class _Presence(nn.Module):
    def __init__(self, source: WeakSegmenter | ClassifierMaps) -> None:
        super().__init__()
        self.source = source

    def forward(self, images: Tensor) -> Tensor:
        return self.source.presence(images)


def network_of(source: ClassMapSource) -> Network:
    """The source as a classifier of images, for `distcam explain --target class:…`. It shares the weights.

    Raises:
        InputError: a source of one's own.
    """
    if not isinstance(source, WeakSegmenter | ClassifierMaps):
        raise InputError(f"{type(source).__name__} does not say which classes an image shows")
    names = tuple(source.class_names)
    return Network(
        _Presence(source).eval(), "classifier", source.transform, "source.encoder.backbone", names, len(names)
    )
