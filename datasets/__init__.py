"""Labelled images by data set: retrieval, few-shot and re-identification benchmarks, masks, and folders of one's own.

Nothing is downloaded.
"""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
