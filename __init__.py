"""distcam: metric-learning image retrieval, few-shot learning and re-identification that explains every match.

    from distcam import Encoder, Gallery, Retriever

Public names load on first use, so `import distcam` costs nothing and the command line starts without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__
from .errors import DistcamError
from .lazy import lazily
from .remarks import DistcamWarning

if TYPE_CHECKING:
    from .encoders import Encoder, Encoding
    from .index import Gallery
    from .retrieval import Matches, Retriever

__all__ = ["DistcamError", "DistcamWarning", "Encoder", "Encoding", "Gallery", "Matches", "Retriever", "__version__"]

_HOME = {
    "Encoder": "encoders",
    "Encoding": "encoders",
    "Gallery": "index",
    "Matches": "retrieval",
    "Retriever": "retrieval",
}

__getattr__, __dir__ = lazily(__name__, _HOME, __all__)
