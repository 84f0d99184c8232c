"""Whole classifiers and segmentation networks by name: with their classes, their transform, and a layer to look at.

An `Encoder` ends at the feature map; to ask why a class was chosen, or why these pixels, takes the whole network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...images.transform import Transform
from ..layers import closest
from ..names import needs_weights
from ..state_dicts import load_state, say_what_is_left
from ..weight_files import drawn_from, fetch_imagenet, read_state_dict, uninitialised, usual_transform
from .registry import with_last_stage
from .torchvisions import models

Kind = Literal["classifier", "segmenter"]

SEGMENTER_SIZE = 520  # the shorter side that torchvision's reference training resizes to
AUXILIARY = ("aux_classifier.", "aux1.", "aux2.", "AuxLogits.")  # heads that only training uses


@dataclass(frozen=True, eq=False)
class Network:
    """A network that scores classes: (b, 3, H, W) → (b, c), or for each pixel → {"out": (b, c, H, W)}.

    `layer` is the last one whose output is a map that the scores depend on; unknown names of classes are left empty.
    """

    model: nn.Module
    kind: Kind
    transform: Transform
    layer: str
    classes: tuple[str, ...]
    n_classes: int


def available_networks(kind: Kind | None = None) -> list[str]:
    """The names `load_network` knows, sorted; all of them or those of one kind."""
    segmenters = models.list_models(module=models.segmentation)
    classifiers = models.list_models(module=models)
    return sorted({"classifier": classifiers, "segmenter": segmenters, None: [*classifiers, *segmenters]}[kind])


def load_network(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    n_classes: int | None = None,
    seed: int = 0,
) -> Network:
    """A torchvision classifier or segmentation network, ready to be explained. Nothing is downloaded unless asked for.

    Weights must be named: a file with a state_dict, which also says how many classes there are, "default" or "imagenet"
    (torchvision's own, downloaded), or "random" (drawn from `seed`). Names of classes are torchvision's if left out.

    >>> load_network("lraspp_mobilenet_v3_large", weights="random").classes[8]
    'cat'
    """
    kind = _kind_of(name)
    if weights is None:
        raise InputError(needs_weights(name))
    try:  # the list that comes with torchvision's own weights is part of the package, no download
        known = tuple(models.get_model_weights(name).DEFAULT.meta["categories"])
    except (AttributeError, KeyError, ValueError):
        known = ()
    transform = Transform(SEGMENTER_SIZE, fit="squash") if kind == "segmenter" else usual_transform(name)
    if weights in ("default", "imagenet"):
        state, transform = fetch_imagenet(name, otherwise=transform)
        n_classes = len(known)
    elif weights == "random":
        state = None
    else:
        state = read_state_dict(weights)
        n_classes = _n_classes(name, state)
    n_classes = n_classes or (None if classes is None else len(classes)) or len(known) or None
    with drawn_from(seed) if state is None else uninitialised():
        model = _built(name, kind, n_classes)
    if state is not None:
        origin = f"{os.fspath(weights)} for {name}"
        left = load_state(model, state, origin=origin)
        say_what_is_left([key for key in left if not key.startswith(AUXILIARY)], origin=origin)
    n_classes = n_classes or _n_classes(name, model.state_dict()) or 0
    names = tuple(classes or (known if len(known) == n_classes else ()))
    if names and len(names) != n_classes:
        raise InputError(f"{len(names)} names of classes were given, but {name} with these weights has {n_classes}")
    model, layer = _with_layer(model, kind)
    return Network(model.eval(), kind, transform, layer, names, n_classes)


def find_class(asked: str, classes: Sequence[str], n_classes: int) -> int:
    """The number of a class given by its number or its name; case, hyphens, underscores and spaces do not matter.

    >>> find_class("egyptian-cat", ["tabby", "Egyptian cat"], 2)
    1
    """
    if asked.strip().isdecimal():
        number = int(asked)
        if number >= n_classes:
            raise InputError(f"class {number} does not exist; there are {n_classes}, from 0 to {n_classes - 1}")
        return number
    if not classes:
        raise InputError(f"the names of the {n_classes} classes are not known, so {asked!r} is not; give a number")
    plain = [_plain(name) for name in classes]
    found = [number for number, name in enumerate(plain) if name == _plain(asked)]
    if len(found) > 1:
        raise InputError(f"{len(found)} classes are called {asked!r}; give one of the numbers {found}")
    if not found:
        part = [name for name in classes if _plain(asked) in _plain(name).split()][:3]
        raise InputError(f"no class {asked!r}; nearest: {', '.join(map(repr, part)) or closest(asked, list(classes))}")
    return found[0]


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))


def _kind_of(name: str) -> Kind:
    for kind in ("classifier", "segmenter"):
        if name in available_networks(kind):
            return kind
    raise InputError(f"no classifier or segmentation network {name!r}; nearest: {closest(name, available_networks())}")


def _built(name: str, kind: Kind, n_classes: int | None) -> nn.Module:
    """The network with freshly drawn weights, without auxiliary heads."""
    options: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
    if kind == "segmenter":
        options |= {"weights_backbone": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True, "aux_logits": False}
    model: nn.Module = models.get_model_builder(name)(weights=None, **options)
    return model


def _n_classes(name: str, state: Mapping[str, Tensor]) -> int | None:
    """Rows of the last layer's parameters in a state_dict; None if it has no such layer."""
    try:  # for the names of its tensors; without values wherever it can be built without
        with torch.device("meta"):
            skeleton = _built(name, _kind_of(name), None)
    except NotImplementedError:  # RegNets compute their widths with tensors
        with uninitialised():
            skeleton = _built(name, _kind_of(name), None)
    last = list(skeleton.state_dict())[-1]
    found = next((tensor for key, tensor in state.items() if f".{key}".endswith(f".{last}")), None)
    return None if found is None or found.ndim == 0 else len(found)


def _with_layer(model: nn.Module, kind: Kind) -> tuple[nn.Module, str]:
    """The end of a segmenter's backbone, a classifier's last map, or a transformer's input to its last attention."""
    if kind == "segmenter":
        return model, f"backbone.{list(dict(model.get_submodule('backbone').named_children()))[-1]}"
    if isinstance(model, models.VisionTransformer):  # behind the last attention only the class token counts
        return model, f"encoder.layers.{list(dict(model.encoder.layers.named_children()))[-1]}.ln_1"
    return with_last_stage(model)
