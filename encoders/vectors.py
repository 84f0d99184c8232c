"""Vectors that the models of timm, transformers and open_clip are searched by, computed as each library does it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from .layers import as_feature_map, eagerly

_POOLS = ("AttentionPool", "AttentionalPool", "PoolingHead", "AttnPool")  # in the names of the libraries' classes


def has_attention_pooling(model: nn.Module) -> bool:
    """True if a part of the model is one of the libraries' attention poolings."""
    return any(word in type(part).__name__ for part in model.modules() for word in _POOLS)


def first_key_is_mean(model: nn.Module) -> bool:
    """True of CLIP's ResNets, whose pooling reads with the mean of all places and has it among its keys."""
    return any(type(part).__name__ in ("AttentionPool2d", "RotAttentionPool2d") for part in model.modules())


def is_timm(model: nn.Module) -> bool:
    """True if the model divides its work as timm's do."""
    return callable(getattr(model, "forward_features", None)) and callable(getattr(model, "forward_head", None))


def features_of(model: nn.Module, images: Float[Tensor, "b 3 h w"], *, readout: str) -> Any:
    """What the model computes before its vector is taken: a tensor or an output of transformers, or the vector."""
    with eagerly(model):
        if is_timm(model):
            return model.forward_features(images)  # type: ignore[operator]
        if callable(encode := getattr(model, "encode_image", None)):
            _only_own("open_clip", readout)
            return encode(images)
        if any(base.__name__ == "PreTrainedModel" for base in type(model).__mro__):
            return _transformers(model, images)
        return model(images)


def vector_of(model: nn.Module, features: Any, images: Tensor, *, readout: str) -> Float[Tensor, "b p"]:
    """The vector that `readout` takes of the features."""
    is_own = readout in ("auto", "attention")
    if is_timm(model) and is_own:
        vector: Tensor = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
        if vector.ndim == 2:
            return vector
        features = vector
    elif is_timm(model):
        norm = getattr(model, "fc_norm", nn.Identity())
        return _pooled(features, readout, images, n_prefix=getattr(model, "num_prefix_tokens", None), norm=norm)
    if isinstance(features, Tensor):
        if features.ndim == 2:
            _only_own(type(model).__name__, readout)
            return features
        return _pooled(features, "mean" if is_own else readout, images, n_prefix=None)
    if not isinstance(features, dict):
        got = type(features).__name__
        raise ShapeError(f"{type(model).__name__} returns a {got}, expected a vector, tokens or a map; name a layer")
    own: Tensor | None = next(
        (value for name in ("image_embeds", "pooler_output") if (value := features.get(name)) is not None), None
    )
    if is_own and own is not None:
        return own.flatten(1)
    hidden, patch = features["last_hidden_state"], getattr(model.config, "patch_size", None)
    n_prefix = None
    if hidden.ndim == 3 and isinstance(patch, int):
        n_prefix = hidden.shape[1] - (images.shape[2] // patch) * (images.shape[3] // patch)
    return _pooled(hidden, "mean" if is_own else readout, images, n_prefix=n_prefix)


def _only_own(name: str, readout: str) -> None:
    if readout not in ("auto", "attention"):
        raise InputError(
            f"{name} gives a vector only, of its own pooling; readout={readout!r} needs its tokens or its map "
            "(leave readout out, or name the layer that returns them)"
        )


def _pooled(
    features: Tensor, readout: str, images: Tensor, *, n_prefix: int | None, norm: nn.Module | None = None
) -> Float[Tensor, "b p"]:
    """Class token, mean, or both, of tokens (b, n, k) or a map; `norm` is the model's own behind its pooling."""
    norm, size = norm or nn.Identity(), (images.shape[2], images.shape[3])
    if features.ndim != 3 or n_prefix is None:
        grid = as_feature_map(features, size, origin="the model")
        n_prefix = features.shape[1] - grid[0, 0].numel() if features.ndim == 3 else 0
        mean = grid.mean((2, 3))
    else:
        mean = features[:, n_prefix:].mean(1)
    if readout == "mean":
        averaged: Tensor = norm(mean)
        return averaged
    if not n_prefix:
        raise InputError(f"readout={readout!r} needs a class token, which this model has not; 'mean' takes the mean")
    token: Tensor = norm(features[:, 0])
    return token if readout == "class" else torch.cat([token, norm(mean)], -1)


def _transformers(model: nn.Module, images: Tensor) -> Any:
    """The output of a model of transformers for images; of one with a text tower that of its image side."""
    call = getattr(model, "get_image_features", model)
    takes = inspect.signature(call if call is not model else model.forward).parameters
    options: dict[str, Any] = {"pixel_values": images}
    if "spatial_shapes" in takes:  # Siglip2 takes patches, channels last, of images of any proportion
        config: Any = getattr(model.config, "vision_config", model.config)
        patch: int = config.patch_size
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        cut = images[:, :, : rows * patch, : columns * patch].reshape(-1, 3, rows, patch, columns, patch)
        options["pixel_values"] = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        options["spatial_shapes"] = torch.tensor([[rows, columns]] * len(images), device=images.device)
        options["pixel_attention_mask"] = None
    elif "interpolate_pos_encoding" in takes and not _has_size(model, images):
        options["interpolate_pos_encoding"] = True
    output = call(**options)
    return {"pooler_output": output} if isinstance(output, Tensor) else output


def _has_size(model: nn.Module, images: Tensor) -> bool:
    """True if the images have the size that the model was built for."""
    config: Any = getattr(model.config, "vision_config", model.config)
    built = getattr(config, "image_size", None)
    return tuple(images.shape[2:]) == (tuple(built) if isinstance(built, list | tuple) else (built, built))
