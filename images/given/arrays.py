"""Arrays and tensors as images: rows, columns, channels of bytes, or of intensities in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ...errors import ImageError
from ..geometry import as_rgb

INTENSITIES = "taken as intensities in [0, 1], times 255"


def is_array(value: object) -> bool:
    """True of NumPy arrays and of what becomes one, such as tensors of torch; numbers are none."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and getattr(value, "ndim", 0) > 0


def is_of_floats(value: Any) -> bool:
    """True of an array whose numbers are floats."""
    return is_array(value) and "float" in str(value.dtype)


def numpy_of(value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """An array in the memory of this machine, without gradient; half precisions become float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if is_of_floats(value) and value.element_size() < 4 else value
    return np.asarray(value)


def image_of_array(value: Any, name: str = "the array") -> Image.Image:
    """The RGB image of an array (rows, columns), (rows, columns, 1, 3 or 4), or of a tensor (3, rows, columns).

    Numbers are bytes, or intensities in [0, 1], which are multiplied by 255 and rounded.

    Raises:
        ImageError: another shape, another kind of number, or intensities outside [0, 1].
    """
    array, is_tensor = numpy_of(value), hasattr(value, "permute")
    place, other = (0, 2) if is_tensor else (2, 0)  # of the channels, and where they stand elsewhere
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[place] not in (1, 3, 4)):
        order = "3, rows, columns" if is_tensor else "rows, columns, 3"
        turn = "permute(2, 0, 1)" if is_tensor else "transpose(1, 2, 0)"
        hint = f"; turn it by .{turn}" if array.ndim == 3 and array.shape[other] in (1, 3, 4) else ""
        raise ImageError(name, f"expected an image ({order}); got {array.dtype} {tuple(array.shape)}{hint}")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # written so that NaN is refused too
            reason = f"float values outside [0, 1] ({low:g} to {high:g}); expected intensities in [0, 1], or bytes,"
            raise ImageError(name, f"{reason} before any normalisation of a network's own")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(name, f"expected bytes (uint8) or floats in [0, 1]; got {array.dtype} {tuple(array.shape)}")
    array = np.moveaxis(array, 0, 2) if is_tensor and array.ndim == 3 else array
    return as_rgb(Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array)))
