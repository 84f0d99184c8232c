"""Dist-CAM: the part of a query that makes it close to a reference, from pooled vectors and one matrix product.

A reference (a gallery image, or a class prototype) enters by its pooled vector alone. Each channel of the query's
response map gets a weight that is large where the two pooled vectors are close, and the weighted channels are summed:

    D = |GAP(S) - GAP(Q)|,   W = norm(1 / (D + eps)),   M = Σ_k W_k Q_k        [Dist-CAM] Eq. 4-6

What the paper leaves open is settled the same way for every weighting (docs/guides/explain.md): eps is tau medians of
D over the live channels; channels that are zero in both images take no part; a median of 0 is replaced by the mean, and
eps is at least tau · 1e-3 of the mean magnitude; the weight takes the sign of the reference's entry, and sign(0) = +1.

Maps come back raw: signed, at the response map's resolution, never min-maxed. Everything is differentiable. The region
of a match that answers the query is the same call with the roles swapped: the match's map, the query's pooled vector.
"""

from __future__ import annotations

import math
from typing import TypedDict, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import ShapeError
from ..inputs import (
    Metric,
    Norm,
    Weighting,
    at_least_float32,
    check_options,
    checked_magnitude,
    checked_mean,
    comparable,
    refuse_non_finite,
)

LINEAR = frozenset({"root_ratio", "dot", "dot_centered", "gradcam_cos"})  # their scale has a meaning: no `norm`
LITERAL_EPS = 1e-12
ROUNDING = 1e-3  # of the mean magnitude: below this a D is the rounding of half precision, not a difference
RARE = 0.1  # of the mean over channels: both ratios treat channels the gallery has less of as equally rare
DEAD = 1e-5  # of the largest magnitude: what counts as a channel that is zero
NO_DIRECTION = 1e-12  # a vector no longer than this counts as zero when directions are compared


class WeightOptions(TypedDict, total=False):
    """The options of `channel_weights`, which explains them."""

    metric: Metric
    weighting: Weighting
    tau: float
    norm: Norm
    mean: Tensor | None
    magnitude: Tensor | None


def dist_cam(
    response_map: Float[Tensor, "*b d h w"],
    references: Float[Tensor, "*b n d"],
    **options: Unpack[WeightOptions],
) -> Float[Tensor, "*b n h w"]:
    """Raw activation maps of a query, one for each of its references; all of them are one matrix product.

    `response_map` is the query's feature map, or what `fold` made of it, such that its spatial mean is the vector that
    is compared with the references. With `metric="cosine"` that vector and the references are scaled to length 1 here,
    and the map is divided by the vector's length. The arithmetic is float32 at least, also for half-precision input.

    The scale of the map: with `norm="sum"` and non-negative features it is a weighted mean of the channels, comparable
    across references. `dot` sums over its positions to the dot product (to the cosine, for that metric),
    `dot_centered` to the dot product with `references - mean`, `root_ratio` to that with its weights, and `gradcam_cos`
    to 0.

    Args:
        response_map: channels of the query; leading dimensions are a batch, and references are given for each entry.
        references: pooled vectors of gallery images or prototypes, in the space of `response_map`.
        options: `metric`, `weighting`, `tau`, `norm`, `mean` and `magnitude`, see `channel_weights`.

    Errors are those of `channel_weights`. Source: [Dist-CAM] Eq. 4-7.

    >>> query = torch.tensor([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 2.0]]])   # GAP = (1, 1)
    >>> reference = torch.tensor([[1.0, 3.0]])        # D = (0, 2), eps = 1: W = (1, 1/3) / (4/3) = (0.75, 0.25)
    >>> dist_cam(query, reference, metric="l2").tolist()
    [[[3.0, 0.0], [0.5, 0.5]]]
    """
    response, query, live = _query_side(response_map)
    return _raw_map(response, query, channel_weights(query, references, live=live, **options), options)


def contrast(
    response_map: Float[Tensor, "*b d h w"],
    references: Float[Tensor, "*b n d"],
    against: Float[Tensor, "*b m d"],
    **options: Unpack[WeightOptions],
) -> Float[Tensor, "*b n h w"]:
    """Signed maps of what pulls the query to each reference rather than to `against`; 0 where neither is favoured.

    The weights for the reference minus the mean weights for the m vectors of `against`: another match, another class's
    prototype, or a sample of the gallery. Against itself a reference's map is 0 everywhere. Not in the paper.
    Arguments and errors are those of `dist_cam`.

    >>> query = torch.tensor([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 2.0]]])
    >>> contrast(query, torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 1.0]]), metric="l2").tolist()
    [[[2.0, 0.0], [-1.0, -1.0]]]
    """
    response, query, live = _query_side(response_map)
    if against.ndim < 2 or against.shape[-2] == 0:
        raise ShapeError(
            f"`against` needs at least one vector, as (…, m, channels); it has shape {tuple(against.shape)}"
        )
    towards, away = (channel_weights(query, side, live=live, **options) for side in (references, against))
    return _raw_map(response, query, towards - away.mean(-2, keepdim=True), options)


def channel_weights(
    query: Float[Tensor, "*b d"],
    references: Float[Tensor, "*b n d"],
    *,
    metric: Metric = "cosine",
    weighting: Weighting = "dist",
    tau: float = 1.0,
    norm: Norm = "sum",
    mean: Float[Tensor, " d"] | None = None,
    magnitude: Float[Tensor, " d"] | None = None,
    live: Bool[Tensor, "*b d"] | None = None,
) -> Float[Tensor, "*b n d"]:
    """The weight of each channel of the query for each reference: W of Eq. 5, finite, at least float32.

    With q and s the two pooled vectors (of length 1 if the metric is cosine), D = |s - q| and mu = `mean`:

    - `root_ratio`: (f(s) - f(mu)) / √(a + e) with f(x) = sign(x) · (√(|x| + e) - √e), a = `magnitude`, and e a tenth of
      the mean of a. For non-negative features and a = mu this is √((s + e) / (mu + e)) - 1: how many times more of a
      channel the reference has than the gallery, in roots, and negative for less. The query does not enter.
    - `dist`: 1 / (D + eps), the paper's.
    - `dist*s`: |s| / (D + eps), so a channel counts that the reference has, not one that both lack.
    - `dist*excess`: (s - mu)₊ / (D + eps), so a channel counts that the reference has more of than the gallery's mean.
    - `log_ratio`: log((s + e) / (mu + e))₊ with e a tenth of the mean of mu: how many times more of a channel the
      reference has than the gallery's mean, in logarithms (positive pointwise mutual information, with the channel as
      the word and the reference as the text). Rare channels count as much as common ones. The query does not enter.
    - `dot`: s, the dot product's own weights; `dot_centered`: s - mu, what sets the reference apart from the gallery.
    - `gradcam_cos`: the gradient of the cosine, in closed form. It vanishes as the match gets better: like those of
      `dot_centered`, weights that are no more than the rounding of half precision are 0.
    - `caam`: one weight for all channels active in the query: the class-agnostic map, blind to the reference.

    `dist` to `log_ratio` take the sign of s and, like `caam`, are normalised over the live channels: `sum`, `l2` and
    `none` give the same image at another scale, `minmax` takes the smallest weight away from all, and `softmax`, which
    degenerates, leaves one channel of values that grow like 1 / D. The median is the lower one, an element of D.

    Args:
        query: pooled vector of the query, the spatial mean of its response map.
        references: pooled vectors of gallery images or prototypes.
        metric: "cosine" scales both to length 1 first; the others compare the vectors as they are.
        weighting: one of `WEIGHTINGS`.
        tau: how soft 1/D is, in medians of D: larger goes towards `caam`, smaller towards few channels, 0 is literal.
        norm: one of `NORMS`; not of `LINEAR` weightings, whose scale has a meaning.
        mean: the gallery's mean vector, where a weighting has mu. With the cosine metric it is the mean of the unit
            vectors, not scaled to length 1 itself. "root_ratio" takes the mean of the background as well.
        magnitude: the mean size of each channel in the gallery's vectors, for "root_ratio"; None: that of `mean`.
        live: which channels of the query's map are not zero everywhere; by default those whose pooled value is not.

    Raises:
        InputError: a value is not finite, an option is unknown, or `mean` is missing where it is needed.
        ShapeError: the channels or the leading dimensions do not agree.

    Source: [Dist-CAM] Eq. 4, 5.

    >>> channel_weights(torch.tensor([1.0, 1.0]), torch.tensor([[1.0, 3.0]]), metric="l2").tolist()
    [[0.75, 0.25]]
    """
    check_options(metric, weighting, norm, tau)
    query, references = comparable(query, references)
    mean = checked_mean(mean, weighting, metric, like=query)
    if metric == "cosine":
        query, references = query / length(query), references / length(references)
    active = (_is_alive(query.abs()) if live is None else live).unsqueeze(-2)
    query = query.unsqueeze(-2)
    alive = active | _is_alive(references.abs())

    if weighting == "root_ratio" and mean is not None:
        size = checked_magnitude(magnitude, like=mean)
        return _root_ratio(references, mean, size).masked_fill(~alive, 0)
    if weighting in LINEAR:
        weights, least = references if mean is None else references - mean, ROUNDING * length(references)
        if weighting == "gradcam_cos":  # d cos / d q = (s/|s| - cos · q/|q|) / |q|
            q, s = query / length(query), references / length(references)
            weights, least = (s - (s * q).sum(-1, keepdim=True) * q) / length(query), ROUNDING / length(query)
        return weights.masked_fill(~alive | (torch.linalg.vector_norm(weights, dim=-1, keepdim=True) <= least), 0)
    if weighting == "caam":
        return _normalised(torch.ones_like(references), active.expand_as(alive), norm)
    sign = torch.where(references < 0, -1.0, 1.0)
    if weighting == "log_ratio" and mean is not None:
        positive, usual = sign * references, (sign * mean).clamp(min=0)
        floor = _floor(usual, positive)
        return sign * _normalised(torch.log((positive + floor) / (usual + floor)).clamp(min=0), alive, norm)
    distance = (references - query).abs()  # Eq. 4
    size = torch.maximum(references.abs(), query.abs())
    closeness = 1 / (distance + _eps(distance, size, alive, tau))
    if weighting == "dist*s":
        closeness = closeness * references.abs()
    elif weighting == "dist*excess" and mean is not None:
        closeness = closeness * (sign * (references - mean)).clamp(min=0)
    return sign * _normalised(closeness, alive, norm)  # Eq. 5


def _root_ratio(references: Tensor, mean: Tensor, size: Tensor) -> Tensor:
    """Difference of signed roots, in roots of the channels' size; below the floor e all channels are equally rare."""
    floor = _floor(size, RARE * references.abs())
    root, base = (values.sign() * ((values.abs() + floor).sqrt() - floor.sqrt()) for values in (references, mean))
    return (root - base) / (size + floor).sqrt()


def _floor(size: Tensor, otherwise: Tensor) -> Tensor:
    floor = RARE * size.mean(-1, keepdim=True)
    return torch.where(floor > 0, floor, _positive(otherwise.mean(-1, keepdim=True)))


def _eps(distance: Tensor, size: Tensor, alive: Tensor, tau: float) -> Tensor | float:
    """The eps added to D, one number for each reference: tau medians, else tau means, and never less than rounding."""
    if tau == 0:
        return LITERAL_EPS
    n_alive = alive.sum(-1, keepdim=True).clamp(min=1)
    median = _lower_median(distance, alive, by_sorting=distance.device.type != "cpu")
    mean = (distance * alive).sum(-1, keepdim=True) / n_alive
    rounding = ROUNDING * (size * alive).sum(-1, keepdim=True) / n_alive
    typical = torch.where(median > 0, median, mean)  # NaN (no live channel) > 0 is false
    return (tau * _positive(torch.maximum(typical, rounding))).clamp(1e-30, 1e30)  # 1/eps stays finite, whatever tau


def _lower_median(distance: Tensor, alive: Tensor, *, by_sorting: bool) -> Tensor:
    """The lower median of the live entries, or something not above 0 where none is."""
    if not by_sorting:
        return distance.masked_fill(~alive, math.nan).nanmedian(dim=-1, keepdim=True).values
    ordered = torch.where(alive, distance, math.inf).sort(-1).values
    n_alive = alive.sum(-1, keepdim=True)
    return torch.where(n_alive > 0, ordered.gather(-1, (n_alive - 1).clamp(min=0) // 2), 0.0)


def _normalised(weights: Tensor, alive: Tensor, norm: Norm) -> Tensor:
    """Non-negative weights scaled over the live channels, 0 elsewhere; all 0 stays all 0."""
    if norm == "softmax":
        return weights.masked_fill(~alive, torch.finfo(weights.dtype).min).softmax(-1).masked_fill(~alive, 0)
    weights = weights.masked_fill(~alive, 0)
    if norm == "none" or weights.shape[-1] == 0:
        return weights
    weights = weights / _positive(weights.amax(-1, keepdim=True))  # so that no square or sum below can overflow
    if norm == "sum":
        return weights / _positive(weights.sum(-1, keepdim=True))
    if norm == "l2":
        return weights / _positive(torch.linalg.vector_norm(weights, dim=-1, keepdim=True))
    lowest = weights.masked_fill(~alive, 1.0).amin(-1, keepdim=True)
    is_flat = lowest == 1  # equal weights stay equal, not 0
    return torch.where(is_flat, weights, (weights - lowest) / _positive(1 - lowest)).masked_fill(~alive, 0)


def _positive(divisor: Tensor) -> Tensor:
    """The divisor, with 1 in place of 0."""
    return torch.where(divisor > 0, divisor, 1.0)


def length(vectors: Tensor) -> Tensor:
    """Euclidean length along the last dimension, which stays, with 1 in place of a length that gives no direction."""
    found = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(found > NO_DIRECTION, found, 1.0)


def _query_side(response_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The map in float32 or better, its spatial mean, and which channels are not zero everywhere."""
    if response_map.ndim < 3 or 0 in response_map.shape[-2:]:
        raise ShapeError(f"a response map has shape (…, channels, rows, columns); got {tuple(response_map.shape)}")
    response = at_least_float32("the response map", response_map)
    peak = response.detach().abs().amax((-2, -1))  # NaN and infinity survive it, so one pass serves two questions
    refuse_non_finite("the response map", peak)
    return response, response.mean((-2, -1)), _is_alive(peak)


def _is_alive(magnitude: Tensor) -> Tensor:
    """True where a channel is more than a trace, along the last dimension; nowhere if all is 0."""
    largest = magnitude.amax(-1, keepdim=True) if magnitude.shape[-1] else magnitude
    return magnitude > DEAD * largest


def _raw_map(response: Tensor, query: Tensor, weights: Tensor, options: WeightOptions) -> Tensor:
    """Eq. 6 in the metric's space: R is divided by the query's length for the cosine, by h·w where the total counts."""
    rows, columns = response.shape[-2:]
    maps = torch.matmul(weights, response.flatten(-2).to(weights.dtype))
    if options.get("metric", "cosine") == "cosine":
        maps = maps / length(query).unsqueeze(-1)
    if options.get("weighting") in LINEAR:
        maps = maps / (rows * columns)
    return maps.reshape(*maps.shape[:-1], rows, columns)
