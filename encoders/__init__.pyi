from .backbones.conv4 import Conv4 as Conv4
from .backbones.drop_block import DropBlock as DropBlock
from .backbones.registry import available_architectures as available_architectures
from .backbones.resnet12 import ResNet12 as ResNet12
from .backbones.resnet38 import ResNet38 as ResNet38
from .backbones.wide_resnet import WideResNet as WideResNet
from .encoder import Encoder as Encoder, evaluating as evaluating
from .encoding import Encoding as Encoding
from .heads import (
    Affine as Affine,
    BNNeck as BNNeck,
    Head as Head,
    Identity as Identity,
    Linear as Linear,
    Sequential as Sequential,
    affine_of as affine_of,
)
from .inference import Batch as Batch, Failure as Failure, Inference as Inference
from .pooling import GAP as GAP, GeM as GeM, Pooling as Pooling
from .trained_on import Overlap as Overlap, TrainedOn as TrainedOn
