"""Query a gallery, explain every match, report both; and evaluate encoders on retrieval benchmarks."""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
