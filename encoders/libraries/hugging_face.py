"""Networks of transformers, of which the image's part is taken where a model has a text tower beside it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ...images.transform import Transform
from .models import LibraryModel, library, require_options

_NOT_OF_THE_NETWORK = (
    *("transformers_version", "dtype", "torch_dtype", "architectures", "auto_map", "quantization_config"),
    *("id2label", "label2id", "problem_type"),
)


def build(name: str, options: dict[str, Any], pretrained: bool) -> LibraryModel:
    """The network `hf:NAME` or `hf:FOLDER`; the options are fields of its configuration."""
    transformers = library("hf")
    kept = options.get("config")
    own = {key: value for key, value in options.items() if key not in ("readout", "config")}
    require_options("hf", own, "^_|^auto_map$|trust|cache|quantization|attn_implementation")
    if kept is None:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **own)
    else:
        config = transformers.AutoConfig.for_model(**_plain(kept), **own)
    if pretrained:
        make = {"config": config, "dtype": torch.float32, "trust_remote_code": False}
        whole = transformers.AutoModel.from_pretrained(name, **make)
    else:
        whole = transformers.AutoModel.from_config(config, trust_remote_code=False)
    model = _seeing(transformers, whole)
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        raise InputError(f"hf:{name} is a {config.model_type} model, which takes {model.main_input_name} and no images")
    transform, assumed = (Transform(), "") if kept is not None else _transform_of(transformers, name, model.config)
    return LibraryModel(
        model,
        f"hf:{config.model_type if Path(name).is_dir() else name}",
        {"config": _plain(config.to_diff_dict())},
        transform,
        frozenset() if model is whole else frozenset(whole.state_dict()),
        assumed,
        None if model is whole else whole,
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what is no part of the network, in its towers' too."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key not in _NOT_OF_THE_NETWORK and not key.startswith("_")
    }


def _seeing(transformers: Any, whole: Any) -> Any:
    """The part that images go through, up to the space that the texts share."""
    vision = getattr(whole, "vision_model", None)
    if not isinstance(vision, nn.Module):
        return whole
    if not hasattr(whole, "visual_projection"):
        return vision
    name = type(whole).__name__.removesuffix("Model") + "VisionModelWithProjection"
    config: Any = vision.config
    config.projection_dim = whole.visual_projection.out_features
    with torch.device("meta"):
        part = getattr(transformers, name)(config)
    part.vision_model, part.visual_projection = vision, whole.visual_projection
    return part


def _transform_of(transformers: Any, name: str, config: Any) -> tuple[Transform, str]:
    """The transform of the model's image processor, and what of it is assumed where there is none."""
    found: Mapping[str, Any] = {}
    with suppress(OSError, ValueError, ImportError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False).to_dict()
    if not found:
        sides = _sides(getattr(config, "image_size", 224))
        transform = Transform(sides, fit="crop", resize=max(sides), interpolation="bicubic")
        said = f"{sides[0]}×{sides[1]}, the shorter side resized and the centre cut out, ImageNet's mean and std"
        return transform, f"it comes without an image processor, so {said} are assumed"
    size, crop = found.get("size") or {}, found.get("crop_size")
    shorter = size.get("shortest_edge")
    is_cut = bool(found.get("do_center_crop")) and crop is not None
    sides = _sides(crop if is_cut else shorter or size)
    fit: Any = "crop" if is_cut and shorter else "squash"
    plain = found.get("image_mean") is None or not found.get("do_normalize", True)
    transform = Transform(
        sides,
        fit=fit,
        resize=max(shorter or 0, *sides) if fit == "crop" else None,
        mean=(0.0, 0.0, 0.0) if plain else tuple(found["image_mean"]),
        std=(1.0, 1.0, 1.0) if plain else tuple(found["image_std"]),
        interpolation="bilinear" if found.get("resample") == 2 else "bicubic",  # Pillow's numbers
    )
    is_assumed = fit == "squash" and bool(shorter)
    return transform, "its processor keeps proportions, which is taken as a square" * is_assumed


def _sides(size: Any) -> tuple[int, int]:
    """Height and width of whatever a configuration calls a size."""
    if isinstance(size, Mapping):
        side = size.get("longest_edge") or size.get("max_height") or 224
        return int(size.get("height", side)), int(size.get("width", side))
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
