"""Finer maps of a network: of the layer with stride 8, of its last stage dilated, or of a larger image."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from ..images import Transform
from .encoder import Encoder
from .encoding import Encoding
from .layers import as_feature_map, closest, eagerly, plain_name, run_watched, watch_parts
from .readouts import ReadOut

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
    if not within and not around:
        raise InputError(f"no layer {layer!r} to read fine features from; nearest: {closest(layer, names)}")
    return layer if layer in names else min(within, key=len, default="") or max(around, key=len)


def _octave(value: Any, size: tuple[int, int]) -> int | None:
    """The binary logarithm of a map's stride, where a value is a map whose stride is nearly a power of two."""
    with suppress(ShapeError):
        rows, columns = as_feature_map(value, size, origin="").shape[-2:]
        octaves = [math.log2(whole / max(part, 1)) for whole, part in zip(size, (rows, columns), strict=True)]
        nearest = round(octaves[0])
        if all(abs(octave - nearest) <= _WITHIN for octave in octaves):
            return nearest
    return None


class FineReader:
    """An encoder whose encodings bring the map of its fine layer, once they are asked to."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._asked: str | None = None
        self.layer: str | None = None  # its full name; None where nothing is read, or finer than the last map

    def read(self, layer: str = "auto") -> str:
        """From now on read this layer of the backbone, by default `fine_layer`; its name, "" for the last map."""
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


# --- Detail of a copy: the last stage dilated, which keeps every value it had, or a larger image ----------------------

Detail = Literal["auto", "plain", "fine", "finer"]
DETAILS: tuple[Detail, ...] = get_args(Detail)
LARGER = 1.43  # of the input's sides for "finer", as measured in docs/results/
SAYS: dict[Detail, str] = {
    "fine": "The last stage of the network steps by one, so the map has twice the rows and columns and holds the usual "
    "one at every second.",
    "finer": "The map is that of a larger image, whose vector differs a little from the one that ranked.",
}
_ALIGNED = 32  # pixels: margins are left out in whole cells, also of the coarsest maps


class WithoutMargins(nn.Module):
    """A backbone that is not shown the margins of padded images: the map is that of the rest, and 0 at their places."""

    def __init__(self, source: nn.Module, fill: Float[Tensor, "3 1 1"]) -> None:
        super().__init__()
        self.source, self._fill = source, fill

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b k h w"]:
        """The maps of a batch, image by image."""
        return torch.cat([self._map(image[None]) for image in images])

    def _map(self, image: Tensor) -> Tensor:
        is_shown = (image[0] - self._fill.to(image)).abs().amax(0) > 1e-3
        shown, places = [_span(is_shown.any(1)), _span(is_shown.any(0))], list[int]()
        part: Tensor = self.source(image[..., slice(*shown[0]), slice(*shown[1])])
        for (start, stop), cells, whole in zip(shown, part.shape[2:], image.shape[2:], strict=True):
            stride = (stop - start) / cells
            places = [round(start / stride), round((whole - stop) / stride), *places]  # columns first, as `pad` wants
        return nn.functional.pad(part, places)


def _span(is_shown: Tensor) -> tuple[int, int]:
    """First and last pixel that is shown, outwards to multiples of `_ALIGNED`; all where none is."""
    found = is_shown.nonzero()[:, 0].tolist() or [0, len(is_shown) - 1]
    return found[0] // _ALIGNED * _ALIGNED, min(len(is_shown), -(-(found[-1] + 1) // _ALIGNED) * _ALIGNED)


def larger(transform: Transform) -> Transform:
    """The transform of "finer"."""
    sides = transform.height, transform.width
    rows, columns = (max(round(LARGER * side / 32) * 32, side + 32) for side in sides)
    return transform.adapted(size=(rows, columns))


def with_detail(encoder: Encoder, detail: Detail) -> Encoder:
    """A copy of an encoder whose feature maps have more rows and columns; the encoder itself for "plain" and "auto".

    "fine" dilates the last stage, see `dilate_last_stage`; "finer" enlarges the input by `LARGER`, in multiples of 32,
    and leaves out the margins of elongated images, where the network takes inputs that are no square.
    """
    if detail not in DETAILS:
        raise InputError(f"detail={detail!r} is not known; choose one of {', '.join(DETAILS)}")
    if detail in ("auto", "plain"):
        return encoder
    copy = deepcopy(encoder).eval()
    if detail == "fine":
        size = encoder.transform.height, encoder.transform.width
        dilate_last_stage(copy.backbone, size, name=encoder.architecture)
        return copy
    copy.transform = larger(encoder.transform)
    zeros = next(copy.parameters()).new_zeros(1, 3, copy.transform.height, copy.transform.width)
    try:
        with torch.no_grad():
            copy(zeros)
    except (InputError, RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"detail='finer' needs a network that takes images of any size, and {encoder.architecture} does not: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if copy.transform.fit == "pad" and not isinstance(copy.backbone, ReadOut):
        fill = torch.tensor(copy.transform.fill, dtype=torch.uint8)[None, :, None, None]
        fill = fill.flip(1) if copy.transform.channels == "bgr" else fill
        trimmed = WithoutMargins(copy.backbone, copy.transform.normalise(fill)[0])
        with suppress(InputError, RuntimeError, AssertionError, ValueError), torch.no_grad():
            copy.backbone(zeros[..., :_ALIGNED, :])
            copy.backbone = trimmed
    return copy


_STEPPING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


class _LayerCall(NamedTuple):
    """One run of a convolution or pooling: its rows before and after."""

    part: Any
    before: int
    after: int


def dilate_last_stage(network: nn.Module, size: tuple[int, int], *, name: str) -> None:
    """Set the stride of a network's last stage to 1 in place, so that its map has twice the rows and columns.

    The last convolutions or poolings with a stride, found by watching an image of this height and width, step by 1;
    kernels behind them are spread by 2, and what averages the whole map averages every second place. No weight changes,
    and the new map holds the old one at every second row and column, which is tried on noise.

    Source: Chen et al., DeepLab, 2018, §3.1 (atrous convolution).
    """
    probe = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    probe = probe.to(next(network.parameters()))
    runs, plain = _watched(network, probe)
    rows = plain.shape[2]
    whole = [run.part for run in runs if run.before == rows and not isinstance(run.part, _STEPPING)]
    runs = [run for run in runs if isinstance(run.part, _STEPPING)]
    steps = [run for run in runs if _sides(run.part.stride)[0] == 2 and run.after == rows and run.before > 1.4 * rows]
    why = "no convolution or pooling with a stride of 2 leads to its last map"
    if steps:
        for run in steps:
            run.part.stride = (1, 1)
        stepped, later = {id(run.part) for run in steps}, runs[runs.index(steps[0]) :]
        behind = {id(run.part): run.part for run in later if run.before == rows and id(run.part) not in stepped}
        offset = int(any(type(run.part).__name__.endswith("Same") for run in steps))  # pads more behind than before
        for part in behind.values():  # a kernel of a single pixel, and an average, stay
            if max(_sides(part.kernel_size)) == 1 or isinstance(part, nn.AvgPool2d):
                continue
            part.dilation = tuple(2 * side for side in _sides(part.dilation))
            if not isinstance(part.padding, str):
                part.padding = tuple(2 * side for side in _sides(part.padding))
        for part in whole:  # squeeze and excitation
            _average_every_second(part, rows, offset)
        why = "dilated, its map would not hold the usual one"
        try:
            fine = _watched(network, probe)[1][..., offset::2, offset::2][..., :rows, : plain.shape[3]]
            if fine.shape == plain.shape and torch.allclose(fine, plain, rtol=0, atol=1e-3 * float(plain.abs().max())):
                return
        except RuntimeError as error:  # a pooling that may not be padded so far, branches of different sizes
            why = f"dilated, it does not run ({str(error).splitlines()[0]})"
    raise InputError(f"`detail='fine'` is not for {name}: {why}; take `detail='finer'`, or another layer")


def _watched(network: nn.Module, probe: Tensor) -> tuple[list[_LayerCall], Tensor]:
    """The runs of convolutions and poolings in one forward pass, in order, and the map."""
    runs: list[_LayerCall] = []

    def watch(_name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        if (isinstance(part, (*_STEPPING, nn.AdaptiveAvgPool2d)) or _squeezes(part)) and inputs[0].ndim == 4:
            runs.append(_LayerCall(part, inputs[0].shape[2], output.shape[2]))

    return runs, watch_parts(network, probe, after=watch)


def _sides(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _squeezes(part: nn.Module) -> bool:
    """True for timm's squeeze and excitation, which averages by a method and not by a module."""
    return type(part).__name__ in ("SqueezeExcite", "SEModule", "EffectiveSEModule")


def _average_every_second(part: nn.Module, rows: int, offset: int) -> None:
    """Make layers that average a whole map average only the places that the usual map has."""
    means: list[Tensor] = []

    def before(_part: nn.Module, inputs: Any) -> Any:
        (maps,) = inputs
        kept = maps[..., offset::2, offset::2] if maps.shape[2] > rows else maps
        means[:] = [kept.mean((2, 3), keepdim=True)]
        return None if _squeezes(part) else (kept,)

    part.register_forward_pre_hook(before)
    if _squeezes(part):
        reduce = next(child for child in part.modules() if isinstance(child, nn.Conv2d))
        reduce.register_forward_pre_hook(lambda _part, _inputs: (means[0],))
