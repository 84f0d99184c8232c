from ..metrics.distances import METRICS, Metric, SearchSpec
from ..remarks import Skipped
from .backends import verify_gallery
from .building.encodings import Encodings, encode_to_file, read_encodings
from .building.ray import RayEngine
from .faiss.search import FaissSearch
from .faiss.tuning import TuningReport
from .filters.tree import And, Eq, Filter, Glob, In, Ne, Not, Or, Range, parse_filter
from .gallery import Gallery
from .interop.export import export_gallery
from .interop.import_ import import_gallery
from .prototypes import PrototypeStore
from .rejection import Rejection
from .reports import AddReport, Problem, SyncReport, VerifyReport
from .search import Hits, Search
from .storage.manifest import Tuning
from .storage.restoring import restore_gallery
from .storage.segments import Record
from .sync.sync import watch_folder

__all__ = [
    "METRICS",
    "AddReport",
    "And",
    "Encodings",
    "Eq",
    "FaissSearch",
    "Filter",
    "Gallery",
    "Glob",
    "Hits",
    "In",
    "Metric",
    "Ne",
    "Not",
    "Or",
    "Problem",
    "PrototypeStore",
    "Range",
    "RayEngine",
    "Record",
    "Rejection",
    "Search",
    "SearchSpec",
    "Skipped",
    "SyncReport",
    "Tuning",
    "TuningReport",
    "VerifyReport",
    "encode_to_file",
    "export_gallery",
    "import_gallery",
    "parse_filter",
    "read_encodings",
    "restore_gallery",
    "verify_gallery",
    "watch_folder",
]
