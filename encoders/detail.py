"""Finer maps of a network: its last stage dilated, which keeps every value it had, or a larger image."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError
from .encoder import Encoder
from .layers import eagerly, evaluating

Detail = Literal["plain", "fine", "finer"]
DETAILS: tuple[Detail, ...] = get_args(Detail)
LARGER = 1.43  # of the input's sides for "finer", as measured in docs/results/
SAYS: dict[Detail, str] = {
    "plain": "",
    "fine": "The last stage of the network steps by one, so the map has twice the rows and columns and holds the usual "
    "one at every second.",
    "finer": "The map is that of a larger image, whose vector differs a little from the one that ranked.",
}


def with_detail(encoder: Encoder, detail: Detail) -> Encoder:
    """A copy of an encoder whose feature maps have more rows and columns; the encoder itself for "plain".

    "fine" dilates the last stage, see `dilate_last_stage`; "finer" enlarges the input by `LARGER`, in multiples of 32.

    Raises:
        InputError: `detail` is not known, or the network cannot be read that way; the message says why.
    """
    if detail not in DETAILS:
        raise InputError(f"detail={detail!r} is not known; choose one of {', '.join(DETAILS)}")
    if detail == "plain":
        return encoder
    copy = deepcopy(encoder).eval()
    height, width = encoder.transform.height, encoder.transform.width
    if detail == "fine":
        dilate_last_stage(copy.backbone, (height, width), name=encoder.architecture)
        return copy
    rows, columns = (round(LARGER * side / 32) * 32 for side in (height, width))
    copy.transform = encoder.transform.adapted(size=(max(rows, height + 32), max(columns, width + 32)))
    try:
        with torch.no_grad():
            copy(next(copy.parameters()).new_zeros(1, 3, copy.transform.height, copy.transform.width))
    except (InputError, RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"detail='finer' needs a network that takes images of any size, and {encoder.architecture} does not: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return copy


_STEPPING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


class _Run(NamedTuple):
    """One run of a convolution or pooling: its rows before and after."""

    part: Any
    before: int
    after: int


def dilate_last_stage(network: nn.Module, size: tuple[int, int], *, name: str) -> None:
    """Let a network's last stage step by 1 in place, so that its map has twice the rows and columns.

    The last convolutions or poolings with a stride, found by watching an image of this height and width, step by 1;
    kernels behind them are spread by 2, and what averages the whole map averages every second place. No weight changes,
    and the new map holds the old one at every second row and column, which is tried on noise.

    Raises:
        InputError: the map comes from no such layer, or would not hold the old one.

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
        first = next(place for place, run in enumerate(runs) if run is steps[0])
        for run in steps:
            run.part.stride = 1 if isinstance(run.part.stride, int) else (1, 1)
        stepped = {id(run.part) for run in steps}
        behind = {id(run.part): run.part for run in runs[first:] if run.before == rows and id(run.part) not in stepped}
        offset = int(any(type(run.part).__name__.endswith("Same") for run in steps))  # pads more behind than before
        for part in behind.values():
            _spread(part)
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


def _watched(network: nn.Module, probe: Tensor) -> tuple[list[_Run], Tensor]:
    """The runs of convolutions and poolings in one forward pass, in order, and the map."""
    runs: list[_Run] = []

    def watch(part: nn.Module, inputs: Any, output: Any) -> None:
        if inputs[0].ndim == 4:
            runs.append(_Run(part, inputs[0].shape[2], output.shape[2]))

    kinds = (*_STEPPING, nn.AdaptiveAvgPool2d)
    parts = [part for part in network.modules() if isinstance(part, kinds) or _squeezes(part)]
    handles = [part.register_forward_hook(watch) for part in parts]
    try:
        with torch.no_grad(), eagerly(network), evaluating(network):
            found: Tensor = network(probe)
    finally:
        for handle in handles:
            handle.remove()
    return runs, found


def _sides(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _spread(part: Any) -> None:
    """Spread a kernel by 2; one of a single pixel, and an average, stay."""
    if max(_sides(part.kernel_size)) == 1 or isinstance(part, nn.AvgPool2d):
        return
    part.dilation = tuple(2 * side for side in _sides(part.dilation))
    if not isinstance(part.padding, str):
        part.padding = tuple(2 * side for side in _sides(part.padding))


def _squeezes(part: nn.Module) -> bool:
    """True for timm's squeeze and excitation, which averages by a method and not by a module."""
    return type(part).__name__ in ("SqueezeExcite", "SEModule", "EffectiveSEModule")


def _average_every_second(part: nn.Module, rows: int, offset: int) -> None:
    """Let what averages a whole map average the places that the usual one has."""
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
