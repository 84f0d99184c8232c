"""Readouts: the vector that a network of any library is searched by, as a map whose mean over places is that vector."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from ..remarks import remark
from .contribution_rules import RULES
from .contributions import AmbiguousBatchError, Contribution, Following
from .layers import LayerOutput, as_feature_map, closest, eagerly, evaluating

READOUTS: Mapping[str, str] = {
    "auto": "the vector that the model's authors rank by",
    "mean": "the mean of the last map, or of the patch tokens",
    "class": "the class token behind the last norm",
    "class+mean": "the class token and the mean of the patch tokens, one behind the other",
    "attention": "the attention pooling that the model ends with",
}


def read_out(model: nn.Module, readout: str = "auto", *, layer: str | None = None) -> nn.Module:
    """A network from images to the map (b, p, rows, columns) whose mean over places is the vector that is searched.

    The mean of a grid or of tokens is the map itself. A class token and an attention pooling are sums, of which those
    terms that come directly from a place are that place's: the values that attentions read there, projected. All else
    (the token's start, MLPs, other tokens, biases) is the same at every place. Norms are held at their spread. Nothing
    in the network, of whatever library, is changed. A `layer` is read in place of the model's own output.
    """
    if readout not in READOUTS:
        raise InputError(f"no readout {readout!r}; nearest: {closest(readout, list(READOUTS))}")
    if readout == "attention" and not any(word in type(part).__name__ for part in model.modules() for word in _POOLS):
        raise InputError(f"{type(model).__name__} has no attention pooling; leave readout out, or choose another")
    return ReadOut(model if layer is None else LayerOutput(model, layer), readout)


_POOLS = ("AttentionPool", "AttentionalPool", "PoolingHead", "AttnPool")  # in the names of the libraries' classes
_MAPS: ContextVar[bool] = ContextVar("makes_maps", default=True)
_CONSTANT: ContextVar[list[Tensor] | None] = ContextVar("constant", default=None)


def makes_maps() -> bool:
    """True unless `making_maps` says that vectors are all that is wanted."""
    return _MAPS.get()


@contextmanager
def making_maps(is_wanted: bool) -> Iterator[None]:
    """Inside, readouts make maps or, where these are no by-product, return their vector as a map of one place."""
    token = _MAPS.set(is_wanted)
    try:
        yield
    finally:
        _MAPS.reset(token)


@contextmanager
def telling_constants() -> Iterator[list[Tensor]]:
    """Inside, a readout of tokens adds to the list the part (b, p) of its vector that is the same at every place."""
    told: list[Tensor] = []
    token = _CONSTANT.set(told)
    try:
        yield told
    finally:
        _CONSTANT.reset(token)


def has_constant(backbone: nn.Module) -> bool:
    """True if `telling_constants` may be told of something; unknown before the first run, it may."""
    return isinstance(backbone, ReadOut) and backbone.is_costly and backbone.has_places


def require_poolable(backbone: nn.Module, *, is_mean: bool) -> None:
    """Refuse another pooling than the mean where a map is made of a vector's parts, which nothing else pools to it."""
    if not is_mean and isinstance(backbone, ReadOut) and backbone.is_costly:
        raise InputError(
            f"a map of {type(backbone.source).__name__} is made of the parts of its vector, whose mean it is: no other "
            "pooling than gap makes sense of it; leave pooling out, or name a layer or readout='mean'"
        )


class ReadOut(nn.Module):
    """A network read out as a map whose mean over places is the vector that is searched."""

    def __init__(self, source: nn.Module, readout: str) -> None:
        super().__init__()
        self.source = source
        self.readout = readout
        self.is_exact = True  # until a run shows that an activation behind the pooling is followed to first order only
        self.has_places = True  # until a run shows that none can be followed to the vector; the map then has one place
        names = {type(part).__name__ for part in source.modules()}  # CLIP's ResNets read with the mean of all places
        self._first_is_mean = not names.isdisjoint(("AttentionPool2d", "RotAttentionPool2d"))
        self._starts_in_tail = False  # threads begin behind `features_of`
        self.is_costly = True  # the map is not the mean's own
        self._row: int | None = None  # the token that is read, where its parts come from all blocks
        self._is_known = False
        self._grids: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p rows columns"]:
        """The map; with a remark, once, if it is of first order or there is none."""
        if not self._is_known:
            with evaluating(self.source):  # dropout hides from `nn.MultiheadAttention`'s weights what was read
                self._learn(images)
        if not self.has_places or (self.is_costly and not makes_maps()):
            return self.vector(images)[:, :, None, None]
        try:
            found, seen = self._followed(images, tangent=not self.is_exact, tail_only=self._starts_in_tail)
        except AmbiguousBatchError:  # as many images as tokens
            return torch.cat([self(images[:1]), self(images[1:])])
        return seen.vector[:, :, None, None] if found is None else self._map(seen.vector, found)

    def vector(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p"]:
        """The vector alone, as the library computes it."""
        features = features_of(self.source, images, readout=self.readout)
        return vector_of(self.source, features, images, readout=self.readout)

    def _map(self, vector: Tensor, found: Contribution) -> Tensor:
        """The parts of places, and what is left of the vector at every place alike."""
        if found.map is not None:
            return found.map
        with torch.autocast(vector.device.type, enabled=False):
            vector, parts = vector.float(), found.of_row(0)
            constant = vector - parts.sum(1)
            flat = (parts * parts.shape[1] + constant[:, None]).mT
            feature_map = flat.reshape(*flat.shape[:2], *found.shape)
        if not found.is_whole and (told := _CONSTANT.get()) is not None:
            told.append(constant)
        return feature_map

    def _followed(self, images: Tensor, *, tangent: bool, tail_only: bool) -> tuple[Contribution | None, Following]:
        """The contribution of places in the vector, and the pass with all that it has seen."""
        following = Following(images, RULES, tangent=tangent, first_is_mean=self._first_is_mean, row=self._row)
        following.grids = list(self._grids.get(following.size, []))
        with nullcontext() if tail_only else following:
            features = features_of(self.source, images, readout=self.readout)
        with following:
            following.vector = vector_of(self.source, features, images, readout=self.readout)
        if not tail_only:
            self._grids[following.size] = following.grids
        return following.of(following.vector), following

    @torch.no_grad()
    def _learn(self, images: Tensor) -> None:
        """Find out on one image where threads begin, whether they reach the vector, and what remains to be said."""
        image, name, words = images[:1].detach(), type(self.source).__name__, ""
        found, seen = self._followed(image, tangent=False, tail_only=False)
        if found is None:
            self.is_exact = False
            found, seen = self._followed(image, tangent=True, tail_only=False)
            words = "maps are of first order: an activation lies between its places and its vector"
        if self.readout != "class+mean":
            in_tail = self._followed(image, tangent=not self.is_exact, tail_only=True)[0]
            self._starts_in_tail = in_tail is not None
        self.is_costly = not (found is not None and found.is_whole and self.is_exact)
        try:
            if found is not None:
                found.of_row(0)
        except LookupError:
            found = None
        if found is None:
            self.has_places = False
            words = "no map: its vector cannot be followed back to places; it is searched by, and not explained"
        elif 0 < found.n_followed < seen.n_attentions:
            words += f"{'; ' if words else ''}of {seen.n_attentions} attentions {found.n_followed} can be followed"
        if words:
            remark(f"{name}: {words}")
        if found is not None and found.n_followed and len(seen.rows_read) == 1:
            (self._row,) = seen.rows_read
        self._is_known = True

    def extra_repr(self) -> str:
        """The readout, for `print(encoder)`."""
        return f"readout={self.readout}"


def source_of(network: nn.Module) -> tuple[nn.Module, str]:
    """The network inside what reads it out, and the layer that is read; "" for the network's own end."""
    layer = ""
    while isinstance(network, LayerOutput | ReadOut):
        layer = network.layer if isinstance(network, LayerOutput) else layer
        network = network.source
    return network, layer


# --- Vectors, computed as each library does it ------------------------------------------------------------------------


def is_timm(model: nn.Module) -> bool:
    """True if the model divides its work as timm's do."""
    return callable(getattr(model, "forward_features", None)) and callable(getattr(model, "forward_head", None))


def features_of(model: nn.Module, images: Float[Tensor, "b 3 h w"], *, readout: str) -> Any:
    """The model's features before its vector is taken: a tensor or an output of transformers, or the vector."""
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
    vector: Tensor
    if is_timm(model) and is_own:
        features = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
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
    own = [value for name in ("image_embeds", "pooler_output") if (value := features.get(name)) is not None]
    if is_own and own:
        vector = own[0].flatten(1)
        return vector
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
    if readout != "mean" and not n_prefix:
        raise InputError(f"readout={readout!r} needs a class token, which this model has not; 'mean' takes the mean")
    parts = {"mean": [mean], "class": [features[:, 0]], "class+mean": [features[:, 0], mean]}[readout]
    return torch.cat([norm(part) for part in parts], -1)


def _transformers(model: nn.Module, images: Tensor) -> Any:
    """The output of a model of transformers for images; of one with a text tower that of its image side."""
    call = getattr(model, "get_image_features", model)
    takes = inspect.signature(call if call is not model else model.forward).parameters
    options: dict[str, Any] = {"pixel_values": images}
    config: Any = getattr(model.config, "vision_config", model.config)
    built = getattr(config, "image_size", None)
    if "spatial_shapes" in takes:  # Siglip2 takes patches, channels last, of images of any proportion
        patch: int = config.patch_size
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        cut = images[:, :, : rows * patch, : columns * patch].reshape(-1, 3, rows, patch, columns, patch)
        options["pixel_values"] = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        options["spatial_shapes"] = torch.tensor([[rows, columns]] * len(images), device=images.device)
        options["pixel_attention_mask"] = None
    elif "interpolate_pos_encoding" in takes:
        sides = tuple(built) if isinstance(built, list | tuple) else (built, built)
        options |= {} if images.shape[2:] == sides else {"interpolate_pos_encoding": True}
    output = call(**options)
    return {"pooler_output": output} if isinstance(output, Tensor) else output
