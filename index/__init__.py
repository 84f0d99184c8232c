"""The gallery on disk, neighbour search, and class prototypes.

Names load on first use: reading a gallery's facts needs neither torch nor FAISS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .checks import verify_gallery
    from .encodings import Encodings, encode_to_file, read_encodings
    from .faiss_search import FaissSearch
    from .filters import And, Eq, Filter, Glob, In, Ne, Not, Or, Range, parse_filter
    from .gallery import Gallery
    from .interop_export import export_gallery
    from .interop_import import import_gallery
    from .prototypes import PrototypeStore
    from .ray_engine import RayEngine
    from .rejection import Rejection
    from .reports import AddReport, Problem, Skipped, VerifyReport
    from .restoring import restore_gallery
    from .rows import Record
    from .search import METRICS, Hits, Metric, Search, SearchSpec
    from .sync_report import SyncReport
    from .tuned import Tuning
    from .tuning import TuningReport
    from .watch import watch_folder

_HOME = {
    "METRICS": "search",
    "AddReport": "reports",
    "And": "filters",
    "Encodings": "encodings",
    "Eq": "filters",
    "FaissSearch": "faiss_search",
    "Filter": "filters",
    "Gallery": "gallery",
    "Glob": "filters",
    "Hits": "search",
    "In": "filters",
    "Metric": "search",
    "Ne": "filters",
    "Not": "filters",
    "Or": "filters",
    "Problem": "reports",
    "PrototypeStore": "prototypes",
    "Range": "filters",
    "RayEngine": "ray_engine",
    "Record": "rows",
    "Rejection": "rejection",
    "Search": "search",
    "SearchSpec": "search",
    "Skipped": "reports",
    "SyncReport": "sync_report",
    "Tuning": "tuned",
    "TuningReport": "tuning",
    "VerifyReport": "reports",
    "encode_to_file": "encodings",
    "export_gallery": "interop_export",
    "import_gallery": "interop_import",
    "parse_filter": "filters",
    "read_encodings": "encodings",
    "restore_gallery": "restoring",
    "verify_gallery": "checks",
    "watch_folder": "watch",
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
