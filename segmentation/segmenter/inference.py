"""From class maps to scores in an image's own pixels: several scales, mirrored too, summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ...errors import InputError
from ...images import Transform
from ...progress import Progress
from ...training.engine.environment import choose_device
from ...training.recipes.tables import Table
from ..data import MaskedImages
from ..pseudo_masks.sources import ClassMapSource

Shown = Literal["known", "predicted", "all"]
"""The classes that an image may show: those that the data set says, those that the model finds, or all."""

_SMALL = 64  # pixels; networks halve their input up to five times


class InferenceSettings(Table):
    """The views of an image that a model is asked about.

    Attributes:
        scales: sizes of the input; 1 is `base`.
        flip: also mirrored.
        base: what scale 1 means: "network", the input that the transform makes, with the image squashed into it; or
            "image", the image's own size, proportions kept.
        refined: the refined maps, of a model that has any.
    """

    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    flip: bool = True
    base: Literal["network", "image"] = "network"
    refined: bool = True

    def _check(self) -> None:
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            raise InputError(f"expected scales above 0 and up to 8, such as 0.5, 1, 1.5, 2; got {list(self.scales)}")

    def input_of(self, image: Image.Image, transform: Transform, scale: float) -> Tensor:
        """The normalised image at a scale, (1, 3, h, w); nothing of it is cut away."""
        height, width = transform.height, transform.width
        if self.base == "image":
            width, height = image.size
        size = (max(round(height * scale), 1), max(round(width * scale), 1))
        resized = transform.adapted(size=size, fit="squash")
        return resized.normalise(resized(image)[None])


ONE_LOOK = InferenceSettings(scales=(1.0,), flip=False)


@contextmanager
def taken_by_network(pixels: Tensor, scale: float) -> Iterator[None]:
    """Inside, a network that finds an input of a few pixels too small says so in one sentence."""
    try:
        yield
    except RuntimeError as error:
        height, width = pixels.shape[-2:]
        if min(height, width) >= _SMALL:
            raise
        raise InputError(
            f"scale {scale:g} makes an input of {width} x {height} pixels, which the network does not take ({error}); "
            "leave the scale out"
        ) from error


def max_normalised(maps: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Each map without its negative part, divided by its maximum: in [0, 1], and 0 where nothing is positive."""
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
    """The classes' scores in the image's pixels, in [0, 1]: the strongest pixel of each class shown has 1.

    The maps of all scales, mirrored ones turned back, lose their negative part, are enlarged to the image (bilinear)
    and summed; each class's sum is divided by its maximum ([CPN] §4.1). The scores of classes that are not `shown` are
    0; None lets all stand. InputError: a number that is no class, or a scale too small for the network.
    """
    settings = settings or InferenceSettings()
    size = (image.height, image.width)
    total = torch.zeros(len(source.class_names), *size, device=device)
    columns: Tensor | None = None
    if shown is not None:
        wrong = next((c for c in shown if not 0 <= c < len(total)), None)
        if wrong is not None:
            raise InputError(f"the image shows class {wrong}; expected 0 to {len(total) - 1}")
        columns = torch.zeros(1, len(total), device=device)
        columns[0, list(shown)] = 1
    for scale in settings.scales:
        pixels = settings.input_of(image, source.transform, scale).to(device)
        views = torch.cat([pixels, pixels.flip(-1)]) if settings.flip else pixels
        labels = None if columns is None else columns.expand(len(views), -1)
        with taken_by_network(pixels, scale):
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
    """The classes that the model finds in the image, of a positive logit or mean of the raw map; one at least."""
    pixels = InferenceSettings().input_of(image, source.transform, 1.0).to(device)
    presence: Callable[[Tensor], Tensor] | None = getattr(source, "presence", None)
    logits = source.class_maps(pixels, refined=False).mean((-2, -1))[0] if presence is None else presence(pixels)[0]
    found = (logits > 0).nonzero()[:, 0].tolist()
    return tuple(found) or (int(logits.argmax()),)


def score_image(
    source: ClassMapSource,
    data: MaskedImages,
    i: int,
    *,
    labels: Shown = "known",
    settings: InferenceSettings | None = None,
    device: str | torch.device = "cpu",
    image: Image.Image | None = None,
) -> Float[np.ndarray, "c h w"]:
    """`class_scores` of image i (`image`, where it is decoded already), for the classes that `labels` lets count."""
    image, shown = data.image(i) if image is None else image, None
    if labels == "known":
        shown = data.labels(i)
    elif labels == "predicted":
        shown = predicted_classes(source, image, device=device)
    return class_scores(source, image, shown=shown, settings=settings, device=device)


def score_images(
    source: ClassMapSource,
    data: MaskedImages,
    *,
    labels: Shown = "known",
    settings: InferenceSettings | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Iterator[tuple[int, Float[np.ndarray, "c h w"]]]:
    """Position and scores (see `class_scores`) of every image, one after another.

    Classes count that are "known" of the image, that the model finds ("predicted"), or "all". InputError: the data have
    other classes than the source, or an image has no labels where they are to be known.
    """
    require_classes(source.class_names, data)
    for i in range(len(data)):
        yield i, score_image(source, data, i, labels=labels, settings=settings, device=device)
        if progress is not None:
            progress(i + 1, len(data))


def require_classes(names: Sequence[str], data: MaskedImages) -> None:
    """Nothing, if the model and the data speak of the same classes."""
    if tuple(names) != data.class_names:
        model, given = (
            f"{', '.join(own[:6])}{', …' if len(own) > 6 else ''} ({len(own)})" for own in (names, data.class_names)
        )
        raise InputError(
            f"the model knows the classes {model}, the data have {given}; expected the same in the same order"
        )


def on_device(source: object, device: str) -> torch.device:
    """The device that is asked for, with the source on it, in evaluation mode, if it is a module."""
    where = choose_device(device)
    if isinstance(source, nn.Module):
        source.to(where).eval()
    return where
