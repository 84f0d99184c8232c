"""Reaching a layer inside a network: keep only what leads to it, and read its output as a feature map."""

from __future__ import annotations

import difflib
import math
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from .weights.wrapping import eagerly


class Tap(nn.Module):
    """A network read out at one of its layers: the layer's output as a feature map.

    The network runs whole; a forward hook that lives only during the call takes the output, so hooks, mode, and
    weights stay the owner's. Works from several threads at once.
    """

    def __init__(self, source: nn.Module, layer: str) -> None:
        super().__init__()
        require_layer(source, layer)
        self.source = source
        self.layer = layer

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k rows columns"]:
        """The feature map of the layer."""
        outputs: list[Any] = []
        caller = threading.get_ident()

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if threading.get_ident() == caller:  # another thread may be in the same module right now
                outputs.append(returned_by(self.layer, output))

        handle = self.source.get_submodule(self.layer).register_forward_hook(keep)
        try:
            with eagerly(self.source):
                self.source(images)
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise InputError(f"layer {self.layer!r} ran {len(outputs)} times in one forward pass, expected once")
        return as_feature_map(outputs[0], (images.shape[2], images.shape[3]), origin=f"layer {self.layer!r}")

    def extra_repr(self) -> str:
        """The layer, for `print(encoder)`."""
        return f"layer={self.layer!r}"


def returned_by(layer: str, output: Any) -> Tensor:
    """A copy of what a layer returned, for keeping: gradients flow through it.

    The tensor itself is the network's: an operation in place behind the layer (`out += identity`, a ReLU with
    `inplace=True`) writes into it, and what was kept would then be another place's output. Nothing tells beforehand,
    and tensors made in inference mode do not count their versions, so it is always copied.
    """
    if not isinstance(output, Tensor):
        raise ShapeError(f"layer {layer!r} returns a {type(output).__name__}, expected one tensor; name an inner layer")
    return output.clone()


def require_layer(network: nn.Module, layer: str) -> None:
    """Refuse a name that is no sub-module of the network, with the three names nearest to it."""
    if not isinstance(layer, str):
        raise InputError(f"expected a layer's name, such as 'layer4', got {type(layer).__name__}")
    names = [name for name, _ in network.named_modules(remove_duplicate=False) if name]  # a part may have two names
    if layer not in names:
        raise InputError(f"no layer {layer!r}; nearest: {closest(layer, names)}")


def require_feature_map(network: nn.Module, size: tuple[int, int]) -> None:
    """Refuse a network that answers a black image of this height and width with something else than a feature map.

    A network that cannot be run this way is not judged.
    """
    parameter = next(network.parameters(), torch.zeros(()))
    if not parameter.is_floating_point():
        return
    image = parameter.new_zeros(1, 3, *size)
    maps: list[str] = []

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim in (3, 4) and output.numel() > output.shape[1]:
                with suppress(ShapeError):
                    as_feature_map(output, size, origin=name)
                    maps.append(name)

        return hook

    modes = [(part, part.training) for part in network.modules()]
    handles = [part.register_forward_hook(keep(name)) for name, part in network.named_modules() if name]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), eagerly(network):
            output = network.eval()(image)
    except Exception:  # a network of the user's own may want something else; its first use will tell
        return
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes:
            part.training = mode
    if not (isinstance(output, Tensor) and output.ndim == 4):
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        hint = f"; name the layer that does, such as layer={maps[-1]!r}" if maps else "; name the layer that does"
        raise InputError(f"{type(network).__name__} returns {got}, expected a feature map (b, k, h, w){hint}")


def closest(name: str, names: list[str]) -> str:
    """The three names most like `name`, for an error message."""
    return ", ".join(repr(n) for n in difflib.get_close_matches(name, names, n=3, cutoff=0.0)) or "(none)"


def cut(network: nn.Module, layer: str) -> nn.Module:
    """The network up to and including a layer; parameter names stay the same.

    Inside plain sequences everything behind the layer is dropped. A layer inside a block (say the second convolution of
    a residual block) is tapped: its block still runs whole, and parameter names gain the prefix `source.`.
    """
    require_layer(network, layer)
    if not isinstance(network, nn.Sequential):
        return Tap(network, layer)
    kept, reached = _prefix(network, layer.split("."))
    return kept if reached else Tap(kept, layer)


def _prefix(sequence: nn.Sequential, path: list[str]) -> tuple[nn.Sequential, bool]:
    """The shortest beginning of the sequence that contains the path, and whether it ends exactly there."""
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    reached = True
    for name, child in sequence.named_children():
        kept[name] = child
        if name == path[0]:
            if rest := path[1:]:
                reached = isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward
                if isinstance(child, nn.Sequential) and reached:
                    kept[name], reached = _prefix(child, rest)
            break
    return nn.Sequential(kept), reached


def as_feature_map(output: Any, size: tuple[int, int], *, origin: str) -> Float[Tensor, "b k h w"]:
    """A layer's output as (b, k, h, w).

    Tokens (b, n, k) become a grid with the image's proportions; what does not fit the grid (class and register tokens)
    is dropped from the front. Maps with channels last are recognised by the image's proportions and turned round.

    Args:
        output: what the layer returned.
        size: height and width of the image that went in.
        origin: how an error message calls the layer.
    """
    if not isinstance(output, Tensor):
        raise ShapeError(f"{origin} returns a {type(output).__name__}, expected one tensor; name an inner layer")
    if output.ndim == 3:
        return _grid_of_tokens(output, size, origin)
    if output.ndim != 4:
        shape = tuple(output.shape)
        raise ShapeError(f"{origin} returns shape {shape}, expected (b, k, h, w) or (b, n, k); name an earlier layer")
    _, one, two, three = output.shape
    first, last = _misfit(two, three, size), _misfit(one, two, size)
    if min(first, last) > 0.5 or (first == last and one != three):
        raise ShapeError(
            f"{origin} returns shape {tuple(output.shape)}, in which the channels cannot be told from the rows of a "
            f"{size[0]}×{size[1]} image; wrap the network so that it returns (b, k, h, w) itself, without `layer`"
        )
    return output if first <= last else output.movedim(3, 1)


def _misfit(rows: int, columns: int, size: tuple[int, int]) -> float:
    """Distance of a map's proportions from the image's; 0 is exact, and rounding up a stride moves it a little."""
    return abs(math.log((rows / columns) / (size[0] / size[1])))


def _grid_of_tokens(tokens: Float[Tensor, "b n k"], size: tuple[int, int], origin: str) -> Float[Tensor, "b k h w"]:
    height, width = size
    for extra in range(min(6, tokens.shape[1])):  # one class token and four registers is the most in use
        # n = rows · columns with rows / columns = height / width, hence rows² = n · height / width.
        n = tokens.shape[1] - extra
        rows = round((n * height / width) ** 0.5)
        columns = n // max(rows, 1)
        if rows * columns == n and rows * width == columns * height:
            return tokens[:, extra:].mT.reshape(len(tokens), -1, rows, columns)
    raise ShapeError(
        f"{origin} returns {tokens.shape[1]} tokens, which form no grid in proportion to a {height}×{width} image"
    )
