"""Query a gallery, explain every match, and report both."""

from .explanation import Explanation, Reference
from .matches import Match, Matches, Query
from .report import write_report
from .retriever import Retriever

__all__ = ["Explanation", "Match", "Matches", "Query", "Reference", "Retriever", "write_report"]
