"""Facts in the manifest by which matches are explained: the mean background, and a weighting that was chosen."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Background:
    """Mean over images of the border of their response maps, each divided by its vector's length for the cosine.

    An image's own share is not kept: images that leave take the mean with them, as if they were like those that stay.
    """

    images: int  # how many images the mean stands for
    mean: str  # d numbers, little-endian float32 in base64

    def __post_init__(self) -> None:
        if self.images < 0 or not np.isfinite(self.vector).all():
            raise ValueError("the background is not finite, or that of fewer images than none")

    @property
    def vector(self) -> NDArray[np.float32]:
        """The mean, (d,)."""
        return np.frombuffer(base64.b64decode(self.mean, validate=True), "<f4").astype(np.float32)

    @classmethod
    def after(
        cls, old: Background | None, borders: Sequence[NDArray[np.float32]], *, moved: int, left: int
    ) -> Background | None:
        """The background once images with these borders, (n, d), came, and `left` others went.

        `moved` rows came without a border; of a gallery that has a background they were in it under another name.
        """
        n_new = sum(len(border) for border in borders)
        if old is None and (moved or not n_new):
            return None
        n_old = 0 if old is None else max(0, old.images - max(0, left - moved))
        if old is not None and not n_old + n_new:
            return cls(0, old.mean)
        total: NDArray[np.float64] = sum(border.sum(axis=0, dtype=np.float64) for border in borders)
        total = total if old is None else total + n_old * old.vector.astype(np.float64)
        mean = (total / (n_old + n_new)).astype("<f4")
        return cls(n_old + n_new, base64.b64encode(mean.tobytes()).decode("ascii"))


@dataclass(frozen=True)
class MapChoice:
    """A weighting and the measurements it was chosen by; `distcam benchmark explanations` says what they mean."""

    weighting: str  # one of `WEIGHTINGS`
    mean: str  # what of the gallery `root_ratio` takes off, see `Surroundings`; "auto" for the others
    right_of_two: float  # share of composites of two in which its map was higher on the photograph asked for
    default_right_of_two: float  # the same of distcam's default
    lead_low: float  # end of the paired 95 % interval of the difference
    lead_high: float  # the other end
    composites: int
    generation: int  # of the gallery at that time

    def __str__(self) -> str:
        """One sentence."""
        words = self.weighting + (f" (mean {self.mean})" if self.mean != "auto" else "")
        return (
            f"matches are explained by {words}: right in {self.right_of_two:.3f} of {self.composites} composites of "
            f"two, distcam's default in {self.default_right_of_two:.3f} (difference [{self.lead_low:+.3f}, "
            f"{self.lead_high:+.3f}])"
        )
