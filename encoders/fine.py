"""The fine layer of a network: where its map has stride 8, read in the same forward pass as the last one."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from .encoder import Encoder
from .encoding import Encoding
from .layers import as_feature_map, closest, eagerly, plain_name, run_watched, watch_parts

FINE_STRIDE = 8
_WITHIN = 0.35  # octaves: valid convolutions make 35 rows of 299 where a stride of 8 would leave 38


def fine_layer(network: nn.Module, size: tuple[int, int]) -> str | None:
    """The name of the last block whose map has stride 8, found by watching an image of this height and width.

    It is what finished last before the first module that goes from stride 8 to 16: `layer2` of a ResNet, `features.6`
    of a MobileNetV2, `blocks.2` of timm's EfficientNets. None where the last map is no coarser (stride 8, dilated), or
    there is no such map (patches of 14 or 16 pixels): the feature map is then the finest there is.
    """
    events: list[tuple[str, int | None, int | None]] = []  # name, stride of the input (at its start), of the output
    runs: Counter[str] = Counter()

    def before(name: str, _part: nn.Module, inputs: Any) -> None:
        runs[name] += 1
        events.append((name, _octave(inputs[0] if inputs else None, size), None))

    def after(name: str, _part: nn.Module, _inputs: Any, output: Any) -> None:
        events.append((name, None, _octave(output, size)))

    image = next(network.parameters(), torch.zeros(())).new_zeros(1, 3, *size)
    output = watch_parts(network, image, before=before, after=after)
    fine = round(math.log2(FINE_STRIDE))
    if _octave(output, size) == fine:
        return None
    ends = {name: stride for name, entered, stride in events if entered is None}
    downs = (at for at, (name, entered, _) in enumerate(events) if entered == fine and ends.get(name) == fine + 1)
    until = next(downs, len(events))
    found = [name for name, _, stride in events[:until] if stride == fine and runs[name] == 1]
    return found[-1] if found else None


def named_fine_layer(network: nn.Module, layer: str) -> str:
    """The layer's full name in a network that may be wrapped: `layer2` also means `source.layer2`, and the reverse."""
    names = [name for name, _ in network.named_modules() if name]
    within = [name for name in names if plain_name(name) == layer or name.endswith(f".{layer}")]
    around = [name for name in names if layer.endswith(f".{name}")]
    if layer in names:
        return layer
    if not within and not around:
        raise InputError(f"no layer {layer!r} to read fine features from; nearest: {closest(layer, names)}")
    found: str = min(within, key=len) if within else max(around, key=len)
    return found


def _octave(value: Any, size: tuple[int, int]) -> int | None:
    """The binary logarithm of a map's stride, where a value is a map whose stride is nearly a power of two."""
    with suppress(ShapeError):
        rows, columns = as_feature_map(value, size, origin="").shape[-2:]
        octaves = [math.log2(whole / max(part, 1)) for whole, part in zip(size, (rows, columns), strict=True)]
        nearest = round(octaves[0])
        if all(abs(octave - nearest) <= _WITHIN for octave in octaves):
            return nearest
    return None


class FineTap:
    """An encoder whose encodings bring the map of its fine layer, once they are asked to.

    Attributes:
        layer: the full name in the backbone; None where nothing is read, or nothing is finer than the last map.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._asked: str | None = None
        self.layer: str | None = None

    def read(self, layer: str = "auto") -> str:
        """From now on read this layer of the backbone, by default `fine_layer`; its name, "" for the last map itself.

        Raises:
            InputError: there is no such layer.
        """
        if self._asked != layer:
            backbone, transform = self._encoder.backbone, self._encoder.transform
            if layer == "auto":
                self.layer = fine_layer(backbone, (transform.height, transform.width))
            else:
                self.layer = named_fine_layer(backbone, layer) if layer else None
            self._asked = layer
        return self.layer or ""

    def __call__(self, images: Float[Tensor, "b 3 rows columns"]) -> Encoding:
        """The encoding of normalised images, from one forward pass."""
        if self.layer is None:
            encoding: Encoding = self._encoder(images)
            return encoding if self._asked is None else replace(encoding, fine=encoding.feature_map)
        kept: list[Tensor] = []

        def keep(output: Any) -> None:
            size = (images.shape[2], images.shape[3])
            kept.append(as_feature_map(output, size, origin=f"layer {self.layer!r}").to(torch.float32, copy=True))

        with eagerly(self._encoder):
            encoding = run_watched(self._encoder, f"backbone.{self.layer}", images, keep)
        return replace(encoding, fine=kept[0])  # copied: what comes after the layer may work in place
