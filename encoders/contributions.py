"""Direct contributions of places to what a network computes, followed through one forward pass of any network.

Places enter where tokens are mixed: an attention hands each place's value, times its weight, to the token that reads; a
mean hands on each place's share. From there only what is linear is followed: projections, layer scales, residual sums,
and norms, whose spread is held at its value. An activation ends a thread, so what an MLP adds belongs to no place. The
network is not touched: a `TorchFunctionMode` sees its calls, and keeps of them what a later question needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .layers import grid_of_tokens

N_ROWS = 2  # of a layer's tokens the first are kept: class tokens stand in front
MOST_PREFIX = 16  # class and register tokens before the places

Call = Callable[..., Any]
Rule = Callable[["Following", Call, Any, Any], Any]  # the pass, the function and its arguments → its output


class AmbiguousBatchError(Exception):
    """Images and tokens are equally many, so a tensor's shape does not tell which axis is which."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """Direct contributions of places to a tensor whose rows are tokens (or to a vector, which is one row)."""

    of_row: Callable[[int], Float[Tensor, "b places d"]]  # parts of a row by its number, float32; made when asked for
    shape: tuple[int, int]  # rows and columns of the places
    is_whole: bool = False  # nothing else but biases is in it, as in a mean: no token, MLP or start
    n_followed: int = 0  # self-attentions whose parts are in it
    map: Float[Tensor, "b d h w"] | None = None  # the map itself, where the tensor is its plain mean
    first_rows: Float[Tensor, "b n d"] | None = None  # of an attention's output, until its layout is confirmed

    def then(self, change: Callable[[Tensor, int], Tensor]) -> Contribution:
        """Behind a linear operation; it gets the parts and the number of their row."""
        before = self.of_row
        return replace(self, of_row=lambda row: change(before(row), row), map=None, first_rows=None)

    def plus(self, other: Contribution) -> Contribution:
        """The sum; of a grid with other places only the newer is kept."""
        if other.shape != self.shape:
            return other
        mine, theirs = self.of_row, other.of_row
        return Contribution(
            lambda row: mine(row) + theirs(row),
            self.shape,
            is_whole=self.is_whole and other.is_whole,
            n_followed=self.n_followed + other.n_followed,
        )


class Following(TorchFunctionMode):
    """Inside, contributions of places are followed through what a network makes of images; `of(tensor)` tells them."""

    def __init__(
        self,
        images: Float[Tensor, "b 3 h w"],
        rules: Mapping[str, Rule],  # from a function's name to what runs in its place, and marks the outcome
        *,
        tangent: bool = False,  # follow activations too, by their slope at the value they have: only of first order
        first_is_mean: bool = False,  # the first key of an attention is the mean of all places (CLIP's ResNets)
        row: int | None = None,  # the token that will be read, if an earlier pass has told; its parts are then summed
    ) -> None:
        super().__init__()
        self.n_images, self.size = images.shape[0], (images.shape[2], images.shape[3])
        self.rules, self.tangent, self.first_is_mean = rules, tangent, first_is_mean
        self.row, self.rows_read = row, set[int]()
        self.grids: list[tuple[int, int]] = []
        self.n_attentions = 0
        self.vector = images.new_zeros(0)

    def of(self, tensor: Tensor) -> Contribution | None:
        """The contribution in a tensor of this pass; None if no thread from a place reaches it."""
        owner, found = getattr(tensor, "_from_places", (None, None))
        return found if owner is self else None

    def mark(self, tensor: Tensor, found: Contribution | None) -> Tensor:
        """The tensor, with its contribution."""
        if found is not None or hasattr(tensor, "_from_places"):
            tensor._from_places = (self, found)  # type: ignore[attr-defined]
        return tensor

    def __torch_function__(self, func: Call, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = self.rules.get(getattr(func, "__name__", ""))
        if rule is not None:
            return rule(self, func, args, kwargs)
        output = func(*args, **kwargs)
        if args and (output is args[0] or output is None) and isinstance(args[0], Tensor):
            self.mark(args[0], None)  # changed in place by something not known
        return output

    def computed(self, found: Contribution) -> Contribution:
        """The contribution, summed up by now if it comes from attentions and its row is known: keys can then go."""
        if self.row is None or not found.n_followed:
            return found
        expected, parts = self.row, found.of_row(self.row)

        def of_row(row: int) -> Tensor:
            if row != expected:
                raise LookupError(f"token {row} is read, expected token {expected}")
            return parts

        return replace(found, of_row=of_row)

    def rows(self, tensor: Tensor) -> Float[Tensor, "b n d"]:
        """A copy of the first rows, float32: tokens stand on the second axis, or on the first before the batch."""
        if tensor.ndim > 3 and tensor.shape[1:].numel() != max(tensor.shape[1:]):  # a map: its rows are not tokens
            return tensor.new_zeros(self.n_images, 1, 1)
        if tensor.ndim != 3:
            return tensor.detach().float().reshape(self.n_images, 1, -1).clone()
        tokens = tensor if self.token_axis(tensor) == 1 else tensor.transpose(0, 1)
        return tokens[:, :N_ROWS].float().clone()

    def token_axis(self, tensor: Tensor) -> int:
        """The axis of the tokens in (b, n, d) or (n, b, d); AmbiguousBatchError where the shape fits both."""
        if not torch.compiler.is_exporting() and tensor.shape[0] == tensor.shape[1] == self.n_images > 1:
            raise AmbiguousBatchError
        return 1 if tensor.shape[0] == self.n_images else 0

    def grid_of(self, count: int) -> tuple[int, int] | None:
        """Rows and columns of the places among this many tokens, of which the last are the places."""
        fitting = [grid for grid in self.grids if 0 <= count - grid[0] * grid[1] <= MOST_PREFIX]
        return max(fitting, key=lambda grid: grid[0] * grid[1]) if fitting else grid_of_tokens(count, self.size)


def row_of(rows: Float[Tensor, "b n d"], row: int) -> Float[Tensor, "b 1 d"]:
    """One of the rows kept."""
    if row >= rows.shape[1]:
        raise LookupError(f"token {row} is read, of which nothing was kept")
    return rows[:, row : row + 1]


# --- Attentions -------------------------------------------------------------------------------------------------------

Weights = Callable[[int], Float[Tensor, "b n heads"]]  # what the row of a number reads of each token


def attended(
    mode: Following, weights: Weights, values: Tensor, output: Tensor, *, n_queries: int
) -> Contribution | None:
    """The contribution of places in an attention's output (b, heads, queries, d) of values (b, heads, n, d)."""
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
        return (_by_head(values[:, :, first:], own.shape[2]) * own[..., None]).flatten(2)

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
    """Attention weights of one row over the tokens, never the square matrix."""

    def of_row(row: int) -> Tensor:
        one = query[:, :, row, None].transpose(1, 2).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
        scores = (_by_head(key, one.shape[2]) * one).sum(-1)
        if mask is not None:
            own = mask[..., 0 if mask.shape[-2] == 1 else row, :].expand(*query.shape[:2], -1).mT
            scores = scores.masked_fill(~own, -torch.inf) if mask.dtype == torch.bool else scores + own.float()
        return scores.softmax(1)

    return of_row


def _by_head(tokens: Tensor, n_heads: int) -> Float[Tensor, "b n heads d"]:
    """Keys or values, of which several heads may share one."""
    each = tokens.transpose(1, 2).float()
    return each.repeat_interleave(n_heads // each.shape[2], 2) if n_heads > each.shape[2] else each


_PACKED = inspect.signature(functional.multi_head_attention_forward)


def multi_head(mode: Following, func: Call, args: Any, kwargs: Any) -> Any:
    """`nn.MultiheadAttention`, whose inner attention no mode sees: computed here from the weights that it is given."""
    bound = _PACKED.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    plain = ("attn_mask", "key_padding_mask", "bias_k", "bias_v", "static_k", "static_v")
    drops = given["training"] and given["dropout_p"] > 0
    is_plain = all(given[name] is None for name in plain) and not (given["add_zero_attn"] or drops)
    if not is_plain or given["query"].ndim != 3 or given["query"].shape[1] != mode.n_images:
        return func(*args, **kwargs)
    packed, bias, tokens = given["in_proj_weight"], given["in_proj_bias"], [given[n] for n in ("query", "key", "value")]
    if not given["use_separate_proj_weight"] and tokens[0] is tokens[1] is tokens[2]:
        each = list(functional.linear(tokens[0], packed, bias).chunk(3, -1))
    else:
        separate = [given[f"{name}_proj_weight"] for name in "qkv"]
        weights = separate if given["use_separate_proj_weight"] else packed.chunk(3)
        biases = [None] * 3 if bias is None else bias.chunk(3)
        each = [functional.linear(*of) for of in zip(tokens, weights, biases, strict=True)]
    query, key, value = (part.view(*part.shape[:2], given["num_heads"], -1).permute(1, 2, 0, 3) for part in each)
    output, weight = functional.scaled_dot_product_attention(query, key, value), given["out_proj_weight"]
    found = attended(mode, _weights(query, key, None, None), value, output, n_queries=query.shape[-2])
    found = None if found is None else found.then(lambda parts, _: parts @ weight.float().mT)
    if given["need_weights"]:
        result, shares = func(*args, **kwargs)
        return mode.mark(result, found), shares
    merged = functional.linear(output.permute(2, 0, 1, 3).flatten(2), weight, given["out_proj_bias"])
    return mode.mark(merged, found), None


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
