"""A run as it stands, on disk: one safetensors file whose header is JSON; no pickle, so nothing in it is code.

What goes in is a tree of dicts, lists, numbers, strings, and tensors, as every `state_dict` is. It is written aside,
brought to the disk, and renamed, so that whenever the process dies there is a whole checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...encoders.checkpoint import built_from_header, read_checkpoint, write_checkpoint
from ...errors import InputError, WeightsError
from ...files import Storage

STATE = Path("state", "run.safetensors")


def write_state(folder: Path, tree: Mapping[str, Any]) -> None:
    """Make `tree` the state of the run in `folder`, durably and in one step."""
    path = folder / STATE
    storage = Storage()
    storage.make_folder(path.parent)
    plain, tensors = flatten(tree)
    write_checkpoint(path, {"kind": "training run", "tree": plain}, tensors)
    storage.sync_folder(path.parent)


def read_state(folder: Path) -> dict[str, Any] | None:
    """The state of the run in `folder`; None if there is none."""
    path = folder / STATE
    if not path.exists():
        return None
    config, tensors = read_checkpoint(path)
    if config.get("kind") != "training run":
        raise WeightsError(f"{path}: not the state of a training run")
    with built_from_header(path, "a training run"):
        tree: dict[str, Any] = restore(config["tree"], tensors)
    return tree


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """The tree as JSON, with names in place of tensors, and the tensors by name.

    Keys that are no strings, tuples, and numbers that are not finite survive: `restore` gives back an equal tree.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {"$tensor": path}
        if isinstance(value, Mapping):
            return {"$items": [[plain(key, path), plain(item, f"{path}/{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            items = [plain(item, f"{path}/{position}") for position, item in enumerate(value)]
            return {"$tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, float) and not math.isfinite(value):
            return {"$float": repr(value)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise InputError(
            f"the state of a run holds tensors and plain values, but {path} is a {type(value).__name__}; "
            "a term keeps such things out of get_extra_state"
        )

    return plain(tree, ""), tensors


def restore(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `flatten` took apart."""
    if isinstance(plain, list):
        return [restore(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "$tensor":
        return tensors[content]
    if kind == "$float":
        return float(content)
    if kind == "$tuple":
        return tuple(restore(item, tensors) for item in content)
    return {restore(key, tensors): restore(item, tensors) for key, item in content}


def difference(before: Any, now: Any, name: str = "") -> str:
    """The first difference of two JSON values, in words; empty if there is none."""
    if isinstance(before, dict) and isinstance(now, dict):
        differences = (
            difference(before.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in {**before, **now}
        )
        return next(filter(None, differences), "")
    return "" if before == now else f"{name} was {before!r} and is {now!r}"
