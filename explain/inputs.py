"""Options of the functions on pooled vectors, and the checks at the public edge."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from ..metrics import METRICS, Metric
from .weightings import NEEDS_MEAN, WEIGHTINGS, Weighting

__all__ = ["METRICS", "NORMS", "WEIGHTINGS", "Metric", "Norm", "Weighting"]

Norm = Literal["sum", "l2", "minmax", "softmax", "none"]
NORMS: tuple[Norm, ...] = get_args(Norm)


def check_options(metric: str, weighting: str, norm: str, tau: float) -> None:
    """Refuse what is not one of the documented options."""
    options = {"metric": (metric, METRICS), "weighting": (weighting, WEIGHTINGS), "norm": (norm, NORMS)}
    for name, (value, choices) in options.items():
        if value not in choices:
            raise InputError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}")
    if not (math.isfinite(tau) and tau >= 0):
        raise InputError(f"tau={tau} cannot be used; it is a finite number, 0 or more (1 is the default)")


def comparable(query: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Both vectors in one dtype, float32 or better, after their shapes, device and values were looked at."""
    fits = query.ndim >= 1 and references.ndim == query.ndim + 1
    if not fits or references.shape[:-2] != query.shape[:-1] or references.shape[-1] != query.shape[-1]:
        raise ShapeError(
            f"the query's pooled vectors have shape {tuple(query.shape)}, so the references need "
            f"{(*query.shape[:-1], 'n', *query.shape[-1:])}; got {tuple(references.shape)}. "
            "Vectors of another space (before or after the head) do not fit; `expand` references that all queries share"
        )
    if references.device != query.device:
        raise InputError(f"the query is on {query.device}, the references on {references.device}; move one of them")
    query, references = at_least_float32("the query", query), at_least_float32("the references", references)
    refuse_non_finite("the query's pooled vector", query)
    refuse_non_finite("the references", references)
    dtype = torch.promote_types(query.dtype, references.dtype)
    return query.to(dtype), references.to(dtype)


def at_least_float32(name: str, values: Tensor) -> Tensor:
    """Half precision becomes float32, float32 and float64 stay."""
    if not values.is_floating_point():
        raise InputError(f"{name} should be floating point, not {values.dtype}; call .float() on it")
    return values.to(torch.promote_types(values.dtype, torch.float32))


def refuse_non_finite(name: str, values: Tensor) -> None:
    """No map is made of NaN or infinity."""
    if values.numel() and not torch.stack(values.detach().aminmax()).isfinite().all():  # one pass; NaN is both
        raise InputError(f"NaN or infinite values in {name}, so no map can be made; look at the encoder's output")


def checked_mean(mean: Tensor | None, weighting: Weighting, metric: Metric, *, like: Tensor) -> Tensor | None:
    """The gallery's mean vector where the weighting needs it, else None; a border's mean may be longer than 1."""
    if weighting not in NEEDS_MEAN:
        return None
    if mean is None:
        raise InputError(f"weighting={weighting!r} needs `mean`, the mean vector of the gallery")
    if mean.shape != like.shape[-1:]:
        raise ShapeError(
            f"`mean` should have shape {tuple(like.shape[-1:])}, one value a channel; got {tuple(mean.shape)}"
        )
    mean = at_least_float32("`mean`", mean).to(like)
    refuse_non_finite("`mean`", mean)
    if metric == "cosine" and weighting != "root_ratio" and float(torch.linalg.vector_norm(mean)) > 1.001:
        raise InputError(
            "with metric='cosine', `mean` is the mean of unit vectors and never longer than 1; this one is longer"
        )
    return mean


def checked_magnitude(magnitude: Tensor | None, *, like: Tensor) -> Tensor:
    """The mean size of each channel, by default that of the mean vector `like`; never negative."""
    if magnitude is None:
        return like.abs()
    if magnitude.shape != like.shape:
        raise ShapeError(f"`magnitude` should have shape {tuple(like.shape)}, as `mean`; got {tuple(magnitude.shape)}")
    magnitude = at_least_float32("`magnitude`", magnitude).to(like)
    refuse_non_finite("`magnitude`", magnitude)
    if bool((magnitude < 0).any()):
        raise InputError("`magnitude` is a mean of sizes and never negative; this one is below 0")
    return magnitude
