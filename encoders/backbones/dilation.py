"""Finer feature maps from the same weights: the last strides are left out, and what follows looks further apart."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torchvision import models

from ...errors import InputError

OUTPUT_STRIDES = (4, 8, 16, 32)


def dilate(model: nn.Module, output_stride: int) -> None:
    """Rebuild a torchvision ResNet or MobileNet in place so that its map has one position per `output_stride` pixels.

    A convolution or pooling that would step further steps by 1, and every convolution after it spreads its kernel by
    what was left out. No weight changes, and the new map holds the old one: at every second (fourth, …) row and column
    it has the old values, in evaluation mode. Weight files of the plain network load as before.

    Args:
        model: the network; ResNets of every depth and width, MobileNetV2 and V3.
        output_stride: 8 or 16 for segmentation; 32 changes nothing, 4 leaves the first two strides only.

    Source: Chen et al., DeepLab, 2018, §3.1 (atrous convolution).
    """
    if output_stride not in OUTPUT_STRIDES:
        raise InputError(f"output_stride: expected one of {', '.join(map(str, OUTPUT_STRIDES))}, got {output_stride!r}")
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    if any(part.dilation != (1, 1) for part in convolutions):
        raise InputError("output_stride is for a network without dilation; leave replace_stride_with_dilation out")
    stride, dilation = 1, 1
    for block in _blocks(model):
        own = _stride_of(block)
        if stride * own <= output_stride:
            stride *= own
            _spread(block, dilation, dilation)
        else:
            _spread(block, dilation, dilation * own)
            dilation *= own


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of the network in the order in which they run, none with more than one stride on any path."""
    if isinstance(model, models.ResNet):
        yield from (model.conv1, model.maxpool)
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            yield from stage
    elif isinstance(model, models.MobileNetV2 | models.MobileNetV3):
        yield from model.features
    else:
        raise InputError(f"output_stride is an option of ResNets and MobileNets, not of {type(model).__name__}")


def _stepping(block: nn.Module) -> list[nn.Conv2d | nn.MaxPool2d]:
    return [part for part in block.modules() if isinstance(part, nn.Conv2d | nn.MaxPool2d)]


def _stride_of(block: nn.Module) -> int:
    return max((_side(part.stride) for part in _stepping(block)), default=1)


def _side(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def _spread(block: nn.Module, before: int, after: int) -> None:
    """Dilate a block's kernels: by `before` up to the convolution with the stride, by `after` behind it.

    If the two differ the stride is left out. The shortcut beside the stride has 1×1 kernels, so its place in the order
    does not matter.
    """
    dilation = before
    for part in _stepping(block):
        steps = _side(part.stride) > 1
        if steps and after != before:
            part.stride = 1 if isinstance(part, nn.MaxPool2d) else (1, 1)
        side = _side(part.kernel_size)
        if side > 1 and dilation > 1:
            padding = dilation * (side - 1) // 2
            part.dilation = dilation if isinstance(part, nn.MaxPool2d) else (dilation, dilation)
            part.padding = padding if isinstance(part, nn.MaxPool2d) else (padding, padding)
        if steps:
            dilation = after
