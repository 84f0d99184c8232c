"""Networks of timm, transformers and open_clip, without a classifier: of one with a text tower the image's part."""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ...images.transform import Transform
from ...remarks import remark
from ..checkpoint import canonical_json
from ..names import library_of
from .models import LibraryModel, fetching, library, require_known, require_options

_BUILT_BY = ("input_size", "fixed_input_size", "pool_size", "first_conv", "classifier", "num_classes")
_SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")


def timm_model(name: str, options: dict[str, Any], pretrained: bool) -> LibraryModel:
    """The network `timm:NAME`, `timm:hf-hub:OWNER/NAME` or `timm:FOLDER`; options go to timm's constructor."""
    timm = library("timm")
    own = {key: value for key, value in options.items() if key not in ("readout", "architecture")}
    require_options("timm", own, "_path$|cache|overlay|pretrained(?!_cfg$)|_file$")
    require_options("timm", own.get("pretrained_cfg") or {}, f"^(?!({'|'.join(_BUILT_BY)})$)")
    folder = Path(name.removeprefix("local-dir:"))
    is_folder = folder.is_dir() and (folder / "config.json").is_file()
    is_elsewhere = is_folder or name.startswith(_SCHEMES)
    source = options.get("architecture") or (f"local-dir:{folder}" if is_folder else name)
    if not is_elsewhere or "architecture" in options:
        known = [*timm.list_models(), *timm.list_pretrained()]  # with and without the tag of their weights
        require_known("timm", source, [source] if timm.is_model(source.partition(".")[0]) else known)
    model = _timm_created(timm, source, own, pretrained=pretrained)
    config: Mapping[str, Any] = model.pretrained_cfg
    if is_elsewhere:
        built_by = {
            "architecture": config["architecture"],
            "pretrained_cfg": {key: config.get(key) for key in _BUILT_BY},
        }
        own = {**built_by, **getattr(model, "_model_args", {}), **own}
    heads = config.get("classifier") or ()
    spare = {f"{head}.{kind}" for head in ([heads] if isinstance(heads, str) else heads) for kind in ("weight", "bias")}
    filtering, share = config.get("interpolation") or "bicubic", config.get("crop_pct") or 1
    assumed = "its crop of a squashed image is left out" * (config.get("crop_mode") == "squash" and share < 1)
    if filtering not in ("bilinear", "bicubic"):
        assumed = f"its interpolation, {filtering}, is taken as bicubic"
    return LibraryModel(
        model,
        f"timm:{config['architecture'] if is_folder else name}",
        {key: value for key, value in own.items() if key not in ("num_classes", "dynamic_img_size")},
        transform_of_timm(config) or Transform(),
        frozenset(spare),
        assumed,
    )


def _timm_created(timm: Any, source: str, options: Mapping[str, Any], *, pretrained: bool) -> Any:
    """The network without its classifier; transformers take any size of image where timm lets them."""
    for more in ({"dynamic_img_size": True}, {}):
        try:
            return timm.create_model(source, pretrained=pretrained, num_classes=0, **{**options, **more})
        except TypeError as error:
            if more and "dynamic_img_size" in str(error):
                continue
            given = ", ".join(f"{key}={value!r}" for key, value in options.items())
            raise InputError(f"timm:{source} cannot be built with {given or 'no options'}: {error}") from error
    raise AssertionError


def transform_of_timm(config: Any) -> Transform | None:
    """The transform that a timm model's `pretrained_cfg` asks for; None where it says no mean and deviation.

    Source: timm's own evaluation: the shorter side becomes `floor(size / crop_pct)`, the centre is cut out.
    """
    values = config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}
    mean, std, size = (values.get(name) for name in ("mean", "std", "input_size"))
    if mean is None or std is None or not len(mean) == len(std) == 3:
        return None
    sides, share = _sides(224 if size is None else size[-2:]), values.get("crop_pct") or 0.875
    fit: Any = {"squash": "squash", "border": "pad"}.get(values.get("crop_mode") or "center", "crop")
    return Transform(
        size=sides,
        fit=fit,
        resize=math.floor(max(sides) / share) if fit == "crop" else None,
        mean=tuple(mean),
        std=tuple(std),
        interpolation="bilinear" if values.get("interpolation") == "bilinear" else "bicubic",
    )


_CONFIG = "open_clip_config.json"


def open_clip_model(name: str, options: dict[str, Any], pretrained: bool) -> LibraryModel:
    """The network `open_clip:NAME`, `NAME/TAG` of certain weights, `hf-hub:OWNER/NAME`, or a folder with its file."""
    open_clip = library("open_clip")
    own = {key: value for key, value in options.items() if key not in ("readout", "config")}
    require_options("open_clip", own, "^(?!force_)")
    if "config" in options:  # kept
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _CONFIG).write_text(json.dumps({"model_cfg": options["config"]}), encoding="utf-8")
            whole = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False, **own)
        return _image_tower(open_clip, whole, name, options["config"], own)
    if (Path(name) / _CONFIG).is_file():
        name = f"local-dir:{name}"
    if name.startswith(("hf-hub:", "local-dir:")):
        whole = open_clip.create_model(name, load_weights=pretrained, pretrained_text=False, **own)
        config = open_clip.get_model_config(name)
        return _image_tower(open_clip, whole, name.removeprefix("local-dir:"), config, own)
    name, tag = _parted(open_clip, name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is not None:
        require_known("open_clip", f"{name}/{tag}", [f"{name}/{each}" for each in tags])
    is_chosen, tag = tag is not None or len(tags) < 2, tag or (tags[0] if tags else None)
    published = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    config = open_clip.get_model_config(name)
    if published.get("quick_gelu"):
        config["quick_gelu"] = True
    more = {"load_weights": pretrained, "force_quick_gelu": config.get("quick_gelu", False), "pretrained_text": False}
    whole = open_clip.create_model(name, pretrained=tag if pretrained else None, **more, **own)
    if pretrained and not is_chosen:
        remark(f"open_clip:{name}: of {len(tags)} published weights {tag} are taken; NAME/TAG names others")
    looks = {key: published[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in published}
    name = f"{name}/{tag}" if pretrained else name
    return _image_tower(open_clip, whole, name, config, own, looks=looks, is_said=bool(tag))


def _parted(open_clip: Any, name: str) -> tuple[str, str | None]:
    """A model's name, and the tag of its weights behind the last stroke, which older names have too: `ViT-B/32`."""
    known = open_clip.list_models()
    plain = name.replace("/", "-")
    if plain in known:
        return plain, None
    model, stroke, tag = name.rpartition("/")
    require_known("open_clip", model.replace("/", "-") if stroke else name, known)
    return model.replace("/", "-"), tag


def _image_tower(
    open_clip: Any,
    whole: Any,
    name: str,
    config: Mapping[str, Any],
    own: Mapping[str, Any],
    *,
    looks: Mapping[str, Any] | None = None,
    is_said: bool = True,
) -> LibraryModel:
    """The image's tower of a whole model."""
    values = {**open_clip.get_model_preprocess_cfg(whole), **(looks or {})}
    assumed = "" if is_said else "no published weights of it say a transform, so CLIP's mean and std are assumed"
    return LibraryModel(
        whole.visual,
        f"open_clip:{Path(name).name if Path(name).is_dir() else name}",
        {**own, "config": dict(config)},
        transform_of_open_clip(values),
        frozenset(whole.state_dict()),
        assumed,
        whole,
    )


def transform_of_open_clip(values: Mapping[str, Any]) -> Transform:
    """The transform that a model's `preprocess_cfg` asks for."""
    fits: Any = {"shortest": "crop", "squash": "squash", "longest": "pad"}
    sides, fit = _sides(values["size"]), fits[values.get("resize_mode") or "shortest"]
    return Transform(
        sides,
        fit=fit,
        resize=max(sides) if fit == "crop" else None,
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        interpolation="bilinear" if values.get("interpolation") == "bilinear" else "bicubic",
        fill=(values.get("fill_color") or 0,) * 3,
    )


_NOT_OF_THE_NETWORK = (
    *("transformers_version", "dtype", "torch_dtype", "architectures", "auto_map", "quantization_config"),
    *("id2label", "label2id", "problem_type"),
)


def hugging_face_model(name: str, options: dict[str, Any], pretrained: bool) -> LibraryModel:
    """The network `hf:NAME` or `hf:FOLDER`; the options are fields of its configuration."""
    transformers = library("hf")
    kept = options.get("config")
    own = {key: value for key, value in options.items() if key not in ("readout", "config")}
    require_options("hf", own, "^_|^auto_map$|trust|cache|quantization|attn_implementation")
    if is_kept := kept is not None:
        config = transformers.AutoConfig.for_model(**_plain(kept), **own)
    else:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **own)
    if pretrained:
        make = {"config": config, "dtype": torch.float32, "trust_remote_code": False}
        whole = transformers.AutoModel.from_pretrained(name, **make)
    else:
        whole = transformers.AutoModel.from_config(config, trust_remote_code=False)
    model = _seeing_part(transformers, whole)
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        raise InputError(f"hf:{name} is a {config.model_type} model, which takes {model.main_input_name} and no images")
    transform, assumed = (Transform(), "") if is_kept else _of_processor(transformers, name, model.config)
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


def _seeing_part(transformers: Any, whole: Any) -> Any:
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


def _of_processor(transformers: Any, name: str, config: Any) -> tuple[Transform, str]:
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


_BUILDERS: Mapping[str, Callable[[str, dict[str, Any], bool], LibraryModel]] = {
    "timm": timm_model,
    "hf": hugging_face_model,
    "open_clip": open_clip_model,
}
"""By prefix; each takes the name behind it, options, and whether the library's own weights are wanted."""


def build_model(name: str, options: Mapping[str, Any], *, is_pretrained: bool = False) -> LibraryModel:
    """The network that a name stands for, with the library's own weights or freshly drawn ones."""
    prefix = library_of(name)
    if prefix is None or name == f"{prefix}:":
        raise InputError(f"expected a name behind the colon, such as timm:resnet50, got {name!r}")
    library(prefix)
    with fetching(name):
        built = _BUILDERS[prefix](name.removeprefix(f"{prefix}:"), dict(options), is_pretrained)
    options = json.loads(canonical_json(built.options))  # what they become in a checkpoint, and so in the fingerprint
    return replace(built, options=options)
