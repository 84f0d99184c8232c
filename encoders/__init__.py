"""From images to feature maps and vectors: backbones, pooling, heads, weights, checkpoints, and the fast path.

Names load on first use, since torch and torchvision take a second to import.
"""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
