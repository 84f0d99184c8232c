"""The networks distcam knows by name, each cut down to what leads from an image to its feature map.

Of a torchvision classifier the stages stay, under torchvision's own parameter names, so that its weight files load.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import InputError, ShapeError
from ...images.transform import Transform
from ..checkpoint import canonical_json
from ..layers import closest, cut
from ..libraries.builders import build_model
from ..names import library_of
from ..readouts import read_out, source_of
from .cifar import cifar_resnet, cifar_resnext, densenet_bc, pyramidnet
from .few_shot import Conv4, ResNet12, WideResNet
from .osnet import OSNET_SPARE, OSNETS, OSNet
from .resnet38 import RESNET38_SPARE, ResNet38
from .torchvisions import models

_OWN: dict[str, tuple[Callable[..., nn.Module], str, frozenset[str]]] = {  # with the last layer, and spare weights
    "conv4": (Conv4, "encoder.3", frozenset()),
    "resnet12": (ResNet12, "layer4", frozenset()),
    "resnet38": (ResNet38, "relu7", RESNET38_SPARE),
    "wrn28_10": (WideResNet, "relu", frozenset()),
    **{name: (partial(OSNet, **form), "conv5", OSNET_SPARE) for name, form in OSNETS.items()},
    "resnet56": (cifar_resnet, "layer3", frozenset()),
    "resnet110": (partial(cifar_resnet, depth=110), "layer3", frozenset()),
    "resnext29_8x64d": (cifar_resnext, "layer3", frozenset()),
    "densenet_bc_190_40": (densenet_bc, "relu", frozenset()),
    "pyramidnet200": (pyramidnet, "relu", frozenset()),
}
_BEHIND_THE_MAP = {"avgpool", "classifier", "fc", "head", "heads", "flatten", "dropout", "AuxLogits", "aux1", "aux2"}


@dataclass(frozen=True)
class Backbone:
    """A network from image to feature map, and what its library says of it."""

    network: nn.Module  # from images (b, 3, H, W) to the map (b, k, h, w)
    layer: str  # that the map comes from; "" for the library's own end
    spare: frozenset[str] = frozenset()  # names in a weights file that nothing needs
    name: str = ""  # of the architecture, in messages and checkpoints
    options: Mapping[str, Any] = field(default_factory=dict)  # what builds it again
    transform: Transform | None = None  # of the network's own configuration, where it has one
    assumed: str = ""  # the part of that transform that no configuration says
    whole: nn.Module | None = None  # the model that the network is a part of, where that has a text tower

    @property
    def source(self) -> nn.Module:
        """The network without what reads it out: names of parameters are those of its library."""
        return source_of(self.network)[0]


def available_architectures() -> list[str]:
    """The names `Encoder.load` knows, sorted."""
    return sorted([*_OWN, *models.list_models(module=models)])


def require_architecture(name: str) -> None:
    """Refuse an unknown name with the three nearest."""
    names = available_architectures()
    if name not in names:
        raise InputError(f"no architecture {name!r}, nearest: {closest(name, names)}; nor is there a checkpoint file")


def build_backbone(
    name: str,
    *,
    image_size: tuple[int, int],
    options: Mapping[str, Any],
    layer: str | None = None,
    is_pretrained: bool = False,
) -> Backbone:
    """A network with freshly drawn weights (from torch's global generator: fork it outside).

    ResNets also take the option `last_stride=1`: their fourth stage keeps the third's resolution, as the strong
    re-identification baseline does. ResNets, MobileNets and VGGs take `output_stride`, see `dilate`. Networks of other
    libraries take `readout` and what their constructor takes; with `is_pretrained` they bring the library's weights.
    """
    if library_of(name) is not None:
        built, readout = build_model(name, options, is_pretrained=is_pretrained), options.get("readout", "auto")
        network, own = read_out(built.model, readout, layer=layer or None), {**built.options, "readout": readout}
        about = (built.transform, built.assumed, built.whole)
        return Backbone(network, layer or "", built.spare, built.name, own, *about)
    require_architecture(name)
    if "readout" in options:
        raise InputError(f"a readout is for networks of other libraries, such as timm:{name}; {name} has its own")
    if name in _OWN:
        builder, last, spare = _OWN[name]
        whole = Backbone(_construct(builder, name, options), last, spare)
    else:
        whole = _torchvisions(name, image_size, options)
    whole = replace(whole, name=name, options=options)
    if layer is None or layer == whole.layer:
        return whole
    return replace(whole, network=cut(whole.network, layer), layer=layer)


def _torchvisions(name: str, image_size: tuple[int, int], options: Mapping[str, Any]) -> Backbone:
    """A torchvision classifier up to its default layer."""
    fixed: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit_"):
        if image_size[0] != image_size[1]:
            raise InputError(f"{name} takes square images, got {image_size[0]}×{image_size[1]}")
        fixed = {"image_size": image_size[0]}
    elif name.startswith("maxvit"):
        fixed = {"input_size": image_size}
    options = {**fixed, **options}
    last_stride, output_stride = options.pop("last_stride", None), options.pop("output_stride", None)
    model = _construct(models.get_model_builder(name), name, options)
    spare = frozenset(model.state_dict())
    if last_stride is not None:
        if not isinstance(model, models.ResNet):
            raise InputError(f"last_stride is an option of ResNets only, not of {type(model).__name__}")
        for module in model.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
                module.stride = (last_stride, last_stride)
    if output_stride is not None:
        dilate(model, output_stride)
    if isinstance(model, models.VisionTransformer):
        return Backbone(TransformerTrunk(model), "encoder", spare)
    stages = _stages(model)
    return Backbone(nn.Sequential(stages), _last_layer(stages), spare)


def _construct(builder: Callable[..., nn.Module], name: str, options: Mapping[str, Any]) -> nn.Module:
    if "weights" in options:
        raise InputError("weights are no option of an architecture; pass them to Encoder.load(weights=…)")
    try:
        canonical_json(options)  # what a fingerprint and a checkpoint must be able to hold
        return builder(**options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise InputError(f"{name} cannot be built with {given or 'no options'}: {error}") from error


def _stages(model: nn.Module) -> OrderedDict[str, nn.Module]:
    """The model's children up to the feature map, in the order in which its forward pass calls them."""
    stages = OrderedDict((name, child) for name, child in model.named_children() if name not in _BEHIND_THE_MAP)
    if isinstance(model, models.DenseNet):
        stages["relu"] = nn.ReLU()  # torchvision applies it as a function between features and pooling
    if isinstance(model, models.VGG | models.AlexNet):
        stages["features"] = model.features[:-1]  # the map before the last max pooling
    for name, child in stages.items():
        if isinstance(child, nn.ModuleList):
            stages[name] = nn.Sequential(*child)
    return stages


def _last_layer(stages: Mapping[str, nn.Module]) -> str:
    name, stage = list(stages.items())[-1]
    return f"{name}.{len(stage) - 1}" if name == "features" and isinstance(stage, nn.Sequential) else name


def with_last_stage(model: nn.Module) -> tuple[nn.Module, str]:
    """A whole torchvision classifier, and in it the name of the layer that an encoder of it takes as feature map."""
    stages = _stages(model)
    layer = _last_layer(stages)
    if isinstance(model, models.DenseNet):  # applies the last activation as a function, which no name reaches
        ending = {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "classifier": model.classifier}
        return nn.Sequential(OrderedDict([*stages.items(), *ending.items()])), layer
    part = model.get_submodule(layer)
    return model, f"{layer}.{len(part) - 1}" if isinstance(part, nn.ModuleList) else layer


class TransformerTrunk(nn.Module):
    """Torchvision's ViT up to its last layer norm, as a map of patches: the class token takes part and is dropped."""

    def __init__(self, model: models.VisionTransformer) -> None:
        super().__init__()
        self.class_token, self.conv_proj, self.encoder = model.class_token, model.conv_proj, model.encoder
        self.image_size = model.image_size

    def forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b k h w"]:
        """The feature map."""
        size = (images.shape[2], images.shape[3])
        if size != (self.image_size, self.image_size):
            raise ShapeError(f"built for {self.image_size}×{self.image_size} images, got {size[0]}×{size[1]}")
        patches: Tensor = self.conv_proj(images)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches.flatten(2).mT], 1)
        tokens = self.encoder(tokens)
        feature_map: Tensor = tokens[:, 1:].mT.reshape(patches.shape)
        return feature_map


OUTPUT_STRIDES = (4, 8, 16, 32)


def dilate(model: nn.Module, output_stride: int) -> None:
    """Rebuild torchvision's ResNet, MobileNet or VGG in place: its map has one position per `output_stride` pixels.

    A convolution or pooling that would step further steps by 1, and every convolution after it spreads its kernel by
    what was left out. No weight changes, and the new map holds the old one: at every second (fourth, …) row and column
    it has the old values, in evaluation mode. Weight files of the plain network load as before.

    Source: Chen et al., DeepLab, 2018, §3.1 (atrous convolution).
    """
    if output_stride not in OUTPUT_STRIDES:
        raise InputError(f"output_stride: expected one of {', '.join(map(str, OUTPUT_STRIDES))}, got {output_stride!r}")
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    if any(part.dilation != (1, 1) for part in convolutions):
        raise InputError("output_stride is for a network without dilation; leave replace_stride_with_dilation out")
    stride, dilation = 1, 1
    for block in _blocks(model):
        own = max((_side(part.stride) for part in _stepping(block)), default=1)
        left_out = 1 if stride * own <= output_stride else own
        _spread(block, dilation, dilation * left_out)
        stride, dilation = stride * own // left_out, dilation * left_out


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of the network in the order in which they run, none with more than one stride on any path."""
    if isinstance(model, models.ResNet):
        yield from (model.conv1, model.maxpool)
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            yield from stage
    elif isinstance(model, models.MobileNetV2 | models.MobileNetV3 | models.VGG):
        yield from model.features
    else:
        raise InputError(f"output_stride is an option of ResNets, MobileNets and VGGs, not of {type(model).__name__}")


def _stepping(block: nn.Module) -> list[nn.Conv2d | nn.MaxPool2d]:
    return [part for part in block.modules() if isinstance(part, nn.Conv2d | nn.MaxPool2d)]


def _side(value: int | str | tuple[int, ...]) -> int:
    assert not isinstance(value, str)
    return value if isinstance(value, int) else value[0]


def _spread(block: nn.Module, before: int, after: int) -> None:
    """Dilate a block's kernels: by `before` up to the convolution with the stride, by `after` behind it."""
    dilation = before
    for part in _stepping(block):
        steps, side = _side(part.stride) > 1, _side(part.kernel_size)
        if steps and after != before:
            part.stride = (1, 1)
        if side > 1 and dilation > 1:
            part.dilation = (dilation, dilation)
            part.padding = (dilation * _side(part.padding),) * 2  # none of a VGG's poolings, and "same" of all others
        if steps:
            dilation = after
