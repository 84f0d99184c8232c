"""From images to feature maps and vectors: backbones, pooling, heads, weights, checkpoints, and the fast path.

Names load on first use, since torch and torchvision take a second to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .backbones.conv4 import Conv4
    from .backbones.drop_block import DropBlock
    from .backbones.registry import available_architectures
    from .backbones.resnet12 import ResNet12
    from .backbones.resnet38 import ResNet38
    from .backbones.wide_resnet import WideResNet
    from .encoder import Encoder, evaluating
    from .encoding import Encoding
    from .heads import Affine, BNNeck, Head, Identity, Linear, Sequential, affine_of
    from .inference import Batch, Failure, Inference
    from .pooling import GAP, GeM, Pooling
    from .trained_on import Overlap, TrainedOn

_HOME = {
    "GAP": "pooling",
    "Affine": "heads",
    "BNNeck": "heads",
    "Batch": "inference",
    "Conv4": "backbones.conv4",
    "DropBlock": "backbones.drop_block",
    "Encoder": "encoder",
    "Encoding": "encoding",
    "Failure": "inference",
    "GeM": "pooling",
    "Head": "heads",
    "Identity": "heads",
    "Inference": "inference",
    "Linear": "heads",
    "Overlap": "trained_on",
    "Pooling": "pooling",
    "ResNet12": "backbones.resnet12",
    "ResNet38": "backbones.resnet38",
    "Sequential": "heads",
    "TrainedOn": "trained_on",
    "WideResNet": "backbones.wide_resnet",
    "affine_of": "heads",
    "available_architectures": "backbones.registry",
    "evaluating": "encoder",
}

__all__ = [
    "GAP",
    "Affine",
    "BNNeck",
    "Batch",
    "Conv4",
    "DropBlock",
    "Encoder",
    "Encoding",
    "Failure",
    "GeM",
    "Head",
    "Identity",
    "Inference",
    "Linear",
    "Overlap",
    "Pooling",
    "ResNet12",
    "ResNet38",
    "Sequential",
    "TrainedOn",
    "WideResNet",
    "affine_of",
    "available_architectures",
    "evaluating",
]

__getattr__, __dir__ = lazily(__name__, _HOME, __all__)
