"""From an encoder's class maps to scores in a picture's own pixels: several scales, mirrored too, summed up.

Whatever has `class_names`, a `transform`, and `class_maps(images, refined=…, labels=…)` can be asked: a weak
segmenter, a classifier that `distcam train` left (CAM, or Grad-CAM in closed form), or anything of one's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ..encoders import Encoder
from ..encoders.encoder import evaluating
from ..errors import InputError, WeightsError
from ..images import Transform
from ..training.attention import gradient_weights, pooled_weights
from ..training.classifier import load_classifier
from ..training.labels import Targets
from ..training.step import HasClassWeights
from .data import MaskedImages

__all__ = [
    "ClassMapSource",
    "ClassifierMaps",
    "InferenceSettings",
    "class_scores",
    "load_source",
    "max_normalised",
    "score_images",
]

Method = Literal["cam", "gradcam"]
Known = Literal["known", "predicted", "all"]


class ClassMapSource(Protocol):
    """What gives class maps."""

    @property
    def class_names(self) -> Sequence[str]:
        """The foreground classes, in the order of the maps."""

    @property
    def transform(self) -> Transform:
        """What images go through; its size is the one that scale 1 stands for."""

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
        self, encoder: Encoder, classifier: HasClassWeights, class_names: Sequence[str], *, method: Method = "cam"
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

    @torch.no_grad()
    def presence(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b c"]:
        """The classes' logits; above 0 a class is more likely there than not."""
        with evaluating(self.encoder):
            return self.classifier.logits(self.encoder(images).embedding)


def load_source(path: str | os.PathLike[str], *, method: Method = "cam") -> ClassMapSource:
    """What gives class maps, from what training left.

    Args:
        path: the file of a `WeakSegmenter`, or a run's folder or its `encoder.safetensors` with
            `classifier.safetensors` beside it.
        method: of a classifier's maps.

    Raises:
        WeightsError: no such file, or one that gives no class maps.
    """
    from ..encoders.checkpoint import read_checkpoint

    given = Path(path)
    weak = given / "weak_segmenter.safetensors"
    file = (weak if weak.is_file() else given / "encoder.safetensors") if given.is_dir() else given
    config, _ = read_checkpoint(file)
    if config.get("kind") == "weak segmenter":
        from .weak import WeakSegmenter

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


@dataclass(frozen=True)
class InferenceSettings:
    """How a picture is looked at.

    Attributes:
        scales: sizes of the input; 1 is `base`.
        flip: also mirrored.
        base: what scale 1 means: "network", the input that the transform makes, with the picture squashed into it; or
            "image", the picture's own size, proportions kept.
        refined: the refined maps, of a model that has any.
    """

    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    flip: bool = True
    base: Literal["network", "image"] = "network"
    refined: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            raise InputError(f"expected scales above 0 and up to 8, such as 0.5, 1, 1.5, 2; got {list(self.scales)}")

    def input_of(self, image: Image.Image, transform: Transform, scale: float) -> Tensor:
        """The normalised picture at a scale, (1, 3, h, w); nothing of it is cut away."""
        height, width = transform.height, transform.width
        if self.base == "image":
            width, height = image.size
        size = (max(round(height * scale), 1), max(round(width * scale), 1))
        resized = transform.adapted(size=size, fit="squash")
        return resized.normalise(resized(image)[None])


def max_normalised(maps: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Each map without its negative part, divided by its maximum: in [0, 1], and 0 where nothing is positive.

    >>> max_normalised(torch.tensor([[[2.0, -1.0, 4.0]], [[-1.0, 0.0, -3.0]]])).tolist()
    [[[0.5, 0.0, 1.0]], [[0.0, 0.0, 0.0]]]
    """
    positive = maps.clamp(min=0)
    most = positive.amax((-2, -1), keepdim=True)
    return torch.where(most > 0, positive / torch.where(most > 0, most, 1.0), 0.0)


@torch.no_grad()
def class_scores(
    source: ClassMapSource,
    image: Image.Image,
    *,
    shown: Sequence[int] | None = None,
    settings: InferenceSettings | None = None,
    device: str | torch.device = "cpu",
) -> Float[np.ndarray, "c h w"]:
    """The classes' scores in the picture's pixels, in [0, 1]: the strongest pixel of each class shown has 1.

    The maps of all scales, mirrored ones turned back, lose their negative part, are enlarged to the picture (bilinear)
    and summed; each class's sum is divided by its maximum.

    Args:
        source: gives the maps.
        image: RGB.
        shown: the classes that the picture shows; the scores of all others are 0. None lets all stand.
        settings: `InferenceSettings()` if left out.
        device: where the network lies.

    Source: [CPN] §4.1 (scales 0.5, 1, 1.5, 2).
    """
    settings = settings or InferenceSettings()
    size = (image.height, image.width)
    total = torch.zeros(len(source.class_names), *size, device=device)
    columns: Tensor | None = None
    if shown is not None:
        columns = torch.zeros(1, len(total), device=device)
        columns[0, list(shown)] = 1
    for scale in settings.scales:
        pixels = settings.input_of(image, source.transform, scale).to(device)
        views = torch.cat([pixels, pixels.flip(-1)]) if settings.flip else pixels
        labels = None if columns is None else columns.expand(len(views), -1)
        maps = source.class_maps(views, refined=settings.refined, labels=labels).float().clamp(min=0)
        if settings.flip:
            maps = maps[:1] + maps[1:].flip(-1)
        total += functional.interpolate(maps, size, mode="bilinear", align_corners=False)[0]
    if columns is not None:
        total *= columns[0, :, None, None]
    scores: np.ndarray = max_normalised(total).cpu().numpy()
    return scores


@torch.no_grad()
def predicted_classes(
    source: ClassMapSource, image: Image.Image, *, device: str | torch.device = "cpu"
) -> tuple[int, ...]:
    """The classes that the model itself finds in the picture; at least the most likely one.

    A source with a method `presence` is asked for its logits. For any other, a class is there if its raw map has a
    positive mean, which is its logit behind global average pooling, but for the bias.
    """
    pixels = InferenceSettings().input_of(image, source.transform, 1.0).to(device)
    presence: Callable[[Tensor], Tensor] | None = getattr(source, "presence", None)
    logits = source.class_maps(pixels, refined=False).mean((-2, -1))[0] if presence is None else presence(pixels)[0]
    found = (logits > 0).nonzero()[:, 0].tolist()
    return tuple(found) or (int(logits.argmax()),)


def score_images(
    source: ClassMapSource,
    data: MaskedImages,
    *,
    labels: Known = "known",
    settings: InferenceSettings | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Float[np.ndarray, "c h w"]]]:
    """Position and scores of every picture, one after another.

    Args:
        source: its classes must be those of the data.
        data: the pictures.
        labels: whose classes count: those "known" of the picture, those "predicted", or "all" of them.
        settings: see `class_scores`.
        device: where the network lies.
        progress: called with (pictures done, pictures in all).

    Raises:
        InputError: other classes, or a picture without labels where they are to be known.
    """
    require_classes(source.class_names, data)
    for i in range(len(data)):
        image = data.image(i)
        shown: tuple[int, ...] | None = None
        if labels == "known":
            shown = data.labels(i)
        elif labels == "predicted":
            shown = predicted_classes(source, image, device=device)
        yield i, class_scores(source, image, shown=shown, settings=settings, device=device)
        if progress is not None:
            progress(i + 1, len(data))


def require_classes(names: Sequence[str], data: MaskedImages) -> None:
    """Nothing, if the model and the data speak of the same classes.

    Raises:
        InputError: they do not.
    """
    if tuple(names) != data.class_names:
        raise InputError(
            f"the model knows the classes {_listed(names)}, the data have {_listed(data.class_names)}; "
            "expected the same in the same order"
        )


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:6])}{', …' if len(names) > 6 else ''} ({len(names)})"


def seen_by(source: Any, device: str | torch.device) -> None:
    """Bring a source that is a module to the device, in evaluation mode."""
    if isinstance(source, nn.Module):
        source.to(device).eval()
