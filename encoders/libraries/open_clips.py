"""Networks of open_clip: the tower that images go through, up to the space that the texts share."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...images.transform import Transform
from ...remarks import remark
from .models import LibraryModel, library, require_known, require_options

_CONFIG = "open_clip_config.json"


def build(name: str, options: dict[str, Any], pretrained: bool) -> LibraryModel:
    """The network `open_clip:NAME`, `NAME/TAG` of certain weights, `hf-hub:OWNER/NAME`, or a folder with its file."""
    open_clip = library("open_clip")
    own = {key: value for key, value in options.items() if key not in ("readout", "config")}
    require_options("open_clip", own, "^(?!force_)")
    if "config" in options:  # kept
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _CONFIG).write_text(json.dumps({"model_cfg": options["config"]}), encoding="utf-8")
            whole = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False, **own)
        return _seeing(open_clip, whole, name, options["config"], own)
    if (Path(name) / _CONFIG).is_file():
        name = f"local-dir:{name}"
    if name.startswith(("hf-hub:", "local-dir:")):
        whole = open_clip.create_model(name, load_weights=pretrained, pretrained_text=False, **own)
        config = open_clip.get_model_config(name)
        return _seeing(open_clip, whole, name.removeprefix("local-dir:"), config, own)
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
    return _seeing(open_clip, whole, name, config, own, looks=looks, is_said=bool(tag))


def _parted(open_clip: Any, name: str) -> tuple[str, str | None]:
    """A model's name, and the tag of its weights behind the last stroke, which older names have too: `ViT-B/32`."""
    known = open_clip.list_models()
    plain = name.replace("/", "-")
    if plain in known:
        return plain, None
    model, stroke, tag = name.rpartition("/")
    require_known("open_clip", model.replace("/", "-") if stroke else name, known)
    return model.replace("/", "-"), tag


def _seeing(
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
        transform_of(values),
        frozenset(whole.state_dict()),
        assumed,
        whole,
    )


def transform_of(values: Mapping[str, Any]) -> Transform:
    """The transform that a model's `preprocess_cfg` asks for."""
    size = values["size"]
    sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    fits: Any = {"shortest": "crop", "squash": "squash", "longest": "pad"}
    fit = fits[values.get("resize_mode") or "shortest"]
    return Transform(
        sides,
        fit=fit,
        resize=max(sides) if fit == "crop" else None,
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        interpolation="bilinear" if values.get("interpolation") == "bilinear" else "bicubic",
        fill=(values.get("fill_color") or 0,) * 3,
    )
