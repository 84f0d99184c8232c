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
    from .prototypes import PrototypeStore
    from .rejection import Rejection
    from .reports import AddReport, Problem, Skipped, VerifyReport
    from .rows import Record
    from .search import METRICS, Hits, Metric, Search, SearchSpec

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
    "Record": "rows",
    "Rejection": "rejection",
    "Search": "search",
    "SearchSpec": "search",
    "Skipped": "reports",
    "VerifyReport": "reports",
    "encode_to_file": "encodings",
    "parse_filter": "filters",
    "read_encodings": "encodings",
    "verify_gallery": "checks",
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
    "Record",
    "Rejection",
    "Search",
    "SearchSpec",
    "Skipped",
    "VerifyReport",
    "encode_to_file",
    "parse_filter",
    "read_encodings",
    "verify_gallery",
]

__getattr__, __dir__ = lazily(__name__, _HOME, __all__)
