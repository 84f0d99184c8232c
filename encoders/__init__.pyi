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
