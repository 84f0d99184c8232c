"""Values written on the command line: boxes, points, masks, names of classes, options of a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from ..images import Box


def read_box(text: str) -> Box:
    """`x1,y1,x2,y2` in pixels of an image; right and bottom are exclusive."""
    from ..images import Box

    left, top, right, bottom = _numbers(text, 4, "x1,y1,x2,y2")
    if right <= left or bottom <= top:
        raise InputError(f"the box {text} is empty; expected x1,y1,x2,y2 with x1 < x2 and y1 < y2")
    return Box(left, top, right, bottom)


def read_point(text: str) -> tuple[float, float]:
    """`x,y` in pixels of an image."""
    x, y = _numbers(text, 2, "x,y")
    return x, y


def read_mask(path: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """An image as a mask: everything that is not black."""
    from ..images.masks import read_mask

    return read_mask(path)


def class_names(path: Path) -> list[str]:
    """The lines of a text file, without empty ones at its end."""
    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8 ({error.reason})") from error


def option_values(
    given: Sequence[str], methods: Sequence[str], *, defaults: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """For each method the options that it takes of those that were given as `name=value`."""
    from ..explain import METHODS

    taken = {method: {k: v for k, v in defaults.items() if k in METHODS[method].options} for method in methods}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option {text!r} should be name=value, such as window=3")
        takers = [method for method in methods if name in METHODS[method].options]
        if not takers:
            known = sorted({option for method in methods for option in METHODS[method].options})
            raise InputError(
                f"none of {', '.join(methods)} takes {name!r}; they take {', '.join(known) or 'no options'}"
            )
        for method in takers:
            taken[method][name] = _value(value)
    return taken


def _value(text: str) -> Any:
    """A number, true, false, none, or the word itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _numbers(text: str, n: int, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != n or not all(map(math.isfinite, values)):
        raise InputError(f"expected {form} in pixels of the image, got {text!r}")
    return values
