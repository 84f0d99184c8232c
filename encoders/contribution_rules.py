"""Rules by which a contribution of places passes a function of torch; a function without one ends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .contributions import (
    N_ROWS,
    Call,
    Contribution,
    Following,
    Rule,
    attended,
    multi_head,
    row_of,
    scaled_dot_product,
    shares_of,
    softmax,
)


def _same(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """Functions that move or copy values and keep a row's features in their order; of properties T, mT and data."""
    output = func(*args, **kwargs)
    owner = getattr(getattr(func, "__self__", None), "__name__", "")
    if func.__name__ == "__get__" and owner not in ("T", "mT", "data"):
        return output
    if isinstance(output, Tensor) and isinstance(args[0], Tensor):
        mode.mark(output, mode.of(args[0]))
        if (shares := shares_of(mode, args[0])) is not None and output.shape == shares.shape:
            output._shares = (mode, output)  # type: ignore[attr-defined]
    return output


def _indexed(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """`x[:, 0]`, `x.select(1, 0)` and kin: the row of one token, or what leaves rows as they are."""
    output, tensor, index = func(*args, **kwargs), args[0], args[1:]
    if func.__name__ == "select":
        index = (*[slice(None)] * (index[0] % tensor.ndim), index[1]) if len(index) == 2 else ("by keyword",)
    elif isinstance(index[0], tuple):
        (index,) = index
    if mode.of(tensor) is None or not all(each in (None, Ellipsis) or type(each) in (int, slice) for each in index):
        return output
    steps = [each for each in index if each is not None]
    if Ellipsis in steps:
        at = steps.index(Ellipsis)
        steps[at : at + 1] = [slice(None)] * (tensor.ndim - len(steps) + 1)
    return mode.mark(output, _at(mode, tensor, steps))


def _at(mode: Following, tensor: Tensor, steps: list[Any]) -> Contribution | None:
    """The contribution behind a step along each of the first axes; None if features or later tokens are cut out."""
    found, row = mode.of(tensor), 0
    assert found is not None
    for axis, step in enumerate(steps):
        length, is_token = tensor.shape[axis], tensor.ndim == 3 and axis == mode.token_axis(tensor)
        if type(step) is int:
            if not is_token and length > 1:
                return None
            row = row or step % length
        elif step == slice(None):  # not by its indices, which would fix the length of an export's batch
            continue
        elif step.indices(length) != (0, length, 1) and not (is_token and step.indices(length)[::2] == (0, 1)):
            return None
    if not row:
        return found
    of_row, first_rows = found.of_row, found.first_rows
    first_rows = None if first_rows is None else first_rows[:, row:]
    return replace(found, of_row=lambda _: of_row(row), first_rows=first_rows)


def _projected(mode: Following, tensor: Tensor, weight: Tensor) -> Contribution | None:
    """The contribution behind a matrix (out, in); None if what enters is not the attention's output as it was read."""
    found = mode.of(tensor)
    if found is None:
        return None
    if found.first_rows is not None:
        rows = mode.rows(tensor)[:, : found.first_rows.shape[1]]
        expected = found.first_rows[:, : rows.shape[1]]
        is_traced = torch.compiler.is_exporting()  # tensors without values: an export is checked as a whole
        if rows.shape != expected.shape or not (is_traced or torch.allclose(rows, expected, rtol=1e-2, atol=1e-6)):
            return None
    return found.then(lambda parts, _: parts @ weight.float().mT)


def _linear(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """A matrix, or a convolution: its map may be the grid of the tokens, of pooled values it is a matrix."""
    output, weight = func(*args, **kwargs), args[1] if len(args) > 1 else kwargs["weight"]
    if func.__name__ == "linear":
        return mode.mark(output, _projected(mode, args[0], weight))
    if output.ndim == 4 and output.shape[0] == mode.n_images:
        mode.grids.append((output.shape[2], output.shape[3]))
    is_matrix = weight[0, 0].numel() == 1 and weight.shape[1] == args[0].shape[1] and output[0, 0].numel() == 1
    return mode.mark(output, _projected(mode, args[0], weight.flatten(1)) if is_matrix else None)


def _multiplied(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """A matrix product: with a matrix of weights, or of an attention's shares with its values."""
    left, right = args[:2]
    shares, output = shares_of(mode, left), None
    if shares is not None:
        output, first = func(*args, **kwargs), shares[:, :, :N_ROWS].float().clone()

        def of_row(row: int) -> Tensor:
            return row_of(first.flatten(0, 1), row).view(*shares.shape[:2], -1).mT

        return mode.mark(output, attended(mode, of_row, right, output, n_queries=left.shape[-2]))
    found = _projected(mode, left, right.mT) if right.ndim == 2 and mode.of(right) is None else None
    return mode.mark(func(*args, **kwargs), found)


def _added(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """A sum or difference."""
    left, right = args[:2]
    sign = -1 if func.__name__.startswith("sub") else 1
    one, other = (mode.of(each) if isinstance(each, Tensor) else None for each in (left, right))
    output = func(*args, **kwargs)
    if one is None and other is None:
        return output
    if kwargs.get("alpha", 1) != 1 or any(
        found is not None and each.shape != output.shape for each, found in ((left, one), (right, other))
    ):
        return mode.mark(output, None)
    if other is not None and sign < 0:
        other = other.then(lambda parts, _: -parts)
    if one is not None and other is not None:
        return mode.mark(output, mode.computed(one.plus(other)))
    beside = right if other is None else left
    is_bias = not isinstance(beside, Tensor) or beside.ndim <= 1
    found = (one or other).then(lambda parts, _: parts)  # type: ignore[union-attr]
    return mode.mark(output, mode.computed(replace(found, is_whole=found.is_whole and is_bias)))


def _scaled(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """A product or quotient with a number, one value for each feature, or one for each image."""
    left, right = args[:2]
    found = mode.of(left) if isinstance(left, Tensor) else None
    tensor, factor = left, right
    if found is None and isinstance(right, Tensor) and not func.__name__.startswith("div"):
        found, tensor, factor = mode.of(right), right, left
    if found is None:
        return func(*args, **kwargs)
    by = _factor(mode, tensor, factor)
    output = func(*args, **kwargs)
    if by is None or output.shape != tensor.shape or kwargs:
        return mode.mark(output, None)
    if func.__name__.startswith("div"):
        by = 1 / by
    return mode.mark(output, found.then(lambda parts, _: parts * by))


def _factor(mode: Following, tensor: Tensor, factor: Any) -> Any:
    """The factor as parts (b, places, d) take it; None if it is none, or differs from token to token."""
    if not isinstance(factor, Tensor):
        return float(factor)
    width = tensor[0].numel() if tensor.ndim != 3 else tensor.shape[-1]
    if mode.of(factor) is not None:
        return None
    if factor.numel() == 1:
        return factor.detach().float().reshape(())
    if factor.ndim == tensor.ndim and factor.shape[0] == mode.n_images and factor[0].numel() == 1:
        return factor.float().reshape(-1, 1, 1).clone()
    is_of_features = factor.numel() == width and (tensor.ndim != 3 or factor.shape[-1] == width)
    return factor.float().reshape(-1) if is_of_features else None  # else one for each token, even of as many features


def _token_norm(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """A layer norm or RMS norm over the features of a token, its spread held; the mean is linear."""
    is_rms = func.__name__ == "rms_norm"
    names = ("input", "normalized_shape", "weight", "eps") if is_rms else _LAYER_NORM
    given = dict(zip(names, args, strict=False), **kwargs)
    if (found := mode.of(given["input"])) is None or len(given["normalized_shape"]) != 1:
        return mode.mark(func(*args, **kwargs), None)
    rows, weight, eps = mode.rows(given["input"]), given.get("weight"), given.get("eps", None if is_rms else 1e-5)
    eps = torch.finfo(given["input"].dtype).eps if eps is None else eps

    def normed(parts: Tensor, row: int) -> Tensor:
        own = row_of(rows, row)
        centre = 0 if is_rms else own.mean(-1, keepdim=True)
        scale: Tensor = ((own - centre).square().mean(-1, keepdim=True) + eps).rsqrt()
        scale = scale if weight is None else scale * weight.float()
        return (parts if is_rms else parts - parts.mean(-1, keepdim=True)) * scale

    return mode.mark(func(*args, **kwargs), found.then(normed))


def _batch_norm(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    given = dict(zip(_BATCH_NORM, args, strict=False), **kwargs)
    if (found := mode.of(given["input"])) is None or given.get("training") or given["running_var"] is None:
        return mode.mark(func(*args, **kwargs), None)
    scale = (given["running_var"].float() + given.get("eps", 1e-5)).rsqrt()
    scale = scale if given.get("weight") is None else scale * given["weight"].float()
    return mode.mark(func(*args, **kwargs), found.then(lambda parts, _: parts * scale))


def _normalised(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """Vectors brought to length 1, the length held."""
    if (found := mode.of(args[0])) is None or args[1:2] not in ((), (2,), (2.0,)):
        return mode.mark(func(*args, **kwargs), None)
    rows = mode.rows(args[0])

    def shortened(parts: Tensor, row: int) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(row_of(rows, row), dim=-1, keepdim=True)
        return parts / length.clamp(min=1e-12)

    return mode.mark(func(*args, **kwargs), found.then(shortened))


def _activated(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """An activation: it ends a contribution, or passes it on by its slope."""
    found = mode.of(args[0]) if mode.tangent else None
    if found is None:
        return mode.mark(func(*args, **kwargs), None)
    rows = mode.rows(args[0])
    with torch.inference_mode(False), torch.enable_grad():
        at = rows.clone().requires_grad_()
        (slopes,) = torch.autograd.grad(func(at.clone(), *args[1:], **kwargs).sum(), at)
    return mode.mark(func(*args, **kwargs), found.then(lambda parts, row: parts * row_of(slopes, row)))


def _joined(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """Vectors one behind the other, or tokens of which the first keep their rows."""
    output, parts = func(*args, **kwargs), args[0]
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))) % output.ndim
    found = [mode.of(part) for part in parts]
    if output.ndim == 3 and axis == mode.token_axis(output):
        return mode.mark(output, found[0])
    known = [each for each in found if each is not None]
    if axis != output.ndim - 1 or not known or len({each.shape for each in known}) > 1:
        return mode.mark(output, None)
    widths, places = [part.shape[-1] for part in parts], known[0].shape[0] * known[0].shape[1]

    def of_row(row: int) -> Tensor:
        zero = torch.zeros(mode.n_images, places, 1, device=output.device)
        each = [
            zero.expand(-1, -1, width) if one is None else one.of_row(row)
            for one, width in zip(found, widths, strict=True)
        ]
        return torch.cat(each, -1)

    is_whole = len(known) == len(found) and all(each.is_whole for each in known)
    return mode.mark(output, Contribution(of_row, known[0].shape, is_whole, sum(each.n_followed for each in known)))


def _mean(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """The mean over places, or pooling to a single place, where threads begin anew: at the map or tokens it is of."""
    output, tensor, is_mean = func(*args, **kwargs), args[0], func.__name__ == "mean"
    axes = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    if not is_mean:
        axes = tuple(range(2, tensor.ndim)) if output.shape[2:].numel() == 1 else None
    if axes is None or tensor.ndim not in (3, 4) or tensor.shape[0] != mode.n_images:
        return output
    over = {axis % tensor.ndim for axis in ((axes,) if isinstance(axes, int) else axes)}
    if over in ({1, 2}, {2, 3}) and tensor.ndim == 4:
        first_last = tensor.movedim(1, 3) if over == {2, 3} else tensor
        return mode.mark(output, _mean_of(first_last.flatten(1, 2), (first_last.shape[1], first_last.shape[2])))
    if over not in ({1}, {2}) or tensor.ndim != 3:
        return output
    tokens = tensor if over == {1} else tensor.mT
    grid = mode.grid_of(tokens.shape[1])
    if grid is None or (is_mean and over == {2} and grid[0] * grid[1] != tokens.shape[1]):
        return output
    return mode.mark(output, _mean_of(tokens, grid))


def _mean_of(tokens: Tensor, grid: tuple[int, int]) -> Contribution:
    """The mean of tokens (b, n, d), the last of which are the places; what stands before them is no place's."""
    count, places = tokens.shape[1], grid[0] * grid[1]
    held = tokens[:, count - places :]
    is_whole = count == places
    return Contribution(
        lambda _: held.float() / count,
        grid,
        is_whole,
        map=held.mT.reshape(held.shape[0], -1, *grid) if is_whole else None,
    )


_LAYER_NORM = ("input", "normalized_shape", "weight", "bias", "eps")
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_MOVES = (
    "contiguous clone reshape view view_as flatten unflatten transpose permute movedim swapaxes squeeze unsqueeze "
    "expand to float half bfloat16 type_as detach dropout"
)
_ACTIVATIONS = "relu gelu silu hardswish tanh sigmoid leaky_relu elu hardtanh relu6 softplus mish hardsigmoid"

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("__get__", *_MOVES.split()), _same),
    **{name + ending: _activated for name in _ACTIVATIONS.split() for ending in ("", "_")},
    **dict.fromkeys(("add", "add_", "sub", "sub_"), _added),
    **dict.fromkeys(("mul", "mul_", "div", "div_"), _scaled),
    "__getitem__": _indexed,
    "select": _indexed,
    "linear": _linear,
    "conv2d": _linear,
    "matmul": _multiplied,
    "layer_norm": _token_norm,
    "rms_norm": _token_norm,
    "batch_norm": _batch_norm,
    "normalize": _normalised,
    "cat": _joined,
    "mean": _mean,
    "adaptive_avg_pool1d": _mean,
    "adaptive_avg_pool2d": _mean,
    "softmax": softmax,
    "scaled_dot_product_attention": scaled_dot_product,
    "multi_head_attention_forward": multi_head,
}
