"""Colours for maps: scales that keep their order for colour-blind readers and in grey print."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from ...errors import InputError, ShapeError

Colours = Literal["inferno", "viridis", "gray", "blue-orange"]
COLOUR_SCALES: tuple[Colours, ...] = get_args(Colours)

# Eleven colours at 0, 0.1, …, 1 of each scale; in between they are mixed. viridis and inferno are those of matplotlib,
# by N. Smith and S. van der Walt (CC0); blue-orange is for signed maps, with its lightest colour in the middle.
_ANCHORS: dict[Colours, str] = {
    "inferno": "000004 160b39 420a68 6a176e 932667 bc3754 dd513a f37819 fca50a f6d746 fcffa4",
    "viridis": "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725",
    "gray": "000000 1a1a1a 333333 4d4d4d 666666 808080 999999 b3b3b3 cccccc e6e6e6 ffffff",
    "blue-orange": "0b2a5b 16478c 2b69b5 5a93d0 a3c4e6 f2f2ee f4cf9a eaa24a d3761a a64d0b 6b2b06",
}


def colourise(
    heat_map: Float[Tensor, "h w"] | Float[NDArray[Any], "h w"], *, colours: Colours = "inferno"
) -> UInt8[NDArray[Any], "h w 3"]:
    """The map as RGB bytes, at its own resolution; values in [0, 1] run through the scale from dark to light.

    With "blue-orange" 0.5 is the neutral middle; `normalise(…, centred=True)` puts a signed map's zero there.

    >>> colourise(np.array([[0.0, 0.5, 1.0]]), colours="gray")[0].tolist()
    [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    """
    steps = np.rint(unit_array(heat_map) * 255).astype(np.intp)
    pixels: NDArray[np.uint8] = colour_table(colours)[steps]
    return pixels


@cache
def colour_table(colours: Colours) -> NDArray[np.uint8]:
    """256 colours from one end of the scale to the other, (256, 3)."""
    if colours not in _ANCHORS:
        raise InputError(f"colours={colours!r} is not known; choose one of {', '.join(COLOUR_SCALES)}")
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _ANCHORS[colours].split()], dtype=float)
    places = np.linspace(0, 1, 256)
    channels = [np.interp(places, np.linspace(0, 1, len(anchors)), anchors[:, channel]) for channel in range(3)]
    table: NDArray[np.uint8] = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    table.flags.writeable = False
    return table


def unit_array(heat_map: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """The map as a float64 array of shape (rows, columns), after a look that its values lie in [0, 1]."""
    raw = heat_map.detach().cpu().double().numpy() if isinstance(heat_map, Tensor) else heat_map
    values = np.asarray(raw, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ShapeError(f"one map of shape (rows, columns) is drawn at a time; got {values.shape}")
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN fails too
        raise InputError(
            f"a map to be drawn has values in [0, 1]; this one runs from {low:.4g} to {high:.4g}. "
            "Scale it first: distcam.explain.normalise(maps), with shared=True for one scale over all matches"
        )
    return values.clip(0, 1)
