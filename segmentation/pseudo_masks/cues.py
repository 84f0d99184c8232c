"""From class scores to what a segmentation network can learn from: sure pixels alone (cues), or whole pseudo masks.

Scores are those of `class_scores`: in an image's own pixels, each class's maximum 1, classes that are not shown 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from ...errors import InputError, ShapeError
from ...images.masks import VOID, Mask
from ...training.recipes.tables import BelowOne, Table


class CueSettings(Table):
    """The pixels that count as sure.

    Attributes:
        foreground: pixels above this share of a map's maximum are cues of its class.
        conflicts: the winner of a pixel that is above the threshold for several classes: the class whose own region is
            "smaller", or the one with the higher "score".
        background: source of the background's cues. "low": pixels where no class reaches `low`. "saliency": the
            `share` of the pixels that stand out least, and all that do so as little; among those without a cue. "none":
            there are none.
        low: share of the maps' maximum.
        share: of the image's pixels.

    Source: [GAIN] §4: 20 % of the maximum; as in Kolesnikov and Lampert, Seed, Expand and Constrain, 2016, the smaller
        region wins, and a tenth of the image with the least saliency is background.
    """

    foreground: BelowOne = 0.2
    conflicts: Literal["smaller", "score"] = "smaller"
    background: Literal["low", "saliency", "none"] = "low"
    low: BelowOne = 0.05
    share: BelowOne = 0.1

    def check(self) -> None:
        """Refuse what does not fit together."""
        if self.background == "low" and self.low > self.foreground:
            raise InputError(f"low = {self.low} lies above foreground = {self.foreground}; pixels would be both")

    def unused(self) -> dict[str, str]:
        """Keys that this source of the background's cues does not use."""
        kinds = {"low": "low", "share": "saliency"}
        return {key: f"background {self.background!r}" for key, kind in kinds.items() if kind != self.background}


def make_cues(
    scores: Float[np.ndarray, "c h w"],
    *,
    settings: CueSettings | None = None,
    image: Image.Image | None = None,
    saliency: Float[np.ndarray, "h w"] | None = None,
) -> Mask:
    """A mask of the sure pixels: 0 background, c + 1 class c, 255 undecided.

    Args:
        scores: see the module's text.
        settings: `CueSettings()` if left out.
        image: the image, for background="saliency".
        saliency: any map that is high on objects, in place of `border_contrast` of the image.

    Raises:
        InputError: background="saliency" without an image or a map.
        ShapeError: these are not of the scores' size.
    """
    settings = settings or CueSettings()
    cues = foreground_cues(scores, threshold=settings.foreground, conflicts=settings.conflicts)
    free = cues == VOID
    if settings.background == "low":
        cues[free & (scores.max(0) <= settings.low * scores.max(initial=0))] = 0
    elif settings.background == "saliency":
        if saliency is None:
            if image is None:
                raise InputError('background="saliency" needs the image, or a map of what stands out in it')
            saliency = border_contrast(image)
        if saliency.shape != cues.shape:
            raise ShapeError(
                f"expected the image or its saliency in the scores' size {cues.shape}, got {saliency.shape}"
            )
        count = round(settings.share * saliency.size)
        if count:
            limit = np.partition(saliency.ravel(), count - 1)[count - 1]
            cues[free & (saliency <= limit)] = 0
    return cues


def foreground_cues(
    scores: Float[np.ndarray, "c h w"], *, threshold: float = 0.2, conflicts: Literal["smaller", "score"] = "smaller"
) -> Mask:
    """A mask with c + 1 where class c is above `threshold` of its maximum, and 255 elsewhere.

    Of two regions of one size the earlier class wins.

    >>> foreground_cues(np.array([[[1.0, 0.9, 0.3, 0.0]], [[0.0, 0.1, 1.0, 0.0]]])).tolist()
    [[1, 1, 2, 255]]
    """
    most = scores.max((1, 2), keepdims=True)
    inside: Bool[np.ndarray, "c h w"] = (scores > threshold * most) & (most > 0)
    strength = scores if conflicts == "score" else -inside.sum((1, 2), keepdims=True)
    best = np.where(inside, strength, -np.inf).argmax(0) + 1
    return np.where(inside.any(0), best, VOID).astype(np.uint8)


def pseudo_mask(
    scores: Float[np.ndarray, "c h w"],
    *,
    beta: float | Float[np.ndarray, "h w"] = 0.2,
    margin: float = 0.0,
) -> Mask:
    """The argmax over the background's score β and those of the classes; at a tie the background wins.

    Args:
        scores: see the module's text.
        beta: a number, or a score for every pixel.
        margin: pixels whose best class and background differ by less are undecided (255).

    >>> pseudo_mask(np.array([[[0.9, 0.3, 0.1]], [[0.0, 0.0, 0.5]]]), beta=0.3).tolist()
    [[1, 0, 2]]
    """
    best = scores.max(0)
    decided = np.where(best > beta, scores.argmax(0) + 1, 0).astype(np.uint8)
    if margin:
        decided[np.abs(best - beta) < margin] = VOID
    return decided


def border_contrast(image: Image.Image, *, side: int = 64, border: float = 0.08) -> Float[np.ndarray, "h w"]:
    """Distance of each pixel's colour from those at the image's border, in [0, 1]: a saliency that learns nothing.

    Colours are compared in a copy of the image `side` pixels wide and high; a pixel's distance is that to the nearest
    of sixteen mean colours along the border, of strips `border` of the side thick. Objects that touch the border are
    lost on it.
    """
    small = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BOX), dtype=float) / 255
    thick = max(round(border * side), 1)
    strips = ((small[:thick], 1), (small[-thick:], 1), (small[:, :thick], 0), (small[:, -thick:], 0))
    means = np.stack([part.mean((0, 1)) for strip, axis in strips for part in np.array_split(strip, 4, axis=axis)])
    distance = np.sqrt(((small[:, :, None] - means) ** 2).sum(-1)).min(-1)
    distance = distance / max(distance.max(), 1e-12)
    enlarged = Image.fromarray(distance.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    return np.asarray(enlarged, dtype=float)
