"""A backbone as a sequence of blocks or stages: what "the last two blocks" and "the rate of each block" mean."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from ...encoders.readouts import source_of
from ...errors import InputError

_BEHIND = ("proj",)  # parameters of a network itself that come behind its blocks: open_clip's projection
Parts = list[list[str]]  # names before the blocks, of each block (its own name last), and behind the last


@dataclass(frozen=True)
class Blocks:
    """The blocks of a backbone.

    Attributes:
        parts: names of modules and parameters: those before the blocks, those of each block, and those behind the last.
            What lies between two blocks (a transition, a patch merging) belongs to the later one.
        unused: names behind the layer that is read.
    """

    parts: tuple[tuple[str, ...], ...]
    unused: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks' own names, first to last."""
        return tuple(part[-1] for part in self.parts[1:-1])

    def depth(self, parameter: str) -> int:
        """The part of a parameter, from 0, the embedding of patches or the stem, to the blocks' number and 1."""
        return _place(self.parts, parameter)


def blocks_of(backbone: nn.Module, *, fine: bool = False) -> Blocks:
    """The blocks of a backbone: the list or the numbered stages that hold most of its weights.

    `fine` divides a stage that is a list of blocks itself, as those of ResNets, ConvNeXts, Swins and EfficientNets are.

    Raises:
        InputError: no such list, or the layer that is read lies before it.
    """
    network, layer = source_of(backbone)
    found = _divided(network)
    if found is None:
        raise InputError(
            f"{type(network).__name__} has no list of blocks or stages that holds most of its weights, so it has no "
            "last blocks (run.train_blocks) and no rates by depth (optimiser.layer_decay); name parts in run.freeze"
        )
    if fine:
        found = [found[0], *(block for part in found[1:-1] for block in _finely(network, part)), found[-1]]
    last = _place(found, layer) if layer else len(found) - 1
    if last == 0:
        raise InputError(f"the layer {layer!r} is read before the first block, {found[1][-1]}; name a later one")
    used = found if last == len(found) - 1 else [*found[: last + 1], []]
    return Blocks(tuple(map(tuple, used)), tuple(name for part in found[last + 1 :] for name in part))


def _place(parts: Parts | tuple[tuple[str, ...], ...], name: str) -> int:
    """The number of the part that something belongs to; the last one's if it is in none."""
    inside = (i for i, part in enumerate(parts) if any(f"{name}.".startswith(f"{own}.") for own in part))
    return next(inside, len(parts) - 1)


def _divided(network: nn.Module, prefix: str = "") -> Parts | None:
    """The parts of a network, in the order of registration; None if no list holds more than half of its weights."""
    sizes = _sizes(network)
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sizes:
        alike[_stem(name)].append(name)
    members = max(alike.values(), key=lambda names: sum(sizes[name] for name in names), default=[])
    size, most = sum(sizes[name] for name in members), max(sizes.values(), default=0)
    inner: Parts | None = None
    if 2 * size <= sum(sizes.values()) or len(members) < 2 or most > 0.95 * size:
        members = [name for name in sizes if sizes[name] == most][:1]
        inner = _divided(network.get_submodule(members[0]), f"{prefix}{members[0]}.") if members else None
        if inner is None or 2 * most <= sum(sizes.values()):
            return None
    own = [name for name, _ in network.named_parameters(recurse=False)]
    parts: Parts = [[prefix + name for name in own if name not in _BEHIND]]
    between: list[str] = []
    for name in sizes:
        if name not in members:
            between.append(prefix + name)
            continue
        if len(parts) == 1:
            parts[0] += between
            between = []
        if inner is None:
            parts.append([*between, prefix + name])
            between = []
        else:
            parts[0] += inner[0]
            parts += inner[1:-1]
            between = inner[-1]
    return [*parts, [*between, *(prefix + name for name in own if name in _BEHIND)]]


def _finely(network: nn.Module, part: list[str]) -> Parts:
    """A stage as its blocks, if it is a list of them or has such a list beside less; else as it is."""
    *before, stage = part
    module = network.get_submodule(stage)
    sizes = _sizes(module)
    lists = [name for name in sizes if name.endswith("s") and 2 * sizes[name] > sum(sizes.values())]
    if lists:  # such as `blocks` or `layers`, not the `block` or `mlp` inside a block
        before += [f"{stage}.{name}" for name in sizes if name not in lists]
        before += [f"{stage}.{name}" for name, _ in module.named_parameters(recurse=False)]
        stage, module = f"{stage}.{lists[0]}", module.get_submodule(lists[0])
    blocks = list(_sizes(module))
    is_list = len({_stem(name) for name in blocks}) == 1 < len(blocks)
    if not is_list or not all(any(module.get_submodule(name).children()) for name in blocks):
        return [part]
    first, *others = ([f"{stage}.{name}"] for name in blocks)
    return [[*before, *first], *others]


def _sizes(network: nn.Module) -> dict[str, int]:
    """The number of weights of each child that has any."""
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}
    return {name: size for name, size in sizes.items() if size}


def _stem(name: str) -> str:
    """The name of a part without its number."""
    return name.rstrip("0123456789")
