"""The gallery on disk, neighbour search, and class prototypes.

Names load on first use: reading a gallery's facts needs neither torch nor FAISS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .backends import verify_gallery
    from .building.encodings import Encodings, encode_to_file, read_encodings
    from .building.ray import RayEngine
    from .faiss.search import FaissSearch
    from .faiss.tuning import TuningReport
    from .filters.matching import And, Eq, Filter, Glob, In, Ne, Not, Or, Range, parse_filter
    from .gallery import Gallery
    from .interop.export import export_gallery
    from .interop.import_ import import_gallery
    from .prototypes import PrototypeStore
    from .rejection import Rejection
    from .reports import AddReport, Problem, Skipped, VerifyReport
    from .search import METRICS, Hits, Metric, Search, SearchSpec
    from .storage.manifest import Tuning
    from .storage.restoring import restore_gallery
    from .storage.segments import Record
    from .sync.report import SyncReport
    from .sync.watch import watch_folder

_HOME = {
    "METRICS": "search",
    "AddReport": "reports",
    "And": "filters.matching",
    "Encodings": "building.encodings",
    "Eq": "filters.matching",
    "FaissSearch": "faiss.search",
    "Filter": "filters.matching",
    "Gallery": "gallery",
    "Glob": "filters.matching",
    "Hits": "search",
    "In": "filters.matching",
    "Metric": "search",
    "Ne": "filters.matching",
    "Not": "filters.matching",
    "Or": "filters.matching",
    "Problem": "reports",
    "PrototypeStore": "prototypes",
    "Range": "filters.matching",
    "RayEngine": "building.ray",
    "Record": "storage.segments",
    "Rejection": "rejection",
    "Search": "search",
    "SearchSpec": "search",
    "Skipped": "reports",
    "SyncReport": "sync.report",
    "Tuning": "storage.manifest",
    "TuningReport": "faiss.tuning",
    "VerifyReport": "reports",
    "encode_to_file": "building.encodings",
    "export_gallery": "interop.export",
    "import_gallery": "interop.import_",
    "parse_filter": "filters.matching",
    "read_encodings": "building.encodings",
    "restore_gallery": "storage.restoring",
    "verify_gallery": "backends",
    "watch_folder": "sync.watch",
}

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

__getattr__, __dir__ = lazily(__name__, _HOME, __all__)
