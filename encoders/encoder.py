"""The encoder: from a batch of images to feature map, pooled vector, and embedding, and its identity."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from ..images.transform import Transform
from ..remarks import remark
from . import weight_files
from .backbones.registry import build_backbone
from .checkpoint import FingerprintCache, built_from_header, read_checkpoint, write_checkpoint
from .encoding import Encoding
from .heads import GAP, GeM, IdentityHead, Pooling, described, head_from_dict, kept, pooling_from, width_behind
from .layers import LayerOutput, evaluating, find_layer, require_feature_map, require_usable, unwrapped
from .libraries.models import without_hub
from .names import CHECKPOINT_SUFFIX
from .readouts import read_out, require_poolable, telling_constants
from .state_dicts import StateDict, load_state, say_what_is_left, tensors_of
from .text_tower import keep_tower, restored_tower, text_tower, vectors_of
from .trained_on import TrainedOn

T = TypeVar("T")
_Colours = Mapping[str, Any]  # mean and std


def telling(read: Callable[[Any], T]) -> Callable[[Any], T]:
    """A property of a module whose own AttributeError is told: `nn.Module` would say that there is no such property."""

    @wraps(read)
    def told(self: Any) -> T:
        try:
            return read(self)
        except AttributeError as error:
            raise InputError(f"{read.__name__} of {type(self).__name__} cannot be found: {error}") from error

    return told


class Encoder(nn.Module):
    """Backbone, pooling, and head, together with the transform their images must go through.

    Args:
        backbone: (b, 3, H, W) → (b, k, h, w): the last convolution after its activation.
        transform: from an image to the backbone's input.
        pooling: "gap", "gem", or a `Pooling`.
        head: any module (b, k) → (b, d); without one the embedding is the pooled vector.
        architecture: a name for messages and, together with `options`, for rebuilding the backbone.
        layer: the layer that the feature map comes from, for messages.
        options: what the architecture was built with; None says that only its owner's code can rebuild it.

    Attributes:
        metadata: free JSON-able notes (a training recipe, say); kept in checkpoints, no part of the fingerprint.
        trained_on: classes and images of its training, likewise; None where nothing is known.
        text: the tower from texts to vectors in the space of `pooled`, or None; no part of the fingerprint.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        transform: Transform | None = None,
        pooling: str | Pooling = "gap",
        head: nn.Module | None = None,
        architecture: str = "custom",
        layer: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        weight_files.require_parts(head=head, transform=transform, options=options)
        self.backbone = unwrapped(backbone)
        self.pooling = pooling_from(pooling)
        self.head: nn.Module = IdentityHead() if head is None else unwrapped(head)
        for part in (self.backbone, self.head):
            require_usable(part)
        self.transform = Transform() if transform is None else transform
        self.architecture = architecture
        self.layer = layer
        self.options = None if options is None else dict(options)
        self.metadata: dict[str, Any] = {}
        self.trained_on: TrainedOn | None = None
        self.text: nn.Module | None = None
        self._fingerprint = FingerprintCache()
        self._pooled_dim = 0

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Encoding:
        """The encoding of normalised images, float32; under autocast the backbone alone runs in low precision."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"expected images of shape (b, 3, h, w), got {tuple(images.shape)}")
        # A backbone of the user's own may work on its input in place (`images.sub_(mean)`), which is the caller's.
        with telling_constants() as told:
            feature_map: Tensor = self.backbone(images if self.options is not None else images.clone())
        if feature_map.ndim != 4:
            raise ShapeError(f"expected a feature map (b, k, h, w) from the backbone, got {tuple(feature_map.shape)}")
        if feature_map.dtype in (torch.bfloat16, torch.float16) and images.dtype == torch.float32:
            feature_map = feature_map.float()
        return self.encode_map(feature_map, constant=torch.cat(told) if told else None)

    def encode_map(
        self, feature_map: Float[Tensor, "b k h w"], *, constant: Float[Tensor, "b k"] | None = None
    ) -> Encoding:
        """The encoding of what the backbone made of images; see `Encoding` for the constant."""
        with torch.autocast(feature_map.device.type, enabled=False):
            # A pooling or head of the user's own may work in place; what is handed out stays what it was.
            own = feature_map if isinstance(self.pooling, GAP | GeM) else feature_map.clone()
            require_poolable(self.backbone, is_mean=isinstance(self.pooling, GAP))
            pooled = self.pooling(own)
            return Encoding(feature_map, pooled, self.embed(pooled), constant)

    @property
    def is_read_exactly(self) -> bool:
        """False if the map is of first order before any head, of a network that has run; see `read_out`."""
        return bool(getattr(self.backbone, "is_exact", True))

    def embed(self, pooled: Float[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """The head's answer to pooled vectors, which stay as they are; ShapeError for a head of another width."""
        width_behind(self.head, pooled.shape[-1])  # a mismatch would end in an error about matrices
        embedding: Tensor = pooled if isinstance(self.head, IdentityHead) else self.head(pooled.clone())
        return embedding

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Vectors of texts beside image embeddings, as long as the library's; InputError without a text tower."""
        return self.embed(vectors_of(self.text, texts, architecture=self.architecture))

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | nn.Module,
        *,
        weights: str | os.PathLike[str] | None = None,
        layer: str | None = None,
        pooling: str | Pooling = "gap",
        head: nn.Module | None = None,
        transform: Transform | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        options: Mapping[str, Any] | None = None,
        readout: str = "auto",
        seed: int = 0,
    ) -> Encoder:
        """An encoder in evaluation mode, from an architecture's name, a checkpoint, or a module of your own.

        Nothing is downloaded unless `weights` is "imagenet" or "pretrained", and no code in any file is run.

        Args:
            source: a torchvision classifier ("resnet50"), "conv4", "resnet12", "wrn28_10"; a network of another library
                ("timm:NAME", "hf:NAME" or "hf:FOLDER", "open_clip:NAME"); a file that `save` wrote; or a module.
            weights: of an architecture, which has none by itself: a file with a state_dict, "imagenet" (torchvision's),
                "pretrained" (another library's, from its cache or downloaded), or "random" (drawn from `seed`; "conv4"
                and kin, of which there are none, with a remark if left out). A module of your own keeps what it has, or
                takes a file's. What names in a file begin with is found by what fits; tensors that nothing takes are a
                remark.
            layer: where to read the feature map; the last convolution after its activation if left out. A module of
                your own must return its feature map (b, k, h, w) unless a layer is named.
            pooling: "gap", "gem", or a `Pooling`.
            head: from the pooled vector to the embedding. Left out, it is a batch-norm neck if the weights bring one.
            transform: the published weights' colours and size if left out, the configuration of another library's
                network, or ImageNet's; that a module of your own wants those is a remark, and a file does.
            mean: what the network's input is normalised with, in place of the transform's.
            std: likewise.
            options: for the architecture's constructor, such as `{"last_stride": 1}` for ResNets.
            readout: of another library's network, by name or as a module: one of `READOUTS`, the vector that is
                searched. By default what the model's authors rank by; of a module its own map.
            seed: of random weights; the global generator is left as it was.

        Raises:
            InputError: unknown architecture, layer, or option (the message holds the nearest names), an architecture
                without `weights`, or a module that returns no feature map.
            WeightsError: weights that cannot be read, do not fit, or cannot be downloaded.

        >>> Encoder.load("resnet18", weights="random", transform=Transform(64)).embedding_dim
        512
        """
        weight_files.require_parts(head=head, transform=transform, options=options)
        colours: _Colours = {"mean": mean, "std": std}
        if isinstance(source, nn.Module):
            if options is not None:
                raise InputError(f"options are for named architectures; {type(source).__name__} is built already")
            own: dict[str, Any] = {"transform": transform, "pooling": pooling, "head": head}
            return cls._around(source, weights, colours, layer=layer, readout=readout, **own)
        if weight_files.is_checkpoint(source):
            if (weights, layer, pooling, head, options, readout) != (None, None, "gap", None, None, "auto"):
                brought = "weights, layer, pooling, head, options, and readout"
                raise InputError(f"{source} brings its own {brought}; leave them out")
            return cls._restored(source, transform, colours)
        state, own_transform = weight_files.published(name := os.fspath(source), weights)
        options = weight_files.with_last_stride(options or {}, name, state)
        if readout != "auto":
            options = {**options, "readout": readout}
        size = ((transform or own_transform).height, (transform or own_transform).width)
        with weight_files.drawn_from(seed) if state is None else weight_files.uninitialised():
            how: dict[str, Any] = {"layer": layer, "options": options, "is_pretrained": weights == "pretrained"}
            built = build_backbone(name, image_size=size, **how)
        if built.assumed and transform is None and None in colours.values():
            remark(f"{name}: {built.assumed}; say transform=, or mean= and std=, if that is wrong")
        transform = (transform or built.transform or own_transform).adapted(**colours)
        parts: dict[str, Any] = {"layer": built.layer, "transform": transform, "pooling": pooling, "head": head}
        encoder = cls(built.network, architecture=built.name, options=built.options, **parts)
        if state is not None:
            encoder._fill(built.source, state, origin=f"{weights} for {name}", spare=built.spare, neck=head is None)
        encoder.text = None if built.whole is None else text_tower(built.whole, name, built.options, state=state)
        return encoder.eval()

    def _fill(
        self, target: nn.Module, state: StateDict, *, origin: str, spare: Collection[str] = (), neck: bool
    ) -> None:
        """Weights from outside into the backbone, with the exponent of GeM and the batch-norm neck that they bring."""
        left = load_state(target, state, origin=origin, spare=spare)
        self.pooling = weight_files.brought_pooling(self.pooling, left, origin=origin)
        head = weight_files.brought_head(self.head, left, width=self.pooled_dim, is_free=neck, origin=origin)
        if head is not self.head:
            self.head = head.train(self.backbone.training)
        say_what_is_left(left, origin=origin)

    @classmethod
    def _around(
        cls,
        module: nn.Module,
        weights: str | os.PathLike[str] | None,
        colours: _Colours,
        *,
        layer: str | None,
        readout: str,
        transform: Transform | None,
        **parts: Any,
    ) -> Encoder:
        """An encoder around the user's own module, whose mode and hooks stay as they are."""
        layer = None if layer is None else find_layer(module, layer)[1]  # without what unwrapping takes away
        module = unwrapped(module)
        require_usable(module)
        name = type(module).__name__
        if weights == "imagenet":
            raise InputError(f"ImageNet weights are for architectures known by name; got a {name}, fill it beforehand")
        if weights == "random":
            raise InputError(f"a {name} keeps the weights that it has; leave weights out, or name a file")
        found, plain = ("", "") if layer is None else find_layer(module, layer)
        backbone = module if layer is None else LayerOutput(module, found)
        if readout != "auto":
            backbone = read_out(module, readout, layer=found or None)
        is_told = None not in colours.values()
        transform = (transform or weight_files.transform_for(module, is_told=is_told)).adapted(**colours)
        encoder = cls(backbone, architecture=name, layer=plain, transform=transform, **parts)
        if weights is not None:
            neck = parts["head"] is None
            encoder._fill(module, weight_files.read_state_dict(weights), origin=f"{weights} for {name}", neck=neck)
        if backbone is module:
            require_feature_map(module, (encoder.transform.height, encoder.transform.width))
        return encoder

    @classmethod
    def _restored(cls, path: str | os.PathLike[str], transform: Transform | None, colours: _Colours) -> Encoder:
        """The encoder of a checkpoint; another transform may replace the one it was saved with."""
        config, tensors = read_checkpoint(path)
        with built_from_header(path, "an encoder"):
            with weight_files.uninitialised(), without_hub():
                transform = (transform or Transform.from_dict(config["transform"])).adapted(**colours)
                name, options = config["architecture"], config["options"]
                size = (transform.height, transform.width)
                built = build_backbone(name, layer=config["layer"], image_size=size, options=options)
                pooling, head = pooling_from(config["pooling"]), head_from_dict(config["head"])
            parts: dict[str, Any] = {"transform": transform, "pooling": pooling, "head": head}
            encoder = cls(built.network, architecture=name, layer=config["layer"], options=options, **parts)
            encoder.metadata = dict(config["metadata"])
            encoder.trained_on = TrainedOn.of_checkpoint(config, tensors)
            encoder.text = restored_tower(built.whole, name, options, tensors=tensors)
        load_state(encoder, tensors, origin=str(path), exact=True)
        return encoder.eval()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one `.safetensors` file that `Encoder.load` restores, fingerprint included.

        Raises:
            InputError: a part is code of your own, which no file of weights can bring back.
            WeightsError: the file cannot be written.
        """
        if self.options is None:
            raise InputError(
                f"{self.architecture} is a network of your own, which no checkpoint can rebuild; save its state_dict() "
                "and make the encoder again with Encoder.load(module, layer=…)"
            )
        config = {**self.describe(), "head": kept(self.head)}
        for part in ("pooling", "head"):
            if config[part]["type"] == "custom":
                name = type(getattr(self, part)).__name__
                raise InputError(f"the {part} {name} is a module of your own, which no checkpoint can rebuild")
        if not os.fspath(path).endswith(CHECKPOINT_SUFFIX):
            raise InputError(f"expected a file name that ends in {CHECKPOINT_SUFFIX}, got {os.fspath(path)!r}")
        config, tensors = {**config, "metadata": self.metadata}, self.state_dict()
        keep_tower(self.text, tensors, path=path)
        if self.trained_on is not None:
            self.trained_on.put(config, tensors)
        write_checkpoint(path, config, tensors)

    def describe(self) -> dict[str, Any]:
        """The encoder's configuration, without weights, as JSON can hold it."""
        return {
            "architecture": self.architecture,
            "options": self.options or {},
            "layer": self.layer,
            "pooling": self.pooling.to_dict(),
            "head": described(self.head),
            "transform": self.transform.to_dict(),
        }

    @property
    @telling
    def fingerprint(self) -> str:
        """64 hexadecimal digits for what the encoder computes: configuration, transform, and weights.

        Mode, device, precision of storage, and metadata do not count.
        """
        own = {name: tensor for name, tensor in tensors_of(self).items() if not name.startswith("text.")}
        return self._fingerprint.get(self.describe(), own)

    @property
    @telling
    def short_name(self) -> str:
        """Architecture and the first eight digits of the fingerprint, as in "resnet50/ab12cd34"."""
        return f"{self.architecture}/{self.fingerprint[:8]}"

    @property
    @telling
    def pooled_dim(self) -> int:
        """Channels of the feature map, k; found by encoding one black image."""
        if not self._pooled_dim:
            weight = next(self.parameters(), torch.zeros(()))
            image = weight.new_zeros(1, 3, self.transform.height, self.transform.width)
            with evaluating(self), torch.no_grad():
                self._pooled_dim = self(image).pooled.shape[1]
        return self._pooled_dim

    @property
    @telling
    def embedding_dim(self) -> int:
        """Length of the embedding, d."""
        weight = next(self.parameters(), torch.zeros(()))
        with evaluating(self.head), torch.no_grad():
            return self.embed(weight.new_zeros(1, self.pooled_dim)).shape[1]

    def __repr__(self) -> str:
        at = f" at {self.layer}" if self.layer else ""
        parts = f"{type(self.pooling).__name__}, {type(self.head).__name__}"
        return f"Encoder({self.architecture}{at}, {parts}, {self.transform.height}×{self.transform.width})"
