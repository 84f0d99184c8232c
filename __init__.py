"""distcam: metric-learning image retrieval, few-shot learning and re-identification that explains every match.

    from distcam import Encoder, Gallery, Retriever

Public names load on first use, so `import distcam` costs nothing and the command line starts without torch.
"""

from .lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
