from ._version import __version__ as __version__
from .encoders import Encoder as Encoder, Encoding as Encoding
from .errors import DistcamError as DistcamError
from .index import Gallery as Gallery
from .remarks import DistcamWarning as DistcamWarning
from .retrieval import Matches as Matches, Retriever as Retriever
