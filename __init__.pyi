from ._version import __version__
from .encoders import Encoder, Encoding
from .errors import DistcamError
from .index import Gallery
from .remarks import DistcamWarning
from .retrieval import Matches, Retriever

__all__ = ["DistcamError", "DistcamWarning", "Encoder", "Encoding", "Gallery", "Matches", "Retriever", "__version__"]
