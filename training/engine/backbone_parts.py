"""What of a backbone is trained: its last blocks, at rates by depth, or low-rank adapters beside its frozen matrices.

Adapters (LoRA) are peft's, and merged into the matrices when training ends. What a backbone that is frozen as a whole
makes of the training images is computed once.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...encoders import Encoder, Encoding
from ...encoders.heads import GAP
from ...encoders.layers import closest, evaluating, watch_parts
from ...encoders.readouts import making_maps, source_of
from ...encoders.weight_files import drawn_from
from ...errors import InputError, MissingExtraError
from ...remarks import remark
from ..recipes.settings import LoraSettings
from .step import BatchSource, Objective

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


_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


@contextmanager
def adapted(encoder: Encoder, settings: LoraSettings | None, *, seed: int) -> Iterator[None]:
    """Inside, layers of the backbone have adapters, which change nothing yet; then these are part of the weights."""
    if settings is None:
        yield
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("run.lora needs peft: pip install 'distcam[lora]', or leave it out") from error
    network, _ = source_of(encoder.backbone)
    names = _targets(encoder, network, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,
        lora_dropout=settings.dropout,
        target_modules="|".join(map(re.escape, names)),
    )
    try:
        try:
            with drawn_from(seed):
                inject_adapter_in_model(config, network)
        except ValueError as error:
            raise InputError(f"run.lora: peft cannot adapt {', '.join(names)}: {error}") from error
        yield
    finally:
        merge_adapters(encoder)


def layers_with_adapters(encoder: Encoder) -> list[Any]:
    """The layers of peft around those of the backbone."""
    return [part for part in encoder.modules() if hasattr(part, "lora_A") and hasattr(part, "get_base_layer")]


@torch.no_grad()
def merge_adapters(encoder: Encoder) -> None:
    """Add what adapters have learnt to the weights, and take the adapters away."""
    names = {part: name for name, part in encoder.named_modules()}
    for layer in layers_with_adapters(encoder):
        inner = layer.get_base_layer()
        # not by peft's `merge`, which writes through `.data`, so that no fingerprint would see the change
        inner.weight += layer.get_delta_weight("default")
        encoder.set_submodule(names[layer], inner)


def _targets(encoder: Encoder, network: nn.Module, settings: LoraSettings) -> list[str]:
    """The names of the layers that get an adapter; each is one that runs, as nothing else would learn."""
    ran: set[str] = set()
    image = next(network.parameters()).new_zeros(1, 3, encoder.transform.height, encoder.transform.width)
    watch_parts(network, image, after=lambda name, *_: ran.add(name))
    kinds = {name: type(part) for name, part in network.named_modules() if name in ran}
    matrices = [name for name, kind in kinds.items() if issubclass(kind, nn.Linear | nn.Conv2d)]
    for target in settings.targets:
        if not any(f".{name}".endswith(f".{target}") for name in matrices):
            raise InputError(
                "run.lora.targets: no linear layer or convolution that runs as a layer of its own is called "
                f"{target!r}; nearest: {closest(target, matrices)}"
            )
    if settings.targets:
        return [name for name in matrices if f".{name}".endswith(tuple(f".{target}" for target in settings.targets))]
    projections = [
        name
        for name in matrices
        if issubclass(kinds[name], nn.Linear) and _ATTENTION.search(name.rpartition(".")[0]) and "mlp" not in name
    ]
    if not projections:
        raise InputError(
            f"run.lora: {encoder.architecture} has no attention whose projections run as layers of their own (CNNs "
            "have none; nn.MultiheadAttention of open_clip and torchvision takes their weights alone); name ends of "
            f"other layers' names in run.lora.targets, such as {closest('mlp.fc1', matrices)}"
        )
    return projections


MOST_BYTES = 2 * 1024**3  # of maps that are kept; more are computed in every epoch


@torch.no_grad()
def features_of_frozen(
    encoder: Encoder,
    batches: BatchSource,
    objective: Objective,
    *,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Encoding | None:
    """The encodings of all training images in order, their maps of one place where vectors are all that terms read.

    They are computed in the same batches whenever a run begins or is resumed, so that it has the same bits. None where
    a term reads more than the map or images differ from epoch to epoch, and with a remark if it takes more than 2 GiB.
    """
    read = {term.reads for name, term in objective.terms.items() if objective.weights[name]}
    unchanged = None if "images" in read else getattr(batches, "unchanged", lambda: None)()
    if unchanged is None:
        return None
    n_images, images_in_order = unchanged
    needs_map = "map" in read or not isinstance(encoder.pooling, GAP)
    device, found = next(encoder.parameters()).device, list[Encoding]()
    for images in images_in_order:
        with evaluating(encoder), autocast(), making_maps(needs_map):  # a neck's statistics are of the steps alone
            encoding: Encoding = encoder(images.to(device, memory_format=torch.channels_last))
        if not needs_map:
            encoding = replace(encoding, feature_map=encoding.pooled[..., None, None], constant=None)
        found.append(encoding.changed(lambda part: part.float().cpu()))
        size = 4 * n_images * sum(part[0].numel() for part in encoding.parts())
        if size > MOST_BYTES:
            remark(
                f"the maps of {n_images:,} images take {size / 2**30:.1f} GiB, so they are not kept but computed in "
                "every epoch; losses that look at vectors alone need no map"
            )
            return None
    return Encoding.cat(found)
