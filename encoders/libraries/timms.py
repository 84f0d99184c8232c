"""Networks of timm, built without a classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...images.transform import Transform
from .models import LibraryModel, library, require_known, require_options

_BUILT_BY = ("input_size", "fixed_input_size", "pool_size", "first_conv", "classifier", "num_classes")
_SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")


def build(name: str, options: dict[str, Any], pretrained: bool) -> LibraryModel:
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
    model = _created(source, own, pretrained)
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
        transform_of(config) or Transform(),
        frozenset(spare),
        assumed,
    )


def _created(source: str, options: Mapping[str, Any], pretrained: bool) -> Any:
    """The network without its classifier; transformers take any size of image where timm lets them."""
    timm = library("timm")
    for more in ({"dynamic_img_size": True}, {}):
        try:
            return timm.create_model(source, pretrained=pretrained, num_classes=0, **{**options, **more})
        except TypeError as error:
            if more and "dynamic_img_size" in str(error):
                continue
            given = ", ".join(f"{key}={value!r}" for key, value in options.items())
            raise InputError(f"timm:{source} cannot be built with {given or 'no options'}: {error}") from error
    raise AssertionError


def transform_of(config: Any) -> Transform | None:
    """The transform that a timm model's `pretrained_cfg` asks for; None where it says no mean and deviation.

    Source: timm's own evaluation: the shorter side becomes `floor(size / crop_pct)`, the centre is cut out.
    """
    values = config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}
    mean, std, size = (values.get(name) for name in ("mean", "std", "input_size"))
    if mean is None or std is None or not len(mean) == len(std) == 3:
        return None
    sides = (224, 224) if size is None else (int(size[-2]), int(size[-1]))
    mode = values.get("crop_mode") or "center"
    share = values.get("crop_pct") or 0.875
    fit: Any = {"squash": "squash", "border": "pad"}.get(mode, "crop")
    return Transform(
        size=sides,
        fit=fit,
        resize=math.floor(max(sides) / share) if fit == "crop" else None,
        mean=tuple(mean),
        std=tuple(std),
        interpolation="bilinear" if values.get("interpolation") == "bilinear" else "bicubic",
    )
