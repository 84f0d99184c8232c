"""Attentions of every library as sources of contributions: one row of weights, never the square matrix."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from .contributions import N_ROWS, Call, Contribution, Following

Weights = Callable[[int], Float[Tensor, "b n heads"]]


def attended(
    mode: Following, weights: Weights, values: Tensor, output: Tensor, *, n_queries: int
) -> Contribution | None:
    """The contribution of places in an attention's output, heads one behind the other.

    Args:
        mode: the pass.
        weights: from a row's number to what it reads of each token, (b, n, heads).
        values: (b, heads, n, d).
        output: (b, heads, queries, d).
        n_queries: how many tokens read.
    """
    grid = mode.grid_of(values.shape[-2])
    if values.ndim != 4 or values.shape[0] != mode.n_images or grid is None:
        return None
    first, places = values.shape[-2] - grid[0] * grid[1], grid[0] * grid[1]
    is_self = n_queries == values.shape[-2]
    mode.n_attentions += is_self
    has_mean = mode.first_is_mean and first == 1

    def of_row(row: int) -> Tensor:
        mode.rows_read.add(row)
        shares = weights(row)
        own = shares[:, first:]
        if has_mean:  # the value of the mean is the mean of the values, but for positions
            own = own + shares[:, :1] / places
        each = values[:, :, first:].transpose(1, 2).float()
        each = each.repeat_interleave(own.shape[2] // each.shape[2], 2) if own.shape[2] > each.shape[2] else each
        return (each * own[..., None]).flatten(2)

    rows = None if mode.row is not None else output[:, :, :N_ROWS].transpose(1, 2).flatten(2).float().clone()
    return Contribution(of_row, grid, n_followed=int(is_self), first_rows=rows)


def scaled_dot_product(mode: Following, func: Call, args: Any, kwargs: Any) -> Tensor:
    """The attention of timm and transformers."""
    output: Tensor = func(*args, **kwargs)
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False), **kwargs)
    query, key, mask = given["query"], given["key"], given.get("attn_mask")
    if output.ndim == 4 and output.shape[0] == mode.n_images and not given.get("is_causal"):
        weights = _weights(query, key, mask, given.get("scale"))
        mode.mark(output, attended(mode, weights, given["value"], output, n_queries=query.shape[-2]))
    return output


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Weights:
    """How much a row of an attention reads of each token, never the square matrix."""

    def of_row(row: int) -> Tensor:
        one = query[:, :, row, None].transpose(1, 2).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
        each = key.transpose(1, 2).float()
        each = each.repeat_interleave(one.shape[2] // each.shape[2], 2) if one.shape[2] > each.shape[2] else each
        scores = (each * one).sum(-1)
        if mask is not None:
            own = mask[..., 0 if mask.shape[-2] == 1 else row, :].expand(*query.shape[:2], -1).mT
            scores = scores.masked_fill(~own, -torch.inf) if mask.dtype == torch.bool else scores + own.float()
        return scores.softmax(1)

    return of_row


_PACKED = inspect.signature(functional.multi_head_attention_forward)


def multi_head(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """`nn.MultiheadAttention`, whose inner attention no mode sees: computed here from the weights that it is given."""
    bound = _PACKED.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    plain = ("attn_mask", "key_padding_mask", "bias_k", "bias_v", "static_k", "static_v")
    is_plain = all(given[name] is None for name in plain) and not (given["add_zero_attn"] or given["training"])
    if not is_plain or given["query"].ndim != 3 or given["query"].shape[1] != mode.n_images:
        return func(*args, **kwargs)
    query, key, value = _projected(given)
    output = functional.scaled_dot_product_attention(query, key, value)
    merged = output.permute(2, 0, 1, 3).flatten(2)
    weight = given["out_proj_weight"]
    found = attended(mode, _weights(query, key, None, None), value, output, n_queries=query.shape[-2])
    found = None if found is None else found.then(lambda parts, _: parts @ weight.float().mT)
    if given["need_weights"]:
        result, shares = func(*args, **kwargs)
        return mode.mark(result, found), shares
    return mode.mark(functional.linear(merged, weight, given["out_proj_bias"]), found), None


def _projected(given: Mapping[str, Any]) -> list[Float[Tensor, "b heads n d"]]:
    """Query, key and value of `nn.MultiheadAttention`, by head."""
    packed, bias = given["in_proj_weight"], given["in_proj_bias"]
    separate = [given[f"{name}_proj_weight"] for name in "qkv"]
    weights = separate if given["use_separate_proj_weight"] else packed.chunk(3)
    biases = [None] * 3 if bias is None else bias.chunk(3)
    tokens = [given[name] for name in ("query", "key", "value")]
    if not given["use_separate_proj_weight"] and tokens[0] is tokens[1] is tokens[2]:
        each = list(functional.linear(tokens[0], packed, bias).chunk(3, -1))
    else:
        each = [functional.linear(*of) for of in zip(tokens, weights, biases, strict=True)]
    return [part.view(*part.shape[:2], given["num_heads"], -1).permute(1, 2, 0, 3) for part in each]


def softmax(mode: Following, func: Call, args: Any, kwargs: Any) -> Tensor:
    """Shares (b, heads, queries, n), which an attention written out multiplies with its values."""
    output: Tensor = func(*args, **kwargs)
    if output.ndim == 4 and output.shape[0] == mode.n_images:
        output._shares = (mode, output)  # type: ignore[attr-defined]
    return output


def shares_of(mode: Following, tensor: Any) -> Tensor | None:
    """The tensor, if it is a softmax of this pass."""
    owner, shares = getattr(tensor, "_shares", (None, None))
    return shares if owner is mode else None
