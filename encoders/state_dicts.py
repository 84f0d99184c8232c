"""Tensors of a file matched with a network's and copied into it: all or nothing, and what nothing takes is named.

Names differ by what training scripts put around a network. No list of prefixes is kept: every beginning of a name whose
rest is a name of the network is tried, and the one wins with which most tensors fit, by name and shape.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..remarks import remark
from .layers import plain_name

_DEEPEST = 12  # parts of a name that are tried as a prefix: a file's names are not trusted
_COUNTER = "num_batches_tracked"
_OLD_DENSENET = re.compile(r"\.(norm|conv)\.([12])\.")  # torchvision's files of 2017: norm.1 for norm1
_BESIDE = re.compile(
    r"(^|[._])(fc|classifiers?|heads?|bottleneck|bn_?neck|neck|proj\w*|predictor|logits?|aux\w*|loss\w*|criterion\w*|"
    r"centers?|prox(y|ies)|pool\w*|gem\w*|gap|arcface|cosface|margin|queue\w*|n_averaged|miner|metric\w*|teacher|momentum\w*|ema)([._]|\d|$)",
    re.IGNORECASE,
)


class StateDict(dict[str, Tensor]):
    """Named tensors of a file."""

    place: str = ""  # the keys that lead to them in the file
    others: tuple[StateDict, ...] = ()  # in the same file
    versions: Mapping[str, Mapping[str, object]] = {}  # what torch noted about each module's format


@dataclass(frozen=True)
class NameFit:
    """Tensors of a file by the names of a network."""

    tensors: dict[str, Tensor]  # by the network's names
    left: dict[str, Tensor]  # of the same place, by name without the prefix where it has it
    prefix: str = ""  # what the file's names have in front
    place: str = ""
    rivals: tuple[str, ...] = ()  # other prefixes with their place, under which another network that fits as well lies
    strays: frozenset[str] = frozenset()  # of `left`: what lies outside the prefix

    @property
    def origin(self) -> str:
        """The place in the file, in words."""
        return f"{self.place}.{self.prefix}".strip(".") or "the top"


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's state_dict without what is no tensor: the extra state that some modules add."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def best_match(module: nn.Module, state: Mapping[str, Tensor]) -> NameFit:
    """The tensors of a file that fit a module, wherever in the file they lie and whatever their names begin with."""
    expected = tensors_of(module)
    sources = [state, *(state.others if isinstance(state, StateDict) else ())]
    found = [match for source in sources for match in _matches(module, expected, source)]
    found.sort(key=lambda match: -_fitting(match, expected))  # stable: the first of equals stays first
    best, level = found[0], _fitting(found[0], expected)
    alike = [match for match in found[1:] if level and _fitting(match, expected) == level]
    names = tuple(dict.fromkeys(match.origin for match in alike if not _is_copy(match, best)))
    prefixes = tuple(match.prefix for match in alike if match.prefix and match.place == best.place)
    left = {name: t for name, t in best.left.items() if name not in best.strays or not name.startswith(prefixes)}
    return replace(best, left=left, rivals=names)


def _is_copy(match: NameFit, best: NameFit) -> bool:
    named = ((name, tensor) for name, tensor in match.tensors.items() if not name.endswith(_COUNTER))
    return all(name in best.tensors and _same_values(tensor, best.tensors[name]) for name, tensor in named)


def _matches(module: nn.Module, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[NameFit]:
    """One match for each prefix with which most names fit; the one without a prefix comes first among equals."""
    names = _by_plain_name(expected)
    counts: Counter[str] = Counter({"": 0})
    for given, tensor in state.items():
        parts = given.split(".")
        for depth in range(min(len(parts), _DEEPEST)):
            name = _known(".".join(parts[depth:]), names)
            if name is not None:
                prefix = ".".join(parts[:depth])
                counts[prefix + "." if prefix else ""] += 1 + (tensor.shape == expected[name].shape)
    most = max(counts.values())
    place = state.place if isinstance(state, StateDict) else ""
    matches = []
    for prefix in [prefix for prefix, count in counts.items() if count == most][:4]:
        inside = {given.removeprefix(prefix): tensor for given, tensor in state.items() if given.startswith(prefix)}
        tensors, left = _assigned(inside, expected)
        if left and any(name not in tensors and not name.endswith(_COUNTER) for name in expected):
            tensors, left = _assigned(_renamed_by_its_own_code(module, inside, state), expected)
        strays = {given: tensor for given, tensor in state.items() if not given.startswith(prefix)}
        matches.append(NameFit(tensors, {**left, **strays}, prefix, place, strays=frozenset(strays)))
    return matches


def _by_plain_name(expected: Mapping[str, Tensor]) -> dict[str, str]:
    """The network's names as they are, without what wrappers add where that keeps them apart, and without what all of
    them begin with: a module of the user's own may hold the network that the file is of.
    """
    plain, begins = {plain_name(name): name for name in expected}, common_beginning(expected)
    inner = {name.removeprefix(begins): name for name in expected}
    return {**inner, **(plain if len(plain) == len(expected) else {}), **{name: name for name in expected}}


def _known(name: str, names: Mapping[str, str]) -> str | None:
    """The network's name for a name of the file."""
    candidates = (name, plain_name(name), _OLD_DENSENET.sub(r".\1\2.", name))
    return next((names[candidate] for candidate in candidates if candidate in names), None)


def _assigned(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors that the network takes, by its own names, and the rest."""
    names, taken, left = _by_plain_name(expected), dict[str, Tensor](), dict[str, Tensor]()
    for given, tensor in tensors.items():
        name = _known(given, names)
        if name is None:
            left[plain_name(given)] = tensor
        elif name not in taken or given == name:
            taken[name] = tensor
    return taken, left


def _renamed_by_its_own_code(
    module: nn.Module, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors under the names that modules give them when they load a file of an older release."""
    renaming = [
        name
        for name, part in module.named_modules()
        if part._load_state_dict_pre_hooks or not type(part)._load_from_state_dict.__module__.startswith("torch.nn.")
    ]
    renamed = renamed_by_library(module, tensors)
    versions = state.versions if isinstance(state, StateDict) else {}
    with suppress(AssertionError, KeyError, RuntimeError, TypeError, ValueError):  # a format it does not know
        empty = deepcopy(module).to("meta") if renaming else module  # whatever is copied there goes nowhere
        for name in renaming:
            at = f"{name}." if name else ""
            empty.get_submodule(name)._load_from_state_dict(renamed, at, versions.get(name, {}), False, [], [], [])
    return renamed


def _fitting(match: NameFit, expected: Mapping[str, Tensor]) -> int:
    return sum(tensor.shape == expected[name].shape for name, tensor in match.tensors.items())


def _same_values(one: Tensor, other: Tensor) -> bool:
    """Compared only where both hold as many numbers as they claim."""
    if one is other:
        return True
    is_honest = all(
        t.layout == torch.strided and t.untyped_storage().nbytes() >= t.numel() * t.element_size() for t in (one, other)
    )
    return is_honest and one.shape == other.shape and bool(torch.equal(one, other))


def is_beside_the_network(name: str, expected: Collection[str]) -> bool:
    """True if a left-over tensor looks like a head, a loss or a training aid: it is in no part of the network."""
    first = name.partition(".")[0]
    is_part = any(own.partition(".")[0] == first for own in expected)
    return not is_part and _BESIDE.search(name) is not None


def common_beginning(names: Collection[str]) -> str:
    """The parts that all names of a file begin with, with the dot behind them.

    >>> common_beginning(["model.net.fc.weight", "model.net.conv.bias"])
    'model.net.'
    """
    split = [name.split(".")[:-1] for name in names]
    shortest = min(split, key=len, default=[])
    depth = next((i for i, part in enumerate(shortest) if any(s[i] != part for s in split)), len(shortest))
    return "".join(f"{part}." for part in shortest[:depth])


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    origin: str,
    spare: Collection[str] = (),
    exact: bool = False,
) -> dict[str, Tensor]:
    """Copy named tensors into a module, all or nothing.

    Counters of batches may be missing. A head's, a loss's and another network's tensors are left over; they are
    returned if they are not `spare`. With `exact` names must be the module's own, and nothing may be left over.
    """
    expected = tensors_of(module)
    inside = {name: tensor for name, tensor in state.items() if name in expected}
    outside = {name: tensor for name, tensor in state.items() if name not in expected}
    match = NameFit(inside, outside) if exact else best_match(module, state)
    left = {name: tensor for name, tensor in match.left.items() if name not in spare}
    superfluous = [n for n in left if exact or not (n in match.strays or is_beside_the_network(n, expected))]
    _refuse_misfits(match, expected, state, origin=origin)
    _refuse(origin, superfluous, "tensors have no place in the architecture")
    not_finite = [n for n, t in match.tensors.items() if not bool(torch.isfinite(t).all())]
    _refuse(origin, not_finite, "tensors hold NaN or infinity")
    with torch.no_grad():
        for name, tensor in match.tensors.items():
            expected[name].copy_(tensor)
    if match.rivals:
        remark(
            f"{origin}: {1 + len(match.rivals)} networks in it fit; the one under {match.origin!r} is taken, not that "
            f"under {match.rivals[0]!r}; save the one you want by itself"
        )
    return left


def _refuse_misfits(
    match: NameFit, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], *, origin: str
) -> None:
    matched = match.tensors
    missing = [name for name in expected if name not in matched and not name.endswith("num_batches_tracked")]
    wrong = [
        f"{name} is {_kind(tensor)}, expected {_kind(expected[name])}"
        for name, tensor in matched.items()
        if not (
            tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_quantized
            and not tensor.is_complex()
            and tensor.is_floating_point() == expected[name].is_floating_point()
            and tensor.shape == expected[name].shape
        )
    ]
    hardly = 2 * (len(matched) - len(wrong)) < len(expected)  # a few names may be alike by chance
    if matched and not hardly:
        at = f" (its names begin with {match.prefix!r})" if match.prefix else ""
        advice = f"; is this another architecture, or another layer?{at}"
    else:
        advice = f"; hardly a name in it fits: it has {next(iter(state), '')!r}, expected {next(iter(missing), '')!r}"
        if begins := common_beginning(state):
            advice += (
                f", and all of its names begin with {begins!r}; save the network alone, "
                f"torch.save({{k.removeprefix({begins!r}): v for k, v in state.items()}}, FILE)"
            )
        else:
            advice += "; save the state_dict() of the network itself"
        _refuse(origin, missing if hardly else [], "tensors are missing", advice=advice)
    _refuse(origin, wrong, "tensors do not fit the architecture")
    _refuse(origin, missing, "tensors are missing", advice=advice)


def say_what_is_left(left: Collection[str], *, origin: str) -> None:
    """A remark about tensors of a file that nothing takes."""
    names = [name for name in left if not name.endswith(("num_batches_tracked", "n_averaged"))]
    if names:
        remark(
            f"{origin}: {len(names)} of its tensors have no place in the network and are left out, such as "
            f"{', '.join(names[:3])}",
            stacklevel=4,
        )


def _kind(tensor: Tensor) -> str:
    kind = "quantised " * tensor.is_quantized + "sparse " * (tensor.layout != torch.strided)
    return f"{kind}{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}{' without values' * tensor.is_meta}"


def _refuse(origin: str, names: list[str], reason: str, *, advice: str = "") -> None:
    if names:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise WeightsError(f"{origin}: {len(names)} {reason} ({some}){advice}")


def renamed_by_library(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that timm or transformers would give them for this network; else as they are."""
    home = type(network).__module__
    found: Any = None
    with suppress(Exception):  # whatever a file provokes that is another network's
        if home.startswith("timm."):
            found = sys.modules[home].checkpoint_filter_fn(dict(tensors), network)
        elif home.startswith("transformers."):
            loading: Any = type(network)
            told = {"config": network.config, "state_dict": dict(tensors), "output_loading_info": True}
            loaded, report = loading.from_pretrained(None, **told)
            found = None if report["missing_keys"] or report["mismatched_keys"] else loaded.state_dict()
    return dict(found or tensors)
