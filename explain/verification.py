"""Pairs of images compared by lines: the scale that a set of images gives, and the number of inliers of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..images.geometry import Box
from ..metrics.fusion import NULL_SHARES, USUAL_NULL, LineScale
from .inputs import Metric
from .methods.lines import Places, find_lines

LEAST_SIMILAR = 3
SAMPLE = 40
"""Images that a scale is measured on."""


def measure_scale(
    fine: Float[Tensor, "b c h w"],
    response: Float[Tensor, "b d u v"],
    similarity: Float[Tensor, "b b"],
    *,
    layer: str,
    metric: Metric = "cosine",
    images: Sequence[Box | None] | None = None,
) -> LineScale:
    """The channel mean of fine maps, and the quantiles of inliers between each image and the three least similar to it.

    Args:
        fine: of a sample of the gallery.
        response: of the same images, see `fold`.
        similarity: of each image to each.
        layer: the fine maps' name.
        metric: as the gallery compares.
        images: where each lies on its map, see `Places.of`.
    """
    mean = fine.to(torch.float32).mean((0, 2, 3))
    count = len(fine)
    off = ~torch.eye(count, dtype=torch.bool)
    values = similarity[off].double() if count > 1 else torch.zeros(1, dtype=torch.double)
    spread = float(values.std(correction=0)) or 1.0
    each = zip(fine, response, images or [None] * count, strict=True)
    places = [Places.of(one, other, mean, image=image) for one, other, image in each]
    pairs = set()
    for image in range(count if count > 2 * LEAST_SIMILAR else 0):  # of fewer images none is unrelated
        order = similarity[image].argsort(stable=True)
        pairs |= {(min(image, other), max(image, other)) for other in order[:LEAST_SIMILAR].tolist() if other != image}
    inliers = [find_lines(places[one], places[other], metric=metric).inliers for one, other in sorted(pairs)]
    null = USUAL_NULL
    if inliers:
        median, high, highest = (int(np.quantile(inliers, share, method="higher")) for share in NULL_SHARES)
        null = (median, high, highest)
    return LineScale(layer, tuple(mean.tolist()), null, len(inliers), (float(values.mean()), spread))


def count_alike(method: str, query: Any, matches: Sequence[Any], *, metric: Metric = "cosine") -> list[int]:
    """The number of places that lie alike on a query and each match.

    Args:
        method: "lines" compares `Places`, one transform of a hundred lines; "lightglue" and "loftr" compare image files
            or Pillow images by kornia's matchers, one homography of all their pairs.
        query: one of them.
        matches: several.
        metric: as the gallery compares, for lines.
    """
    if method == "lines":
        return [find_lines(query, match, metric=metric).inliers for match in matches]
    from .kornia_matchers import matcher_of

    matcher = matcher_of(method)
    return [matcher(query, match) for match in matches]


def parse_verify(value: int | str) -> tuple[str, int]:
    """Method and number of matches of `verify`: 20, "lines", "lightglue:10".

    >>> parse_verify("lines"), parse_verify(5), parse_verify("loftr:10")
    (('lines', 20), ('lines', 5), ('loftr', 10))
    """
    name, colon, number = ("lines", ":", str(value)) if str(value).isdecimal() else str(value).partition(":")
    if name not in VERIFIERS or (colon and not number.isdecimal()):
        raise InputError(
            f"`verify={value!r}` is not understood; expected how many matches (20), one of {', '.join(VERIFIERS)}, or "
            "both (lines:20)"
        )
    most = int(number) if colon else 20
    if most < 2:
        raise InputError(f"`verify={value!r}` leaves nothing to sort anew; expected 2 matches or more")
    return name, most


VERIFIERS = ("lines", "lightglue", "loftr")
