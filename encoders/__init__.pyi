from .backbones.few_shot import Conv4 as Conv4
from .backbones.few_shot import DropBlock as DropBlock
from .backbones.few_shot import ResNet12 as ResNet12
from .backbones.few_shot import WideResNet as WideResNet
from .backbones.registry import available_architectures as available_architectures
from .backbones.resnet38 import ResNet38 as ResNet38
from .encoder import Encoder as Encoder
from .encoding import Encoding as Encoding
from .heads import GAP as GAP
from .heads import Affine as Affine
from .heads import BNNeck as BNNeck
from .heads import GeM as GeM
from .heads import Head as Head
from .heads import IdentityHead as IdentityHead
from .heads import Linear as Linear
from .heads import Pooling as Pooling
from .heads import Sequential as Sequential
from .heads import affine_of as affine_of
from .inference import EncodedBatch as EncodedBatch
from .inference import Failure as Failure
from .inference import Inference as Inference
from .layers import evaluating as evaluating
from .trained_on import Overlap as Overlap
from .trained_on import TrainedOn as TrainedOn

# names until 0.2
Identity = IdentityHead
Batch = EncodedBatch
