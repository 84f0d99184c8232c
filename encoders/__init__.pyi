from .backbones.few_shot import Conv4, DropBlock, ResNet12, WideResNet
from .backbones.registry import available_architectures
from .backbones.resnet38 import ResNet38
from .encoder import Encoder
from .encoding import Encoding
from .heads import GAP, Affine, BNNeck, GeM, Head, Identity, Linear, Pooling, Sequential, affine_of
from .inference import Batch, Failure, Inference
from .layers import evaluating
from .trained_on import Overlap, TrainedOn

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
