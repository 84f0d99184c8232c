"""Layers inside a network, read out as feature maps; and the network inside DataParallel and other wrappers."""

from __future__ import annotations

import difflib
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from ..errors import InputError, ShapeError


class LayerOutput(nn.Module):
    """A network read out at one of its layers; hooks, mode and weights stay the owner's. Safe with several threads."""

    def __init__(self, source: nn.Module, layer: str) -> None:
        super().__init__()
        require_layer(source, layer)
        self.source = source
        self.layer = layer

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k rows columns"]:
        """The feature map of the layer."""
        outputs: list[Tensor] = []
        with eagerly(self.source):
            run_watched(self.source, self.layer, images, lambda output: outputs.append(returned_by(self.layer, output)))
        return as_feature_map(outputs[0], (images.shape[2], images.shape[3]), origin=f"layer {self.layer!r}")

    def extra_repr(self) -> str:
        """The layer, for `print(encoder)`."""
        return f"layer={self.layer!r}"


def run_watched(network: nn.Module, layer: str, images: Tensor, watch: Callable[[Any], Any]) -> Any:
    """The network's output when `watch` sees what the layer returns, and may change it on its way."""
    caller, n_runs = threading.get_ident(), 0

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal n_runs
        if threading.get_ident() != caller:  # another thread may be in the same module right now
            return None
        n_runs += 1
        return watch(output)

    handle = network.get_submodule(layer).register_forward_hook(hook)
    try:
        output = network(images)
    finally:
        handle.remove()
    if n_runs != 1:
        raise InputError(f"layer {layer!r} ran {n_runs} times in one forward pass, expected once")
    return output


def watch_parts(
    network: nn.Module,
    images: Tensor,
    *,
    before: Callable[[str, nn.Module, Any], None] | None = None,
    after: Callable[[str, nn.Module, Any, Any], None] | None = None,
) -> Any:
    """The network's output in evaluation mode, while each part's name, module, inputs (and output) are shown."""
    handles = []
    for name, part in network.named_modules():
        if before is not None:
            handles.append(part.register_forward_pre_hook(partial(before, name)))
        if after is not None:
            handles.append(part.register_forward_hook(partial(after, name)))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), eagerly(network), evaluating(network):
            return network(images)
    finally:
        for handle in handles:
            handle.remove()


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
    if layer not in (names := _layers(network, layer)):
        raise InputError(f"no layer {layer!r}; nearest: {closest(layer, names)}")


def _layers(network: nn.Module, asked: object) -> list[str]:
    """The names of all layers, of which a text may name one."""
    if not isinstance(asked, str):
        raise InputError(f"expected a layer's name, such as 'layer4', got {type(asked).__name__}")
    return [name for name, _ in network.named_modules(remove_duplicate=False) if name]  # a part may have two names


def require_feature_map(network: nn.Module, size: tuple[int, int]) -> None:
    """Refuse a network that answers a black image of this height and width with something else than a feature map."""
    parameter = next(network.parameters(), torch.zeros(()))
    if not parameter.is_floating_point():
        return
    image = parameter.new_zeros(1, 3, *size)
    maps: list[str] = []

    def keep(name: str, _part: nn.Module, _inputs: Any, output: Any) -> None:
        if name and isinstance(output, Tensor) and output.ndim in (3, 4) and output.numel() > output.shape[1]:
            with suppress(ShapeError):
                as_feature_map(output, size, origin=name)
                maps.append(name)

    try:
        output = watch_parts(network, image, after=keep)
    except Exception:  # a network of the user's own may want something else; its first use will tell
        return
    if not (isinstance(output, Tensor) and output.ndim == 4):
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        hint = f"; name the layer that does, such as layer={maps[-1]!r}" if maps else "; name the layer that does"
        raise InputError(f"{type(network).__name__} returns {got}, expected a feature map (b, k, h, w){hint}")


def closest(name: str, names: list[str]) -> str:
    """The three names most like `name`, for an error message."""
    return ", ".join(repr(n) for n in difflib.get_close_matches(name, names, n=3, cutoff=0.0)) or "(none)"


def cut(network: nn.Module, layer: str) -> nn.Module:
    """The network up to and including a layer; parameter names stay the same."""
    require_layer(network, layer)
    if type(network) is not nn.Sequential:  # a network that is one by its class keeps its names
        return LayerOutput(network, layer)
    kept, reached = _prefix(network, layer.split("."))  # a layer inside a block is tapped: the block still runs whole
    return kept if reached else LayerOutput(kept, layer)


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
    """A layer's output as (b, k, h, w), for an image of this height and width.

    Tokens (b, n, k) become a grid with the image's proportions; what does not fit the grid (class and register tokens)
    is dropped from the front. Maps with channels last are recognised by the image's proportions and turned round.
    """
    if not isinstance(output, Tensor):
        raise ShapeError(f"{origin} returns a {type(output).__name__}, expected one tensor; name an inner layer")
    if output.ndim == 3:
        count = output.shape[1]
        if (grid := grid_of_tokens(count, size)) is not None:
            return output[:, count - grid[0] * grid[1] :].mT.reshape(output.shape[0], -1, *grid)
        raise ShapeError(
            f"{origin} returns {count} tokens, which form no grid in proportion to a {size[0]}×{size[1]} image"
        )
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


def grid_of_tokens(count: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of the last of so many tokens, in the proportions of an image of this height and width."""
    height, width = size
    for n in range(count, max(count - 6, 0), -1):  # one class token and four registers is the most in use
        # n = rows · columns with rows / columns = height / width, hence rows² = n · height / width.
        rows = round((n * height / width) ** 0.5)
        columns = n // max(rows, 1)
        if rows * columns == n and rows * width == columns * height:
            return rows, columns
    return None


def _misfit(rows: int, columns: int, size: tuple[int, int]) -> float:
    """Distance of a map's proportions from the image's; 0 is exact, and rounding up a stride moves it a little."""
    return abs(math.log((rows / columns) / (size[0] / size[1])))


_LIGHTNING = {"lightning", "pytorch_lightning"}
_AID = re.compile(r"loss|criteri|metric|miner|accuracy", re.IGNORECASE)  # beside a network, in training alone
_TRANSPARENT = {"module", "_orig_mod"}  # the names under which wrappers keep their network


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, torch.compile, AveragedModel and a LightningModule.

    They may be nested in any order. Of a LightningModule it is the only child with weights, losses and metrics aside.

    >>> unwrapped(nn.DataParallel(nn.ReLU()))
    ReLU()
    """
    while (name := _inner_name(module)) is not None:
        module = module.get_submodule(name)
    return module


def _inner_name(module: nn.Module) -> str | None:
    """The name of the network in a wrapper that does nothing but call it; None for everything else."""
    if type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module):
        return "_orig_mod"
    if any(base.__module__.partition(".")[0] in _LIGHTNING for base in type(module).__mro__):
        # The only child with weights, losses and metrics aside, of one that has no weights of its own.
        children = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
        children = [name for name in children if not _AID.search(name)]
        return children[0] if len(children) == 1 and not module._parameters else None
    return "module" if isinstance(module, DataParallel | DistributedDataParallel | AveragedModel) else None


def plain_name(name: str) -> str:
    """The name of a tensor or layer without the parts that wrappers add.

    >>> plain_name("module._orig_mod.layer4.0.conv1.weight")
    'layer4.0.conv1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def find_layer(network: nn.Module, layer: str) -> tuple[str, str]:
    """A layer's name in the network, and the name that it has without the wrappers on the way."""
    found, names = layer, _layers(network, layer)
    if layer not in names:
        alike = [name for name in names if plain_name(name) == plain_name(layer)]
        alike = [name for name in alike if _inner_name(network.get_submodule(name)) is None]
        if len(alike) != 1:
            return layer, layer
        (found,) = alike
    plain, parent = [], network  # the parts of the name, less those that lead into a wrapper
    for part in found.split("."):
        if _inner_name(parent) != part:
            plain.append(part)
        parent = parent.get_submodule(part)
    return found, ".".join(plain)


def eagerly(network: nn.Module) -> AbstractContextManager[object]:
    """Inside, compiled parts of the network run as Python does: compiled code does not call a hook set afterwards."""
    is_compiled = any(
        _inner_name(part) == "_orig_mod" or getattr(part, "_compiled_call_impl", None) is not None
        for part in network.modules()
    )
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


def require_usable(network: nn.Module) -> None:
    """Refuse what can be neither looked into nor copied."""
    for name, part in network.named_modules():
        what = f"{type(network).__name__}{f' (at {name!r})' if name else ''}"
        if "train" in vars(part):  # torch.export replaces it by a refusal
            raise InputError(
                f"{what} is an exported program, which is fixed in its mode; hand over the module it was exported from"
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise InputError(
                f"{what} is TorchScript, which can be neither copied nor read out at a layer; hand over the eager "
                "module (before torch.jit) with the same weights"
            )
        own = [tensor for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None]
        if any(is_lazy(tensor) for tensor in own):
            raise InputError(f"{what} has lazy parts that have no weights yet; run it once on an image first")
        if any(tensor.is_meta for tensor in own):
            raise InputError(f"{what} has weights on the meta device, without values; load them first")
        if any(tensor.layout != torch.strided for tensor in own):
            raise InputError(f"{what} has sparse weights, which can be neither compared nor copied; use .to_dense()")
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")) or any(
            tensor.is_quantized for tensor in own
        ):
            raise InputError(
                f"{what} is quantised: its packed weights can be neither compared nor copied; hand over the fp32 "
                "module (before quantisation) and choose precision='bf16' for speed"
            )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode; afterwards every part is in the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
