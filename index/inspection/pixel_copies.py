"""A second look at pairs that the index proposes: is one image the other, or a part of it, pixel for pixel?

Small grey copies are compared by normalised cross-correlation (Lewis 1995) at every place and at scales from 1 to 0.35,
so that resizing, recompression and brightness do not matter, and the place says which part of one the other shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import irfft2, rfft2

from ...errors import ImageError
from ...images import read_image
from ...threads import in_threads

if TYPE_CHECKING:
    from ...progress import Progress

SIDE = 48
_SCALES = tuple(float(scale) for scale in 0.35 ** np.linspace(0.1, 1, 11))
_BLOCK = 512  # pairs at once: 20 MB
_LEAST_CONTRAST = 3.0  # grey levels, standard deviation; flatter images are like any other

SmallImages = NDArray[np.float32]
Pairs = NDArray[np.int64]


class GreyCopies(NamedTuple):
    """Small grey copies (n, 48, 48) of images, stretched to squares, and width over height, 0 where unreadable."""

    grey: NDArray[np.uint8]
    aspect: NDArray[np.float64]

    @classmethod
    def of(cls, files: Sequence[Path], progress: Progress | None = None) -> GreyCopies:
        """Those of some files, read by threads."""
        grey, aspect = np.zeros((len(files), SIDE, SIDE), np.uint8), np.zeros(len(files))

        def look(row: int) -> None:
            with suppress(ImageError, OSError):
                opened = read_image(files[row])
                grey[row] = np.asarray(opened.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
                aspect[row] = opened.width / opened.height

        for _ in in_threads(look, range(len(files)), progress=progress):
            pass
        return cls(grey, aspect)


class Overlaps(NamedTuple):
    """Of pairs, evidence (p,) of the second on all of the first, and at its best place as a part; and that (p, 4).

    Evidence is −a log(1 − r²) of a correlation r over the share a of the first image: the likelihood ratio of
    "the same" against "unrelated" for as many Gaussian pixels; much of an image counts for more than a patch of sky.
    """

    whole: NDArray[np.float64]
    part: NDArray[np.float64]
    place: NDArray[np.float64]

    @classmethod
    def of(cls, looks: GreyCopies, pairs: Pairs, progress: Progress | None = None) -> Overlaps:
        """Those of pairs (p, 2) of rows of readable images."""
        evidence, place = np.zeros((2, len(pairs))), np.zeros((len(pairs), 4))
        # a part keeps its proportions: if it is wider than the whole, it is less high; in steps of a fifth
        relative = np.log(looks.aspect[pairs[:, 1]] / looks.aspect[pairs[:, 0]]) / np.log(1.2)
        steps = np.clip(np.rint(relative), -6, 6)
        done = 0
        for step in np.unique(steps).tolist():
            rows = np.flatnonzero(steps == step)
            for some in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
                first, second = looks.grey[pairs[some].T].astype(np.float32)
                whole = _Whole.of(first)
                evidence[0, some] = _evidence(whole.best_places(second, (SIDE, SIDE))[0], 1.0)
                for scale in _SCALES:
                    height, width = (round(SIDE * scale * min(1.0, 1.2**way)) for way in (-step, step))
                    correlation, top, left = whole.best_places(second, (height, width))
                    found = _evidence(correlation, height * width / SIDE**2)
                    better = found > evidence[1, some]
                    evidence[1, some[better]] = found[better]
                    edges = np.stack([left, top, left + width, top + height], 1) / SIDE
                    place[some[better]] = edges[better]
                done += len(some)
                if progress is not None:
                    progress(done, len(pairs))
        return cls(evidence[0], evidence[1], place)


def _evidence(correlation: SmallImages, share: float) -> SmallImages:
    found: SmallImages = -share * np.log(np.maximum(1 - np.maximum(correlation, 0) ** 2, np.float32(1e-4)))
    return found


class _Whole(NamedTuple):
    """Images (m, 48, 48) that others are placed on: transforms, and sums from the corner of values and squares."""

    transform: NDArray[np.complex64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, grey: SmallImages) -> _Whole:
        """Those of some images."""
        padded = np.pad(grey.astype(np.float64), ((0, 0), (1, 0), (1, 0)))
        return cls(rfft2(grey), padded.cumsum(1).cumsum(2), (padded**2).cumsum(1).cumsum(2))

    def best_places(self, grey: SmallImages, size: tuple[int, int]) -> tuple[SmallImages, Pairs, Pairs]:
        """Best correlation of each of other images, shrunk to a size, with a window; and top and left of the window."""
        height, width = size
        part = _shrinking(height) @ grey @ _shrinking(width).T
        part -= part.mean((1, 2), keepdims=True)
        spectrum = self.transform * rfft2(part, s=(SIDE, SIDE)).conj()
        product = irfft2(spectrum, s=(SIDE, SIDE))[:, : SIDE - height + 1, : SIDE - width + 1]
        total, squares = (_window_sums(sums, size) for sums in (self.sums, self.squares))
        floor = height * width * _LEAST_CONTRAST**2
        spread = (squares - total**2 / (height * width)).astype(np.float32)
        energy = (part**2).sum((1, 2))[:, None, None]
        root = np.sqrt(np.maximum(spread, floor) * np.maximum(energy, floor))
        flat = (product / root).reshape(len(grey), -1)
        place = flat.argmax(1)
        return flat[np.arange(len(grey)), place], place // product.shape[2], place % product.shape[2]


def _window_sums(sums: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Sums over all windows of a size, of sums from the corner."""
    height, width = size
    found: NDArray[np.float64] = (
        sums[:, height:, width:] - sums[:, :-height, width:] - sums[:, height:, :-width] + sums[:, :-height, :-width]
    )
    return found


def _shrinking(size: int) -> SmallImages:
    """The matrix (size, 48) that averages 48 pixels into fewer, by area."""
    edges = np.linspace(0, SIDE, size + 1)
    pixels = np.arange(SIDE)
    shares = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    found: SmallImages = (np.maximum(shares, 0) * size / SIDE).astype(np.float32)
    return found
