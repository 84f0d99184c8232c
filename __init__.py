"""distcam: metric-learning image retrieval, few-shot learning and re-identification that explains every match.

    from distcam import Encoder, Gallery, Retriever

Public names load on first use, so `import distcam` costs nothing and the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import DistcamError

if TYPE_CHECKING:
    from .encoders import Encoder, Encoding
    from .index import Gallery
    from .retrieval import Matches, Retriever

__version__ = "0.1.0"
__all__ = ["DistcamError", "Encoder", "Encoding", "Gallery", "Matches", "Retriever", "__version__"]

_HOME = {
    "Encoder": "encoders",
    "Encoding": "encoders",
    "Gallery": "index",
    "Matches": "retrieval",
    "Retriever": "retrieval",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distcam' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
