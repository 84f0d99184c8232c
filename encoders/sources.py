"""What `Encoder.load` is given: which kind of source it is, and the weights and the transform that come with it."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from ..errors import InputError
from ..images.transform import Transform
from ..remarks import remark
from .backbones import available_architectures, require_architecture
from .matching import StateDict
from .names import OWN_ARCHITECTURES, needs_weights
from .weights import fetch_imagenet, read_state_dict, transform_of_timm, usual_transform

__all__ = ["CHECKPOINT_SUFFIX", "is_checkpoint", "published", "transform_for"]

CHECKPOINT_SUFFIX = ".safetensors"


def is_checkpoint(source: str | os.PathLike[str]) -> bool:
    """Path objects and names with the suffix mean files; so do other strings, unless they name an architecture."""
    if isinstance(source, str) and not source.endswith(CHECKPOINT_SUFFIX):
        return source not in available_architectures() and Path(source).is_file()
    return True


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
