"""What `Encoder.load` is given: which kind of source it is, and the weights and the transform that come with it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import nn

from ...errors import InputError
from ...files import is_file
from ...images.transform import Transform
from ...remarks import remark
from ..backbones.registry import available_architectures, require_architecture
from ..names import CHECKPOINT_SUFFIX, OWN_ARCHITECTURES, needs_weights, refuse_weight_file
from .matching import StateDict
from .reading import fetch_imagenet, read_state_dict, transform_of_timm, usual_transform

__all__ = ["is_checkpoint", "published", "require_parts", "transform_for"]


def is_checkpoint(source: str | os.PathLike[str]) -> bool:
    """True for a checkpoint's path, False for an architecture's name.

    Raises:
        InputError: a file of weights alone, or neither.
    """
    if not isinstance(source, str | os.PathLike):
        hint = "; call it, to have a module" if callable(source) else ""
        raise InputError(
            f"expected an architecture's name, a checkpoint's path or a module, got {_shown(source)}{hint}"
        )
    if isinstance(source, str) and source in available_architectures():
        return False
    name = os.fspath(source)
    refuse_weight_file(name)
    return not isinstance(source, str) or name.endswith(CHECKPOINT_SUFFIX) or is_file(name)


def require_parts(*, head: object = None, transform: object = None, options: object = None) -> None:
    """Refuse parts of an encoder that are of another kind than they should be.

    Raises:
        InputError: what was expected, and what it is.
    """
    if head is not None and not isinstance(head, nn.Module):
        raise InputError(f"expected a module as head, such as Linear(64, 128), got {_shown(head)}")
    if transform is not None and not isinstance(transform, Transform):
        raise InputError(f"expected a Transform as transform, such as Transform(224), got {_shown(transform)}")
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"expected options as a dictionary, such as {{'last_stride': 1}}, got {_shown(options)}")


def _shown(value: object) -> str:
    """A value in one short line of an error message."""
    text = repr(value).partition("\n")[0]
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def published(name: str, weights: str | os.PathLike[str] | None) -> tuple[StateDict | None, Transform]:
    """Weights from outside, None for random ones, and the transform that goes with them.

    Raises:
        InputError: no weights are named, and there are some to choose from.
    """
    require_architecture(name)
    if weights is None:
        if name not in OWN_ARCHITECTURES:
            raise InputError(needs_weights(name))
        remark(
            f"there are no weights of {name} to download, so they are drawn at random, which is for trials; say "
            "weights='random' if that is meant, or name a file of weights",
            stacklevel=5,
        )
        weights = "random"
    if weights == "imagenet":
        state, transform = fetch_imagenet(name)
        return StateDict(state), transform
    return None if weights == "random" else read_state_dict(weights), usual_transform(name)


def transform_for(module: nn.Module, *, is_told: bool) -> Transform:
    """What a module of the user's own says about its input; that it wants ImageNet's colours otherwise is a remark."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)  # timm's models have it
    transform = None if config is None else transform_of_timm(config)
    if transform is None and not is_told:
        remark(
            f"what mean and std {type(module).__name__} wants is not known, so ImageNet's are taken; say them with "
            "mean= and std=, or with transform=",
            stacklevel=5,
        )
    return transform or Transform()
