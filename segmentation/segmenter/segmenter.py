"""A segmentation network: its parts by name, its file, and its prediction for an image.

Architectures are torchvision's segmenters (`lraspp_mobilenet_v3_large`, `deeplabv3_resnet50`, …), those of
`architectures.py`, and "light": any encoder's backbone with a head of one dilated 3×3 convolution, for CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ...encoders import Encoder, Encoding
from ...encoders.backbones.networks import Network, available_networks
from ...encoders.backbones.registry import build_backbone
from ...encoders.backbones.torchvisions import models
from ...encoders.checkpoint import built_from_header, read_checkpoint, write_checkpoint
from ...encoders.layers import closest, evaluating
from ...encoders.names import library_of, needs_weights
from ...encoders.state_dicts import best_match, load_state, say_what_is_left
from ...encoders.trained_on import TrainedOn
from ...encoders.weight_files import drawn_from, read_state_dict, uninitialised
from ...errors import InputError, WeightsError
from ...images import Transform
from ...training.recipes.tables import check_options, keyword_options
from .architectures import BUILDERS
from .inference import ONE_LOOK, InferenceSettings, taken_by_network

LIGHT = "light"
_SUFFIX = ".safetensors"
_KIND = "segmenter"


class SegmentationModel(nn.Module):
    """A backbone and a classifier of positions: (b, 3, H, W) → {"out": (b, c, H, W)}, as torchvision's segmenters."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module, *, takes: str = "") -> None:
        super().__init__()
        self.backbone, self.classifier, self.takes = backbone, classifier, takes

    def logits(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b c h w"]:
        """At the resolution of the classifier."""
        maps = self.backbone(images)
        logits: Tensor = self.classifier(maps[self.takes] if self.takes else maps)
        return logits

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> dict[str, Tensor]:
        """The logits at the images' size, bilinear."""
        size = images.shape[-2:]
        return {"out": functional.interpolate(self.logits(images), size, mode="bilinear", align_corners=False)}


class Segmenter(Encoder):
    """A segmentation network as an encoder: the feature map are logits, the background's first.

    `class_names` are of the foreground; nothing may be cut away from an image, so the transform squashes. `options` are
    those of the architecture, torchvision's or "light", to build it again.
    """

    def __init__(
        self,
        model: SegmentationModel,
        class_names: Sequence[str],
        *,
        transform: Transform,
        architecture: str,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(
            model.backbone,
            transform=transform.adapted(fit="squash"),
            architecture=architecture,
            layer="classifier",
            options=options,
        )
        self.classifier, self.takes = model.classifier, model.takes
        self.class_names = tuple(class_names)

    @property
    def model(self) -> SegmentationModel:
        """The network by itself; it shares the weights."""
        return SegmentationModel(self.backbone, self.classifier, takes=self.takes).train(self.training)

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Encoding:
        """The logits as feature map, and their means."""
        logits = self.model.logits(images)
        pooled = logits.mean((-2, -1))
        return Encoding(logits, pooled, pooled)

    def network(self) -> Network:
        """For `distcam explain --target segment:…` and everything else that takes a segmentation network."""
        names = ("background", *self.class_names)
        children = [name for name, _ in self.backbone.named_children()]
        last = getattr(self.backbone, "layer", children[-1] if children else "")
        layer = f"backbone.{last}" if last and self.architecture != LIGHT else "backbone"
        return Network(self.model.eval(), "segmenter", self.transform, layer, names, len(names))

    def describe(self) -> dict[str, Any]:
        """Everything but its weights, as JSON can hold it."""
        return {
            "kind": _KIND,
            "architecture": self.architecture,
            "options": self.options or {},
            "class_names": list(self.class_names),
            "transform": self.transform.to_dict(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one `.safetensors` file, for `load_segmenter`; WeightsError if it cannot be written."""
        if not os.fspath(path).endswith(_SUFFIX):
            raise InputError(f"expected a file name that ends in {_SUFFIX}, got {os.fspath(path)!r}")
        config, tensors = {**self.describe(), "metadata": self.metadata}, self.state_dict()
        if self.trained_on is not None:
            self.trained_on.put(config, tensors)
        write_checkpoint(path, config, tensors)


def build_segmenter(
    architecture: str,
    class_names: Sequence[str],
    *,
    transform: Transform,
    weights: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Segmenter:
    """A segmentation network to be trained, by name, or "light"; the transform's size is the training's.

    Weights must be named: "random", or of the backbone: "imagenet" (torchvision's, downloaded), a state_dict of a
    classifier, or, for "light", a checkpoint of an encoder, whose architecture it then has. A state_dict of a segmenter
    with as many classes fills everything. Options of "light": `encoder` (an architecture), `encoder_options`, `layer`,
    `hidden` and `dilation` (of the head); of others those of their builder.

    Raises:
        InputError: an unknown name or option, or no weights named.
        WeightsError: weights that cannot be read or do not fit.
    """
    if weights is None:
        raise InputError(needs_weights(architecture))
    given, record = dict(options or {}), None
    with drawn_from(seed):
        if architecture == LIGHT:
            model, given, record = _light(given, class_names, transform, weights)
        else:
            model = _by_name(architecture, given, class_names, download=weights == "imagenet")
    segmenter = Segmenter(model, class_names, transform=transform, architecture=architecture, options=given)
    segmenter.trained_on = record
    if architecture != LIGHT and weights not in ("random", "imagenet"):
        state = read_state_dict(weights)
        origin = f"{os.fspath(weights)} for {architecture}"
        found = {name.partition(".")[0] for name in best_match(segmenter, state).tensors}
        if {"backbone", "classifier"} <= found:
            left = load_state(segmenter, state, origin=origin)
            say_what_is_left([name for name in left if "aux_classifier." not in name], origin=origin)
        else:  # a classifier's, for the backbone
            left = load_state(segmenter.backbone, state, origin=f"{origin} (the backbone)")
            say_what_is_left([name for name in left if not name.startswith(("fc.", "classifier."))], origin=origin)
    return segmenter.eval()


def load_segmenter(path: str | os.PathLike[str]) -> Segmenter:
    """The segmenter of a file that `Segmenter.save` wrote, in evaluation mode; WeightsError for any other file."""
    config, tensors = read_checkpoint(path)
    if config.get("kind") != _KIND:
        raise WeightsError(f"{path}: holds no segmentation network; expected what `distcam segment train` leaves")
    with built_from_header(path, "a segmentation network"):
        names, options = [str(name) for name in config["class_names"]], config["options"]
        transform = Transform.from_dict(config["transform"])
        with uninitialised():
            if config["architecture"] == LIGHT:
                model = _light_model(options, names, transform)
            else:
                model = _by_name(config["architecture"], options, names)
        segmenter = Segmenter(model, names, transform=transform, architecture=config["architecture"], options=options)
        segmenter.metadata = dict(config["metadata"])
        segmenter.trained_on = TrainedOn.of_checkpoint(config, tensors)
    load_state(segmenter, tensors, origin=str(path), exact=True)
    return segmenter.eval()


def _by_name(
    name: str, options: Mapping[str, Any], class_names: Sequence[str], *, download: bool = False
) -> SegmentationModel:
    if name in BUILDERS:
        check_options(name, options, keyword_options(BUILDERS[name]) - {"download"})
        if download and name == "unet":
            raise InputError('there are no weights of a U-Net to download; choose weights = "random" or a file')
        return SegmentationModel(
            *BUILDERS[name](len(class_names) + 1, **options, **({"download": True} if download else {}))
        )
    known = [*available_networks("segmenter"), *BUILDERS]
    if name not in known:
        raise InputError(f"no segmentation network {name!r}; nearest: {closest(name, known)}, or {LIGHT!r}")
    backbone: Any = "DEFAULT" if download else None
    if options:  # its builders swallow whatever they do not know
        raise InputError(f"torchvision's {name} takes no options, got {', '.join(options)}")
    built = models.get_model_builder(name)(weights=None, weights_backbone=backbone, num_classes=len(class_names) + 1)
    return SegmentationModel(built.backbone, built.classifier, takes="" if name.startswith("lraspp") else "out")


_LIGHT_DEFAULTS: Mapping[str, Any] = {
    "encoder": "resnet18",
    "encoder_options": {},
    "layer": None,
    "hidden": 64,
    "dilation": 2,
}


def _light(
    given: Mapping[str, Any], class_names: Sequence[str], transform: Transform, weights: str | os.PathLike[str]
) -> tuple[SegmentationModel, dict[str, Any], TrainedOn | None]:
    """The model with its backbone's weights, the options that build it again, and what the backbone was trained on."""
    check_options(LIGHT, given, _LIGHT_DEFAULTS)
    options: dict[str, Any] = {**_LIGHT_DEFAULTS, **given}
    if os.fspath(weights).endswith(_SUFFIX):
        source = Encoder.load(Path(weights))
        options |= {"encoder": source.architecture, "encoder_options": source.options, "layer": source.layer}
    else:
        source = Encoder.load(
            options["encoder"], weights=weights, layer=options["layer"], options=options["encoder_options"] or None
        )
        if library_of(options["encoder"]) is not None:  # what builds it again without its library's hub or folder
            options |= {"encoder": source.architecture, "encoder_options": source.options}
    model = _light_model(options, class_names, transform)
    model.backbone = source.backbone
    return model, options, source.trained_on


def _light_model(options: Mapping[str, Any], class_names: Sequence[str], transform: Transform) -> SegmentationModel:
    size = (transform.height, transform.width)
    layer = options["layer"] or None
    backbone = build_backbone(options["encoder"], layer=layer, image_size=size, options=options["encoder_options"])
    with evaluating(backbone.network), torch.no_grad():
        channels = backbone.network(torch.zeros(1, 3, *size)).shape[1]
    hidden, dilation = options["hidden"], options["dilation"]
    head = nn.Sequential(
        nn.Conv2d(channels, hidden, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, len(class_names) + 1, 1),
    )
    return SegmentationModel(backbone.network, head)


@torch.no_grad()
def class_probabilities(
    segmenter: Segmenter,
    image: Image.Image,
    *,
    settings: InferenceSettings | None = None,
    device: str | torch.device = "cpu",
) -> Float[np.ndarray, "c h w"]:
    """Probabilities in the image's pixels, the background's first: the mean over scales and mirror images.

    The segmenter is in evaluation mode, on `device`; it looks once, not mirrored, if `settings` are left out.
    """
    settings = settings or ONE_LOOK
    size = (image.height, image.width)
    views = []
    for scale in settings.scales:
        pixels = settings.input_of(image, segmenter.transform, scale).to(device)
        for is_mirrored in (False, True)[: 1 + settings.flip]:
            with taken_by_network(pixels, scale):
                logits = segmenter(pixels.flip(-1) if is_mirrored else pixels).feature_map
            logits = logits.flip(-1) if is_mirrored else logits
            enlarged = functional.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
            views.append(enlarged.softmax(1)[0])
    result: np.ndarray = torch.stack(views).mean(0).cpu().numpy()
    return result
