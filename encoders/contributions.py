"""Direct contributions of places to what a network computes, followed through one forward pass of any network.

Places enter where tokens are mixed: an attention hands each place's value, times its weight, to the token that reads; a
mean hands on each place's share. From there only what is linear is followed: projections, layer scales, residual sums,
and norms, whose spread is held at its value. An activation ends a thread, so what an MLP adds belongs to no place. The
network is not touched: a `TorchFunctionMode` sees its calls, and keeps of them what a later question needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

N_ROWS = 2  # of a layer's tokens the first are kept: class tokens stand in front
MOST_PREFIX = 16  # class and register tokens before the places

Call = Callable[..., Any]
Rule = Callable[["Following", Call, Any, Any], Any]  # the pass, the function and its arguments → its output


@dataclass(frozen=True, eq=False)
class Contribution:
    """What comes directly from places in a tensor whose rows are tokens (or in a vector, which is one row).

    Attributes:
        of_row: from a row's number to its parts, float32; computed when asked for.
        shape: rows and columns of the places.
        is_whole: the places are all there is but biases, as in a mean: no token, MLP or start takes part.
        n_followed: self-attentions whose parts are in it.
        map: the map itself, where the tensor is its plain mean.
        first_rows: values of the first rows, while it is an attention's output, whose layout is yet to be confirmed.
    """

    of_row: Callable[[int], Float[Tensor, "b places d"]]
    shape: tuple[int, int]
    is_whole: bool = False
    n_followed: int = 0
    map: Float[Tensor, "b d h w"] | None = None
    first_rows: Float[Tensor, "b n d"] | None = None

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
    """Inside, contributions of places are followed; `of(tensor)` tells them.

    Args:
        images: the batch that the network gets.
        rules: from a function's name to what runs in its place, and marks the outcome.
        tangent: follow activations too, by their slope at the value they have: of first order, no longer exact.
        first_is_mean: the first key of an attention is the mean of all places (CLIP's ResNets).
        row: the token that will be read, where an earlier pass has told; its parts are then summed on the way.
    """

    def __init__(
        self,
        images: Float[Tensor, "b 3 h w"],
        rules: Mapping[str, Rule],
        *,
        tangent: bool = False,
        first_is_mean: bool = False,
        row: int | None = None,
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
        """The axis of the tokens in (b, n, d) or (n, b, d)."""
        return 1 if tensor.shape[0] == self.n_images else 0

    def grid_of(self, count: int) -> tuple[int, int] | None:
        """Rows and columns of the places among this many tokens, of which the last are the places."""
        fitting = [grid for grid in self.grids if 0 <= count - grid[0] * grid[1] <= MOST_PREFIX]
        if fitting:
            return max(fitting, key=lambda grid: grid[0] * grid[1])
        height, width = self.size
        for extra in range(min(6, count)):
            rows = round(((count - extra) * height / width) ** 0.5)
            columns = (count - extra) // max(rows, 1)
            if rows * columns == count - extra and rows * width == columns * height:
                return rows, columns
        return None


def row_of(rows: Float[Tensor, "b n d"], row: int) -> Float[Tensor, "b 1 d"]:
    """One of the rows kept."""
    if row >= rows.shape[1]:
        raise LookupError(f"token {row} is read, of which nothing was kept")
    return rows[:, row : row + 1]
