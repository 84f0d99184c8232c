"""Masks of maps: where a map is high, as a PNG of one bit per pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from distcam.errors import InputError, ShapeError
from distcam.explain import is_constant, normalise, rectify, upsample
from distcam.files import replacing
from distcam.images import Transform


def mask_of_map(heat: Tensor, *, threshold: float, transform: Transform, size: tuple[int, int]) -> np.ndarray:
    """Where a map (h, w) is at least `threshold` of its range, in pixels of an image of `size` (width, height).

    The map covers `transform.view(*size)`; beyond it the mask is empty. Negative values of the map count as 0. The mask
    of a constant map is empty: it points nowhere.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"the threshold is a fraction of the map's range, from 0 to 1; got {threshold}")
    width, height = size
    if bool(is_constant(heat)):
        return np.zeros((height, width), dtype=bool)
    seen = normalise(rectify(upsample(heat, (transform.height, transform.width))))
    view = transform.view(width, height)
    rows = np.floor((np.arange(height) + 0.5 - view.top) / view.height * transform.height).astype(int)
    columns = np.floor((np.arange(width) + 0.5 - view.left) / view.width * transform.width).astype(int)
    inside = ((rows >= 0) & (rows < transform.height))[:, None] & (columns >= 0) & (columns < transform.width)
    values = seen.numpy()[rows.clip(0, transform.height - 1)[:, None], columns.clip(0, transform.width - 1)]
    return np.asarray((values >= threshold) & inside)


def write_mask(mask: np.ndarray, file: Path) -> Path:
    """The mask (rows, columns) as a PNG of one bit per pixel; written aside, then renamed."""
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ShapeError(f"a mask is a boolean array (rows, columns); got {mask.dtype} {mask.shape}")
    with replacing(file) as aside:
        Image.fromarray(mask).save(aside, format="PNG")
    return file
